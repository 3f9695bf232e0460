"""A store, connections and folders that a test holds in its hands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from relayd.delivery import PathFault, Scheduler, Sent, Stage, Target
from relayd.events import Event, Events
from relayd.model import Fault, IPAddress, Path, Recipient, Reply, Sender
from relayd.policy import DomainTable
from relayd.queue.store import Attempt, Claim, MessageBody, MessageState, QueuedRecipient, Settlement
from relayd.resolver import NoSuchDomain
from relayd.settings import Settings

OK = Reply.of(250, "2.0.0", "queued")
BUSY = Reply.of(450, "4.2.1", "mailbox busy")
UNKNOWN = Reply.of(550, "5.1.1", "no such user")


@dataclass
class Sending:
    """One message on its way: what the pool was asked, and the Deferred that decides."""

    target: Target
    sender: Sender
    recipients: tuple[Recipient, ...]
    body: MessageBody
    extensions: frozenset[str] = frozenset({"DSN"})
    done: Deferred[Sent] = field(default_factory=Deferred)

    @property
    def to(self) -> list[str]:
        return [str(recipient.path) for recipient in self.recipients]

    def answer(self, *replies: Reply) -> None:
        replies = replies or (OK,)
        if len(replies) == 1:
            replies *= len(self.recipients)
        self.done.callback(Sent(tuple(replies), str(self.target), "TLSv1.3", self.extensions))

    def fault(self, stage: Stage = Stage.CONNECT, text: str = "No connection", code: int = 451) -> None:
        reply = Reply.of(451, "4.4.1", text)
        said = Reply.of(code, "", text) if stage is not Stage.CONNECT else None
        self.done.errback(PathFault(stage, reply, peer=str(self.target), said=said))


class Pool:
    """Takes messages; the test answers. With *answers*, it answers by itself."""

    def __init__(self) -> None:
        self.under_way: list[Sending] = []
        self.all: list[Sending] = []
        self.answers: Callable[[Sending], None] | None = None

    async def send(self, target: Target, sender: Sender, recipients: Sequence[Recipient], body: MessageBody) -> Sent:
        sending = Sending(target, sender, tuple(recipients), body)
        self.under_way.append(sending)
        self.all.append(sending)
        if self.answers is not None:
            self.answers(sending)
        try:
            return await sending.done
        finally:
            self.under_way.remove(sending)

    def to(self, host: str) -> list[Sending]:
        return [sending for sending in self.under_way if sending.target.host == host]


class Store:
    """A queue in memory with the contract's rules that the scheduler rests on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.waiting: list[tuple[float, Claim]] = []
        self.settlements: list[Settlement] = []
        self.claims: list[int] = []
        self.renewed: list[str] = []
        self.broken: Fault | None = None
        self.notices = 0

    def claim(self, limit: int) -> Deferred[tuple[Claim, ...]]:
        self.claims.append(limit)
        if self.broken is not None:
            return fail(self.broken)
        now = self._clock.seconds()
        due: list[Claim] = []
        left = []
        for at, claim in self.waiting:
            if at <= now and len(due) < limit:
                due.append(claim)
            else:
                left.append((at, claim))
        self.waiting = left
        return succeed(tuple(due))

    def next_due(self) -> Deferred[float | None]:
        return succeed(min((at for at, _ in self.waiting), default=None))

    def renew(self, claims: Sequence[Claim]) -> Deferred[None]:
        self.renewed += [claim.message_id for claim in claims]
        return succeed(None)

    def settle(self, settlement: Settlement) -> Deferred[tuple[Claim, ...]]:
        if self.broken is not None:
            return fail(self.broken)
        self.settlements.append(settlement)
        by_id = {queued.id: queued for queued in settlement.claim.recipients}
        for attempt in settlement.attempts:
            if attempt.state is MessageState.QUEUED:
                queued = by_id[attempt.recipient_id]
                again = replace(
                    queued,
                    attempts=queued.attempts + attempt.counts,
                    delay_notified=attempt.delay_notified,
                )
                self.waiting.append((attempt.next_at, replace(settlement.claim, recipients=(again,))))
        claims = []
        for notice in settlement.notices:
            self.notices += 1
            recipients = tuple(QueuedRecipient(-i, r) for i, r in enumerate(notice.envelope.recipients, 1))
            claims.append(
                Claim(
                    f"DSN{self.notices}",
                    notice.envelope.sender,
                    notice.envelope,
                    self._clock.seconds(),
                    recipients,
                    _Body(notice.octets),
                    60.0,
                )
            )
        return succeed(tuple(claims))

    @property
    def attempts(self) -> list[Attempt]:
        return [attempt for settlement in self.settlements for attempt in settlement.attempts]

    def states(self) -> dict[int, str]:
        """What the last settlement of each recipient said."""
        return {attempt.recipient_id: attempt.state.value for attempt in self.attempts}


@dataclass(frozen=True)
class _Body:
    octets: bytes

    @property
    def size(self) -> int:
        return len(self.octets)

    def open(self) -> Any:
        raise AssertionError("a message in memory is not opened")


class Drop:
    def __init__(self) -> None:
        self.files: list[tuple[str, str, list[str]]] = []
        self.fault: Fault | None = None

    def deliver(
        self, message_id: str, part: int, sender: Path, receivers: Sequence[Path], body: MessageBody
    ) -> Deferred[str]:
        if self.fault is not None:
            return fail(self.fault)
        self.files.append((message_id, str(sender), [str(path) for path in receivers]))
        return succeed(f"{message_id}-{part}.eml")

    def stop(self) -> Deferred[None]:
        return succeed(None)


class Badmail:
    def __init__(self) -> None:
        self.kept: list[tuple[str, Sequence[tuple[str, str]]]] = []
        self.fault: Fault | None = None

    def keep(self, claim: Claim, part: int, failed: Sequence[tuple[str, str]], now: float) -> Deferred[str]:
        if self.fault is not None:
            return fail(self.fault)
        self.kept.append((claim.message_id, failed))
        return succeed(f"/badmail/{claim.message_id}.eml")

    def stop(self) -> None:
        pass


class Lookups:
    """DNS: each host has an address of its own, unless the test says otherwise."""

    def __init__(self) -> None:
        self.exchangers: dict[str, Any] = {}
        self.hosts: dict[str, tuple[IPAddress, ...]] = {}
        self.asked: list[str] = []

    async def mx(self, domain: str) -> tuple[tuple[int, str], ...]:
        self.asked.append(domain)
        found = self.exchangers.get(domain, ((10, f"mx.{domain}"),))
        if isinstance(found, Fault):
            raise found
        if isinstance(found, Deferred):
            return await found  # type: ignore[no-any-return]
        return tuple(found)

    async def addresses(self, host: str) -> tuple[IPAddress, ...]:
        self.asked.append(host)
        if host.startswith("gone"):
            raise NoSuchDomain(host)
        number = len(self.hosts) + 1
        return self.hosts.setdefault(host, (ip_address(f"198.51.{number // 250}.{number % 250 + 1}"),))


class Rig:
    """A scheduler among fakes, on a clock that the test moves."""

    def __init__(self, settings: Settings, *, start: bool = True, now: float = 1000.0) -> None:
        self.clock = Clock()
        self.clock.advance(now)
        self.store = Store(self.clock)
        self.pool = Pool()
        self.drop = Drop()
        self.badmail = Badmail()
        self.lookups = Lookups()
        self.events: list[Event] = []
        events = Events(self.clock.seconds)
        events.subscribe(lambda at, event: self.events.append(event))
        fakes: Any = self
        self.scheduler = Scheduler(
            settings,
            DomainTable(settings.domains),
            fakes.store,
            events,
            self.lookups,
            fakes.clock,
            pool=self.pool,
            drop=fakes.drop,
            badmail=fakes.badmail,
        )
        if start:
            self.scheduler.startService()

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]

    def queue(self, *claims: Claim, at: float = 0.0) -> None:
        """Puts claims into the store, due at *at*."""
        self.store.waiting += [(at, claim) for claim in claims]
