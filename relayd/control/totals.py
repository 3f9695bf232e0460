"""How often each event happened since the start."""

from __future__ import annotations

from collections import Counter

from relayd.events import Event

_COUNTED = {
    "session-opened": "sessions",
    "session-refused": "sessions_refused",
    "authenticated": "authenticated",
    "authentication-failed": "authentication_failed",
    "refused": "commands_refused",
    "accepted": "messages_accepted",
    "delivered": "recipients_delivered",
    "deferred": "recipients_deferred",
    "bounced": "recipients_bounced",
    "dsn-queued": "notifications",
    "badmail": "badmail",
    "fault": "faults",
}


class Totals:
    """Subscribes to events and counts them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __call__(self, at: float, event: Event) -> None:
        self._counts[event.name] += 1

    def document(self) -> dict[str, int]:
        """Every total by its name in ``status``."""
        return {public: self._counts[name] for name, public in _COUNTED.items()}
