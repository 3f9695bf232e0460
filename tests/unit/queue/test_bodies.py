"""Large bodies: streamed into files, safe with their names before the commit, gone with the message."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from relayd.events import Event
from relayd.queue import SMALL_BODY, Filter, MessageState, Settlement, SqliteStore
from relayd.queue.disk import Disk
from relayd.queue.sqlite import READS
from tests.unit.queue.conftest import MakeStore
from tests.unit.queue.loop import Loop, attempt, delivered, envelope, put, put_claimed, put_large

LARGE = os.urandom(1024) * 3000  # not a multiple of the block


class Recorded(Disk):
    """Writes down which calls were made, and fails or waits at a wish."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.fail: dict[str, OSError] = {}
        self.gate: threading.Event | None = None
        self.written = 0

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call in self.fail:
            raise self.fail[call]

    def create(self, path: str) -> int:
        self._note("create")
        return super().create(path)

    def write(self, descriptor: int, octets: bytes) -> None:
        if self.gate is not None:
            assert self.gate.wait(60)
        self._note("write")
        super().write(descriptor, octets)
        self.written += len(octets)

    def sync(self, descriptor: int) -> None:
        self._note("sync")
        super().sync(descriptor)

    def sync_directory(self, path: str) -> None:
        self._note(f"sync {os.path.basename(path)}")
        super().sync_directory(path)

    def close(self, descriptor: int) -> None:
        self._note("close")
        super().close(descriptor)

    def remove(self, path: str) -> None:
        self._note("remove")
        super().remove(path)


@pytest.fixture
def disk() -> Recorded:
    return Recorded()


@pytest.fixture
def store(make_store: MakeStore, disk: Recorded) -> SqliteStore:
    store = make_store(disk=disk)
    disk.calls.clear()
    return store


def files(directory: Path) -> list[Path]:
    return [path for path in (directory / "bodies").rglob("*") if path.is_file()]


def room(directory: Path) -> int:
    """Octets that its file system has left."""
    state = os.statvfs(directory)
    return state.f_bavail * state.f_frsize


@pytest.mark.parametrize("size", [0, 1, SMALL_BODY - 1, SMALL_BODY])
def test_a_small_body_lies_in_the_row(loop: Loop, store: SqliteStore, directory: Path, size: int) -> None:
    claim = loop.wait(put_claimed(store, bytes(size)))
    assert claim.body.octets == bytes(size)
    assert files(directory) == []


@pytest.mark.parametrize("size", [SMALL_BODY + 1, 2 * SMALL_BODY, len(LARGE)])
@pytest.mark.parametrize("claimed", [True, False])
def test_a_large_body_lies_in_a_file(loop: Loop, store: SqliteStore, directory: Path, size: int, claimed: bool) -> None:
    octets = LARGE[:size]
    message_id, claim = loop.wait(put_large(store, octets, claimed=claimed))
    if claim is None:
        (claim,) = loop.wait(store.claim(1))
    assert claim.body.octets is None
    assert claim.body.size == size
    with claim.body.open() as file:
        assert file.read() == octets
    (path,) = files(directory)
    assert path.name == message_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    body = loop.wait(store.body(message_id))
    assert body is not None
    assert body.size == size


def test_the_file_and_its_name_are_safe_before_the_commit(
    loop: Loop, store: SqliteStore, disk: Recorded, directory: Path
) -> None:
    message_id, _ = loop.wait(put_large(store, LARGE))
    calls = [call for call in disk.calls if call != "write"]
    assert calls == ["create", "sync bodies", "sync", "close", f"sync {message_id[7:9]}"]
    assert disk.calls.index("sync") > max(n for n, call in enumerate(disk.calls) if call == "write")
    assert disk.written == len(LARGE)


def test_a_directory_that_somebody_else_made_is_made_safe_too(
    loop: Loop, make_store: MakeStore, directory: Path
) -> None:
    """It may have been made by a process that lost its power before it came to the fsync, or by another thread."""
    disk = Recorded()
    store = make_store(disk=disk)
    draft = store.draft()
    (directory / "bodies" / draft.message_id[7:9]).mkdir()
    disk.calls.clear()
    draft.write(LARGE)
    loop.wait(draft.commit(envelope(), claimed=False))
    assert disk.calls.index("sync bodies") < disk.calls.index("sync")
    disk.calls.clear()
    loop.wait(put_large(store, LARGE))  # the clock stands still: the same directory
    assert "sync bodies" not in disk.calls


def test_the_row_is_not_there_before_the_name_is_safe(loop: Loop, store: SqliteStore, disk: Recorded) -> None:
    disk.fail["close"] = OSError(errno.EIO, "Input/output error")
    fault = loop.fault(put_large(store, LARGE))
    assert str(fault.reply).startswith("451 4.3.0 ")
    assert "Input/output error" in fault.detail
    assert loop.wait(store.counts())["messages"] == 0


def test_a_fast_sender_is_told_to_wait(loop: Loop, store: SqliteStore, disk: Recorded) -> None:
    disk.gate = threading.Event()
    draft = store.draft()
    given = 0
    room: Deferred[None] | None = None
    while room is None:
        room = draft.write(bytes(65536))
        given += 65536
        assert given <= 2 * 1024 * 1024
    assert given >= 1024 * 1024
    assert disk.written == 0
    disk.gate.set()
    loop.wait(room)
    assert given - disk.written < 1024 * 1024
    loop.wait(draft.commit(envelope(), claimed=False))
    assert disk.written == given


def test_a_finished_message_loses_its_file(loop: Loop, store: SqliteStore, directory: Path) -> None:
    _, claim = loop.wait(put_large(store, LARGE, claimed=True))
    assert claim is not None
    loop.wait(store.settle(delivered(claim)))
    loop.poll(lambda: not files(directory))
    assert loop.wait(store.body(claim.message_id)) is None


def test_so_do_more_than_may_be_asked_about_at_once(loop: Loop, store: SqliteStore, directory: Path) -> None:
    octets = b"x" * (SMALL_BODY + 1)
    claims = [loop.wait(put_large(store, octets, claimed=True))[1] for _ in range(READS + 50)]
    settled = [store.settle(delivered(claim)) for claim in claims if claim is not None]
    assert len(settled) == READS + 50
    for each in settled:
        loop.wait(each)
    loop.poll(lambda: not files(directory))


def test_a_file_that_cannot_be_removed_keeps_no_other(
    loop: Loop, store: SqliteStore, disk: Recorded, directory: Path, seen: list[Event]
) -> None:
    disk.fail["remove"] = OSError(errno.EIO, "Input/output error")
    _, claim = loop.wait(put_large(store, LARGE, claimed=True))
    assert claim is not None
    loop.wait(store.settle(delivered(claim)))
    loop.poll(lambda: bool(seen))
    assert len(files(directory)) == 1
    disk.fail.clear()
    _, claim = loop.wait(put_large(store, LARGE, claimed=True))
    assert claim is not None
    loop.wait(store.settle(delivered(claim)))
    loop.poll(lambda: len(files(directory)) == 1)


def test_a_deferred_one_does_not(loop: Loop, store: SqliteStore, directory: Path) -> None:
    _, claim = loop.wait(put_large(store, LARGE, claimed=True))
    assert claim is not None
    deferred = attempt(claim.recipients[0], MessageState.QUEUED, next_at=0.0)
    loop.wait(store.settle(Settlement(claim, (deferred,))))
    loop.wait(store.close())
    assert len(files(directory)) == 1


def test_a_dropped_message_loses_its_file(loop: Loop, store: SqliteStore, directory: Path) -> None:
    loop.wait(put_large(store, LARGE))
    assert loop.wait(store.drop(Filter(), "admin")) == 1
    loop.wait(store.close())
    assert files(directory) == []


@pytest.mark.parametrize("blocks", [1, 5, 40])
def test_an_abandoned_draft_loses_its_file(loop: Loop, store: SqliteStore, directory: Path, blocks: int) -> None:
    draft = store.draft()
    for _ in range(blocks):
        draft.write(bytes(100_000))
    draft.abandon()
    loop.poll(lambda: not files(directory))
    loop.wait(store.close())
    assert files(directory) == []


@pytest.mark.parametrize("call", ["create", "write", "sync"])
@pytest.mark.parametrize(
    ("number", "reply"), [(errno.ENOSPC, "452 4.3.1"), (errno.EDQUOT, "452 4.3.1"), (errno.EIO, "451 4.3.0")]
)
def test_what_the_disk_says_is_what_the_client_hears(
    loop: Loop, store: SqliteStore, disk: Recorded, directory: Path, call: str, number: int, reply: str
) -> None:
    disk.fail[call] = OSError(number, os.strerror(number))
    draft = store.draft()
    draft.write(LARGE[: SMALL_BODY + 1])
    fault = loop.fault(draft.commit(envelope(), claimed=False))
    assert str(fault.reply).startswith(reply)
    assert os.strerror(number) in fault.detail
    loop.poll(lambda: not files(directory))
    disk.fail.clear()
    loop.wait(put_large(store, LARGE))
    assert loop.wait(store.counts())["messages"] == 1


def test_whoever_waits_for_room_hears_it_too(loop: Loop, store: SqliteStore, disk: Recorded) -> None:
    disk.fail["write"] = OSError(errno.ENOSPC, "No space left on device")
    draft = store.draft()
    room = draft.write(bytes(2 * 1024 * 1024))
    assert room is not None
    assert loop.fault(room).reply.code == 452
    assert draft.write(b"more") is None
    assert loop.fault(draft.commit(envelope(), claimed=False)).reply.code == 452


def test_a_file_system_that_is_really_full(loop: Loop, make_store: MakeStore, mount: Callable[[str], Path]) -> None:
    small = mount("4m")
    store = make_store(small / "queue")
    fault = loop.fault(put_large(store, bytes(8 * 1024 * 1024)))
    assert str(fault.reply).startswith("452 4.3.1 ")
    loop.poll(lambda: not files(small / "queue"))
    loop.poll(lambda: room(small) > 3 * 1024 * 1024)  # a name goes before its room comes back

    # Rows until it is full, and less of them until each is too much.
    kept, refused = [], None
    while refused is None:
        try:
            kept.append(loop.wait(put(store, bytes(100_000))))
        except Exception as error:
            refused = error
    assert getattr(refused, "reply").code == 452  # noqa: B009
    assert kept
    # Reading goes on, and what was answered is there when there is room again.
    assert loop.wait(store.counts())["messages"] == len(kept)
    assert os.system(f"mount -o remount,size=32m {small}") == 0
    kept.append(loop.wait(put(store, bytes(100_000))))
    loop.wait(store.close())
    store = make_store(small / "queue")
    assert {entry.message_id for entry in loop.wait(store.list(Filter(limit=0)))} == set(kept)
    loop.wait(store.close())


class TestAfterACrash:
    def test_files_of_no_message_are_removed_and_told(
        self, loop: Loop, make_store: MakeStore, directory: Path, seen: list[Event]
    ) -> None:
        store = make_store()
        message_id, _ = loop.wait(put_large(store, LARGE))
        draft = store.draft()
        loop.wait(store.close())
        orphan = directory / "bodies" / "ZZ" / draft.message_id
        orphan.parent.mkdir()
        orphan.write_bytes(b"half of a messa")
        foreign = directory / "bodies" / "ZZ" / "README"
        foreign.write_bytes(b"not ours")
        store = make_store()
        assert {path.name for path in files(directory)} == {message_id, "README"}
        loop.until(lambda: bool(seen))
        assert [event.name for event in seen] == ["notice"]
        (claim,) = loop.wait(store.claim(1))
        with claim.body.open() as file:
            assert file.read() == LARGE

    def test_a_message_whose_file_is_gone_is_held_and_told(
        self, loop: Loop, make_store: MakeStore, directory: Path, seen: list[Event]
    ) -> None:
        store = make_store()
        message_id, _ = loop.wait(put_large(store, LARGE))
        other = loop.wait(put(store))
        loop.wait(store.close())
        for path in files(directory):
            path.unlink()
        store = make_store()
        loop.until(lambda: bool(seen))
        (event,) = seen
        assert event.name == "fault"
        assert getattr(event, "queue_id") == message_id  # noqa: B009
        assert [claim.message_id for claim in loop.wait(store.claim(9))] == [other]
        assert loop.wait(store.counts())["held"] == 1
        assert loop.wait(store.history(message_id))[-1].what == "held"

    def test_bodies_without_a_database_are_never_taken_for_orphans(
        self, loop: Loop, make_store: MakeStore, directory: Path
    ) -> None:
        store = make_store()
        loop.wait(put_large(store, LARGE))
        loop.wait(store.close())
        (directory / "0.db").unlink()
        again = SqliteStore(directory, reactor=loop)
        fault = loop.fault(again.open())
        assert "is missing" in fault.detail
        assert len(files(directory)) == 1


def test_files_spread_over_many_directories(store: SqliteStore, now: Callable[[], float]) -> None:
    clock: Any = now
    places = set()
    for _ in range(2000):
        clock.at += 0.0013
        places.add(store.body_file(store.draft().message_id).path.split("/")[-2])
    assert len(places) > 500
