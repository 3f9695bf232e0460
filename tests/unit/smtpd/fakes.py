"""Stand-ins for what a session asks: each does what it is told, and notes what it saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.cred.checkers import ANONYMOUS, ICredentialsChecker
from twisted.cred.credentials import IAnonymous, IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred, succeed
from twisted.mail.interfaces import IMessageDelivery
from zope.interface import implementer

from relayd.events import Event, Events
from relayd.model import (
    NO_NAMES,
    Client,
    Fault,
    IPAddress,
    Names,
    Outcome,
    Path,
    Principal,
    Recipient,
    Reply,
    Rule,
    Sender,
    Verdict,
)
from relayd.realm import IBulkMessage, IRelayDelivery

ACCEPTED = Verdict(Outcome.ACCEPT, Reply.of(250, "", "fine"), Rule("test"))


def refused(code: int, enhanced: str, text: str, rule: str = "test.rule") -> Verdict:
    outcome = Outcome.DEFER if code < 500 else Outcome.REFUSE
    return Verdict(outcome, Reply.of(code, enhanced, text), Rule(rule, 7))


@dataclass
class FakePolicy:
    """Answers what it is told to."""

    greeting: Verdict = ACCEPTED
    legacy_clients: bool = False
    offered: tuple[str, ...] = ("PLAIN", "LOGIN")
    auth_in_the_clear: bool = True
    require_tls: bool = False
    by_name: bool = False

    def wants_names(self, listener: str, address: IPAddress) -> bool:
        return self.by_name

    def legacy(self, client: Client) -> bool:
        return self.legacy_clients

    def mechanisms(self, client: Client) -> tuple[str, ...]:
        return self.offered if client.tls or self.auth_in_the_clear else ()

    def greet(self, client: Client) -> Verdict:
        if client.names.failed:
            return refused(421, "4.4.3", "DNS is failing")
        return self.greeting

    def tls_required(self, client: Client) -> Verdict | None:
        if self.require_tls and client.tls is None:
            return refused(530, "5.7.0", "Must issue a STARTTLS command first", "listener[0].require_tls")
        return None

    def auth(self, client: Client, mechanism: str) -> Verdict:
        if client.principal is not None:
            return refused(503, "5.5.1", "Already authenticated")
        if mechanism in self.mechanisms(client):
            return ACCEPTED
        if mechanism in self.offered:
            return refused(538, "5.7.11", "Encryption required")
        return refused(504, "5.5.4", "Mechanism not offered")

    def complete(self, path: Path) -> Path:
        if path.domain or path.local.lower() == "postmaster":
            return path
        return Path(path.local, "local.example")


@dataclass
class FakeResolver:
    """Its answers wait in *asked* until a test fires them."""

    asked: list[Deferred[Names]] = field(default_factory=list)

    async def names(self, address: IPAddress) -> Names:
        answer: Deferred[Names] = Deferred()
        self.asked.append(answer)
        return await answer


@implementer(IBulkMessage)
class FakeMessage:
    def __init__(self, realm: FakeRealm, sender: Sender, recipients: tuple[Recipient, ...]) -> None:
        self.realm = realm
        self.sender = sender
        self.recipients = recipients
        self.chunks: list[bytes] = []
        self.state = "open"

    @property
    def content(self) -> bytes:
        return b"".join(self.chunks)

    def write(self, octets: bytes) -> Deferred[None] | None:
        assert self.state == "open"
        self.chunks.append(octets)
        return self.realm.on_write(octets)

    def finish(self) -> Deferred[str]:
        assert self.state == "open"
        self.state = "finished"
        return self.realm.on_finish(self)

    def abandon(self) -> None:
        assert self.state == "open"
        self.state = "abandoned"

    def lineReceived(self, line: bytes) -> None:
        self.write(line + b"\r\n")

    def eomReceived(self) -> Deferred[str]:
        return self.finish()

    def connectionLost(self) -> None:
        self.abandon()


@implementer(IRelayDelivery)
class FakeDelivery:
    def __init__(self, realm: FakeRealm, mind: Any, principal: Principal | None) -> None:
        self.realm = realm
        self.session = mind
        self.principal = principal

    def mail(self, sender: Sender) -> Sender | Deferred[Sender]:
        return self.realm.on_mail(sender)

    def rcpt(self, sender: Sender, recipient: Recipient) -> Recipient | Deferred[Recipient]:
        return self.realm.on_rcpt(sender, recipient)

    def message(self, sender: Sender, recipients: tuple[Recipient, ...]) -> FakeMessage:
        return self.realm.on_message(sender, recipients)

    def validateFrom(self, helo: tuple[bytes, bytes], origin: Any) -> Any:
        raise AssertionError("stock's way")

    validateTo = receivedHeader = validateFrom


def _mail(sender: Sender) -> Sender | Deferred[Sender]:
    return sender


def _rcpt(sender: Sender, recipient: Recipient) -> Recipient | Deferred[Recipient]:
    if recipient.path.domain in ("refused.example", "later.example"):
        code, enhanced = (550, "5.7.1") if recipient.path.domain == "refused.example" else (451, "4.4.3")
        raise Fault(Reply.of(code, enhanced, f"Unable to relay for {recipient.path}"), rule=Rule("relay.list", 3))
    return recipient


@implementer(IRealm)
class FakeRealm:
    """Hands out avatars; the ``on_*`` are for a test to replace."""

    def __init__(self) -> None:
        self.messages: list[FakeMessage] = []
        self.logouts = 0
        self.logins: list[object] = []
        self.on_mail: Callable[[Sender], Sender | Deferred[Sender]] = _mail
        self.on_rcpt: Callable[[Sender, Recipient], Recipient | Deferred[Recipient]] = _rcpt
        self.on_message: Callable[[Sender, tuple[Recipient, ...]], FakeMessage] = self._message
        self.on_write: Callable[[bytes], Deferred[None] | None] = lambda octets: None
        self.on_finish: Callable[[FakeMessage], Deferred[str]] = lambda message: succeed(f"Q{len(self.messages)}")

    def _message(self, sender: Sender, recipients: tuple[Recipient, ...]) -> FakeMessage:
        self.messages.append(FakeMessage(self, sender, recipients))
        return self.messages[-1]

    def requestAvatar(self, avatarId: Any, mind: Any, *interfaces: Any) -> Any:
        self.logins.append(avatarId)
        principal = None if avatarId is ANONYMOUS else avatarId
        return IMessageDelivery, FakeDelivery(self, mind, principal), self._logout

    def _logout(self) -> None:
        self.logouts += 1


@implementer(ICredentialsChecker)
class FakeChecker:
    """``alice`` with ``secret``. *waiting* holds answers back; *fault* answers with itself."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.waiting: list[Deferred[Any]] | None = None
        self.seen: list[tuple[bytes, bytes]] = []

    def requestAvatarId(self, credentials: Any) -> Any:
        self.seen.append((credentials.username, credentials.password))
        if self.fault is not None:
            raise self.fault
        if (credentials.username, credentials.password) != (b"alice", b"secret"):
            raise UnauthorizedLogin("wrong password")
        principal = Principal("alice", credentials.mechanism, "accounts")
        if self.waiting is None:
            return succeed(principal)
        answer: Deferred[Any] = Deferred()
        self.waiting.append(answer)
        return answer.addCallback(lambda _: principal)


@implementer(ICredentialsChecker)
class FakeAnonymous:
    credentialInterfaces = (IAnonymous,)

    def requestAvatarId(self, credentials: Any) -> Any:
        return succeed(ANONYMOUS)


def portal(realm: Any, *checkers: Any) -> Portal:
    return Portal(realm, [*checkers, FakeAnonymous()])


def recorder() -> tuple[Events, list[Event]]:
    """Events, and the list they go to."""
    seen: list[Event] = []
    events = Events()
    events.subscribe(lambda at, event: seen.append(event))
    return events, seen


__all__ = [
    "ACCEPTED",
    "NO_NAMES",
    "FakeAnonymous",
    "FakeChecker",
    "FakeDelivery",
    "FakeMessage",
    "FakePolicy",
    "FakeRealm",
    "FakeResolver",
    "portal",
    "recorder",
    "refused",
]
