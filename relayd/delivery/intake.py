"""Claims from the store: when something is due and there is room, and not more often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from relayd.queue.store import Claim, Store

#: Recipients claimed at once, and the least room that makes it worth while.
BATCH, LEAST_ROOM = 200, 50
#: Seconds between calls for room, while there is none.
ROOM_AGAIN = 0.5
#: Seconds between looks at the queue, when nothing wakes it: at least, and at most (clocks may jump).
SHORTEST_SLEEP, LONGEST_SLEEP = 0.25, 300.0
#: Seconds until a store that failed is asked again, doubled each time up to the second.
AGAIN, LONGEST_AGAIN = 1.0, 60.0


class Intake:
    """Keeps whoever delivers supplied.

    :param room: how many claims may come.
    :param take: takes one.
    :param short: called when more is due than there is room for; may make some.
    :param fault: told of a store that fails.
    :param ended: called when it was stopped during a claim, and that claim has come to its end.
    :ivar claiming: whether a claim is on its way.
    """

    def __init__(
        self,
        store: Store,
        reactor: Any,
        *,
        room: Callable[[], int],
        take: Callable[[Claim], None],
        short: Callable[[], None],
        fault: Callable[[str, Failure], None],
        ended: Callable[[], None],
    ) -> None:
        self._store = store
        self._reactor = reactor
        self._room = room
        self._take = take
        self._short = short
        self._fault = fault
        self._ended = ended
        self._running = False
        self.claiming = False
        self._more = False
        self._short_at = 0.0
        self._due: IDelayedCall | None = None
        self._due_at = 0.0
        self._again = AGAIN

    def start(self) -> None:
        self._running = True
        self.wake()

    def stop(self) -> None:
        self._running = False
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def wake(self) -> None:
        """Something is due."""
        self._more = True
        self.room_made()

    def room_made(self) -> None:
        """Something was settled: claims more, if more is known to be due."""
        if not self._more or self.claiming or not self._running:
            return
        room = min(self._room(), BATCH)
        if room < LEAST_ROOM:
            now = self._reactor.seconds()
            if now - self._short_at >= ROOM_AGAIN:
                self._short_at = now
                self._short()
            self.wake_at(now + ROOM_AGAIN)
            return
        self.claiming = True
        self._more = False  # a wake() that comes meanwhile sets it again
        self._store.claim(room).addCallbacks(self._claimed, self._failed)

    def wake_at(self, at: float) -> None:
        """Something is due at *at*, in seconds since the epoch."""
        if not self._running:
            return
        now = self._reactor.seconds()
        at = min(max(at, now), now + LONGEST_SLEEP)
        if self._due is not None:
            if self._due_at <= at:
                return
            self._due.cancel()
        self._due_at = at
        self._due = self._reactor.callLater(at - now, self._woken)

    def _woken(self) -> None:
        self._due = None
        self.wake()

    def _claimed(self, claims: tuple[Claim, ...]) -> None:
        self.claiming = False
        self._again = AGAIN
        for claim in claims:
            self._take(claim)
        if not self._running:
            self._ended()
            return
        if claims:
            self._more = True
        if self._more:
            self.room_made()
        else:
            self._store.next_due().addCallbacks(self._next_due, self._failed)

    def _next_due(self, at: float | None) -> None:
        now = self._reactor.seconds()
        # What is due, and yet was not to be had a moment ago, must not make this a busy loop.
        self.wake_at(now + LONGEST_SLEEP if at is None else max(at, now + SHORTEST_SLEEP))

    def _failed(self, failure: Failure) -> None:
        self.claiming = False
        self._fault("claim", failure)
        if not self._running:
            self._ended()
        self.wake_at(self._reactor.seconds() + self._again)
        self._again = min(self._again * 2, LONGEST_AGAIN)
