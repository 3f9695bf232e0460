"""The JSON documents of the API: what they are called there stays so for ever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from relayd.queue import Filter, HistoryEntry, MessageState, QueueEntry

Document = dict[str, Any]


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


def filter_from(document: Mapping[str, Any]) -> Filter:
    """The filter that *document* describes: ``ids``, ``sender``, ``recipient``, ``domain``, ``state``, ``older``
    (seconds), ``error``, ``limit``.

    :raises ValueError: an unknown name, or a value of the wrong kind; the text says which.
    """
    known = {f.name for f in fields(Filter)}
    for name in document:
        if name not in known:
            raise ValueError(f"{name}: not a filter; known are {', '.join(sorted(known))}")
    given = dict(document)
    try:
        if "ids" in given:
            if not isinstance(given["ids"], list):
                raise ValueError("a list is wanted")
            given["ids"] = tuple(str(i).upper() for i in given["ids"])
        if given.get("state"):
            given["state"] = MessageState(given["state"])
        else:
            given.pop("state", None)
        for name in ("sender", "recipient", "domain", "error"):
            if name in given and not isinstance(given[name], str):
                raise ValueError(f"{name}: a text is wanted")
        if "older" in given:
            given["older"] = float(given["older"])
        if "limit" in given:
            given["limit"] = int(given["limit"])
            if not 1 <= given["limit"] <= 100_000:
                raise ValueError("limit: 1 to 100000")
    except TypeError as error:
        raise ValueError(str(error)) from None
    return Filter(**given)


def restricts(wanted: Filter) -> bool:
    """Whether *wanted* means less than everything."""
    return Filter(limit=wanted.limit) != wanted
