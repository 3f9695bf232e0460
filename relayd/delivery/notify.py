"""Tells senders what became of their mail, and keeps what nobody can be told."""

from __future__ import annotations

import secrets
from dataclasses import replace

from twisted.python.failure import Failure

from relayd.delivery.badmail import BadmailFolder
from relayd.delivery.dsn import HEADER_LIMIT, DsnKind, Reporter, compose, returns_whole
from relayd.delivery.outcome import Judgement, kept_back
from relayd.delivery.outflow import InThread
from relayd.events import BadMail, Events, InternalFault
from relayd.model import Fault, Path
from relayd.queue.store import Claim, MessageBody, MessageState, NewMessage, Settlement
from relayd.settings import Settings


class Notifier:
    """Makes settlements whose bounces are told or kept before anything is final.

    :param in_thread: where messages that lie in files are read.
    """

    def __init__(self, settings: Settings, badmail: BadmailFolder, in_thread: InThread, events: Events) -> None:
        server, first = settings.server, settings.first_local
        default = Path("postmaster", first.name if first is not None else server.hostname)
        self._reporter = Reporter(server.hostname, server.postmaster or default)
        self._delivery = settings.delivery
        self._badmail = badmail
        self._in_thread = in_thread
        self._events = events

    async def tell(self, claim: Claim, judgement: Judgement, now: float) -> Settlement:
        """The settlement for *judgement*. What can be neither told nor kept is not final in it, but tried again."""
        attempts = judgement.attempts
        notices: list[NewMessage] = []
        if judgement.badmail:
            why = await self._keep(claim, judgement, now)
            if why:
                attempts = [kept_back(a, now, why) if a.state is MessageState.BADMAIL else a for a in attempts]
        try:
            for kind in judgement.reports:
                notices.append(await self._notice(claim, kind, judgement, now))
        except Exception as error:
            why = self._fault(claim, Failure(), error)
            notices = []
            judgement.reports.clear()
            attempts = [kept_back(a, now, why) if a.state is MessageState.BOUNCED else a for a in attempts]
        return Settlement(claim, tuple(attempts), tuple(notices))

    async def _keep(self, claim: Claim, judgement: Judgement, now: float) -> str:
        """Keeps the message; what hindered it."""
        failed = [(str(queued.recipient.path), str(reply)) for queued, reply in judgement.badmail]
        try:
            file = await self._badmail.keep(claim, judgement.badmail[0][0].id, failed, now)
        except Exception as error:
            return self._fault(claim, Failure(), error)
        self._events.emit(
            BadMail(queue_id=claim.message_id, file=file, reason="; ".join(dict.fromkeys(r for _, r in failed)))
        )
        return ""

    async def _notice(self, claim: Claim, kind: DsnKind, judgement: Judgement, now: float) -> NewMessage:
        origin = replace(claim.origin, sender=claim.sender)
        whole = returns_whole(claim.sender, kind, claim.body.size)
        octets = claim.body.octets
        if octets is None:
            limit = claim.body.size if whole else HEADER_LIMIT
            try:
                octets = await self._in_thread(lambda: _read(claim.body, limit))
            except OSError:  # an administrator dropped it, or the disk is sick: then the sender hears of it even so
                octets, whole = b"", False
        delivery = self._delivery
        return compose(
            kind,
            self._reporter,
            origin,
            judgement.reports[kind],
            octets,
            whole=whole,
            received_at=claim.received_at,
            now=now,
            token=secrets.token_hex(16),
            retry_until=claim.received_at + delivery.expire if kind is DsnKind.DELAY else 0.0,
            copy_to=delivery.bounce_copy_to if kind is DsnKind.FAILURE else None,
        )

    def _fault(self, claim: Claim, failure: Failure, error: Exception) -> str:
        detail = (error.detail or str(error)) if isinstance(error, Fault) else failure.getTraceback()
        self._events.emit(InternalFault(where="bounce", detail=detail, queue_id=claim.message_id))
        return f"the bounce could not be made: {error}"


def _read(body: MessageBody, limit: int) -> bytes:
    with body.open() as file:
        return file.read(limit)
