"""An AUTH exchange that relayd plays with itself: same policy, mechanisms, portal and lockout, but no client.

``relayctl auth test`` shows how it went, with the reason that a client is never told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from twisted.cred.error import LoginFailed
from twisted.internet.defer import Deferred
from twisted.mail.interfaces import IMessageDelivery

from relayd.auth import PasswordInitiator
from relayd.model import Client, Fault, Peer, Principal, Reply, Tls
from relayd.smtpd import replies
from relayd.smtpd.sasl import Challenge
from relayd.smtpd.tls import ServerTls
from relayd.smtpd.virtual_server import VirtualServer, session_id

__all__ = ["Rehearsal", "rehearse"]

#: No exchange of any mechanism is longer.
STEPS: Final = 10


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """How it went: the *reply* a client would have got, and the *principal* or the *reason* why there is none."""

    reply: Reply
    principal: Principal | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Mind:
    """What the realm wants of a session."""

    id: str
    client: Client
    helo: str = "localhost"
    esmtp: bool = True


async def rehearse(
    server: VirtualServer,
    mechanism: str,
    user: str,
    password: str,
    run: Callable[[Callable[[bytes], bytes], bytes], Deferred[bytes]],
) -> Rehearsal:
    """Authenticates *user* on *server* as if it came from 127.0.0.1 by TLS.

    :param mechanism: a SASL mechanism that goes by a password.
    :param run: runs the client's side in a thread.
    """
    binding = server.tls.binding if isinstance(server.tls, ServerTls) else b""
    client = Client(Peer(ip_address("127.0.0.1")), server.listener.name, tls=Tls("TLSv1.3", "", binding=binding))
    verdict = server.policy.auth(client, mechanism)
    if not verdict.accepted:
        return Rehearsal(verdict.reply, reason=f"refused by {verdict.rule}")
    if mechanism not in server.mechanisms:
        return Rehearsal(replies.NO_MECHANISM, reason=f"{mechanism} is not served here")
    initiator = PasswordInitiator(mechanism, user, password, server.hostname, binding)
    try:
        return Rehearsal(replies.AUTHENTICATED, await _play(server, mechanism, client, initiator, run))
    except Fault as fault:
        return Rehearsal(fault.reply, reason=fault.detail)
    except LoginFailed as refused:
        return Rehearsal(replies.REFUSED_CREDENTIALS, reason=str(refused))


async def _play(
    server: VirtualServer,
    mechanism: str,
    client: Client,
    initiator: PasswordInitiator,
    run: Callable[[Callable[[bytes], bytes], bytes], Deferred[bytes]],
) -> Principal:
    acceptor = server.mechanisms[mechanism](client)
    challenge = b""
    try:
        for _ in range(STEPS):
            answer = acceptor.step(await run(initiator.step, challenge))
            step = await answer if isinstance(answer, Deferred) else answer
            if isinstance(step, Challenge):
                challenge = step.octets
                continue
            mind = _Mind(session_id(), client)
            _, avatar, logout = await server.portal.login(step.credentials, mind, IMessageDelivery)
            logout()
            principal = getattr(avatar, "principal", None)
            assert isinstance(principal, Principal)
            return principal
    finally:
        if (close := getattr(acceptor, "close", None)) is not None:
            close()
    raise Fault(replies.MALFORMED_RESPONSE, "the exchange has no end")
