"""The account that searches: it signs in on each new connection, and is never locked by doing so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path as File
from typing import Final

from relayd.directory.connection import Connection
from relayd.directory.faults import ControllerFault, Refusal, SearcherFault

__all__ = ["Searcher"]

#: How long a refused password is not tried again, in seconds: doubled each time, unless the file holds another one.
FIRST_REST: Final = 15 * 60.0
LONGEST_REST: Final = 24 * 3600.0
#: The same for a refusal that is not the password's: disabled, expired, locked.
STATE_REST: Final = 60.0


class Searcher:
    """Binds ``bind_user`` with the password in its file, which is read each time.

    A refused password is not offered on the next connection, nor by several threads at once: a directory would lock the
    account, and relayd out.
    """

    def __init__(self, name: str, password_file: File | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._file = password_file
        self._clock = clock
        self._one_at_a_time = threading.Lock()
        self._refused: bytes | None = None
        self._why = ""
        self._until = 0.0
        self._rest = FIRST_REST

    def sign_in(self, connection: Connection, until: float) -> None:
        """Binds *connection*; in a thread.

        :raises SearcherFault: the account is refused, or its password cannot be read.
        :raises ControllerFault: the controller cannot tell.
        """
        if not self._one_at_a_time.acquire(timeout=max(0.0, until - time.monotonic())):
            raise ControllerFault(f"{connection.controller}: timed out waiting for {self.name} to sign in")
        try:
            password = self._password()
            if password == self._refused and self._clock() < self._until:
                raise SearcherFault(f"bind_user {self.name} was refused: {self._why}; not tried again yet")
            refused = connection.bind(self.name, password)
            if refused is not None:
                self._remember(password, refused)
                raise SearcherFault(f"bind_user {self.name} is refused: {refused}")
            self._refused, self._rest = None, FIRST_REST
        finally:
            self._one_at_a_time.release()

    def _remember(self, password: bytes, refused: Refusal) -> None:
        if password != self._refused:
            self._rest = FIRST_REST
        rest = STATE_REST
        if refused.wrong_password:
            rest, self._rest = self._rest, min(self._rest * 2, LONGEST_REST)
        self._refused, self._why, self._until = password, str(refused), self._clock() + rest

    def _password(self) -> bytes:
        try:
            password = self._file.read_bytes().strip(b"\r\n") if self._file is not None else b""
        except OSError as error:
            raise SearcherFault(f"{self._file}: {error.strerror}") from None
        if not password:
            raise SearcherFault(f"no password for bind_user {self.name or '(none)'}")
        return password
