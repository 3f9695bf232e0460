"""A message as it lies in a file: who sends it to whom, and its octets as SMTP wants them. Pure.

The envelope stands on top in ``X-Sender`` and ``X-Receiver`` lines, as .NET, CDO and drop folders write it, else in
From, To, Cc and Bcc.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from relayd.model import NULL_PATH, Path
from relayd.wire import BadAddress, BdatReader, Header, addresses, parse_address

#: What Windows' editors and PowerShell put before UTF-8; and before what nobody can send.
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

_ENVELOPE = ("x-sender", "x-receiver")
_DOTS = re.compile(rb"\n(\.{1,5})")
_DOTS_AT_END = re.compile(rb"\n\.{0,5}\Z")
_DROPPED = re.compile(rb"(?:x-(?:sender|receiver):[^\n]*\n(?:[ \t][^\n]*\n)*)+received:", re.IGNORECASE)
_DOT = re.compile(rb"\r\n\.")
_SEPARATOR = re.compile("[,;:]")
_MARK = re.compile(rb"(?:^|\n)(\.\r?\n?)$")

#: Octets that :func:`marked_end` needs of the end of a file.
MARK = 4


class Refused(ValueError):
    """The file is no message that can be sent; the text says why."""


def marked_end(tail: bytes) -> int:
    """How many octets at the end of a file are a lone dot, the mark that ends a message in SMTP; 0: there is none.

    :param tail: the last :data:`MARK` octets, or all of a shorter file.
    """
    found = _MARK.search(tail)
    return len(found[1]) if found else 0


def stuffed(blocks: Iterable[bytes]) -> bool:
    """Whether a message is dot-stuffed, by the dots that its lines begin with: none with one, and some with two or
    four.

    Three alone are an ellipsis more often than two that were doubled. A message that is not stuffed, and has two dots
    at the start of a line and one of no line, cannot be told apart.

    :param blocks: the file without its :func:`marked_end`.
    """
    runs: set[int] = set()
    held = b"\n"
    for block in blocks:
        octets = held + block
        end = _DOTS_AT_END.search(octets[-6:])
        held = end[0] if end else b""
        runs.update(len(found[1]) for found in _DOTS.finditer(octets, 0, len(octets) - len(held)))
        if 1 in runs:
            return False
    runs.update(len(found[1]) for found in _DOTS.finditer(held))
    return 1 not in runs and not runs.isdisjoint((2, 4))


def dropped(octets: bytes) -> bool:
    """Whether a file that begins with *octets* came from a drop folder, relayd's or that of IIS: the mail on its way
    there got a Received field, and drop folders hold messages as they are."""
    return _DROPPED.match(octets) is not None


class Content:
    """Makes of a file's octets the octets of a message: CRLF at the end of each line, no dot-stuffing, no mark of the
    encoding on top.

    :param unstuff: the file is dot-stuffed.
    :ivar ascii: whether all of it was ASCII so far.
    """

    def __init__(self, *, unstuff: bool) -> None:
        self.ascii = True
        self._unstuff = unstuff
        self._reader = BdatReader(legacy=True)
        self._began = False
        self._line_starts = True

    def feed(self, octets: bytes) -> bytes:
        """The content in the next *octets*: some may be held back. The first are three at least, or all there is.

        :raises Refused: octets that no message may have.
        """
        if not self._began:
            self._began = True
            if octets.startswith(_UTF16):
                raise Refused("the file is UTF-16: write it as ASCII or UTF-8")
            octets = octets.removeprefix(_BOM)
        self._reader.start(len(octets))
        content, _ = self._reader.feed(octets)
        return self._passed(content)

    def finish(self) -> bytes:
        """The end of the last line.

        :raises Refused: as above.
        """
        return self._passed(self._reader.finish())

    def _passed(self, content: bytes) -> bytes:
        if self._reader.fault:
            raise Refused(f"{self._reader.fault}: a message has none")
        if not content:
            return b""
        self.ascii = self.ascii and content.isascii()
        if not self._unstuff:
            return content
        if self._line_starts and content.startswith(b"."):
            content = content[1:]
        self._line_starts = content.endswith(b"\r\n")
        return _DOT.sub(b"\r\n", content)


@dataclass(frozen=True, slots=True)
class Submission:
    """What a header section says of its envelope.

    :ivar header: what is sent of it: without the envelope's lines, and without Bcc.
    """

    sender: Path
    recipients: tuple[Path, ...]
    header: bytes

    @classmethod
    def parse(cls, octets: bytes) -> Submission:
        """*octets*: a header section, up to the empty line.

        :raises Refused: it names no sender or no recipient, or one that is no address.
        """
        header = Header.parse(octets)
        if not header.fields or not header.fields[0].name:
            raise Refused("its first line is no header field: a message begins with fields such as From: and To:")
        # Only on top: further down they may be a stranger's, in a message that somebody hands on.
        top = tuple(takewhile(lambda field: field.name in _ENVELOPE, header.fields))
        header = Header(header.fields[len(top) :])
        receivers = [_paths("X-Receiver", field.value) for field in top if field.name == "x-receiver"]
        if not receivers:
            names = ("to", "cc", "bcc")
            receivers = [_paths(name.title(), field.value) for name in names for field in header.all(name)]
        recipients = tuple(dict.fromkeys(path for paths in receivers for path in paths))
        if not recipients:
            raise Refused("it names no recipient in X-Receiver, To, Cc or Bcc")
        senders = [field.value for field in top if field.name == "x-sender"]
        sender = _sender(senders[-1]) if senders else _author(header)
        return cls(sender, recipients, bytes(header.without("bcc")))


def _sender(value: bytes) -> Path:
    if value == b"<>":
        return NULL_PATH
    found = _paths("X-Sender", value)
    if len(found) != 1:
        raise Refused("X-Sender names no single address")
    return found[0]


def _author(header: Header) -> Path:
    """From; where it names several, Sender says who sends for them (RFC 5322 3.6.2)."""
    authors = [path for field in header.all("from") for path in _paths("From", field.value)]
    sender = header.get("sender")
    if len(authors) != 1 and sender is not None:
        authors = _paths("Sender", sender.value)
    if not authors:
        raise Refused("it names no sender in X-Sender, From or Sender")
    return authors[0]


def _paths(name: str, value: bytes) -> list[Path]:
    try:
        paths = [parse_address(address) for _, address in addresses(value)]
    except (BadAddress, ValueError) as error:
        raise Refused(f"{name}: {error}") from None
    text = value.decode("utf-8", "replace")
    parts = [part.strip() for part in _SEPARATOR.split(text)]
    # "Jane Doe" is read as the address Jane, which somebody may have; newer Pythons read nothing at all in a list where
    # one is bad. A group may be empty (RFC 5322 3.4).
    doubtful = [path.local for path in paths if not path.domain]
    unread = not paths and text and not text.endswith(";")
    if unread or not all(any(part == local or part.endswith(f"<{local}>") for part in parts) for local in doubtful):
        raise Refused(f"{name}: {text!r} is no address")
    return paths
