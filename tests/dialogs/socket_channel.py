"""Dialogs over a real socket, against the process of server.py."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.dialogs.dialog import Dialog

#: Seconds that a reply may take before a test fails.
PATIENCE = 20.0
#: What a dialog may ask for where the server is out of reach, and the listener that is like that.
SERVABLE = {(): "plain", ("tls",): "starttls", ("implicit",): "implicit", ("integrated",): "integrated"}
#: What only hands on the server can do.
OUT_OF_REACH = {"stored", "wait", "release"}


def playable(dialog: Dialog) -> bool:
    """Whether *dialog* needs no more of the server than that it answers."""
    return _given(dialog) in SERVABLE and not any(step.verb in OUT_OF_REACH for step in dialog.steps)


def _given(dialog: Dialog) -> tuple[str, ...]:
    return tuple(f"{key} {value}".strip() for key, value in dialog.given)


class Server:
    """The process, and where it listens."""

    def __init__(self, process: subprocess.Popen[str], addresses: dict[str, tuple[str, int]]) -> None:
        self.process = process
        self.addresses = addresses

    def connect(self, name: str, host: str = "127.0.0.1") -> socket.socket:
        """A client's connection to the listener *name*."""
        return socket.create_connection((host, self.addresses[name][1]), timeout=PATIENCE)

    def stop(self) -> dict[str, int]:
        """Ends the process as an administrator would; what it says of its sessions."""
        output, _ = self.process.communicate(timeout=PATIENCE)
        report: dict[str, int] = json.loads(output.splitlines()[-1])
        return report


@contextmanager
def serving(directory: Path) -> Iterator[Server]:
    """A server for as long as the context lasts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.dialogs.server", str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        yield Server(process, json.loads(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()


class SocketChannel:
    """A session over TCP."""

    def __init__(self, server: Server, dialog: Dialog) -> None:
        self._socket: Any = server.connect(SERVABLE[_given(dialog)])
        self._over = False

    def send(self, octets: bytes) -> None:
        self._socket.sendall(octets)

    def read(self) -> bytes:
        return self._receive()

    def quiet(self) -> bytes:
        if self._over:
            return b""
        self._socket.settimeout(0)
        try:
            return self._receive()
        except (BlockingIOError, ssl.SSLWantReadError):
            return b""
        finally:
            self._socket.settimeout(PATIENCE)

    def _receive(self) -> bytes:
        try:
            octets: bytes = self._socket.recv(65536)
        except (ConnectionResetError, ssl.SSLEOFError):
            octets = b""
        self._over = self._over or not octets
        return octets

    def start_tls(self) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._socket = context.wrap_socket(self._socket)

    def closed(self, expected: bool) -> bool:
        if expected and not self._over:
            left = self._receive()
            assert not left, f"the server also said {left!r}"
        elif not expected:
            self.quiet()
        return self._over

    def hang_up(self) -> None:
        self._socket.close()
        self._over = True

    def wait(self, seconds: float) -> None:
        raise NotImplementedError

    release = stored = wait  # type: ignore[assignment]
