"""Programs whose clock is wrong, by libfaketime."""

from __future__ import annotations

from pathlib import Path

__all__ = ["skewed_clock"]


def skewed_clock(by: str) -> dict[str, str]:
    """The environment of a program whose clock differs from everybody else's.

    The machine's clock stays, and so does the program's monotonic one, so that its timers go on as ever.

    :param by: how much, in the words of faketime(1): ``+10m``, ``-1h``.
    :raises FileNotFoundError: libfaketime is not installed (`packages.DIRECTORY` has it).
    """
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        raise FileNotFoundError("libfaketimeMT.so.1: apt-get install faketime")
    return {"LD_PRELOAD": str(libraries[0]), "FAKETIME": by, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
