"""MTA-STS (RFC 8461): domains that publish which mail exchangers they have, and that these have TLS that holds.

A policy is announced in DNS, which anybody on the way may forge, and fetched over HTTPS, which nobody may. So the first
fetch can be prevented (mail goes as to any other domain, RFC 8461 3.3), but a policy that is known holds to its end,
whatever DNS and the web server say meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from relayd.delivery.https import Answer, HttpsFault
from relayd.delivery.mx import Hears, Hop, LeftOut, unheard
from relayd.delivery.route import Route, RouteKind
from relayd.delivery.sts_folder import Kept, PolicyFolder, is_domain
from relayd.delivery.sts_policy import Mode, Policy, parsed, published
from relayd.events import Events, InternalFault, PolicyUnfetched, TlsReport
from relayd.model import Fault, Reply
from relayd.settings import OutboundTls
from relayd.threads import BoundedPool

#: Octets and seconds of a fetch (RFC 8461 3.3).
LIMIT, SECONDS = 64 * 1024, 60.0
#: A policy is fetched anew when it is so old, in seconds; after a failure, when so much time has passed (RFC 8461 3.3).
DAY, AGAIN = 86400.0, 3600.0
#: A version that could not be fetched is left alone for so long (RFC 8461 3.3); one that was, too, whatever it says.
REST: Final = 300.0
#: A policy that no mail was sent by for so long is left to its end.
FORGOTTEN: Final = 30 * DAY
#: How often policies that are due are looked for, in seconds, and how many are fetched at once then.
LOOK, AT_ONCE = 600.0, 4
#: Policies kept, and octets of their text.
MOST, OCTETS = 5000, 32 * 1024**2
#: Failures and reports that are remembered, so that none is repeated too soon.
REMEMBERED: Final = 10_000
#: The same fault of the same host is reported once in so many seconds.
REPORT_AGAIN: Final = 3600.0


class Texts(Protocol):
    """What is needed of :class:`relayd.resolver.Resolver`."""

    async def txt(self, name: str) -> tuple[bytes, ...]: ...


class Fetches(Protocol):
    """What is needed of :class:`relayd.delivery.https.Https`."""

    async def fetch(self, method: str, url: str, *, limit: int = ..., seconds: float = ...) -> Answer: ...


@dataclass(slots=True)
class _Known:
    """A policy, and when it is to be fetched anew."""

    kept: Kept
    refresh_at: float


class Sts:
    """Knows the policies of domains, and holds next hops to them.

    :param https: verifies by the CAs that certificates of next hops are verified by.
    :param folder: where policies survive a restart; None = they do not.
    """

    def __init__(
        self, resolver: Texts, https: Fetches, folder: PolicyFolder | None, events: Events, reactor: Any
    ) -> None:
        self._resolver = resolver
        self._https = https
        self._folder = folder
        self._events = events
        self._clock: Callable[[], float] = reactor.seconds
        self._disk = BoundedPool("sts", reactor, threads=1, waiting=1000)
        self._known: dict[str, _Known] = {}  # the least lately used first
        self._octets = 0
        self._asked: dict[str, list[Deferred[Kept | None]]] = {}
        self._unfetched: dict[tuple[str, str], float] = {}
        self._reported: dict[tuple[str, str, str], float] = {}
        self._closed = False
        self._looking = LoopingCall(lambda: Deferred.fromCoroutine(self._look()).addErrback(self._failed))
        self._looking.clock = reactor

    async def open(self) -> None:
        """Reads what is kept. Without its folder it starts with nothing."""
        self._looking.start(LOOK, now=False)
        if self._folder is None:
            return
        try:
            found, faults = await self._disk.run(self._folder.load, self._clock())
        except (OSError, Fault) as error:
            found, faults = [], [str(error)]
        for fault in faults:
            self._events.emit(InternalFault(where="sts", detail=fault))
        for kept in found:
            self._know(kept)

    def close(self) -> Deferred[None]:
        """Fires when all is on disk."""
        if self._looking.running:
            self._looking.stop()
        self._closed = True
        return self._disk.end()

    # ---- for delivery ---------------------------------------------------------------------------------------------

    async def secured(self, route: Route, hops: tuple[Hop, ...], left_out: Hears = unheard) -> tuple[Hop, ...]:
        """*hops* with the level that the domain's policy asks for; those that it does not name are left out.

        :param left_out: is told of these.
        :raises Fault: temporary: none is left.
        """
        policy = await self._policy(route.domain) if route.kind is RouteKind.MX else None
        if policy is None or policy.mode is Mode.NONE:
            why = "no MTA-STS policy" if policy is None else "MTA-STS policy: none"
            return tuple(replace(hop, tls=OutboundTls.MAY, why=why) for hop in hops)
        why = f"MTA-STS policy: {policy.mode.value}"
        strangers = dict.fromkeys(hop.host for hop in hops if not policy.allows(hop.host))
        for host in strangers:
            self._report(route.domain, host, policy.mode, "it is no mail exchanger by the domain's policy")
        if policy.mode is Mode.TESTING:
            tested = tuple(replace(hop, tls=OutboundTls.MAY, why=why) for hop in hops)
            return tuple(
                hop if hop.host in strangers else replace(hop, came_to=partial(self._tested, route.domain, hop.host))
                for hop in tested
            )
        # RFC 8461 5: not to hosts that fail the match or the certificate, nor to those without STARTTLS.
        named = tuple(replace(hop, tls=OutboundTls.VERIFY, why=why) for hop in hops if hop.host not in strangers)
        for hop in hops:
            if hop.host in strangers:
                why = "the domain's MTA-STS policy does not name it"
                left_out(LeftOut(hop.host, why, hop.address, hop.port, hop.preference))
        if not named:
            raise Fault(
                Reply.of(451, "4.7.5", f"No mail exchanger of {route.domain} is named by its MTA-STS policy"),
                f"DNS names {', '.join(strangers)}; the policy names {', '.join(policy.exchangers)[:500]}",
            )
        return named

    def _tested(self, domain: str, host: str, tls: str) -> None:
        """A message went to *host* over *tls*: would that have been good enough?"""
        if not tls.endswith(" verified"):
            why = "its certificate does not hold" if tls else "it was sent to without TLS"
            self._report(domain, host, Mode.TESTING, why)

    def _report(self, domain: str, host: str, mode: Mode, reason: str) -> None:
        now = self._clock()
        if self._reported.get((domain, host, reason), 0.0) <= now:
            _remember(self._reported, (domain, host, reason), now + REPORT_AGAIN, now)
            self._events.emit(TlsReport(domain=domain, host=host, mode=mode.value, reason=reason))

    # ---- policies ---------------------------------------------------------------------------------------------------

    async def _policy(self, domain: str) -> Policy | None:
        """The policy of *domain*, from the cache where DNS announces no other (RFC 8461 5.1).

        :raises Fault: this relay is short of something.
        """
        if not is_domain(domain):
            return None
        announced = await self._announced(domain)
        now = self._clock()
        known = self._known.get(domain)
        kept = known.kept if known is not None and not known.kept.expired(now) else None
        if announced and (kept is None or kept.id != announced) and self._may_fetch(domain, announced, now):
            kept = await self._fetched(domain, announced) or kept
        if kept is None:
            return None
        if (known := self._known.pop(domain, None)) is not None:
            known.kept = replace(known.kept, used=self._clock())
            self._known[domain] = known
        return kept.policy

    async def _announced(self, domain: str) -> str:
        """The id that DNS announces. What DNS does not say for now, it does not say (RFC 8461 3.3).

        :raises Fault: too many questions wait.
        """
        try:
            return published(await self._resolver.txt(f"_mta-sts.{domain}"))
        except Fault as fault:
            if fault.reply.enhanced == "4.3.2":
                raise
            return ""

    def _may_fetch(self, domain: str, announced: str, now: float) -> bool:
        return domain in self._asked or self._unfetched.get((domain, announced), 0.0) <= now

    async def _fetched(self, domain: str, announced: str) -> Kept | None:
        """The policy as its host has it now; None where it cannot be had. All who ask at once share one fetch."""
        answer: Deferred[Kept | None] = Deferred()
        if (waiting := self._asked.get(domain)) is not None:
            waiting.append(answer)
        else:
            self._asked[domain] = [answer]
            Deferred.fromCoroutine(self._fetch(domain, announced)).addBoth(self._arrived, domain)
        return await answer

    def _arrived(self, result: Kept | Failure | None, domain: str) -> None:
        if isinstance(result, Failure):
            self._failed(result)
            result = None
        for waiting in self._asked.pop(domain):
            waiting.callback(result)

    async def _fetch(self, domain: str, announced: str) -> Kept | None:
        url = f"https://mta-sts.{domain}/.well-known/mta-sts.txt"
        try:
            policy = _read(await self._https.fetch("GET", url, limit=LIMIT, seconds=SECONDS))
        except (HttpsFault, ValueError) as error:
            self._not_fetched(domain, announced, str(error))
            return None
        now = self._clock()
        known = self._known.get(domain)
        used = known.kept.used if known is not None else now
        # Whoever publishes a policy of no duration must not be asked by each message.
        kept = Kept(domain, announced, replace(policy, max_age=max(policy.max_age, int(REST))), now, used)
        self._know(kept)
        if self._folder is not None:
            self._to_disk(self._folder.keep, kept)
        return kept

    def _not_fetched(self, domain: str, announced: str, reason: str) -> None:
        now = self._clock()
        _remember(self._unfetched, (domain, announced), now + REST, now)
        known = self._known.get(domain)
        if known is not None and known.kept.expired(now):
            known = None
        if known is not None:
            known.refresh_at = max(known.refresh_at, now + AGAIN)
        # RFC 8461 3.3: nobody need hear of it where the policy asks for nothing.
        if known is None or known.kept.policy.mode is not Mode.NONE:
            until = known.kept.fetched + known.kept.policy.max_age if known is not None else None
            self._events.emit(PolicyUnfetched(domain=domain, reason=reason, kept_until=until))

    def _know(self, kept: Kept) -> None:
        self._drop(kept.domain)
        # Before it ends, too (RFC 8461 3.3).
        self._known[kept.domain] = _Known(kept, kept.fetched + max(min(DAY, kept.policy.max_age / 2), AGAIN))
        self._octets += len(str(kept.policy))
        while len(self._known) > MOST or (self._octets > OCTETS and len(self._known) > 1):
            self._forget(next(iter(self._known)))

    def _drop(self, domain: str) -> None:
        known = self._known.pop(domain, None)
        if known is not None:
            self._octets -= len(str(known.kept.policy))

    def _forget(self, domain: str) -> None:
        self._drop(domain)
        if self._folder is not None:
            self._to_disk(self._folder.remove, domain)

    # ---- once in a while ------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Fetches anew what is due, so that nobody who keeps us from it for a while outlasts a policy."""
        now = self._clock()
        for domain in [domain for domain, known in self._known.items() if known.kept.expired(now)]:
            self._forget(domain)
        due = deque(
            domain for domain, known in self._known.items() if known.refresh_at <= now < known.kept.used + FORGOTTEN
        )
        refreshing = [Deferred.fromCoroutine(self._refresh(due)) for _ in range(AT_ONCE)]
        await gatherResults(refreshing, consumeErrors=True)

    async def _refresh(self, due: deque[str]) -> None:
        while due and not self._closed:
            domain = due.popleft()
            try:
                announced = await self._announced(domain)
            except Fault:
                continue  # the next look comes
            if not announced:
                self._not_fetched(domain, announced, "DNS does not announce it any more")
            elif self._may_fetch(domain, announced, self._clock()):
                await self._fetched(domain, announced)

    def _to_disk(self, call: Callable[..., None], *arguments: object) -> None:
        if not self._closed:
            self._disk.run(call, *arguments).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        known = isinstance(error, OSError | Fault)
        self._events.emit(InternalFault(where="sts", detail=str(error) if known else failure.getTraceback()))


def _read(answer: Answer) -> Policy:
    """:raises ValueError: the policy's host answers with none."""
    if answer.code != 200:
        raise ValueError(f"the policy's host answers {answer.code}")
    # RFC 8461 3.2: where anybody may put files, they are no policy.
    if answer.content_type != "text/plain":
        raise ValueError(f"the policy's host answers with {answer.content_type[:80] or 'no type'}, not text/plain")
    try:
        return parsed(answer.octets)
    except ValueError as error:
        raise ValueError(f"the policy does not hold: {error}") from None


def _remember(until: dict[Any, float], key: object, at: float, now: float) -> None:
    if len(until) >= REMEMBERED:
        for old in [one for one, end in until.items() if end <= now]:
            del until[old]
    if len(until) >= REMEMBERED:
        until.clear()
    until[key] = at
