"""What all sessions of one listener share: an SMTP virtual server, as IIS called it."""

from __future__ import annotations

import os
from base64 import b32encode
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IReactorTime

from relayd.events import Events
from relayd.model import Client, Fault, IPAddress, Names, Path, Verdict
from relayd.settings import Listener
from relayd.smtpd import replies
from relayd.smtpd.sasl import MECHANISMS, MechanismFactory

if TYPE_CHECKING:
    from relayd.smtpd.session import RelayESMTP

# Session ids: a prefix that no other process and no earlier run had, and a counter.
_PREFIX: Final = b32encode(os.urandom(5)).decode().lower()
_counter = count(1)


def session_id() -> str:
    """A session id that is short, and used once."""
    return f"{_PREFIX}{next(_counter):x}"


class SessionPolicy(Protocol):
    """What a session itself asks the policy; MAIL and RCPT are the avatar's to ask. ``relayd.policy.Policy`` is one."""

    def wants_names(self, listener: str, address: IPAddress) -> bool: ...

    def legacy(self, client: Client) -> bool: ...

    def mechanisms(self, client: Client) -> tuple[str, ...]: ...

    def greet(self, client: Client) -> Verdict: ...

    def tls_required(self, client: Client) -> Verdict | None: ...

    def auth(self, client: Client, mechanism: str) -> Verdict: ...

    def complete(self, path: Path) -> Path: ...


class NameResolver(Protocol):
    """Who looks up the names of clients. ``relayd.resolver.Resolver`` is one."""

    async def names(self, address: IPAddress) -> Names: ...


@dataclass(slots=True, eq=False)
class VirtualServer:
    """One listener's server: settings, policy and portal, and the sessions they serve.

    A reload puts new values into it: sessions that live on use *listener*, *policy* and *tls* from their next command,
    *portal* is for new ones.

    :ivar hostname: the name in banner and EHLO.
    :ivar tls: makes the server side of TLS; None: TLS is not offered.
    :ivar sessions: the sessions that are open, by id.
    """

    hostname: str
    listener: Listener
    policy: SessionPolicy
    portal: Portal
    events: Events
    reactor: IReactorTime
    resolver: NameResolver
    tls: IOpenSSLServerConnectionCreator | None = None
    mechanisms: Mapping[str, MechanismFactory] = field(default_factory=lambda: MECHANISMS)
    sessions: dict[str, RelayESMTP] = field(default_factory=dict)
    _clients: Counter[IPAddress] = field(default_factory=Counter)

    def opened(self, session: RelayESMTP) -> None:
        """Counts *session* in."""
        self.sessions[session.id] = session
        self._clients[session.client.peer.address] += 1

    def closed(self, session: RelayESMTP) -> None:
        """Counts *session* out."""
        if self.sessions.pop(session.id, None) is None:
            return
        address = session.client.peer.address
        self._clients[address] -= 1
        if not self._clients[address]:
            del self._clients[address]

    def insist_on_room(self, address: IPAddress) -> None:
        """Holds the connection caps against a client that was just counted in.

        :raises Fault: 421: there are too many connections, of all clients or of this one.
        """
        limits = self.listener.limits
        if limits.connections and len(self.sessions) > limits.connections:
            raise Fault(replies.TOO_MANY_CONNECTIONS, f"{limits.connections} connections")
        if limits.connections_per_client and self._clients[address] > limits.connections_per_client:
            raise Fault(replies.TOO_MANY_OF_YOURS, f"{limits.connections_per_client} connections of one client")

    def names(self, address: IPAddress) -> Deferred[Names] | None:
        """The client's names, where the policy needs them; None where it does not."""
        if not self.policy.wants_names(self.listener.name, address):
            return None
        return Deferred.fromCoroutine(self.resolver.names(address))
