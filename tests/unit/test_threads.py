"""The bounded pool: results, failures, and an answer at once when it is full."""

import asyncio
import threading
from functools import partial
from typing import TypeVar

import pytest
from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from relayd.model import Fault, Reply
from relayd.threads import AsyncioThread, BoundedPool

T = TypeVar("T")


class Inbox:
    """A reactor for threads to call: calls wait until :meth:`until` runs them."""

    def __init__(self) -> None:
        self._calls: list[tuple[object, ...]] = []
        self._news = threading.Condition()

    def callFromThread(self, call: object, *args: object) -> None:
        with self._news:
            self._calls.append((call, *args))
            self._news.notify()

    def until(self, result: Deferred[T]) -> object:
        outcome: list[object] = []
        result.addBoth(outcome.append)
        while not outcome:
            with self._news:
                assert self._news.wait_for(lambda: bool(self._calls), 10)
                call, *args = self._calls.pop(0)
            assert callable(call)
            call(*args)
        return outcome[0]


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


def test_results_and_failures_come_back(inbox: Inbox) -> None:
    pool = BoundedPool("test", inbox, threads=1, waiting=1)  # type: ignore[arg-type]
    assert inbox.until(pool.run(divmod, 7, 3)) == (2, 1)
    failed = inbox.until(pool.run(divmod, 7, 0))
    assert isinstance(failed, Failure)
    assert failed.check(ZeroDivisionError)
    pool.stop()


def test_a_full_pool_says_so_at_once_and_recovers(inbox: Inbox) -> None:
    pool = BoundedPool("test", inbox, threads=1, waiting=1, full=Reply.of(454, "4.7.0", "busy"))  # type: ignore[arg-type]
    gate = threading.Event()
    first, second = pool.run(gate.wait, 10), pool.run(gate.wait, 10)
    refused: list[object] = []
    pool.run(gate.wait, 10).addErrback(refused.append)
    (failure,) = refused
    assert isinstance(failure, Failure)
    assert isinstance(failure.value, Fault)
    assert failure.value.reply.code == 454
    gate.set()
    assert inbox.until(first) is True
    assert inbox.until(second) is True
    assert inbox.until(pool.run(gate.is_set)) is True
    assert pool.pending == 0
    pool.stop()


def test_who_works_in_turn_chooses_when_a_thread_is_free(inbox: Inbox) -> None:
    pool = BoundedPool("test", inbox, threads=1, waiting=1)  # type: ignore[arg-type]
    begun: list[int] = []

    async def begin(number: int) -> int:
        begun.append(number)
        return (await pool.run(divmod, number, 1))[0]

    first, second, third = (Deferred.fromCoroutine(pool.in_turn(partial(begin, number))) for number in (1, 2, 3))
    assert begun == [1]
    refused = inbox.until(third)
    assert isinstance(refused, Failure)
    assert refused.check(Fault)
    assert (inbox.until(first), inbox.until(second)) == (1, 2)
    assert begun == [1, 2]
    assert inbox.until(Deferred.fromCoroutine(pool.in_turn(partial(begin, 4)))) == 4
    pool.stop()


class TestAsyncioThread:
    def test_results_and_failures(self) -> None:
        inbox = Inbox()
        thread = AsyncioThread("test", inbox, at_once=2, waiting=2)  # type: ignore[arg-type]

        async def half(number: int) -> float:
            await asyncio.sleep(0)
            return 1 / number

        assert inbox.until(thread.run(half, 2)) == 0.5
        failure = inbox.until(thread.run(half, 0))
        assert isinstance(failure, Failure)
        assert failure.check(ZeroDivisionError)
        assert thread.pending == 0
        inbox.until(thread.end())

    def test_whoever_waits_at_the_end_is_told(self) -> None:
        """What is under way, what waits for its turn, and what has not even begun."""
        inbox = Inbox()
        thread = AsyncioThread("test", inbox, at_once=1, waiting=3)  # type: ignore[arg-type]
        asked = [thread.run(asyncio.sleep, 1000) for _ in range(4)]
        full = thread.run(asyncio.sleep, 1000)
        outcomes = DeferredList([*asked, full], consumeErrors=True)
        ended = thread.end()
        results = inbox.until(outcomes)
        assert isinstance(results, list)
        assert [failure.value.reply.enhanced for _, failure in results] == ["4.3.2"] * 5
        inbox.until(ended)
        assert isinstance(inbox.until(thread.run(asyncio.sleep, 0)), Failure)
