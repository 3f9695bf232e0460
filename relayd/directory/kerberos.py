"""The keytab's own account: it signs in to controllers by Kerberos (SASL GSSAPI, RFC 4752), on LDAPS alone."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path as File
from typing import Any, Final

from relayd.directory import tickets
from relayd.directory.connection import Connection
from relayd.directory.faults import ControllerFault, Refusal, SearcherFault
from relayd.directory.tickets import KerberosError, NoAnswer, NoKey, Tickets

__all__ = ["KeytabAccount"]

#: How much of the time that is left Kerberos may take: who is next in line must hear that it hangs.
_SHARE: Final = 0.8

# What Kerberos says of the account, by the sub-codes of a bind.
_REFUSALS: Final = {
    tickets.PREAUTHENTICATION_FAILED: "52e",
    tickets.BAD_INTEGRITY: "52e",
    tickets.CLIENT_REVOKED: "533",
    tickets.CLIENT_EXPIRED: "701",
    tickets.KEY_EXPIRED: "532",
}
_NO_LAYER: Final = 1  # RFC 4752 3.3


class _TicketRefused(SearcherFault):
    """Kerberos took the key, and a controller does not take the ticket."""


class KeytabAccount:
    """The account whose own key is in *keytab* (None: the system's): ``RELAY01$``. A keytab that was replaced is used
    from the next sign-in on."""

    def __init__(self, keytab: File | None) -> None:
        self._keytab = keytab
        self._tickets: Tickets | None = None
        self._stamp = b""

    @property
    def name(self) -> str:
        return (
            self._tickets.principal if self._tickets is not None else f"the account of {self._keytab or 'the keytab'}"
        )

    def secret(self) -> bytes:
        """What tells this keytab from a later one."""
        try:
            name = tickets.keytab_name(self._keytab)
            status = File(name.removeprefix("FILE:")).stat()
            stamp = b"%d %d %d" % (status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp != self._stamp or self._tickets is None:
                principal = tickets.own_principal(name)
                if self._tickets is None or self._tickets.principal != principal:
                    self.close()
                    self._tickets = Tickets(principal, name)
                self._stamp = stamp
        except OSError as error:
            raise SearcherFault(f"{name}: {error.strerror}") from None
        except NoKey as error:
            raise SearcherFault(str(error)) from None
        return stamp

    def bind(self, connection: Connection, secret: bytes, until: float) -> Refusal | None:
        held = self._tickets
        assert held is not None
        if not connection.controller.ldaps:
            raise ControllerFault(f"{connection.controller}: {held.principal} signs in on LDAPS alone")
        proven, held.proven = held.proven, False
        try:
            refused = self._bind(held, connection, until)
            stale = refused is not None and not refused.wrong_password
        except _TicketRefused:
            if not proven:
                raise
            stale = True
        if stale and proven:
            # Kept tickets may be of an account, or a controller, that was made again since.
            held.forget()
            refused = self._bind(held, connection, until)
        held.proven = refused is None
        return refused

    def _bind(self, held: Tickets, connection: Connection, until: float) -> Refusal | None:
        host, now = connection.controller.host, time.monotonic()
        try:
            context, token = held.initiate(host, _channel_binding(connection), now + (until - now) * _SHARE)
        except NoAnswer as error:
            raise SearcherFault(f"{held.principal}: {error}") from None
        except KerberosError as error:
            if error.code == tickets.SERVICE_UNKNOWN:
                raise ControllerFault(f"{connection.controller}: Kerberos knows no ldap/{host}: {error}") from None
            if error.code in _REFUSALS:
                return Refusal(_REFUSALS[error.code], f"Kerberos: {error}")
            raise SearcherFault(f"{held.principal}: Kerberos: {error}") from None
        refused = connection.bind_sasl("GSSAPI", _exchange(context, token))
        if refused is not None:
            raise _TicketRefused(f"{held.principal}: {connection.controller} refuses its ticket: {refused}")
        return None

    def close(self) -> None:
        """Drops all tickets."""
        if self._tickets is not None:
            self._tickets.forget()
            self._tickets = None


def _channel_binding(connection: Connection) -> Any:
    """``tls-server-end-point``; None where the controller's certificate defines none (RFC 5929 4.1)."""
    from ldap3.protocol.sasl.kerberos import get_channel_bindings  # it raises where gssapi is not installed

    try:
        return get_channel_bindings(connection.secured)
    except AttributeError:  # an algorithm that has no hash of its own, such as Ed25519
        return None


def _exchange(context: Any, token: bytes) -> Generator[bytes, bytes, None]:
    """RFC 4752 3.1, the client's side; no security layer."""
    challenge = yield token
    while not context.complete:
        challenge = yield context.step(challenge) or b""
    offered = context.unwrap(challenge).message
    if len(offered) != 4 or not offered[0] & _NO_LAYER:
        raise OSError("GSSAPI: the controller demands a security layer inside TLS")
    yield context.wrap(bytes((_NO_LAYER, 0, 0, 0)), False).message
