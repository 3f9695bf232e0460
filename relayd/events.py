"""Every event there is, once: the log line, the metric and the history come from it.

A part of relayd that has something to say makes one of these values and gives it to :func:`emit`.
Whoever wants events subscribes. Field names are the names in JSON logs, for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. *name* and *level* belong to the kind of event."""

    name: ClassVar[str] = "event"
    level: ClassVar[str] = "info"  # debug | info | warn | error

    def items(self) -> list[tuple[str, object]]:
        """The fields that hold something, in the order they are declared."""
        return [
            (name, value)
            for name in _names(type(self))
            if (value := getattr(self, name)) is not None and value != "" and value != ()
        ]


def _names(kind: type[Event]) -> tuple[str, ...]:
    if kind not in _FIELDS:
        _FIELDS[kind] = tuple(field.name for field in fields(kind))
    return _FIELDS[kind]


_FIELDS: dict[type[Event], tuple[str, ...]] = {}


Subscriber = Callable[[float, Event], None]


class Events:
    """Hands each event to all subscribers, with the time it happened.

    A subscriber must neither block nor raise.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Adds *subscriber*; the result takes it off again."""
        self._subscribers.append(subscriber)
        return lambda: self._subscribers.remove(subscriber)

    def emit(self, event: Event) -> None:
        now = self._clock()
        for subscriber in self._subscribers:
            subscriber(now, event)


# ---- the server -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready(Event):
    """All listeners are up."""

    name: ClassVar[str] = "ready"
    listening: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping(Event):
    name: ClassVar[str] = "stopping"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice(Event):
    """Something that an administrator should know: a default that is off, a weak setting."""

    name: ClassVar[str] = "notice"
    level: ClassVar[str] = "warn"
    text: str
    key: str = ""
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InternalFault(Event):
    """A fault of relayd itself, or of what it rests on (disk, DNS)."""

    name: ClassVar[str] = "fault"
    level: ClassVar[str] = "error"
    where: str
    detail: str
    session: str = ""
    queue_id: str = ""


# ---- inbound --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened(Event):
    name: ClassVar[str] = "session-opened"
    session: str
    client: str
    listener: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRefused(Event):
    """Refused at the greeting: access list, connection cap, failing DNS."""

    name: ClassVar[str] = "session-refused"
    session: str
    client: str
    listener: str
    reply: str
    rule: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsStarted(Event):
    """*distrust*: why a certificate that the client showed is not good, or not known to be."""

    name: ClassVar[str] = "tls-started"
    session: str
    version: str
    cipher: str
    distrust: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticated(Event):
    name: ClassVar[str] = "authenticated"
    session: str
    client: str
    user: str
    mechanism: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationFailed(Event):
    """*reason* is for the administrator alone (``52e wrong password``); the client reads *reply*."""

    name: ClassVar[str] = "authentication-failed"
    level: ClassVar[str] = "warn"
    session: str
    client: str
    user: str
    mechanism: str
    reason: str
    reply: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRefused(Event):
    """A MAIL, RCPT, DATA or whole message that was refused or deferred, and by which rule."""

    name: ClassVar[str] = "refused"
    session: str
    client: str
    command: str  # MAIL | RCPT | DATA | BDAT | ...
    reply: str
    rule: str = ""
    sender: str = ""
    recipient: str = ""
    user: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageAccepted(Event):
    """The message is safe; the client reads 250. *rewritten*: the sender that it named, where another stands in.
    *file*: what the file in the pickup folder was called."""

    name: ClassVar[str] = "accepted"
    session: str
    queue_id: str
    client: str
    sender: str
    recipients: int
    size: int
    user: str = ""
    rule: str = ""
    rewritten: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClosed(Event):
    name: ClassVar[str] = "session-closed"
    session: str
    client: str
    messages: int
    commands: int
    seconds: float
    why: str


# ---- queue and outbound ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered(Event):
    """*delay* runs from acceptance to the next hop's reply."""

    name: ClassVar[str] = "delivered"
    queue_id: str
    recipient: str
    host: str
    reply: str
    delay: float
    tls: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferred(Event):
    name: ClassVar[str] = "deferred"
    level: ClassVar[str] = "warn"
    queue_id: str
    recipient: str
    host: str
    reply: str
    next_at: float
    attempts: int
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounced(Event):
    name: ClassVar[str] = "bounced"
    level: ClassVar[str] = "warn"
    queue_id: str
    recipient: str
    host: str
    reply: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DsnQueued(Event):
    """A delivery status notification was made. *about* is the message it speaks of."""

    name: ClassVar[str] = "dsn-queued"
    queue_id: str
    about: str
    kind: str  # failure | delay | success | relayed
    recipient: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BadMail(Event):
    """A bounce that cannot go anywhere, or a file of the pickup folder that is no mail, was kept in badmail."""

    name: ClassVar[str] = "badmail"
    level: ClassVar[str] = "warn"
    queue_id: str
    file: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HopRests(Event):
    """A next hop failed, and is left alone for *seconds*; it may have nothing to do with any one message."""

    name: ClassVar[str] = "hop-rests"
    level: ClassVar[str] = "warn"
    host: str
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRefused(Event):
    """There is no token for a ``[[credential]]``: mail for its next hop waits."""

    name: ClassVar[str] = "token-refused"
    level: ClassVar[str] = "error"
    credential: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyUnfetched(Event):
    """The MTA-STS policy that *domain* announces could not be fetched, for the first time or anew.

    *kept_until*: an earlier one holds so long; None: there is none, and mail goes as to any other domain.
    """

    name: ClassVar[str] = "policy-unfetched"
    level: ClassVar[str] = "warn"
    domain: str
    reason: str
    kept_until: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsReport(Event):
    """A mail exchanger is not as its domain's MTA-STS policy says. *mode*: ``enforce``, it gets no mail; ``testing``,
    it gets mail all the same."""

    name: ClassVar[str] = "tls-report"
    level: ClassVar[str] = "warn"
    domain: str
    host: str
    mode: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerRests(Event):
    """A controller of the directory failed, and is left alone for *seconds*."""

    name: ClassVar[str] = "controller-rests"
    level: ClassVar[str] = "warn"
    host: str
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminAction(Event):
    """An administrator did something to the queue or the server."""

    name: ClassVar[str] = "admin"
    action: str
    who: str
    queue_id: str = ""
    detail: str = ""
