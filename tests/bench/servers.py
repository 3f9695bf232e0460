"""The servers that are compared: each relays all it gets to one next hop, and answers 250 when the mail is on disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from tests.bench.machine import session_members
from tests.lab.clients import HERE_AND_NOW, Place
from tests.lab.net import wait_for
from tests.lab.postfix import Postfix
from tests.lab.relay import ENVIRONMENT

__all__ = ["SERVERS", "PostfixServer", "RelaydServer", "Server"]

NextHop = tuple[str, int]


class Server(Protocol):
    """A relay that was started fresh."""

    port: int

    def pids(self) -> list[int]:
        """All its processes."""

    def stop(self) -> None:
        """Ends it. Its files stay until `discard`: to remove them slows down whoever is measured next."""

    def discard(self) -> None: ...


class RelaydServer:
    """``twistd relayd`` as an administrator starts it, with the limits raised that one client would hit.

    :param command: what runs it, before twistd's own arguments; a profiler may stand here.
    :param config: another configuration than this one, which relays to *next_hop*.
    :param environment: what is added to the environment.
    """

    CONFIG = """\
[server]
hostname = "relay.example"
state = "state"

[[listener]]
name = "smtp"
address = "127.0.0.1"
port = 0
tls = "none"

[relay]
list = ["127.0.0.1"]

[delivery]
smart_host = ["[%s]:%d"]

[limits]
message_size = "64M"
session_size = "100G"
connections_per_client = 1000

[log]
format = "json"
file = "log"
"""

    def __init__(
        self,
        next_hop: NextHop,
        directory: Path,
        command: Sequence[str] = (),
        *,
        config: str = "",
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="relayd-", dir=directory))
        file = self.directory / "relayd.toml"
        file.write_text(config or self.CONFIG % next_hop)
        twistd = Path(sys.executable).with_name("twistd")
        with (self.directory / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [*command, str(twistd), "--nodaemon", "--pidfile=", "relayd", "--config", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={**ENVIRONMENT, **environment},
                start_new_session=True,
            )
        self.port = wait_for(self._listening, "relayd to be ready", 30)

    def _listening(self) -> int:
        if self.process.poll() is not None:
            raise RuntimeError(f"relayd ended: {(self.directory / 'output').read_text()}")
        log = self.directory / "log"
        for line in log.read_text().splitlines() if log.exists() else []:
            if '"ready"' in line:
                return int(json.loads(line)["listening"][0].split()[1].rpartition(":")[2])
        return 0

    def pids(self) -> list[int]:
        return session_members(self.process.pid)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    def discard(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


class PostfixServer:
    """Postfix with Debian's settings, which make each message safe before its 250; see `tests.lab.postfix`."""

    def __init__(
        self,
        next_hop: NextHop,
        directory: Path,
        *,
        settings: Mapping[str, str] = MappingProxyType({}),
        place: Place = HERE_AND_NOW,
    ) -> None:
        self._postfix = Postfix(next_hop, dict(settings), directory=directory, place=place)
        self._postfix.start()
        self.port = self._postfix.port

    def pids(self) -> list[int]:
        return self._postfix.pids()

    def stop(self) -> None:
        # Only the empty tree of a drained queue is left to remove.
        self._postfix.stop()

    def discard(self) -> None:
        pass


SERVERS = {"relayd": RelaydServer} | ({"Postfix": PostfixServer} if os.geteuid() == 0 else {})
"""Postfix runs as root alone."""
