"""The resolver against a real DNS server on loopback."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Coroutine, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.model import NO_NAMES, Fault, Names, Tlsa
from relayd.resolver import NoSuchDomain, NullMx, Resolver, a_label
from tests.lab.dns import DnsServer

T = TypeVar("T")


@implementer(IReactorFromThreads)
class ThreadedClock(Clock):
    """A clock that stands still, with the one thing that threads need of a reactor."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: queue.Queue[Callable[[], object]] = queue.Queue()

    def callFromThread(self, callable: Callable[..., Any], *args: object, **kwargs: object) -> None:
        self._calls.put(lambda: callable(*args, **kwargs))

    def result(self, coroutine: Coroutine[Any, Any, T], timeout: float = 10.0) -> T:
        """Runs what the threads hand over until *coroutine* has a result."""
        results: list[T | Failure] = []
        Deferred.fromCoroutine(coroutine).addBoth(results.append)
        deadline = time.monotonic() + timeout
        while not results:
            self._calls.get(timeout=max(0.0, deadline - time.monotonic()))()
        (result,) = results
        if isinstance(result, Failure):
            result.raiseException()
        return result


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer() as server:
        yield server


@pytest.fixture
def clock() -> ThreadedClock:
    return ThreadedClock()


@pytest.fixture
def resolver(server: DnsServer, clock: ThreadedClock, tmp_path: Path) -> Iterator[Resolver]:
    (tmp_path / "hosts").write_text("192.0.2.99 filed filed.example\n")
    made = Resolver((server.address,), reactor=clock, clock=clock.seconds, timeout=1.0, hosts=str(tmp_path / "hosts"))
    yield made
    made.close()


CLIENT = ip_address("192.0.2.7")
POINTER = "7.2.0.192.in-addr.arpa"


class TestNames:
    def test_confirmed(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.records[POINTER, "PTR"] = ["App.Corp.Example."]
        server.records["app.corp.example", "A"] = ["192.0.2.8", "192.0.2.7"]
        assert clock.result(resolver.names(CLIENT)) == Names(confirmed=("app.corp.example",))

    def test_ipv6_is_confirmed_by_aaaa(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        address = ip_address("2001:db8::7")
        server.records[address.reverse_pointer, "PTR"] = ["app.corp.example."]
        server.records["app.corp.example", "A"] = ["192.0.2.7"]
        server.records["app.corp.example", "AAAA"] = ["2001:db8::7"]
        assert clock.result(resolver.names(address)).confirmed == ("app.corp.example",)

    def test_a_name_that_points_elsewhere_is_only_claimed(
        self, server: DnsServer, clock: ThreadedClock, resolver: Resolver
    ) -> None:
        server.records[POINTER, "PTR"] = ["bank.example.", "gone.example.", "app.corp.example."]
        server.records["bank.example", "A"] = ["198.51.100.1"]
        server.records["app.corp.example", "A"] = ["192.0.2.7"]
        names = clock.result(resolver.names(CLIENT))
        assert names.confirmed == ("app.corp.example",)
        assert sorted(names.claimed) == ["bank.example", "gone.example"]
        assert not names.failed

    def test_a_name_that_no_host_can_have_is_only_claimed(
        self, server: DnsServer, clock: ThreadedClock, resolver: Resolver
    ) -> None:
        server.records[POINTER, "PTR"] = [r"a\032b.corp.example."]
        server.records[r"a\032b.corp.example", "A"] = ["192.0.2.7"]
        assert clock.result(resolver.names(CLIENT)) == Names(claimed=(r"a\032b.corp.example",))

    def test_no_pointer(self, clock: ThreadedClock, resolver: Resolver) -> None:
        assert clock.result(resolver.names(CLIENT)) == NO_NAMES

    def test_failing_pointer(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.broken.add(POINTER)
        assert clock.result(resolver.names(CLIENT)) == Names(failed=True)

    def test_failing_forward(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.records[POINTER, "PTR"] = ["app.corp.example."]
        server.broken.add("app.corp.example")
        assert clock.result(resolver.names(CLIENT)) == Names(claimed=("app.corp.example",), failed=True)

    def test_pointers_are_bounded(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.records[POINTER, "PTR"] = [f"host{n}.example." for n in range(200)]
        names = clock.result(resolver.names(CLIENT))
        assert len(names.claimed) == 8
        assert sum(count for (_, kind), count in server.questions.items() if kind == "A") == 8


class TestMx:
    def test_sorted_by_preference(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.records["example.org", "MX"] = ["20 B.example.org.", "10 a.example.org.", "20 c.example.org."]
        assert clock.result(resolver.mx("Example.ORG.")) == (
            (10, "a.example.org"),
            (20, "b.example.org"),
            (20, "c.example.org"),
        )

    def test_alias(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.records["www.example.org", "CNAME"] = ["example.org."]
        server.records["example.org", "MX"] = ["10 a.example.org."]
        assert clock.result(resolver.mx("www.example.org")) == ((10, "a.example.org"),)

    def test_international_domain(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.records["xn--bcher-kva.example", "MX"] = ["10 a.example.org."]
        assert clock.result(resolver.mx("Bücher.example")) == ((10, "a.example.org"),)

    def test_null_mx(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.records["example.org", "MX"] = ["0 ."]
        with pytest.raises(NullMx) as caught:
            clock.result(resolver.mx("example.org"))
        assert (caught.value.reply.code, caught.value.reply.enhanced) == (556, "5.1.10")

    def test_no_mx_record(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.records["example.org", "A"] = ["192.0.2.1"]
        assert clock.result(resolver.mx("example.org")) == ()

    def test_no_such_domain(self, clock: ThreadedClock, resolver: Resolver) -> None:
        with pytest.raises(NoSuchDomain) as caught:
            clock.result(resolver.mx("nowhere.example"))
        assert (caught.value.reply.code, caught.value.reply.enhanced) == (550, "5.1.2")

    @pytest.mark.parametrize("domain", ["a..b", "x" * 64 + ".example", ".", "", "a" + ".bb" * 100])
    def test_what_no_domain_can_be(self, clock: ThreadedClock, resolver: Resolver, domain: str) -> None:
        with pytest.raises(NoSuchDomain):
            clock.result(resolver.mx(domain))

    def test_server_failure_is_temporary(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.broken.add("example.org")
        with pytest.raises(Fault) as caught:
            clock.result(resolver.mx("example.org"))
        assert (caught.value.reply.code, caught.value.reply.enhanced) == (451, "4.4.3")
        assert "SERVFAIL" in caught.value.detail

    def test_silence_is_temporary(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.silent.add("example.org")
        with pytest.raises(Fault) as caught:
            clock.result(resolver.mx("example.org"))
        assert caught.value.reply.code == 451

    def test_an_answer_too_long_for_udp(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.records["example.org", "MX"] = [f"{n} {'h' * 50}{n}.example.org." for n in range(100)]
        assert len(clock.result(resolver.mx("example.org"))) == 100
        assert server.over_tcp == 1


class TestTexts:
    def test_the_strings_of_a_record_are_one_text(
        self, server: DnsServer, clock: ThreadedClock, resolver: Resolver
    ) -> None:
        server.records["_mta-sts.example.org", "TXT"] = ['"v=STSv1; " "id=1"', '"other \\195"']
        assert sorted(clock.result(resolver.txt("_mta-sts.Example.org"))) == [b"other \xc3", b"v=STSv1; id=1"]

    def test_through_an_alias(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.records["_mta-sts.example.org", "CNAME"] = ["_mta-sts.host.example."]
        server.records["_mta-sts.host.example", "TXT"] = ['"v=STSv1; id=1"']
        assert clock.result(resolver.txt("_mta-sts.example.org")) == (b"v=STSv1; id=1",)

    def test_none(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        assert clock.result(resolver.txt("_mta-sts.example.org")) == ()
        server.records["_mta-sts.example.net", "A"] = ["192.0.2.1"]
        assert clock.result(resolver.txt("_mta-sts.example.net")) == ()

    def test_failing(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.broken.add("_mta-sts.example.org")
        with pytest.raises(Fault) as caught:
            clock.result(resolver.txt("_mta-sts.example.org"))
        assert caught.value.reply.enhanced == "4.4.3"


class TestAddresses:
    def test_both_families(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.records["mx.example.org", "A"] = ["192.0.2.1"]
        server.records["mx.example.org", "AAAA"] = ["2001:db8::1"]
        found = clock.result(resolver.addresses("mx.example.org"))
        assert set(found) == {ip_address("192.0.2.1"), ip_address("2001:db8::1")}

    @pytest.mark.parametrize("text", ["192.0.2.1", "[192.0.2.1]"])
    def test_literal(self, clock: ThreadedClock, resolver: Resolver, text: str) -> None:
        assert clock.result(resolver.addresses(text)) == (ip_address("192.0.2.1"),)

    def test_hosts_file(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        assert clock.result(resolver.addresses("filed.example")) == (ip_address("192.0.2.99"),)
        assert not server.questions

    def test_localhost_needs_no_dns(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        assert ip_address("127.0.0.1") in clock.result(resolver.addresses("localhost"))
        assert not server.questions

    def test_one_family_failing_does_not_hide_the_other(
        self, server: DnsServer, clock: ThreadedClock, resolver: Resolver
    ) -> None:
        server.records["mx.example.org", "A"] = ["192.0.2.1"]
        original = server.answer

        def silent_for_ipv6(wire: bytes, *, size: int = 65535) -> bytes | None:
            return None if b"\x00\x1c\x00\x01" in wire else original(wire, size=size)

        server.answer = silent_for_ipv6  # type: ignore[method-assign]
        assert clock.result(resolver.addresses("mx.example.org")) == (ip_address("192.0.2.1"),)

    def test_none(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.records["example.org", "MX"] = ["10 a.example."]
        assert clock.result(resolver.addresses("example.org")) == ()

    def test_no_such_host(self, clock: ThreadedClock, resolver: Resolver) -> None:
        with pytest.raises(NoSuchDomain):
            clock.result(resolver.addresses("nowhere.example"))


class TestCache:
    def test_an_answer_is_kept_for_its_ttl(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.records["example.org", "MX"] = ["10 a.example.org."]
        clock.result(resolver.mx("example.org"))
        server.records["example.org", "MX"] = ["10 b.example.org."]
        clock.advance(59)
        assert clock.result(resolver.mx("example.org")) == ((10, "a.example.org"),)
        clock.advance(2)
        assert clock.result(resolver.mx("example.org")) == ((10, "b.example.org"),)
        assert server.questions["example.org", "MX"] == 2

    def test_no_such_name_is_kept_too(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        for _ in range(3):
            with pytest.raises(NoSuchDomain):
                clock.result(resolver.mx("nowhere.example"))
        assert server.questions["nowhere.example", "MX"] == 1

    def test_equal_questions_become_one(self, server: DnsServer, clock: ThreadedClock, resolver: Resolver) -> None:
        server.records["example.org", "MX"] = ["10 a.example.org."]

        async def both() -> list[object]:
            asked = [Deferred.fromCoroutine(resolver.mx("example.org")) for _ in range(5)]
            return [await question for question in asked]

        assert clock.result(both()) == [((10, "a.example.org"),)] * 5
        assert server.questions["example.org", "MX"] == 1


def test_a_full_resolver_answers_at_once(server: DnsServer, clock: ThreadedClock) -> None:
    resolver = Resolver((server.address,), reactor=clock, clock=clock.seconds, timeout=0.3, at_once=1, waiting=1)
    server.silent.update(("a.example", "b.example"))
    waiting = [Deferred.fromCoroutine(resolver.mx(name)) for name in ("a.example", "b.example")]
    with pytest.raises(Fault) as caught:
        clock.result(resolver.mx("c.example"))
    assert (caught.value.reply.code, caught.value.reply.enhanced) == (451, "4.3.2")
    for question in waiting:
        with pytest.raises(Fault):
            clock.result(_wait(question))
    server.records["c.example", "MX"] = ["1 a.example."]
    assert clock.result(resolver.mx("c.example")) == ((1, "a.example"),)
    resolver.close()


def test_questions_that_nobody_answers_hold_up_no_other(server: DnsServer, clock: ThreadedClock) -> None:
    resolver = Resolver((server.address,), reactor=clock, clock=clock.seconds, timeout=60.0)
    silent = [f"d{number}.example" for number in range(100)]
    server.silent.update(silent)
    waiting = [Deferred.fromCoroutine(resolver.mx(name)) for name in silent]
    server.records["c.example", "MX"] = ["1 a.example."]
    assert clock.result(resolver.mx("c.example")) == ((1, "a.example"),)
    assert resolver.waiting == 100
    ended = resolver.close()
    with pytest.raises(Fault) as caught:
        clock.result(_wait(waiting[0]))
    assert caught.value.reply.enhanced == "4.3.2"
    for question in waiting[1:]:
        question.addErrback(lambda _: None)
    clock.result(_wait(ended))


def test_the_time_of_a_question_begins_when_it_is_asked(server: DnsServer, clock: ThreadedClock) -> None:
    resolver = Resolver((server.address,), reactor=clock, clock=clock.seconds, timeout=0.5, at_once=1, waiting=1)
    server.silent.add("a.example")
    server.records["b.example", "MX"] = ["1 a.example."]
    silent = Deferred.fromCoroutine(resolver.mx("a.example"))
    assert clock.result(resolver.mx("b.example")) == ((1, "a.example"),)
    with pytest.raises(Fault):
        clock.result(_wait(silent))
    resolver.close()


def test_no_server_listens(clock: ThreadedClock) -> None:
    resolver = Resolver(("127.0.0.1:1",), reactor=clock, clock=clock.seconds, timeout=0.2)
    with pytest.raises(Fault) as caught:
        clock.result(resolver.mx("example.org"))
    assert caught.value.reply.code == 451
    resolver.close()


@pytest.mark.parametrize(
    ("text", "label"),
    [("Example.ORG.", "example.org"), ("Bücher.example", "xn--bcher-kva.example"), ("a_b.x", "a_b.x")],
)
def test_a_label(text: str, label: str) -> None:
    assert a_label(text) == label


async def _wait(deferred: Deferred[T]) -> T:
    return await deferred


class TestSecure:
    """What was validated, by the word of a name server that is trusted (RFC 6840 5.8)."""

    ZONE: ClassVar[dict[tuple[str, str], list[str]]] = {
        ("dest.example", "MX"): ["10 mx.dest.example."],
        ("mx.dest.example", "A"): ["192.0.2.1"],
        ("alias.dest.example", "CNAME"): ["mx.dest.example."],
        ("_25._tcp.mx.dest.example", "TLSA"): ["3 1 1 " + "ab" * 32],
    }

    @pytest.fixture
    def trusting(self, server: DnsServer, clock: ThreadedClock) -> Iterator[Resolver]:
        server.records.update(self.ZONE)
        made = Resolver((server.address,), reactor=clock, clock=clock.seconds, hosts="/dev/null", trust_ad=True)
        yield made
        made.close()

    def test_secure(self, server: DnsServer, clock: ThreadedClock, trusting: Resolver) -> None:
        server.secure.add("dest.example")
        assert clock.result(trusting.secure_mx("dest.example"))
        assert clock.result(trusting.secure_mx("nothing.dest.example"))
        assert clock.result(trusting.secure_names("mx.dest.example")) == ("mx.dest.example",)
        assert clock.result(trusting.secure_names("Alias.dest.example.")) == ("mx.dest.example", "alias.dest.example")
        assert clock.result(trusting.tlsa("mx.dest.example", 25)) == (Tlsa(3, 1, 1, b"\xab" * 32),)
        assert clock.result(trusting.tlsa("mx.dest.example", 26)) == ()
        assert clock.result(trusting.secure_names("gone.dest.example")) == ()
        assert clock.result(trusting.secure_names("[192.0.2.1]")) == ()

    def test_insecure(self, clock: ThreadedClock, trusting: Resolver) -> None:
        assert not clock.result(trusting.secure_mx("dest.example"))
        assert clock.result(trusting.secure_names("mx.dest.example")) == ()
        assert clock.result(trusting.tlsa("mx.dest.example", 25)) == ()

    def test_nobody_is_believed_who_is_not_trusted(
        self, server: DnsServer, clock: ThreadedClock, resolver: Resolver
    ) -> None:
        server.records.update(self.ZONE)
        server.secure.add("dest.example")
        assert not clock.result(resolver.secure_mx("dest.example"))
        assert clock.result(resolver.tlsa("mx.dest.example", 25)) == ()

    def test_an_alias_into_an_insecure_zone(self, server: DnsServer, clock: ThreadedClock, trusting: Resolver) -> None:
        server.secure.add("alias.dest.example")
        assert clock.result(trusting.secure_names("alias.dest.example")) == ()

    @pytest.mark.parametrize("broken", [("mx.dest.example", "AAAA"), ("mx.dest.example", "A")])
    def test_a_family_that_fails_may_hide_what_is_secure(
        self, server: DnsServer, clock: ThreadedClock, trusting: Resolver, broken: tuple[str, str]
    ) -> None:
        server.secure.add("dest.example")
        server.broken.add(broken)
        with pytest.raises(Fault) as raised:
            clock.result(trusting.secure_names("mx.dest.example"))
        assert raised.value.reply.enhanced == "4.4.3"

    def test_a_failure_is_no_absence(self, server: DnsServer, clock: ThreadedClock, trusting: Resolver) -> None:
        server.broken |= {"_25._tcp.mx.dest.example", "dest.example"}
        for question in (trusting.tlsa("mx.dest.example", 25), trusting.secure_mx("dest.example")):
            with pytest.raises(Fault) as raised:
                clock.result(question)
            assert raised.value.temporary
