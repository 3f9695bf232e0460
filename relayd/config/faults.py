"""What is wrong with a configuration, where, and what would be right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path as File


@dataclass(frozen=True, slots=True)
class ConfigFault:
    """One fault, or one warning.

    :ivar file: the configuration file, as it was given.
    :ivar line: counted from 1.
    :ivar key: the rule's name: ``listener[0].port``; ``syntax`` for text that is no TOML.
    :ivar text: what is wrong, and what would be right.
    """

    file: File
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.key}: {self.text}"


class ConfigFaults(Exception):
    """A configuration that cannot be served: all its *faults* in the order of the file; ``str``: one a line."""

    def __init__(self, faults: tuple[ConfigFault, ...]) -> None:
        super().__init__(faults)
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults))


class Wrong(ValueError):
    """A value that a reader refuses.

    :ivar parts: (suffix of the key, text) for each thing that is wrong; the suffix is empty for the value
        itself, ``[2]`` for an entry of a list.
    """

    def __init__(self, text: str = "", *, parts: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(text)
        self.parts = parts or (("", text),)


def shown(value: object) -> str:
    """*value* as an administrator wrote it, on one line and not too long."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            short = value if len(value) <= 60 else value[:57] + "..."
            quoted = json.dumps(short, ensure_ascii=False)
            return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in quoted)
        case int() | float():
            return str(value) if abs(value) < 10**18 else "a huge number"
        case dict():
            return "a table"
        case list():
            return "a list"
        case _:
            return str(value)
