"""Controllers for commands, which ask them by themselves: without a reactor, and one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path as File
from typing import Any, Final

from relayd import settings
from relayd.directory.connecting import searcher_of, verifying
from relayd.directory.connection import Connection, Controller
from relayd.directory.controllers import Controllers
from relayd.directory.entries import Entry
from relayd.directory.faults import ControllerFault, SearcherFault, Unavailable
from relayd.directory.location import Dns, Location
from relayd.directory.names import Domain, dns_name
from relayd.model import IPAddress

__all__ = ["Located", "locate", "searching", "told_domain"]

#: Ports of global catalogs, and what the same controllers answer for their own domain at.
_OF_CATALOGS: Final = {3268: 389, 3269: 636}

#: A controller and its addresses.
Located = tuple[Controller, tuple[IPAddress, ...]]


async def locate(directory: settings.Directory, dns: Dns, reactor: Any) -> tuple[Located, ...]:
    """The controllers in the order to try them, each with its addresses; those without one are left out.

    :raises Unavailable: there is none.
    """
    location = Location(directory, dns, reactor, Controllers(time.monotonic))
    until = time.monotonic() + directory.timeout
    found, reasons = [], []
    for known in await location.candidates(until):
        try:
            found.append((_own(known.controller), await location.resolved(known.controller, until)))
        except ControllerFault as fault:
            reasons.append(str(fault))
    if not found:
        raise Unavailable("; ".join(reasons))
    return tuple(found)


def _own(controller: Controller) -> Controller:
    """The domain's own port: a global catalog takes no changes, and knows no versions of keys (MS-ADTS 3.1.1.1.11)."""
    return replace(controller, port=_OF_CATALOGS.get(controller.port, controller.port))


def told_domain(connection: Connection) -> Domain:
    """The controller's domain, as it tells everybody: what its partitions are called is for those who signed in.

    :raises ControllerFault: it tells nothing.
    """
    found = connection.search("", "(objectClass=*)", ("defaultNamingContext",), scope="BASE")
    root = (found[0] if found else Entry("", {})).text("defaultNamingContext")
    dns = dns_name(root)
    if not dns:
        raise ControllerFault(f"{connection.controller}: has no defaultNamingContext, so it is no domain controller")
    return Domain(root, root, dns.lower())


def searching(directory: settings.Directory, keytab: File | None, controllers: Iterable[Located]) -> Connection:
    """A connection to the first controller that can be asked, with the account that searches signed in. It blocks.

    :raises Unavailable: there is none, or the account is refused.
    """
    context, searcher = verifying(directory), searcher_of(directory, keytab, time.monotonic)
    reasons = []
    for controller, addresses in controllers:
        for address in addresses:
            until = time.monotonic() + directory.timeout
            try:
                connection = Connection(controller, address, context, until)
                try:
                    connection.limit(until)
                    searcher.sign_in(connection, until)
                    connection.limit(until)
                except BaseException:
                    connection.close()
                    raise
                return connection
            except ControllerFault as fault:
                reasons.append(str(fault))
            except SearcherFault as fault:
                raise Unavailable(str(fault)) from None
    raise Unavailable("; ".join(reasons) or "there is no controller")
