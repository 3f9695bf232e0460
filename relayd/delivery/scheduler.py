"""Who is delivered to next: takes claims, sorts them by destination, and sends.

Each destination has a queue of its own and a number of transactions at once that grows with success; destinations
take turns. So a slow or dead one holds up nobody else. A worker is a coroutine that sends one job after the other
to one destination; there is no timer and no look-up per message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from relayd.delivery.badmail import BadmailFolder
from relayd.delivery.destination import LONGEST_PATIENCE, LONGEST_REST, Destination, Health, Held, Job
from relayd.delivery.drop import DropFolder
from relayd.delivery.intake import LEAST_ROOM, Intake
from relayd.delivery.mx import Lookups
from relayd.delivery.next_hops import NextHops
from relayd.delivery.notify import Notifier
from relayd.delivery.outcome import Result
from relayd.delivery.pace import Pace
from relayd.delivery.pool import ConnectionPool
from relayd.delivery.route import Route, Router
from relayd.delivery.sasl import Authenticator
from relayd.delivery.sending import Requeue, Sending, Sends, Signs
from relayd.delivery.settling import AFTER_FAULT, Settling
from relayd.delivery.target import Timeouts
from relayd.delivery.tls import ClientTls
from relayd.delivery.tls_policy import TlsPolicy
from relayd.events import Events
from relayd.model import Recipient, Reply
from relayd.policy import DomainTable
from relayd.queue.store import Claim, MessageState, QueuedRecipient, Settlement, Store
from relayd.settings import Settings
from relayd.threads import BoundedPool

#: Claims held at most, and octets of their messages in memory.
CAPACITY, MEMORY = 2000, 128 * 1024**2
#: Jobs that a stalled destination may keep here.
SHARE = 250
#: Recipients of one transaction (RFC 5321 4.5.3.1.8: every server takes 100).
RECIPIENTS = 100
#: Seconds between looks at leases and stalled destinations; age at which a lease is renewed.
TICK, RENEW = 5.0, 20.0
#: Seconds that a stop waits for what is under way, and then for the queue to record it.
GRACE = 5.0

_STOPPING = Reply.of(451, "4.3.2", "The relay stopped before it was tried")
_BUSY = Reply.of(451, "4.4.5", "The next hop is slow; more mail for it waits")
_INTERNAL = Reply.of(451, "4.3.0", "Internal error, the message will be tried again")


class Scheduler(Service):
    """Delivers what the store holds.

    :param domains: the policy's domain table.
    :param pool: connections to next hops; made from *settings* when not given, as are *drop* and *badmail*.
    :param authenticator: for next hops with a credential; None = passwords alone.
    :param tls_policy: what next hops publish of their TLS.
    :param signer: signs what leaves; None = nothing is signed.
    """

    def __init__(
        self,
        settings: Settings,
        domains: DomainTable,
        store: Store,
        events: Events,
        resolver: Lookups,
        reactor: Any,
        *,
        pool: Sends | None = None,
        authenticator: Authenticator | None = None,
        tls_policy: TlsPolicy | None = None,
        signer: Signs | None = None,
        drop: DropFolder | None = None,
        badmail: BadmailFolder | None = None,
    ) -> None:
        delivery = settings.delivery
        self._delivery = delivery
        self._store = store
        self._events = events
        self._reactor = reactor
        self._clock = reactor.seconds
        self._router = Router(domains, settings)
        self._files = BoundedPool("bodies", reactor, threads=4, waiting=4 * delivery.connections)
        self._own_pool: ConnectionPool | None = None
        if pool is None:
            pool = self._own_pool = ConnectionPool(
                reactor,
                hostname=settings.server.hostname,
                tls=ClientTls.of(delivery),
                in_thread=self._files.run,
                authenticator=authenticator,
                timeouts=Timeouts.of(delivery),
                messages=delivery.messages_per_connection,
                most=delivery.connections,
            )
        self._drop = drop or DropFolder(settings.server.state / "drop", reactor)
        self._badmail = badmail or BadmailFolder(settings.server.state / "badmail", reactor)
        self._settling = Settling(
            store,
            Notifier(settings, self._badmail, self._files.run, events),
            events,
            reactor,
            delivery,
            settled=self._settled,
            gives_up=lambda: not self.running,
            left=self._release,
        )
        # A rest longer than the administrator's own waits would thwart them.
        self._health = Health(min(LONGEST_REST, max(min(delivery.retry), 1.0)))
        self._sending = Sending(
            self._router,
            pool,
            self._drop,
            NextHops(resolver, tls_policy or TlsPolicy(), settings.server.hostname, settings.listeners, delivery.port),
            self._health,
            events,
            self._clock,
            delivery.source_address,
            signer,
        )
        self._destinations: dict[str, Destination] = {}
        self._paces: dict[str, Pace] = {}
        self._round: deque[Destination] = deque()
        self._held: set[Held] = set()
        self._by_id: dict[str, list[Held]] = {}
        self._octets = 0
        self._active = 0
        self._pumping = False
        self._workers: set[Deferred[None]] = set()
        self._ticking: IDelayedCall | None = None
        self._empty: Deferred[None] | None = None
        self._intake = Intake(
            store,
            reactor,
            room=lambda: self.room,
            take=self._take_due,
            short=self._trim,
            fault=self._settling.store_fault,
            ended=self._wait_over,
        )

    # ---- for those who fill the queue and those who look after it ----------------------------------------------

    @property
    def room(self) -> int:
        """How many more claims it will hold."""
        if not self.running or self._octets >= MEMORY:
            return 0
        return max(CAPACITY - len(self._held), 0)

    @property
    def active(self) -> int:
        """Transactions under way."""
        return self._active

    def take(self, claim: Claim) -> None:
        """Delivers *claim*, whose lease the caller hands over."""
        octets = claim.body.octets
        waiting = {queued.id for queued in claim.recipients}
        held = Held(claim, 0, self._clock(), len(octets) if octets is not None else 0, waiting)
        self._held.add(held)
        self._by_id.setdefault(claim.message_id, []).append(held)
        self._octets += held.octets
        if self._ticking is None and self.running:
            self._ticking = self._reactor.callLater(TICK, self._tick)
        try:
            jobs = self._jobs(held)
        except Exception:
            held.open = 1
            self._settling.fault(claim, Failure())
            self._settling.settle(held, self._untried(claim.recipients, _INTERNAL, AFTER_FAULT))
            return
        held.open = len(jobs)
        if not jobs:
            self._release(held)
        if not self.running:
            for _, job in jobs:
                self._give_back(job, _STOPPING, 0.0)
            return
        for destination, job in jobs:
            self._enqueue(destination, job)
        self._pump()

    def wake(self) -> None:
        """Something in the store is due: look now."""
        self._intake.wake()

    def retry(self) -> None:
        """An administrator wants mail tried now: next hops that rest are tried at once, too."""
        self._health.refresh()
        self.wake()

    # ---- service ------------------------------------------------------------------------------------------------

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._intake.start()

    def stopService(self) -> Deferred[None]:
        """Finishes what is under way, for a few seconds; gives all the rest back to the queue."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._intake.stop()
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        for destination in list(self._destinations.values()):
            if destination.waking is not None:
                destination.waking.cancel()
            while destination.queue:
                self._give_back(destination.queue.popleft(), _STOPPING, 0.0)
        await self._until_empty(lambda: bool(self._workers))
        for worker in list(self._workers):
            worker.cancel()
        await self._until_empty(lambda: bool(self._held) or self._intake.claiming)
        if self._own_pool is not None:
            await self._own_pool.close()
        await self._drop.stop()
        self._badmail.stop()
        self._files.stop()

    async def _until_empty(self, busy: Any) -> None:
        """Waits while *busy*, GRACE seconds at most."""
        deadline = self._clock() + GRACE
        while busy() and self._clock() < deadline:
            self._empty = Deferred()
            timer = self._reactor.callLater(deadline - self._clock(), self._wait_over)
            await self._empty
            if timer.active():
                timer.cancel()

    def _wait_over(self) -> None:
        waiting, self._empty = self._empty, None
        if waiting is not None:
            waiting.callback(None)

    # ---- claims in ------------------------------------------------------------------------------------------------

    def _take_due(self, claim: Claim) -> None:
        """Delivers what the store says is due, but for what is under way here already.

        A lease ends before its delivery when the clock jumps (a machine that slept), or when the store could not
        renew it. That must not send a message twice, nor one whose result waits for the disk.
        """
        if (others := self._by_id.get(claim.message_id)) is not None:
            held: set[int] = set().union(*(other.waiting for other in others))
            recipients = tuple(queued for queued in claim.recipients if queued.id not in held)
            if not recipients:
                return
            claim = replace(claim, recipients=recipients)
        self.take(claim)

    def _jobs(self, held: Held) -> list[tuple[Destination, Job]]:
        """The recipients of a claim, by destination, up to 100 a job."""
        claim = held.claim
        grouped: dict[str, tuple[Destination, list[QueuedRecipient], list[Recipient]]] = {}
        for queued in claim.recipients:
            recipient = queued.recipient
            route, path = self._router.route(recipient.path)
            if path is not recipient.path:
                recipient = Recipient(path, recipient.notify, recipient.orcpt)
            group = grouped.get(route.key)
            if group is None:
                group = grouped[route.key] = (self._destination(route), [], [])
            group[1].append(queued)
            group[2].append(recipient)
        return [
            (destination, Job(held, queued[i : i + RECIPIENTS], addressed[i : i + RECIPIENTS]))
            for destination, queued, addressed in grouped.values()
            for i in range(0, len(queued), RECIPIENTS)
        ]

    def _destination(self, route: Route) -> Destination:
        destination = self._destinations.get(route.key)
        if destination is None:
            pace = self._paces.get(route.paced_by)
            if pace is None and route.rate is not None:
                pace = self._paces[route.paced_by] = Pace(route.rate)
            destination = self._destinations[route.key] = Destination.of(route, self._clock(), pace)
        return destination

    # ---- jobs out ---------------------------------------------------------------------------------------------------

    def _enqueue(self, destination: Destination, job: Job) -> None:
        if len(destination.queue) >= SHARE and destination.stalled(self._clock()):
            self._give_back(job, _BUSY, destination.send_away(self._clock()))
            return
        destination.queue.append(job)
        self._list(destination)

    def _pump(self) -> None:
        """Starts workers, destination after destination, while anything may start."""
        if self._pumping:
            return  # a worker that ended at once: the loop below goes on
        self._pumping = True
        try:
            while self._round and self._active < self._delivery.connections:
                destination = self._round.popleft()
                destination.listed = False
                if not self._affords(destination):
                    continue  # what it has under way lists it again, when that comes to an end
                if destination.queue and destination.free and self._in_time(destination):
                    self._start(destination, destination.queue.popleft())
                    self._list(destination)
        finally:
            self._pumping = False

    def _list(self, destination: Destination) -> None:
        """Gives *destination* its place in the round, if it has anything to send and may."""
        if destination.queue and destination.free and not destination.listed:
            destination.listed = True
            self._round.append(destination)

    def _affords(self, destination: Destination) -> bool:
        """Whether there are connections for *destination*: the second half is kept from those that hang, but for one
        each."""
        return self._active < self._delivery.connections // 2 or destination.trusted(self._clock())

    def _in_time(self, destination: Destination) -> bool:
        """Whether *destination* takes one more message now, which then counts; else it is looked at again in time."""
        pace = destination.pace
        if pace is None:
            return True
        now = self._clock()
        wait = pace.wait(now)
        if not wait:
            pace.take(now)
        elif destination.waking is None:
            destination.waking = self._reactor.callLater(wait, self._woken, destination)
        return not wait

    def _woken(self, destination: Destination) -> None:
        destination.waking = None
        self._list(destination)
        self._pump()

    def _start(self, destination: Destination, job: Job) -> None:
        if not destination.active:
            destination.progress_at = self._clock()
        destination.active += 1
        self._active += 1
        worker = Deferred.fromCoroutine(self._work(destination, job))
        self._workers.add(worker)
        worker.addBoth(self._worked, worker)

    def _worked(self, result: object, worker: Deferred[None]) -> None:
        self._workers.discard(worker)
        if isinstance(result, Failure):
            self._settling.fault(None, result)
        if not self._workers:
            self._wait_over()

    async def _work(self, destination: Destination, job: Job) -> None:
        """Sends *job*, and what waits behind it."""
        try:
            while True:
                try:
                    results = await self._sending.send(destination, job)
                except Requeue:
                    destination.queue.appendleft(job)
                    break
                except CancelledError:
                    self._give_back(job, _STOPPING, 0.0)
                    break
                except Exception:
                    self._settling.fault(job.claim, Failure())
                    results = [Result(queued, _INTERNAL) for queued in job.recipients]
                destination.served += 1
                self._settling.settle(job.held, results)
                if destination.queue and destination.free:  # success has made room for one more worker
                    self._list(destination)
                    self._pump()
                # Others wait and all connections are taken: they are next.
                crowded = bool(self._round) and self._active >= self._delivery.connections
                if not destination.queue or crowded or destination.active > destination.limit or not self.running:
                    break
                if not self._in_time(destination):
                    break
                job = destination.queue.popleft()
        finally:
            destination.active -= 1
            self._active -= 1
            if not self.running:
                while destination.queue:
                    self._give_back(destination.queue.popleft(), _STOPPING, 0.0)
            self._list(destination)
            if self._round:
                self._pump()

    # ---- results ----------------------------------------------------------------------------------------------

    def _untried(self, recipients: Iterable[QueuedRecipient], reply: Reply, wait: float) -> list[Result]:
        at = self._clock() + wait
        ours = reply is _STOPPING
        return [Result(queued, reply, counts=False, not_before=at, ours=ours) for queued in recipients]

    def _give_back(self, job: Job, reply: Reply, wait: float) -> None:
        """*job* leaves this process untried, for *wait* seconds at least."""
        self._settling.settle(job.held, self._untried(job.recipients, reply, wait))

    def _settled(self, held: Held, settlement: Settlement, notices: tuple[Claim, ...]) -> None:
        """*settlement* is recorded; *notices* are to be delivered."""
        held.waiting.difference_update(attempt.recipient_id for attempt in settlement.attempts)
        self._release(held)
        next_at = min((a.next_at for a in settlement.attempts if a.state is MessageState.QUEUED), default=None)
        if next_at is not None:
            self._intake.wake_at(next_at)
        for claim in notices:
            self.take(claim)
        self._intake.room_made()

    def _release(self, held: Held) -> None:
        held.open -= 1
        if held.open <= 0 and held in self._held:
            self._held.discard(held)
            self._octets -= held.octets
            others = self._by_id[held.claim.message_id]
            others.remove(held)
            if not others:
                del self._by_id[held.claim.message_id]
            if not self._held:
                self._wait_over()

    # ---- once in a while --------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._ticking = None
        now = self._clock()
        old = [held for held in self._held if now - held.leased_at >= RENEW]
        if old:
            for held in old:
                held.leased_at = now
            self._store.renew([held.claim for held in old]).addErrback(
                lambda failure: self._settling.store_fault("renew", failure)
            )
        self._trim()
        self._health.forget(now)
        for key, destination in list(self._destinations.items()):
            destination.look(TICK)
            if destination.idle and not destination.listed and now - destination.progress_at > 60:
                del self._destinations[key]
        self._intake.room_made()
        if self._held or self._destinations:
            self._ticking = self._reactor.callLater(TICK, self._tick)

    def _trim(self) -> None:
        """Sends away most of what waits for stalled destinations, and for slow ones where others need the room."""
        now = self._clock()
        short = self.room < LEAST_ROOM
        crowd = [destination for destination in self._destinations.values() if destination.queue]
        for destination in crowd:
            stalled = destination.stalled(now)
            share = self._share(destination, len(crowd)) if short else SHARE
            if len(destination.queue) > share and (stalled or short):
                bears = destination.bears(now, share)
                while len(destination.queue) > bears:
                    self._give_back(destination.queue.pop(), _BUSY, destination.send_away(now))
                if stalled:
                    destination.patience = min(destination.patience * 2, LONGEST_PATIENCE)

    def _share(self, destination: Destination, crowd: int) -> int:
        """How many jobs *destination* may always keep, of *crowd* that have some: together they leave half free."""
        share = min(SHARE, CAPACITY // 2 // crowd)
        if self._octets < MEMORY:
            return share
        octets = sum(job.held.octets for job in destination.queue)
        return min(share, len(destination.queue) * MEMORY // 2 // crowd // max(octets, 1))
