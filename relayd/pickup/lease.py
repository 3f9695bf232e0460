"""Whether somebody still writes to a file: the kernel is asked."""

from __future__ import annotations

import errno
import os
import signal


def open_for_writing(path: str | os.PathLike[str]) -> bool | None:
    """Whether any process of this machine has *path* open to write to it; servers of SMB and NFS count, their clients'
    caches do not. Blocks for a moment.

    A read lease is to be had only while nobody writes (fcntl(2), F_SETLEASE): it is taken and given back at once.

    :returns: None: the kernel does not say. The file is another user's and this process lacks CAP_LEASE, or its file
        system knows no leases.
    :raises OSError: it cannot be opened to read.
    """
    try:
        import fcntl  # POSIX alone
    except ImportError:
        return None
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    try:
        # Of a file that somebody else has a lease on, open() would wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except BlockingIOError:
        return True
    try:
        # Whoever opens it in that moment breaks the lease; the signal for that, SIGIO, would end this process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    finally:
        os.close(descriptor)
    return False
