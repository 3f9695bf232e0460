"""A wiretap on loopback: passes octets between a client and a server on, and remembers the lines of both."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["Wiretap"]

DEADLINE = 60.0
"""Seconds without an octet either way, after which a connection is given up."""


class Wiretap:
    """Listens on a port of its own, and connects each client to `port`. Use as a context manager.

    What both say after STARTTLS is passed on, and is noise to read.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._heard: list[tuple[str, bytes]] = []
        self._lock = threading.Lock()
        self._open: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._run(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(DEADLINE)

    def lines(self) -> list[str]:
        """All lines so far, the client's with "C: " in front, the server's with "S: ", without their CRLF."""
        with self._lock:
            turns: list[tuple[str, bytes]] = []
            for who, octets in self._heard:
                if turns and turns[-1][0] == who:
                    turns[-1] = (who, turns[-1][1] + octets)
                else:
                    turns.append((who, octets))
        return [
            f"{who}: {line.decode(errors='replace')}"
            for who, octets in turns
            for line in octets.removesuffix(b"\r\n").split(b"\r\n")
        ]

    def said(self, who: str = "C") -> list[str]:
        """The lines of one side alone: "C" or "S"."""
        return [line.removeprefix(f"{who}: ") for line in self.lines() if line.startswith(f"{who}: ")]

    def _run(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server, DEADLINE)
                client.settimeout(DEADLINE)
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open += [client, server]
                self._run(self._pass_on, "C", client, server)
                self._run(self._pass_on, "S", server, client)

    def _pass_on(self, who: str, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while octets := source.recv(65536):
                with self._lock:
                    self._heard.append((who, octets))
                target.sendall(octets)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
