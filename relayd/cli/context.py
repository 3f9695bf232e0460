"""What all commands share: the configuration, the control socket, and how output is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.table import Table

from relayd.config import Loaded, load
from relayd.settings import Settings

if TYPE_CHECKING:
    from relayd.control import ControlClient

#: How verdicts are shown.
COLOURS: Final = {"accept": "green", "refuse": "red", "defer": "yellow"}

#: Where output is no terminal, tables are this wide: nothing is cut off for a pipe.
PIPE_WIDTH = 300


class Context:
    """One run of relayctl."""

    def __init__(self, config: File, as_json: bool, no_color: bool) -> None:
        self.config = config
        self.as_json = as_json
        self._no_color = no_color

    @cached_property
    def loaded(self) -> Loaded:
        return load(self.config)

    @property
    def settings(self) -> Settings:
        return self.loaded.settings

    @property
    def control(self) -> ControlClient:
        from relayd.control import ControlClient  # many commands do without a server

        return ControlClient(self.settings.console.socket)

    @cached_property
    def console(self) -> Console:
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        return Console(no_color=self._no_color, highlight=False, emoji=False, width=width, soft_wrap=False)

    def document(self, document: Any) -> None:
        """Prints one JSON document."""
        click.echo(json.dumps(document, ensure_ascii=False))

    def documents(self, documents: Iterable[Any]) -> None:
        """Prints a list: one JSON object a line."""
        for document in documents:
            self.document(document)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Prints a table for people."""
        table = Table(*columns, box=None, pad_edge=False, header_style="bold")
        for column in table.columns:
            column.overflow = "fold"
        for row in rows:
            table.add_row(*map(shown, row))
        self.console.print(table, markup=False)


pass_context = click.pass_obj


def shown(value: object) -> str:
    """*value* for a terminal: clients and other servers choose some of it, and some characters are orders to it."""
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def age(seconds: float) -> str:
    """A duration as people say it: ``5s``, ``12m``, ``3h``, ``2d``."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def octets(size: float) -> str:
    """A size as people say it: ``812B``, ``4.1K``, ``25M``."""
    for unit in "BKMG":
        if size < 1024 or unit == "G":
            return f"{size:.1f}{unit}" if size < 10 and unit != "B" else f"{size:.0f}{unit}"
        size /= 1024
    raise AssertionError
