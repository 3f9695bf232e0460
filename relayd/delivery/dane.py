"""DANE for SMTP (RFC 7672): hosts that publish, under DNSSEC, what certificate they have.

The word of DNS counts where the resolver has validated it (``[dns] trust_ad``). Only a proven absence of TLSA records,
or an insecure zone, lets mail go as under ``may``; what cannot be looked up for now may be an attack, and waits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from twisted.internet.defer import Deferred, gatherResults

from relayd.delivery.mx import Hears, Hop, LeftOut, unheard
from relayd.delivery.route import Route, RouteKind
from relayd.delivery.tlsa import usable
from relayd.model import Fault, Reply, Tlsa
from relayd.settings import OutboundTls


class Secured(Protocol):
    """What is needed of :class:`relayd.resolver.Resolver`."""

    async def secure_mx(self, domain: str) -> bool: ...

    async def secure_names(self, host: str) -> tuple[str, ...]: ...

    async def tlsa(self, host: str, port: int) -> tuple[Tlsa, ...]: ...


class Dane:
    """Holds next hops to what they publish."""

    def __init__(self, resolver: Secured) -> None:
        self._resolver = resolver

    async def secured(self, route: Route, hops: tuple[Hop, ...], left_out: Hears = unheard) -> tuple[Hop, ...]:
        """*hops* with the level that each must have; those of which nobody can tell are left out.

        :param left_out: is told of these.
        :raises Fault: temporary: none is left.
        """
        by_mx = route.kind is RouteKind.MX
        # RFC 7672 2.2.1: names that anybody may have put there prove nothing.
        if by_mx and not await self._resolver.secure_mx(route.domain):
            why = f"DANE: the MX records of {route.domain} are not secure"
            return tuple(replace(hop, tls=OutboundTls.MAY, why=why) for hop in hops)
        places = list(dict.fromkeys((hop.host, hop.port) for hop in hops))
        asked = [Deferred.fromCoroutine(self._asked(host, port)) for host, port in places]
        found = dict(zip(places, await gatherResults(asked), strict=True))
        known: list[Hop] = []
        faults: list[Fault] = []
        for hop in hops:
            published = found[hop.host, hop.port]
            if isinstance(published, Fault):
                faults.append(published)
                why = f"what certificate it must have cannot be looked up: {published.detail or published.reply}"
                left_out(LeftOut(hop.host, why, hop.address, hop.port, hop.preference))
            else:
                known.append(_held(hop, *published, also=route.domain if by_mx else ""))
        if not known:
            text = f"What certificate {hops[0].host} must have cannot be looked up for now"
            raise Fault(Reply.of(451, "4.7.5", text), faults[0].detail or str(faults[0].reply))
        return tuple(known)

    async def _asked(self, host: str, port: int) -> tuple[str, tuple[Tlsa, ...], str] | Fault:
        """The name that the records of a host stand under, the records, and why there are none; or why nobody can
        tell."""
        try:
            names = await self._resolver.secure_names(host)
            for name in names:
                if records := await self._resolver.tlsa(name, port):
                    return name, records, ""
        except Fault as fault:
            return fault
        return host, (), "no TLSA records" if names else "the address records are not secure"


def _held(hop: Hop, name: str, records: tuple[Tlsa, ...], why: str, *, also: str) -> Hop:
    if not records:
        return replace(hop, tls=OutboundTls.MAY, why=f"DANE: {why}")
    good = usable(records)
    if not good:  # RFC 7672 2.2: it has TLS, and nobody can say with what certificate
        return replace(hop, tls=OutboundTls.REQUIRE, why="DANE: no TLSA record is usable")
    why = f"DANE: {len(good)} TLSA record{'s' if len(good) > 1 else ''}"
    return replace(hop, tls=OutboundTls.DANE, tlsa=good, name=name, also=also, why=why)
