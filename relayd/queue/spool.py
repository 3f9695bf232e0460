"""Large bodies on their way into files: written by a bounded pool of threads, with little of them in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from relayd.model import Fault
from relayd.queue.disk import Disk
from relayd.queue.faults import as_fault

#: So many octets of one body may wait for the disk before its sender is told to wait.
BACKLOG: Final = 1024 * 1024

T = TypeVar("T")


class InThread(Protocol):
    """Runs a function in a thread of the pool; the Deferred fires in the reactor's thread."""

    def __call__(self, function: Callable[..., T], *args: Any) -> Deferred[T]: ...


class BodyFile:
    """One file while it is written. One job of it is in the pool at a time, so its blocks stay in order.

    :param path: where it goes; nothing is there yet.
    """

    def __init__(self, path: str, in_thread: InThread, disk: Disk) -> None:
        self.path = path
        self._in_thread = in_thread
        self._disk = disk
        self._descriptor: int | None = None
        self._blocks: list[bytes] = []
        self._outstanding = 0  # octets that wait or are being written
        self._exists = False
        self._busy = False
        self._fault: Fault | None = None
        self._abandoned = False
        self._room: Deferred[None] | None = None
        self._safe: Deferred[None] | None = None
        self._gone: Deferred[None] | None = None

    def write(self, octets: bytes) -> Deferred[None] | None:
        """Takes *octets*; a Deferred asks to write no more until it fires. It fails with what the disk said."""
        if self._fault is not None or self._abandoned:
            return None
        self._blocks.append(octets)
        self._outstanding += len(octets)
        if not self._busy:
            self._start()
        # The fault of a job that could not even start is told by finish().
        if self._outstanding < BACKLOG or self._fault is not None:
            return None
        if self._room is None:
            self._room = Deferred()
        return self._room

    def finish(self) -> Deferred[None]:
        """Writes what waits, and makes the file and its name safe."""
        if self._fault is not None:
            return fail(self._fault)
        self._safe = Deferred()
        safe = self._safe
        if not self._busy:
            self._start()
        return safe

    def abandon(self) -> Deferred[None]:
        """Removes the file. Fires when that is done, or left to the next opening of the queue."""
        self._abandoned = True
        self._blocks.clear()
        self._answer_writer()
        gone = self._gone = Deferred()
        if not self._busy:
            self._start()
        return gone

    def _start(self) -> None:
        """Puts the next job into the pool, where there is one."""
        if self._abandoned or self._fault is not None:
            if self._exists:
                self._busy = True
                self._in_thread(self._remove).addBoth(self._removed)
            else:
                self._removed(None)
            return
        if self._blocks:
            blocks, self._blocks = self._blocks, []
            job = self._in_thread(self._write, blocks)
            self._busy = True
            job.addCallbacks(self._written, self._failed, callbackArgs=(sum(map(len, blocks)),))
        elif self._safe is not None:
            self._busy = True
            self._in_thread(self._make_safe).addCallbacks(self._made_safe, self._failed)

    def _written(self, _: None, size: int) -> None:
        self._busy = False
        self._outstanding -= size
        if self._outstanding < BACKLOG:
            self._answer_writer()
        if not self._busy:
            self._start()

    def _made_safe(self, _: None) -> None:
        self._busy = False
        safe, self._safe = self._safe, None
        if safe is not None:
            safe.callback(None)

    def _failed(self, failure: Failure) -> None:
        self._busy = False
        self._fault = as_fault(failure.value, f"write {self.path}")
        self._blocks.clear()
        self._start()
        self._answer_writer()
        safe, self._safe = self._safe, None
        if safe is not None:
            safe.errback(self._fault)

    def _removed(self, _: object) -> None:
        """What cannot be removed now is removed when the queue is opened again."""
        self._busy = False
        gone, self._gone = self._gone, None
        if gone is not None:
            gone.callback(None)

    def _answer_writer(self) -> None:
        room, self._room = self._room, None
        if room is None:
            return
        if self._fault is not None:
            room.errback(self._fault)
        else:
            room.callback(None)

    # ---- in a thread of the pool ------------------------------------------------------------------------------

    def _write(self, blocks: list[bytes]) -> None:
        if self._descriptor is None:
            self._descriptor = self._disk.create(self.path)
            self._exists = True
        self._disk.write(self._descriptor, blocks[0] if len(blocks) == 1 else b"".join(blocks))

    def _make_safe(self) -> None:
        assert self._descriptor is not None
        self._disk.sync(self._descriptor)
        descriptor, self._descriptor = self._descriptor, None
        self._disk.close(descriptor)
        # The name must survive, too, or the octets are lost with it.
        self._disk.sync_directory(self.path.rpartition("/")[0])

    def _remove(self) -> None:
        self._exists = False
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._disk.close(descriptor)
        self._disk.remove(self.path)
