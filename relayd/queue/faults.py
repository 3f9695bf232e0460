"""What the disk and SQLite say, as the faults that a client may hear."""

from __future__ import annotations

import errno
import sqlite3

from relayd.model import Fault, Reply

_FULL_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def as_fault(error: BaseException | None, doing: str) -> Fault:
    """*error* as a Fault: 452 4.3.1 where there is no room, else 451 4.3.0. A Fault stays what it is.

    :param doing: what failed, for the log.
    """
    if isinstance(error, Fault):
        return error
    full = isinstance(error, OSError) and error.errno in _FULL_ERRNO
    name = ""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) or 0
        full = code & 0xFF == sqlite3.SQLITE_FULL
        name = f" ({getattr(error, 'sqlite_errorname', '') or type(error).__name__})"
    elif not isinstance(error, OSError):
        name = f" ({type(error).__name__})"
    detail = f"{doing}: {error}{name}"
    if full:
        return Fault(Reply.of(452, "4.3.1", "Insufficient system storage"), detail)
    return trouble(detail)


def trouble(detail: str) -> Fault:
    """451 4.3.0 with *detail* for the log."""
    return Fault(Reply.of(451, "4.3.0", "Requested action aborted: local error in processing"), detail)
