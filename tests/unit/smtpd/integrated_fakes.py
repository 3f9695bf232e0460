"""Stand-ins for Kerberos and NTLM: tokens whose text says what shall come of them, and who believes them.

A Kerberos token with ``expired`` in it is refused, ``keytab`` is a fault of ours, ``more`` asks for another token,
``quiet`` is answered by none; any other completes a context of alice's, which wants its messages protected when
``layer`` is in the token. A wrapped message has ``05 04`` in front. An AUTHENTICATE message of NTLM's is right with
``secret`` in it, and finds no controller with ``away``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, maybeDeferred
from zope.interface import implementer

from relayd.auth.credentials import IKerberosIdentity, INtlmResponse, KerberosIdentity, NtlmResponse
from relayd.auth.ntlm import NtlmAccount, NtlmRefused
from relayd.auth.pac import Pac
from relayd.model import Fault, Principal, Reply
from relayd.smtpd import MechanismFactory
from relayd.smtpd.integrated import Run, integrated_mechanisms

KRB5 = b"\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02"
SPNEGO = b"\x06\x06\x2b\x06\x01\x05\x05\x02"
WRAPPED = b"\x05\x04"
NEGOTIATE = b"NTLMSSP\0\1\0\0\0"
CHALLENGE = b"NTLMSSP\0\2\0\0\0"
AUTHENTICATE = b"NTLMSSP\0\3\0\0\0"

_AWAY = Reply.of(454, "4.7.0", "Temporary authentication failure")
_MALFORMED = Reply.of(501, "5.5.2", "Malformed response")


class FakeContext:
    """As ``relayd.auth.kerberos.KerberosContext``."""

    def __init__(self, binding: bytes, channel_binding: str) -> None:
        self.binding = binding
        self.channel_binding = channel_binding
        self.tokens: list[bytes] = []
        self.complete = False
        self.spnego = False
        self.protection = False
        self.principal = ""
        self.pac: Pac | None = None

    def step(self, token: bytes) -> bytes:
        assert not self.complete
        self.tokens.append(token)
        if b"expired" in token:
            raise UnauthorizedLogin("ticket expired")
        if b"keytab" in token:
            raise Fault(_AWAY, "keytab: No such file or directory")
        if b"more" in token:
            return b"go on"
        self.complete = True
        self.protection = b"layer" in token
        self.spnego = SPNEGO in token[:16]
        self.principal = "alice@LAB.EXAMPLE"
        self.pac = Pac("S-1-5-21-1-2-3-1104", frozenset(), "alice", "LAB", "alice@corp.example")
        if b"quiet" in token:
            return b""
        return b"accept-completed" if self.spnego else b"AP-REP"

    def wrap(self, octets: bytes) -> bytes:
        assert self.complete
        return WRAPPED + octets

    def unwrap(self, octets: bytes) -> bytes:
        assert self.complete
        if not octets.startswith(WRAPPED):
            raise UnauthorizedLogin("a message was altered")
        return octets.removeprefix(WRAPPED)


class FakeAcceptor:
    """As ``relayd.auth.kerberos.KerberosAcceptor``.

    :ivar contexts: that it made.
    """

    principals = ("smtp/relay.lab.example@LAB.EXAMPLE",)

    def __init__(self) -> None:
        self.contexts: list[FakeContext] = []

    def context(self, binding: bytes, channel_binding: str) -> FakeContext:
        self.contexts.append(FakeContext(binding, channel_binding))
        return self.contexts[-1]


class FakeExchange:
    """An NtlmExchange: right is an AUTHENTICATE with ``secret`` in it.

    :ivar state: ``asked``, ``verified`` or ``abandoned``.
    """

    challenge = CHALLENGE + b"who are you"

    def __init__(self, negotiate: bytes) -> None:
        self.negotiate = negotiate
        self.state = "asked"

    async def verify(self, authenticate: bytes) -> NtlmAccount:
        assert self.state == "asked"
        self.state = "verified"
        if not authenticate.startswith(AUTHENTICATE):
            raise Fault(_MALFORMED, "no AUTHENTICATE message")
        if b"away" in authenticate:
            raise Fault(_AWAY, "no controller answers")
        if b"secret" not in authenticate:
            raise NtlmRefused("c000006a wrong password", wrong_password=True)
        return NtlmAccount("bob", "LAB", "S-1-5-21-1-2-3-1105")

    def abandon(self) -> None:
        self.state = "abandoned"


class FakeBackend:
    """An NtlmBackend.

    :ivar exchanges: that it began.
    :ivar waiting: holds the challenges back, where it is a list.
    """

    name = "netlogon"

    def __init__(self) -> None:
        self.exchanges: list[FakeExchange] = []
        self.waiting: list[Deferred[None]] | None = None

    async def begin(self, negotiate: bytes) -> FakeExchange:
        if not negotiate.startswith(NEGOTIATE):
            raise Fault(_MALFORMED, "no NTLM NEGOTIATE message")
        if self.waiting is not None:
            later: Deferred[None] = Deferred()
            self.waiting.append(later)
            await later
        self.exchanges.append(FakeExchange(negotiate))
        return self.exchanges[-1]


@implementer(ICredentialsChecker)
class IdentityChecker:
    """Believes a Kerberos identity, and asks an NTLM exchange."""

    credentialInterfaces = (IKerberosIdentity, INtlmResponse)

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def requestAvatarId(self, credentials: Any) -> Any:
        self.seen.append(credentials)
        return Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: KerberosIdentity | NtlmResponse) -> Principal:
        if isinstance(credentials, KerberosIdentity):
            return Principal(credentials.principal, credentials.mechanism, "kerberos")
        try:
            account = await credentials.exchange.verify(credentials.authenticate)
        finally:
            credentials.exchange.abandon()
        return Principal(f"{account.domain}\\{account.name}", credentials.mechanism, "ntlm")


def at_once(call: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
    """In place of ``BoundedPool.run``."""
    return maybeDeferred(call, *arguments)


INTEGRATED = ("GSSAPI", "GSS-SPNEGO", "NTLM", "PLAIN", "LOGIN")


def integrated(
    ntlm: FakeBackend | None, acceptor: FakeAcceptor | None = None, run: Run = at_once
) -> Mapping[str, MechanismFactory]:
    """The mechanisms over stand-ins."""
    kerberos: Any = acceptor or FakeAcceptor()
    return integrated_mechanisms(kerberos, ntlm, run, "accept")


def raw(text: bytes) -> bytes:
    """An initial token of raw Kerberos (RFC 4121 4.1)."""
    inside = KRB5 + b"\x01\x00" + text
    assert len(inside) < 128
    return b"\x60" + bytes([len(inside)]) + inside


__all__ = [
    "AUTHENTICATE",
    "CHALLENGE",
    "INTEGRATED",
    "KRB5",
    "NEGOTIATE",
    "SPNEGO",
    "WRAPPED",
    "FakeAcceptor",
    "FakeBackend",
    "FakeContext",
    "FakeExchange",
    "IdentityChecker",
    "at_once",
    "integrated",
    "raw",
]
