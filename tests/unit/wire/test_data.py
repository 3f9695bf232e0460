"""DATA, both ways: against a reader that goes line by line, and however the octets are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.wire import DataReader, DataWriter, UncleanMessage
from tests.unit.wire.octets import (
    VECTORS,
    Reading,
    chunks,
    clean,
    cuts,
    first_fault,
    raw,
    read_line_by_line,
    repairable,
)

END = b"\r\n.\r\n"


def read(stream: bytes, sizes: list[int], *, legacy: bool = False) -> Reading:
    """Feed *stream* to a DataReader; after its end, what was not fed belongs to the rest."""
    reader = DataReader(legacy=legacy)
    content = b""
    pieces = chunks(stream, sizes)
    for number, piece in enumerate(pieces):
        more, rest = reader.feed(piece)
        content += more
        if rest is not None:
            return Reading(content, reader.fault, rest + b"".join(pieces[number + 1 :]))
    return Reading(content, reader.fault, None)


def write(octets: bytes, sizes: list[int], sent: list[bytes] | None = None) -> bytes:
    """What a DataWriter makes of *octets*; *sent* shows what had left before it raised."""
    sent = [] if sent is None else sent
    writer = DataWriter()
    for piece in chunks(octets, sizes):
        sent.append(writer.write(piece))
    sent.append(writer.finish())
    return b"".join(sent)


class TestReader:
    @pytest.mark.parametrize(
        ("stream", "content", "rest"),
        [
            (b".\r\n", b"", b""),
            (b".\r\nQUIT\r\n", b"", b"QUIT\r\n"),
            (b"\r\n.\r\n", b"\r\n", b""),
            (b"a\r\n.\r\n", b"a\r\n", b""),
            (b"a\r\n.\r\n.\r\n", b"a\r\n", b".\r\n"),
            (b"..\r\n.\r\n", b".\r\n", b""),
            (b".a\r\n..b\r\n...\r\n.\r\nRSET\r\n", b"a\r\n.b\r\n..\r\n", b"RSET\r\n"),
            (b"a.\r\n.\r\n", b"a.\r\n", b""),
            (b"\xff\xfe\r\n.\r\n\0\r", b"\xff\xfe\r\n", b"\0\r"),
            (b"a", b"a", None),
            (b"a\r\n", b"a", None),
            (b"a\r\n.", b"a", None),
            (b"a\r\n.\r", b"a", None),
            (b"", b"", None),
        ],
    )
    @pytest.mark.parametrize("legacy", [False, True])
    def test_what_ends_and_what_stays(self, stream: bytes, content: bytes, rest: bytes | None, legacy: bool) -> None:
        for size in (1, 2, 3, len(stream)):
            sizes = [size] * (len(stream) // max(size, 1))
            assert read(stream, sizes, legacy=legacy) == Reading(content, "", rest)

    @pytest.mark.parametrize("vector", VECTORS)
    @pytest.mark.parametrize("legacy", [False, True])
    def test_no_vector_ends_data(self, vector: bytes, legacy: bool) -> None:
        for stream in (vector, b"a" + vector, b"a\r\n" + vector, b"a" + vector + b"MAIL FROM:<b@c>\r\n"):
            for size in range(1, len(stream) + 1):
                assert read(stream, [size] * len(stream), legacy=legacy).rest is None

    @pytest.mark.parametrize("vector", VECTORS)
    def test_every_vector_is_a_fault_once_the_end_is_read(self, vector: bytes) -> None:
        stream = b"a" + vector + b"b"
        for size in range(1, len(stream) + 1):
            reading = read(stream + b"\r\n.\r\nQUIT\r\n", [size] * len(stream))
            assert reading.fault == first_fault(stream)
            assert reading.fault
            assert reading.rest == b"QUIT\r\n"

    @pytest.mark.parametrize(
        ("stream", "content"),
        [
            (b"a\nb\n", b"a\r\nb\r\n"),
            (b"a\n.\nb\r\n", b"a\r\n.\r\nb\r\n"),
            (b".\nb\n", b".\r\nb\r\n"),
            (b"a\n.\n.\n.\n.\n\n", b"a\r\n.\r\n.\r\n.\r\n.\r\n\r\n"),
            (b"a\n.\r\nb\r\n", b"a\r\n.\r\nb\r\n"),
            (b"a\r\n.\nb\r\n", b"a\r\n.\r\nb\r\n"),
            (b"a\n..\n.b\n...c\n", b"a\r\n.\r\nb\r\n..c\r\n"),
            (b"a\r\n..b\nc\r\n", b"a\r\n.b\r\nc\r\n"),
        ],
    )
    def test_legacy_repairs_bare_lf(self, stream: bytes, content: bytes) -> None:
        for size in range(1, len(stream) + 1):
            reading = read(stream + b"\r\n.\r\nQUIT", [size] * len(stream), legacy=True)
            assert reading == Reading(content + b"\r\n", "", b"QUIT")

    @pytest.mark.parametrize(
        ("stream", "fault"),
        [(b"a\nb\rc\0", "bare CR"), (b"\n\0\r", "NUL"), (b"a\r\r\n", "bare CR"), (b"\n\r", "bare CR")],
    )
    def test_legacy_never_repairs_bare_cr_or_nul(self, stream: bytes, fault: str) -> None:
        for size in range(1, len(stream) + 1):
            reading = read(stream + END, [size] * len(stream), legacy=True)
            assert (reading.fault, reading.rest) == (fault, b"")

    @given(raw | repairable | clean, raw, cuts, st.booleans())
    def test_as_line_by_line(self, body: bytes, rest: bytes, sizes: list[int], legacy: bool) -> None:
        stream = body + END + rest
        expected = read_line_by_line(stream, legacy=legacy)
        reading = read(stream, sizes, legacy=legacy)
        assert (reading.fault, reading.rest) == (expected.fault, expected.rest)
        if not expected.fault:
            assert reading.content == expected.content

    @given(clean, cuts)
    def test_what_is_held_back_is_small(self, body: bytes, sizes: list[int]) -> None:
        reader = DataReader()
        came = given_out = 0
        for piece in chunks(body.replace(END, b""), sizes):
            content, rest = reader.feed(piece)
            if rest is not None:
                break
            came += len(piece)
            given_out += len(content)
            assert came - given_out - body.count(b"\r\n.") <= 4


class TestWriter:
    @pytest.mark.parametrize(
        ("message", "sent"),
        [
            (b"", b".\r\n"),
            (b"a", b"a\r\n.\r\n"),
            (b"a\r\n", b"a\r\n.\r\n"),
            (b"\r\n", b"\r\n.\r\n"),
            (b".", b"..\r\n.\r\n"),
            (b".\r\n.\r\n..\r\na.\r\n", b"..\r\n..\r\n...\r\na.\r\n.\r\n"),
        ],
    )
    def test_stuffs_and_ends(self, message: bytes, sent: bytes) -> None:
        for size in range(1, len(message) + 2):
            assert write(message, [size] * len(message)) == sent

    @pytest.mark.parametrize("vector", VECTORS)
    def test_no_vector_leaves(self, vector: bytes) -> None:
        for message in (vector, b"a" + vector, b"a\r\n" + vector + b"b\r\n", b"a" + vector + END):
            for size in range(1, len(message) + 1):
                sent: list[bytes] = []
                with pytest.raises(UncleanMessage):
                    write(message, [size] * len(message), sent)
                assert not first_fault(b"".join(sent))
                assert END not in b"".join(sent)

    @given(raw, cuts)
    def test_unclean_raises(self, message: bytes, sizes: list[int]) -> None:
        if first_fault(message):
            with pytest.raises(UncleanMessage, match=first_fault(message)):
                write(message, sizes)
        else:
            write(message, sizes)

    @given(clean, cuts)
    def test_any_cut_sends_the_same(self, message: bytes, sizes: list[int]) -> None:
        assert write(message, sizes) == write(message, [])


@given(clean, cuts, cuts, raw, st.booleans())
def test_what_is_written_is_read(message: bytes, out: list[int], back: list[int], rest: bytes, legacy: bool) -> None:
    whole = message if not message or message.endswith(b"\r\n") else message + b"\r\n"
    assert read(write(message, out) + rest, back, legacy=legacy) == Reading(whole, "", rest)


@given(repairable, cuts, cuts, cuts)
def test_what_a_legacy_client_sent_goes_out_and_is_read_strictly(
    body: bytes, sizes: list[int], out: list[int], back: list[int]
) -> None:
    """What was repaired means the same to the next hop."""
    reading = read(body + END, sizes, legacy=True)
    assert not reading.fault
    assert read(write(reading.content, out), back) == Reading(reading.content, "", b"")
