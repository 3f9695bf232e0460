"""Files that hold secrets: replaced as a whole, mode 0600 from the first octet on, and there after a power cut.

Each function raises :exc:`OSError` where it cannot be done; the old file is then still there.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path as File

__all__ = ["Owner", "keeper", "put", "restore", "write"]

#: User id and group id of a file.
Owner = tuple[int, int]


def keeper(file: File) -> Owner | None:
    """Whose *file* shall stay when root replaces it, which a service's user must go on reading: its owner's, or that of
    its folder. None: whoever asks is not root, and gives nothing away.
    """
    if os.geteuid() != 0:
        return None
    try:
        found = file.stat()
    except FileNotFoundError:
        found = file.parent.stat()
    return found.st_uid, found.st_gid


def put(made: File, file: File, owner: Owner | None) -> None:
    """Moves *made* to where *file* is.

    :param owner: whose it becomes; None: it stays the caller's.
    """
    made.chmod(0o600)
    if owner is not None:
        os.chown(made, *owner)
    with made.open("rb") as opened:
        os.fsync(opened.fileno())
    os.replace(made, file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write(file: File, octets: bytes, owner: Owner | None) -> None:
    """Replaces *file* by one that holds *octets*."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(octets)
        put(File(name), file, owner)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def restore(file: File, before: bytes | None, owner: Owner | None) -> None:
    """Makes *file* what it was; None: it was not there."""
    if before is None:
        file.unlink(missing_ok=True)
    else:
        write(file, before, owner)
