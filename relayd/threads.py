"""Bounded thread pools, for the libraries that block."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from threading import Thread
from typing import TypeVar, cast

from twisted.internet.defer import Deferred, DeferredSemaphore, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from relayd.model import Fault, Reply

T = TypeVar("T")


class BoundedPool:
    """Runs blocking calls in up to *threads* threads, with at most *waiting* more calls in line.

    A full pool answers at once (design, promise 5): the Deferred fails with 451 4.3.2, or with *full*.
    Threads start with the first call.
    """

    def __init__(
        self,
        name: str,
        reactor: IReactorFromThreads,
        *,
        threads: int,
        waiting: int,
        full: Reply | None = None,
    ) -> None:
        self.name = name
        self.pending = 0
        self._in_turn = 0
        self._free = DeferredSemaphore(threads)
        self._most = threads + waiting
        self._full = full or Reply.of(451, "4.3.2", "System busy, please try again later")
        self._reactor = reactor
        self._pool = ThreadPool(0, threads, name=name)
        self._started = False

    def run(self, call: Callable[..., T], *args: object) -> Deferred[T]:
        """The result of ``call(*args)``, made in a thread."""
        if self.pending >= self._most:
            return fail(self._refusal(self.pending))
        if not self._started:
            self._pool.start()
            self._started = True
        self.pending += 1
        result: Deferred[T] = Deferred()

        def done(success: bool, value: T | Failure) -> None:
            self.pending -= 1
            if success:
                result.callback(cast(T, value))
            else:
                result.errback(cast(Failure, value))

        self._pool.callInThreadWithCallback(
            lambda success, value: self._reactor.callFromThread(done, success, value), call, *args
        )
        return result

    async def in_turn(self, begin: Callable[[], Awaitable[T]]) -> T:
        """The result of *begin*, which is called when a thread is free for the one call that it may have under way.

        For those who choose what the thread shall work with: they need not choose before they wait.
        """
        if self._in_turn >= self._most:
            raise self._refusal(self._in_turn)
        self._in_turn += 1
        try:
            await self._free.acquire()
            try:
                return await begin()
            finally:
                self._free.release()
        finally:
            self._in_turn -= 1

    def _refusal(self, calls: int) -> Fault:
        return Fault(self._full, f"thread pool {self.name} is full ({calls} calls)")

    def stop(self) -> None:
        """Waits for the calls that run, and ends the threads."""
        if self._started:
            self._pool.stop()
            self._started = False

    def end(self) -> Deferred[None]:
        """As :meth:`stop`, for the reactor: fires when the threads have ended."""
        ended: Deferred[None] = Deferred()

        def wait() -> None:
            self.stop()
            self._reactor.callFromThread(ended.callback, None)

        Thread(target=wait, name=f"end of {self.name}").start()
        return ended
