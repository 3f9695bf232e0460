"""relayctl join and spn check against a real controller; what they write is then used as relayd and its clients do."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.directory.conftest import StartLab
from tests.lab import domain
from tests.lab.directory import DirectoryLab
from tests.lab.relay import ENVIRONMENT, program

CONFIG = """\
[server]
hostname = "relay.lab.example"
state = "state"

[dns]
servers = ["{address}"]

[[listener]]
name = "smtp"
address = "127.0.0.1"
port = 0

[directory]
domain = "lab.example"
ca = "{ca}"
{more}

[[domain]]
name = "lab.example"
"""

ADMIN = ("--user", domain.ADMINISTRATOR, "--password-file", "-")


class Host:
    """A host that is not joined yet."""

    def __init__(self, lab: DirectoryLab, folder: Path, more: str = "", hostname: str = "mail.lab.example") -> None:
        self.lab = lab
        self.folder = folder
        self.config = folder / "relayd.toml"
        text = CONFIG.format(address=lab.address, ca=lab.ca, more=more)
        self.config.write_text(text.replace("relay.lab.example", hostname))

    def ctl(self, *arguments: str, password: str = "", environment: dict[str, str] | None = None) -> Any:
        return subprocess.run(
            [program("relayctl"), "--config", str(self.config), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            input=f"{password}\n",
            env={**ENVIRONMENT, **(environment or {})},
        )

    def join(self, *arguments: str, user: str = domain.ADMINISTRATOR, password: str | None = None) -> Any:
        secret = self.lab.users[user] if password is None else password
        return self.ctl("join", "--user", user, "--password-file", "-", *arguments, password=secret)

    def joined(self, *arguments: str) -> dict[str, Any]:
        done = self.ctl("--json", "join", *ADMIN, *arguments, password=self.lab.users[domain.ADMINISTRATOR])
        assert done.returncode == 0, done
        document: dict[str, Any] = json.loads(done.stdout)
        return document


@pytest.fixture(scope="module")
def changed_lab() -> Iterator[DirectoryLab]:
    """A controller whose directory these tests add computers to."""
    with DirectoryLab() as running:
        yield running


def test_join(changed_lab: DirectoryLab, tmp_path: Path) -> None:
    host = Host(changed_lab, tmp_path)
    done = host.join()
    print(done)
    assert done.returncode == 0, done
