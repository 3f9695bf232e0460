"""Whatever a file holds: a configuration, or ConfigFaults with one line a fault, and nothing else."""

from __future__ import annotations

import tempfile
from pathlib import Path as File
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.config import ConfigFaults, load
from relayd.config.document import key_name, parse
from relayd.config.schema import ARRAYS, TABLES

TABLE_NAMES = [*TABLES, *ARRAYS]
KEY_NAMES = sorted({key for table in (*TABLES.values(), *ARRAYS.values()) for key in table.keys})
TEXTS = ["", "*", "smtp", "25M", "2d", "30/1m", "4 in 15m", "[::1]:25", "192.0.2.1/8", "::/0", "a@b.example", "verify"]
TEXTS += ["remote", "*.example", "bücher.example", "/dev/null", ".", "x" * 5000, "\u0000", "\u0085", "ldaps://x", "own"]

names = st.sampled_from(KEY_NAMES) | st.text(max_size=8)
scalars = (
    st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.sampled_from(TEXTS)
    | st.text(max_size=12)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6
)
keys = st.dictionaries(names, values, max_size=6)
documents = st.dictionaries(
    st.sampled_from(TABLE_NAMES) | names, keys | st.lists(keys, max_size=3) | values, max_size=6
)


def written(value: Any) -> str:
    """*value* as TOML."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
        case list():
            return "[\n" + ",\n".join(map(written, value)) + "]"
        case _:
            return "{" + ", ".join(f"{written(k)} = {written(v)}" for k, v in value.items()) + "}"


def tried(octets: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = File(folder, "relayd.toml")
        file.write_bytes(octets)
        try:
            load(file, hostname=lambda: "relay.example")
        except ConfigFaults as raised:
            faults = raised
        else:
            return
    lines = str(faults).splitlines()
    assert len(lines) == len(faults.faults) > 0
    assert all(line.startswith(f"{file}:") for line in lines)
    last = octets.count(b"\n") + 1
    assert all(1 <= fault.line <= last for fault in faults.faults)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_octets(octets: bytes) -> None:
    tried(octets)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([*"[]{}\"'=.,#\n\\ab1 ", "[[", '"""', "relay", "listener", "list"]), max_size=40))
def test_what_looks_like_toml(pieces: list[str]) -> None:
    tried("".join(pieces).encode())


@settings(deadline=None, max_examples=200)
@given(documents)
def test_what_is_toml(document: dict[str, Any]) -> None:
    text = "\n".join(f"{written(key)} = {written(value)}" for key, value in document.items())
    tried(text.encode())


@settings(deadline=None)
@given(st.lists(names, unique=True, max_size=6))
def test_every_key_has_its_line(tops: list[str]) -> None:
    text = "\n".join(f"{written(top)} = 1" for top in tops)
    lines = parse(text.encode()).lines
    assert [lines[key_name(top)] for top in tops] == list(range(1, len(tops) + 1))


def test_a_key_of_nothing_but_a_quote() -> None:
    tried(b'relay.list = []\n\'"\' = 1\n"" = 2\n')
