"""The next hops of a route: where they are, what TLS each must have, and what comes after them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from relayd.delivery.mx import HOPS, Hears, Hop, LeftOut, Lookups, Ourselves, hops, unheard
from relayd.delivery.route import Route
from relayd.delivery.tls_policy import TlsPolicy
from relayd.model import Fault
from relayd.resolver import NullMx
from relayd.settings import Listener


class NextHops:
    """Finds them.

    :param hostname: this relay's own; with *listeners*, how a loop to ourselves is known.
    :param port: where a route names none.
    """

    def __init__(
        self, resolver: Lookups, tls_policy: TlsPolicy, hostname: str, listeners: Iterable[Listener], port: int
    ) -> None:
        self._resolver = resolver
        self._tls_policy = tls_policy
        self._ourselves = Ourselves(hostname, listeners)
        self._port = port

    async def of(self, route: Route, left_out: Hears = unheard) -> tuple[Hop, ...]:
        """What to try for *route*, in order; the hops of its fallback come last.

        :param left_out: is told of hosts and addresses that are not tried.
        :raises Fault: as :func:`relayd.delivery.mx.hops`.
        """
        if route.fallback is None:
            return await self._found(route, left_out)
        direct: tuple[Hop, ...] = ()
        unfound: Fault | None = None
        try:
            direct = await self._found(route, left_out)
        except NullMx:  # RFC 7505 4.1: nobody else delivers there either
            raise
        except Fault as fault:
            unfound = fault
            left_out(LeftOut(route.domain or route.hops[0].host, fault.reply.text))
        fallback = route.fallback
        try:
            others = await self._found(fallback, lambda one: left_out(replace(one, via=fallback)))
        except Fault:
            if unfound is not None:
                raise
            return direct
        for hop in direct[HOPS - 1 :]:
            why = "one place is for the other way"
            left_out(LeftOut(hop.host, why, hop.address, hop.port, hop.preference))
        return direct[: HOPS - 1] + tuple(replace(hop, via=fallback) for hop in others)

    async def _found(self, route: Route, left_out: Hears) -> tuple[Hop, ...]:
        found = await hops(route, self._resolver, self._ourselves, self._port, left_out=left_out)
        return await self._tls_policy.secured(route, found, left_out)
