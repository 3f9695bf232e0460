"""The log: one line an event, as text or as JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

from twisted.internet.error import ReactorNotRunning
from twisted.logger import LogEvent, Logger, LogLevel, formatEvent
from twisted.python.failure import Failure

from relayd.events import Event, Events, InternalFault

_encode = json.JSONEncoder(default=str).encode
_PLAIN = re.compile(r"[^\s\"'=\\]+")


class Later(Protocol):
    """The part of a reactor that the log needs."""

    def callLater(self, delay: float, call: Callable[[], None], /) -> object: ...


def text_line(at: float, event: Event) -> str:
    """``TIME LEVEL EVENT key=value …``; a value that is not one plain word is a JSON string."""
    words = [_time(at), event.level, event.name]
    words += [f"{name}={_word(value)}" for name, value in event.items()]
    return " ".join(words) + "\n"


def json_line(at: float, event: Event) -> str:
    """One JSON object: ``time``, ``level``, ``event``, and the event's fields."""
    document = {"time": _time(at), "level": event.level, "event": event.name, **dict(event.items())}
    return _encode(document) + "\n"


FORMATS: dict[str, Callable[[float, Event], str]] = {"text": text_line, "json": json_line}


class LogWriter:
    """Subscribes to events and writes their lines to *descriptor*, in one write per turn of the reactor."""

    def __init__(self, format: str, descriptor: int, later: Later) -> None:
        self._line = FORMATS[format]
        self._descriptor = descriptor
        self._later = later
        self._lines: list[str] = []

    def __call__(self, at: float, event: Event) -> None:
        if not self._lines:
            self._later.callLater(0, self.flush)
        self._lines.append(self._line(at, event))

    def flush(self) -> None:
        """Writes what waits. A log that cannot be written must not stop the mail."""
        octets = "".join(self._lines).encode("utf-8", "backslashreplace")
        self._lines.clear()
        try:
            while octets:
                octets = octets[os.write(self._descriptor, octets) :]
        except OSError:
            return


def twisted_log(format: str) -> Callable[[float, Event], None]:
    """A subscriber that writes each event's line to Twisted's log, wherever that goes."""
    line, log = FORMATS[format], Logger("relayd")
    return lambda at, event: log.info("{line}", line=line(at, event).rstrip())


def twisted_observer(events: Events) -> Callable[[LogEvent], None]:
    """A Twisted log observer that turns what Twisted itself warns of into events, and drops its small talk."""

    def observe(entry: LogEvent) -> None:
        if entry.get("log_level", LogLevel.info) < LogLevel.warn and not entry.get("isError"):
            return
        failure = entry.get("log_failure")
        if isinstance(failure, Failure) and failure.check(ReactorNotRunning):
            return  # an administrator asked a second time for the stop that is under way
        text = formatEvent(entry)
        if isinstance(failure, Failure):
            text = f"{text}: {failure.getTraceback()}" if text else failure.getTraceback()
        events.emit(InternalFault(where=str(entry.get("log_namespace") or "twisted"), detail=text.strip()))

    return observe


def _time(at: float) -> str:
    second, milliseconds = divmod(int(at * 1000), 1000)
    return f"{_second(second)}.{milliseconds:03d}Z"


@lru_cache(8)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text.isprintable() else json.dumps(text)
