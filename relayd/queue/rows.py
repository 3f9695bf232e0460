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

_TEXTS: Final = ("session", "client", "helo", "principal", "listener", "tls", "rule", "rewritten")


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
    if envelope.may_relay:
        values["may_relay"] = True
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
    texts = {name: values[name] for name in _TEXTS if name in values}
    return Envelope(sender, (), may_relay=values.get("may_relay", False), **texts)


def _encode_extra(recipient: Recipient) -> str:
    if not recipient.notify and not recipient.orcpt:
        return ""
    return _encode({"notify": sorted(recipient.notify), "orcpt": recipient.orcpt})


def decode_recipient(local: str, domain: str, extra: str) -> Recipient:
    if not extra:
        return Recipient(Path(local, domain))
    values = json.loads(extra)
    return Recipient(Path(local, domain), frozenset(values["notify"]), values["orcpt"])


# ---- rows of ``work``: kind, message, n, seq, at, due, i, j, k, a, b, c, d, e, octets ----
#
# What a kind does not use is 0: sqlite3 binds integers, floats and text ten times faster than None or a bool, for which
# it looks for an adapter first.


def message_rows(
    number: int, envelope: Envelope, at: float, size: int, octets: bytes | None, due_at: float, leased: bool
) -> list[Row]:
    """A new message with its recipients. *octets* is None where they lie in a file.

    :raises ValueError: the envelope has no recipient.
    """
    if not envelope.recipients:
        raise ValueError("an envelope without recipients")
    text = encode_envelope(envelope)
    first, *others = envelope.recipients
    rows: list[Row] = [
        (
            1, number, 0, 0, at, due_at, size, int(octets is None), int(leased),
            first.path.local, first.path.domain, _encode_extra(first), 0, text, 0 if octets is None else octets,
        )
    ]  # fmt: skip
    for n, recipient in enumerate(others, 1):
        path = recipient.path
        extra = _encode_extra(recipient)
        rows.append((2, number, n, 0, 0, due_at, 0, 0, int(leased), path.local, path.domain, extra, 0, 0, 0))
    return rows


def attempt_rows(number: int, attempts: Sequence[Attempt], at: float, sequence: Callable[[], int]) -> list[Row]:
    """What came of recipients of one message."""
    final = [index for index, attempt in enumerate(attempts) if attempt.state.final]
    last = final[-1] if final else -1  # one look whether the message is finished is enough
    return [
        (
            3, number, a.recipient_id, sequence(), at, a.next_at,
            STATES[a.state], int(a.counts), int(a.delay_notified) | (index == last) << 1,
            str(a.reply), a.host, a.tls, a.detail, _WHAT[a.state], 0,
        )
        for index, a in enumerate(attempts)
    ]  # fmt: skip


def renew_rows(claims: Sequence[tuple[int, Claim]], until: float) -> list[Row]:
    return [
        (4, number, recipient.id, 0, 0, until, *(0,) * 9) for number, claim in claims for recipient in claim.recipients
    ]


# ---- rows of ``act`` ----


def note_row(number: int, seq: int, at: float, what: str, detail: str) -> Row:
    return (11, number, 0, seq, at, *(0,) * 7, detail, what, 0)


def lease_rows(keys: Iterable[tuple[int, int]], until: float) -> list[Row]:
    return [(12, number, n, 0, 0, until, *(0,) * 9) for number, n in keys]


def retry_row(number: int, at: float) -> Row:
    return (13, number, 0, 0, 0, at, *(0,) * 9)


def stop_row(number: int, state: MessageState, at: float) -> Row:
    return (14, number, 0, 0, at, 0, STATES[state], *(0,) * 8)


def purge_row(number: int) -> Row:
    return (15, number, *(0,) * 13)
