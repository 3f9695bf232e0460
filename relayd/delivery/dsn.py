"""Delivery status notifications (RFC 3464 in the multipart/report of RFC 6522; RFC 6533 where UTF-8 is needed).

Pure: values in, a message for the queue out. Whatever a next hop said is text here and nothing else: it can
neither start a line nor a header.
"""

from __future__ import annotations

import enum
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate

from relayd.model import NULL_PATH, Body, Envelope, Path, Recipient, Reply, Sender
from relayd.queue.store import NewMessage

#: A failed message goes back whole up to this size when the sender asked for it (RET=FULL), or said nothing.
WHOLE_IF_ASKED, WHOLE_BY_DEFAULT = 1024**2, 64 * 1024
#: Of a longer header this much goes back.
HEADER_LIMIT = 64 * 1024
#: Characters of a next hop's reply that are repeated: keeps each line below the 998 of RFC 5322 2.1.1.
TEXT_LIMIT = 700

_MESSAGE_ID = re.compile(rb"^message-id:[ \t]*(<[!-;=?-~]{1,250}>)[ \t]*\r$", re.IGNORECASE | re.MULTILINE)
_HOST = re.compile(r"(.*?)(?:\[([^\]]*)\])?:\d+")
_CONTROLS = dict.fromkeys((*range(32), 127, *range(128, 160), 8232, 8233), " ")


class DsnKind(enum.Enum):
    """What a notification says. The values are the kinds in events."""

    FAILURE = "failure"
    DELAY = "delay"
    SUCCESS = "success"  # it lies in the mailbox or the drop folder
    RELAYED = "relayed"  # a host has it that will send no notification (RFC 3461 5.2.2)


_ACTION = {
    DsnKind.FAILURE: "failed",
    DsnKind.DELAY: "delayed",
    DsnKind.SUCCESS: "delivered",
    DsnKind.RELAYED: "relayed",
}
_SUBJECT = {
    DsnKind.FAILURE: "Delivery Status Notification (Failure)",
    DsnKind.DELAY: "Delivery Status Notification (Delay)",
    DsnKind.SUCCESS: "Delivery Status Notification (Success)",
    DsnKind.RELAYED: "Delivery Status Notification (Relay)",
}
_SAYS = {
    DsnKind.FAILURE: "Your message could not be delivered to:",
    DsnKind.DELAY: "Your message is late. It could not be delivered yet, and will be tried again. You need not\n"
    "send it again. It waits for:",
    DsnKind.SUCCESS: "Your message was delivered to:",
    DsnKind.RELAYED: "Your message was handed to a mail system that confirms no delivery, for:",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What a notification says of one recipient.

    :ivar reply: the last reply; relayd's own where *host* is empty.
    :ivar host: who gave it: ``host[address]:port``.
    :ivar expired: it was tried until the message expired.
    """

    recipient: Recipient
    reply: Reply
    host: str = ""
    expired: bool = False


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who reports: the FQDN of this host, and the address of the human responsible for it."""

    hostname: str
    postmaster: Path


def wanted(recipient: Recipient, kind: DsnKind) -> bool:
    """Whether the sender wants such a notification (RFC 3461 4.1; failure and delay when nothing was said)."""
    keyword = {DsnKind.FAILURE: "FAILURE", DsnKind.DELAY: "DELAY"}.get(kind, "SUCCESS")
    return keyword in (recipient.notify or ("FAILURE", "DELAY"))


def returns_whole(sender: Sender, kind: DsnKind, size: int) -> bool:
    """Whether the whole message of *size* octets goes back, and not its header alone (RFC 3461 4.3)."""
    if kind is not DsnKind.FAILURE or sender.ret == "HDRS":
        return False
    return size <= (WHOLE_IF_ASKED if sender.ret == "FULL" else WHOLE_BY_DEFAULT)


def compose(
    kind: DsnKind,
    reporter: Reporter,
    origin: Envelope,
    reports: Sequence[Report],
    returned: bytes,
    *,
    whole: bool,
    received_at: float,
    now: float,
    token: str,
    retry_until: float = 0.0,
    copy_to: Path | None = None,
) -> NewMessage:
    """A notification to the sender of a message.

    :param origin: the envelope of the message it speaks of; its sender is not null.
    :param returned: the message, or its header, strict CRLF.
    :param whole: which of the two *returned* is.
    :param token: random, never used twice: part of Message-ID and boundary.
    :param retry_until: for a delay: when the message expires.
    :param copy_to: also gets the notification (``bounce_copy_to``).
    :raises ValueError: the sender is null: RFC 5321 6.1 forbids it.
    """
    sender = origin.sender
    if sender.path.null:
        raise ValueError("no notification goes to the null reverse-path")
    recipients = [Recipient(sender.path)]
    if copy_to is not None and copy_to.folded != sender.path.folded:
        recipients.append(Recipient(copy_to))
    international = sender.smtputf8 or not all(p.ascii for p in (sender.path, *(r.recipient.path for r in reports)))
    boundary = token
    while boundary.encode() in returned:
        boundary += "="
    parts = (
        _text(kind, reporter, reports, retry_until),
        _status(kind, reporter, origin, reports, international, received_at, now, retry_until),
        _original(returned, whole, international),
    )
    eight_bit = not all(part.isascii() for part in parts)
    header = _header(kind, reporter, sender.path, returned, boundary, token, now, eight_bit)
    delimiter = f"\r\n--{boundary}".encode()
    octets = header + b"".join(delimiter + b"\r\n" + part for part in parts) + delimiter + b"--\r\n"
    utf8_needed = not all(r.path.ascii for r in (*recipients, Recipient(reporter.postmaster)))
    envelope = Envelope(
        Sender(
            NULL_PATH,
            size=len(octets),
            body=Body.EIGHT_BIT if eight_bit or utf8_needed else Body.SEVEN_BIT,
            smtputf8=utf8_needed,
        ),
        tuple(recipients),
        may_relay=True,
        session="dsn",
    )
    return NewMessage(envelope, octets)


def _header(
    kind: DsnKind,
    reporter: Reporter,
    to: Path,
    returned: bytes,
    boundary: str,
    token: str,
    now: float,
    eight_bit: bool,
) -> bytes:
    lines = [
        f"From: Mail Delivery System <{_clean(str(reporter.postmaster))}>",
        f"To: <{_clean(str(to))}>",
        f"Subject: {_SUBJECT[kind]}",
        f"Date: {formatdate(now, localtime=True)}",
        f"Message-ID: <{token}@{_clean(reporter.hostname)}>",
        "Auto-Submitted: auto-replied",  # RFC 3834 5
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n boundary="{boundary}"',
    ]
    if (original := _MESSAGE_ID.search(returned[: returned.find(b"\r\n\r\n") + 2])) is not None:
        lines.insert(5, f"References: {original[1].decode('ascii')}")
    if eight_bit:
        lines.append("Content-Transfer-Encoding: 8bit")
    return _crlf(*lines, "")


def _text(kind: DsnKind, reporter: Reporter, reports: Sequence[Report], retry_until: float) -> bytes:
    """The part for people."""
    lines = [f"This is the mail system at {_clean(reporter.hostname)}.", "", *_SAYS[kind].split("\n"), ""]
    for report in reports:
        lines.append(f"  <{_clean(str(report.recipient.path))}>")
        said = f"{_clean(report.host)} said: " if report.host else ""
        lines += _wrapped(f"{said}{_reply(report.reply)}", "      ")
        if report.expired:
            lines.append("      It was tried until its time was over.")
        lines.append("")
    if kind is DsnKind.DELAY and retry_until:
        lines += [f"It will be given up at {formatdate(retry_until, localtime=True)}.", ""]
    if kind is DsnKind.FAILURE:
        lines += [f"For help, write to <{_clean(str(reporter.postmaster))}>.", ""]
    text = _crlf(*lines)
    return _part("text/plain; charset=utf-8", text, "Content-Description: Notification")


def _status(
    kind: DsnKind,
    reporter: Reporter,
    origin: Envelope,
    reports: Sequence[Report],
    international: bool,
    received_at: float,
    now: float,
    retry_until: float,
) -> bytes:
    """The part for programs (RFC 3464 2)."""
    lines: list[str] = []
    if origin.sender.envid:
        lines += _field("Original-Envelope-Id", origin.sender.envid)
    lines += _field("Reporting-MTA", f"dns; {reporter.hostname}")
    if origin.helo:
        lines += _field("Received-From-MTA", f"dns; {origin.helo}")
    lines.append(f"Arrival-Date: {formatdate(received_at, localtime=True)}")
    for report in reports:
        lines.append("")
        if report.recipient.orcpt:
            lines += _field("Original-Recipient", report.recipient.orcpt)
        path = report.recipient.path
        lines += _field("Final-Recipient", f"{'rfc822' if path.ascii else 'utf-8'}; {path}")
        lines.append(f"Action: {_ACTION[kind]}")
        lines.append(f"Status: {_status_code(kind, report)}")
        if report.host:
            lines += _field("Remote-MTA", f"dns; {_host(report.host)}")
        # RFC 3464 2.3.6: the type "smtp" is for a real reply alone.
        lines += _field("Diagnostic-Code", f"{'smtp' if report.host else 'x-relayd'}; {_reply(report.reply)}")
        lines.append(f"Last-Attempt-Date: {formatdate(now, localtime=True)}")
        if kind is DsnKind.DELAY and retry_until:
            lines.append(f"Will-Retry-Until: {formatdate(retry_until, localtime=True)}")
    text = "\r\n".join(lines) + "\r\n"
    octets = text.encode("utf-8", "replace") if international else text.encode("ascii", "replace")
    form = "message/global-delivery-status" if international else "message/delivery-status"
    return _part(form, octets, "Content-Description: Delivery report")


def _original(returned: bytes, whole: bool, international: bool) -> bytes:
    """The part with what comes back."""
    if not whole:
        end = returned.find(b"\r\n\r\n")
        returned = (returned if end < 0 else returned[: end + 2])[:HEADER_LIMIT]
        returned = returned[: returned.rfind(b"\r\n") + 2]
    match whole, international:
        case True, True:
            form = "message/global"
        case True, False:
            form = "message/rfc822"
        case False, True:
            form = "message/global-headers"
        case _:
            form = "text/rfc822-headers"
    return _part(form, returned, f"Content-Description: Undelivered message{'' if whole else ' headers'}")


def _part(form: str, octets: bytes, *more: str) -> bytes:
    """One body part; whoever joins the parts brings the line end before the next delimiter."""
    encoding = "7bit" if octets.isascii() else "8bit"
    return _crlf(f"Content-Type: {form}", *more, f"Content-Transfer-Encoding: {encoding}", "") + octets


def _status_code(kind: DsnKind, report: Report) -> str:
    if report.expired:
        return "4.4.7"  # RFC 3463: delivery time expired
    digit = {DsnKind.FAILURE: "5", DsnKind.DELAY: "4"}.get(kind, "2")
    enhanced = report.reply.enhanced
    return enhanced if re.fullmatch(rf"{digit}\.\d{{1,3}}\.\d{{1,3}}", enhanced) else f"{digit}.0.0"


def _host(peer: str) -> str:
    """The name in ``host[address]:port``; the address where there is no name."""
    match = _HOST.fullmatch(peer)
    return peer if match is None else match[1] or f"[{match[2]}]"


def _reply(reply: Reply) -> str:
    text = _clean(str(reply))
    return text if len(text) <= TEXT_LIMIT else text[:TEXT_LIMIT] + "..."


def _clean(text: str) -> str:
    """*text* with nothing in it that ends a line or drives a terminal."""
    return text.translate(_CONTROLS)


def _field(name: str, value: str) -> list[str]:
    """A header field, folded (RFC 5322 2.2.3)."""
    return _wrapped(f"{name}: {_clean(value)}", " ", first="")


def _wrapped(text: str, indent: str, first: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        76,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [indent]


def _crlf(*lines: str) -> bytes:
    return ("\r\n".join(lines) + "\r\n").encode("utf-8", "replace")
