"""From what an attempt brought to what the queue knows of it: judged, told to whom it concerns, recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from relayd.delivery.destination import Held
from relayd.delivery.notify import Notifier
from relayd.delivery.outcome import Judgement, Result, judge
from relayd.events import DsnQueued, Events, InternalFault
from relayd.model import Fault
from relayd.queue.store import Attempt, Claim, MessageState, Settlement, Store
from relayd.settings import Delivery

#: Seconds until a store that could not record is told again, doubled each time up to the second.
AGAIN, LONGEST_AGAIN = 1.0, 60.0
#: Seconds until a message is tried again whose delivery failed by a fault of relayd's own.
AFTER_FAULT = 300.0


class Settling:
    """Settles what was sent. Whatever goes wrong here, no claim stays stuck.

    :param settled: is told what was recorded, with the notifications that came of it, claimed for this process.
    :param gives_up: whether a store that cannot record is no longer told again; *left* is told of the claim then.
    """

    def __init__(
        self,
        store: Store,
        notifier: Notifier,
        events: Events,
        reactor: Any,
        delivery: Delivery,
        *,
        settled: Callable[[Held, Settlement, tuple[Claim, ...]], None],
        gives_up: Callable[[], bool],
        left: Callable[[Held], None],
    ) -> None:
        self._store = store
        self._notifier = notifier
        self._events = events
        self._reactor = reactor
        self._delivery = delivery
        self._settled = settled
        self._gives_up = gives_up
        self._left = left

    def settle(self, held: Held, results: Sequence[Result]) -> None:
        """Records *results*, and tells whom it concerns."""
        claim = held.claim
        now = self._reactor.seconds()
        try:
            judgement = judge(claim, results, self._delivery, now)
            for event in judgement.events:
                self._events.emit(event)
        except Exception:
            self._unjudged(Failure(), held, results)
            return
        if judgement.plain:
            self._record(held, Settlement(claim, tuple(judgement.attempts)), judgement)
            return
        telling = Deferred.fromCoroutine(self._notifier.tell(claim, judgement, now))
        telling.addCallbacks(
            lambda settlement: self._record(held, settlement, judgement),
            self._unjudged,
            errbackArgs=(held, results),
        )

    def _unjudged(self, failure: Failure, held: Held, results: Sequence[Result]) -> None:
        self.fault(held.claim, failure)
        at = self._reactor.seconds() + AFTER_FAULT
        attempts = tuple(
            Attempt(r.queued.id, MessageState.DELIVERED, r.reply, r.host, r.tls)
            if r.reply.positive
            else Attempt(r.queued.id, MessageState.QUEUED, r.reply, r.host, r.tls, next_at=at)
            for r in results
        )
        self._record(held, Settlement(held.claim, attempts), Judgement())

    def _record(self, held: Held, settlement: Settlement, judgement: Judgement, again: float = AGAIN) -> None:
        try:
            recorded = self._store.settle(settlement)
        except Exception:
            self._unrecorded(Failure(), held, settlement, judgement, again)
            return
        recorded.addCallbacks(
            self._recorded,
            self._unrecorded,
            callbackArgs=(held, settlement, judgement),
            errbackArgs=(held, settlement, judgement, again),
        )

    def _recorded(self, notices: tuple[Claim, ...], held: Held, settlement: Settlement, judgement: Judgement) -> None:
        for kind, notice, queued in zip(judgement.reports, settlement.notices, notices, strict=False):
            self._events.emit(
                DsnQueued(
                    queue_id=queued.message_id,
                    about=settlement.claim.message_id,
                    kind=kind.value,
                    recipient=str(notice.envelope.recipients[0].path),
                )
            )
        self._settled(held, settlement, notices)

    def _unrecorded(
        self, failure: Failure, held: Held, settlement: Settlement, judgement: Judgement, again: float
    ) -> None:
        """The store could not take it. It is told until it can: what was sent must not be sent twice."""
        self.store_fault("settle", failure)
        if self._gives_up():
            self._left(held)  # the lease ends by itself
            return
        self._reactor.callLater(again, self._record, held, settlement, judgement, min(again * 2, LONGEST_AGAIN))

    def fault(self, claim: Claim | None, failure: Failure) -> None:
        """A fault of relayd's own, in the delivery of *claim*."""
        queue_id = claim.message_id if claim is not None else ""
        self._events.emit(InternalFault(where="delivery", detail=failure.getTraceback(), queue_id=queue_id))

    def store_fault(self, what: str, failure: Failure) -> None:
        """The store could not do *what*."""
        error = failure.value
        detail = (error.detail or str(error)) if isinstance(error, Fault) else failure.getTraceback()
        self._events.emit(InternalFault(where=f"queue: {what}", detail=detail))
