"""What the figures were measured on, and what the disk can do."""

from __future__ import annotations

import os
import platform
import sqlite3
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

__all__ = ["cpu_seconds", "descendants", "facts", "session_members"]

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of *pids* and of their children that have ended; *pids* must be all that live.

    A child that ended counts where its parent waited for it (proc(5), stat: utime, stime, cutime, cstime).
    """
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


def session_members(session: int) -> list[int]:
    """The processes of one session (setsid): a server started in a session of its own, and all it started."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                fields = (process / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session:
                found.append(int(process.name))
    return found


def descendants(pid: int) -> list[int]:
    """*pid* and all that it started, in sessions of their own too."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                fields = (process / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(process.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def facts(directory: Path) -> list[tuple[str, str]]:
    """Names and values. *directory* is where the queues lie."""
    postfix = subprocess.run(["postconf", "-d", "-h", "mail_version"], capture_output=True, text=True, check=False)
    return [
        (
            "processor",
            f"{_processor()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} at the start",
        ),
        ("memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"),
        ("system", f"{_distribution()}, Linux {platform.release()}"),
        (
            "relayd",
            f"{version('relayd')}, Python {platform.python_version()}, Twisted {version('twisted')}, "
            f"SQLite {sqlite3.sqlite_version}, {ssl.OPENSSL_VERSION}",
        ),
        ("Postfix", postfix.stdout.strip() or "?"),
        ("file system", _file_system(directory)),
        ("append 4 KiB, fdatasync", f"{_rate(directory, _append):,.0f}/s"),
        ("new file of 4 KiB, fsync it and its directory", f"{_rate(directory, _create):,.0f}/s"),
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "?"


def _file_system(directory: Path) -> str:
    """The type of the file system that holds *directory*; on tmpfs an fsync costs nothing, and proves nothing."""
    done = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=True)
    name = done.stdout.strip()
    return f"{name}: NOT A DISK, choose another --directory" if name in ("tmpfs", "ramfs") else name


def _rate(directory: Path, once: Callable[[Path, int], None], seconds: float = 1.0) -> float:
    with tempfile.TemporaryDirectory(dir=directory) as place:
        start = time.perf_counter()
        count = 0
        while (passed := time.perf_counter() - start) < seconds:
            once(Path(place), count)
            count += 1
        return count / passed


def _append(place: Path, number: int) -> None:
    descriptor = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, b"x" * 4096)
    os.fdatasync(descriptor)
    os.close(descriptor)


def _create(place: Path, number: int) -> None:
    descriptor = os.open(place / str(number), os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"x" * 4096)
    os.fsync(descriptor)
    os.close(descriptor)
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(folder)
    os.close(folder)
