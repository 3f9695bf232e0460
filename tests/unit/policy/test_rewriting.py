"""``[[rewrite]]``: whose sender becomes which."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from relayd.model import NO_NAMES, Client, Names, Path, Peer, Principal, Rule
from relayd.policy import Rewriting
from relayd.policy.lines import Lines
from relayd.settings import Rewrite
from relayd.wire import Header, parse_address, sent_from

SENDER = Path("scan", "printer.local")
ALICE = Principal(
    "alice", "PLAIN", "ldap", upn="alice.a@corp.example", addresses=("alice@corp.example", "a@corp.example")
)


def client(address: str = "192.0.2.7", principal: Principal | None = None, names: Names = NO_NAMES) -> Client:
    return Client(Peer(ip_address(address)), "smtp", names, principal=principal)


def rewriting(*match: str, to: str = "relay@corp.example", header: bool = False) -> Rewriting:
    return Rewriting([Rewrite(match, to, header)], Lines({"rewrite[0]": 7}))


@pytest.mark.parametrize(
    ("match", "who"),
    [
        ("192.0.2.7", client()),
        ("192.0.2.0/24", client()),
        ("2001:db8::/32", client("2001:db8::5")),
        ("printer.corp.example", client(names=Names(("printer.corp.example",)))),
        ("*.corp.example", client(names=Names(("printer.corp.example",)))),
        ("alice", client(principal=ALICE)),
        ("CORP\\Alice", client(principal=ALICE)),
        ("alice.a@corp.example", client(principal=ALICE)),
        ("A@corp.example", client(principal=ALICE)),
    ],
)
def test_who_is_meant(match: str, who: Client) -> None:
    found = rewriting("198.51.100.1", match).of(who, SENDER)
    assert found is not None
    assert (str(found.path), found.rule) == ("relay@corp.example", Rule("rewrite[0]", 7))


@pytest.mark.parametrize(
    ("match", "who"),
    [
        ("192.0.2.8", client()),
        ("printer.corp.example", client(names=Names(claimed=("printer.corp.example",)))),
        ("alice", client()),
        ("alice", client(principal=Principal("bob", "PLAIN", "ldap"))),
        ("CORP\\alice", client(principal=Principal("alice", "PLAIN", "accounts"))),
        ("*.corp.example", client(principal=ALICE)),
    ],
)
def test_who_is_not(match: str, who: Client) -> None:
    assert rewriting(match).of(who, SENDER) is None


def test_its_domain_alone() -> None:
    found = rewriting("192.0.2.7", to="*@corp.example").of(client(), SENDER)
    assert found is not None
    assert found.path == Path("scan", "corp.example")


def test_a_notice_keeps_its_null_sender() -> None:
    assert rewriting("192.0.2.7").of(client(), Path("")) is None


def test_a_name_that_cannot_be_looked_up_may_decide() -> None:
    unknown = client(names=Names(failed=True))
    assert rewriting("*.corp.example").undecided(unknown)
    assert not rewriting("*.corp.example", "192.0.2.7").undecided(unknown)
    assert not rewriting("192.0.2.9").undecided(unknown)


def test_the_first_table_counts() -> None:
    both = Rewriting(
        [Rewrite(("192.0.2.0/24",), "one@corp.example"), Rewrite(("192.0.2.7",), "two@corp.example")], Lines({})
    )
    found = both.of(client(), SENDER)
    assert found is not None
    assert str(found.path) == "one@corp.example"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            b"From: Printer 3 <scan@printer.local>\r\nSubject: x\r\n",
            b"From: Printer 3 <new@corp.example>\r\nReply-To: Printer 3 <scan@printer.local>\r\nSubject: x\r\n",
        ),
        (
            b"From: scan@printer.local\r\nReply-To: it@corp.example\r\n",
            b"From: new@corp.example\r\nReply-To: it@corp.example\r\n",
        ),
        (
            b'X: y\r\nFROM:\r\n "a, b" <scan@printer.local>\r\n',
            b'X: y\r\nFrom: "a, b" <new@corp.example>\r\nReply-To:\r\n "a, b" <scan@printer.local>\r\n',
        ),
        (b"From: a@x.example\r\nFrom: b@x.example\r\n", b"From: new@corp.example\r\nReply-To: a@x.example\r\n"),
        (b"From: <<<\r\n", b"From: new@corp.example\r\nReply-To: <<<\r\n"),
        (b"From:\r\n", b"From: new@corp.example\r\n"),
        (b"Subject: x\r\n", b"From: new@corp.example\r\nSubject: x\r\n"),
        (b"", b"From: new@corp.example\r\n"),
    ],
)
def test_the_header(header: bytes, expected: bytes) -> None:
    assert sent_from(Header.parse(header + b"\r\n"), str(parse_address("new@corp.example"))) == expected
