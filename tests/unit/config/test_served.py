"""What this version cannot serve stops the start when it is written, and is off with a warning when it is a default."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from relayd.config import Loaded, served
from relayd.config.schema import ARRAYS, TABLES

Load = Callable[..., Loaded]
Faults = Callable[[str], dict[str, str]]


def test_the_default_that_is_off_gives_one_warning(config: Load) -> None:
    loaded = config("[server]\n[authentication]\nanonymous = false\n")
    assert [(warning.key, warning.line) for warning in loaded.warnings] == [("authentication.integrated", 2)]
    assert "not built yet in this version" in loaded.warnings[0].text
    for authentication in (loaded.settings.authentication, loaded.settings.listeners[0].authentication):
        assert not authentication.integrated
        assert not authentication.ntlm


def test_off_by_choice_gives_none(config: Load) -> None:
    assert config("[authentication]\nintegrated = false\nntlm = false\n").warnings == ()


def test_a_default_that_is_written_is_off_with_its_line(config: Load) -> None:
    loaded = config("[authentication]\nintegrated = true\n[[listener]]\nintegrated = true\nntlm = true\n")
    told = [(warning.line, warning.key) for warning in loaded.warnings]
    assert told == [(2, "authentication.integrated"), (4, "listener[0].integrated")]
    for authentication in (loaded.settings.authentication, loaded.settings.listeners[0].authentication):
        assert not authentication.integrated
        assert not authentication.ntlm


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nworkers = 1\nqueue = ''\n",
        "[directory]\ncache = '60s'\nservers = []\n[kerberos]\n[ntlm]\n",
        "[delivery]\ntls = 'verify'\nsmart_host_tls = ''\ndirect_first = false\n",
        "[[domain]]\nname = 'corp.example'\ndeliver = 'drop'\nrate = ''\nrewrite_sender = ''\n",
        "[authentication]\nchannel_binding = 'ignore'\n",
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
    loaded = config("[limits]\nmessages_per_minute = 60\n[pickup]\ndirectory = 'pickup'\n")
    assert loaded.warnings == ()
    assert loaded.settings.limits.messages_per_minute == 60
    assert loaded.settings.authentication.integrated


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
