"""What is known of the ways out: what waits for each, how much it bears, which hops are dead for now."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from twisted.internet.interfaces import IDelayedCall

from relayd.delivery.mx import Hop
from relayd.delivery.pace import Pace
from relayd.delivery.route import Route
from relayd.delivery.target import Target
from relayd.model import Fault, Recipient
from relayd.queue.store import Claim, MessageBody, QueuedRecipient

#: Transactions at once to a destination of which nothing is known.
FIRST_CONCURRENCY = 5
#: How long a hop rests after its first failure, and at most, in seconds. Each failure doubles it.
REST, LONGEST_REST = 5.0, 300.0
#: A hop that worked within these seconds is not dead when one connection fails: it has too many of them.
ALIVE = 10.0
#: A destination is stalled when nothing came back from it for these seconds.
STALLED = 10.0
#: How long mail for a stalled or slow destination waits outside, at least and at most, in seconds.
PATIENCE, LONGEST_PATIENCE = 60.0, 900.0
#: A destination is slow when what waits here for it takes longer than these seconds.
DRAIN = 60.0


@dataclass(slots=True, eq=False)
class Held:
    """A claim that the scheduler holds, with how many jobs of it are open and since when its lease runs.

    :ivar waiting: ids of the recipients of which nothing is recorded yet.
    :ivar signed: the message with its signature, once it was signed.
    """

    claim: Claim
    open: int
    leased_at: float
    octets: int
    waiting: set[int]
    signed: MessageBody | None = None


@dataclass(slots=True, eq=False)
class Job:
    """Recipients of one message that share a transaction.

    :ivar addressed: what to say in RCPT for each of *recipients*.
    """

    held: Held
    recipients: Sequence[QueuedRecipient]
    addressed: Sequence[Recipient]
    requeued: int = 0

    @property
    def claim(self) -> Claim:
        return self.held.claim


@dataclass(slots=True, eq=False)
class Destination:
    """A queue, first in first out, and the feedback that sets how many transactions run at once.

    :ivar limit: transactions at once: grows by one with each success, is halved by each failure.
    :ivar listed: it stands in the scheduler's round.
    :ivar succeeded_at: when a transaction succeeded last.
    :ivar served: jobs that came to an end since the last look; *rate*: jobs a second, over the last *looks*.
    :ivar away: jobs that were sent away and are thought to wait outside.
    :ivar hops: what to try, in order; looked up again after *hops_until*.
    :ivar pace: how many messages its route takes in a time; None = any number.
    :ivar waking: a call stands out for when its pace has room again.
    :ivar back_at: when the last of what was sent away because all hops rest comes back.
    """

    route: Route
    limit: int
    queue: deque[Job] = field(default_factory=deque)
    active: int = 0
    listed: bool = False
    hops: tuple[tuple[Hop, Target], ...] = ()
    hops_until: float = 0.0
    progress_at: float = 0.0
    succeeded_at: float = -math.inf
    served: int = 0
    rate: float = 0.0
    looks: int = 0
    away: int = 0
    patience: float = PATIENCE
    back_at: float = 0.0
    failure: Fault | None = None
    failure_host: str = ""
    pace: Pace | None = None
    waking: IDelayedCall | None = None

    @classmethod
    def of(cls, route: Route, now: float, pace: Pace | None = None) -> Destination:
        return cls(route, min(route.first or FIRST_CONCURRENCY, route.connections), progress_at=now, pace=pace)

    @property
    def free(self) -> bool:
        return self.active < self.limit

    @property
    def idle(self) -> bool:
        return not self.queue and not self.active

    def stalled(self, now: float) -> bool:
        return self.active > 0 and now - self.progress_at > STALLED

    def trusted(self, now: float) -> bool:
        """Whether it may have more connections where these are scarce: it works, or has none yet that shows it."""
        return not self.active or now - self.succeeded_at <= STALLED

    def succeeded(self, now: float) -> None:
        self.limit = min(self.limit + 1, self.route.connections)
        self.progress_at = self.succeeded_at = now
        self.patience = PATIENCE
        self.failure = None

    def failed(self, fault: Fault, host: str) -> None:
        self.limit = max(1, self.limit // 2)
        self.failure, self.failure_host = fault, host
        self.hops_until = 0.0

    def bears(self, now: float, share: int) -> int:
        """How many jobs may wait here for it when others need the room.

        :param share: what every destination may keep.
        """
        if self.stalled(now):
            return share
        # Of a destination that has just begun nothing is known.
        return max(share, int(self.rate * DRAIN)) if self.looks >= 2 else max(share, len(self.queue))

    def send_away(self, now: float) -> float:
        """How long the next mail waits outside that there is no room for here, in seconds."""
        self.away += 1
        if self.stalled(now):
            return self.patience
        return min(max(self.away / max(self.rate, 0.1), PATIENCE), LONGEST_PATIENCE)

    def look(self, seconds: float) -> None:
        """Measures how fast it is, once every *seconds*."""
        if not self.active and not self.queue:
            self.looks = self.away = self.served = 0
            self.rate = 0.0
            return
        self.rate = (self.rate if self.looks else self.served / seconds) / 2 + self.served / seconds / 2
        self.away = max(self.away - self.served, 0)
        self.looks += 1
        self.served = 0


@dataclass(slots=True)
class _Rest:
    since: float  # the first failure
    until: float
    failures: int


class Health:
    """Which hops rest, since the last tries failed; and which worked lately. Shared by all destinations.

    :param longest: the longest rest, in seconds.
    """

    def __init__(self, longest: float = LONGEST_REST) -> None:
        self._longest = longest
        self._rests: dict[Hop, _Rest] = {}
        self._worked: dict[Hop, float] = {}

    def worked(self, hop: Hop, now: float) -> None:
        self._worked[hop] = now
        if self._rests:
            self._rests.pop(hop, None)

    def alive(self, hop: Hop, now: float) -> bool:
        """Whether *hop* worked a moment ago."""
        return now - self._worked.get(hop, -ALIVE) < ALIVE

    def failed(self, hop: Hop, now: float) -> float:
        """*hop* failed. How long it rests, in seconds, where that begins now; else 0."""
        rest = self._rests.setdefault(hop, _Rest(now, 0.0, 0))
        if self._left(hop, now):
            return 0.0  # others that were under way when it failed
        seconds = min(REST * 2.0**rest.failures, self._longest)
        rest.failures = min(rest.failures + 1, 16)
        rest.until = now + seconds
        self._worked.pop(hop, None)
        return seconds

    def resting(self, hop: Hop, now: float) -> bool:
        return self._left(hop, now) > 0

    def until(self, hops: Iterable[Hop], now: float) -> float:
        """When the first of *hops* may be tried; *now* = at once."""
        return now + min((self._left(hop, now) for hop in hops), default=0.0)

    def dead(self, hops: Iterable[Hop], now: float) -> bool:
        """Whether each of *hops* has failed for so long that mail may be given up because of it."""
        return all(hop in self._rests and now - self._rests[hop].since >= self._longest for hop in hops)

    def _left(self, hop: Hop, now: float) -> float:
        """Seconds that *hop* still rests."""
        rest = self._rests.get(hop)
        if rest is None:
            return 0.0
        left = rest.until - now
        return left if 0 < left <= self._longest else 0.0  # longer: the clock was set back

    def refresh(self) -> None:
        """Every hop may be tried at once."""
        for rest in self._rests.values():
            rest.until = 0.0

    def forget(self, now: float) -> None:
        """Drops what is too old to matter."""
        self._worked = {hop: at for hop, at in self._worked.items() if now - at < ALIVE}
        self._rests = {hop: rest for hop, rest in self._rests.items() if now - rest.until < 2 * LONGEST_REST}
