"""Open relays are found, exactly, and nothing else is taken for one."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path as File
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.model import NO_NAMES, Client, IPAddress, Path, Peer, Recipient, Sender
from relayd.policy import Policy, open_relay
from relayd.policy.openrelay import anonymous_space
from relayd.policy.suffixes import is_public_suffix
from relayd.settings import AllowMode, HostList, Relay, Settings

from .configurations import CORP, DOMAINS, all_except, hosts, listener, local, only, remote, settings
from .strategies import addresses, choices

Choice = tuple[AllowMode, HostList]


def found(configuration: Settings) -> list[tuple[str, str]]:
    return [(each.listener, each.rule.key) for each in open_relay(configuration)]


@pytest.mark.parametrize(
    ("relay", "rule"),
    [
        (only(), None),
        (only("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "127.0.0.0/8", "::1"), None),
        (only("8.0.0.0/8"), None),  # as wide as may be
        (only("8.0.0.0/8", "8.8.8.0/24"), None),  # the same addresses twice
        (only("8.0.0.0/8", "9.9.9.9"), "relay.list"),
        (only("8.0.0.0/9", "12.0.0.0/9", "13.13.13.13"), "relay.list"),
        (only("10.0.0.0/8", "8.0.0.0/7"), "relay.list[1]"),
        (only("0.0.0.0/0"), "relay.list[0]"),
        (only("0.0.0.0/1", "128.0.0.0/1"), "relay.list[0]"),
        (only("10.0.0.0/7"), None),  # half of it is private
        (only("::/0"), "relay.list[0]"),
        (only("2000::/3"), "relay.list[0]"),
        (only("2600::/19"), None),
        (only("2600::/18"), "relay.list[0]"),
        (only("2600::/19", "2a00::1"), "relay.list"),
        (only("::ffff:0:0/96"), "relay.list[0]"),
        (only("app.corp.example", "*.corp.example"), None),
        (only("*.com"), "relay.list[0]"),
        (only("10.0.0.0/8", "*.co.uk"), "relay.list[1]"),
        (only("*.dyndns.org"), "relay.list[0]"),
        (only("*.compute.amazonaws.com"), "relay.list[0]"),
        (only("com"), "relay.list[0]"),
        (only("printer1", "*.corp", "*.local", "*.lan"), None),
        (only("*.newtopleveldomain"), "relay.list[0]"),
        (only("*.xn--p1ai"), "relay.list[0]"),
        (all_except(), "relay.allow"),
        (all_except("203.0.113.5", "*.com"), "relay.allow"),
        (all_except("0.0.0.0/0"), "relay.allow"),  # IPv6 is left
        (all_except("::/0"), "relay.allow"),  # IPv4 is left
        (all_except("0.0.0.0/0", "::/0"), None),
        (all_except("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"), None),
    ],
    ids=str,
)
def test_relay_restrictions(relay: Choice, rule: str | None) -> None:
    assert found(settings(listener(relay=relay), domains=DOMAINS)) == ([("smtp", rule)] if rule else [])


@pytest.mark.parametrize(
    ("access", "relay", "rule"),
    [
        (only("10.0.0.0/8"), all_except(), None),
        (only("10.0.0.0/8"), only("0.0.0.0/0", "::/0", "*.com"), None),
        (only("8.0.0.0/8"), all_except(), None),
        (only("8.0.0.0/7"), all_except(), "relay.allow"),
        (only("8.0.0.0/7"), only("*.com"), "relay.list[0]"),
        (only("8.0.0.0/7"), only("10.0.0.0/8"), None),
        (only("8.0.0.0/7"), only("9.0.0.0/8", "11.0.0.0/8"), None),
        (only("*.com"), all_except(), "relay.allow"),
        (only("*.com"), only("10.0.0.0/8"), None),
        (only("*.com"), only("*.org"), "relay.list[0]"),
        (only("*.corp.example"), all_except(), None),
        (only("*.corp.example"), only("*.com"), None),
        (all_except("*.com"), all_except(), "relay.allow"),
        (all_except("0.0.0.0/0", "::/0"), all_except(), None),
        (only(), all_except(), None),
    ],
    ids=str,
)
def test_the_access_list_comes_first(access: Choice, relay: Choice, rule: str | None) -> None:
    assert found(settings(listener(access=access, relay=relay))) == ([("smtp", rule)] if rule else [])


@pytest.mark.parametrize(
    ("domain", "rule"),
    [
        (remote("*", relay=True), "domain[1].relay"),
        (remote("*.com", relay=True), "domain[1].relay"),
        (remote("*", relay=False), None),
        (remote("*.partner.example", relay=True), None),
        (remote("*.corp.local", relay=True), None),
        (local("*"), None),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_remote_domains(domain: object, rule: str | None) -> None:
    assert found(settings(listener(), domains=[CORP, domain])) == ([("smtp", rule)] if rule else [])  # type: ignore[list-item]


def test_a_catch_all_for_private_clients_is_not_open() -> None:
    inside = listener(access=only("10.0.0.0/8"))
    assert found(settings(inside, domains=[remote("*", relay=True)])) == []


def test_proxy_headers_believed_from_strangers() -> None:
    assert found(settings(listener(proxy_protocol=hosts("10.0.0.1", "0.0.0.0/0")))) == [
        ("smtp", "listener[0].proxy_protocol[1]")
    ]
    assert found(settings(listener(proxy_protocol=hosts("10.0.0.0/8", "192.0.2.1")))) == []
    assert found(settings(listener(proxy_protocol=hosts("*.com")))) == [("smtp", "listener[0].proxy_protocol[0]")]


def test_where_everyone_must_authenticate_nothing_is_open() -> None:
    closed = listener(anonymous=False, relay=all_except(), proxy_protocol=hosts("0.0.0.0/0"))
    assert found(settings(closed, domains=[remote("*", relay=True)])) == []


def test_each_listener_is_looked_at() -> None:
    configuration = settings(
        listener("a", relay=all_except()),
        listener("b"),
        replace(listener("c"), relay=Relay(*only("0.0.0.0/0"), origin="listener[2].relay")),
        domains=DOMAINS,
    )
    assert found(configuration) == [("a", "relay.allow"), ("c", "listener[2].relay.list[0]")]


def test_several_faults_are_all_told() -> None:
    configuration = settings(
        listener(relay=all_except(), proxy_protocol=hosts("0.0.0.0/0")), domains=[CORP, remote("*", relay=True)]
    )
    assert [rule for _, rule in found(configuration)] == [
        "relay.allow",
        "domain[1].relay",
        "listener[0].proxy_protocol[0]",
    ]


def test_a_finding_is_a_fault_of_the_configuration() -> None:
    (finding,) = open_relay(settings(listener(relay=only("8.0.0.0/7", "2600::/12")), lines={"relay.list[0]": 41}))
    assert finding.file == File("relayd.toml")
    assert str(finding).startswith("relayd.toml:41: relay.list[0]: open relay on listener smtp: ")
    assert "33,554,432 public IPv4 addresses and public IPv6 space of a /12 or more" in str(finding)
    assert "--allow-open-relay" in str(finding)
    assert finding.as_dict()["networks"] == ["8.0.0.0/7", "2600::/12"]


def test_a_key_that_was_not_written_is_still_named() -> None:
    (finding,) = open_relay(settings(listener(relay=all_except())))
    assert str(finding).startswith("relayd.toml:1: relay.allow: ")


@pytest.mark.parametrize("name", ["", "com", "co.uk", "github.io", "xn--p1ai", "foo.ck"])
def test_public_suffixes(name: str) -> None:
    assert is_public_suffix(name, wildcard=True)


@pytest.mark.parametrize(
    "name", ["corp.example", "example", "local", "home.arpa", "corp.com", "www.ck", "ad.corp.co.uk"]
)
def test_no_public_suffixes(name: str) -> None:
    assert not is_public_suffix(name, wildcard=True)


def relays(policy: Policy, address: IPAddress) -> bool:
    client, sender = Client(Peer(address), "smtp", NO_NAMES), Sender(Path("a", "x.example"))
    steps = (
        policy.greet(client),
        policy.mail(client, sender),
        policy.rcpt(client, sender, Recipient(Path("b", "elsewhere.example"))),
    )
    return all(step.accepted for step in steps)


@given(choices, choices, st.lists(addresses, min_size=5, max_size=20))
def test_the_space_is_what_the_policy_lets_relay(access: Choice, relay: Choice, sample: list[IPAddress]) -> None:
    """The set that open_relay measures against the decisions of the server itself."""
    configuration = settings(listener(access=access, relay=relay), domains=DOMAINS)
    policy, space = Policy(configuration), anonymous_space(configuration.listeners[0])
    wide = any(
        entry.network is None and is_public_suffix(entry.name, wildcard=entry.wildcard)
        for _, entries in (access, relay)
        for entry in entries
    )
    for address in sample:
        if relays(policy, address):
            assert address in space
        elif not wide:
            assert address not in space


def strangers(seed: int) -> list[IPAddress]:
    """Public addresses from all over both families."""
    random = Random(seed)
    chosen: list[IPAddress] = [IPv4Address(random.randrange(1 << 24, 224 << 24)) for _ in range(200)]
    chosen += [IPv6Address(random.randrange(0x2003 << 112, 0x3FF0 << 112)) for _ in range(20)]
    return [address for address in chosen if address.is_global]


@given(
    st.sampled_from(AllowMode),
    st.lists(st.integers(1, 223).map(lambda first: f"{first}.0.0.0/8"), max_size=3, unique=True),
    st.integers(0, 1 << 32).map(strangers),
)
def test_a_configuration_that_relays_for_many_strangers_is_found(
    allow: AllowMode, blocks: list[str], sample: list[IPAddress]
) -> None:
    configuration = settings(listener(relay=(allow, hosts(*blocks))))
    policy = Policy(configuration)
    relayed = [address for address in sample if relays(policy, address)]
    if not open_relay(configuration):
        assert len({address.packed[0] for address in relayed}) <= 1
    else:
        assert relayed or len(blocks) > 1
