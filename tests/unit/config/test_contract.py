"""The contract, relayd.toml with every key and its default, is understood whole, and its defaults are ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path as File

import pytest

from relayd.config import ConfigFaults, Loaded, load
from relayd.config.document import parse
from relayd.config.reading import Reading, read
from relayd.config.schema import ARRAYS, INHERITED, TABLES, default

CONTRACT = File(__file__).with_name("contract.toml")

#: Keys that the contract shows with a name that an administrator gives; they have no default.
EXAMPLES = {"domain[0].name": ("corp.example", False), "credential[0].name": "m365", "dkim[0].domain": "corp.example"}

#: Keys that have no default, and that the contract shows empty.
UNFILLED = {"dkim[0].selector", "dkim[0].key_file", "rewrite[0].match", "rewrite[0].from"}


@pytest.fixture(scope="module")
def reading() -> Reading:
    return read(parse(CONTRACT.read_bytes()), CONTRACT, CONTRACT.parent)


def test_every_key_is_understood(reading: Reading) -> None:
    assert {fault.key for fault in reading.faults} == UNFILLED


def test_every_key_of_ours_is_in_the_contract(reading: Reading) -> None:
    ours = {f"{table}.{key}" for table, schema in TABLES.items() for key in schema.keys}
    ours |= {f"{table}[0].{key}" for table, schema in ARRAYS.items() for key in schema.keys}
    ours -= {f"listener[0].{key}" for keys in INHERITED.values() for key in keys}
    assert set(reading.written) | UNFILLED == ours


def test_defaults_are_those_of_the_settings(reading: Reading) -> None:
    different = {
        key: (value, default(key)) for key, value in reading.written.items() if value != default(key) is not MISSING
    }
    assert different == {}
    without = {key: value for key, value in reading.written.items() if default(key) is MISSING}
    assert without.pop("server.state") == File("/var/lib/relayd")
    assert without.pop("server.hostname") == ""
    assert without.pop("console.socket") is None
    assert without == EXAMPLES


def test_defaults_that_depend(config: Callable[..., Loaded]) -> None:
    settings = config("", hostname=lambda: "relay.corp.example").settings
    assert settings.server.hostname == settings.server.name == "relay.corp.example"
    assert settings.server.state == File("/var/lib/relayd")
    assert settings.console.socket == File("/var/lib/relayd/control.sock")
    assert config('[server]\nstate = "/srv"\n').settings.console.socket == File("/srv/control.sock")


def test_the_contract_loads_but_for_what_has_to_be_filled_in() -> None:
    with pytest.raises(ConfigFaults) as raised:
        load(CONTRACT)
    assert {fault.key for fault in raised.value.faults} == UNFILLED | {
        "credential[0].user",
        "credential[0].password_file",
    }
