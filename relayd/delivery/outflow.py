"""A large message on its way into a connection: read and framed in a thread, a block at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.queue.store import MessageBody

#: Octets read at a time: enough to make a thread's round trip (15 to 60 µs) small, little enough to hold for
#: every connection at once.
BLOCK = 256 * 1024

T = TypeVar("T")


class Writer(Protocol):
    """Frames a message: :class:`relayd.wire.DataWriter` or :class:`relayd.wire.BdatWriter`."""

    def write(self, octets: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class InThread(Protocol):
    """Calls a function where it may block."""

    def __call__(self, function: Callable[[], T], /) -> Deferred[T]: ...


@implementer(IPushProducer)
class Outflow:
    """Writes *body* as *writer* frames it, at the pace of *consumer*. At most one block is held.

    :ivar done: fires when all was written; fails with :class:`relayd.wire.UncleanMessage` (the end of data was not
        written, and must not be) or OSError. Never fires once the consumer stopped it.
    :param progress: called whenever the consumer took, or asked for, more.
    """

    def __init__(
        self,
        body: MessageBody,
        writer: Writer,
        consumer: IConsumer,
        in_thread: InThread,
        progress: Callable[[], None],
    ) -> None:
        self.done: Deferred[None] = Deferred()
        self._body = body
        self._consumer = consumer
        self._in_thread = in_thread
        self._progress = progress
        self._writer = writer
        self._file: BinaryIO | None = None
        self._reading = False
        self._paused = False
        self._stopped = False

    def start(self) -> None:
        self._consumer.registerProducer(self, True)
        self._advance()

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._progress()
        self._advance()

    def stopProducing(self) -> None:
        self._stopped = True
        if not self._reading:
            self._close()

    def _advance(self) -> None:
        if not (self._reading or self._paused or self._stopped):
            self._reading = True
            self._in_thread(self._block).addCallbacks(self._write, self._fail)

    def _block(self) -> tuple[bytes, bool]:
        """In a thread: the next octets to write, and whether they are the last."""
        if self._file is None:
            self._file = self._body.open()
        octets = self._file.read(BLOCK)
        return (self._writer.write(octets), False) if octets else (self._writer.finish(), True)

    def _write(self, block: tuple[bytes, bool]) -> None:
        self._reading = False
        if self._stopped:
            self._close()
            return
        octets, last = block
        self._consumer.write(octets)
        self._progress()
        if last:
            self._end()
            self.done.callback(None)
        else:
            self._advance()

    def _fail(self, failure: Failure) -> None:
        self._reading = False
        if self._stopped:
            self._close()
            return
        self._end()
        self.done.errback(failure)

    def _end(self) -> None:
        self._stopped = True
        self._consumer.unregisterProducer()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def eight_bit(body: MessageBody) -> bool:
    """Whether a message holds octets above 127. Blocks."""
    with body.open() as file:
        while block := file.read(BLOCK):
            if not block.isascii():
                return True
    return False
