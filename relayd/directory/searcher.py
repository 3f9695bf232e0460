"""The account that searches: it signs in on each new connection, and is never locked by doing so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path as File
from typing import Final, Protocol

from relayd.directory.connection import Connection
from relayd.directory.faults import ControllerFault, Refusal, SearcherFault

__all__ = ["Account", "PasswordAccount", "Searcher"]

#: How long a refused password is not tried again, in seconds: doubled each time, unless the file holds another one.
FIRST_REST: Final = 15 * 60.0
LONGEST_REST: Final = 24 * 3600.0
#: The same for a refusal that is not the password's: disabled, expired, locked.
STATE_REST: Final = 60.0
#: The same where nobody said yes or no, in seconds: a KDC that hangs shall not hold up every question.
FAULT_REST: Final = 5.0


class Account(Protocol):
    """Who signs in, and by what."""

    @property
    def name(self) -> str:
        """As a log should call it."""
        ...

    def secret(self) -> bytes:
        """What it signs in with, read each time; when it is another one, what was refused before says nothing of it.

        :raises SearcherFault: it cannot be read.
        """
        ...

    def bind(self, connection: Connection, secret: bytes, until: float) -> Refusal | None:
        """Signs in; None when that went well.

        :param until: when it must have ended, on the monotonic clock.
        :raises SearcherFault: it cannot sign in, whatever the controller.
        :raises ControllerFault: the controller cannot tell.
        """
        ...

    def close(self) -> None:
        """Drops what it keeps."""
        ...


class PasswordAccount:
    """``bind_user`` with the password in its file."""

    def __init__(self, user: str, password_file: File | None) -> None:
        self._user = user
        self._file = password_file

    @property
    def name(self) -> str:
        return f"bind_user {self._user or '(none)'}"

    def secret(self) -> bytes:
        try:
            password = self._file.read_bytes().strip(b"\r\n") if self._file is not None else b""
        except OSError as error:
            raise SearcherFault(f"{self._file}: {error.strerror}") from None
        if not password:
            raise SearcherFault(f"no password for {self.name}")
        return password

    def bind(self, connection: Connection, secret: bytes, until: float) -> Refusal | None:
        return connection.bind(self._user, secret)

    def close(self) -> None:
        pass


class Searcher:
    """Signs *account* in.

    A refused secret is not offered on the next connection, nor by several threads at once: a directory would lock the
    account, and relayd out.
    """

    def __init__(self, account: Account, clock: Callable[[], float] = time.monotonic) -> None:
        self._account = account
        self._clock = clock
        self._one_at_a_time = threading.Lock()
        self._refused: bytes | None = None
        self._why = ""
        self._until = 0.0
        self._rest = FIRST_REST

    @property
    def name(self) -> str:
        return self._account.name

    def sign_in(self, connection: Connection, until: float) -> None:
        """Binds *connection*; in a thread.

        :raises SearcherFault: the account is refused, or its secret cannot be read.
        :raises ControllerFault: the controller cannot tell.
        """
        if not self._one_at_a_time.acquire(timeout=max(0.0, until - time.monotonic())):
            raise ControllerFault(f"{connection.controller}: timed out waiting for {self.name} to sign in")
        try:
            secret = self._account.secret()
            if secret == self._refused and self._clock() < self._until:
                raise SearcherFault(f"{self.name} {self._why}; not tried again yet")
            try:
                refused = self._account.bind(connection, secret, until)
            except SearcherFault as fault:
                self._remember(secret, f"failed: {fault}", FAULT_REST)
                raise
            if refused is not None:
                self._remember(secret, f"was refused: {refused}", self._rest_after(secret, refused))
                raise SearcherFault(f"{self.name} is refused: {refused}")
            self._refused, self._rest = None, FIRST_REST
        finally:
            self._one_at_a_time.release()

    def close(self) -> None:
        """Drops what the account keeps."""
        self._account.close()

    def _rest_after(self, secret: bytes, refused: Refusal) -> float:
        if not refused.wrong_password:
            return STATE_REST
        rest = self._rest if secret == self._refused else FIRST_REST
        self._rest = min(rest * 2, LONGEST_REST)
        return rest

    def _remember(self, secret: bytes, why: str, rest: float) -> None:
        if secret != self._refused and rest == FAULT_REST:
            self._rest = FIRST_REST
        self._refused, self._why, self._until = secret, why, self._clock() + rest
