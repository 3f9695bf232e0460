"""Values of the model as rows of the view ``work`` (:mod:`relayd.queue.schema`), and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from relayd.model import Body, Envelope, Path, Recipient, Sender
from relayd.queue.store import Attempt, Claim, MessageState

Row = tuple[Any, ...]

#: The numbers of states in the database; below 2 is not final.
STATES: Final = {
    MessageState.QUEUED: 0,
    MessageState.HELD: 1,
    MessageState.DELIVERED: 2,
    MessageState.BOUNCED: 3,
    MessageState.DROPPED: 4,
    MessageState.BADMAIL: 5,
}
STATE_OF: Final = {number: state for state, number in STATES.items()}

#: What the history calls an attempt with this result.
_WHAT: Final = {
    MessageState.QUEUED: "deferred",
    MessageState.HELD: "held",
    MessageState.DELIVERED: "delivered",
    MessageState.BOUNCED: "bounced",
    MessageState.DROPPED: "dropped",
    MessageState.BADMAIL: "badmail",
}

_encode: Final[Callable[[object], str]] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

_TEXTS: Final = ("session", "client", "helo", "principal", "listener", "tls", "rule")


def encode_envelope(envelope: Envelope) -> str:
    """All of *envelope* but its recipients, as JSON that names only what is set."""
    sender = envelope.sender
    path = sender.path
    values: dict[str, object] = {"sender": (path.local, path.domain)}
    if sender.size:
        values["size"] = sender.size
    if sender.body is not Body.SEVEN_BIT:
        values["body"] = sender.body.value
    if sender.smtputf8:
        values["smtputf8"] = True
    if sender.ret:
        values["ret"] = sender.ret
    if sender.envid:
        values["envid"] = sender.envid
    if sender.auth is not None:
        values["auth"] = sender.auth
    for name in _TEXTS:
        text = getattr(envelope, name)
        if text:
            values[name] = text
    return _encode(values)


def decode_envelope(text: str) -> Envelope:
    values = json.loads(text)
    local, domain = values["sender"]
    sender = Sender(
        Path(local, domain),
        size=values.get("size", 0),
        body=Body(values.get("body", Body.SEVEN_BIT.value)),
        smtputf8=values.get("smtputf8", False),
        ret=values.get("ret", ""),
        envid=values.get("envid", ""),
        auth=values.get("auth"),
    )
    return Envelope(sender, (), **{name: values[name] for name in _TEXTS if name in values})


def _encode_extra(recipient: Recipient) -> str | None:
    if not recipient.notify and not recipient.orcpt:
        return None
    return _encode({"notify": sorted(recipient.notify), "orcpt": recipient.orcpt})


def decode_recipient(local: str, domain: str, extra: str | None) -> Recipient:
    if extra is None:
        return Recipient(Path(local, domain))
    values = json.loads(extra)
    return Recipient(Path(local, domain), frozenset(values["notify"]), values["orcpt"])


# One row each: kind, message, n, seq, at, due, i, j, k, a, b, c, d, e, octets


def message_rows(
    number: int, envelope: Envelope, at: float, size: int, octets: bytes | None, due_at: float, leased: bool
) -> list[Row]:
    """A new message with its recipients. *octets* is None where they lie in a file."""
    text = encode_envelope(envelope)
    in_file = octets is None
    rows: list[Row] = [
        (1, number, None, None, at, None, size, in_file, None, text, None, None, None, None, octets)
    ]
    for n, recipient in enumerate(envelope.recipients):
        path = recipient.path
        extra = _encode_extra(recipient)
        rows.append(
            (2, number, n, None, None, due_at, leased, None, None, path.local, path.domain, extra, None, None, None)
        )
    return rows


def attempt_rows(number: int, attempts: Iterable[Attempt], at: float, sequence: Callable[[], int]) -> list[Row]:
    """What came of recipients of one message."""
    rows: list[Row] = []
    final = False
    for a in attempts:
        final = final or a.state.final
        rows.append(
            (
                3, number, a.recipient_id, sequence(), at, a.next_at,
                STATES[a.state], a.counts, a.delay_notified,
                str(a.reply), a.host, a.tls, a.detail, _WHAT[a.state], None,
            )
        )  # fmt: skip
    if final:
        rows.append(finish_row(number, at))
    return rows


def finish_row(number: int, at: float) -> Row:
    return (4, number, None, None, at, *(None,) * 10)


def note_row(number: int, seq: int, at: float, what: str, detail: str) -> Row:
    return (5, number, None, seq, at, None, None, None, None, None, None, None, detail, what, None)


def lease_rows(keys: Iterable[tuple[int, int]], until: float) -> list[Row]:
    return [(6, number, n, None, None, until, *(None,) * 9) for number, n in keys]


def renew_rows(claims: Sequence[tuple[int, Claim]], until: float) -> list[Row]:
    return [
        (7, number, recipient.id, None, None, until, *(None,) * 9)
        for number, claim in claims
        for recipient in claim.recipients
    ]


def retry_row(number: int, at: float) -> Row:
    return (8, number, None, None, None, at, *(None,) * 9)


def stop_row(number: int, state: MessageState) -> Row:
    return (9, number, None, None, None, None, STATES[state], *(None,) * 8)


def purge_row(number: int) -> Row:
    return (10, number, *(None,) * 13)
