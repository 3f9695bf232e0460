"""One at a time: guesses made at once must not all be too early to be counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Final, TypeVar

from twisted.internet.defer import Deferred

from relayd.model import AUTH_UNAVAILABLE, Fault

__all__ = ["Turns"]

T = TypeVar("T")

#: Answers of one account that may wait while one of them is checked.
WAITING: Final = 100


class Turns:
    """Has what concerns one account done in turn."""

    def __init__(self) -> None:
        self._turns: dict[Hashable, list[Deferred[None]]] = {}

    async def take(self, account: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """The result of *work*, begun when nothing else of *account* is under way.

        :raises Fault: 454 4.7.0: too many wait already.
        """
        while (others := self._turns.get(account)) is not None:
            if len(others) >= WAITING:
                raise Fault(AUTH_UNAVAILABLE, f"{WAITING} answers of one account wait to be checked")
            turn: Deferred[None] = Deferred()
            others.append(turn)
            await turn
        self._turns[account] = []
        try:
            return await work()
        finally:
            for turn in self._turns.pop(account):
                turn.callback(None)
