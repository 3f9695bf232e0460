"""The files of the pickup folder on the disk. Blocking: for one thread at a time.

What is taken moves into a hidden folder beside it, under the id that its message will have, and goes when the queue
has it. So a crash at any point leaves each file in the one place or the other, and its name says whether it was queued.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import BinaryIO, Final

from relayd.delivery.durable import sync_folder
from relayd.pickup.lease import open_for_writing
from relayd.pickup.submission import MARK, dropped, marked_end, stuffed
from relayd.queue import ids

#: The folder of what was taken; and the file in it that is locked by whoever picks up.
TAKEN: Final = ".relayd"
LOCK: Final = ".lock"
#: Seconds that a file must not have changed for before it is taken, when the kernel says that nobody writes to it; and
#: when the kernel does not say: where nobody is known to, and where somebody was not seen to close it.
QUIET, UNSURE, UNCLOSED = 1.0, 10.0, 300.0
#: Seconds that an empty file is waited for.
EMPTY: Final = 3600.0
#: Files taken at once: they share the folders' syncs.
BATCH: Final = 50
#: Octets read at once.
BLOCK: Final = 256 * 1024

_ID: Final = 13


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it was at a look: what changes when somebody writes to it; and since when it has been so."""

    state: tuple[int, int, int]  # inode, size, time of the last change
    since: float


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found.

    :ivar ready: names of files that are complete, the oldest first.
    :ivar waiting: whether there are others.
    :ivar stuck: names of files that have been waited for long, or cannot be read, and why.
    """

    ready: tuple[str, ...] = ()
    waiting: bool = False
    stuck: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Taken:
    """A file that was taken, open.

    :ivar name: as it was called.
    :ivar size: octets to send: without a final lone dot that ends the message.
    """

    path: File
    name: str
    file: BinaryIO
    size: int
    unstuff: bool
    state: tuple[int, int, int]

    def blocks(self) -> Iterator[bytes]:
        left = self.size
        while left and (block := self.file.read(min(BLOCK, left))):
            left -= len(block)
            yield block

    @property
    def changed(self) -> bool:
        """Whether somebody still writes to it."""
        return _state(os.fstat(self.file.fileno())) != self.state


@dataclass(slots=True)
class Files:
    """Looks for files, takes them, lets go of them.

    :param dot_stuffed: ``yes``, ``no``, or ``auto``: each file says.
    """

    folder: File
    dot_stuffed: str = "auto"
    _seen: dict[str, Seen] = field(default_factory=dict)
    _lock: int | None = None

    @property
    def taken(self) -> File:
        return self.folder / TAKEN

    def prepare(self) -> None:
        """Makes the folder of what was taken.

        :raises OSError: this process may not write here.
        """
        os.stat(self.folder)
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "relayd may not read it and write to it", os.fspath(self.folder))
        self.taken.mkdir(0o700, exist_ok=True)
        sync_folder(self.folder)

    def hold(self) -> bool:
        """Keeps others from picking up here: what they have taken would look like what a dead process left.

        :returns: whether the folder was not held before.
        :raises OSError: somebody else does; or the folder is not there, or closed to this process.
        """
        import fcntl  # POSIX alone

        path = self.taken / LOCK
        if self._lock is not None and _is_still(path, self._lock):
            return False
        self.release()
        self.prepare()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise BlockingIOError(error.errno, "another relayd picks up here") from None
        except OSError:
            os.close(descriptor)
            raise
        self._lock = descriptor
        return True

    def release(self) -> None:
        """Lets others pick up here."""
        descriptor, self._lock = self._lock, None
        if descriptor is not None:
            os.close(descriptor)

    def look(self, now: float, written: Collection[str]) -> Look:
        """What there is.

        :param now: seconds on any clock.
        :param written: names of files that somebody was seen to write to, and not to close.
        :raises OSError: the folder is not there, or closed to this process.
        """
        seen: dict[str, Seen] = {}
        ready: list[tuple[int, str]] = []
        stuck: list[tuple[str, str]] = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                # A link could lead to what its maker may not read.
                if entry.name.startswith(".") or not entry.is_file(follow_symlinks=False):
                    continue
                try:
                    state = _state(entry.stat(follow_symlinks=False))
                except FileNotFoundError:
                    continue
                before = self._seen.get(entry.name)
                same = before is not None and before.state == state and before.since <= now  # clocks are set back, too
                seen[entry.name] = found = before if before is not None and same else Seen(state, now)
                why = _unfinished(entry.path, now - found.since, bool(state[1]), entry.name in written)
                if why is None:
                    ready.append((state[2], entry.name))
                elif why:
                    stuck.append((entry.name, why))
        self._seen = seen
        names = tuple(name for _, name in sorted(ready))
        return Look(names, len(seen) > len(names) + len(stuck), tuple(stuck))

    def take(self, wanted: Sequence[tuple[str, str]]) -> list[File | str]:
        """Takes files, by name, each for a message id.

        :returns: for each where it is now, or why it could not be taken; empty: it is not there any more.
        """
        results: list[File | str] = []
        for name, message_id in wanted:
            # Some 20 octets fewer than the 255 that a name may have.
            path = self.taken / f"{message_id}.{os.fsdecode(os.fsencode(name)[:200])}"
            results.append(_moved(self.folder / name, path))
        self._sync()
        return results

    def take_again(self, taken: File, message_id: str) -> File:
        """What was taken before goes under another id.

        :raises OSError: it does not.
        """
        path = self.taken / f"{message_id}{taken.name[_ID:]}"
        os.rename(taken, path)
        sync_folder(self.taken)
        return path

    def left(self) -> list[tuple[File, str]]:
        """What was taken and is still there, with the id that its message has if it was queued."""
        files = [(file, file.name[:_ID]) for file in self.taken.iterdir() if file.name[_ID : _ID + 1] == "."]
        return sorted(entry for entry in files if ids.decode(entry[1]) is not None and entry[0].is_file())

    def open(self, taken: File) -> Taken:
        """Opens what was taken, and looks how it is written.

        :raises OSError: it cannot be read.
        """
        descriptor = os.open(taken, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
        file = os.fdopen(descriptor, "rb", buffering=0)
        try:
            status = os.fstat(descriptor)
            size = status.st_size
            file.seek(max(0, size - MARK))
            mark = marked_end(file.read(MARK)) if self.dot_stuffed != "no" else 0
            opened = Taken(taken, called(taken), file, size - mark, self.dot_stuffed == "yes", _state(status))
            if self.dot_stuffed == "auto":
                file.seek(0)
                if dropped(file.read(BLOCK)):
                    opened.size = size
                    file.seek(0)
                    return opened
                file.seek(0)
                opened.unstuff = stuffed(opened.blocks())
                if mark and not opened.unstuff and self._dotted(opened):
                    opened.size = size  # a text with dots, and this is one of them
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return opened

    def _dotted(self, opened: Taken) -> bool:
        """Whether any line begins with a dot."""
        opened.file.seek(0)
        before = b"\n"
        for block in opened.blocks():
            if b"\n." in before + block:
                return True
            before = block[-1:]
        return False

    def let_go(self, files: Iterable[File]) -> None:
        """Removes what the queue has.

        :raises OSError: it stays.
        """
        for file in files:
            file.unlink(missing_ok=True)
        sync_folder(self.taken)

    def _sync(self) -> None:
        # Where a name is in neither folder after a power cut, the mail is gone: the new name comes first.
        sync_folder(self.taken)
        sync_folder(self.folder)


def called(taken: File) -> str:
    """The name that *taken* had in the folder."""
    return taken.name[_ID + 1 :]


def _unfinished(path: str, quiet: float, full: bool, written: bool) -> str | None:
    """None: the file is complete. Else why it is not taken; empty: it is early to say so.

    :param quiet: seconds since it last changed.
    :param full: whether it holds anything.
    :param written: whether somebody was seen to write to it, and not to close it.
    """
    if quiet < (QUIET if full else EMPTY):
        return ""
    try:
        writer = open_for_writing(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if writer is None:
        return None if quiet >= (UNCLOSED if written else UNSURE) else ""
    if not writer:
        return None
    return "it has not changed for long, but somebody has it open to write to it" if quiet >= UNCLOSED else ""


def _is_still(path: File, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _moved(source: File, path: File) -> File | str:
    try:
        os.rename(source, path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"it cannot be moved: {error.strerror}"
    return path


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
