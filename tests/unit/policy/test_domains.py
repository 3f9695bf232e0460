"""Which ``[[domain]]`` speaks for a domain, and which addresses a sender rule holds."""

from __future__ import annotations

import pytest

from relayd.model import Path
from relayd.policy import DomainTable
from relayd.policy.addresses import AddressPatterns, address_key
from relayd.policy.domains import fold
from relayd.settings import Domain

from .configurations import CORP, DOMAINS, local, remote, settings


def table(*domains: Domain) -> DomainTable:
    return DomainTable(settings(domains=domains).domains)


@pytest.mark.parametrize(
    ("domain", "key"),
    [
        ("corp.example", "domain[0]"),
        ("Corp.Example.", "domain[0]"),
        ("corp.test", "domain[0].aliases[0]"),
        ("bücher.example", "domain[0].aliases[1]"),
        ("XN--BCHER-KVA.example", "domain[0].aliases[1]"),
        ("partner.example", "domain[1]"),
        ("a.partner.example", "domain[2]"),
        ("secret.partner.example", "domain[3]"),
        ("a.secret.partner.example", "domain[2]"),
        ("a.closed.partner.example", "domain[4]"),
        ("closed.partner.example", "domain[2]"),
        ("a.sites.example", "domain[5]"),
    ],
)
def test_exact_beats_wildcard_and_the_longest_wildcard_wins(domain: str, key: str) -> None:
    found = table(*DOMAINS).locate(domain)
    assert found is not None
    assert found[1] == key
    assert found[0].origin == key.partition(".")[0]


@pytest.mark.parametrize(
    "domain", ["", "example", "elsewhere.example", "xcorp.example", "[192.0.2.1]", "sites.example"]
)
def test_what_is_not_listed(domain: str) -> None:
    domains = table(*DOMAINS)
    assert domains.find(domain) is None
    assert not domains.is_local(domain)


def test_the_order_of_the_tables_does_not_matter() -> None:
    domains = (
        "corp.example",
        "a.partner.example",
        "x.closed.partner.example",
        "a.sites.example",
        "secret.partner.example",
    )
    forward, backward = table(*DOMAINS), table(*reversed(DOMAINS))
    for domain in domains:
        one, other = forward.find(domain), backward.find(domain)
        assert one is not None
        assert other is not None
        assert (one.name, one.wildcard) == (other.name, other.wildcard)


def test_the_catch_all_comes_last() -> None:
    domains = table(remote("*", relay=True), CORP, remote("*.example", relay=False))
    assert [domains.find(name).origin for name in ("a.test", "a.example", "corp.example", "test")] == [  # type: ignore[union-attr]
        "domain[0]",
        "domain[2]",
        "domain[1]",
        "domain[0]",
    ]


def test_local() -> None:
    domains = table(*DOMAINS)
    assert domains.is_local("CORP.TEST")
    assert domains.is_local("berlin.sites.example")
    assert not domains.is_local("partner.example")


def test_the_first_of_two_holds() -> None:
    assert table(local("a.example", "b.example"), local("b.example")).locate("b.example")[1] == "domain[1]"  # type: ignore[index]
    assert table(local("a.example"), local("a.example")).locate("a.example")[1] == "domain[0]"  # type: ignore[index]


@pytest.mark.parametrize(
    ("written", "folded"),
    [
        ("Corp.Example.", "corp.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[IPv6:2001:DB8:0::1]", "[2001:db8::1]"),
        ("[nonsense]", "[nonsense]"),
        ("..é..", "..é.."),
    ],
)
def test_fold(written: str, folded: str) -> None:
    assert fold(written) == folded


@pytest.mark.parametrize(
    ("pattern", "address", "held"),
    [
        ("alice@corp.example", "Alice@CORP.example", True),
        ("alice@corp.example", "alice@corp.example.evil.example", False),
        ("alice@corp.example", "malice@corp.example", False),
        ("alice@corp.example", '"alice"@corp.example', True),
        ("alice@corp.example", '"al\\ice"@corp.example', True),
        ("*@corp.example", "anyone@corp.example", True),
        ("*@corp.example", "anyone@sub.corp.example", False),
        ("*@corp.example", '"a@evil.example"@corp.example', True),
        ("*@corp.example", '"x@corp.example"@evil.example', False),
        ("*@*.corp.example", "a@sub.corp.example", True),
        ("*@*.corp.example", "a@corp.example", False),
        ("*@*.corp.example", "a@xcorp.example", False),
        ("app-*@corp.example", "app-7@corp.example", True),
        ("app-*@corp.example", "app@corp.example", False),
        ("a.b@corp.example", "axb@corp.example", False),
        ("a.*@corp.example", "axb@corp.example", False),
        ("*", "who@ever.example", True),
        ("corp.example", "alice@corp.example", False),
        ("*@bücher.example", "a@xn--bcher-kva.example", True),
        ("*@xn--bcher-kva.example", "a@BÜCHER.example", True),
    ],
)
def test_sender_patterns(pattern: str, address: str, held: bool) -> None:
    local_part, _, domain = address.rpartition("@")
    assert (AddressPatterns([pattern]).match(Path(local_part, domain)) == 0) is held


def test_the_first_pattern_is_named() -> None:
    patterns = AddressPatterns(["*@a.example", "x@b.example", "*@b.example", "x@a.example", "*"])
    found = [patterns.match(Path(*address)) for address in (("x", "a.example"), ("x", "b.example"), ("y", "b.example"))]
    assert found == [0, 1, 2]
    assert patterns.match(Path("z", "c.example")) == 4


def test_quotes_do_not_make_another_mailbox() -> None:
    assert address_key(Path('"Alice"', "Corp.Example")) == address_key(Path("alice", "corp.example"))
