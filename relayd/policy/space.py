"""Sets of IP addresses, exactly: unions, intersections and differences of CIDR blocks.

Blocks may be as large as ``::/0``, so nothing here counts addresses one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
    summarize_address_range,
)
from typing import Final

from relayd.model import IPAddress

IPNetwork = IPv4Network | IPv6Network
Interval = tuple[int, int]  # first and last address, both included

_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_FIRST_OF_THE_MAPPED: Final = int(_MAPPED.network_address)


def plain_network(network: IPNetwork) -> IPNetwork:
    """*network* as clients are seen: a block of IPv4-mapped addresses (RFC 4291 2.5.5.2) is one of IPv4."""
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) - _FIRST_OF_THE_MAPPED, network.prefixlen - 96))
    return network


def plain_address(address: IPAddress) -> IPAddress:
    """*address* with an IPv4-mapped one taken as IPv4."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _merge(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    merged: list[Interval] = []
    for first, last in sorted(intervals):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _intersect(a: tuple[Interval, ...], b: tuple[Interval, ...]) -> tuple[Interval, ...]:
    out: list[Interval] = []
    i = j = 0
    while i < len(a) and j < len(b):
        first, last = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if first <= last:
            out.append((first, last))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(out)


def _complement(a: tuple[Interval, ...], bits: int) -> tuple[Interval, ...]:
    out: list[Interval] = []
    free = 0
    for first, last in a:
        if free < first:
            out.append((free, first - 1))
        free = last + 1
    if free < 1 << bits:
        out.append((free, (1 << bits) - 1))
    return tuple(out)


def _size(a: tuple[Interval, ...]) -> int:
    return sum(last - first + 1 for first, last in a)


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """A set of addresses: sorted intervals that do not touch, one tuple a family."""

    v4: tuple[Interval, ...] = ()
    v6: tuple[Interval, ...] = ()

    @classmethod
    def of(cls, networks: Iterable[IPNetwork]) -> AddressSpace:
        """All addresses of *networks*, which may overlap."""
        families: dict[int, list[Interval]] = {4: [], 6: []}
        for network in map(plain_network, networks):
            families[network.version].append((int(network.network_address), int(network.broadcast_address)))
        return cls(_merge(families[4]), _merge(families[6]))

    def __or__(self, other: AddressSpace) -> AddressSpace:
        return AddressSpace(_merge(self.v4 + other.v4), _merge(self.v6 + other.v6))

    def __and__(self, other: AddressSpace) -> AddressSpace:
        return AddressSpace(_intersect(self.v4, other.v4), _intersect(self.v6, other.v6))

    def __sub__(self, other: AddressSpace) -> AddressSpace:
        return self & ~other

    def __invert__(self) -> AddressSpace:
        return AddressSpace(_complement(self.v4, 32), _complement(self.v6, 128))

    def __bool__(self) -> bool:
        return bool(self.v4 or self.v6)

    def __contains__(self, address: IPAddress) -> bool:
        address = plain_address(address)
        number = int(address)
        return any(first <= number <= last for first, last in (self.v4 if address.version == 4 else self.v6))

    @property
    def size4(self) -> int:
        """How many IPv4 addresses it holds."""
        return _size(self.v4)

    @property
    def size6(self) -> int:
        """How many IPv6 addresses it holds."""
        return _size(self.v6)

    def networks(self) -> list[IPNetwork]:
        """The fewest CIDR blocks that make it up, IPv4 first."""
        blocks: list[IPNetwork] = []
        for first, last in self.v4:
            blocks += summarize_address_range(IPv4Address(first), IPv4Address(last))
        for first, last in self.v6:
            blocks += summarize_address_range(IPv6Address(first), IPv6Address(last))
        return blocks


NOWHERE: Final = AddressSpace()
EVERYWHERE: Final = ~NOWHERE

# The blocks that IANA's special-purpose address registries (RFC 6890) call not globally reachable. Written out, since
# ipaddress.is_global differs between the releases of Python 3.11 to 3.13 in 2002::/16, 3fff::/20 and 5f00::/16; 6to4
# (2002::/16) counts as public here: the whole of IPv4 is behind it.
NOT_PUBLIC: Final = AddressSpace.of(
    ip_network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "240.0.0.0/4",
        "::/128",
        "::1/128",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
    )
) | AddressSpace(v6=((_FIRST_OF_THE_MAPPED, int(_MAPPED.broadcast_address)),))
PUBLIC: Final = ~NOT_PUBLIC
