"""The syntax of addresses, as tables (RFC 5321 4.1.2, 4.1.3, 4.5.3.1; RFC 6531 3.3)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.model import NULL_PATH, Fault, Path, Recipient, Sender
from relayd.wire import BadAddress, encode_rcpt, parse_address, parse_mail, parse_rcpt

L65 = "a" * 65
D63 = "d" * 63
# 254 octets: with the longest local part they still make a path that is too long.
D191 = ".".join((D63, D63, D63))

GOOD = [
    ("a@b", "a", "b"),
    ("alice@example.org", "alice", "example.org"),
    ("Alice.Smith+tag@Example.ORG", "Alice.Smith+tag", "Example.ORG"),
    ("!#$%&'*+/=?^_`{|}~-@b", "!#$%&'*+/=?^_`{|}~-", "b"),
    ("a%c@b", "a%c", "b"),
    ("c!a@b", "c!a", "b"),
    ("a-@b", "a-", "b"),
    ("1@2.3", "1", "2.3"),
    ("a@host_1.corp", "a", "host_1.corp"),
    ("a@_dmarc.b", "a", "_dmarc.b"),
    ("a@xn--mnchen-3ya.de", "a", "xn--mnchen-3ya.de"),
    ('"a b"@c', '"a b"', "c"),
    ('""@c', '""', "c"),
    ('"a@b"@c', '"a@b"', "c"),
    ('"<a>,:;"@c', '"<a>,:;"', "c"),
    ('"a\\"b\\\\"@c', '"a\\"b\\\\"', "c"),
    ('"a..b."@c', '"a..b."', "c"),
    ("a@[192.0.2.1]", "a", "[192.0.2.1]"),
    ("a@[IPv6:2001:db8::1]", "a", "[IPv6:2001:db8::1]"),
    ("a@[ipv6:::1]", "a", "[ipv6:::1]"),
    ("a@[IPv6:::ffff:192.0.2.1]", "a", "[IPv6:::ffff:192.0.2.1]"),
    ("postmaster", "postmaster", ""),
    ("alice", "alice", ""),
    ('"a b"', '"a b"', ""),
    (f"{L65}@b", L65, "b"),
    (f"a@{D63}.b", "a", f"{D63}.b"),
    (f"{'a' * 62}@{D191}", "a" * 62, D191),
]

BAD = [
    "@b",
    "a@",
    "a..b@x",
    ".a@x",
    "a.@x",
    "a b@x",
    "a@b@c",
    "a@b..c",
    "a@.b",
    "a@b.",
    "a@-b",
    "a@b-",
    "a@b c",
    "a@b,c",
    "a@b/c",
    "a@b%c",
    "a@b>c",
    "a,b@c",
    "a:b@c",
    "a;b@c",
    "a(b)@c",
    "a<b@c",
    "a>b@c",
    "a\\b@c",
    '"a@b',
    'a"b"@c',
    '"a"b@c',
    '"a"b"@c',
    '"a\\"@c',
    "a\tb@c",
    "a\x00b@c",
    '"a\rb"@c',
    '"a\nb"@c',
    '"a\x00b"@c',
    '"a\tb"@c',
    '"a\\\nb"@c',
    '"a\x7fb"@c',
    "a\x7f@c",
    "a@b\r\nRCPT",
    "a@[]",
    "a@[192.0.2.1",
    "a@192.0.2.1]",
    "a@[192.0.2]",
    "a@[192.0.2.256]",
    "a@[192.0.2.01]",
    "a@[192.0.2.1]x",
    "a@[2001:db8::1]",
    "a@[IPv6:]",
    "a@[IPv6:x]",
    "a@[IPv6:192.0.2.1]",
    "a@[IPv6:fe80::1%eth0]",
    "a@[tag:content]",
    f"a@{D63}d.b",
    f"a@{D191}.{D63}.b",
    f"{'a' * 63}@{D191}",
    "a\x85@b",
    "a\u2028@b",
    "a\u00a0b@c",
    "a@b\u3002c",
    "a@b\uff0ec",
    "a@b\uff20c",
    "a@b\u2100c",
    "a@b\u200bc\u2028",
]

UTF8 = [
    ("jürgen@example.org", "jürgen", "example.org"),
    ("a@münchen.de", "a", "münchen.de"),
    ("用户@例え.テスト", "用户", "例え.テスト"),
    ('"ä b"@c', '"ä b"', "c"),
    (f"{'ä' * 32}@b", "ä" * 32, "b"),
]


@pytest.mark.parametrize(("text", "local", "domain"), GOOD)
def test_good(text: str, local: str, domain: str) -> None:
    path = Path(local, domain)
    assert parse_address(text) == path
    assert parse_mail(f"FROM:<{text}>".encode()) == Sender(path)
    assert parse_rcpt(f"TO:<{text}>".encode(), smtputf8_ok=False) == Recipient(path)


@pytest.mark.parametrize("text", BAD)
def test_bad(text: str) -> None:
    with pytest.raises(BadAddress) as raised:
        parse_address(text)
    assert isinstance(raised.value, ValueError)
    for legacy in (False, True):
        for form in (f"<{text}>", text):
            with pytest.raises(Fault) as raised_fault:
                parse_mail(f"FROM:{form} SMTPUTF8".encode(), legacy=legacy)
            assert raised_fault.value.reply.code in (501, 555)
            with pytest.raises(Fault) as raised_fault:
                parse_rcpt(f"TO:{form}".encode(), legacy=legacy, smtputf8_ok=True)
            assert raised_fault.value.reply.code in (501, 550, 555)


@pytest.mark.parametrize(("text", "local", "domain"), UTF8)
def test_utf8(text: str, local: str, domain: str) -> None:
    path = Path(local, domain)
    assert parse_address(text) == path
    assert parse_mail(f"FROM:<{text}> SMTPUTF8".encode()).path == path
    assert parse_rcpt(f"TO:<{text}>".encode(), smtputf8_ok=True).path == path
    for refused in (
        lambda: parse_mail(f"FROM:<{text}>".encode()),
        lambda: parse_rcpt(f"TO:<{text}>".encode(), smtputf8_ok=False),
    ):
        with pytest.raises(Fault) as raised:
            refused()
        assert (raised.value.reply.code, raised.value.reply.enhanced) == (553, "5.6.7")


@pytest.mark.parametrize("octets", [b"a\xff@b", b"a@\xc3", b"\xc0\xaf@b", b"\xed\xa0\x80@b"])
def test_malformed_utf8(octets: bytes) -> None:
    with pytest.raises(BadAddress) as raised:
        parse_mail(b"FROM:<" + octets + b"> SMTPUTF8")
    assert (raised.value.reply.code, raised.value.reply.enhanced) == (501, "5.1.7")
    with pytest.raises(BadAddress) as raised:
        parse_rcpt(b"TO:<" + octets + b">", smtputf8_ok=True)
    assert (raised.value.reply.code, raised.value.reply.enhanced) == (501, "5.1.3")


@pytest.mark.parametrize("text", ["", "<>", "<a@b>", " a@b", "a@b ", "A <a@b>", "@a:b@c"])
def test_a_plain_address_is_nothing_else(text: str) -> None:
    with pytest.raises(BadAddress):
        parse_address(text)


@pytest.mark.parametrize("route", ["@a:", "@a.example,@b.example:", "@[192.0.2.1],@b:"])
def test_source_routes(route: str) -> None:
    """Dropped where they cannot matter, refused where they would (RFC 5321 appendix C)."""
    assert parse_mail(f"FROM:<{route}c@d>".encode()).path == Path("c", "d")
    with pytest.raises(Fault) as raised:
        parse_rcpt(f"TO:<{route}c@d>".encode(), smtputf8_ok=False)
    assert (raised.value.reply.code, raised.value.reply.enhanced) == (550, "5.7.1")


@pytest.mark.parametrize("route", ["@a", "@a,", "@a,b:", "@a@b:", "@:", "@a,:", "a:", "@a::", "@a..b:"])
def test_malformed_source_routes(route: str) -> None:
    with pytest.raises(BadAddress):
        parse_mail(f"FROM:<{route}c@d>".encode())
    with pytest.raises(BadAddress):
        parse_rcpt(f"TO:<{route}c@d>".encode(), smtputf8_ok=False)


def test_null_path() -> None:
    assert parse_mail(b"FROM:<>").path == NULL_PATH
    with pytest.raises(BadAddress) as raised:
        parse_rcpt(b"TO:<>", smtputf8_ok=False)
    assert (raised.value.reply.code, raised.value.reply.enhanced) == (501, "5.1.3")


@given(st.text(st.sampled_from('ab.@"\\<>[]:,! %+-_\r\n\0 ä。'), max_size=12))
def test_what_is_taken_holds_nothing_that_injects(text: str) -> None:
    try:
        path = parse_address(text)
    except BadAddress:
        return
    assert str(path) == text
    assert text.isprintable()
    sent = encode_rcpt(Recipient(path), extensions=frozenset({"SMTPUTF8"}))
    assert sent == f"RCPT TO:<{text}>\r\n".encode()
    assert parse_rcpt(sent[len("RCPT ") : -2], smtputf8_ok=True).path == path
