"""Where mail for a recipient goes: the drop folder, hops that the administrator wrote, or the domain's MX.

Pure: the domain tables and ``[delivery]`` decide, without a look at the network.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from types import MappingProxyType

from relayd.model import Path, Sender
from relayd.policy import DomainTable
from relayd.policy.domains import fold
from relayd.settings import Credential, Domain, DomainKind, NextHop, OutboundTls, Settings

#: Files written to the drop folder at once: they share a directory fsync.
DROPS = 64
#: Recipients' domains whose routes are remembered.
REMEMBERED = 10_000


class RouteKind(enum.Enum):
    DROP = "drop"  # a local domain: a file in the drop folder
    HOPS = "hops"  # next hops that are written in the configuration
    MX = "mx"  # whatever DNS says of the domain


@dataclass(frozen=True, slots=True)
class Route:
    """A way out. Recipients with equal *key* may share one transaction and one set of connections.

    :ivar key: what an administrator sees as the destination: ``drop corp.example``, ``mx example.org``,
        ``smart host relay.example:587``.
    :ivar domain: for MX the domain to look up, for DROP the name of the local domain.
    :ivar tls: the least TLS that mail on this route must have.
    :ivar connections: how many at once, at most; *first*: before anything succeeded (0 = the scheduler knows best).
    :ivar reason: the configuration key that chose this route; empty for MX by default.
    """

    kind: RouteKind
    key: str
    domain: str = ""
    hops: tuple[NextHop, ...] = ()
    tls: OutboundTls = OutboundTls.MAY
    credential: Credential | None = None
    connections: int = 20
    reason: str = ""
    first: int = 0


class Router:
    """Chooses the route of each recipient: route of its ``[[domain]]`` > smart host > MX.

    :param domains: the tables that find a recipient's domain.
    """

    def __init__(self, domains: DomainTable, settings: Settings) -> None:
        self._domains = domains
        self._settings = settings
        self._credentials: Mapping[str, Credential] = MappingProxyType({c.name: c for c in settings.credentials})
        self._known: dict[str, Route] = {}

    def route(self, path: Path) -> tuple[Route, Path]:
        """The route for a recipient, and the address to use there: a bare postmaster gets a real one."""
        if not path.domain:
            server, first = self._settings.server, self._settings.first_local
            if server.postmaster is not None and server.postmaster.domain and path.local.lower() == "postmaster":
                path = server.postmaster
            elif first is not None:
                path = Path(path.local, first.name)
            else:
                # Only postmaster is accepted like this (RFC 5321 4.5.1): kept, since there is nowhere to send it.
                here = server.hostname.lower()
                return _drop(here, "server.postmaster"), Path(path.local, here)
        route = self._known.get(path.domain)
        if route is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            route = self._known[path.domain] = self._choose(path.domain)
        return route, path

    def outbound(self, sender: Sender, route: Route) -> Sender:
        """*sender* as the next hop shall see it: ``masquerade_domain`` stands in for local domains."""
        masquerade = self._settings.delivery.masquerade_domain
        if not masquerade or route.kind is RouteKind.DROP or sender.path.null:
            return sender
        if not sender.path.domain or self._domains.is_local(sender.path.domain):
            return replace(sender, path=Path(sender.path.local, masquerade))
        return sender

    def _choose(self, domain: str) -> Route:
        delivery = self._settings.delivery
        table = self._domains.find(domain)
        if table is not None and table.kind is DomainKind.LOCAL:
            return _drop(table.name, table.origin)
        connections = (table.connections if table is not None else 0) or delivery.connections_per_hop
        tls = table.tls if table is not None else None
        if table is not None and table.route:
            return _hops(
                f"route {_texts(table.route)}",
                table.route,
                tls or delivery.tls,
                self._credential(table.auth),
                connections,
                f"{table.origin}.route",
            )
        if delivery.smart_host:
            return _hops(
                f"smart host {_texts(delivery.smart_host)}",
                delivery.smart_host,
                tls or delivery.smart_host_tls or delivery.tls,
                self._credential(delivery.smart_host_auth),
                connections,
                "delivery.smart_host",
            )
        return self._direct(domain, table, tls or delivery.tls, connections)

    def _direct(self, domain: str, table: Domain | None, tls: OutboundTls, connections: int) -> Route:
        name = fold(domain)
        origin = table.origin if table is not None else ""
        credential = self._credential(table.auth if table is not None else "")
        literal = _literal(name)
        if literal is not None:
            return _hops(f"address {literal.text}", (literal,), tls, credential, connections, origin)
        return Route(
            RouteKind.MX,
            _key(f"mx {name}", tls, credential, connections),
            name,
            (),
            tls,
            credential,
            connections,
            origin,
        )

    def _credential(self, name: str) -> Credential | None:
        return self._credentials[name] if name else None


def _drop(domain: str, reason: str) -> Route:
    return Route(RouteKind.DROP, f"drop {domain}", domain, connections=DROPS, first=DROPS, reason=reason)


def _hops(
    label: str,
    hops: tuple[NextHop, ...],
    tls: OutboundTls,
    credential: Credential | None,
    connections: int,
    reason: str,
) -> Route:
    return Route(
        RouteKind.HOPS,
        _key(label, tls, credential, connections),
        "",
        hops,
        tls,
        credential,
        connections,
        reason,
    )


def _key(label: str, tls: OutboundTls, credential: Credential | None, connections: int) -> str:
    """Routes that differ in how they speak to the same hops must not share a transaction."""
    name = f" as {credential.name}" if credential is not None else ""
    return f"{label} (tls {tls.value}{name}, {connections})"


def _texts(hops: Sequence[NextHop]) -> str:
    return ", ".join(hop.text for hop in hops)


def _literal(domain: str) -> NextHop | None:
    """The hop for ``[192.0.2.1]`` and ``[IPv6:2001:db8::1]`` (RFC 5321 4.1.3)."""
    if not domain.startswith("["):
        return None
    try:
        address = ip_address(domain.strip("[]").lower().removeprefix("ipv6:"))
    except ValueError:
        return None
    return NextHop(f"[{address}]", str(address))
