"""Where the controllers are: as they are listed, or by DNS."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.defer import TimeoutError as DeferredTimeout

from relayd import settings
from relayd.directory.connection import Controller
from relayd.directory.controllers import Controllers, Known, located, parse_server
from relayd.directory.faults import ControllerFault, Unavailable
from relayd.model import Fault, IPAddress, Reply

__all__ = ["Dns", "Location"]

T = TypeVar("T")

_NO_DNS: Final = Reply.of(451, "4.4.3", "DNS timed out")

#: Addresses of one controller that are tried at most.
ADDRESSES: Final = 4


class Dns(Protocol):
    """Who looks up controllers. ``relayd.resolver.Resolver`` is one."""

    async def addresses(self, host: str) -> tuple[IPAddress, ...]: ...

    async def srv(self, name: str) -> tuple[tuple[int, int, str, int], ...]: ...


class Location:
    """Finds the controllers of one directory.

    :raises ValueError: a server is no LDAP URL.
    """

    def __init__(self, settings: settings.Directory, dns: Dns, reactor: Any, controllers: Controllers) -> None:
        self._domain = settings.domain
        self._listed = [parse_server(text) for text in settings.servers]
        self._dns = dns
        self._reactor = reactor
        self._controllers = controllers
        self._addresses: dict[str, tuple[IPAddress, ...]] = {}
        self._located: tuple[tuple[int, int, str, int], ...] = ()
        self._order: list[Controller] = []

    async def hosts(self, until: float) -> tuple[tuple[str, tuple[IPAddress, ...]], ...]:
        """The controllers' names with their addresses, in the order to try them, whatever they are asked for. One that
        rests comes last, one without an address not at all.

        :raises Unavailable: none can be found.
        """
        known = sorted(await self.candidates(until), key=self._controllers.rests)
        controllers = {each.controller.host: each.controller for each in reversed(known)}
        order = dict.fromkeys(each.controller.host for each in known)
        found = await gatherResults(
            [Deferred.fromCoroutine(self._reachable(controllers[host], until)) for host in order]
        )
        if not any(addresses for addresses, _ in found):
            raise Unavailable("; ".join(why for _, why in found))
        return tuple((host, addresses) for host, (addresses, _) in zip(order, found, strict=True) if addresses)

    async def candidates(self, until: float) -> list[Known]:
        if self._listed:
            return self._controllers.known(self._listed)
        # MS-ADTS 6.3.2.3: the controllers of a domain.
        name = f"_ldap._tcp.dc._msdcs.{self._domain}"
        try:
            records = tuple(sorted(await self._within(until, self._dns.srv(name))))
        except Fault as error:
            if not self._located:
                raise Unavailable(f"{name}: {error}") from None
            records = self._located  # an old answer is better than none
        if not records:
            raise Unavailable(f"{name}: there is no such SRV record")
        if records != self._located or not self._order:
            self._located = records
            self._order = located(records, self._domain)
        if not self._order:
            raise Unavailable(f"{name}: names no host in {self._domain}; list the controllers in servers")
        return self._controllers.known(self._order)

    async def resolved(self, controller: Controller, until: float) -> tuple[IPAddress, ...]:
        host = controller.host
        try:
            addresses = (await self._within(until, self._dns.addresses(host)))[:ADDRESSES]
        except Fault as error:
            addresses = self._addresses.get(host, ())
            if not addresses:
                raise ControllerFault(f"{controller}: {error}") from None
        if not addresses:
            raise ControllerFault(f"{controller}: has no address")
        self._addresses[host] = addresses
        return addresses

    async def _reachable(self, controller: Controller, until: float) -> tuple[tuple[IPAddress, ...], str]:
        try:
            return await self.resolved(controller, until), ""
        except ControllerFault as fault:
            return (), str(fault)

    async def _within(self, until: float, call: Coroutine[Any, Any, T]) -> T:
        result: Deferred[T] = Deferred.fromCoroutine(call)
        try:
            return await result.addTimeout(max(0.001, until - time.monotonic()), self._reactor)
        except DeferredTimeout:
            raise Fault(_NO_DNS, "DNS timed out") from None
