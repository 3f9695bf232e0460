"""A database that is full, locked or sick: each gets its answer, nothing is lost, and the store goes on."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from relayd.events import Event
from relayd.model import Fault
from relayd.queue import Filter, SqliteStore
from relayd.queue.body import SmallBody
from relayd.queue.faults import as_fault
from relayd.queue.writer import Work
from tests.unit.queue.conftest import MakeStore
from tests.unit.queue.loop import Loop, delivered, envelope, put, put_claimed


class Sick(sqlite3.Connection):
    """The writing connection, which obeys a test."""

    before: Callable[[str], None] | None = None

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if self.before is not None:
            self.before(sql)
        return super().execute(sql, *args)


@pytest.fixture
def sick(make_store: MakeStore) -> tuple[SqliteStore, Sick]:
    """A store, and its writing connection."""
    made: list[Sick] = []

    def connect(path: str, **more: Any) -> sqlite3.Connection:
        connection = sqlite3.connect(path, factory=Sick, **{**more, "timeout": 0.1})
        made.append(connection)
        return connection

    store = make_store(connect=connect)
    return store, made[0]


def limit_pages(loop: Loop, connection: sqlite3.Connection, more: int) -> None:
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + more}")


class TestFull:
    def test_full_is_452_and_what_was_answered_is_there(self, loop: Loop, sick: tuple[SqliteStore, Sick]) -> None:
        store, connection = sick
        limit_pages(loop, connection, 30)
        kept: list[str] = []
        fault = loop.fault(fill(store, kept))
        assert str(fault.reply).startswith("452 4.3.1 ")
        assert 0 < len(kept) < 30
        assert [entry.message_id for entry in loop.wait(store.list(Filter()))] == kept

        # What leaves makes room.
        claims = loop.wait(store.claim(100))
        for claim in claims:
            loop.wait(store.settle(delivered(claim)))
        loop.wait(put(store, bytes(10_000)))

    def test_only_what_does_not_fit_is_refused(self, loop: Loop, sick: tuple[SqliteStore, Sick]) -> None:
        store, connection = sick
        claim = loop.wait(put_claimed(store))
        limit_pages(loop, connection, 20)
        release = stall(loop, store)
        waiting: dict[str, Deferred[Any]] = {
            "large": put(store, bytes(200_000)),
            "small": put(store, b"small\r\n"),
            "settled": store.settle(delivered(claim)),
        }
        release()
        assert loop.fault(waiting["large"]).reply.code == 452
        loop.wait(waiting["small"])
        loop.wait(waiting["settled"])
        assert loop.wait(store.counts())["messages"] == 1


async def fill(store: SqliteStore, kept: list[str]) -> None:
    """Puts messages until one is refused."""
    for _ in range(100):
        kept.append(await put(store, bytes(10_000)))


def stall(loop: Loop, store: SqliteStore) -> Callable[[], None]:
    """Keeps the writer busy until the result is called, so that what is put meanwhile is one batch."""
    entered, gate = threading.Event(), threading.Event()

    def call(_: sqlite3.Connection) -> None:
        entered.set()
        assert gate.wait(60)

    done = store._put(Work(call=call))
    assert entered.wait(60)

    def release() -> None:
        gate.set()
        loop.wait(done)

    return release


class TestPoison:
    def test_it_harms_nobody_else(self, loop: Loop, sick: tuple[SqliteStore, Sick]) -> None:
        store, _ = sick
        release = stall(loop, store)
        before = [put(store) for _ in range(10)]
        poison = put(store, what=envelope("\udcff@example.org"))
        after = [put(store) for _ in range(10)]
        release()
        fault = loop.fault(poison)
        assert fault.reply.code == 451
        assert "UnicodeEncodeError" in fault.detail
        ids = [loop.wait(waiting) for waiting in before + after]
        assert [claim.message_id for claim in loop.wait(store.claim(100))] == ids

    def test_nor_does_an_operation_that_raises(self, loop: Loop, sick: tuple[SqliteStore, Sick]) -> None:
        store, _ = sick

        def call(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM message")
            raise RuntimeError("a fault of relayd itself")

        message_id = loop.wait(put(store))
        release = stall(loop, store)
        poison = store._put(Work(call=call))
        claiming = store.claim(9)
        release()
        assert "a fault of relayd itself" in loop.fault(poison).detail
        assert [claim.message_id for claim in loop.wait(claiming)] == [message_id]

    def test_a_message_id_that_was_used_is_a_fault(self, loop: Loop, sick: tuple[SqliteStore, Sick]) -> None:
        store, _ = sick
        body = SmallBody(b"x\r\n")
        loop.wait(store.insert(7, envelope(), body, False))
        assert loop.fault(store.insert(7, envelope(), body, False)).reply.code == 451
        assert loop.wait(store.counts())["messages"] == 1


@pytest.mark.parametrize(
    "code", [sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOMEM]
)
def test_whatever_sqlite_says_each_gets_451_and_the_store_goes_on(
    loop: Loop, sick: tuple[SqliteStore, Sick], seen: list[Event], code: int
) -> None:
    store, connection = sick
    claim = loop.wait(put_claimed(store))

    def fail(_: str) -> None:
        error = sqlite3.OperationalError("it is sick")
        error.sqlite_errorcode = code
        raise error

    connection.before = fail
    waiting: list[Deferred[Any]] = [put(store), store.claim(1), store.settle(delivered(claim)), store.renew([claim])]
    for one in waiting:
        fault = loop.fault(one)
        assert str(fault.reply).startswith("451 4.3.0 ")
        assert "it is sick" in fault.detail
    connection.before = None
    loop.until(lambda: bool(seen))
    assert {event.name for event in seen} == {"fault"}

    loop.wait(store.settle(delivered(claim)))
    message_id = loop.wait(put(store))
    assert [claim.message_id for claim in loop.wait(store.claim(9))] == [message_id]


def test_a_message_whose_octets_are_gone_is_held_and_keeps_no_other_back(
    loop: Loop, sick: tuple[SqliteStore, Sick], seen: list[Event]
) -> None:
    store, connection = sick
    lost, other = loop.wait(put(store)), loop.wait(put(store))
    connection.execute("DELETE FROM body WHERE id = (SELECT min(id) FROM body)")
    assert [claim.message_id for claim in loop.wait(store.claim(9))] == [other]
    loop.until(lambda: bool(seen))
    assert [(event.name, getattr(event, "queue_id", "")) for event in seen] == [("fault", lost)]
    assert loop.wait(store.counts())["held"] == 1
    assert loop.wait(store.show(lost)) is not None


@pytest.mark.parametrize("failing", ["BEGIN", "COMMIT", "INSERT"])
def test_a_transaction_that_fails_is_undone(loop: Loop, sick: tuple[SqliteStore, Sick], failing: str) -> None:
    store, connection = sick
    loop.wait(put(store))

    def fail(sql: str) -> None:
        if sql.startswith(failing):
            raise sqlite3.OperationalError("disk I/O error")

    connection.before = fail
    loop.fault(store.claim(1))
    connection.before = None
    assert len(loop.wait(store.claim(1))) == 1


LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print(flush=True)
sys.stdin.read()
"""


def test_locked_by_another_process_is_451_until_it_lets_go(
    loop: Loop, sick: tuple[SqliteStore, Sick], directory: Path
) -> None:
    store, _ = sick
    first = loop.wait(put(store))
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(directory / "0.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        many = [put(store) for _ in range(50)]
        for waiting in many:
            fault = loop.fault(waiting)
            assert str(fault.reply).startswith("451 4.3.0 ")
            assert "locked" in fault.detail
        # Reading goes on.
        assert loop.wait(store.counts())["messages"] == 1
        other.kill()
    second = loop.wait(put(store))
    assert [claim.message_id for claim in loop.wait(store.claim(9))] == [first, second]


def test_a_file_system_that_turns_read_only(loop: Loop, make_store: MakeStore, mount: Callable[[str], Path]) -> None:
    place = mount("16m")
    store = make_store(place / "queue")
    loop.wait(put(store))
    loop.wait(store.close())
    assert os.system(f"mount -o remount,ro {place}") == 0
    fault = loop.fault(SqliteStore(place / "queue", reactor=loop).open())
    assert fault.reply.code == 451
    assert str(place) in fault.detail
    assert os.system(f"mount -o remount,rw {place}") == 0
    loop.wait(store.open())
    assert len(loop.wait(store.claim(1))) == 1
    loop.wait(store.close())


def test_too_many_questions_at_once(loop: Loop, store: SqliteStore) -> None:
    asked = [store.next_due() for _ in range(2000)]
    refused = 0
    for one in asked:
        try:
            loop.wait(one)
        except Fault as fault:
            refused += fault.reply.code == 451
    assert 0 < refused < 2000
    assert loop.wait(store.next_due()) is None


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "452 4.3.1"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "452 4.3.1"),
        (OSError(errno.EROFS, "Read-only file system"), "451 4.3.0"),
        (sqlite3.OperationalError("locked"), "451 4.3.0"),
        (ValueError("nonsense"), "451 4.3.0"),
    ],
)
def test_errors_as_faults(error: Exception, reply: str) -> None:
    fault = as_fault(error, "write")
    assert str(fault.reply).startswith(reply + " ")
    assert fault.temporary
    assert "write: " in fault.detail
    assert str(error) not in fault.reply.text
    assert as_fault(fault, "again") is fault
