"""Taking possession: one owner, the right place, the right form; what is damaged is left as it is."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from relayd.model import Fault
from relayd.queue import SqliteStore
from relayd.queue.database import refuse_network
from relayd.queue.schema import VERSION
from relayd.queue.store import Filter
from tests.unit.queue.conftest import MakeStore
from tests.unit.queue.loop import Loop, put


def refused(loop: Loop, directory: Path) -> str:
    """What a store says that cannot be opened."""
    fault = loop.fault(SqliteStore(directory, reactor=loop).open())
    assert fault.reply.code == 451
    return fault.detail


def test_files_and_directories_are_the_owners_alone(loop: Loop, store: SqliteStore, directory: Path) -> None:
    loop.wait(put(store))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes.pop("bodies") == 0o700
    assert set(modes.values()) == {0o600}
    assert {"0.db", "0.db-wal", "0.db-shm", "0.lock"} <= set(modes)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_directory_that_is_open_to_others_is_closed(make_store: MakeStore, directory: Path) -> None:
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    make_store()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_every_commit_waits_for_the_disk(make_store: MakeStore, directory: Path) -> None:
    made: list[sqlite3.Connection] = []

    class Seen(sqlite3.Connection):
        def __init__(self, *args: object, **more: object) -> None:
            super().__init__(*args, **more)  # type: ignore[arg-type]
            made.append(self)

    make_store(connect=lambda *a, **k: sqlite3.connect(*a, factory=Seen, **k))
    (writer,) = made
    assert writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_second_opener_in_this_process_is_refused(loop: Loop, store: SqliteStore, directory: Path) -> None:
    assert f"in use by another relayd (process {os.getpid()})" in refused(loop, directory)
    loop.wait(put(store))


def test_a_second_process_is_refused_until_the_first_is_gone(loop: Loop, directory: Path) -> None:
    directory.mkdir(parents=True, mode=0o700)
    code = "import sys; from relayd.queue.database import Lock; Lock(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(directory / "0.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        assert f"process {other.pid}" in refused(loop, directory)
        other.kill()
    store = SqliteStore(directory, reactor=loop)
    loop.wait(store.open())
    loop.wait(store.close())


def test_shards_are_apart(loop: Loop, make_store: MakeStore) -> None:
    one, other = make_store(), make_store(shard=1)
    loop.wait(put(one))
    assert loop.wait(other.claim(1)) == ()
    assert len(loop.wait(one.claim(1))) == 1


def test_an_empty_file_is_a_new_queue(loop: Loop, make_store: MakeStore, directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "0.db").touch()
    loop.wait(put(make_store()))


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (b"this is no database, but long enough to look at" * 100, "is damaged and was left as it is"),
        (b"SQLite format 3\0" + b"\xff" * 8176, "is damaged and was left as it is"),
    ],
)
def test_what_is_no_database_is_left_alone(loop: Loop, directory: Path, octets: bytes, said: str) -> None:
    directory.mkdir(parents=True)
    path = directory / "0.db"
    path.write_bytes(octets)
    detail = refused(loop, directory)
    assert str(path) in detail
    assert said in detail
    assert path.read_bytes() == octets
    refused(loop, directory)  # and the lock was given back


def test_a_damaged_database_is_left_alone(loop: Loop, make_store: MakeStore, directory: Path) -> None:
    store = make_store()
    for _ in range(50):
        loop.wait(put(store))
    loop.wait(store.close())
    path = directory / "0.db"
    octets = bytearray(path.read_bytes())
    for page in range(1, len(octets) // 4096):
        octets[page * 4096 : page * 4096 + 64] = b"\xa5" * 64
    path.write_bytes(octets)
    assert "is damaged and was left as it is" in refused(loop, directory)
    assert path.read_bytes() == octets


def test_somebody_elses_database_is_left_alone(loop: Loop, directory: Path) -> None:
    directory.mkdir(parents=True)
    path = directory / "0.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE precious (thing)")
    connection.close()
    octets = path.read_bytes()
    assert "not a queue of relayd" in refused(loop, directory)
    assert path.read_bytes() == octets


def test_a_newer_queue_is_left_alone(loop: Loop, make_store: MakeStore, directory: Path) -> None:
    loop.wait(make_store().close())
    connection = sqlite3.connect(directory / "0.db")
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    assert f"newer relayd (version {VERSION + 1}, this one knows {VERSION})" in refused(loop, directory)


def test_a_queue_of_an_older_relayd_gets_what_looks_at_long_queues_need(
    loop: Loop, make_store: MakeStore, directory: Path
) -> None:
    loop.wait(make_store().close())
    connection = sqlite3.connect(directory / "0.db")
    connection.executescript("DROP INDEX message_open; DROP INDEX message_file;")
    connection.close()
    store = make_store()
    assert loop.wait(store.list(Filter())) == ()
    assert loop.wait(store.counts())["messages"] == 0


def test_a_path_that_cannot_be(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refused(loop, tmp_path / "file" / "queue")


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ("/dev/vda / ext4 rw 0 0\n", None),
        ("/dev/vda / ext4 rw 0 0\nsrv:/q /srv/queue nfs4 rw 0 0\n", "nfs4"),
        ("/dev/vda / ext4 rw 0 0\n//srv/q /srv cifs rw 0 0\n", "cifs"),
        ("//srv/q /srv cifs rw 0 0\n/dev/vdb /srv/queue xfs rw 0 0\n", None),
        ("/dev/vda / ext4 rw 0 0\nh:/ /srv/queue fuse.sshfs rw 0 0\n", "fuse.sshfs"),
        ("/dev/vda / ext4 rw 0 0\nsrv:/q /srv/que nfs rw 0 0\n", None),
        ("/dev/vda / ext4 rw 0 0\nsrv:/q /srv/queue nfs rw 0 0\ntmpfs /srv/queue tmpfs rw 0 0\n", None),
        ("", None),
    ],
)
def test_network_file_systems_are_refused(tmp_path: Path, mounts: str, kind: str | None) -> None:
    file = tmp_path / "mounts"
    file.write_text(mounts)
    if kind is None:
        refuse_network("/srv/queue", str(file))
        return
    with pytest.raises(Fault, match=f"network file system \\({kind} at "):
        refuse_network("/srv/queue", str(file))


def test_a_mount_point_with_blanks(tmp_path: Path) -> None:
    file = tmp_path / "mounts"
    file.write_text("/dev/vda / ext4 rw 0 0\nsrv:/q /srv/my\\040queue nfs rw 0 0\n")
    with pytest.raises(Fault, match="my queue"):
        refuse_network("/srv/my queue/state", str(file))
