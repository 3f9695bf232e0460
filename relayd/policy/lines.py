"""Rules by name: the key that decides and the line where the administrator wrote it."""

from __future__ import annotations

from collections.abc import Mapping

from relayd.model import Rule


class Lines:
    """Makes rules out of ``Settings.lines``."""

    def __init__(self, lines: Mapping[str, int]) -> None:
        self._lines = lines

    def rule(self, key: str, *instead: str) -> Rule:
        """The rule *key*, or the first of *instead* that was written when *key* was not.

        The line of an entry whose own line is not known is that of its list, and of a table that of its name.
        """
        for candidate in (key, *instead):
            around = candidate.rpartition("[")[0] if candidate.endswith("]") else ""
            for written in (candidate, f"{candidate}.name", around):
                if written in self._lines:
                    return Rule(candidate, self._lines[written])
        return Rule(instead[-1] if instead else key)
