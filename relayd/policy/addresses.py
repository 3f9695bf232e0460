"""Mail addresses in an administrator's rules: ``alice@corp.example``, ``*@apps.corp.example``, ``*@*.example``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from relayd.model import Path
from relayd.policy.domains import fold

_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)


def plain_local(local: str) -> str:
    """A local part without its quotes (RFC 5321 4.1.2): ``"a\\ b"`` and ``"a b"`` name the same mailbox."""
    if len(local) >= 2 and local[0] == local[-1] == '"':
        return _QUOTED_PAIR.sub(r"\1", local[1:-1])
    return local


def is_postmaster(path: Path) -> bool:
    """Whether the local part is ``postmaster``, in any case (RFC 5321 4.5.1)."""
    return plain_local(path.local).lower() == "postmaster"


def address_key(path: Path) -> tuple[str, str]:
    """Two addresses that an administrator's rule takes as the same have the same key."""
    return plain_local(path.local).lower(), fold(path.domain)


def written_key(address: str) -> tuple[str, str]:
    """:func:`address_key` of an address as it is written in a rule or in the directory."""
    local, _, domain = address.rpartition("@")
    return address_key(Path(local, domain))


class AddressPatterns:
    """Patterns of addresses, compiled. ``*`` stands for any text in the local part, and ``*.`` before a domain for
    anything below it; ``*`` alone or as the domain is anything. A pattern without @ that is not ``*`` matches nothing.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._exact: dict[tuple[str, str], int] = {}
        self._globs: list[tuple[int, re.Pattern[str], str, bool]] = []
        for index, pattern in enumerate(patterns):
            local, at, domain = pattern.rpartition("@")
            if pattern == "*":
                local = domain = "*"
            elif not at:
                continue
            if "*" not in local and not domain.startswith("*"):
                self._exact.setdefault(written_key(pattern), index)
                continue
            glob = ".*".join(re.escape(part) for part in local.lower().split("*"))
            below = domain == "*" or domain.startswith("*.")
            suffix = fold(domain.removeprefix("*").removeprefix(".")) if below else fold(domain)
            self._globs.append((index, re.compile(glob, re.DOTALL), suffix, below))

    def match(self, path: Path) -> int | None:
        """The index of the first pattern that holds *path*, or None."""
        local, domain = address_key(path)
        best = self._exact.get((local, domain))
        for index, glob, suffix, below in self._globs:
            if best is not None and best < index:
                break
            held = domain == suffix if not below else not suffix or domain.endswith(f".{suffix}")
            if held and glob.fullmatch(local):
                return index
        return best
