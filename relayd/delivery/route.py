"""Where mail for a recipient goes: the drop folder, a mail store, next hops that are written, or the domain's MX.

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
from relayd.settings import Credential, Domain, DomainKind, NextHop, OutboundTls, Rate, Settings

#: Files written to the drop folder at once: they share a directory fsync.
DROPS = 64
_MASQUERADE = "delivery.masquerade_domain"
#: Recipients' domains whose routes are remembered.
REMEMBERED = 10_000


class RouteKind(enum.Enum):
    DROP = "drop"  # a local domain: a file in the drop folder
    LMTP = "lmtp"  # a local domain: a mail store that speaks LMTP
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
    :ivar reason: the configuration key that chose this route; empty for MX by default. *tls_reason*, *auth_reason* and
        *connections_reason*: those of its level, credential and number of connections.
    :ivar rewrite: the envelope sender: ``relay@corp.example``, or ``*@corp.example`` for its domain alone; or empty.
        *rewrite_reason*: the key of it.
    :ivar rate: how many messages, at most; *paced_by*: all routes of that name keep it together.
    :ivar fallback: the way for mail whose hosts cannot be found or reached.
    """

    kind: RouteKind
    key: str
    domain: str = ""
    hops: tuple[NextHop, ...] = ()
    tls: OutboundTls = OutboundTls.MAY
    credential: Credential | None = None
    connections: int = 20
    reason: str = ""
    tls_reason: str = ""
    auth_reason: str = ""
    connections_reason: str = "delivery.connections_per_hop"
    first: int = 0
    rewrite: str = ""
    rewrite_reason: str = ""
    rate: Rate | None = None
    paced_by: str = ""
    fallback: Route | None = None

    @property
    def local(self) -> bool:
        """Whether mail ends here: it does not leave the site."""
        return self.kind in (RouteKind.DROP, RouteKind.LMTP)


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
        """*sender* as the next hop shall see it: as the route says, else ``masquerade_domain`` for local ones."""
        becomes, key = self.rewriting(route)
        if not becomes or sender.path.null:
            return sender
        if key == _MASQUERADE and sender.path.domain and not self._domains.is_local(sender.path.domain):
            return sender
        local, _, domain = becomes.rpartition("@")
        return replace(sender, path=Path(sender.path.local if local == "*" else local, domain))

    def rewriting(self, route: Route) -> tuple[str, str]:
        """What envelope senders become on *route*, as ``rewrite_sender`` is written, and the key that says so; empty:
        they stay. ``masquerade_domain`` is for senders of local domains alone.
        """
        masquerade = self._settings.delivery.masquerade_domain
        if route.local:
            return "", ""
        if route.rewrite:
            return route.rewrite, route.rewrite_reason
        return (f"*@{masquerade}", _MASQUERADE) if masquerade else ("", "")

    def _choose(self, domain: str) -> Route:
        delivery = self._settings.delivery
        table = self._domains.find(domain)
        if table is not None and table.kind is DomainKind.LOCAL:
            return self._local(table)
        if table is not None and table.route:
            route = Route(
                RouteKind.HOPS,
                f"route {_texts(table.route)}",
                hops=table.route,
                tls=delivery.tls,
                credential=self._credential(table.auth),
                reason=f"{table.origin}.route",
                tls_reason="delivery.tls",
                auth_reason=f"{table.origin}.auth",
            )
        elif delivery.smart_host and not delivery.direct_first:
            route = self._smart_host()
        else:
            route = self._direct(domain, table)
        return self._as_written(route, table)

    def _local(self, table: Domain) -> Route:
        server = table.deliver
        if server is None:
            return _drop(table.name, table.origin)
        # Its certificate is nobody's to check: the server is this site's own, and has no credential of ours.
        tls = OutboundTls.NONE if server.socket else OutboundTls.MAY
        connections = self._settings.delivery.connections_per_hop
        route = Route(RouteKind.LMTP, server.text, hops=(server,), tls=tls, connections=connections)
        return replace(route, reason=f"{table.origin}.deliver")

    def _smart_host(self) -> Route:
        delivery = self._settings.delivery
        own = delivery.smart_host_tls
        return Route(
            RouteKind.HOPS,
            f"smart host {_texts(delivery.smart_host)}",
            hops=delivery.smart_host,
            tls=own or delivery.tls,
            credential=self._credential(delivery.smart_host_auth),
            reason="delivery.smart_host",
            tls_reason="delivery.smart_host_tls" if own else "delivery.tls",
            auth_reason="delivery.smart_host_auth",
        )

    def _direct(self, domain: str, table: Domain | None) -> Route:
        delivery = self._settings.delivery
        name = fold(domain)
        reason = table.origin if table is not None else ""
        credential = self._credential(table.auth if table is not None else "")
        literal = _literal(name)
        if literal is not None:
            route = Route(RouteKind.HOPS, f"address {literal.text}", hops=(literal,), tls=delivery.tls, reason=reason)
        else:
            route = Route(RouteKind.MX, f"mx {name}", name, tls=delivery.tls, reason=reason)
        route = replace(route, credential=credential, tls_reason="delivery.tls", auth_reason=f"{reason}.auth")
        if not delivery.smart_host:
            return route
        # The level and the credential of a domain are for its own hosts.
        other = self._smart_host()
        other = replace(other, key=_key(other))
        return replace(
            route, key=f"{route.key}, then {other.key}", fallback=other, reason=reason or "delivery.direct_first"
        )

    def _as_written(self, route: Route, table: Domain | None) -> Route:
        """*route* with what its ``[[domain]]`` says of any route, and the key that all of it makes."""
        route = replace(route, connections=self._settings.delivery.connections_per_hop)
        if table is None:
            return replace(route, key=_key(route))
        origin = table.origin
        if table.connections:
            route = replace(route, connections=table.connections, connections_reason=f"{origin}.connections")
        if table.tls is not None:
            route = replace(route, tls=table.tls, tls_reason=f"{origin}.tls")
        if table.rate is not None:
            route = replace(route, rate=table.rate, paced_by=origin)
        route = replace(route, rewrite=table.rewrite_sender, rewrite_reason=f"{origin}.rewrite_sender")
        return replace(route, key=_key(route))

    def _credential(self, name: str) -> Credential | None:
        return self._credentials[name] if name else None


def _drop(domain: str, reason: str) -> Route:
    return Route(RouteKind.DROP, f"drop {domain}", domain, connections=DROPS, first=DROPS, reason=reason)


def _key(route: Route) -> str:
    """Routes that differ in how they speak to the same hops, or in the sender there, must not share a transaction."""
    parts = [
        f"tls {route.tls.value}" + (f" as {route.credential.name}" if route.credential is not None else ""),
        *([f"from {route.rewrite}"] if route.rewrite else []),
        *([f"{route.paced_by}.rate"] if route.rate is not None else []),
        str(route.connections),
    ]
    return f"{route.key} ({', '.join(parts)})"


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
