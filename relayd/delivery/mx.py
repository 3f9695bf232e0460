"""From a route to addresses: what to connect to, in which order (RFC 5321 5.1)."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import zip_longest
from typing import Protocol

from twisted.internet.defer import Deferred

from relayd.delivery.fault import softened
from relayd.delivery.route import Route, RouteKind
from relayd.model import Fault, IPAddress, Reply, Tlsa
from relayd.settings import Listener, OutboundTls

#: Mail exchangers looked at, and addresses tried, in one attempt: who owns the zone must not choose how many.
EXCHANGERS, HOPS = 10, 16


@dataclass(frozen=True, slots=True)
class Hop:
    """One address to try. *host* is the name it came from, or its text.

    :ivar socket: the path of a unix socket, in place of address and port.
    :ivar tls: what DNS or a published policy makes of the route's level here; None = that level.
    :ivar tlsa: where *tls* is DANE, what the certificate is held to.
    :ivar name: then, the name that the records stand under; *also*: another that the certificate may carry.
    :ivar preference: of its MX record; None: there is none.
    :ivar why: what made that level, for people.
    :ivar came_to: is told what TLS each message went over (as :attr:`Connection.tls`), where that is to be reported.
    :ivar via: the route it belongs to, where that is the way for mail whose own hosts fail.
    """

    host: str
    address: IPAddress | None
    port: int
    socket: str = field(default="", kw_only=True)
    # Compared: who publishes what a host cannot meet must not stop the mail of others to that host.
    tls: OutboundTls | None = None
    tlsa: tuple[Tlsa, ...] = field(default=(), compare=False)
    name: str = field(default="", compare=False)
    also: str = field(default="", compare=False)
    preference: int | None = field(default=None, compare=False)
    why: str = field(default="", compare=False)
    came_to: Callable[[str], None] | None = field(default=None, compare=False)
    via: Route | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.socket or f"{self.host}[{self.address}]:{self.port}"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A host, or one address of it, that is not tried.

    :ivar address: None: the whole host.
    :ivar why: for people.
    :ivar preference: as in :class:`Hop`, and *via* too.
    """

    host: str
    why: str
    address: IPAddress | None = None
    port: int = 0
    preference: int | None = None
    via: Route | None = None


#: Is told what is not tried: for whoever has to explain a route.
Hears = Callable[[LeftOut], None]


def unheard(left_out: LeftOut) -> None:
    """For whoever has nothing to explain."""


class Lookups(Protocol):
    """What is needed of :class:`relayd.resolver.Resolver`."""

    async def mx(self, domain: str) -> tuple[tuple[int, str], ...]: ...

    async def addresses(self, host: str) -> tuple[IPAddress, ...]: ...


def is_here(address: IPAddress) -> bool:
    """Whether *address* is one of this machine's: a socket can be bound to it."""
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


class Ourselves:
    """How to know that a mail exchanger is this relay: by its name, or by an address and port it listens on."""

    def __init__(
        self, hostname: str, listeners: Iterable[Listener], here: Callable[[IPAddress], bool] = is_here
    ) -> None:
        self._hostname = hostname.lower().rstrip(".")
        self._bound = {(ip_address(listener.address), listener.port) for listener in listeners}
        self._ports = {port for _, port in self._bound}
        self._anywhere = {port for address, port in self._bound if address.is_unspecified}
        self._here = here

    def named(self, host: str) -> bool:
        return host.lower().rstrip(".") == self._hostname

    def listens(self, address: IPAddress, port: int) -> bool:
        if port not in self._ports:
            return False
        return (address, port) in self._bound or (port in self._anywhere and self._here(address))


async def hops(
    route: Route,
    resolver: Lookups,
    ourselves: Ourselves,
    port: int,
    shuffle: Callable[[list[str]], None] = random.shuffle,
    left_out: Hears = unheard,
) -> tuple[Hop, ...]:
    """The addresses to try for *route*, in order.

    :param port: where the route names none.
    :param left_out: is told of those that are not tried.
    :raises Fault: permanent, where DNS or this relay's place in the MX list says so; never for hops that the
        administrator wrote (design, promise 5).
    """
    if route.kind is RouteKind.MX:
        return await _exchangers(route.domain, resolver, ourselves, port, shuffle, left_out)
    if route.hops[0].socket:
        return (Hop(route.hops[0].text, None, 0, socket=route.hops[0].socket),)
    found: list[Hop] = []
    reply = Reply.of(451, "4.4.6", "Mail loops back to this host")
    detail = f"{route.key}: each next hop is this relay itself"
    # All are asked before the first is waited for.
    asked = [(hop, Deferred.fromCoroutine(resolver.addresses(hop.host))) for hop in route.hops]
    for hop, question in asked:
        try:
            addresses = await question
            if not addresses:
                raise Fault(Reply.of(451, "4.4.4", f"{hop.host} has no address"))
        except Fault as fault:
            reply, detail = softened(fault.reply), fault.detail
            left_out(LeftOut(hop.host, fault.reply.text, port=hop.port or port))
            continue
        at = hop.port or port
        for address in interleaved(addresses):
            if ourselves.listens(address, at):
                left_out(LeftOut(hop.host, "it is this relay itself", address, at))
            else:
                found.append(Hop(hop.host, address, at))
    if not found:
        raise Fault(reply, detail)
    return _first(found, left_out)


async def _exchangers(
    domain: str,
    resolver: Lookups,
    ourselves: Ourselves,
    port: int,
    shuffle: Callable[[list[str]], None],
    left_out: Hears,
) -> tuple[Hop, ...]:
    records = await resolver.mx(domain)
    for preference, host in records[EXCHANGERS:]:
        left_out(LeftOut(host, f"only {EXCHANGERS} exchangers are looked at", port=port, preference=preference))
    records = records[:EXCHANGERS]
    asked: list[tuple[int, str, Deferred[tuple[IPAddress, ...]]]] = [
        (preference, host, Deferred.fromCoroutine(resolver.addresses(host)))
        # RFC 5321 5.1: without an MX record the domain itself is the exchanger, of preference 0.
        for preference, host in records or ((0, domain),)
    ]
    by_preference: _ByPreference = {}
    ours: int | None = None
    failed: Fault | None = None
    for preference, host, question in asked:
        try:
            addresses = await question
        except Fault as fault:
            # A temporary failure decides: the exchanger that cannot be looked up may be the one that works.
            if not records or failed is None or fault.temporary:
                failed = fault
            left_out(LeftOut(host, fault.reply.text, port=port, preference=preference if records else None))
            continue
        if ours is None and (ourselves.named(host) or any(ourselves.listens(a, port) for a in addresses)):
            ours = preference
        by_preference.setdefault(preference, {})[host] = addresses
        if not addresses:
            left_out(LeftOut(host, "it has no address", port=port, preference=preference if records else None))
    if ours is not None:
        by_preference = _better(by_preference, ours, port, left_out)
    found: list[Hop] = []
    for preference, hosts in sorted(by_preference.items()):
        order = list(hosts)
        shuffle(order)
        mx = preference if records else None
        found.extend(Hop(h, address, port, preference=mx) for h in order for address in interleaved(hosts[h]))
    if found:
        return _first(found, left_out)
    if failed is not None and (failed.temporary or not records):
        raise failed
    if ours is not None:
        raise Fault(Reply.of(554, "5.4.6", f"Mail for {domain} loops back to this host"))
    raise Fault(
        Reply.of(550, "5.4.4", f"No mail exchanger of {domain} has an address"),
        failed.detail if failed is not None else "",
    )


_ByPreference = dict[int, dict[str, tuple[IPAddress, ...]]]


def _better(exchangers: _ByPreference, ours: int, port: int, left_out: Hears) -> _ByPreference:
    """Those of *exchangers* that are better than *ours*, which is this relay."""
    # RFC 5321 5.1: what is as good as ourselves, or worse, would send it back to us.
    for preference, hosts in exchangers.items():
        for host in [host for host, addresses in hosts.items() if addresses and preference >= ours]:
            why = f"this relay itself is an exchanger, of preference {ours}: mail would loop"
            left_out(LeftOut(host, why, port=port, preference=preference))
    return {p: hosts for p, hosts in exchangers.items() if p < ours}


def _first(found: Sequence[Hop], left_out: Hears) -> tuple[Hop, ...]:
    for hop in found[HOPS:]:
        left_out(LeftOut(hop.host, f"only {HOPS} addresses are tried", hop.address, hop.port, hop.preference))
    return tuple(found[:HOPS])


def interleaved(addresses: Sequence[IPAddress]) -> list[IPAddress]:
    """IPv6 and IPv4 in turn, IPv6 first: where one family is dead, the other is never far (RFC 8305 4)."""
    new = [a for a in addresses if isinstance(a, IPv6Address)]
    old = [a for a in addresses if isinstance(a, IPv4Address)]
    return [a for pair in zip_longest(new, old) for a in pair if a is not None]
