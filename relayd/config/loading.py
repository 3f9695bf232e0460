"""From a file to :class:`Settings`, or to all that is wrong with it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path as File

from relayd.config import checks, files, served
from relayd.config.building import build
from relayd.config.document import Document, SyntaxFault, parse
from relayd.config.faults import ConfigFault, ConfigFaults, Wrong
from relayd.config.readers import domain_name
from relayd.config.reading import read
from relayd.settings import Settings


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be served, and the *warnings* that an administrator should read."""

    settings: Settings
    warnings: tuple[ConfigFault, ...] = ()


def machine_name() -> str:
    """This machine's fully qualified name; ``localhost`` when it has none that may stand in EHLO."""
    try:
        return domain_name(socket.getfqdn())
    except Wrong:
        return "localhost"


def load(
    file: File,
    *,
    overrides: Mapping[str, object] | None = None,
    hostname: Callable[[], str] = machine_name,
    unmade: Collection[str] = (),
) -> Loaded:
    """Reads a relayd.toml.

    It reads files (certificates, secrets) and may ask the DNS for this machine's name, so it blocks.

    :param file: relative paths in it start from its folder.
    :param overrides: values that stand in place of what is written: ``{"server.state": "/srv/relayd"}``.
    :param hostname: gives the default of ``[server] hostname``.
    :param unmade: keys that the caller is about to make what they need: their faults do not count.
    :raises ConfigFaults: with everything that is wrong.
    """
    try:
        document = parse(file.read_bytes())
    except SyntaxFault as fault:
        raise ConfigFaults((ConfigFault(file, fault.line, "syntax", fault.text),)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigFaults((ConfigFault(file, 1, "file", f"cannot be read: {reason}"),)) from None
    for key, value in (overrides or {}).items():
        _override(document, key, value)
    reading = read(document, file, file.absolute().parent)
    served.check(reading)
    settings = build(reading, hostname)
    files.check(reading, settings)
    checks.check(reading, settings)
    if faults := [fault for fault in reading.faults if fault.key not in unmade]:
        raise ConfigFaults(_ordered(faults))
    return Loaded(settings, _ordered(reading.warnings))


def _override(document: Document, key: str, value: object) -> None:
    table, _, name = key.partition(".")
    values = document.values.setdefault(table, {})
    if isinstance(values, dict):
        values[name] = value


def _ordered(notes: list[ConfigFault]) -> tuple[ConfigFault, ...]:
    return tuple(sorted(dict.fromkeys(notes), key=lambda note: note.line))
