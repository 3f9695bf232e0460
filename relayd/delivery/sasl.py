"""Authenticating to a next hop (RFC 4954): PLAIN and LOGIN."""

from __future__ import annotations

from base64 import b64encode
from typing import Protocol

from twisted.internet.defer import Deferred

from relayd.delivery.fault import PathFault
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

    def say(self, octets: bytes) -> Deferred[Reply]:
        """One step; the reply to it."""

    def auth_refused(self, said: Reply) -> PathFault:
        """The fault for *said*, which ends the exchange."""

    def auth_fault(self, text: str, detail: str = "") -> PathFault:
        """The fault for an exchange that does not come about."""


class Authenticator:
    """Authenticates connections to next hops; one for all of them.

    :param in_thread: where files are read.
    """

    def __init__(self, in_thread: InThread) -> None:
        self._in_thread = in_thread

    async def authenticate(self, dialogue: Dialogue, credential: Credential) -> None:
        """AUTH PLAIN (RFC 4616) or LOGIN, over a connection that may be trusted with the credential.

        :raises PathFault: the next hop does not take it, or it cannot be used.
        """
        if credential.kind != "password" or credential.password_file is None:
            raise dialogue.auth_fault(f"Credential {credential.name} cannot be used")
        file = credential.password_file
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
            raise dialogue.auth_fault("Neither AUTH PLAIN nor AUTH LOGIN is offered")
        for number, step in enumerate(steps, 1):
            reply = await dialogue.say(step)
            if reply.code != (235 if number == len(steps) else 334):
                raise dialogue.auth_refused(reply)
