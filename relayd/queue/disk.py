"""The few system calls that decide whether a large body is safe, in one place so that tests can make them fail."""

from __future__ import annotations

import os
from contextlib import suppress


class Disk:
    """Files as :class:`relayd.queue.spool.BodyFile` needs them. All methods block: for a thread."""

    def create(self, path: str) -> int:
        """A new file's descriptor; makes the directory above it, too, and makes that one safe.

        :raises FileExistsError: there is such a file.
        """
        parent = os.path.dirname(path)
        try:
            return self._create(path)
        except FileNotFoundError:
            try:
                os.mkdir(parent, 0o700)
            except FileExistsError:
                pass
            else:
                self.sync_directory(os.path.dirname(parent))
            return self._create(path)

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
