"""`relayctl status` for people."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from relayd.cli.main import relayctl
from relayd.control import ControlClient

CONFIG = """\
[[domain]]
name = "corp.example"
"""


@pytest.mark.parametrize(
    ("rests", "why", "shown"),
    [
        (0, "", "works"),
        (3, "it is away", "rests for 3s: it is away"),
        # Its rest is over, and nobody has asked it since.
        (0, "it is away", "failed, and is asked again: it is away"),
    ],
)
def test_a_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rests: int, why: str, shown: str) -> None:
    found = {
        "hostname": "relay.corp.example",
        "version": "0.1.0",
        "pid": 1,
        "uptime": 1,
        "listeners": [],
        "directory": [{"controller": "ldaps://dc1.corp.example:636", "rests": rests, "why": why}],
        "queue": {},
        "totals": {},
    }
    monkeypatch.setattr(ControlClient, "status", lambda self: found)
    config = tmp_path / "relayd.toml"
    config.write_text(CONFIG)
    done = CliRunner().invoke(relayctl, ["--config", str(config), "status"])
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.output.splitlines() if line.startswith("ldaps://")]
    assert line.split(maxsplit=1)[1].strip() == shown
