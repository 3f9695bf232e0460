"""Message ids: short, unique for ever, and sorted by time as text and as numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

#: Crockford's base 32: no I, L, O, U, so that an id can be read out over a telephone.
ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
LENGTH: Final = 13

_COUNTER_BITS: Final = 20
_SHARD_BITS: Final = 6
_VALUES: Final = {
    **{letter: value for value, letter in enumerate(ALPHABET)},
    **{letter.lower(): value for value, letter in enumerate(ALPHABET)},
    **dict.fromkeys("iIlL", 1),  # what people read instead
    **dict.fromkeys("oO", 0),
}
_PAIRS: Final = tuple(high + low for high in ALPHABET for low in ALPHABET)


def encode(number: int) -> str:
    """*number* (below 2**63) as 13 characters whose order as text is the order of the numbers."""
    return (
        ALPHABET[number >> 60]
        + _PAIRS[number >> 50 & 1023]
        + _PAIRS[number >> 40 & 1023]
        + _PAIRS[number >> 30 & 1023]
        + _PAIRS[number >> 20 & 1023]
        + _PAIRS[number >> 10 & 1023]
        + _PAIRS[number & 1023]
    )


def decode(text: str) -> int | None:
    """The number of an id as an administrator may type it; None where *text* is no id."""
    if len(text) != LENGTH:
        return None
    number = 0
    for letter in text:
        value = _VALUES.get(letter)
        if value is None:
            return None
        number = number << 5 | value
    return number if number < 1 << 63 else None


def made_at(text: str) -> float:
    """When an id was made, in seconds since the epoch; 0 where *text* is no id."""
    return ((decode(text) or 0) >> _COUNTER_BITS) / 1000


class MessageIds:
    """Makes the ids of one shard: milliseconds since the epoch, then the shard, then a counter.

    A clock that is set back never makes an id come twice: the ids go on from the last one.

    :param last: the greatest id that was ever used.
    :param shard: 0 to 63; ids of different shards differ at any time.
    """

    def __init__(self, last: int = 0, *, shard: int = 0, clock: Callable[[], float] = time.time) -> None:
        if not 0 <= shard < 1 << _SHARD_BITS:
            raise ValueError(f"shard {shard} is not in 0..63")
        self._clock = clock
        self._per_ms = 1 << (_COUNTER_BITS - _SHARD_BITS)
        self._shard = shard << (_COUNTER_BITS - _SHARD_BITS)
        self._ms = last >> _COUNTER_BITS
        self._counter = self._per_ms - 1 if last else -1

    def next(self) -> int:
        """An id greater than all before it."""
        ms = int(self._clock() * 1000)
        if ms > self._ms:
            self._ms, self._counter = ms, 0
        else:
            self._counter += 1
            if self._counter == self._per_ms:
                self._ms, self._counter = self._ms + 1, 0
        return self._ms << _COUNTER_BITS | self._shard | self._counter
