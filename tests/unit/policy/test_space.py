"""Sets of addresses: exact, whatever their size."""

from __future__ import annotations

import sys
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relayd.model import IPAddress
from relayd.policy.space import EVERYWHERE, NOT_PUBLIC, NOWHERE, PUBLIC, AddressSpace, IPNetwork
from relayd.settings import HostEntry

from .strategies import addresses, networks
from .test_hosts import naive_holds

spaces = st.lists(networks, max_size=6).map(AddressSpace.of)


@given(spaces, spaces, addresses)
def test_set_operations_are_those_of_membership(a: AddressSpace, b: AddressSpace, address: IPAddress) -> None:
    assert (address in (a | b)) == (address in a or address in b)
    assert (address in (a & b)) == (address in a and address in b)
    assert (address in (a - b)) == (address in a and address not in b)
    assert (address in ~a) == (address not in a)


@given(spaces, spaces)
def test_sizes_add_up(a: AddressSpace, b: AddressSpace) -> None:
    assert (a | b).size4 == a.size4 + b.size4 - (a & b).size4
    assert (a | b).size6 == a.size6 + b.size6 - (a & b).size6
    assert (a.size4 + (~a).size4, a.size6 + (~a).size6) == (2**32, 2**128)


@given(spaces)
def test_equal_sets_are_equal_values(a: AddressSpace) -> None:
    assert ~~a == a
    assert AddressSpace.of(a.networks()) | a == a
    assert (a | ~a, a & ~a) == (EVERYWHERE, NOWHERE)
    assert bool(a) == (a != NOWHERE)


@given(st.lists(networks, max_size=6), addresses)
def test_a_space_holds_what_its_networks_hold(blocks: list[IPNetwork], address: IPAddress) -> None:
    naive = any(naive_holds(HostEntry(str(block), block), address, ()) for block in blocks)
    assert (address in AddressSpace.of(blocks)) == naive


def test_networks_are_the_fewest_blocks() -> None:
    halves = [ip_network("10.0.0.0/9"), ip_network("10.128.0.0/9"), ip_network("2001:db8::/33")]
    assert AddressSpace.of(halves).networks() == [ip_network("10.0.0.0/8"), ip_network("2001:db8::/33")]


def test_blocks_of_mapped_addresses_are_ipv4() -> None:
    space = AddressSpace.of([ip_network("::ffff:192.0.2.0/120")])
    assert space.networks() == [ip_network("192.0.2.0/24")]
    assert ip_address("::ffff:192.0.2.9") in space


@pytest.mark.parametrize(
    "block",
    ["10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "192.168.0.0/16", "fc00::/7", "::1/128", "::ffff:10.0.0.0/104"],
)
def test_private_space_is_not_public(block: str) -> None:
    assert not AddressSpace.of([ip_network(block)]) & PUBLIC


@pytest.mark.parametrize("block", ["8.8.8.0/24", "1.0.0.0/8", "2600::/12", "2a00::/12", "2002::/16"])
def test_what_is_routed_is_public(block: str) -> None:
    space = AddressSpace.of([ip_network(block)])
    assert space & PUBLIC == space


# Where releases of Python differ from one another, or from the registries' finer print.
DISPUTED = AddressSpace.of(
    map(ip_network, ("192.0.0.0/24", "2001::/23", "2002::/16", "3fff::/20", "5f00::/16", "64:ff9b:1::/48"))
)
EDGES = [edge for block in NOT_PUBLIC.networks() for edge in (block[0], block[-1])]


@given(addresses | st.sampled_from(EDGES))
@example(ip_address("223.255.255.255"))
def test_public_is_what_python_calls_global(address: IPAddress) -> None:
    if address not in DISPUTED:
        assert (address in PUBLIC) == (getattr(address, "ipv4_mapped", None) or address).is_global, sys.version
