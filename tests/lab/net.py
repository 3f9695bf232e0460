"""Ports that the kernel chose, and waiting with a deadline."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TypeVar

__all__ = ["free_port", "listener_pids", "wait_for", "wait_for_port"]

T = TypeVar("T")


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago, for programs that cannot bind port 0 themselves.

    Another process may take it before the program does: the caller checks the bind (`listener_pids`) and tries again.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], T], what: str, timeout: float = 10.0, interval: float = 0.02) -> T:
    """Call `condition` until it answers something true, and return that.

    :param what: names the thing waited for, for the error.
    :param timeout: seconds.
    :raises TimeoutError: after the deadline.
    """
    deadline = monotonic() + timeout
    pause = threading.Event()
    while True:
        answer = condition()
        if answer:
            return answer
        if monotonic() >= deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        pause.wait(interval)


def wait_for_port(host: str, port: int, timeout: float = 10.0) -> None:
    """Wait until something accepts connections at host:port.

    :raises TimeoutError: when nothing does in time.
    """

    def connects() -> bool:
        try:
            with socket.create_connection((host, port), timeout=1):
                return True
        except OSError:
            return False

    wait_for(connects, f"a listener on {host}:{port}", timeout)


def listener_pids(port: int) -> set[int]:
    """The process ids that hold a listening TCP socket on `port` (Linux, from /proc).

    A client that reaches somebody else's listener proves nothing, so a fixture asks whose the listener is.
    """
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            # Field 1 is address:port in hex, field 3 the state (0A = LISTEN), field 9 the inode: proc(5).
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    pids: set[int] = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            links = [link.readlink() for link in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(str(link) in inodes for link in links):
            pids.add(int(process.name))
    return pids
