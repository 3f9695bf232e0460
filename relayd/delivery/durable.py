"""Files that survive a power cut: written under a temporary name, fsynced, renamed, their directory fsynced.

Blocking: for a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path as File
from typing import Any

from relayd.model import Fault, Reply
from relayd.queue.store import MessageBody

#: What is read and written at once, in octets.
CHUNK = 1024**2

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


def safe_name(text: str) -> str:
    """*text* as a part of a file name that cannot leave its folder, hide, or be an option of a command."""
    return _UNSAFE.sub("_", text)[:100].lstrip("-") or "_"


def chunks(body: MessageBody) -> Iterable[bytes]:
    """The octets of *body*."""
    if body.octets is not None:
        yield body.octets
        return
    with body.open() as file:
        while chunk := file.read(CHUNK):
            yield chunk


def write(folder: File, name: str, content: Iterable[bytes]) -> None:
    """Puts a file into *folder*, where nobody sees it before it is whole. One of that name is replaced.

    The name itself is safe only after :func:`sync_folder`.
    """
    temporary = folder / f".{name}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()  # of a process that died
    descriptor = os.open(temporary, flags, 0o640)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            for chunk in content:
                view = memoryview(chunk)
                while view:
                    view = view[file.write(view) :]
            os.fsync(descriptor)
        os.replace(temporary, folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def make_folder(folder: File, mode: int = 0o750) -> None:
    """Makes *folder*, and what is above it, where it is not there, and makes their names safe."""
    if folder.is_dir():
        return
    make_folder(folder.parent, mode)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode)
    sync_folder(folder.parent)


def sync_folder(folder: File) -> None:
    """Makes the names in *folder* safe."""
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_fault(error: OSError, what: str) -> Fault:
    """The fault that *error* is to whoever waits: 452 4.3.1 where there is no space, else 451 4.3.0."""

    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    reply = Reply.of(452, "4.3.1", "Insufficient storage") if full else Reply.of(451, "4.3.0", "Local storage failed")
    return Fault(reply, f"{what}: {error}")


def guarded(what: str, call: Callable[..., Any], *arguments: object) -> Fault | None:
    """Calls; the fault where the disk would not."""
    try:
        call(*arguments)
    except OSError as error:
        return disk_fault(error, what)
    return None
