"""How often a directory was asked, and for what."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Final, Literal

__all__ = ["Operations", "Tally"]


@dataclass(frozen=True, slots=True)
class Operations:
    """What was asked of all controllers together, whether they answered or not.

    :ivar connections: that were opened, with TLS.
    :ivar binds: checks of passwords, and the searcher's own.
    :ivar searches: LDAP search operations; to find one user with its groups takes several.
    """

    connections: int = 0
    binds: int = 0
    searches: int = 0


class Tally:
    """Counts :class:`Operations`: threads add, anybody may look."""

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._so_far = Operations()

    def add(self, what: Literal["connections", "binds", "searches"]) -> None:
        """One more of *what*."""
        with self._lock:
            self._so_far = replace(self._so_far, **{what: getattr(self._so_far, what) + 1})

    @property
    def so_far(self) -> Operations:
        return self._so_far
