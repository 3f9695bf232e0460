"""From those who fill the queue to whoever delivers: straight from memory, where there is room."""

from __future__ import annotations

from typing import Protocol

from relayd.queue.store import Claim


class Onward(Protocol):
    """Who delivers."""

    @property
    def room(self) -> int:
        """How many more claims it takes; 0: a message is committed without one, and found later."""

    def take(self, claim: Claim) -> None: ...

    def wake(self) -> None: ...


def hand_on(onward: Onward, claim: Claim | None) -> None:
    """A message was committed, with *claim* or without."""
    if claim is not None:
        onward.take(claim)
    else:
        onward.wake()
