"""A TOML text as values (tomllib) with the line of every key, table and array entry (tree-sitter)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import tree_sitter
import tree_sitter_toml

from relayd.config.faults import shown

_LANGUAGE: Final = tree_sitter.Language(tree_sitter_toml.language())
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_PARTS: Final = re.compile(r'\[[0-9]+\]|\.?"(?:[^"\\]|\\.)*"|\.?[^."\[\]]+')
_DEEPEST: Final = 12  # no key of relayd.toml lies deeper than four; text may be nested without bound
_MESSAGE: Final = re.compile(r"(.*) \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)", re.DOTALL)
_HINTS: Final = {
    "Invalid value": "text stands in double quotes, and truth is true or false",
    "Cannot overwrite a value": "this key was written before; each key may be written once",
    "Cannot declare": "this table was written before; its keys belong together, or write [[…]] for several",
    "Cannot mutate immutable namespace": "this table was written before; its keys belong together",
    "Unclosed array": "entries are separated by commas, and the list ends with ]",
    "Illegal character": "a text ends with its quote on the same line",
    "Expected '=' after a key": "write KEY = VALUE",
    "Expected newline": "one key a line; text stands in double quotes",
    "Unescaped '\\'": "write \\\\ for a backslash, or put the text in single quotes",
    "Expected ']'": "a table's header is [NAME], or [[NAME]] for one of several",
}

Address = tuple[str | int, ...]


class SyntaxFault(ValueError):
    """The text is no TOML. *line* counts from 1."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


@dataclass(frozen=True, slots=True)
class Document:
    """The *values*, and the *lines* of what was written by the rule's name (``relay.list[2]``)."""

    values: dict[str, Any]
    lines: dict[str, int]

    def line(self, key: str) -> int:
        return nearest(self.lines, key)


def nearest(lines: dict[str, int], key: str) -> int:
    """The line of *key*, or of the nearest thing around it that was written; 1 when there is none."""
    parts = _PARTS.findall(key)
    around = ("".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((lines[key] for key in around if key in lines), 1)


def parse(octets: bytes) -> Document:
    """Reads a whole TOML file.

    :raises SyntaxFault: it is not UTF-8 or not TOML.
    """
    try:
        # Editors of Windows put a byte order mark in front of UTF-8.
        text = octets.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        octet = octets[error.start]
        raise SyntaxFault(line, f"octet 0x{octet:02x} is not UTF-8; save the file as UTF-8") from None
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise SyntaxFault(1, "nested too deeply") from None
    except ValueError as error:
        raise _syntax(text, str(error)) from None
    tree = tree_sitter.Parser(_LANGUAGE).parse(text.encode())
    lines: dict[str, int] = {}
    for address, row in _Positions().document(tree.root_node):
        lines.setdefault(rule_name(address), row + 1)
    return Document(values, lines)


def _syntax(text: str, error: str) -> SyntaxFault:
    match = _MESSAGE.fullmatch(error)
    if match is None:
        return SyntaxFault(1, " ".join(error.split()))
    message, line, column = match.groups()
    hint = next((h for start, h in _HINTS.items() if message.startswith(start)), "")
    place = f" (column {column})" if column else ""
    # "Cannot declare ('server', 'x') twice" -> "Cannot declare server.x twice"
    message = re.sub(r"\(('[^()]*),?\)", lambda m: m[1].strip(",").replace("', '", ".").strip("'"), message)
    printable = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in message)
    return SyntaxFault(
        int(line) if line else len(text.rstrip().split("\n")),
        f"{printable}{place}" + (f"; {hint}" if hint else ""),
    )


def key_name(part: str) -> str:
    """A key as it is written: bare, or in quotes."""
    return part if _BARE.fullmatch(part) else shown(part)


def rule_name(address: Address) -> str:
    """``("relay", "list", 2)`` as ``relay.list[2]``."""
    name = ""
    for part in address:
        name += f"[{part}]" if isinstance(part, int) else f".{key_name(part)}"
    return name.removeprefix(".")


class _Positions:
    """Walks a syntax tree and says where each address stands, counting arrays of tables as it goes."""

    def __init__(self) -> None:
        self._tables: dict[Address, int] = {}  # arrays of tables, and how many tables each has so far

    def document(self, root: tree_sitter.Node) -> Iterator[tuple[Address, int]]:
        for node in root.named_children:
            match node.type:
                case "pair":
                    yield from self._pair((), node)
                case "table" | "table_array_element":
                    yield from self._table(node)

    def _table(self, node: tree_sitter.Node) -> Iterator[tuple[Address, int]]:
        names = _keys(node.named_children[0]) if node.named_children else ()
        address: Address = ()
        for depth, part in enumerate(names):
            address += (part,)
            if node.type == "table_array_element" and depth == len(names) - 1:
                self._tables[address] = self._tables.get(address, 0) + 1
            yield address, node.start_point[0]
            if address in self._tables:
                address += (self._tables[address] - 1,)
                yield address, node.start_point[0]
        for child in node.named_children[1:]:
            if child.type == "pair":
                yield from self._pair(address, child)

    def _pair(self, address: Address, node: tree_sitter.Node) -> Iterator[tuple[Address, int]]:
        key, *rest = (child for child in node.named_children if child.type != "comment")
        for part in _keys(key):
            address += (part,)
            yield address, node.start_point[0]
        for value in rest:
            yield from self._value(address, value)

    def _value(self, address: Address, node: tree_sitter.Node) -> Iterator[tuple[Address, int]]:
        if len(address) > _DEEPEST:
            return
        if node.type == "array":
            entries = [child for child in node.named_children if child.type != "comment"]
            for index, entry in enumerate(entries):
                yield (*address, index), entry.start_point[0]
                yield from self._value((*address, index), entry)
        elif node.type == "inline_table":
            for child in node.named_children:
                if child.type == "pair":
                    yield from self._pair(address, child)


def _keys(node: tree_sitter.Node) -> tuple[str, ...]:
    """The parts of a bare, quoted or dotted key. tomllib itself takes quotes and escapes off."""
    text = (node.text or b"").decode(errors="replace")
    if _BARE.fullmatch(text):
        return (text,)
    try:
        value: object = tomllib.loads(f"{text} = 0")
    except (ValueError, RecursionError):
        return ()
    parts = []
    while isinstance(value, dict):
        part, value = next(iter(value.items()))
        parts.append(part)
    return tuple(parts)
