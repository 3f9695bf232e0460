"""Signing in to next hops by Kerberos, with the keytab (``kind = "gssapi"``): the initiator's side of RFC 4752."""

from __future__ import annotations

import threading
import time
from pathlib import Path as File
from typing import Any, Final

from relayd.directory.tickets import KerberosError, NoAnswer, NoKey, Tickets, keytab_name, own_principal
from relayd.model import AUTH_UNAVAILABLE, Fault
from relayd.settings import Credential

#: Seconds that Kerberos may take for a ticket.
PATIENCE: Final = 20.0
_NO_LAYER: Final = 1  # RFC 4752 3.3


class KeytabInitiators:
    """Makes the initiators of all credentials; tickets are kept for each account.

    :param keytab: None: the system's.
    """

    def __init__(self, keytab: File | None) -> None:
        self._keytab = keytab
        self._tickets: dict[str, Tickets] = {}
        self._lock = threading.Lock()

    def __call__(self, credential: Credential, host: str, binding: bytes) -> KeytabInitiator:
        return KeytabInitiator(self, credential.user, host, binding)

    def context(self, user: str, host: str, binding: bytes) -> tuple[Any, bytes]:
        """A security context with ``smtp/`` of *host*, and its first token. Blocks.

        :param user: the principal; empty: the keytab's own.
        :raises Fault: there is none.
        """
        # One at a time: tickets are got by one thread, and those who wait find them in the cache.
        with self._lock:
            try:
                held = self._held(user)
            except NoKey as error:
                raise Fault(AUTH_UNAVAILABLE, str(error)) from None
            try:
                return held.initiate(host, _bindings(binding), time.monotonic() + PATIENCE, "smtp")
            except NoAnswer as error:
                raise Fault(AUTH_UNAVAILABLE, f"{held.principal}: {error}") from None
            except KerberosError as error:
                held.forget()  # of an account or a service that was made again since
                raise Fault(AUTH_UNAVAILABLE, f"{held.principal} gets no ticket for smtp/{host}: {error}") from None

    def _held(self, user: str) -> Tickets:
        name = keytab_name(self._keytab)
        principal = user or own_principal(name)
        if principal not in self._tickets:
            self._tickets[principal] = Tickets(principal, name)
        return self._tickets[principal]


class KeytabInitiator:
    """One exchange. See :class:`relayd.delivery.sasl.Initiator`."""

    def __init__(self, keytab: KeytabInitiators, user: str, host: str, binding: bytes) -> None:
        self._keytab = keytab
        self._user = user
        self._host = host
        self._binding = binding
        self._context: Any = None

    def step(self, challenge: bytes) -> bytes:
        if self._context is None:
            self._context, token = self._keytab.context(self._user, self._host, self._binding)
            return token
        from gssapi.raw.misc import GSSError

        try:
            if not self._context.complete:
                return self._context.step(challenge) or b""
            offered = self._context.unwrap(challenge).message
            if len(offered) != 4 or not offered[0] & _NO_LAYER:
                raise Fault(AUTH_UNAVAILABLE, "the next hop demands a security layer inside TLS")
            return bytes(self._context.wrap(bytes((_NO_LAYER, 0, 0, 0)), False).message)
        except GSSError as error:
            raise Fault(AUTH_UNAVAILABLE, f"smtp/{self._host}: {KerberosError.of(error)}") from None


def _bindings(octets: bytes) -> Any:
    if not octets:
        return None
    from gssapi.raw import ChannelBindings

    return ChannelBindings(application_data=octets)
