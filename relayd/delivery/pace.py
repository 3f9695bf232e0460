"""How many messages a route takes in a time: next hops that throttle refuse whoever sends more (``rate``)."""

from __future__ import annotations

from collections import deque

from relayd.settings import Rate


class Pace:
    """Counts what was sent, so that no stretch of ``rate.seconds`` sees more than ``rate.count``.

    Shared by all destinations whose routes keep one rate.
    """

    def __init__(self, rate: Rate) -> None:
        self._seconds = rate.seconds
        self._sent: deque[float] = deque(maxlen=rate.count)

    def wait(self, now: float) -> float:
        """Seconds until the next message may go; 0 = it may go now."""
        sent = self._sent
        if len(sent) < (sent.maxlen or 0):
            return 0.0
        gone = now - sent[0]
        return self._seconds - gone if 0 <= gone < self._seconds else 0.0  # below 0: the clock was set back

    def take(self, now: float) -> None:
        """A message goes."""
        self._sent.append(now)
