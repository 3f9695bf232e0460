"""The controllers by name and address, for those who ask them by another protocol than LDAP."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from relayd.directory import Unavailable
from tests.unit.directory.conftest import FakeDns, MakeDirectory
from tests.unit.directory.server import FakeDirectory
from tests.unit.test_resolver import ThreadedClock

ONE, TWO, THREE = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::2"), IPv4Address("192.0.2.3")


def test_the_listed_ones_each_once(clock: ThreadedClock, make: MakeDirectory, dns: FakeDns) -> None:
    dns.known = {"dc1.corp.example": (ONE, THREE), "dc2.corp.example": (TWO,)}
    directory = make("ldaps://dc1.corp.example", "ldap://dc2.corp.example", "ldaps://dc1.corp.example:3269")
    assert clock.result(directory.hosts()) == (("dc1.corp.example", (ONE, THREE)), ("dc2.corp.example", (TWO,)))


def test_by_srv_records(clock: ThreadedClock, make: MakeDirectory, dns: FakeDns) -> None:
    dns.known = {"dc1.corp.example": (ONE,), "dc2.corp.example": (TWO,)}
    dns.records["_ldap._tcp.dc._msdcs.corp.example"] = (
        (20, 0, "dc1.corp.example", 389),
        (10, 0, "dc2.corp.example", 389),
        (0, 0, "dc3.elsewhere.example", 389),
    )
    assert clock.result(make(domain="corp.example").hosts()) == (
        ("dc2.corp.example", (TWO,)),
        ("dc1.corp.example", (ONE,)),
    )


def test_one_without_an_address_is_left_out(clock: ThreadedClock, make: MakeDirectory, dns: FakeDns) -> None:
    dns.known = {"dc1.corp.example": (), "dc2.corp.example": (TWO,)}
    directory = make("ldaps://dc1.corp.example", "ldaps://dc2.corp.example")
    assert clock.result(directory.hosts()) == (("dc2.corp.example", (TWO,)),)
    dns.known["dc2.corp.example"] = ()
    with pytest.raises(Unavailable, match=r"dc1.*has no address.*dc2.*has no address"):
        clock.result(make("ldaps://dc1.corp.example", "ldaps://dc2.corp.example").hosts())


def test_dns_is_sick(clock: ThreadedClock, make: MakeDirectory, dns: FakeDns) -> None:
    dns.known = {"dc1.corp.example": (ONE,)}
    directory = make("ldaps://dc1.corp.example")
    before = clock.result(directory.hosts())
    dns.broken = True
    assert clock.result(directory.hosts()) == before  # an old answer is better than none
    with pytest.raises(Unavailable, match="DNS did not answer"):
        clock.result(make("ldaps://dc2.corp.example").hosts())


def test_one_that_rests_comes_last(
    clock: ThreadedClock, make: MakeDirectory, dns: FakeDns, server: FakeDirectory
) -> None:
    dns.known = {"dead.corp.example": (IPv4Address("127.0.0.1"),)}
    directory = make("ldaps://dead.corp.example:1", server.url)
    assert [host for host, _ in clock.result(directory.hosts())] == ["dead.corp.example", "localhost"]
    clock.result(directory.find("alice"))
    assert [host for host, _ in clock.result(directory.hosts())] == ["localhost", "dead.corp.example"]
