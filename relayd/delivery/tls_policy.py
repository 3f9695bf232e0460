"""What TLS each next hop of a route must have, where that is not the administrator's word alone: DANE, MTA-STS.

Written levels never weaken here: what cannot be found out defers the mail (RFC 7672 2.1, RFC 8461 5).
"""

from __future__ import annotations

from typing import Final

from relayd.delivery.dane import Dane
from relayd.delivery.mx import Hears, Hop, unheard
from relayd.delivery.route import Route
from relayd.delivery.sts import Sts
from relayd.model import Fault, Reply
from relayd.settings import OutboundTls

_NOT_ASKED: Final = Reply.of(451, "4.7.5", "What TLS the next hop must have cannot be found out for now")


class TlsPolicy:
    """Asks what next hops publish of themselves.

    :param sts: knows the policies of MTA-STS; None: a route that is held to them has no hop.
    :param dane: knows what certificates hosts publish; None: as above.
    """

    def __init__(self, sts: Sts | None = None, dane: Dane | None = None) -> None:
        self._sts = sts
        self._dane = dane

    async def secured(self, route: Route, hops: tuple[Hop, ...], left_out: Hears = unheard) -> tuple[Hop, ...]:
        """*hops* with the level that each must have; those that may not be used are left out.

        :param left_out: is told of these.
        :raises Fault: temporary: none is left, or nobody can tell for now.
        """
        if route.tls is OutboundTls.STS:
            if self._sts is None:
                raise Fault(_NOT_ASKED, "MTA-STS is not served here")
            return await self._sts.secured(route, hops, left_out)
        if route.tls is OutboundTls.DANE:
            if self._dane is None:
                raise Fault(_NOT_ASKED, "DANE is not served here")
            return await self._dane.secured(route, hops, left_out)
        return hops
