"""What blocks, for threads: connections are opened, signed in, used and tried out."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path as File
from typing import TypeVar

from relayd import settings
from relayd.directory import lookups
from relayd.directory.connection import Connection, Controller
from relayd.directory.controllers import Purpose
from relayd.directory.faults import ControllerFault, SearcherFault, Unavailable
from relayd.directory.kerberos import KeytabAccount
from relayd.directory.operations import Tally
from relayd.directory.searcher import PasswordAccount, Searcher
from relayd.model import IPAddress

__all__ = ["Connector", "Probe", "searcher_of", "verifying"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Probe:
    """How one controller did: seconds for connection and TLS, for the searcher's bind, and for a search; or *fault*.

    :ivar address: the one that answered.
    :ivar expires: when its certificate does, seconds since the epoch; 0: it was not seen, or does not hold.
    """

    controller: str
    address: str = ""
    expires: float = 0.0
    connect: float = 0.0
    bind: float = 0.0
    search: float = 0.0
    fault: str = ""


class Connector:
    """Connections to the controllers of one directory.

    :ivar tally: counts what they ask.
    :raises ValueError: the CA file is none.
    """

    def __init__(self, settings: settings.Directory, searcher: Searcher) -> None:
        self._settings = settings
        self._searcher = searcher
        self._context = verifying(settings)
        self.tally = Tally()

    @property
    def searcher(self) -> str:
        """Who searches, as far as that is known yet."""
        return self._searcher.name

    def use(
        self,
        idle: Connection | None,
        controller: Controller,
        addresses: tuple[IPAddress, ...],
        purpose: Purpose,
        work: Callable[[Connection], T],
        until: float,
    ) -> tuple[Connection, T]:
        """Does *work* on an idle connection or a new one. Whatever fails is closed.

        :raises ControllerFault: the controller cannot be asked.
        :raises SearcherFault: nobody may search.
        :raises Unavailable: it is too late.
        """
        if time.monotonic() >= until:  # no controller is to blame
            if idle is not None:
                idle.close()
            raise Unavailable("no thread was free in time")
        asked = 0
        if idle is not None:
            try:
                idle.limit(until)
                return idle, _worked(idle, work)
            except ControllerFault as fault:
                if not fault.lost:
                    raise
                asked = fault.asked  # it ended just now; a new one may do
        try:
            connection = self.open(controller, addresses, until)
            if purpose is not Purpose.CHECK:
                _worked(connection, lambda opened: self._searcher.sign_in(opened, until))
            return connection, _worked(connection, work)
        except ControllerFault as fault:
            fault.asked += asked
            raise

    def open(self, controller: Controller, addresses: tuple[IPAddress, ...], until: float) -> Connection:
        """A connection to *controller*, at the first address that lets one.

        :raises ControllerFault: there is none.
        """
        reasons = []
        for index, address in enumerate(addresses):
            now = time.monotonic()
            try:
                share = now + (until - now) / (len(addresses) - index)
                connection = Connection(controller, address, self._context, share, self.tally)
            except ControllerFault as fault:
                reasons.append(str(fault))
                continue
            connection.limit(until)
            return connection
        raise ControllerFault("; ".join(reasons) or f"{controller}: no address")

    def probe(self, controller: Controller, addresses: tuple[IPAddress, ...], until: float) -> Probe:
        """Tries *controller*, with a connection of its own.

        :raises ControllerFault: there is no connection.
        """
        start = time.monotonic()
        connection = self.open(controller, addresses, until)
        connected = bound = time.monotonic()
        done = Probe(str(controller), str(connection.address), connection.expires, connected - start)
        try:
            self._searcher.sign_in(connection, until)
            bound = time.monotonic()
            done = replace(done, bind=bound - connected)
            lookups.own_domain(self._settings.base, self._settings.domain, self._settings.netbios, connection)
            return replace(done, search=time.monotonic() - bound)
        except (SearcherFault, ControllerFault) as fault:
            return replace(done, fault=str(fault))
        finally:
            connection.close()

    def close(self) -> None:
        """Drops what the searcher keeps, when no thread uses it any more."""
        self._searcher.close()


def searcher_of(directory: settings.Directory, keytab: File | None, clock: Callable[[], float]) -> Searcher:
    """The account that searches: ``bind_user``, or else the keytab's own.

    :param clock: seconds, monotonic.
    """
    if directory.bind_user:
        return Searcher(PasswordAccount(directory.bind_user, directory.bind_password_file), clock)
    return Searcher(KeytabAccount(keytab), clock)


def _worked(connection: Connection, work: Callable[[Connection], T]) -> T:
    """What *work* brings; when it fails, the connection is closed."""
    try:
        return work(connection)
    except BaseException:
        connection.close()
        raise


def verifying(directory: settings.Directory) -> ssl.SSLContext:
    """TLS that verifies certificate and name, always.

    :raises ValueError: the CA file is none.
    """
    try:
        return ssl.create_default_context(cafile=str(directory.ca) if directory.ca else None)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"directory.ca: {directory.ca}: {error}") from None
