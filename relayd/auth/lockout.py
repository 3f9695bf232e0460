"""How often somebody was wrong of late: the brake on guessing."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable


class FailureCount:
    """Counts failures per key in a sliding window, for at most *keys* keys (the longest untouched go first).

    :param limit: failures from which on a key is blocked.
    :param seconds: the length of the window.
    :param clock: seconds, monotonic.
    """

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float], keys: int = 10_000) -> None:
        self.limit = limit
        self.seconds = seconds
        self._clock = clock
        self._keys = keys
        self._failures: OrderedDict[Hashable, deque[float]] = OrderedDict()

    def blocked(self, key: Hashable) -> bool:
        """Whether *key* failed *limit* times in the window."""
        failures = self._failures.get(key)
        if failures is None:
            return False
        oldest = self._clock() - self.seconds
        while failures and failures[0] <= oldest:
            failures.popleft()
        if not failures:
            del self._failures[key]
        return len(failures) >= self.limit

    def failed(self, key: Hashable) -> None:
        failures = self._failures.setdefault(key, deque(maxlen=self.limit))
        failures.append(self._clock())
        self._failures.move_to_end(key)
        if len(self._failures) > self._keys:
            self._failures.popitem(last=False)

    def succeeded(self, key: Hashable) -> None:
        self._failures.pop(key, None)
