"""What this version cannot serve stops the start when it is written, and is off with a warning when it is a default."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from relayd.config import Loaded, served
from relayd.config.schema import ARRAYS, TABLES

Load = Callable[..., Loaded]
Faults = Callable[[str], dict[str, str]]


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nworkers = 1\nqueue = ''\n",
        "[directory]\ncache = '60s'\nservers = []\n[kerberos]\n[ntlm]\n",
        "[delivery]\ntls = 'verify'\nsmart_host_tls = ''\ndirect_first = false\n",
        "[[domain]]\nname = 'corp.example'\ndeliver = 'drop'\nrate = ''\nrewrite_sender = ''\n",
        "[console]\nsocket = 'control.sock'\nmetrics_list = ['127.0.0.0/8', '::1']\n",
    ],
)
def test_a_written_default_is_no_fault(config: Load, text: str) -> None:
    assert config(text)


def test_every_line_of_the_table_is_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (*served.NOT_BUILT, *served.EXTRAS):
        table, _, name = key.partition(".")
        schema = TABLES.get(table) or ARRAYS[table]
        assert not name or name in schema.keys


def test_a_key_is_served_once_its_line_is_gone(config: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "NOT_BUILT", {})
    loaded = config("[authentication]\nintegrated = false\n[limits]\nmessages_per_minute = 60\n")
    assert loaded.warnings == ()
    assert loaded.settings.limits.messages_per_minute == 60


@pytest.mark.parametrize(
    ("text", "needs", "parts"),
    [
        ("[server]\nqueue = 'postgresql://db/relayd'\n", "server.queue", ["relayd[postgresql]", "pip install"]),
        ("[kerberos]\nkeytab = '/dev/null'\n", "kerberos.keytab", ["relayd[kerberos]", "apt-get install libkrb5-dev"]),
    ],
)
def test_an_absent_extra_is_named(
    faults: Faults, monkeypatch: pytest.MonkeyPatch, text: str, needs: str, parts: list[str]
) -> None:
    absent: Mapping[str, served.Extra] = {
        key: served.Extra("no_module_of_this_name", extra.extra, extra.packages) for key, extra in served.EXTRAS.items()
    }
    monkeypatch.setattr(served, "NOT_BUILT", {})
    monkeypatch.setattr(served, "EXTRAS", absent)
    assert all(part in faults(text)[needs] for part in parts)
