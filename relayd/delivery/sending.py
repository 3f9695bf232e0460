"""One transaction, or one file in the drop folder: a job goes out, and each recipient has a result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from relayd.delivery.destination import LONGEST_REST, Destination, Health, Held, Job
from relayd.delivery.drop import DropFolder
from relayd.delivery.fault import PathFault, Stage
from relayd.delivery.mx import Hop
from relayd.delivery.next_hops import NextHops
from relayd.delivery.outcome import Result
from relayd.delivery.pool import Sent
from relayd.delivery.route import Route, RouteKind, Router
from relayd.delivery.target import Target
from relayd.events import Events, HopRests
from relayd.model import Fault, Recipient, Reply, Sender
from relayd.queue.store import Claim, MessageBody

#: How long the addresses of a destination are kept before the resolver (which knows their TTL) is asked again.
KEEP_HOPS = 30.0
#: Seconds to connect in where the same host has another address: a family that is dead here must not cost each first
#: message the whole time-out (RFC 8305 speaks of a quarter of a second; mail can wait, and three SYNs fit in).
HASTE = 5.0
#: How often a job goes back into its queue because its hop takes no more connections; then it waits its time.
REQUEUES = 3
#: So many messages a second come back to see whether a next hop still rests.
COME_BACK = 200.0
#: How long mail waits when this relay itself is short of something, in seconds.
SHORTAGE = 30.0


class Sends(Protocol):
    """What is needed of :class:`relayd.delivery.pool.ConnectionPool`."""

    async def send(
        self, target: Target, sender: Sender, recipients: Sequence[Recipient], body: MessageBody
    ) -> Sent: ...


class Signs(Protocol):
    """Who signs what leaves (DKIM)."""

    async def signed(self, claim: Claim) -> MessageBody:
        """The message as it goes out: with a signature on top, or as it is.

        :raises Fault: not for now.
        """


class Requeue(Exception):
    """The hop takes no more connections for now, but works: the job's place is at the head of its queue."""


def targets_of(route: Route, hops: Sequence[Hop], source_address: str = "") -> tuple[tuple[Hop, Target], ...]:
    """How to speak to each of *hops* for mail on *route*."""
    hosts = [hop.host for hop in hops]
    return tuple(
        (hop, _target(hop.via or route, hop, source_address, HASTE if hop.host in hosts[n:] else math.inf))
        for n, hop in enumerate(hops, 1)
    )


def _target(route: Route, hop: Hop, source_address: str, haste: float) -> Target:
    return Target(
        hop.host,
        hop.address,
        hop.port,
        hop.tls or route.tls,
        hop.name,
        also=hop.also,
        credential=route.credential,
        source_address=source_address,
        tlsa=hop.tlsa,
        lmtp=route.kind is RouteKind.LMTP,
        socket=hop.socket,
        haste=haste,
    )


class Sending:
    """Sends jobs.

    :param next_hops: finds the addresses of a route.
    :param signer: None = nothing is signed.
    """

    def __init__(
        self,
        router: Router,
        pool: Sends,
        drop: DropFolder,
        next_hops: NextHops,
        health: Health,
        events: Events,
        clock: Callable[[], float],
        source_address: str = "",
        signer: Signs | None = None,
    ) -> None:
        self._router = router
        self._pool = pool
        self._drop = drop
        self._next_hops = next_hops
        self._health = health
        self._events = events
        self._clock = clock
        self._source = source_address
        self._signer = signer

    async def send(self, destination: Destination, job: Job) -> list[Result]:
        """The results of one attempt, in the order of the job's recipients.

        :raises Requeue: see there.
        """
        if destination.route.kind is RouteKind.DROP:
            return await self._write(destination, job)
        now = self._clock()
        if destination.hops_until <= now:
            try:
                found = await self._next_hops.of(destination.route)
            except Fault as fault:
                return self._prevented(job, fault)
            destination.hops = targets_of(destination.route, found, self._source)
            destination.hops_until = now + KEEP_HOPS
        return await self._try(destination, job)

    async def _outgoing(self, route: Route, held: Held) -> MessageBody:
        if self._signer is None or route.local:
            return held.claim.body
        if held.signed is None:
            held.signed = await self._signer.signed(held.claim)
        return held.signed

    async def _write(self, destination: Destination, job: Job) -> list[Result]:
        claim = job.claim
        paths = [recipient.path for recipient in job.addressed]
        try:
            file = await self._drop.deliver(
                claim.message_id, job.recipients[0].id, claim.sender.path, paths, claim.body
            )
        except Fault as fault:
            return [Result(queued, fault.reply, detail=fault.detail) for queued in job.recipients]
        destination.succeeded(self._clock())
        reply = Reply.of(250, "2.0.0", f"Dropped as {file}")
        return [Result(queued, reply, confirms=None) for queued in job.recipients]

    async def _try(self, destination: Destination, job: Job) -> list[Result]:
        """Each hop in turn; what rests is passed over."""
        route, now = destination.route, self._clock()
        sender = self._router.outbound(job.claim.sender, route)
        try:
            body = await self._outgoing(route, job.held)
        except Fault as fault_of_ours:
            return self._prevented(job, fault_of_ours)
        tried = False
        fault: Fault | None = None
        peer = ""
        for hop, target in destination.hops:
            if self._health.resting(hop, now):
                continue
            tried = True
            try:
                sent = await self._pool.send(target, sender, job.addressed, body)
            except PathFault as caught:
                fault, peer = caught, caught.peer or str(hop)
                self._hop_failed(destination, job, hop, caught)
            except Fault as shortage:
                return self._prevented(job, shortage)
            else:
                self._hop_worked(destination, hop, sent)
                if hop.came_to is not None:
                    hop.came_to(sent.tls)
                return self._answered(route, job, sent)
        if not tried:
            return self.suspended(destination, job)
        assert fault is not None
        destination.failed(fault, peer)
        return [Result(queued, fault.reply, peer, detail=fault.detail) for queued in job.recipients]

    def suspended(self, destination: Destination, job: Job) -> list[Result]:
        """*job* untried, since every hop rests."""
        now = self._clock()
        hops = [hop for hop, _ in destination.hops]
        until = max(self._health.until(hops, now), now + 1.0)
        # All at once, a long queue would come and go again with each short rest.
        until = destination.back_at = min(max(destination.back_at + 1 / COME_BACK, until), until + LONGEST_REST)
        # A relay that was off for days must not bounce its queue because the network comes up a moment later.
        early = not self._health.dead(hops, now)
        known = destination.failure
        reply = known.reply if known is not None else Reply.of(451, "4.4.1", "The next hop does not answer")
        detail = "not tried: the next hop rests after a failure"
        host = destination.failure_host
        return [
            Result(queued, reply, host, detail=detail, counts=False, not_before=until, ours=early)
            for queued in job.recipients
        ]

    def _answered(self, route: Route, job: Job, sent: Sent) -> list[Result]:
        # A mail store without DSN has delivered, and will not say so.
        confirms = "DSN" in sent.extensions or (None if route.kind is RouteKind.LMTP else False)
        return [
            Result(queued, reply, sent.peer, sent.tls, confirms=confirms)
            for queued, reply in zip(job.recipients, sent.replies, strict=True)
        ]

    def _hop_worked(self, destination: Destination, hop: Hop, sent: Sent) -> None:
        now = self._clock()
        if sent.broken:
            destination.limit = max(1, destination.limit // 2)
            destination.progress_at = now
            return
        self._health.worked(hop, now)
        destination.succeeded(now)

    def _hop_failed(self, destination: Destination, job: Job, hop: Hop, fault: PathFault) -> None:
        """:raises Requeue: the hop works, for others."""
        now = self._clock()
        opening = fault.stage in (Stage.CONNECT, Stage.GREETING, Stage.EHLO) or (
            fault.said is not None and fault.said.code == 421
        )
        if opening and destination.active > 1 and self._health.alive(hop, now) and job.requeued < REQUEUES:
            destination.limit = max(1, min(destination.limit, destination.active) - 1)
            job.requeued += 1
            raise Requeue
        seconds = self._health.failed(hop, now)
        if seconds:
            self._events.emit(HopRests(host=fault.peer or str(hop), seconds=seconds, reason=fault.detail))

    def _prevented(self, job: Job, fault: Fault) -> list[Result]:
        """DNS had no hop, or this relay is short of something."""
        # A full thread pool is our own shortage, and no attempt.
        short = fault.reply.enhanced == "4.3.2"
        return [
            Result(
                queued,
                fault.reply,
                detail=fault.detail,
                counts=not short,
                not_before=self._clock() + SHORTAGE,
            )
            for queued in job.recipients
        ]
