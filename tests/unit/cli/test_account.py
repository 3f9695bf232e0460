"""relayctl account: the NT hash is there for NTLM alone, and never shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from relayd.cli.main import relayctl

CONFIG = """\
[server]
hostname = "relay.corp.example"
state = "state"

[accounts]
file = "accounts.json"
{more}
[[domain]]
name = "corp.example"
"""
#: Of "secret" (MS-NLMP 3.3.1).
HASH = "878d8014606cda29677a44efa1353fc7"


class Host:
    """Where relayctl runs."""

    def __init__(self, directory: Path) -> None:
        self._config = directory / "relayd.toml"
        self._file = directory / "accounts.json"
        self.configure()

    def configure(self, more: str = "") -> None:
        self._config.write_text(CONFIG.format(more=more))

    def ctl(self, *words: str, typed: str = "") -> str:
        done = CliRunner().invoke(relayctl, ["--config", str(self._config), *words], input=typed)
        assert done.exit_code == 0, done.output
        return done.output

    def add(self, name: str) -> str:
        return self.ctl("account", "add", name, "--password-file", "-", typed="secret\n")

    def stored(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._file.read_text())["accounts"][name]
        return found


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_without_ntlm_there_is_no_nt_hash(host: Host) -> None:
    host.add("alice")
    assert "nt" not in host.stored("alice")
    assert "NTLM" not in host.ctl("account", "list")


def test_with_ntlm_there_is_one_and_nobody_sees_it(host: Host) -> None:
    host.configure('[ntlm]\nbackend = "accounts"\n')
    said = host.add("alice")
    assert host.stored("alice")["nt"] == HASH
    said += host.ctl("account", "list") + host.ctl("--json", "account", "list")
    assert HASH not in said


def test_who_must_be_added_anew_is_listed(host: Host) -> None:
    host.add("early")
    host.configure('[ntlm]\nbackend = "accounts"\n')
    host.add("late")
    listed = [json.loads(line) for line in host.ctl("--json", "account", "list").splitlines()]
    assert [(entry["name"], entry["ntlm"]) for entry in listed] == [("early", False), ("late", True)]
    assert [line.split()[-1] for line in host.ctl("account", "list").splitlines()] == ["NTLM", "no", "yes"]


def test_replacing_an_account_without_ntlm_takes_the_hash_away(host: Host) -> None:
    host.configure('[ntlm]\nbackend = "accounts"\n')
    host.add("alice")
    host.configure()
    host.add("alice")
    assert "nt" not in host.stored("alice")
