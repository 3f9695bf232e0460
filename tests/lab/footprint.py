"""What a process holds: open files, threads and child processes. It must not grow with what it has gone through."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.lab.net import wait_for

__all__ = ["Footprint", "Holds", "unread"]

ESTABLISHED = "01"
#: Servers of RPC choose a port from here on (MS-RPCE 2.1.1.1; the lab's samba has its own range there).
DYNAMIC = 49152


class Holds(Counter[str]):
    """How many of each kind: ``thread``, ``child``, and files by what they are."""

    def over(self, most: Mapping[str, int]) -> dict[str, int]:
        """What there is more of than in *most*."""
        return {kind: count for kind, count in self.items() if count > most.get(kind, 0)}


class Footprint:
    """What process *pid* holds.

    :param server: the address of a server that it asks; what else it has connections with are its own clients.
    :param idle: how many connections to which of the server's ports it may keep for later; `DYNAMIC` stands for all
        from there on.
    """

    def __init__(self, pid: int, server: str, idle: Mapping[int, int]) -> None:
        self.pid = pid
        self._server = server
        self._idle = {_connection(port): most for port, most in idle.items()}

    def holds(self) -> Holds:
        """What it holds now."""
        found = Holds()
        found["thread"] = len(os.listdir(f"/proc/{self.pid}/task"))
        found["child"] = len(self.children())
        sockets = {f"socket:[{inode}]": self._kind(fields) for inode, fields in _connections().items()}
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(descriptor.readlink())
                # What is no file ends with its inode's number.
                found[sockets.get(target, target.partition("[")[0])] += 1
        return found

    def children(self) -> list[int]:
        """The ids of its child processes."""
        found = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def settled(self, before: Holds, what: str, timeout: float = 30.0) -> None:
        """Waits until nothing is held that was not held *before*, but idle connections.

        :param what: came between, for the error.
        :param timeout: seconds.
        :raises AssertionError: something is left; the text says what.
        """
        most = {**before, **{kind: max(count, before[kind]) for kind, count in self._idle.items()}}
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not self.holds().over(most), what, timeout, interval=0.1)
        left = self.holds().over(most)
        assert not left, f"{what} left behind: {left}, where there may be {most}"

    def _kind(self, fields: list[str]) -> str:
        address, port = _address(fields[2])
        if not port:
            return "listener"
        if address != self._server:
            return "connection of a client"
        return _connection(port) if fields[3] == ESTABLISHED else f"{_connection(port)}, in state {fields[3]}"


def unread(server: str, port: int) -> int:
    """Octets that were sent to *server* and that it has not read, as when it is paused.

    :param port: `DYNAMIC`: all from there on.
    """
    total = 0
    for fields in _connections().values():
        address, own = _address(fields[1])
        if (address, min(own, DYNAMIC)) == (server, port) and fields[3] == ESTABLISHED:
            total += int(fields[4].partition(":")[2], 16)
    return total


def _connections() -> dict[str, list[str]]:
    """The kernel's table of TCP sockets over IPv4 (proc(5)), by their inodes."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return {fields[9]: fields for fields in map(str.split, lines)}


def _connection(port: int) -> str:
    return f"connection to {min(port, DYNAMIC)}"


def _address(text: str) -> tuple[str, int]:
    address, _, port = text.partition(":")
    return socket.inet_ntoa(struct.pack("<I", int(address, 16))), int(port, 16)
