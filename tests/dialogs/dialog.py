"""Reads and plays dialogs. A channel is what they are played over: memory here, a socket in socket_channel.py."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

VERBS = frozenset({"C", "C|", "--", "S", "S~", "S*", "tls", "wait", "release", "stored", "closed", "end"})
HERE = Path(__file__).parent


class BadDialog(Exception):
    """A dialog is not written as README.md says."""


@dataclass(frozen=True)
class Step:
    line: int
    verb: str
    argument: str


@dataclass
class Dialog:
    """One conversation."""

    name: str
    title: str
    given: list[tuple[str, str]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


class Channel(Protocol):
    """A connection to a server, and the hands that a dialog needs on the server itself."""

    def send(self, octets: bytes) -> None: ...

    def read(self) -> bytes:
        """What came since the last look; waits for at least something where there is a network."""

    def quiet(self) -> bytes:
        """What came since the last look, without waiting for it."""

    def start_tls(self) -> None: ...

    def closed(self, expected: bool) -> bool:
        """Whether the server ended the session; where there is a network, waits for the end that is *expected*."""

    def hang_up(self) -> None: ...

    def wait(self, seconds: float) -> None: ...

    def release(self) -> None: ...

    def stored(self) -> bytes | None:
        """The content of the message accepted last."""


def parse(file: Path) -> Dialog:
    """One file.

    :raises BadDialog: with file and line.
    """
    dialog = Dialog(file.stem, "")
    for number, text in enumerate(file.read_text().splitlines(), 1):
        if not text.strip():
            continue
        if text.startswith("#"):
            dialog.title = dialog.title or text.lstrip("# ")
            continue
        verb, _, argument = text.partition(" ")
        if verb == "given" and not dialog.steps:
            key, _, value = argument.partition(" ")
            dialog.given.append((key, value))
        elif verb in VERBS:
            dialog.steps.append(Step(number, verb, argument))
        else:
            raise BadDialog(f"{file}:{number}: {text!r}")
    if not dialog.title or not dialog.steps:
        raise BadDialog(f"{file}:1: no title, or nothing said")
    return dialog


def all_dialogs() -> list[Dialog]:
    """Every dialog there is, by name."""
    return [parse(file) for file in sorted(HERE.glob("*.dialog"))]


_ESCAPE = re.compile(r"\\(r|n|t|0|\\|x[0-9a-fA-F]{2})")
_SIMPLE = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}


def octets(text: str) -> bytes:
    r"""*text* with its escapes resolved; beyond ASCII it is UTF-8."""
    parts = _ESCAPE.split(text)
    plain = [part.encode() for part in parts[::2]]
    escaped = [_SIMPLE.get(code) or bytes.fromhex(code[1:]) for code in parts[1::2]]
    return b"".join(part + (escaped[at] if at < len(escaped) else b"") for at, part in enumerate(plain))


_TOKEN = re.compile(r"\[\[(.*?)(?:\|(\d+))?\]\]")


def line(text: str) -> str:
    """*text* with its tokens in base64."""

    def encoded(match: re.Match[str]) -> str:
        return b64encode(octets(match[1]).ljust(int(match[2] or 0), b"x")).decode()

    return _TOKEN.sub(encoded, text)


class Player:
    """Plays one dialog over one channel."""

    def __init__(self, dialog: Dialog, channel: Channel) -> None:
        self._dialog = dialog
        self._channel = channel
        self._unread = b""
        self._segment = b""
        self._last = ""
        self._ended = False

    def play(self) -> None:
        """Plays it to the end.

        :raises AssertionError: something else was said; with file and line.
        """
        expects_close = any(step.verb in ("closed", "end") for step in self._dialog.steps)
        for step in self._dialog.steps:
            if step.verb not in ("C", "C|"):
                self._flush(step)
            getattr(self, f"_{_METHODS[step.verb]}")(step)
        last = self._dialog.steps[-1]
        self._flush(last)
        self._nothing_unread(last)
        assert expects_close or not self._channel.closed(expected=False), self._at(last, "the server ended the session")

    def _at(self, step: Step, problem: str) -> str:
        return f"{self._dialog.name}.dialog:{step.line}: {step.verb} {step.argument}: {problem}"

    def _nothing_unread(self, step: Step) -> None:
        self._unread += self._channel.quiet()
        assert not self._unread, self._at(step, f"the server also said {self._unread!r}")

    def _flush(self, step: Step) -> None:
        if self._segment:
            segment, self._segment = self._segment, b""
            self._nothing_unread(step)
            self._channel.send(segment)

    def _line(self, step: Step) -> None:
        self._segment += line(step.argument).encode() + b"\r\n"

    def _octets(self, step: Step) -> None:
        self._segment += octets(step.argument)

    def _gap(self, step: Step) -> None:
        self._nothing_unread(step)

    def _next_line(self, step: Step) -> str:
        for _ in range(100):
            line, end, rest = self._unread.partition(b"\r\n")
            if end:
                self._unread = rest
                self._last = line.decode()
                return self._last
            more = self._channel.read()
            if not more:
                break
            self._unread += more
        raise AssertionError(self._at(step, f"the server said nothing more (left: {self._unread!r})"))

    def _exact(self, step: Step) -> None:
        said = self._next_line(step)
        assert said == line(step.argument), self._at(step, f"the server said {said!r}")

    def _pattern(self, step: Step) -> None:
        line = self._next_line(step)
        assert re.fullmatch(step.argument, line), self._at(step, f"the server said {line!r}")

    def _rest(self, step: Step) -> None:
        while self._last[3:4] == "-":
            self._next_line(step)

    def _tls(self, step: Step) -> None:
        self._nothing_unread(step)
        self._channel.start_tls()

    def _wait(self, step: Step) -> None:
        self._channel.wait(float(step.argument))

    def _release(self, step: Step) -> None:
        self._nothing_unread(step)
        self._channel.release()

    def _stored(self, step: Step) -> None:
        stored = self._channel.stored()
        wanted = None if step.argument == "nothing" else octets(step.argument)
        assert stored == wanted, self._at(step, f"stored is {stored!r}")

    def _closed(self, step: Step) -> None:
        assert self._channel.closed(expected=True), self._at(step, "the session is open")

    def _end(self, step: Step) -> None:
        self._channel.hang_up()


_METHODS = {
    "C": "line",
    "C|": "octets",
    "--": "gap",
    "S": "exact",
    "S~": "pattern",
    "S*": "rest",
    "tls": "tls",
    "wait": "wait",
    "release": "release",
    "stored": "stored",
    "closed": "closed",
    "end": "end",
}

__all__ = ["BadDialog", "Channel", "Dialog", "Player", "all_dialogs", "line", "octets", "parse"]
