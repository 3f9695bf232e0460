"""BDAT: counted chunks, under the octet rules of DATA."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.wire import BdatReader, BdatWriter, UncleanMessage
from tests.unit.wire.octets import VECTORS, chunks, clean, cuts, first_fault, raw, repairable, unframed


def read(parts: list[bytes], sizes: list[int], rest: bytes = b"", *, legacy: bool = False) -> tuple[bytes, str]:
    """Each part a BDAT chunk, fed in pieces; *rest* comes behind the last of each."""
    reader = BdatReader(legacy=legacy)
    content = b""
    for part in parts:
        reader.start(len(part))
        behind: bytes | None = None
        pieces = chunks(part + rest, sizes)
        for number, piece in enumerate(pieces):
            more, behind = reader.feed(piece)
            content += more
            if behind is not None:
                assert behind + b"".join(pieces[number + 1 :]) == rest
                break
        assert behind is not None
    content += reader.finish()
    return content, reader.fault


@pytest.mark.parametrize(
    ("parts", "content"),
    [
        ([b""], b""),
        ([b"a\r\n"], b"a\r\n"),
        ([b"a"], b"a\r\n"),
        ([b"a\r", b"\nb"], b"a\r\nb\r\n"),
        ([b"a\r\n", b"", b".\r\n.\r\n..x"], b"a\r\n.\r\n.\r\n..x\r\n"),
        ([b".\r\n"], b".\r\n"),
    ],
)
def test_content(parts: list[bytes], content: bytes) -> None:
    assert read(parts, [1]) == (content, "")


@pytest.mark.parametrize("vector", VECTORS)
def test_no_vector_passes(vector: bytes) -> None:
    for size in range(1, len(vector) + 1):
        assert read([b"a", *chunks(vector, [size])], [])[1] == first_fault(vector)


def test_an_empty_chunk_is_complete_at_once() -> None:
    reader = BdatReader()
    reader.start(0)
    assert reader.feed(b"") == (b"", b"")
    reader.start(0)
    assert reader.feed(b"QUIT\r\n") == (b"", b"QUIT\r\n")


@given(st.lists(raw | repairable, min_size=1, max_size=4), cuts, raw, st.booleans())
def test_any_cut_gives_the_same(parts: list[bytes], sizes: list[int], rest: bytes, legacy: bool) -> None:
    message = b"".join(parts)
    content, fault = read(parts, sizes, rest, legacy=legacy)
    assert fault == first_fault(message, legacy=legacy)
    if not fault:
        whole = message.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        assert content == (whole if not whole or whole.endswith(b"\r\n") else whole + b"\r\n")


@given(st.lists(clean, min_size=1, max_size=4), cuts)
def test_clean_chunks_pass_unchanged(parts: list[bytes], sizes: list[int]) -> None:
    message = b"".join(parts)
    assert read(parts, sizes)[0].removesuffix(b"\r\n") == message.removesuffix(b"\r\n")


@given(clean, cuts)
def test_written_in_pieces_it_reads_the_same(message: bytes, sizes: list[int]) -> None:
    writer = BdatWriter()
    octets = b"".join(writer.write(piece) for piece in chunks(message, sizes)) + writer.finish()
    parts, ended = unframed(octets)
    assert ended
    assert writer.chunks == len(parts)
    assert all(parts[:-1])
    assert b"".join(parts) == (message if not message or message.endswith(b"\r\n") else message + b"\r\n")
    assert not any(part.endswith(b"\r") for part in parts)


@given(clean)
def test_written_whole_it_is_one_chunk(message: bytes) -> None:
    parts, ended = unframed(BdatWriter().whole(message))
    assert ended
    assert parts == [message if not message or message.endswith(b"\r\n") else message + b"\r\n"]


@given(raw, cuts)
def test_nothing_unclean_is_written(message: bytes, sizes: list[int]) -> None:
    fault = first_fault(message)
    writer = BdatWriter()
    try:
        for piece in chunks(message, sizes):
            writer.write(piece)
        writer.finish()
    except UncleanMessage:
        assert fault
    else:
        assert not fault
    if fault:
        with pytest.raises(UncleanMessage):
            BdatWriter().whole(message)
