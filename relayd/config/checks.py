"""What a single value cannot tell: names that repeat or do not exist, missing files, keys that contradict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from relayd.config.reading import Reading
from relayd.settings import Settings

CHECKS: Final[tuple[Callable[[Reading, Settings], None], ...]] = ()


def check(reading: Reading, settings: Settings) -> None:
    for one in CHECKS:
        one(reading, settings)
