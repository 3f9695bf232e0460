"""Whatever a client says, in whatever state and segments: it is answered, line by line, and nothing breaks."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.smtpd.talk import Talk

#: Where a session may stand when the nonsense begins.
STATES = {
    "greeting": b"",
    "hello": b"EHLO client.example\r\n",
    "mail": b"EHLO client.example\r\nMAIL FROM:<a@b.example>\r\n",
    "rcpt": b"EHLO client.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n",
    "data": b"EHLO client.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n",
    "chunk": b"EHLO client.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nBDAT 10\r\n12345",
    "auth": b"EHLO client.example\r\nAUTH LOGIN\r\n",
}

WORDS = (
    *(b"EHLO", b"HELO", b"MAIL FROM:", b"RCPT TO:", b"DATA", b"BDAT", b"RSET", b"NOOP", b"VRFY", b"AUTH", b"STARTTLS"),
    *(b"HELP", b"EXPN", b"ETRN", b"GET / HTTP/1.1", b"mail from:", b"<a@b.example>", b"<>", b"<@x:a@b.example>"),
    *(b"postmaster", b'<"a b"@c.example>', b"<a@[127.0.0.1]>", b"SIZE=10", b"SIZE=99999999999999", b"BODY=8BITMIME"),
    *(b"BODY=X", b"SMTPUTF8", b"RET=HDRS", b"ENVID=a+2Bb", b"NOTIFY=NEVER", b"ORCPT=rfc822;a", b"AUTH=<>", b"LAST"),
    *(
        b"0",
        b"1",
        b"10",
        b"-1",
        b"99999999999999999999",
        b"PLAIN",
        b"LOGIN",
        b"GSSAPI",
        b"AGEAYg==",
        b"=",
        b"*",
        b"!!!!",
    ),
    *(
        b" ",
        b"\t",
        b":",
        b"\r\n",
        b"\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b".",
        b"\r\n.\r\n",
        b"\0",
        b"\xff",
        b"\xc3\xa9",
        b"\x80",
    ),
)
OCTETS = st.lists(st.sampled_from(WORDS) | st.binary(max_size=6), max_size=30).map(b"".join)

REPLY = re.compile(rb"(?:[2-5][0-9]{2}[ -][\x20-\x7e]*\r\n)*")


def replies(octets: bytes, cuts: list[int]) -> bytes:
    """What a session says to *octets*, cut there."""
    talk = Talk()
    said = talk.read()
    edges = sorted({0, len(octets), *(cut % (len(octets) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        if talk.closed:
            break
        said += talk.send(octets[start:end])
    assert not [event for event in talk.seen if event.name == "fault"], talk.seen
    talk.hang_up()  # where the session has closed the connection, this is what TCP says of it
    assert not talk.clock.getDelayedCalls()
    return said


@pytest.mark.parametrize("state", STATES)
@given(octets=OCTETS, cuts=st.lists(st.integers(0, 10_000), max_size=8))
def test_it_is_answered_line_by_line_in_whatever_segments(state: str, octets: bytes, cuts: list[int]) -> None:
    octets = STATES[state] + octets
    said = replies(octets, [])
    assert REPLY.fullmatch(said), said
    assert replies(octets, cuts) == said
