"""Opening the database of one shard: possession, place, form, and what a dead predecessor left."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from relayd.queue import ids, schema
from relayd.queue.body import BodyFiles
from relayd.queue.disk import Disk
from relayd.queue.faults import trouble

#: How long a writer waits for somebody else's lock on the database.
BUSY: Final = 5.0

#: Up to this size the whole database is checked when it is opened; a bigger one would hold up the start.
CHECKED: Final = 64 * 1024 * 1024

#: Where a lock or an fsync may not mean what it should.
_NETWORK: Final = ("nfs", "cifs", "smb3", "smbfs", "fuse.sshfs")

FILES_SQL: Final = "SELECT id, size FROM message INDEXED BY message_file WHERE in_file AND finished_at IS NULL"

Connect = Callable[..., sqlite3.Connection]


@dataclass(frozen=True, slots=True)
class Places:
    """Files of one shard below the queue's directory."""

    directory: str
    shard: int

    @property
    def database(self) -> str:
        return os.path.join(self.directory, f"{self.shard}.db")

    @property
    def lock(self) -> str:
        return os.path.join(self.directory, f"{self.shard}.lock")

    @property
    def bodies(self) -> BodyFiles:
        return BodyFiles(os.path.join(self.directory, "bodies" if self.shard == 0 else f"bodies.{self.shard}"))


@dataclass(frozen=True, slots=True)
class Found:
    """What opening found.

    :ivar last: the greatest message id.
    :ivar finished: how many finished messages are kept for their history.
    :ivar missing: ids of messages whose file is gone; their recipients are held.
    :ivar orphans: files that belonged to no message, and were removed.
    """

    connection: sqlite3.Connection
    last: int
    finished: int
    missing: tuple[str, ...]
    orphans: int


class Lock:
    """Possession of a shard, until it is released or the process ends."""

    def __init__(self, path: str) -> None:
        """
        :raises Fault: somebody else has it.
        """
        import fcntl  # POSIX alone

        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            by = f" (process {owner})" if owner else ""
            raise trouble(f"{path}: the queue is in use by another relayd{by}") from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
        self._descriptor = descriptor

    def release(self) -> None:
        os.close(self._descriptor)


def make_directory(path: str, disk: Disk) -> None:
    """Makes *path* and what is above it, for the owner alone, and makes its name safe.

    :raises OSError: it cannot.
    """
    if not os.path.isdir(path):
        parent = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(parent):
            make_directory(parent, disk)
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        disk.sync_directory(parent)
    if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        os.chmod(path, 0o700)


def refuse_network(path: str, mounts: str = "/proc/mounts") -> None:
    """
    :raises Fault: *path* lies on a network file system, where neither locks nor fsync can be relied on.
    """
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as lines:
            entries = [line.split(" ") for line in lines]
    except OSError:
        return  # no Linux
    real = os.path.realpath(path)
    best, kind = "", ""
    for entry in entries:
        if len(entry) < 3:
            continue
        point = entry[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, entry[2]
    if kind.startswith(_NETWORK):
        raise trouble(f"{path}: a queue cannot lie on a network file system ({kind} at {best})")


def open_database(places: Places, now: float, disk: Disk, connect: Connect = sqlite3.connect) -> Found:
    """The writing connection, with the leases of a dead predecessor freed. The caller holds the lock.

    :raises Fault: the database is damaged, not a queue's, of a newer relayd, or cannot be written.
    """
    path = places.database
    if sqlite3.sqlite_version_info < (3, 35):
        raise trouble(f"SQLite {sqlite3.sqlite_version} is too old: 3.35 is needed")
    bodies = places.bodies.root
    make_directory(bodies, disk)
    if not os.path.exists(path) or os.path.getsize(path) == 0:
        if any(_files(bodies)):
            raise trouble(f"{path} is missing, but {bodies} holds messages: put the database back, or move them away")
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        disk.sync_directory(places.directory)
    with _explained(path):
        connection = connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False, cached_statements=64)
        try:
            _shape(connection, path)
            return _take_over(connection, places, now, disk)
        except BaseException:
            connection.close()
            raise


def open_reader(path: str, connect: Connect = sqlite3.connect) -> sqlite3.Connection:
    """A connection for short snapshots."""
    connection = connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """SQLite's errors while *path* is opened, as Faults that say what an administrator can do."""
    try:
        yield
    except sqlite3.Error as error:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            text = "is damaged and was left as it is: restore it, or move it away to start with an empty queue"
        elif code == sqlite3.SQLITE_READONLY:
            text = "cannot be written"
        elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            text = "is locked by another program"
        else:
            raise
        raise trouble(f"{path} {text} ({error})") from error


def _pragma(connection: sqlite3.Connection, text: str) -> Any:
    row = connection.execute(f"PRAGMA {text}").fetchone()
    return row[0] if row else None


def _shape(connection: sqlite3.Connection, path: str) -> None:
    """Settings, and tables of this version."""
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    application = _pragma(connection, "application_id")
    version = _pragma(connection, "user_version")
    if tables and application != schema.APPLICATION_ID:
        raise trouble(f"{path} is a database, but not a queue of relayd")
    if version > schema.VERSION:
        raise trouble(f"{path} was written by a newer relayd (version {version}, this one knows {schema.VERSION})")
    if tables and os.path.getsize(path) <= CHECKED:
        answer = _pragma(connection, "quick_check(1)")
        if answer != "ok":
            raise trouble(f"{path} is damaged and was left as it is ({answer})")
    if _pragma(connection, "journal_mode = WAL") != "wal":
        raise trouble(f"{path}: this file system does not take SQLite's write-ahead log")
    connection.execute("PRAGMA synchronous = FULL")
    if _pragma(connection, "synchronous") != 2:
        raise trouble(f"{path}: SQLite does not wait for the disk (synchronous is not FULL)")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cache_size = -32000")
    # Deleted mail is overwritten where that costs no extra write.
    connection.execute("PRAGMA secure_delete = FAST")
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    connection.execute("PRAGMA journal_size_limit = 67108864")
    if not tables:
        connection.executescript(
            f"BEGIN IMMEDIATE; {schema.TABLES}"
            f"PRAGMA application_id = {schema.APPLICATION_ID}; PRAGMA user_version = {schema.VERSION}; COMMIT;"
        )
    connection.executescript(schema.INDEXES)
    connection.executescript(schema.TRIGGERS)


def _take_over(connection: sqlite3.Connection, places: Places, now: float, disk: Disk) -> Found:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(
        "UPDATE recipient SET leased = 0, due_at = min(due_at, ?) WHERE state < 2 AND state = 0 AND leased", (now,)
    )
    files = dict(connection.execute(FILES_SQL).fetchall())
    missing = []
    for number in files:
        message_id = ids.encode(number)
        if not os.path.exists(places.bodies.path(message_id)):
            missing.append(message_id)
            connection.execute(
                "UPDATE recipient SET state = 1 WHERE message = ? AND state = 0",
                (number,),
            )
            connection.execute(
                "INSERT INTO history (message, seq, at, what, detail)"
                " SELECT ?1, ifnull(max(seq), 0) + 1, ?2, 'held', ?3 FROM history WHERE message = ?1",
                (number, now, "the file with the message is missing"),
            )
    connection.execute("COMMIT")
    orphans = 0
    for path in _files(places.bodies.root):
        number_of = ids.decode(os.path.basename(path))
        if number_of is not None and number_of not in files:
            disk.remove(path)
            orphans += 1
    last = connection.execute("SELECT ifnull(max(id), 0) FROM message").fetchone()[0]
    finished = connection.execute("SELECT count(*) FROM message WHERE finished_at IS NOT NULL").fetchone()[0]
    return Found(connection, last, finished, tuple(missing), orphans)


def _files(root: str) -> Iterator[str]:
    """Files of bodies below *root*."""
    for directory in os.scandir(root):
        if directory.is_dir(follow_symlinks=False):
            for entry in os.scandir(directory.path):
                if entry.is_file(follow_symlinks=False):
                    yield entry.path
