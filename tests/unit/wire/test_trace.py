"""Received, and where the header ends."""

from __future__ import annotations

import re
from email import message_from_bytes, policy
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.wire import count_received, header_block, received_header

GIVEN: dict[str, Any] = {
    "helo": "client.example",
    "client": "192.0.2.1",
    "names": ("ptr.example",),
    "by": "relay.example",
    "with_": "ESMTPSA",
    "message_id": "01ABC",
    "tls": "TLSv1.3 TLS_AES_256_GCM_SHA384",
    "principal": "alice@corp.example",
    "recipient": "bob@example.org",
    "at": 1700000000.9,
}


def received(**changes: Any) -> str:
    return received_header(**{**GIVEN, **changes}).decode()


def test_all_of_it() -> None:
    assert received() == (
        "Received: from client.example (ptr.example [192.0.2.1])\r\n"
        "\tby relay.example with ESMTPSA (TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n"
        "\t(authenticated as alice@corp.example)\r\n"
        "\tid 01ABC for <bob@example.org>;\r\n"
        "\tTue, 14 Nov 2023 22:13:20 +0000\r\n"
    )


def test_the_least_of_it() -> None:
    assert received(helo="", client="", names=(), tls="", principal="", recipient=None, with_="SMTP") == (
        "Received: from unknown\r\n\tby relay.example with SMTP\r\n\tid 01ABC;\r\n\tTue, 14 Nov 2023 22:13:20 +0000\r\n"
    )


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"names": ()}, "from client.example ([192.0.2.1])"),
        ({"client": "2001:db8::1"}, "from client.example (ptr.example [IPv6:2001:db8::1])"),
        ({"client": "fe80::1%eth0", "names": ()}, "from client.example ([IPv6:fe80::1])"),
        ({"helo": "[192.0.2.9]"}, "from [192.0.2.9] (ptr.example [192.0.2.1])"),
        ({"helo": "PRINTER_3"}, "from PRINTER_3 (ptr.example [192.0.2.1])"),
        ({"helo": ""}, "from [192.0.2.1] (ptr.example)"),
        ({"helo": "2nd floor (left)\\"}, "from [192.0.2.1] (helo=2nd floor ?left?\\\\, ptr.example)"),
        ({"helo": "a\r\nX-Evil: 1"}, "from [192.0.2.1] (helo=a??X-Evil: 1, ptr.example)"),
        ({"helo": "büro"}, "from [192.0.2.1] (helo=b?ro, ptr.example)"),
        ({"helo": "büro", "with_": "UTF8SMTPS"}, "from büro (ptr.example [192.0.2.1])"),
        ({"names": ("bad name", "good.example")}, "from client.example (good.example [192.0.2.1])"),
    ],
)
def test_from(changes: dict[str, Any], first: str) -> None:
    assert received(**changes).split("\r\n")[0] == f"Received: {first}"


@pytest.mark.parametrize("recipient", ["a\r\nb@c", "a@b> (", "ä@b", "a b@c", "<a@b>", ""])
def test_a_recipient_that_would_not_be_legal_is_left_out(recipient: str) -> None:
    assert " for " not in received(recipient=recipient)


def test_a_backslash_in_a_comment_is_quoted() -> None:
    assert "(authenticated as CORP\\\\alice)" in received(principal="CORP\\alice")


_nasty = st.text(st.sampled_from('ab.()\\<>"\r\n\0\t ;@[]ä\u2028€\x85'), max_size=300)


@given(
    _nasty, _nasty, st.lists(_nasty, max_size=2).map(tuple), _nasty, _nasty, _nasty, _nasty,
    st.sampled_from(("SMTP", "ESMTPSA", "UTF8SMTPSA")), _nasty,
)  # fmt: skip
def test_nothing_is_injected(
    helo: str,
    client: str,
    names: tuple[str, ...],
    by: str,
    tls: str,
    principal: str,
    recipient: str,
    with_: str,
    mid: str,
) -> None:
    field = received_header(
        helo=helo, client=client, names=names, by=by, with_=with_, message_id=mid, tls=tls,
        principal=principal, recipient=recipient, at=0,
    )  # fmt: skip
    lines = field.split(b"\r\n")
    assert lines.pop() == b""
    assert lines[0].startswith(b"Received: from ")
    assert all(re.match(rb"\t\S", line) for line in lines[1:])
    assert all(len(line) <= 998 for line in lines)
    text = field.decode()
    assert text.replace("\r\n\t", "").removesuffix("\r\n").isprintable()
    if not with_.startswith("UTF8"):
        assert text.isascii()
    assert text.count(";") >= 1
    assert parsedate_to_datetime(lines[-1].decode().strip()).timestamp() == 0
    message = message_from_bytes(field + b"Subject: x\r\n\r\nbody", policy=policy.compat32)
    assert message.keys() == ["Received", "Subject"]
    unquoted = re.sub(r"\\.", "", text)
    assert unquoted.count("(") == unquoted.count(")")


@pytest.mark.parametrize(
    ("header", "count"),
    [
        (b"", 0),
        (b"Subject: x\r\n\r\n", 0),
        (b"Received: a\r\nreceived: b\r\nRECEIVED : c\r\n\r\n", 3),
        (b"X-Received: a\r\nReceived-SPF: b\r\nSubject: x\r\n Received: c\r\n\r\n", 0),
    ],
)
def test_count_received(header: bytes, count: int) -> None:
    assert count_received(header) == count


def test_a_field_of_ours_counts_once() -> None:
    assert count_received(received().encode() * 7) == 7


@pytest.mark.parametrize(
    ("message", "header"),
    [
        (b"", b""),
        (b"\r\n", b"\r\n"),
        (b"\r\nbody\r\n\r\n", b"\r\n"),
        (b"a: b\r\n\r\nc\r\n\r\n", b"a: b\r\n\r\n"),
        (b"a: b\r\n", b"a: b\r\n"),
        (b"a: b\r\n\r\n", b"a: b\r\n\r\n"),
    ],
)
def test_header_block(message: bytes, header: bytes) -> None:
    assert header_block(message) == header
