"""What may happen to a file that an administrator wrote."""

from __future__ import annotations

from pathlib import Path

__all__ = ["empty", "fill_with_garbage", "put_a_directory"]


def empty(file: Path) -> None:
    """Leave nothing in it."""
    file.write_bytes(b"")


def fill_with_garbage(file: Path) -> None:
    """Leave nothing in it that means anything."""
    file.write_bytes(bytes(range(256)))


def put_a_directory(file: Path) -> None:
    """Put a directory in its place."""
    file.unlink()
    file.mkdir()
