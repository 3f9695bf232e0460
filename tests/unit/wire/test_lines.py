"""Lines of a dialogue, however the octets are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.model import Fault
from relayd.wire import LineReader
from tests.unit.wire.octets import chunks, cuts

LIMIT = 12


def drain(reader: LineReader, *, legacy: bool = False) -> list[bytes | str]:
    """Lines, and faults as their text, until there is no complete line."""
    seen: list[bytes | str] = []
    while True:
        try:
            line = reader.next(legacy=legacy)
        except Fault as fault:
            seen.append(str(fault.reply))
            continue
        if line is None:
            return seen
        seen.append(line)


BARE_LF = "500 5.5.2 Line ended by bare LF; CRLF is required"
BARE_CR = "500 5.5.2 Bare CR in line"
NUL = "500 5.5.2 NUL in line"
LONG = "500 5.5.6 Line too long"


@pytest.mark.parametrize(
    ("octets", "strict", "legacy"),
    [
        (b"", [], []),
        (b"NOOP", [], []),
        (b"NOOP\r", [], []),
        (b"NOOP\r\n", [b"NOOP"], [b"NOOP"]),
        (b"\r\n\r\n", [b"", b""], [b"", b""]),
        (b"a\r\nb\r\nc", [b"a", b"b"], [b"a", b"b"]),
        (b"a\nb\r\nc\r\n", [BARE_LF, b"c"], [b"a", b"b", b"c"]),
        (b"a\nb\nc\r\nd\r\n", [BARE_LF, b"d"], [b"a", b"b", b"c", b"d"]),
        (b"\n", [BARE_LF], [b""]),
        (b"a\rb\r\nc\r\n", [BARE_CR, b"c"], [BARE_CR, b"c"]),
        (b"a\r\r\nb\r\n", [BARE_CR, b"b"], [BARE_CR, b"b"]),
        (b"a\0b\r\nc\r\n", [NUL, b"c"], [NUL, b"c"]),
        (b"0123456789\r\n", [b"0123456789"], [b"0123456789"]),
        (b"0123456789a\r\nb\r\n", [LONG, b"b"], [LONG, b"b"]),
        (b"0123456789" * 9 + b"\r\nb\r\n", [LONG, b"b"], [LONG, b"b"]),
        (b"0123456789" * 9 + b"\nb\r\nc\r\n", [LONG, b"c"], [LONG, b"b", b"c"]),
        (b"\xff\xfe\r\n", [b"\xff\xfe"], [b"\xff\xfe"]),
    ],
)
def test_lines(octets: bytes, strict: list[bytes | str], legacy: list[bytes | str]) -> None:
    for size in range(1, len(octets) + 2):
        for expected, is_legacy in ((strict, False), (legacy, True)):
            reader = LineReader(LIMIT)
            seen: list[bytes | str] = []
            for piece in chunks(octets, [size] * len(octets)):
                reader.feed(piece)
                seen += drain(reader, legacy=is_legacy)
            assert seen == expected


_lines = st.lists(st.sampled_from((b"a", b"bc", b"\r\n", b"\r\n", b"\n", b"\r", b"\0", b" ", b"0123456789"))).map(
    b"".join
)


@given(_lines, cuts, st.booleans())
def test_any_cut_gives_the_same(octets: bytes, sizes: list[int], legacy: bool) -> None:
    whole = LineReader(LIMIT)
    whole.feed(octets)
    expected = drain(whole, legacy=legacy)
    reader = LineReader(LIMIT)
    seen: list[bytes | str] = []
    for piece in chunks(octets, sizes):
        reader.feed(piece)
        seen += drain(reader, legacy=legacy)
    assert seen == expected


@given(_lines)
def test_one_event_a_line(octets: bytes) -> None:
    """So replies stay in step with commands: one for each CRLF, good line or bad."""
    reader = LineReader(LIMIT)
    reader.feed(octets)
    ends = octets.count(b"\r\n")
    assert ends <= len(drain(reader)) <= ends + 1


def test_take_gives_what_was_not_consumed() -> None:
    reader = LineReader(LIMIT)
    reader.feed(b"DATA\r\nbody\nof a long message\r\n.\r\n")
    assert reader.next() == b"DATA"
    assert not reader.empty
    assert reader.take() == b"body\nof a long message\r\n.\r\n"
    assert reader.empty
    assert reader.take() == b""
    reader.feed(b"QUIT\r\n")
    assert reader.next() == b"QUIT"
    assert reader.empty


def test_clear_forgets_a_bad_line_too() -> None:
    reader = LineReader(LIMIT)
    reader.feed(b"0123456789abcdef")
    with pytest.raises(Fault):
        reader.next()
    reader.clear()
    reader.feed(b"NOOP\r\n")
    assert reader.next() == b"NOOP"


def test_the_limit_can_change_within_a_session() -> None:
    reader = LineReader(LIMIT)
    reader.limit = 100
    reader.feed(b"a" * 98 + b"\r\n" + b"b" * 98 + b"\r\n")
    assert reader.next() == b"a" * 98
    reader.limit = LIMIT
    with pytest.raises(Fault, match=r"5\.5\.6"):
        reader.next()


def test_a_flood_without_line_end_is_not_held() -> None:
    reader = LineReader(LIMIT)
    faults: list[bytes | str] = []
    for _ in range(1000):
        reader.feed(b"x" * 1000)
        faults += drain(reader)
    assert faults == [LONG]
    assert reader.take() == b""
