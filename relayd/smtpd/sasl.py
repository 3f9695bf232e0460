"""The SASL acceptor (RFC 4422, RFC 4954): mechanisms as small state machines, and their exchange on the wire.

A mechanism knows nothing of base64, of SMTP or of cred. It is given the client's responses one at a time, and answers
each with a challenge, or with the credentials that the portal shall judge; at once, or by a Deferred.
"""

from __future__ import annotations

import binascii
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from twisted.cred.credentials import ICredentials
from twisted.internet.defer import Deferred

from relayd.auth import Password
from relayd.model import Client, Fault
from relayd.smtpd import replies

#: The longest token, in octets. A Kerberos ticket with a large PAC needs it; RFC 4954 4 asks for 12288 in base64.
TOKEN: Final = 64 * 1024
#: The longest line of an exchange: such a token in base64, the command before it, and CRLF.
AUTH_LINE: Final = 4 * ((TOKEN + 2) // 3) + 64


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the client is to answer next."""

    octets: bytes = b""


@dataclass(frozen=True, slots=True)
class Done:
    """The exchange is complete: the portal shall judge these *credentials*."""

    credentials: ICredentials


Step = Challenge | Done


class Mechanism(Protocol):
    """One exchange by one mechanism. One that holds something has a ``close()`` too.

    :ivar user: who the client claims to be, for the log; empty as long as it is not known.
    """

    @property
    def user(self) -> str: ...

    def step(self, response: bytes | None) -> Step | Deferred[Step]:
        """Takes the client's response; None at the start when AUTH brought none.

        :raises Fault: the exchange is over, and this is its reply.
        """


MechanismFactory = Callable[[Client], Mechanism]


def _password(name: bytes, password: bytes, mechanism: str, client: Client) -> Done:
    if not password:
        # A directory takes a bind without password for an anonymous one, and calls it success (RFC 4513 5.1.2).
        raise Fault(replies.REFUSED_CREDENTIALS, "empty password")
    if not name:
        raise Fault(replies.REFUSED_CREDENTIALS, "empty user name")
    if b"\0" in name + password:
        raise Fault(replies.MALFORMED_RESPONSE, "NUL in user name or password")
    return Done(Password(name, password, mechanism, client))


class Plain:
    """PLAIN (RFC 4616): ``[authzid] NUL authcid NUL password``."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.user = ""

    def step(self, response: bytes | None) -> Step:
        if response is None:
            return Challenge()
        parts = response.split(b"\0")
        if len(parts) != 3:
            raise Fault(replies.MALFORMED_RESPONSE, "PLAIN without its three parts")
        authorise, name, password = parts
        self.user = name.decode("utf-8", "replace")
        if authorise not in (b"", name):
            # Nobody acts for somebody else here.
            raise Fault(replies.REFUSED_CREDENTIALS, "asks to act as another user")
        return _password(name, password, "PLAIN", self._client)


class Login:
    """LOGIN (MS-XLOGIN): the user name inline or prompted, then the password.

    Old devices compare the prompts octet by octet, so they are these and no others.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._name: bytes | None = None
        self.user = ""

    def step(self, response: bytes | None) -> Step:
        if response is None:
            return Challenge(b"Username:")
        if self._name is None:
            self._name = response
            self.user = response.decode("utf-8", "replace")
            return Challenge(b"Password:")
        return _password(self._name, response, "LOGIN", self._client)


#: The mechanisms of this version, by the names that AUTH takes.
MECHANISMS: Final[Mapping[str, MechanismFactory]] = MappingProxyType({"PLAIN": Plain, "LOGIN": Login})


class Exchange:
    """One AUTH command on the wire: base64, the empty initial response, cancellation.

    :param name: the mechanism's name, for the log.
    """

    __slots__ = ("_mechanism", "name")

    def __init__(self, name: str, mechanism: Mechanism) -> None:
        self.name = name
        self._mechanism = mechanism

    @property
    def user(self) -> str:
        """Who the client claims to be."""
        return self._mechanism.user

    def begin(self, initial: bytes) -> Step | Deferred[Step]:
        """Starts with the initial response of the AUTH command, empty where it had none (RFC 4954 4)."""
        if not initial:
            return self._mechanism.step(None)
        return self._mechanism.step(b"" if initial == b"=" else _decoded(initial))

    def respond(self, line: bytes) -> Step | Deferred[Step]:
        """Goes on with a line of the client.

        :raises Fault: the exchange is over: cancelled, not base64, refused by the mechanism.
        """
        if line == b"*":
            raise Fault(replies.CANCELLED, "cancelled by the client")
        return self._mechanism.step(_decoded(line))

    def close(self) -> None:
        """It is over, whatever its end; the mechanism drops what it holds. Not while a step of it is at work."""
        close: Callable[[], None] | None = getattr(self._mechanism, "close", None)
        if close is not None:
            close()


def encoded(challenge: Challenge) -> bytes:
    """The 334 reply that carries *challenge*."""
    return b"334 %b\r\n" % b64encode(challenge.octets)


def _decoded(line: bytes) -> bytes:
    try:
        token = binascii.a2b_base64(line, strict_mode=True) if line else b""
    except binascii.Error as error:
        raise Fault(replies.BAD_BASE64, f"base64: {error}") from None
    if len(token) > TOKEN:
        raise Fault(replies.TOKEN_TOO_LONG)
    return token
