"""Which files somebody has open to write to them, as far as this machine's kernel tells."""

from __future__ import annotations

import os
from pathlib import Path as File
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.python.filepath import FilePath

try:
    from twisted.internet import inotify
except ImportError:  # not Linux
    inotify = None  # type: ignore[assignment]


class Watch:
    """Watches *folder*. Writers on other machines (NFS) are not seen.

    :ivar written: names of files that were written to and not closed since.
    """

    def __init__(self, folder: File, reactor: Any) -> None:
        self.written: set[str] = set()
        self._folder = folder
        self._reactor = reactor
        self._notifier: Any = None

    def start(self) -> None:
        """Begins to watch, where it does not: a folder that was removed is another one once it is back."""
        if inotify is None or (self._notifier is not None and self._notifier.connected):
            return
        self.written.clear()
        try:
            notifier = inotify.INotify(self._reactor)
        except OSError:
            return  # too many of them
        gone = inotify.IN_CLOSE_WRITE | inotify.IN_MOVED_FROM | inotify.IN_DELETE
        try:
            notifier.watch(FilePath(os.fsencode(self._folder)), inotify.IN_MODIFY | gone, callbacks=[self._noted])
        except (OSError, inotify.INotifyError):
            notifier.connectionLost(Failure(ConnectionDone()))
            return
        notifier.startReading()
        self._notifier = notifier

    def stop(self) -> None:
        notifier, self._notifier = self._notifier, None
        if notifier is not None and notifier.connected:
            notifier.loseConnection()

    def _noted(self, _: object, path: FilePath[bytes], mask: int) -> None:
        name = os.fsdecode(path.basename())
        if mask & inotify.IN_MODIFY:
            self.written.add(name)
        else:
            self.written.discard(name)
