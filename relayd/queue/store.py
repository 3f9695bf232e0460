"""What a queue must do: the contract between those who fill it, those who empty it, and its back ends.

A message is written into a :class:`Draft` and becomes part of the queue by :meth:`Draft.commit`, whose Deferred fires
only when message and envelope would survive a power cut (design, promise 1). Whoever delivers holds
:class:`Claim` values: a claim is a lease on some recipients of one message; it is settled, or it ends by itself and
somebody else gets the work. So delivery is at least once.

Faults: every Deferred here may fail with :class:`relayd.model.Fault` that carries 452 4.3.1 (full) or 451 4.3.0
(locked, read-only, I/O error, thread pool full); the store goes on serving what it can.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from twisted.internet.defer import Deferred

from relayd.model import Envelope, Path, Recipient, Reply, Sender

#: Bodies up to this size are held in memory and stored in the database row, larger ones in a file.
SMALL_BODY = 256 * 1024


class MessageState(enum.Enum):
    """Where a recipient of a message stands."""

    QUEUED = "queued"  # waits, or is being delivered
    HELD = "held"  # an administrator stopped it
    DELIVERED = "delivered"
    BOUNCED = "bounced"  # final failure; the notice, if one was due, was queued in the same commit
    DROPPED = "dropped"  # by an administrator
    BADMAIL = "badmail"  # a bounce that could not go anywhere; kept as a file

    @property
    def final(self) -> bool:
        return self not in (MessageState.QUEUED, MessageState.HELD)


class MessageBody(Protocol):
    """The octets of a stored message: header and body, strict CRLF, ending in CRLF, never dot-stuffed."""

    @property
    def size(self) -> int: ...

    @property
    def octets(self) -> bytes | None:
        """The whole message, where it is small; None where it lies in a file."""

    def open(self) -> BinaryIO:
        """The message as a file to read from its start. May block: for a thread."""


@dataclass(frozen=True, slots=True)
class QueuedRecipient:
    """One recipient of a claimed message. *id* is the store's key for settling it."""

    id: int
    recipient: Recipient
    attempts: int = 0
    delay_notified: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease on *recipients* of one message.

    :ivar message_id: as people see it: short, unique for ever, sortable by time.
    :ivar origin: the envelope without its recipients (the ones to work on are in *recipients*).
    :ivar lease_until: when the lease ends unless it is renewed.
    """

    message_id: str
    sender: Sender
    origin: Envelope
    received_at: float
    recipients: tuple[QueuedRecipient, ...]
    body: MessageBody
    lease_until: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one recipient in one attempt.

    :ivar state: QUEUED to try again at *next_at*; else final.
    :ivar reply: the next hop's reply, or one that relayd made.
    :ivar host: who gave it, as ``host[address]:port``; empty where no host was reached.
    :ivar counts: False gives the recipient back untried (shutdown, no connection free): *attempts* stays.
    """

    recipient_id: int
    state: MessageState
    reply: Reply
    host: str = ""
    tls: str = ""
    next_at: float = 0.0
    detail: str = ""
    delay_notified: bool = False
    counts: bool = True


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message that relayd itself makes (a DSN), queued in the same commit as the settlement that causes it."""

    envelope: Envelope
    octets: bytes


@dataclass(frozen=True, slots=True)
class Settlement:
    """What came of a claim, or of a part of it. *notices* are queued in the same commit, already claimed."""

    claim: Claim
    attempts: tuple[Attempt, ...]
    notices: tuple[NewMessage, ...] = ()


@dataclass(frozen=True, slots=True)
class Filter:
    """Which messages an administrator means: of those that are not finished, unless it names *ids* or a final *state*.

    Empty fields do not restrict. *sender* (``<>``: the null one), *recipient* and *domain* are globs of ``*`` and
    ``?``; what is said of recipients holds for one and the same. *limit* is for lists alone; 0 = none.
    """

    ids: tuple[str, ...] = ()
    sender: str = ""
    recipient: str = ""
    domain: str = ""
    state: MessageState | None = None
    older: float = 0.0  # seconds since it was received
    error: str = ""  # a part of the last reply's text
    limit: int = 100


@dataclass(frozen=True, slots=True)
class RecipientEntry:
    """A recipient as ``relayctl queue`` shows it. *next_at* is 0 while it is tried or held, and when it is final."""

    path: Path
    state: MessageState
    attempts: int
    next_at: float
    last_reply: str
    last_host: str


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A message as ``relayctl queue`` shows it."""

    message_id: str
    envelope: Envelope
    received_at: float
    size: int
    recipients: tuple[RecipientEntry, ...]


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One thing that happened to a message: accepted, an attempt, an administrator's act."""

    at: float
    what: str  # accepted | delivered | deferred | bounced | dropped | badmail | retry | held | released | dsn
    recipient: str = ""
    reply: str = ""
    host: str = ""
    tls: str = ""
    detail: str = ""


class Draft(Protocol):
    """A message while it arrives."""

    @property
    def message_id(self) -> str: ...

    @property
    def size(self) -> int:
        """Octets written so far."""

    def write(self, octets: bytes) -> Deferred[None] | None:
        """Adds *octets*. A Deferred means: write no more until it has fired (the octets go to a file)."""

    def commit(self, envelope: Envelope, *, claimed: bool) -> Deferred[Claim | None]:
        """Makes the message part of the queue. Fires when it is safe.

        With *claimed* the caller gets the lease on all recipients, and delivers from memory; else the result is None
        and a later :meth:`Store.claim` finds it.
        """

    def abandon(self) -> None:
        """Forgets the message. May be called at any time before :meth:`commit`, and more than once."""


class Store(Protocol):
    """A queue. All methods are for the reactor's thread; none blocks."""

    def open(self) -> Deferred[None]:
        """Takes possession of the queue; claims that a dead predecessor held become free."""

    def close(self) -> Deferred[None]:
        """Commits what waits, and lets go."""

    def draft(self) -> Draft: ...

    def claim(self, limit: int) -> Deferred[tuple[Claim, ...]]:
        """Leases on up to *limit* recipients that are due, the longest due first."""

    def renew(self, claims: Sequence[Claim]) -> Deferred[None]:
        """Prolongs leases."""

    def settle(self, settlement: Settlement) -> Deferred[tuple[Claim, ...]]:
        """Records what came of a claim. Fires when it is safe, with the claims on its notices."""

    def next_due(self) -> Deferred[float | None]:
        """When the next unclaimed recipient is due; None where nothing waits."""

    def list(self, wanted: Filter) -> Deferred[tuple[QueueEntry, ...]]: ...

    def show(self, message_id: str) -> Deferred[QueueEntry | None]: ...

    def body(self, message_id: str) -> Deferred[MessageBody | None]:
        """The message itself; None once it is finished, or for an unknown id."""

    def history(self, message_id: str) -> Deferred[tuple[HistoryEntry, ...]]: ...

    def retry(self, wanted: Filter, who: str) -> Deferred[int]:
        """Makes what waits due now; how many messages that were."""

    def drop(self, wanted: Filter, who: str) -> Deferred[int]:
        """Takes messages out of the queue for good, without a notice; how many."""

    def counts(self) -> Deferred[dict[str, int]]:
        """Recipients by state: ``queued`` (due, or being tried), ``deferred`` (queued and not due), ``held``;
        and ``messages`` that are not finished."""
