"""Host lists: who is on them, and at which entry."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.model import NO_NAMES, IPAddress, Names, Outcome
from relayd.policy import HostMatcher
from relayd.policy.hosts import HostRule
from relayd.policy.lines import Lines
from relayd.settings import AllowMode, HostEntry, HostList

from .configurations import host, hosts
from .strategies import addresses, choices, host_lists, names

CLIENT = ip_address("203.0.113.5")
MAPPED = IPv6Network("::ffff:0:0/96")


def naive_holds(entry: HostEntry, address: IPAddress, told: tuple[str, ...]) -> bool:
    """Whether *entry* holds the client, by the words of the contract and one network at a time."""
    if entry.network is None:
        return any(name.endswith(f".{entry.name}") if entry.wildcard else name == entry.name for name in told)
    address = getattr(address, "ipv4_mapped", None) or address
    if entry.network.subnet_of(MAPPED) if entry.network.version == 6 else False:
        return address.version == 4 and IPv6Address(f"::ffff:{address}") in entry.network
    return address in entry.network


@given(host_lists, addresses, names, st.booleans())
def test_match_is_the_first_entry_of_a_naive_loop(
    entries: HostList, address: IPAddress, told: Names, denying: bool
) -> None:
    counted = told.confirmed + told.claimed if denying else told.confirmed
    naive = next((i for i, entry in enumerate(entries) if naive_holds(entry, address, counted)), None)
    assert HostMatcher(entries).match(address, told, denying=denying) == naive


@given(host_lists)
def test_has_names(entries: HostList) -> None:
    assert HostMatcher(entries).has_names == any(entry.network is None for entry in entries)


@given(choices, addresses, names, names)
def test_a_deferred_answer_could_be_either_and_a_given_one_stands(
    choice: tuple[AllowMode, HostList], address: IPAddress, told: Names, more: Names
) -> None:
    """Three values: whatever a failed look-up would have added, an answer that was given does not change."""
    rule = HostRule(*choice, "relay", Lines({}))
    before, _ = rule.test(address, Names(told.confirmed, told.claimed, failed=True))
    after, _ = rule.test(address, Names(told.confirmed + more.confirmed, told.claimed + more.claimed))
    if before is not Outcome.DEFER:
        assert after is before
    else:
        assert after is not Outcome.DEFER
        entry = choice[1][rule.matcher.first_name or 0]
        name = f"x.{entry.name}" if entry.wildcard else entry.name
        other, _ = rule.test(address, Names((name,)))
        assert other is not rule.test(address, NO_NAMES)[0]


@pytest.mark.parametrize(
    ("entry", "client", "held"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("::ffff:192.0.2.0/120", "192.0.2.7", True),
        ("0.0.0.0/0", "203.0.113.5", True),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("::/0", "2001:db8::1", True),
        ("::/0", "192.0.2.7", False),
        ("198.51.100.0/255.255.255.0", "198.51.100.255", True),
        ("198.51.100.0/24", "198.51.101.0", False),
        ("2001:db8::/32", "2001:db8:ffff::1", True),
    ],
)
def test_addresses(entry: str, client: str, held: bool) -> None:
    assert (HostMatcher(hosts(entry)).match(ip_address(client), denying=False) == 0) is held


@pytest.mark.parametrize(
    ("entry", "name", "held"),
    [
        ("host.example", "host.example", True),
        ("host.example", "HOST.example.", True),
        ("host.example", "a.host.example", False),
        ("*.example", "host.example", True),
        ("*.example", "a.host.example", True),
        ("*.example", "example", False),
        ("*.host.example", "badhost.example", False),
        ("bücher.example", "xn--bcher-kva.example", True),
        ("*.bücher.example", "a.xn--bcher-kva.example", True),
    ],
)
def test_names(entry: str, name: str, held: bool) -> None:
    assert (HostMatcher(hosts(entry)).match(CLIENT, Names((name,)), denying=False) == 0) is held


def test_claimed_names_count_in_a_list_that_denies_alone() -> None:
    matcher, told = HostMatcher(hosts("*.example")), Names(claimed=("a.example",))
    assert matcher.match(CLIENT, told, denying=True) == 0
    assert matcher.match(CLIENT, told, denying=False) is None


def test_an_empty_list_holds_nobody_and_needs_no_names() -> None:
    matcher = HostMatcher(())
    assert (matcher.match(CLIENT, denying=True), matcher.has_names) == (None, False)


def test_a_long_list() -> None:
    entries = tuple(host(f"10.{i >> 8 & 255}.{i & 255}.0/24") for i in range(20_000))
    matcher = HostMatcher(entries)
    assert matcher.match(IPv4Address("10.78.31.9"), denying=False) == 78 * 256 + 31
