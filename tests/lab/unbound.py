"""A validating resolver with zones of its own, signed and not: Unbound, and ldns to sign."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.net import free_port, wait_for_port

__all__ = ["Unbound"]

_HEAD = "$TTL 60\n@ IN SOA ns.invalid. root.invalid. 1 3600 600 86400 60\n@ IN NS ns.invalid.\n"


class Unbound:
    """Nothing of the machine's own is read or changed. Use as a context manager.

    :ivar address: for `[dns] servers`.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="lab-unbound-"))
        self.port = 0
        self._zones: list[str] = []
        self._anchors: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def zone(self, name: str, *records: str, signed: bool = True, forged: tuple[str, str] | None = None) -> None:
        """Adds a zone, before the start.

        :param records: lines, names relative to the zone.
        :param forged: a text of the signed zone, and what somebody has put in its place.
        """
        file = self.directory / name
        file.write_text(f"$ORIGIN {name}.\n{_HEAD}" + "".join(f"{record}\n" for record in records))
        if signed:
            key = self._ldns("ldns-keygen", "-k", "-a", "ECDSAP256SHA256", name)
            self._ldns("ldns-signzone", "-f", f"{name}.signed", name, key)
            file = self.directory / f"{name}.signed"
            self._anchors.append(self.directory / f"{key}.ds")
        if forged is not None:
            text = file.read_text()
            assert forged[0] in text
            file.write_text(text.replace(*forged))
        self._zones.append(
            f'auth-zone:\n  name: "{name}"\n  zonefile: "{file}"\n  for-downstream: no\n  for-upstream: yes\n'
        )

    def __enter__(self) -> Self:
        self.port = free_port()
        anchors = "".join(f'  trust-anchor-file: "{anchor}"\n' for anchor in self._anchors)
        (self.directory / "unbound.conf").write_text(
            f'server:\n  interface: 127.0.0.1\n  port: {self.port}\n  directory: "{self.directory}"\n  pidfile: ""\n'
            '  chroot: ""\n  username: ""\n  do-daemonize: no\n  use-syslog: no\n  logfile: "log"\n'
            '  module-config: "validator iterator"\n  do-not-query-localhost: no\n  num-threads: 1\n'
            f"{anchors}remote-control:\n  control-enable: no\n" + "".join(self._zones)
        )
        self._process = subprocess.Popen(
            ["/usr/sbin/unbound", "-d", "-p", "-c", self.directory / "unbound.conf"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.directory / "stderr").open("wb"),
        )
        try:
            wait_for_port("127.0.0.1", self.port)
        except TimeoutError:
            raise RuntimeError((self.directory / "stderr").read_text(errors="replace")) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _ldns(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{command}: {done.stderr}")
        return done.stdout.strip()
