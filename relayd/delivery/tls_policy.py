"""What TLS each next hop of a route must have, where that is not the administrator's word alone: DANE, MTA-STS.

Written levels never weaken here: what cannot be found out defers the mail (RFC 7672 2.1, RFC 8461 5).
"""

from __future__ import annotations

from relayd.delivery.mx import Hop
from relayd.delivery.route import Route


class TlsPolicy:
    """Asks what next hops publish of themselves."""

    async def secured(self, route: Route, hops: tuple[Hop, ...]) -> tuple[Hop, ...]:
        """*hops* with the level that each must have; those that may not be used are left out.

        :raises Fault: temporary: none is left, or nobody can tell for now.
        """
        return hops
