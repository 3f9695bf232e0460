"""DNS for those who decide and those who deliver: names of a client, mail exchangers, addresses of a host.

dnspython runs in a thread of its own, where a question that nobody answers holds a socket and nobody else up. How
many may be asked is bounded: beyond that, callers hear 451 4.3.2 at once. Answers are kept for their TTL, and equal
questions that are asked at the same time become one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
import dns.reversename
import idna
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorFromThreads
from twisted.names.hosts import searchFileForAll
from twisted.python.failure import Failure
from twisted.python.filepath import FilePath

from relayd.model import NO_NAMES, Fault, IPAddress, Names, Reply, Tlsa
from relayd.threads import AsyncioThread

__all__ = ["NoSuchDomain", "NullMx", "Resolver", "a_label"]

#: Longest time an answer is kept, whatever its TTL says, in seconds; and an answer that says "none".
KEEP, KEEP_NEGATIVE = 3600.0, 300.0
#: How long a failure is remembered: a dead name server must not cost every session its time-out (RFC 2308 7).
KEEP_FAILURE = 5.0
#: Answers held at most.
CACHE_SIZE = 20_000
#: PTR names of one address that are looked at: whoever owns the reverse zone chooses how many there are.
PTR_NAMES = 8
#: Questions under way at once: so many sockets.
AT_ONCE = 500

_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


class NullMx(Fault):
    """The domain says that it takes no mail (RFC 7505)."""

    def __init__(self, domain: str) -> None:
        # RFC 7505 4.2: 556 and 5.1.10 where the recipient's domain has a null MX.
        super().__init__(Reply.of(556, "5.1.10", f"The domain {domain} does not accept mail"))


class NoSuchDomain(Fault):
    """The name is not in the DNS, or cannot be."""

    def __init__(self, name: str, detail: str = "") -> None:
        super().__init__(Reply.of(550, "5.1.2", f"The domain {name} does not exist"), detail)


@dataclass(frozen=True, slots=True)
class _Answer:
    """*records* as plain values; *failure* says why there is no answer; *exists* is False for NXDOMAIN.

    :ivar secure: the name server has validated it.
    :ivar canonical: where aliases led, when anything was found.
    """

    records: tuple[Any, ...] = ()
    exists: bool = True
    failure: str = ""
    ttl: float = KEEP_FAILURE
    secure: bool = False
    canonical: str = ""


_Key = tuple[dns.name.Name, str]

_ASYNCIO = dns.asyncbackend.get_backend("asyncio")


@lru_cache(maxsize=4096)
def a_label(domain: str) -> str:
    """*domain* in A-labels, lower case, without its final dot (RFC 5890).

    :raises NoSuchDomain: it cannot be a domain name.
    """
    domain = domain.rstrip(".").lower()
    try:
        if not domain.isascii():
            domain = idna.encode(domain, uts46=True).decode("ascii").lower()
        # Parsed for its limits: labels of 63 octets, names of 255, no empty label.
        parsed = dns.name.from_text(domain)
    except (idna.IDNAError, dns.exception.DNSException, UnicodeError) as error:
        raise NoSuchDomain(domain, str(error)) from None
    if parsed == dns.name.root:
        raise NoSuchDomain(domain or "(empty)")
    return domain


# The same few names are asked for again and again.
_parsed = lru_cache(maxsize=4096)(dns.name.from_text)


class Resolver:
    """A caching stub resolver.

    :param servers: addresses of name servers, ``192.0.2.1``, ``192.0.2.1:53``, ``2001:db8::1`` or
        ``[2001:db8::1]:53``; none = the system's.
    :param reactor: takes the answers from the threads.
    :param name: of its thread. Clients choose what is asked about them, so whoever else asks has another resolver.
    :param timeout: seconds for one question, all servers together.
    :param at_once: questions under way at most.
    :param waiting: questions that may wait for one of those to end; their own time begins then.
    :param hosts: the hosts(5) file that :meth:`addresses` reads first.
    :param trust_ad: believe the name servers that an answer is secure (RFC 6840 5.8); else none ever is.
    """

    def __init__(
        self,
        servers: tuple[str, ...] = (),
        *,
        reactor: IReactorFromThreads,
        name: str = "dns",
        timeout: float = 5.0,
        at_once: int = AT_ONCE,
        waiting: int = 0,
        clock: Callable[[], float] = time.monotonic,
        hosts: str = "/etc/hosts",
        trust_ad: bool = False,
    ) -> None:
        self._clock = clock
        self._timeout = timeout
        self._hosts = FilePath(hosts)
        self._thread = AsyncioThread(name, reactor, at_once=at_once, waiting=waiting)
        self._cache: dict[_Key, tuple[float, _Answer]] = {}
        self._asked: dict[_Key, list[Deferred[_Answer]]] = {}
        self._closed = False
        self._trust_ad = trust_ad
        self._stub, self._unconfigured = _stub(servers, trust_ad)

    @property
    def waiting(self) -> int:
        """Questions that are asked and not yet answered."""
        return len(self._asked)

    async def names(self, address: IPAddress) -> Names:
        """What reverse DNS says of *address*, forward-confirmed. Never fails: see :attr:`Names.failed`.

        :raises Fault: 451 4.3.2, too many questions wait.
        """
        pointer = await self._ask(dns.reversename.from_address(str(address)), "PTR")
        if pointer.failure:
            return Names(failed=True)
        if not pointer.records:
            return NO_NAMES
        kind = "A" if isinstance(address, IPv4Address) else "AAAA"
        names = tuple(dict.fromkeys(pointer.records))[:PTR_NAMES]
        hosts = [name for name in names if _HOST_NAME.fullmatch(name)]
        answers = await _all([self._ask(dns.name.from_text(host), kind) for host in hosts])
        confirmed = tuple(host for host, answer in zip(hosts, answers, strict=True) if address in answer.records)
        claimed = tuple(name for name in names if name not in confirmed)
        return Names(confirmed, claimed, any(answer.failure for answer in answers))

    async def mx(self, domain: str) -> tuple[tuple[int, str], ...]:
        """The mail exchangers of *domain* as (preference, host), best first (RFC 5321 5.1).

        :returns: () where there is no MX record: the domain's own addresses stand in.
        :raises NullMx: the domain takes no mail.
        :raises NoSuchDomain: there is no such name.
        :raises Fault: 451 4.4.3, DNS failed; 451 4.3.2, too many questions wait.
        """
        name = dns.name.from_text(a_label(domain))
        answer = await self._ask(name, "MX")
        if answer.failure:
            raise _unanswered(domain, answer)
        if not answer.exists:
            raise NoSuchDomain(domain)
        exchangers: list[tuple[int, str]] = sorted(record for record in answer.records if record[1])
        if answer.records and not exchangers:
            raise NullMx(domain)
        return tuple(exchangers)

    async def srv(self, name: str) -> tuple[tuple[int, int, str, int], ...]:
        """The SRV records of *name* as (priority, weight, host, port); () where there is none (RFC 2782).

        :raises Fault: 451 4.4.3, DNS failed; 451 4.3.2, too many questions wait.
        """
        answer = await self._ask(_parsed(a_label(name)), "SRV")
        if answer.failure:
            raise _unanswered(name, answer)
        # A host of "." says that the service is not to be had.
        return tuple(record for record in answer.records if record[2])

    async def txt(self, name: str) -> tuple[bytes, ...]:
        """The TXT records of *name*, the strings of each joined; () where there is none.

        :raises NoSuchDomain: it cannot be a name.
        :raises Fault: 451 4.4.3, DNS failed; 451 4.3.2, too many questions wait.
        """
        answer = await self._ask(_parsed(a_label(name)), "TXT")
        if answer.failure:
            raise _unanswered(name, answer)
        return answer.records

    async def addresses(self, host: str) -> tuple[IPAddress, ...]:
        """The IPv6 and IPv4 addresses of *host*, from the hosts file or DNS; () where it has none.

        A name of one label is looked up in the system's search list as well.

        :raises NoSuchDomain: there is no such name.
        :raises Fault: 451 4.4.3, DNS failed; 451 4.3.2, too many questions wait.
        """
        try:
            return (ip_address(host.strip("[]").removeprefix("IPv6:")),)
        except ValueError:
            host = a_label(host)
        # RFC 6761 6.3: localhost is never asked of DNS.
        if host == "localhost" or host.endswith(".localhost"):
            return (IPv4Address("127.0.0.1"), IPv6Address("::1"))
        name = dns.name.from_text(host, dns.name.root if "." in host else None)
        answers = await _all([self._ask(name, "AAAA"), self._ask(name, "A")])
        addresses = tuple(dict.fromkeys(record for answer in answers for record in answer.records))
        if addresses:
            return addresses
        for answer in answers:
            if answer.failure:
                raise _unanswered(host, answer)
        if not all(answer.exists for answer in answers):
            raise NoSuchDomain(host)
        return ()

    async def secure_mx(self, domain: str) -> bool:
        """Whether the answer to :meth:`mx`, records or none, was validated.

        :raises Fault: as :meth:`mx`.
        """
        answer = await self._ask(dns.name.from_text(a_label(domain)), "MX")
        if answer.failure:
            raise _unanswered(domain, answer)
        return answer.secure

    async def secure_names(self, host: str) -> tuple[str, ...]:
        """The names that TLSA records of *host* may stand under: where its aliases lead, then its own (RFC 7672 2.2.2);
        () where its addresses are not secure.

        :raises Fault: 451 4.4.3, DNS failed; 451 4.3.2, too many questions wait.
        """
        try:
            ip_address(host.strip("[]").removeprefix("IPv6:"))
        except ValueError:
            host = a_label(host)
        else:
            return ()
        name = dns.name.from_text(host)
        answers = await _all([self._ask(name, "AAAA"), self._ask(name, "A")])
        for answer in answers:
            if answer.failure:
                raise _unanswered(host, answer)
        secure = [answer.canonical for answer in answers if answer.secure and answer.records]
        return tuple(dict.fromkeys([*secure, host])) if secure else ()

    async def tlsa(self, host: str, port: int) -> tuple[Tlsa, ...]:
        """The TLSA records of *host*'s service at TCP *port*; () where there are none, or none that are secure.

        :raises Fault: 451 4.4.3, DNS failed; 451 4.3.2, too many questions wait.
        """
        name = f"_{port}._tcp.{host}"
        try:
            name = a_label(name)
        except NoSuchDomain:  # too long
            return ()
        answer = await self._ask(dns.name.from_text(name), "TLSA")
        if answer.failure:
            raise _unanswered(name, answer)
        return answer.records if answer.secure else ()

    def forget(self) -> None:
        """Forgets all answers."""
        self._cache.clear()

    def close(self) -> Deferred[None]:
        """Takes no more questions. Fires when the thread has ended; nobody needs to wait for that."""
        self._closed = True
        return self._thread.end()

    def _ask(self, name: dns.name.Name, kind: str) -> Deferred[_Answer]:
        key = (name, kind)
        kept = self._cache.get(key)
        answer: Deferred[_Answer] = Deferred()
        if kept is not None:
            if kept[0] > self._clock():
                answer.callback(kept[1])
                return answer
            del self._cache[key]
        if (waiting := self._asked.get(key)) is not None:
            waiting.append(answer)
        elif self._closed:
            answer.errback(Fault(Reply.of(451, "4.3.2", "System not accepting messages"), "the resolver is closed"))
        else:
            self._asked[key] = [answer]
            self._thread.run(self._resolve, name, kind).addCallbacks(
                self._answered, self._unasked, callbackArgs=(key,), errbackArgs=(key,)
            )
        return answer

    def _answered(self, answer: _Answer, key: _Key) -> None:
        if answer.ttl > 0:
            now = self._clock()
            if len(self._cache) >= CACHE_SIZE:
                self._cache = {k: kept for k, kept in self._cache.items() if kept[0] > now}
            if len(self._cache) >= CACHE_SIZE:
                self._cache.clear()
            self._cache[key] = (now + answer.ttl, answer)
        for waiting in self._asked.pop(key):
            waiting.callback(answer)

    def _unasked(self, failure: Failure, key: _Key) -> None:
        for waiting in self._asked.pop(key):
            waiting.errback(failure)

    async def _resolve(self, name: dns.name.Name, kind: str) -> _Answer:
        """Asks; in the thread, by asyncio."""
        if kind in ("A", "AAAA") and (known := self._in_hosts_file(name)):
            wanted = IPv4Address if kind == "A" else IPv6Address
            return _Answer(tuple(a for a in known if isinstance(a, wanted)), ttl=KEEP_FAILURE)
        if self._stub is None:
            return _Answer(failure=self._unconfigured)
        try:
            found = await self._stub.resolve(
                name,
                kind,
                raise_on_no_answer=False,
                lifetime=self._timeout,
                search=not name.is_absolute(),
                backend=_ASYNCIO,
            )
        except dns.resolver.NXDOMAIN as error:
            responses: dict[Any, dns.message.QueryMessage] = error.kwargs.get("responses", {})
            secure = all(map(self._is_secure, responses.values()))
            return _Answer(exists=False, ttl=_negative_ttl(list(responses.values())), secure=secure)
        except (dns.exception.DNSException, OSError, EOFError) as error:
            return _Answer(failure=f"{name} {kind}: {error}")
        ttl = float(found.chaining_result.minimum_ttl)
        secure = self._is_secure(found.response)
        if found.rrset is None:
            return _Answer(ttl=min(ttl, KEEP_NEGATIVE), secure=secure)
        canonical = found.canonical_name.to_text(omit_final_dot=True).lower()
        records = tuple(_value(record) for record in found.rrset)
        return _Answer(records, ttl=min(ttl, KEEP), secure=secure, canonical=canonical)

    def _is_secure(self, response: dns.message.Message) -> bool:
        return self._trust_ad and bool(response.flags & dns.flags.AD)

    def _in_hosts_file(self, name: dns.name.Name) -> list[IPAddress]:
        text = name.to_text(omit_final_dot=True).encode("ascii")
        found: list[str] = searchFileForAll(self._hosts, text)
        return [ip_address(address) for address in found]


async def _all(asked: Sequence[Deferred[_Answer]]) -> list[_Answer]:
    """All answers; what one question fails with is raised once all are over."""
    results = await DeferredList(asked, consumeErrors=True)
    for _, result in results:
        if isinstance(result, Failure):
            result.raiseException()
    return [answer for _, answer in results]


def _stub(servers: Sequence[str], trust_ad: bool) -> tuple[dns.asyncresolver.Resolver | None, str]:
    """dnspython's resolver, or why there is none."""
    try:
        stub = dns.asyncresolver.Resolver(configure=not servers)
    except dns.resolver.NoResolverConfiguration as error:
        return None, f"no name server is configured: {error}"
    if servers:
        stub.nameservers = [_server(text) for text in servers]
    # The size that does not fragment (DNS flag day 2020). DO asks for AD, and for signatures, which nobody reads here:
    # not every server understands AD in a question (RFC 6840 5.7).
    stub.use_edns(0, dns.flags.DO if trust_ad else 0, 1232)
    stub.cache = None
    return stub, ""


def _server(text: str) -> dns.nameserver.Nameserver:
    """*text* as a name server's address and port.

    :raises ValueError: it is neither an address nor address:port.
    """
    try:
        return dns.nameserver.Do53Nameserver(str(ip_address(text.strip("[]"))), 53)
    except ValueError:
        host, _, port = text.rpartition(":")
        return dns.nameserver.Do53Nameserver(str(ip_address(host.strip("[]"))), int(port))


def _value(record: Any) -> Any:
    """A record's data as a plain value: a host name in lower case, an address, octets, or (preference, host)."""
    match record.rdtype:
        case dns.rdatatype.MX:
            return (int(record.preference), record.exchange.to_text(omit_final_dot=True).lower().strip("."))
        case dns.rdatatype.SRV:
            target = record.target.to_text(omit_final_dot=True).lower().strip(".")
            return (int(record.priority), int(record.weight), target, int(record.port))
        case dns.rdatatype.TLSA:
            return Tlsa(record.usage, record.selector, record.mtype, bytes(record.cert))
        case dns.rdatatype.TXT:
            return b"".join(record.strings)
        case dns.rdatatype.PTR:
            return record.target.to_text(omit_final_dot=True).lower()
        case _:
            return ip_address(record.address)


def _negative_ttl(responses: Sequence[dns.message.QueryMessage]) -> float:
    """How long "no such name" holds (RFC 2308 5)."""
    ttls: list[float] = []
    for response in responses:
        try:
            ttls.append(response.resolve_chaining().minimum_ttl)
        except dns.exception.DNSException:
            return 0.0
    return min([*ttls, KEEP_NEGATIVE])


def _unanswered(name: str, answer: _Answer) -> Fault:
    return Fault(Reply.of(451, "4.4.3", f"DNS did not answer for {name}"), answer.failure)
