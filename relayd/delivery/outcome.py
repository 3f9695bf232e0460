"""What comes of an attempt: delivered, try again, or final; and who must be told.

Pure. :func:`judge` turns what the next hops said into the attempts to record, the notifications to send and the
recipients whose failure can be told to nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from relayd.delivery.dsn import DsnKind, Report, wanted
from relayd.events import Bounced, Deferred, Delivered, Event
from relayd.model import Reply
from relayd.queue.schedule import delay_notice_due, next_attempt
from relayd.queue.store import Attempt, Claim, MessageState, QueuedRecipient
from relayd.settings import Delivery

#: Seconds until a message is tried again whose bounce could be neither sent nor kept.
KEEP_AGAIN = 300.0


@dataclass(frozen=True, slots=True)
class Result:
    """What one attempt brought for one recipient.

    :ivar reply: the answer: 2xx, 4xx or 5xx.
    :ivar confirms: whether a positive answer's host sends a success notification itself (it offers DSN); None = it
        has delivered: the drop folder, or a mail store.
    :ivar counts: False = not really tried: the recipient goes back as it was.
    :ivar not_before: for what does not count: when to try again, seconds since the epoch.
    :ivar ours: that it was not tried is this relay's own doing: no reason to give it up, however old it is, nor to
        tell its sender.
    """

    queued: QueuedRecipient
    reply: Reply
    host: str = ""
    tls: str = ""
    detail: str = ""
    confirms: bool | None = True
    counts: bool = True
    not_before: float = 0.0
    ours: bool = False


@dataclass(slots=True)
class Judgement:
    """What is to be recorded and told.

    :ivar reports: the notifications to compose, by kind.
    :ivar badmail: failed recipients of a message without a sender, and what was said.
    """

    attempts: list[Attempt] = field(default_factory=list)
    reports: dict[DsnKind, list[Report]] = field(default_factory=dict)
    badmail: list[tuple[QueuedRecipient, Reply]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def plain(self) -> bool:
        """Whether recording the attempts is all there is to do."""
        return not self.reports and not self.badmail


def judge(claim: Claim, results: Sequence[Result], delivery: Delivery, now: float) -> Judgement:
    """Decides on all *results* of *claim* at the time *now*."""
    judgement = Judgement()
    for result in results:
        reply = result.reply
        if reply.positive:
            _delivered(claim, result, now, judgement)
        elif reply.permanent:
            _failed(claim, result, judgement, expired=False)
        else:
            _deferred(claim, result, delivery, now, judgement)
    return judgement


def _delivered(claim: Claim, result: Result, now: float, judgement: Judgement) -> None:
    queued = result.queued
    judgement.attempts.append(
        Attempt(
            queued.id,
            MessageState.DELIVERED,
            result.reply,
            result.host,
            result.tls,
            detail=result.detail,
            delay_notified=queued.delay_notified,
        )
    )
    judgement.events.append(
        Delivered(
            queue_id=claim.message_id,
            recipient=str(queued.recipient.path),
            host=result.host,
            reply=str(result.reply),
            delay=round(max(now - claim.received_at, 0.0), 3),
            tls=result.tls,
        )
    )
    # RFC 3461 5.2.2: who relays to a host without DSN answers for it; one that has DSN answers itself.
    if result.confirms is not True and "SUCCESS" in queued.recipient.notify and not claim.sender.path.null:
        kind = DsnKind.SUCCESS if result.confirms is None else DsnKind.RELAYED
        judgement.reports.setdefault(kind, []).append(Report(queued.recipient, result.reply, result.host))


def _failed(claim: Claim, result: Result, judgement: Judgement, *, expired: bool) -> None:
    queued = result.queued
    null = claim.sender.path.null
    judgement.attempts.append(
        Attempt(
            queued.id,
            MessageState.BADMAIL if null else MessageState.BOUNCED,
            result.reply,
            result.host,
            result.tls,
            detail=result.detail or ("expired" if expired else ""),
            delay_notified=queued.delay_notified,
            counts=result.counts,
        )
    )
    judgement.events.append(
        Bounced(
            queue_id=claim.message_id,
            recipient=str(queued.recipient.path),
            host=result.host,
            reply=str(result.reply),
            detail=" ".join(part for part in ("expired" if expired else "", result.detail) if part),
        )
    )
    if null:
        judgement.badmail.append((queued, result.reply))  # RFC 5321 6.1: a bounce never bounces
    elif wanted(queued.recipient, DsnKind.FAILURE):
        report = Report(queued.recipient, result.reply, result.host, expired)
        judgement.reports.setdefault(DsnKind.FAILURE, []).append(report)


def _deferred(claim: Claim, result: Result, delivery: Delivery, now: float, judgement: Judgement) -> None:
    queued = result.queued
    attempts = queued.attempts + (1 if result.counts else 0)
    scheduled = next_attempt(max(attempts, 1), claim.received_at, now, delivery.retry, delivery.expire)
    if scheduled is None and not result.ours:
        _failed(claim, result, judgement, expired=True)
        return
    next_at = scheduled if scheduled is not None and result.counts else result.not_before
    notify = (
        not result.ours
        and delay_notice_due(claim.received_at, now, delivery.delay_notice, queued.delay_notified)
        and wanted(queued.recipient, DsnKind.DELAY)
        and not claim.sender.path.null
    )
    judgement.attempts.append(
        Attempt(
            queued.id,
            MessageState.QUEUED,
            result.reply,
            result.host,
            result.tls,
            next_at=next_at,
            detail=result.detail,
            delay_notified=queued.delay_notified or notify,
            counts=result.counts,
        )
    )
    if result.counts:
        judgement.events.append(
            Deferred(
                queue_id=claim.message_id,
                recipient=str(queued.recipient.path),
                host=result.host,
                reply=str(result.reply),
                next_at=round(next_at, 3),
                attempts=attempts,
                detail=result.detail,
            )
        )
    if notify:
        report = Report(queued.recipient, result.reply, result.host)
        judgement.reports.setdefault(DsnKind.DELAY, []).append(report)


def kept_back(attempt: Attempt, now: float, why: str) -> Attempt:
    """*attempt* as one to be made again: its bounce could be neither sent nor kept, so it must not be final."""
    return Attempt(
        attempt.recipient_id,
        MessageState.QUEUED,
        attempt.reply,
        attempt.host,
        attempt.tls,
        next_at=now + KEEP_AGAIN,
        detail=why,
        delay_notified=attempt.delay_notified,
        counts=False,
    )
