"""The JSON documents of the API: what they are called there stays so for ever."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Any, Final

from relayd.model import Principal
from relayd.queue import Filter, HistoryEntry, MessageState, QueueEntry

if TYPE_CHECKING:
    from relayd.directory import Standing
    from relayd.smtpd import Rehearsal

Document = dict[str, Any]

#: The most messages that one answer lists.
MOST_LISTED: Final = 100_000


def moment(at: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def queue_document(entry: QueueEntry, now: float) -> Document:
    """A message in the queue. ``age`` is in seconds, ``next_at`` null for what waits for nothing."""
    envelope = entry.envelope
    return {
        "id": entry.message_id,
        "sender": str(envelope.sender.path),
        "received_at": moment(entry.received_at),
        "age": round(max(now - entry.received_at, 0)),
        "size": entry.size,
        "client": envelope.client,
        "user": envelope.principal,
        "listener": envelope.listener,
        "tls": envelope.tls,
        "rule": envelope.rule,
        "session": envelope.session,
        "recipients": [
            {
                "address": str(r.path),
                "state": r.state.value,
                "attempts": r.attempts,
                "next_at": moment(r.next_at) if r.state is MessageState.QUEUED and r.next_at else None,
                "last_reply": r.last_reply,
                "last_host": r.last_host,
            }
            for r in entry.recipients
        ],
    }


def history_document(entry: HistoryEntry) -> Document:
    return {"at": moment(entry.at), **{f.name: getattr(entry, f.name) for f in fields(entry) if f.name != "at"}}


def standing_document(standing: Standing) -> Document:
    """A controller that was asked: how many seconds more it ``rests``, and ``why``."""
    return {"controller": standing.controller, "rests": round(standing.rests), "why": standing.why}


def rehearsal_document(rehearsal: Rehearsal, mechanism: str, listener: str) -> Document:
    """How an authentication went. ``principal`` is null where there is none, ``reason`` what a client is not told."""
    reply, principal = rehearsal.reply, rehearsal.principal
    return {
        "mechanism": mechanism,
        "listener": listener,
        "verdict": "accept" if principal is not None else "refuse" if reply.permanent else "defer",
        "code": reply.code,
        "enhanced": reply.enhanced,
        "reply": str(reply),
        "reason": rehearsal.reason,
        "principal": None if principal is None else principal_document(principal),
    }


def principal_document(principal: Principal) -> Document:
    """Who authenticated."""
    return {
        "name": principal.name,
        "upn": principal.upn,
        "sid": principal.sid,
        "source": principal.source,
        "addresses": list(principal.addresses),
        "groups": sorted(principal.groups),
    }


def filter_from(document: Mapping[str, Any]) -> Filter:
    """The filter that *document* describes: ``ids``, ``sender``, ``recipient``, ``domain``, ``state``, ``older``
    (seconds), ``error``, ``limit``. A null is as good as absent.

    :raises ValueError: an unknown name, or a value of the wrong kind; the text says which.
    """
    read: dict[str, Any] = {}
    for name, value in document.items():
        if name not in _READERS:
            raise ValueError(f"{name}: not a filter; known are {', '.join(sorted(_READERS))}")
        if value is None or (name == "state" and not value):
            continue
        try:
            read[name] = _READERS[name](value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{name}: {error}") from None
    return Filter(**read)


def _ids(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("a list is wanted")
    return tuple(str(message_id).upper() for message_id in value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is wanted")
    return value


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds < inf:  # nor NaN
        raise ValueError("seconds are wanted")
    return seconds


def _limit(value: Any) -> int:
    if not 1 <= int(value) <= MOST_LISTED:
        raise ValueError(f"1 to {MOST_LISTED}")
    return int(value)


_READERS: Final[Mapping[str, Callable[[Any], object]]] = {
    "ids": _ids,
    "sender": _text,
    "recipient": _text,
    "domain": _text,
    "state": MessageState,
    "older": _seconds,
    "error": _text,
    "limit": _limit,
}


def restricts(wanted: Filter) -> bool:
    """Whether *wanted* means less than everything."""
    return Filter(limit=wanted.limit) != wanted
