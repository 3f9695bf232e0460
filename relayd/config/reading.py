"""A document against the schema: typed values of what was written, and a fault for each wrong thing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

from relayd.config.document import Document, key_name
from relayd.config.faults import ConfigFault, Wrong, shown
from relayd.config.readers import suggestion
from relayd.config.schema import ARRAYS, INHERITED, TABLES, Table

Values = dict[str, Any]


@dataclass(slots=True)
class Reading:
    """What was found in a document.

    :ivar tables: name -> key -> typed value, for what was written and is right.
    :ivar arrays: name -> the tables of an array of tables; an entry's place is its index.
    :ivar written: the same values by the rule's name.
    :ivar bad: rules whose value was refused.
    """

    file: File
    lines: dict[str, int]
    tables: dict[str, Values] = field(default_factory=dict)
    arrays: dict[str, list[Values]] = field(default_factory=dict)
    written: dict[str, Any] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    faults: list[ConfigFault] = field(default_factory=list)
    warnings: list[ConfigFault] = field(default_factory=list)

    def fault(self, key: str, text: str, *, at: str = "") -> None:
        """Notes that *key* is wrong, on the line of *at* (default: of *key*)."""
        self.faults.append(self._note(key, text, at))
        self.bad.add(key)

    def warn(self, key: str, text: str, *, at: str = "") -> None:
        self.warnings.append(self._note(key, text, at))

    def good(self, *keys: str) -> bool:
        """Whether none of *keys* was refused, so that what follows from them is worth saying."""
        return self.bad.isdisjoint(keys)

    def _note(self, key: str, text: str, at: str) -> ConfigFault:
        document = Document({}, self.lines)
        return ConfigFault(self.file, document.line(at or key), key, text)


def read(document: Document, file: File, folder: File) -> Reading:
    """Reads all tables.

    :param file: as it was given, for the faults.
    :param folder: the folder that relative paths start from.
    """
    reading = Reading(file, document.lines)
    reader = _Reader(reading, folder)
    for name, value in document.values.items():
        if name in TABLES:
            reading.tables[name] = reader.table(name, TABLES[name], value)
        elif name in ARRAYS:
            reading.arrays[name] = reader.array(name, ARRAYS[name], value)
        else:
            reader.unknown(key_name(name), name, [*TABLES, *ARRAYS])
    return reading


class _Reader:
    def __init__(self, reading: Reading, folder: File) -> None:
        self._reading = reading
        self._folder = folder

    def array(self, name: str, schema: Table, value: object) -> list[Values]:
        if isinstance(value, dict):
            self._reading.fault(name, f"is one table; write [[{name}]], with two brackets, for each")
            return []
        if not isinstance(value, list):
            self._reading.fault(name, f"{shown(value)} is no table; write [[{name}]] and its keys below")
            return []
        return [self.table(f"{name}[{index}]", schema, entry) for index, entry in enumerate(value)]

    def table(self, origin: str, schema: Table, value: object) -> Values:
        if not isinstance(value, dict):
            several = isinstance(value, list)
            what = "stands more than once or in two brackets" if several else f"{shown(value)} is no table"
            name, entry, _ = origin.partition("[")
            header = f"[[{name}]]" if entry else f"[{name}] once,"
            self._reading.fault(origin, f"{what}; write {header} and its keys below")
            return {}
        values: Values = {}
        for key, written in value.items():
            rule = f"{origin}.{key_name(key)}"
            if key in schema.tables:
                values[key] = self.table(rule, schema.tables[key], written)
            elif key in schema.keys:
                self._key(rule, key, schema, written, values)
            else:
                self.unknown(rule, key, [*schema.keys, *schema.tables])
        for key in schema.required:
            if key not in value:
                self._reading.fault(f"{origin}.{key}", f"is missing; this table needs a {key}")
        return values

    def _key(self, rule: str, key: str, schema: Table, written: object, values: Values) -> None:
        try:
            value = schema.keys[key](written)
        except Wrong as wrong:
            for suffix, text in wrong.parts:
                self._reading.fault(rule + suffix, text)
            self._reading.bad.add(rule)
            return
        if isinstance(value, File):
            # Not resolved: a symbolic link to a renewed certificate must be followed anew at each reload.
            value = File(os.path.abspath(self._folder / value))
        values[key] = value
        self._reading.written[rule] = value

    def unknown(self, rule: str, key: str, known: list[str]) -> None:
        close = suggestion(key, known)
        if key in INHERITED and rule.startswith("listener["):
            close = "; its keys stand in [[listener]] itself"
        elif not close:
            homes = [f"[{name}]" for name, table in TABLES.items() if key in table.keys]
            homes += [f"[[{name}]]" for name, table in ARRAYS.items() if key in table.keys]
            close = f"; it is a key of {' and '.join(homes)}" if homes else "; take it out"
        self._reading.fault(rule, f"is not a key that relayd knows{close}")
