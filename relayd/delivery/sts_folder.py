"""MTA-STS policies kept across restarts: one file a domain, which an administrator can read, and remove while relayd is
down."""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path as File
from typing import Final

from relayd.delivery import durable
from relayd.delivery.sts_policy import Policy, fields, parsed

#: Longer names of domains become their hash: a file's name has 255 octets, and a temporary one is longer.
_LONGEST_NAME: Final = 200
_DOMAIN = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


@dataclass(frozen=True, slots=True)
class Kept:
    """The policy of *domain* (A-labels, lower case).

    :ivar id: of the TXT record that announced it.
    :ivar fetched: when; *used*: when mail was last sent by it, about.
    """

    domain: str
    id: str
    policy: Policy
    fetched: float
    used: float

    def expired(self, now: float) -> bool:
        return now >= self.fetched + self.policy.max_age


class PolicyFolder:
    """Policies in files of *folder*. Blocking: for a thread.

    :param read_only: it is another process's: nothing is kept or removed.
    """

    def __init__(self, folder: File, *, read_only: bool = False) -> None:
        self._folder = folder
        self._read_only = read_only

    def load(self, now: float) -> tuple[list[Kept], list[str]]:
        """What is kept and still holds, the least lately used first; and what is wrong with the other files.

        :raises OSError: the folder cannot be read.
        """
        kept: list[Kept] = []
        faults: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            for file in sorted(self._folder.iterdir()):
                if file.name.startswith("."):  # of a process that died
                    self._discard(file)
                    continue
                try:
                    one = _read(file, now)
                    if one.expired(now):
                        self._discard(file)
                    else:
                        kept.append(one)
                except (OSError, ValueError) as error:
                    faults.append(f"{file}: {error}")
        return sorted(kept, key=lambda one: one.used), faults

    def keep(self, kept: Kept) -> None:
        """:raises OSError: it cannot be written; what was there before is still there."""
        if self._read_only:
            return
        head = f"domain: {kept.domain}\nid: {kept.id}\nfetched: {kept.fetched:.0f}\nused: {kept.used:.0f}\n"
        durable.make_folder(self._folder)
        durable.write(self._folder, _name(kept.domain), [head.encode(), str(kept.policy).encode()])
        durable.sync_folder(self._folder)

    def remove(self, domain: str) -> None:
        self._discard(self._folder / _name(domain))

    def _discard(self, file: File) -> None:
        if not self._read_only:
            file.unlink(missing_ok=True)


def is_domain(text: str) -> bool:
    """Whether *text* is a name that can stand in a URL and as a file: A-labels, lower case."""
    return len(text) <= 244 and _DOMAIN.fullmatch(text) is not None  # with "_mta-sts." it is a name still


def _name(domain: str) -> str:
    if not is_domain(domain):
        raise ValueError(f"{domain!r} is no domain")
    return domain if len(domain) <= _LONGEST_NAME else hashlib.sha256(domain.encode()).hexdigest()


def _read(file: File, now: float) -> Kept:
    """:raises ValueError: it is no file of ours."""
    octets = file.read_bytes()
    # A policy may have fields that nobody knows: what is ours stands among them.
    ours = dict(fields(octets))
    try:
        domain, announced = ours["domain"], ours["id"]
        fetched, used = float(ours["fetched"]), float(ours["used"])
    except KeyError as missing:
        raise ValueError(f"it has no {missing}") from None
    if not is_domain(domain) or _name(domain) != file.name:
        raise ValueError("it is named after another domain")
    # A clock that was set back must not make a policy last longer.
    return Kept(domain, announced, parsed(octets), min(fetched, now), min(used, now))
