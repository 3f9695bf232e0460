"""Bounded thread pools, for the libraries that block; and a thread for those that speak asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from threading import Thread
from typing import Any, TypeVar, cast

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


class AsyncioThread:
    """Runs coroutines of asyncio in one thread: up to *at_once*, with at most *waiting* more in line.

    For what would hold a thread for as long as the other end is silent: here it holds a socket. A full one answers at
    once, as :class:`BoundedPool`. The thread starts with the first call.
    """

    def __init__(self, name: str, reactor: IReactorFromThreads, *, at_once: int, waiting: int) -> None:
        self.name = name
        self.pending = 0
        self._at_once = at_once
        self._most = at_once + waiting
        self._reactor = reactor
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # a loop itself does not keep them alive

    def run(self, begin: Callable[..., Coroutine[Any, Any, T]], *args: object) -> Deferred[T]:
        """The result of ``await begin(*args)`` in the thread; cancelled there = 451 4.3.2."""
        if self.pending >= self._most:
            return fail(_busy(f"{self.name} is full ({self.pending} calls)"))
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            Thread(target=self._run, args=(self._loop,), name=self.name, daemon=True).start()
        self.pending += 1
        result: Deferred[T] = Deferred()

        def done(value: T | Failure) -> None:
            self.pending -= 1
            if isinstance(value, Failure):
                result.errback(value)
            else:
                result.callback(value)

        async def call() -> None:
            value: T | Failure
            try:
                async with self._turn:
                    value = await begin(*args)
            except asyncio.CancelledError:
                value = Failure(_busy(f"{self.name} ends"))
            except Exception:
                value = Failure()
            self._reactor.callFromThread(done, value)

        def not_begun() -> None:
            self._reactor.callFromThread(done, Failure(_busy(f"{self.name} ends")))

        self._loop.call_soon_threadsafe(self._start, call, not_begun)
        return result

    def end(self) -> Deferred[None]:
        """Cancels what runs. Fires when the thread has ended; it takes no more calls."""
        self._most = 0
        ended: Deferred[None] = Deferred()
        if self._loop is None:
            ended.callback(None)
        else:
            self._ended = ended
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None
        return ended

    # ---- in the thread -----------------------------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        self._turn = asyncio.Semaphore(self._at_once)
        try:
            loop.run_forever()
            for task in self._tasks:
                task.cancel()
            # Those that had not begun end with CancelledError: what they would have told is told below.
            loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        finally:
            loop.close()
            self._reactor.callFromThread(self._ended.callback, None)

    def _start(self, call: Callable[[], Coroutine[Any, Any, None]], not_begun: Callable[[], None]) -> None:
        task = asyncio.get_running_loop().create_task(call())
        self._tasks.add(task)

        def over(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                not_begun()

        task.add_done_callback(over)


def _busy(detail: str) -> Fault:
    return Fault(Reply.of(451, "4.3.2", "System busy, please try again later"), detail)
