"""Where the controllers are, for commands that ask them without a :class:`relayd.directory.Directory`."""

from __future__ import annotations

from relayd import settings
from relayd.directory.connection import Connection, Controller
from relayd.directory.controllers import located, parse_server
from relayd.directory.directory import Dns
from relayd.directory.entries import Entry
from relayd.directory.faults import ControllerFault, Unavailable
from relayd.directory.names import Domain
from relayd.model import Fault, IPAddress

__all__ = ["locate", "told_domain"]


async def locate(directory: settings.Directory, dns: Dns) -> tuple[tuple[Controller, tuple[IPAddress, ...]], ...]:
    """The controllers in the order to try them, each with its addresses; those without one are left out.

    :raises Unavailable: there is none.
    """
    if directory.servers:
        controllers = [parse_server(text) for text in directory.servers]
    else:
        name = f"_ldap._tcp.dc._msdcs.{directory.domain}"  # MS-ADTS 6.3.2.3
        try:
            controllers = located(await dns.srv(name), directory.domain)
        except Fault as fault:
            raise Unavailable(f"{name}: {fault}") from None
        if not controllers:
            raise Unavailable(f"{name}: names no controller in {directory.domain}")
    found, reasons = [], []
    for controller in controllers:
        try:
            addresses = await dns.addresses(controller.host)
        except Fault as fault:
            reasons.append(f"{controller}: {fault}")
            continue
        if addresses:
            found.append((controller, addresses))
        else:
            reasons.append(f"{controller}: has no address")
    if not found:
        raise Unavailable("; ".join(reasons))
    return tuple(found)


def told_domain(dns: str, connection: Connection) -> Domain:
    """The controller's domain, as it tells everybody: what its partitions are called is for those who signed in.

    :param dns: as an administrator wrote it; empty: what the controller says.
    :raises ControllerFault: it tells nothing.
    """
    found = connection.search("", "(objectClass=*)", ("defaultNamingContext",), scope="BASE")
    root = (found[0] if found else Entry("", {})).text("defaultNamingContext")
    if not root:
        raise ControllerFault(f"{connection.controller}: has no defaultNamingContext, so it is no domain controller")
    parts = [part.strip() for part in root.split(",")]
    return Domain(root, root, dns or ".".join(part[3:] for part in parts if part[:3].lower() == "dc="))
