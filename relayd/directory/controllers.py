"""Which controllers there are, which of them rest, and the idle connections to each."""

from __future__ import annotations

import enum
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from relayd.directory.connection import Connection, Controller

__all__ = ["Controllers", "Known", "Purpose", "Standing", "located", "parse_server"]

#: How long a controller that failed is left alone, in seconds: doubled each time it fails again.
FIRST_REST: Final = 1.0
LONGEST_REST: Final = 60.0
#: How long an idle connection is kept, in seconds. Active Directory ends one after 15 minutes (MaxConnIdleTime).
IDLE: Final = 60.0
#: Idle connections to one controller for one purpose at most.
MOST_IDLE: Final = 8


class Purpose(enum.Enum):
    """What a connection is for. One that checks passwords is signed in as whoever came last, so it does not search;
    and whoever tries out recipients keeps nobody from signing in."""

    SEARCH = "search"
    CHECK = "check"
    RECIPIENTS = "recipients"


def parse_server(text: str) -> Controller:
    """``ldaps://host``, ``ldap://host:port``.

    :raises ValueError: it is none.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("ldap", "ldaps") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError(f"not ldaps://host or ldap://host: {text}")
    ldaps = parts.scheme == "ldaps"
    return Controller(parts.hostname, parts.port or (636 if ldaps else 389), ldaps)


def located(records: Iterable[tuple[int, int, str, int]], domain: str) -> list[Controller]:
    """Controllers by their SRV records (priority, weight, host, port), in the order to try them (RFC 2782).

    Hosts outside of *domain* are left out: whoever forges an answer would need a certificate for a name inside.
    Records name port 389, where LDAPS is on 636; another port is LDAP with STARTTLS.
    """
    inside = [record for record in records if record[2] == domain or record[2].endswith(f".{domain}")]
    # The greater the weight, the likelier an early place (RFC 2782, "Weight").
    drawn = sorted(inside, key=lambda r: (r[0], -(random.random() ** (1.0 / (r[1] + 0.01)))))
    return [Controller(host, 636, True) if port == 389 else Controller(host, port, False) for _, _, host, port in drawn]


@dataclass(frozen=True, slots=True)
class Standing:
    """How one controller stands.

    :ivar rests: for how many seconds more it is left alone; 0: it is asked.
    :ivar why: what it failed with last; empty when it worked since.
    """

    controller: str
    rests: float = 0.0
    why: str = ""


class Known:
    """One controller as relayd has come to know it."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.rests_until = 0.0
        self.why = ""
        self._rest = FIRST_REST
        self._idle: dict[Purpose, list[Connection]] = {purpose: [] for purpose in Purpose}

    def failed(self, why: str, now: float) -> float:
        """It rests from now on; for how long, in seconds. 0: it rests already, and several calls saw one failure."""
        if now < self.rests_until:
            return 0.0
        rest, self._rest = self._rest, min(self._rest * 2, LONGEST_REST)
        self.why = why
        self.rests_until = now + rest
        return rest

    def worked(self) -> None:
        self.rests_until, self._rest, self.why = 0.0, FIRST_REST, ""

    def take(self, purpose: Purpose) -> Connection | None:
        """An idle connection that is still good, the one used last."""
        idle = self._idle[purpose]
        while idle:
            connection = idle.pop()
            if not connection.stale:
                return connection
            connection.close()
        return None

    def put(self, purpose: Purpose, connection: Connection) -> None:
        """*connection* is idle again."""
        idle = self._idle[purpose]
        if len(idle) >= MOST_IDLE:
            connection.close()
        else:
            connection.used = time.monotonic()
            idle.append(connection)

    def prune(self, unused_since: float) -> int:
        """Closes what was not used since then, and what the other side ended; how many are left."""
        left = 0
        for idle in self._idle.values():
            kept = []
            for connection in idle:
                if connection.used <= unused_since or connection.stale:
                    connection.close()
                else:
                    kept.append(connection)
            idle[:] = kept
            left += len(kept)
        return left


class Controllers:
    """All controllers that are known, by where they listen."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[Controller, Known] = {}

    def known(self, controllers: Iterable[Controller]) -> list[Known]:
        return [self._known.setdefault(controller, Known(controller)) for controller in controllers]

    def rests(self, known: Known) -> bool:
        """Whether it is left alone for now."""
        return known.rests_until > self._clock()

    def standings(self) -> tuple[Standing, ...]:
        now = self._clock()
        return tuple(
            Standing(str(controller), max(0.0, known.rests_until - now), known.why)
            for controller, known in self._known.items()
        )

    def prune(self, unused_since: float) -> int:
        """As :meth:`Known.prune`, for all."""
        return sum(known.prune(unused_since) for known in self._known.values())
