"""The octets of stored messages."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class SmallBody:
    """A message that is held in memory."""

    octets: bytes

    @property
    def size(self) -> int:
        return len(self.octets)

    def open(self) -> BinaryIO:
        return io.BytesIO(self.octets)


@dataclass(frozen=True, slots=True)
class FileBody:
    """A message that lies in a file."""

    path: str
    size: int

    @property
    def octets(self) -> None:
        return None

    def open(self) -> BinaryIO:
        """The file.

        :raises OSError: it cannot be read: the message was finished meanwhile, or the disk is sick.
        """
        return open(self.path, "rb")


@dataclass(frozen=True, slots=True)
class BodyFiles:
    """Where the files of large bodies lie: ``bodies/xx/ID``."""

    root: str

    def path(self, message_id: str) -> str:
        """The file of *message_id*. The two letters are the part of an id that changes every millisecond."""
        return os.path.join(self.root, message_id[7:9], message_id)
