"""The drop folder: mail for local domains, as files that some other program picks up.

As IIS wrote them: the envelope stands on top in X-Sender and X-Receiver lines, the message follows as it was stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path as File

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

from relayd.delivery import durable
from relayd.model import Fault, Path
from relayd.queue.store import MessageBody
from relayd.threads import BoundedPool

_Order = tuple[str, bytes, MessageBody, Deferred[str]]


class DropFolder:
    """Writes messages into *folder*. One thread does it; deliveries that wait for it share a directory fsync.

    :param folder: made when it is not there.
    """

    def __init__(self, folder: File, reactor: IReactorFromThreads, pool: BoundedPool | None = None) -> None:
        self._folder = folder
        self._pool = pool or BoundedPool("drop", reactor, threads=1, waiting=1)
        self._waiting: list[_Order] = []
        self._busy = False
        self._idle: list[Deferred[None]] = []

    def deliver(
        self, message_id: str, part: int, sender: Path, receivers: Sequence[Path], body: MessageBody
    ) -> Deferred[str]:
        """Writes one file, ``ID-PART.eml``. Delivered twice after a crash, it is the same file.

        :param part: tells the deliveries of one message apart.
        :returns: fires with the file's name once it would survive a power cut; fails with a Fault (452, 451).
        """
        name = f"{durable.safe_name(message_id)}-{part}.eml"
        done: Deferred[str] = Deferred()
        self._waiting.append((name, envelope_lines(sender, receivers), body, done))
        if not self._busy:
            self._next()
        return done

    def stop(self) -> Deferred[None]:
        """Fires when nothing is being written any more."""
        if not self._busy:
            self._pool.stop()
            return succeed(None)
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        return idle.addCallback(lambda _: self._pool.stop())

    def _next(self) -> None:
        batch, self._waiting = self._waiting, []
        self._busy = bool(batch)
        if not batch:
            idle, self._idle = self._idle, []
            for waiting in idle:
                waiting.callback(None)
            return
        self._pool.run(self._write, batch).addCallbacks(
            self._written, self._failed, callbackArgs=(batch,), errbackArgs=(batch,)
        )

    def _write(self, batch: Sequence[_Order]) -> list[Fault | None]:
        """Writes all of *batch*; what went wrong with each. In a thread."""
        try:
            durable.make_folder(self._folder)
        except OSError as error:
            return [durable.disk_fault(error, str(self._folder))] * len(batch)
        faults = []
        for name, top, body, _ in batch:
            file = str(self._folder / name)
            faults.append(durable.guarded(file, durable.write, self._folder, name, _content(top, body)))
        if not all(faults) and (fault := durable.guarded(str(self._folder), durable.sync_folder, self._folder)):
            return [fault] * len(batch)
        return faults

    def _written(self, faults: Sequence[Fault | None], batch: Sequence[_Order]) -> None:
        self._next()
        for (name, _, _, done), fault in zip(batch, faults, strict=True):
            if fault is None:
                done.callback(name)
            else:
                done.errback(fault)

    def _failed(self, failure: Failure, batch: Sequence[_Order]) -> None:
        self._next()
        for _, _, _, done in batch:
            done.errback(failure)


def envelope_lines(sender: Path, receivers: Iterable[Path]) -> bytes:
    """The X-Sender and X-Receiver lines. The null reverse-path is written as ``<>``."""
    lines = [f"X-Sender: {'<>' if sender.null else sender}", *(f"X-Receiver: {path}" for path in receivers)]
    # A parsed path holds no control character; a line more in this place would be a recipient more.
    return b"".join(
        "".join(c if c.isprintable() else "?" for c in line).encode("utf-8", "replace") + b"\r\n" for line in lines
    )


def _content(top: bytes, body: MessageBody) -> Iterable[bytes]:
    yield top
    yield from durable.chunks(body)
