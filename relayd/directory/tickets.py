"""Kerberos tickets of one account, got by its keytab and kept in memory."""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from contextlib import suppress
from pathlib import Path as File
from typing import Any, Final

__all__ = ["KerberosError", "NoAnswer", "NoKey", "Tickets", "keytab_name", "own_principal"]

# Error codes of libkrb5 (RFC 4120 7.5.9, and its own), as GSS-API's minor status.
CLIENT_EXPIRED: Final = -1765328383  # KDC_ERR_NAME_EXP
CLIENT_UNKNOWN: Final = -1765328378  # KDC_ERR_C_PRINCIPAL_UNKNOWN
SERVICE_UNKNOWN: Final = -1765328377  # KDC_ERR_S_PRINCIPAL_UNKNOWN
CLIENT_REVOKED: Final = -1765328366  # KDC_ERR_CLIENT_REVOKED
KEY_EXPIRED: Final = -1765328361  # KDC_ERR_KEY_EXPIRED
PREAUTHENTICATION_FAILED: Final = -1765328360  # KDC_ERR_PREAUTH_FAILED
BAD_INTEGRITY: Final = -1765328353  # KRB_AP_ERR_BAD_INTEGRITY

_numbers = itertools.count()


class NoKey(Exception):
    """The keytab cannot be read, or has no key of an account's own."""


class NoAnswer(Exception):
    """libkrb5 still waits for a controller."""


class KerberosError(Exception):
    """A ticket was refused, or could not be asked for.

    :ivar code: libkrb5's.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code

    @classmethod
    def of(cls, error: Any) -> KerberosError:
        """From a ``gssapi.raw.GSSError``, in the thread where it came up."""
        code = int(error.min_code) & 0xFFFF_FFFF
        texts = error.get_all_statuses(error.min_code, False) if code else []
        texts = texts or error.get_all_statuses(error.maj_code, True)
        return cls(code - (1 << 32) if code >> 31 else code, "; ".join(texts))


def keytab_name(keytab: File | None) -> str:
    """What libkrb5 calls the keytab; None: the system's, which the environment's ``KRB5_KTNAME`` may name.

    :raises NoKey: Python's krb5 is not installed.
    """
    if keytab is not None:
        return f"FILE:{keytab}"
    krb5 = _krb5()
    name: bytes = krb5.kt_default_name(krb5.init_context())
    return name.decode("utf-8", "replace")


def own_principal(name: str) -> str:
    """The account in a keytab that no service stands for: ``RELAY01$@CORP.EXAMPLE``; a computer's goes first.

    :param name: as :func:`keytab_name` gives it.
    :raises NoKey: there is none.
    """
    krb5 = _krb5()
    try:
        # As text at once: krb5's principals must not outlive the entry that they are of.
        principals = [str(entry.principal) for entry in krb5.kt_resolve(krb5.init_context(), name.encode())]
    except krb5.Krb5Error as error:
        raise NoKey(f"{name}: {error}") from None
    own = [principal for principal in principals if "/" not in principal.rpartition("@")[0]]
    computers = [principal for principal in own if principal.rpartition("@")[0].endswith("$")]
    if not own:
        services = ", ".join(dict.fromkeys(principals)) or "nothing"
        raise NoKey(f"{name}: has no key of an account's own, such as RELAY01$@CORP.EXAMPLE; it has {services}")
    return (computers or own)[0]


def _krb5() -> Any:
    try:
        import krb5
    except ImportError:
        raise NoKey("Kerberos needs the extra relayd[kerberos], which is not installed") from None
    return krb5


class Tickets:
    """The tickets of *principal*, with which it opens security contexts.

    libkrb5 gets them, keeps them in a cache in memory, and gets new ones when half of their time is over. It may wait
    half a minute for controllers that hang, so it does so in a thread of its own, one at a time, and nobody waits for
    it longer than he may.

    :ivar cache: what libkrb5 calls the cache.
    :ivar proven: a controller has taken a ticket.
    """

    def __init__(self, principal: str, keytab: str) -> None:
        self.principal = principal
        self._keytab = keytab
        self.cache = f"MEMORY:relayd-{os.getpid()}-{next(_numbers)}"
        self._thread: threading.Thread | None = None
        self.proven = False

    def initiate(self, host: str, binding: Any, until: float, service: str = "ldap") -> tuple[Any, bytes]:
        """A security context with a service of *host*, and its first token.

        :param binding: ``gssapi.raw.ChannelBindings``.
        :param until: when somebody stops to wait, on the monotonic clock.
        :raises KerberosError: there is no ticket.
        :raises NoAnswer: not in time.
        """
        if self._thread is not None:
            self._thread.join(max(0.0, until - time.monotonic()))
            if self._thread.is_alive():
                raise NoAnswer("no answer from Kerberos yet")
        made: queue.SimpleQueue[tuple[Any, bytes] | Exception] = queue.SimpleQueue()

        def initiate() -> None:
            try:
                made.put(self._initiate(f"{service}/{host}", binding))
            except Exception as error:
                made.put(error)

        self._thread = threading.Thread(target=initiate, name="directory tickets", daemon=True)
        self._thread.start()
        try:
            result = made.get(timeout=max(0.001, until - time.monotonic()))
        except queue.Empty:
            raise NoAnswer("no answer from Kerberos in time") from None
        self._thread.join()
        self._thread = None
        if isinstance(result, Exception):
            raise result
        return result

    def _initiate(self, service: str, binding: Any) -> tuple[Any, bytes]:
        import gssapi
        from gssapi.raw.misc import GSSError

        principal = gssapi.NameType.kerberos_principal
        kerberos = gssapi.MechType.kerberos
        # Named by realm, not as a host: nothing that DNS says then changes who must answer.
        target = gssapi.Name(f"{service}@{self.principal.rpartition('@')[2]}", principal)
        try:
            store: dict[str | bytes, str | bytes] = {"client_keytab": self._keytab, "ccache": self.cache}
            credentials = gssapi.Credentials(
                name=gssapi.Name(self.principal, principal), usage="initiate", store=store, mechs=[kerberos]
            )
            # RFC 4752 3.1: integrity, for the octets about the security layer.
            flags = gssapi.RequirementFlag.mutual_authentication | gssapi.RequirementFlag.integrity
            context = gssapi.SecurityContext(
                name=target, creds=credentials, usage="initiate", mech=kerberos, flags=flags, channel_bindings=binding
            )
            token = context.step()
        except GSSError as error:
            raise KerberosError.of(error) from None
        return context, token or b""

    def forget(self) -> None:
        """Drops all tickets."""
        krb5 = _krb5()
        with suppress(krb5.Krb5Error):
            context = krb5.init_context()
            krb5.cc_destroy(context, krb5.cc_resolve(context, self.cache.encode()))
