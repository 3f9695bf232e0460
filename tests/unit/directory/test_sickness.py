"""Everything a sick directory can do is temporary, ends in time, and leaves no thread and no descriptor behind."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from relayd import settings
from relayd.directory import Directory, Unavailable
from relayd.directory.connecting import Connector
from relayd.directory.connection import Connection, Controller
from relayd.directory.faults import ControllerFault
from relayd.directory.kerberos import KeytabAccount
from relayd.directory.searcher import Searcher
from relayd.events import ControllerRests, Event
from relayd.model import Fault
from tests.lab.ca import LabCA, Leaf
from tests.lab.net import wait_for
from tests.unit.directory.conftest import FakeDns, MakeDirectory, descriptors, fired
from tests.unit.directory.server import BASE, SEARCHER, FakeDirectory
from tests.unit.test_resolver import ThreadedClock

ALICE = f"CN=alice,{BASE}"
#: Seconds that a question may take here, and what the machine may add.
TIMEOUT, SLACK = 0.5, 10.0


def _answer(**told: Callable[[], Any]) -> Callable[[str, str], Any]:
    def answer(kind: str, name: str) -> Any:
        return told[kind]() if kind in told else None

    return answer


def hangs_in_the_handshake(server: FakeDirectory) -> None:
    server.tls = server.hang


def hangs_at_the_bind(server: FakeDirectory) -> None:
    server.answer = _answer(bind=server.hang)


def hangs_at_the_search(server: FakeDirectory) -> None:
    server.answer = _answer(search=server.hang)


def drips(server: FakeDirectory) -> None:
    server.answer = _answer(search=server.drip)


def closes_at_the_bind(server: FakeDirectory) -> None:
    server.answer = _answer(bind=lambda: ConnectionError)


def closes_at_the_search(server: FakeDirectory) -> None:
    server.answer = _answer(search=lambda: ConnectionError)


def talks_nonsense(server: FakeDirectory) -> None:
    server.answer = _answer(search=lambda: iter([b"HTTP/1.1 400 Bad Request\r\n\r\n" * 3]))


def answers_what_nobody_asked(server: FakeDirectory) -> None:
    server.answer = _answer(search=lambda: iter([bytes.fromhex("300c02010961070a010004000400")]))


def says_goodbye(server: FakeDirectory) -> None:
    # Notice of disconnection, RFC 4511 4.4.1
    notice = "302402010078 1f 0a0134 0400 0400 8a16312e332e362e312e342e312e313436362e3230303336"
    server.answer = _answer(search=lambda: iter([bytes.fromhex(notice)]))


def ends_in_the_middle(server: FakeDirectory) -> None:
    def half() -> Any:
        yield bytes.fromhex("3084000000ff0201")
        raise ConnectionError

    server.answer = _answer(search=half)


def _code(kind: str, code: int) -> Callable[[FakeDirectory], None]:
    def sicken(server: FakeDirectory) -> None:
        server.answer = _answer(**{kind: lambda: code})

    sicken.__name__ = f"{kind}_answered_with_{code}"
    return sicken


SICKNESSES = (
    hangs_in_the_handshake,
    hangs_at_the_bind,
    hangs_at_the_search,
    drips,
    closes_at_the_bind,
    closes_at_the_search,
    talks_nonsense,
    answers_what_nobody_asked,
    says_goodbye,
    ends_in_the_middle,
    # operationsError, timeLimitExceeded, strongerAuthRequired, referral, adminLimitExceeded, busy, unavailable,
    # unwillingToPerform, other
    *(_code(kind, code) for kind in ("bind", "search") for code in (1, 3, 8, 10, 11, 51, 52, 53, 80)),
)


@pytest.mark.parametrize("sicken", SICKNESSES, ids=lambda sicken: sicken.__name__)
def test_sick_from_the_start(
    clock: ThreadedClock,
    make: MakeDirectory,
    server: FakeDirectory,
    events: list[Event],
    sicken: Callable[[FakeDirectory], None],
) -> None:
    before = descriptors()
    sicken(server)
    directory = make(server.url, timeout=TIMEOUT)
    start = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        clock.result(directory.find("alice"), timeout=SLACK)
    assert time.monotonic() - start < SLACK
    assert caught.value.reply.code == 454
    assert server.url in caught.value.detail
    assert [type(event) for event in events] == [ControllerRests]
    # It rests: the next one hears so at once, and nobody connects.
    connections = server.connections
    with pytest.raises(Unavailable):
        clock.result(directory.find("bob"))
    assert server.connections == connections
    # Well again, and its rest over, it is asked again.
    server.answer = server.tls = None
    clock.advance(1)
    assert clock.result(directory.find("alice"))
    clock.result(fired(directory.close()), timeout=SLACK)
    server.__exit__(None, None, None)
    wait_for(lambda: descriptors() <= before, "descriptors closed")


@pytest.mark.parametrize(
    "sicken",
    [s for s in SICKNESSES if "search" not in s.__name__ and "hand" not in s.__name__],
    ids=lambda s: s.__name__,
)
def test_sick_when_a_password_is_checked(
    clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory, sicken: Callable[[FakeDirectory], None]
) -> None:
    directory = make(server.url, timeout=TIMEOUT)
    alice = clock.result(directory.find("alice"))
    assert alice is not None
    sicken(server)
    if "bind" not in sicken.__name__:
        usual, server.answer = server.answer, None
        assert usual is not None
        server.answer = lambda kind, name: usual("search", name)
    with pytest.raises(Unavailable) as caught:
        clock.result(directory.verify(alice, b"wonderland"), timeout=SLACK)
    assert caught.value.reply.code == 454
    assert caught.value.asked >= 1  # it may have been counted


def test_a_refusal_tells_of_binds_that_had_no_answer_before_it(
    clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory
) -> None:
    directory = make(server.url, timeout=TIMEOUT)
    alice = clock.result(directory.find("alice"))
    assert alice is not None
    first = clock.result(directory.verify(alice, b"wrong"))  # leaves an idle connection
    assert first is not None
    assert (first.unanswered, first.failures) == (0, 1)
    answers: list[object] = [ConnectionError]
    server.answer = lambda kind, name: answers.pop() if kind == "bind" and answers else None
    again = clock.result(directory.verify(alice, b"wrong"))
    assert again is not None
    assert (str(again), again.unanswered, again.failures) == (str(first), 1, 2)


class TestCertificates:
    def refused(self, clock: ThreadedClock, directory: Directory, server: FakeDirectory, why: str) -> None:
        with pytest.raises(Unavailable, match=why):
            clock.result(directory.find("alice"))
        assert not server.asked["bind", SEARCHER]

    @pytest.mark.parametrize("ldaps", [True, False], ids=["ldaps", "starttls"])
    def test_of_another_authority(self, clock: ThreadedClock, make: MakeDirectory, tmp_path: Path, ldaps: bool) -> None:
        other = LabCA(tmp_path / "other")
        with FakeDirectory(other.leaf("localhost"), ldaps=ldaps) as server:
            self.refused(clock, make(server.url), server, "certificate verify failed")

    @pytest.mark.parametrize("ldaps", [True, False], ids=["ldaps", "starttls"])
    def test_for_another_name(self, clock: ThreadedClock, make: MakeDirectory, ca: LabCA, ldaps: bool) -> None:
        with FakeDirectory(ca.leaf("other.example", filename="other"), ldaps=ldaps) as server:
            self.refused(clock, make(server.url), server, "mismatch|valid for")

    def test_for_a_name_though_the_address_was_asked_for(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory
    ) -> None:
        self.refused(clock, make(server.url.replace("localhost", "127.0.0.1")), server, "mismatch|valid for")

    def test_expired(self, clock: ThreadedClock, make: MakeDirectory, ca: LabCA) -> None:
        with FakeDirectory(ca.leaf("localhost", filename="old", days=-1)) as server:
            self.refused(clock, make(server.url), server, "expired")

    def test_the_systems_authorities_by_default(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory
    ) -> None:
        self.refused(clock, make(server.url, ca=None), server, "certificate verify failed")

    @pytest.mark.parametrize("code", [1, 2, 52])
    def test_without_starttls_nothing_is_said(
        self, clock: ThreadedClock, make: MakeDirectory, leaf: Leaf, code: int
    ) -> None:
        with FakeDirectory(leaf, ldaps=False, answer=_answer(starttls=lambda: code)) as server:
            self.refused(clock, make(server.url), server, "startTLS")

    def test_an_authority_that_is_none(self, make: MakeDirectory, tmp_path: Path) -> None:
        (tmp_path / "ca").write_text("nothing")
        with pytest.raises(ValueError, match=r"directory\.ca"):
            make("ldaps://localhost", ca=tmp_path / "ca")


class TestFailover:
    @pytest.mark.parametrize("sicken", SICKNESSES, ids=lambda sicken: sicken.__name__)
    def test_the_next_controller_answers_within_the_time_out(
        self,
        clock: ThreadedClock,
        make: MakeDirectory,
        server: FakeDirectory,
        leaf: Leaf,
        events: list[Event],
        sicken: Callable[[FakeDirectory], None],
    ) -> None:
        sicken(server)
        with FakeDirectory(leaf) as second:
            directory = make(server.url, second.url, timeout=2.0)
            alice = clock.result(directory.find("alice"), timeout=SLACK)
            assert alice is not None
            assert clock.result(directory.verify(alice, b"wonderland")) is None
            assert len(events) == 1

    def test_a_host_without_an_address_is_passed_over(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory, dns: FakeDns
    ) -> None:
        dns.known["dc0.corp.example"] = ()
        assert clock.result(make("ldaps://dc0.corp.example", server.url).find("alice"))

    def test_one_of_several_addresses_will_do(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory, dns: FakeDns
    ) -> None:
        dns.known["localhost"] = (IPv4Address("127.0.0.99"), IPv4Address("127.0.0.1"))
        assert clock.result(make(server.url).find("alice"))

    def test_rests_grow_and_end(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory, events: list[Event]
    ) -> None:
        server.answer = _answer(bind=lambda: 52)
        directory = make(server.url)
        for _ in range(9):
            with pytest.raises(Unavailable):
                clock.result(directory.find("alice"))
            clock.advance(60)
        rests = [event.seconds for event in events if isinstance(event, ControllerRests)]
        assert rests == [1, 2, 4, 8, 16, 32, 60, 60, 60]

    def test_several_calls_that_see_one_failure_are_one(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory, events: list[Event]
    ) -> None:
        directory = make(server.url, timeout=2.0)
        assert clock.result(directory.find("alice"))
        server.answer = _answer(search=lambda: 51)
        asked = [Deferred.fromCoroutine(directory.find(f"user{number}")) for number in range(4)]
        clock.result(fired(DeferredList(asked, consumeErrors=True)))
        assert [event.seconds for event in events if isinstance(event, ControllerRests)] == [1]

    def test_who_waits_too_long_for_a_thread_blames_no_controller(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory, leaf: Leaf, events: list[Event]
    ) -> None:
        directory = make(server.url, threads=1, timeout=TIMEOUT)
        assert clock.result(directory.find("alice"))
        server.answer = _answer(search=server.hang)
        asked = [Deferred.fromCoroutine(directory.find(f"user{number}")) for number in range(4)]
        done = clock.result(fired(DeferredList(asked, consumeErrors=True)), timeout=SLACK)
        details = [_fault(result).detail for result in done]
        assert "timed out" in details[0]
        assert details[1:] == ["directory: no thread was free in time"] * 3
        assert len(events) == 1

    def test_dns_that_fails_is_temporary(self, clock: ThreadedClock, make: MakeDirectory, dns: FakeDns) -> None:
        dns.broken = True
        for directory in (make("ldaps://localhost"), make(domain="corp.example")):
            with pytest.raises(Unavailable):
                clock.result(directory.find("alice"))

    def test_a_domain_without_controllers(self, clock: ThreadedClock, make: MakeDirectory, dns: FakeDns) -> None:
        with pytest.raises(Unavailable, match="no such SRV record"):
            clock.result(make(domain="corp.example").find("alice"))
        dns.records["_ldap._tcp.dc._msdcs.corp.example"] = ((0, 0, "dc.evilcorp.example", 389),)
        with pytest.raises(Unavailable, match="names no host in"):
            clock.result(make(domain="corp.example").find("alice"))


def test_a_connection_that_ended_while_it_was_idle_is_replaced(
    clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory, events: list[Event]
) -> None:
    directory = make(server.url, cache=0.0)
    for _ in range(3):
        assert clock.result(directory.find("alice"))
        server.hang_up()
        wait_for(lambda: not server.open, "the server's side closed")
    assert not events


def test_one_that_ends_just_when_it_is_used_is_replaced(
    clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory, events: list[Event]
) -> None:
    directory = make(server.url, cache=0.0)
    assert clock.result(directory.find("alice"))
    ends = iter([ConnectionError])
    server.answer = lambda kind, name: next(ends, None) if kind == "search" else None
    assert clock.result(directory.find("alice"))
    assert not events


def _fault(result: Any) -> Fault:
    success, failure = result
    assert not success
    assert isinstance(failure, Failure)
    assert isinstance(failure.value, Fault)
    return failure.value


def test_a_full_pool_answers_at_once(clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory) -> None:
    directory = make(server.url, threads=2, waiting=1, timeout=2.0)
    assert clock.result(directory.find("alice"))
    server.answer = _answer(search=server.hang)
    asked = [Deferred.fromCoroutine(directory.find(f"user{number}")) for number in range(5)]
    # Three are under way, the others were told.
    told = [deferred for deferred in asked if deferred.called]
    assert len(told) == 2
    done = clock.result(fired(DeferredList(asked, consumeErrors=True)), timeout=SLACK)
    assert [fault.reply.code for fault in map(_fault, done)] == [454] * 5


def test_recipients_are_deferred(clock: ThreadedClock, make: MakeDirectory) -> None:
    with pytest.raises(Fault) as caught:
        clock.result(make("ldaps://localhost:1").has_recipient("alice@corp.example"))
    assert str(caught.value.reply).startswith("451 4.3.0")


class TestSearcher:
    """The account that searches must not be locked by searching."""

    def test_a_refused_password_is_not_tried_again(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory, password_file: Path, events: list[Event]
    ) -> None:
        password_file.write_text("wrong")
        directory = make(server.url, f"{server.url}/")
        for _ in range(5):
            with pytest.raises(Unavailable, match=f"bind_user {SEARCHER}.*52e"):
                clock.result(directory.find("alice"))
        assert server.asked["bind", SEARCHER] == 1
        assert not events  # no controller is to blame
        clock.advance(15 * 60)
        for _ in range(2):
            with pytest.raises(Unavailable):
                clock.result(directory.find("alice"))
        assert server.asked["bind", SEARCHER] == 2

    def test_several_at_once_try_it_once(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory, password_file: Path
    ) -> None:
        password_file.write_text("wrong")
        directory = make(server.url)
        asked: list[Deferred[Any]]
        asked = [Deferred.fromCoroutine(directory.find_sid(f"S-1-5-{number}")) for number in range(4)]
        asked += [Deferred.fromCoroutine(directory.has_recipient(f"{number}@corp.example")) for number in range(4)]
        clock.result(fired(DeferredList(asked, consumeErrors=True)))
        assert server.asked["bind", SEARCHER] == 1

    def test_another_password_in_the_file_is_tried_at_once(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory, password_file: Path
    ) -> None:
        right = password_file.read_bytes()
        password_file.write_text("wrong")
        directory = make(server.url)
        with pytest.raises(Unavailable):
            clock.result(directory.find("alice"))
        password_file.write_bytes(right)
        assert clock.result(directory.find("alice"))

    def test_a_password_changed_elsewhere_leaves_open_connections_alone(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory
    ) -> None:
        directory = make(server.url, cache=0.0)
        assert clock.result(directory.find("alice"))
        server.passwords[SEARCHER] = b"changed"
        assert clock.result(directory.find("bob"))

    @pytest.mark.parametrize("content", [None, b"", b"\n"])
    def test_no_password(
        self,
        clock: ThreadedClock,
        make: MakeDirectory,
        server: FakeDirectory,
        password_file: Path,
        content: bytes | None,
    ) -> None:
        if content is None:
            password_file.unlink()
        else:
            password_file.write_bytes(content)
        with pytest.raises(Unavailable, match="password"):
            clock.result(make(server.url).find("alice"))
        assert not server.asked["bind", SEARCHER]


class TestKeytabSearcher:
    """What needs no Kerberos to fail; the rest is tested against a real controller."""

    def test_without_the_extra(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "krb5", None)
        directory = make(server.url, bind_user="", bind_password_file=None)
        with pytest.raises(Unavailable, match=r"relayd\[kerberos\]"):
            clock.result(directory.find("alice"))
        assert server.asked.total() == 0
        assert directory.status()[0].rests == 0  # no controller is to blame

    def test_sasl_that_a_controller_does_not_take(self, server: FakeDirectory, ca: LabCA) -> None:
        server.answer = _answer(bind=lambda: 7)  # authMethodNotSupported
        with pytest.raises(ControllerFault, match="authMethodNotSupported"):
            _opened(server, ca).bind_sasl("GSSAPI", _says(b"token"))

    def test_sasl_that_goes_on_for_ever(self, server: FakeDirectory, ca: LabCA) -> None:
        server.answer = _answer(bind=lambda: 14)  # saslBindInProgress
        with pytest.raises(ControllerFault, match="wants more"):
            _opened(server, ca).bind_sasl("GSSAPI", _says(b"token", b"last"))

    def test_sasl_that_is_refused(self, server: FakeDirectory, ca: LabCA) -> None:
        server.answer = _answer(bind=lambda: 49)
        refused = _opened(server, ca).bind_sasl("GSSAPI", _says(b"token"))
        assert refused is not None

    @pytest.mark.parametrize("sicken", [hangs_at_the_bind, closes_at_the_bind])
    def test_sasl_without_an_answer(
        self, server: FakeDirectory, ca: LabCA, sicken: Callable[[FakeDirectory], None]
    ) -> None:
        sicken(server)
        connection = _opened(server, ca)
        connection.limit(time.monotonic() + TIMEOUT)
        with pytest.raises(ControllerFault):
            connection.bind_sasl("GSSAPI", _says(b"token"))


def _opened(server: FakeDirectory, ca: LabCA) -> Connection:
    connector = Connector(settings.Directory(ca=ca.path), Searcher(KeytabAccount(None)))
    until = time.monotonic() + SLACK
    return connector.open(Controller("localhost", server.port, True), (IPv4Address("127.0.0.1"),), until)


def _says(*words: bytes) -> Generator[bytes, bytes, None]:
    for word in words:
        _ = yield word
