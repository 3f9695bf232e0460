"""The pickup folder as a service: a real folder, a real queue, real threads; a clock that only the test moves."""

from __future__ import annotations

import errno
import os
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail

from relayd.delivery import BadmailFolder
from relayd.events import BadMail, Event, Events, InternalFault, MessageAccepted, Notice
from relayd.model import Fault, Reply
from relayd.pickup import Files, PickupFolder
from relayd.pickup.folder import LOCK
from relayd.pickup.service import AGAIN, LOOK
from relayd.policy import Policy
from relayd.queue import KEEP, Filter, QueueEntry, SqliteStore, ids
from relayd.settings import Console, Delivery, Domain, Limits, Pickup, Server, Settings
from tests.unit.queue.loop import put
from tests.unit.test_resolver import ThreadedClock

NOW = 1_800_000_000.0
MAIL = b"From: Alice <alice@local.example>\nTo: bob@elsewhere.example\nSubject: %b\n\nHi\n"
FULL = Fault(Reply.of(452, "4.3.1", "Insufficient system storage"), "disk full")


@pytest.fixture(autouse=True)
def _no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is asked about writers; a clock cannot be told by it."""
    monkeypatch.setattr("relayd.pickup.watch.inotify", None)


class Reactor(ThreadedClock):
    def pump(self, until: Callable[[], bool]) -> None:
        """Runs what threads hand over."""
        deadline = time.monotonic() + 30
        while not until():
            try:
                self._calls.get(timeout=0.05)()
            except queue.Empty:
                assert time.monotonic() < deadline, "nothing happened"


class FaultyStore(SqliteStore):
    """A queue that can be made to fail."""

    broken: Fault | None = None

    def insert(self, *args: Any) -> Deferred[Any]:
        return super().insert(*args) if self.broken is None else fail(self.broken)

    def show(self, message_id: str) -> Deferred[QueueEntry | None]:
        return super().show(message_id) if self.broken is None else fail(self.broken)


class Onward:
    room = 0

    def take(self, claim: object) -> None: ...

    def wake(self) -> None: ...


class Relay:
    def __init__(self, place: Path, **limits: int) -> None:
        self.folder, self.state = place / "pickup", place / "state"
        self.folder.mkdir()
        self.settings = Settings(
            file=place / "relayd.toml",
            server=Server("relay.example", self.state),
            console=Console(place / "control.sock"),
            domains=(Domain("local.example"),),
            delivery=Delivery(max_hops=3),
            limits=Limits(**limits),
            pickup=Pickup(self.folder),
            lines={"pickup.directory": 7},
        )
        self.reactor = Reactor()
        self.reactor.advance(NOW)
        self.seen: list[Event] = []
        self.events = Events(self.reactor.seconds)
        self.events.subscribe(lambda _, event: self.seen.append(event))
        self.store = FaultyStore(self.state / "queue", reactor=self.reactor, clock=self.reactor.seconds)
        self.badmail = BadmailFolder(self.state / "badmail", self.reactor)
        self.reactor.result(_wait(self.store.open()))
        policy = Policy(self.settings)
        self.service = PickupFolder(
            self.settings,
            lambda: policy,
            self.store,
            Onward(),
            self.badmail,
            self.events,
            self.reactor,
            self.reactor.seconds,
        )
        self.service.prepare()

    def start(self) -> None:
        self.service.startService()
        self.settle()

    def settle(self) -> None:
        """Until the round is over."""
        self.reactor.pump(lambda: bool(self.reactor.getDelayedCalls()))

    def look(self, rounds: int = 1) -> None:
        """As many looks more."""
        for _ in range(rounds):
            self.reactor.advance(LOOK)
            self.settle()

    def stop(self) -> None:
        if self.service.running:
            self.reactor.result(_wait(self.service.stopService()))
        self.reactor.result(_wait(self.store.close()))

    def write(self, name: str, octets: bytes | None = None) -> None:
        (self.folder / name).write_bytes(MAIL % name.encode() if octets is None else octets)

    def queued(self) -> list[QueueEntry]:
        entries = self.reactor.result(_wait(self.store.list(Filter(limit=0))))
        return [entry for entry in entries if entry.envelope.session == "pickup"]

    def subjects(self) -> list[str]:
        """Of what is in the queue."""
        found = []
        for entry in self.queued():
            body = self.reactor.result(_wait(self.store.body(entry.message_id)))
            assert body is not None
            with body.open() as file:
                found += [line[9:].decode().strip() for line in file if line.startswith(b"Subject: ")]
        return sorted(found)

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file() and path.name != LOCK]

    def told(self, kind: type[Event] = Notice) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]


async def _wait(deferred: Deferred[Any]) -> Any:
    return await deferred


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Relay]]:
    made: list[Relay] = []

    def relay(**limits: int) -> Relay:
        made.append(Relay(tmp_path, **limits))
        return made[-1]

    yield relay
    for one in made:
        one.store.broken = None
        one.stop()


@pytest.fixture
def relay(make: Callable[..., Relay]) -> Relay:
    return make()


def test_a_file_becomes_a_message_and_goes(relay: Relay) -> None:
    relay.write("a.eml")
    relay.start()
    assert relay.queued() == []
    relay.look()
    (entry,) = relay.queued()
    envelope = entry.envelope
    assert (str(envelope.sender.path), [str(r.path) for r in envelope.recipients]) == (
        "alice@local.example",
        ["bob@elsewhere.example"],
    )
    assert envelope.may_relay
    assert envelope.rule == "pickup.directory (line 7)"
    (accepted,) = relay.told(MessageAccepted)
    assert (accepted.queue_id, accepted.file, accepted.session) == (entry.message_id, "a.eml", "pickup")
    relay.look(3)
    assert relay.files() == []
    assert len(relay.queued()) == 1
    assert len(relay.seen) == 1


def test_more_files_than_are_taken_at_once(relay: Relay) -> None:
    names = [f"{number:03}" for number in range(120)]
    for name in names:
        relay.write(name)
    relay.start()
    relay.look()
    assert relay.subjects() == names
    assert relay.files() == []


class TestTrouble:
    def test_a_queue_that_is_full_is_told_once_and_all_is_sent_once_it_is_not(self, relay: Relay) -> None:
        for number in range(60):
            relay.write(f"{number:02}")
        relay.write("00", MAIL % b"00" + b"large\n" * 50_000)  # in a file of the queue
        relay.store.broken = FULL
        relay.start()
        relay.look(int(2 * AGAIN / LOOK))
        relay.write("60")
        relay.look(3)
        assert [notice.text for notice in relay.told()] == [f"{relay.folder}: disk full"]
        assert len(relay.files()) == 61
        assert len(list(relay.folder.glob("*"))) == 11 + 1  # what was not taken lies where it lay; and .relayd
        relay.store.broken = None
        relay.look(int(AGAIN / LOOK) + 2)
        assert relay.subjects() == [f"{number:02}" for number in range(61)]
        assert relay.files() == []
        relay.store.broken = FULL
        relay.write("again")
        relay.look(4)
        assert len(relay.told()) == 2

    def test_a_file_that_cannot_be_read_holds_up_no_other(self, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
        really = Files.open
        sick = True

        def opened(self: Files, taken: Path) -> Any:
            if sick and taken.name.endswith("bad"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return really(self, taken)

        monkeypatch.setattr(Files, "open", opened)
        for name in ("a", "bad", "c"):
            relay.write(name)
        relay.start()
        relay.look(int(3 * AGAIN / LOOK))
        assert relay.subjects() == ["a", "c"]
        assert [notice.text for notice in relay.told()] == [
            f"{relay.folder}/bad: it cannot be read: Input/output error"
        ]
        assert [path.name[14:] for path in relay.files()] == ["bad"]
        sick = False
        relay.look(int(AGAIN / LOOK))
        assert relay.subjects() == ["a", "bad", "c"]

    def test_a_fault_of_its_own_is_told_once_and_makes_no_message_twice(
        self, relay: Relay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        really = Files.open

        def opened(self: Files, taken: Path) -> Any:
            if taken.name.endswith("bad"):
                raise RuntimeError("a bug")
            return really(self, taken)

        monkeypatch.setattr(Files, "open", opened)
        for name in ("a", "bad", *map(str, range(40))):
            relay.write(name)
        relay.start()
        relay.look(5)
        assert len(relay.subjects()) == 41
        assert len(set(relay.subjects())) == 41
        assert len(relay.told(InternalFault)) == 1

    def test_a_folder_that_vanishes_is_told_once_and_one_that_is_made_anew_serves(self, relay: Relay) -> None:
        relay.start()
        away = relay.folder.with_name("away")
        relay.folder.rename(away)
        relay.look(4)
        assert [notice.text for notice in relay.told()] == [
            f"{relay.folder}: No such file or directory: nothing is picked up"
        ]
        relay.folder.mkdir()
        relay.write("a")
        relay.look(3)
        assert relay.subjects() == ["a"]
        assert len(relay.told()) == 1

    def test_another_relayd_is_waited_for(self, relay: Relay) -> None:
        other = Files(relay.folder)
        other.hold()
        relay.write("a")
        relay.start()
        relay.look(4)
        assert [notice.text for notice in relay.told()] == [
            f"{relay.folder}: another relayd picks up here: nothing is picked up"
        ]
        assert relay.queued() == []
        other.release()
        relay.look(2)
        assert relay.subjects() == ["a"]

    def test_badmail_that_cannot_be_written(self, relay: Relay) -> None:
        (relay.state / "badmail").write_text("in the way")
        relay.write("bad", b"no mail\n")
        relay.start()
        relay.look(int(3 * AGAIN / LOOK))
        assert len(relay.told()) == 1
        assert "it cannot be kept in badmail" in relay.told()[0].text
        assert len(relay.files()) == 1
        (relay.state / "badmail").unlink()
        relay.look(int(AGAIN / LOOK))
        assert relay.files() == []
        assert len(relay.told(BadMail)) == 1

    def test_a_writer_that_goes_on_while_it_is_read(self, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the kernel did not say so. It is sent whole, and once."""
        monkeypatch.setattr("relayd.pickup.folder.open_for_writing", lambda path: False)
        really = Files.open
        with (relay.folder / "slow").open("wb", buffering=0) as writer:
            writer.write(MAIL % b"slow")

            def opened(self: Files, taken: Path) -> Any:
                result = really(self, taken)
                if not writer.closed:
                    writer.write(b"Subject: the end\n")
                return result

            monkeypatch.setattr(Files, "open", opened)
            relay.start()
            relay.look()
            assert relay.queued() == []
        assert [notice.text for notice in relay.told()] == [f"{relay.folder}/slow: somebody still writes to it"]
        relay.look(int(AGAIN / LOOK))
        assert relay.subjects() == ["slow", "the end"]
        assert len(relay.queued()) == 1


class TestWhatIsLeft:
    def taken(self, relay: Relay, message_id: str, name: str) -> Path:
        path = relay.folder / ".relayd" / f"{message_id}.{name}"
        path.write_bytes(MAIL % name.encode())
        return path

    def test_what_was_queued_goes_and_what_was_not_is_queued(self, relay: Relay) -> None:
        relay.write("a")
        relay.start()
        relay.look()
        (entry,) = relay.queued()
        self.taken(relay, entry.message_id, "a")
        self.taken(relay, ids.encode(int(NOW * 1000 - 5000) << 20), "b")
        relay.look(int(AGAIN / LOOK))
        assert relay.subjects() == ["a", "b"]
        assert relay.files() == []

    def test_an_id_that_another_message_has_says_nothing(self, relay: Relay) -> None:
        """Ids of a dead process that queued nothing may come again after the clock was set back."""
        other = relay.reactor.result(_wait(put(relay.store)))
        self.taken(relay, other, "a")
        relay.start()
        assert relay.subjects() == ["a"]

    def test_what_is_older_than_the_history_is_kept_for_people(self, relay: Relay) -> None:
        """It may have been sent, and nobody knows any more."""
        self.taken(relay, ids.encode(int((NOW - KEEP - 60) * 1000) << 20), "old")
        relay.start()
        assert relay.queued() == []
        (kept,) = relay.told(BadMail)
        assert "nobody knows any more whether it was sent" in kept.reason
        assert Path(kept.file).read_bytes() == MAIL % b"old"
        assert relay.files() == []


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("octets", "why"),
        [
            (
                b"From: a@local.example\nTo: " + b", ".join(b"b%d@x.example" % n for n in range(4)) + b"\n\n",
                "recipients",
            ),
            (b"From: a@local.example\nTo: b@x.example\n\n" + b"0123456789\n" * 100, "more than 1150 octets"),
            (b"From: a@local.example\nTo: b@x.example\n\n" + b"0" * 1200, "limits.message_size is 1150"),
            (b"Received: x\n" * 3 + MAIL, "3 Received fields"),
            (MAIL + b"a\rb\n", "bare CR"),
            (MAIL + b"a\0b\n", "NUL"),
            (b"From: a@local.example\nTo: Jane Doe\n\n", "'Jane Doe' is no address"),
        ],
    )
    def test_it_goes_to_badmail_once(self, make: Callable[..., Relay], octets: bytes, why: str) -> None:
        relay = make(recipients=3, message_size=1150)
        relay.write("bad", octets)
        relay.write("good")
        relay.start()
        relay.look(3)
        assert relay.subjects() == ["good"]
        (kept,) = relay.told(BadMail)
        assert why in kept.reason
        assert Path(kept.file).read_bytes() == octets
        assert relay.files() == []
        assert relay.told() == []

    def test_who_is_named_twice_counts_once(self, make: Callable[..., Relay]) -> None:
        relay = make(recipients=3)
        relay.write("a", b"From: a\nTo: b@x.example, B@x.example, b@X.Example, c\nCc: <c@local.example>\n\n")
        relay.start()
        relay.look()
        (entry,) = relay.queued()
        assert [str(r.path) for r in entry.envelope.recipients] == ["b@x.example", "B@x.example", "c@local.example"]
        assert str(entry.envelope.sender.path) == "a@local.example"

    def test_an_empty_file(self, relay: Relay) -> None:
        relay.write("empty", b"")
        relay.start()
        relay.look(10)
        assert relay.seen == []
        relay.reactor.advance(3600)
        relay.settle()
        (kept,) = relay.told(BadMail)
        assert "its first line is no header field" in kept.reason


def test_it_stops_when_what_it_has_taken_is_queued(relay: Relay) -> None:
    for number in range(200):
        relay.write(f"{number:03}")
    relay.start()
    relay.reactor.advance(LOOK)
    relay.reactor.pump(lambda: len(relay.seen) > 10)
    relay.reactor.result(_wait(relay.service.stopService()))
    taken = list((relay.folder / ".relayd").glob("*.*"))
    assert [path for path in taken if path.name != LOCK] == []
    assert len(relay.queued()) + len(relay.files()) == 200
    assert len(relay.files()) > 0
    assert relay.reactor.getDelayedCalls() == []
