"""The way that mail for one recipient would take, and the reason for each step: for whoever asks, and sends nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from relayd.delivery.dane import Dane
from relayd.delivery.https import Https
from relayd.delivery.mx import Hop, LeftOut
from relayd.delivery.next_hops import NextHops
from relayd.delivery.route import Route, Router
from relayd.delivery.sending import targets_of
from relayd.delivery.sts import Sts
from relayd.delivery.sts_folder import PolicyFolder
from relayd.delivery.target import Target
from relayd.delivery.tls import Roots
from relayd.delivery.tls_policy import TlsPolicy
from relayd.events import Event, Events, InternalFault, PolicyUnfetched
from relayd.model import Fault, Path
from relayd.policy import Policy
from relayd.resolver import Resolver
from relayd.settings import OutboundTls, Settings


@dataclass(frozen=True, slots=True)
class Way:
    """What was found.

    :ivar given: the address that was asked about; *path*: what delivery makes of it.
    :ivar route: None: such a recipient is refused.
    :ivar hops: what is tried, in order; *left_out*: what is not.
    :ivar fault: why there is no way; temporary: for now.
    :ivar notes: what else an administrator should know.
    """

    given: Path
    path: Path
    route: Route | None = None
    hops: tuple[tuple[Hop, Target], ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    fault: Fault | None = None
    notes: tuple[str, ...] = ()


def chosen(policy: Policy, router: Router, address: Path) -> Way:
    """What the configuration alone says of mail for *address*."""
    try:
        path = policy.complete(address)
    except Fault as fault:
        return Way(address, address, fault=fault)
    route, path = router.route(path)
    return Way(address, path, route)


async def found(settings: Settings, way: Way, resolver: Resolver, reactor: Any) -> Way:
    """*way* with its hops, as DNS has them now."""
    route, delivery = way.route, settings.delivery
    if route is None:
        return way
    notes: list[str] = []
    left_out: list[LeftOut] = []
    policies = _policies(settings, route, resolver, reactor, notes)
    tls_policy = TlsPolicy(policies, Dane(resolver))
    next_hops = NextHops(resolver, tls_policy, settings.server.hostname, settings.listeners, delivery.port)
    try:
        if policies is not None:
            await policies.open()
        hops = await next_hops.of(route, left_out.append)
        way = replace(way, hops=targets_of(route, hops, delivery.source_address))
    except Fault as fault:
        way = replace(way, fault=fault)
    finally:
        if policies is not None:
            await policies.close()
    return replace(way, left_out=tuple(left_out), notes=tuple(notes))


def _policies(settings: Settings, route: Route, resolver: Resolver, reactor: Any, notes: list[str]) -> Sts | None:
    """What MTA-STS says, with the policies that relayd keeps."""
    if OutboundTls.STS not in (route.tls, route.fallback and route.fallback.tls):
        return None

    def told(_: float, event: Event) -> None:
        if isinstance(event, PolicyUnfetched):
            kept = "" if event.kept_until is None else "; the one that is kept holds"
            notes.append(f"the MTA-STS policy of {event.domain} cannot be fetched: {event.reason}{kept}")
        elif isinstance(event, InternalFault):
            notes.append(event.detail)

    events = Events()
    events.subscribe(told)
    folder = PolicyFolder(settings.server.state / "sts", read_only=True)  # relayd may run, as another user
    return Sts(resolver, Https(reactor, resolver, Roots(settings.delivery.ca)), folder, events, reactor)
