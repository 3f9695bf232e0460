"""Authenticating to a next hop (RFC 4954): PLAIN and LOGIN, XOAUTH2, GSSAPI."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Callable
from typing import Final, Protocol

from twisted.internet.defer import Deferred

from relayd.delivery.fault import PathFault
from relayd.delivery.oauth import NoToken, Tokens
from relayd.delivery.offer import Offer
from relayd.delivery.outflow import InThread
from relayd.delivery.target import Target
from relayd.model import Fault, Reply
from relayd.settings import Credential


class Dialogue(Protocol):
    """What authentication needs of a connection."""

    @property
    def target(self) -> Target: ...

    @property
    def offer(self) -> Offer: ...

    @property
    def binding(self) -> bytes:
        """Channel binding data, ``tls-server-end-point:…`` (RFC 5929 4); empty: no TLS, or it has none."""

    def say(self, octets: bytes) -> Deferred[Reply]:
        """One step; the reply to it."""

    def auth_refused(self, said: Reply) -> PathFault:
        """The fault for *said*, which ends the exchange."""

    def auth_fault(self, text: str, detail: str = "") -> PathFault:
        """The fault for an exchange that does not come about."""


class Initiator(Protocol):
    """The client's side of one GSSAPI exchange (RFC 4752 3.1). It blocks: for a thread."""

    def step(self, challenge: bytes) -> bytes:
        """The response to *challenge*, which is empty at first.

        :raises Fault: there is none.
        """


#: Begins an exchange for a credential with the service ``smtp/`` of a host, bound to a channel.
Initiate = Callable[[Credential, str, bytes], Initiator]


#: By the kind of a credential, the mechanisms that show it; one of them must be offered.
MECHANISMS: Final = {"password": ("PLAIN", "LOGIN"), "oauth2": ("XOAUTH2",), "gssapi": ("GSSAPI",)}


def not_offered(credential: Credential, offer: Offer) -> str:
    """What is wrong where *offer* has no mechanism for *credential*; "" where it has one."""
    wanted = MECHANISMS[credential.kind]
    if any(mechanism in offer.mechanisms for mechanism in wanted):
        return ""
    if len(wanted) > 1:
        return f"Neither AUTH {wanted[0]} nor AUTH {wanted[1]} is offered"
    return f"AUTH {wanted[0]} is not offered"


class Authenticator:
    """Authenticates connections to next hops; one for all of them.

    :param in_thread: where files are read, and Kerberos asks its controllers.
    :param tokens: for credentials of the kind ``oauth2``.
    :param initiate: for credentials of the kind ``gssapi``.
    """

    def __init__(self, in_thread: InThread, tokens: Tokens | None = None, initiate: Initiate | None = None) -> None:
        self._in_thread = in_thread
        self._tokens = tokens
        self._initiate = initiate

    async def authenticate(self, dialogue: Dialogue, credential: Credential) -> None:
        """Shows *credential*, over a connection that may be trusted with it.

        :raises PathFault: the next hop does not take it, or it cannot be used.
        """
        if credential.kind == "oauth2" and self._tokens is not None:
            await self._xoauth2(dialogue, credential, self._tokens)
        elif credential.kind == "gssapi" and self._initiate is not None:
            await self._gssapi(dialogue, credential, self._initiate)
        elif credential.kind == "password" and credential.password_file is not None:
            await self._password(dialogue, credential)
        else:
            raise dialogue.auth_fault(f"Credential {credential.name} cannot be used")

    async def _password(self, dialogue: Dialogue, credential: Credential) -> None:
        """AUTH PLAIN (RFC 4616) or LOGIN."""
        file = credential.password_file
        assert file is not None
        try:
            secret = await self._in_thread(file.read_bytes)
        except (OSError, Fault) as error:
            raise dialogue.auth_fault(f"Credential {credential.name} cannot be read", str(error)) from None
        user, password = credential.user.encode(), secret.rstrip(b"\r\n")
        if not password or b"\0" in user + password:
            raise dialogue.auth_fault(f"Credential {credential.name} holds no usable password")
        mechanisms = dialogue.offer.mechanisms
        if "PLAIN" in mechanisms:
            steps = [b"AUTH PLAIN %b\r\n" % b64encode(b"\0%b\0%b" % (user, password))]
        elif "LOGIN" in mechanisms:
            steps = [b"AUTH LOGIN\r\n", b64encode(user) + b"\r\n", b64encode(password) + b"\r\n"]
        else:
            raise dialogue.auth_fault(not_offered(credential, dialogue.offer))
        for number, step in enumerate(steps, 1):
            reply = await dialogue.say(step)
            if reply.code != (235 if number == len(steps) else 334):
                raise dialogue.auth_refused(reply)

    async def _xoauth2(self, dialogue: Dialogue, credential: Credential, tokens: Tokens) -> None:
        """A token that the next hop does not take may have been taken back: one more is tried, which is a new one."""
        if why := not_offered(credential, dialogue.offer):
            raise dialogue.auth_fault(why)
        for last in (False, True):
            try:
                token = await tokens.token(credential)
            except NoToken as error:
                raise dialogue.auth_fault(f"No token for credential {credential.name}", str(error)) from None
            said = b"user=%b\1auth=Bearer %b\1\1" % (credential.user.encode(), token.encode())
            # RFC 4954 4: the command may be 12288 octets long, so the token comes with it.
            reply = await dialogue.say(b"AUTH XOAUTH2 %b\r\n" % b64encode(said))
            if reply.code == 334:  # what is wrong, in JSON; an empty line asks for the refusal itself
                reply = await dialogue.say(b"\r\n")
            if reply.code == 235:
                return
            if reply.code == 535:
                tokens.refused(credential, token)
            if last or reply.code != 535:
                raise dialogue.auth_refused(reply)

    async def _gssapi(self, dialogue: Dialogue, credential: Credential, initiate: Initiate) -> None:
        if why := not_offered(credential, dialogue.offer):
            raise dialogue.auth_fault(why)
        initiator = initiate(credential, dialogue.target.name, dialogue.binding)
        command, challenge = b"AUTH GSSAPI %b\r\n", b""
        for _ in range(8):  # Kerberos needs three
            try:
                token = await self._in_thread(lambda challenge=challenge: initiator.step(challenge))  # type: ignore[misc]
            except Fault as fault:
                text = f"Credential {credential.name} cannot be used"
                raise dialogue.auth_fault(text, fault.detail) from None
            reply = await dialogue.say(command % b64encode(token))
            command = b"%b\r\n"
            if reply.code == 235:
                return
            if reply.code != 334:
                raise dialogue.auth_refused(reply)
            try:
                challenge = b64decode(reply.text, validate=True)
            except (NotBase64, ValueError):
                raise dialogue.auth_refused(reply) from None
        raise dialogue.auth_fault("AUTH GSSAPI comes to no end")
