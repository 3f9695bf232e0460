"""One Samba domain controller process on an address of its own: start, stop, pause, kill. It knows nothing of accounts.

Its ports are fixed (389, 636, 88, ...), so each controller takes an address of 127/8, all of which Linux answers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import IO

import ldap3
from ldap3.core.exceptions import LDAPException

from tests.lab.net import wait_for

__all__ = ["PORTS", "Controller", "NoAddress", "environment", "take_address"]

PORTS = (389, 636, 88, 53, 464, 135, 3268)
"""What has to be free on an address, and answers when the controller is ready."""
ADDRESSES = tuple(f"127.0.0.{last}" for last in range(10, 51))

START_DEADLINE = 60.0
"""Seconds; a start takes one or two, or many when the machine is busy."""
STOP_DEADLINE = 20.0


class NoAddress(Exception):
    """Every address that the lab may use is taken, or this user may not bind ports below 1024."""


def environment(directory: Path) -> dict[str, str]:
    """For Samba's and Kerberos' programs: nothing of the machine's own configuration counts."""
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "KRB5_CONFIG": str(directory / "krb5.conf")}


def take_address() -> tuple[str, IO[str]]:
    """The first free address of the lab's, and a file that keeps it for us until it is closed.

    :raises NoAddress: there is none.
    """
    why: OSError | None = None
    for address in ADDRESSES:
        # Between the look and Samba's bind, another test worker would find the ports free as well: hence the lock.
        keep = (Path(tempfile.gettempdir()) / f"lab-controller-{address}.lock").open("w")
        try:
            fcntl.flock(keep, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for port in PORTS:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((address, port))
        except OSError as error:
            why = error
            keep.close()
        else:
            return address, keep
    raise NoAddress(f"no address of {ADDRESSES[0]} to {ADDRESSES[-1]} has ports {PORTS} free for us; the last: {why}")


class Controller:
    """A domain controller that was provisioned in `directory`, whose smb.conf binds it to `address`."""

    def __init__(self, directory: Path, address: str) -> None:
        self.directory = directory
        self.address = address
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The id of its first process, whose session all its processes share."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, and wait until it serves its domain.

        :raises RuntimeError: it ended; the text has its log.
        :raises TimeoutError: it was not ready in time; it was ended again.
        """
        with (self.directory / "output").open("ab") as output:
            self._process = subprocess.Popen(
                ["samba", "-i", "--no-process-group", "-M", "prefork", "-s", self.directory / "smb.conf"],
                # A pipe, not /dev/null: Samba ends when it closes, so it never outlives this process.
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(self.directory),
                start_new_session=True,
            )
        try:
            state = wait_for(self._state, f"a domain controller at {self.address}", START_DEADLINE, interval=0.05)
        except BaseException:
            self.kill()
            raise
        if state == "ended":
            self.kill()
            raise RuntimeError(f"the domain controller at {self.address} ended:\n{self.log_text()}")

    def stop(self) -> None:
        """End it, and wait for all its processes.

        :raises TimeoutError: some were left; they were killed.
        """
        if self._process is None:
            return
        self._signal(signal.SIGCONT)  # a stopped process would not hear it
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            wait_for(self._all_ended, f"the end of the domain controller at {self.address}", STOP_DEADLINE)
        finally:
            self.kill()

    def wait(self) -> None:
        """Wait until it ends, however long that takes."""
        assert self._process is not None, "not started"
        self._process.wait()

    def kill(self) -> None:
        """End it as a power cut does. Those who are connected see a reset or the end of the stream."""
        if self._process is None:
            return
        # Processes that others start while they are being killed are seen at the next look.
        wait_for(self._killed, f"the death of the domain controller at {self.address}", STOP_DEADLINE)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None

    def pause(self) -> None:
        """Stop it from answering: connections are still accepted, by the kernel, and hang."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        self._signal(signal.SIGCONT)

    def pids(self) -> list[int]:
        """The ids of its living processes, in order."""
        return [] if self._process is None else _session(self._process.pid)

    def log_text(self) -> str:
        """What it wrote so far."""
        path = self.directory / "output"
        return path.read_text(errors="replace") if path.exists() else ""

    def _state(self) -> str:
        assert self._process is not None
        if self._process.poll() is not None:
            return "ended"
        return "ready" if self._serves() else ""

    def _serves(self) -> bool:
        for port in PORTS[1:]:
            try:
                socket.create_connection((self.address, port), timeout=1).close()
            except OSError:
                return False
        server = ldap3.Server(self.address, connect_timeout=1, get_info=ldap3.NONE)
        try:
            with ldap3.Connection(server, receive_timeout=5) as connection:
                connection.search("", "(objectClass=*)", ldap3.BASE, attributes=["isSynchronized"])
                return bool(connection.response) and connection.result["result"] == 0
        except LDAPException:
            return False

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _all_ended(self) -> bool:
        assert self._process is not None
        self._process.poll()
        return not self.pids()

    def _killed(self) -> bool:
        self._signal(signal.SIGKILL)
        return self._all_ended()


def _session(session: int) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                # proc(5) stat, behind the name, which may hold spaces and ")": state, parent, group, session.
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] not in "ZX":
                    found.append(int(process.name))
    return sorted(found)
