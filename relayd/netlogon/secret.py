"""The secret of the machine account, as its file has it now."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path as File
from typing import Final

from relayd.netlogon.faults import MachineFault

__all__ = ["Secret"]

#: How long a refused secret is not tried again, in seconds: doubled each time, unless the file holds another one.
FIRST_REST: Final = 15.0
LONGEST_REST: Final = 60.0


class Secret:
    """Reads the password each time: whoever renews it writes the file, and relayd goes on.

    For one thread. A secret that the controllers refused is not offered to them with each logon. Nothing is locked by
    offering it, and an account that was enabled again is to be of use soon, so the rest is short.

    :param clock: seconds, monotonic.
    """

    def __init__(self, file: File, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._refused: bytes | None = None
        self._why = ""
        self._until = 0.0
        self._rest = FIRST_REST

    def read(self) -> bytes:
        """The password, UTF-8.

        :raises MachineFault: there is none, or it was refused a moment ago.
        """
        try:
            password = self._file.read_bytes().strip(b"\r\n")
            password.decode("utf-8")
        except OSError as error:
            raise MachineFault(f"{self._file}: {error.strerror}") from None
        except ValueError:
            raise MachineFault(f"{self._file}: not UTF-8") from None
        if not password:
            raise MachineFault(f"{self._file}: empty")
        if password == self._refused and self._clock() < self._until:
            raise MachineFault(f"{self._why}; not tried again yet")
        return password

    def refused(self, password: bytes, why: str) -> None:
        """The controllers refuse *password*."""
        if password != self._refused:
            self._rest = FIRST_REST
        self._refused, self._why, self._until = password, why, self._clock() + self._rest
        self._rest = min(self._rest * 2, LONGEST_REST)

    def worked(self) -> None:
        self._refused, self._rest, self._why = None, FIRST_REST, ""
