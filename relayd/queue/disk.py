"""The few system calls that decide whether a large body is safe, in one place so that tests can make them fail."""

from __future__ import annotations

import os
from contextlib import suppress


class Disk:
    """Files as :class:`relayd.queue.spool.BodyFile` needs them. All methods block: for a thread."""

    def __init__(self) -> None:
        self._named: set[str] = set()  # directories whose names are safe

    def create(self, path: str) -> int:
        """A new file's descriptor; makes the directory above it, too, and makes that one safe.

        :raises FileExistsError: there is such a file.
        """
        parent = os.path.dirname(path)
        if parent not in self._named:
            self._name(parent)
        try:
            return self._create(path)
        except FileNotFoundError:  # somebody tidied up
            self._name(parent)
            return self._create(path)

    def _name(self, directory: str) -> None:
        with suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        # Another thread may have made it this moment, or a process that died then: that it is there is not enough.
        self.sync_directory(os.path.dirname(directory))
        self._named.add(directory)

    def _create(self, path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, descriptor: int, octets: bytes) -> None:
        """Writes all of *octets*."""
        view = memoryview(octets)
        while view:
            view = view[os.write(descriptor, view) :]

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def sync_directory(self, path: str) -> None:
        """Makes the names in directory *path* safe."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def remove(self, path: str) -> None:
        """Removes a file that may be gone already."""
        with suppress(FileNotFoundError):
            os.unlink(path)
