"""Answers that are reused for a while."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Answers(Generic[K, V]):
    """Keeps answers by question; equal questions that are asked at the same time become one.

    :param keep: how long an answer is kept, in seconds; 0: not at all.
    :param most: answers held at most.
    """

    def __init__(self, keep: Callable[[V], float], clock: Callable[[], float], most: int = 10_000) -> None:
        self._keep = keep
        self._clock = clock
        self._most = most
        self._kept: dict[K, tuple[float, V]] = {}
        self._asked: dict[K, list[Deferred[V]]] = {}

    async def get(self, question: K, ask: Callable[[], Awaitable[V]], *, fresh: bool = False) -> V:
        """The answer to *question*: a kept one, or what *ask* brings; *fresh*: that in any case."""
        kept = self._kept.get(question)
        if kept is not None and not fresh and kept[0] > self._clock():
            return kept[1]
        if (others := self._asked.get(question)) is not None:
            answer: Deferred[V] = Deferred()
            others.append(answer)
            return await answer
        self._asked[question] = []
        try:
            value = await ask()
        except BaseException:
            failure = Failure()
            for other in self._asked.pop(question):
                other.errback(failure)
            raise
        self.put(question, value)
        for other in self._asked.pop(question):
            other.callback(value)
        return value

    def put(self, question: K, value: V) -> None:
        """Keeps *value*, as if it had been asked for."""
        seconds = self._keep(value)
        if seconds <= 0:
            self._kept.pop(question, None)
            return
        now = self._clock()
        if len(self._kept) >= self._most:
            self._kept = {k: kept for k, kept in self._kept.items() if kept[0] > now}
        if len(self._kept) >= self._most:
            self._kept.clear()
        self._kept[question] = (now + seconds, value)

    def kept(self, question: K) -> tuple[V] | None:
        """The kept answer in a tuple, if there is one."""
        kept = self._kept.get(question)
        return (kept[1],) if kept is not None and kept[0] > self._clock() else None
