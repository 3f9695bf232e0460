"""A client of the API, for relayctl: blocking, on the standard library."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path as File
from typing import Any
from urllib.parse import quote

from relayd.control.documents import Document


class ControlError(Exception):
    """The server answered, and not with what was asked for: *status* is HTTP's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Unreachable(Exception):
    """No server answers on the control socket."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: File, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class ControlClient:
    """Asks the server behind *path*.

    Every method raises :class:`Unreachable` or :class:`ControlError`.
    """

    def __init__(self, path: File, timeout: float = 60.0) -> None:
        self.path = path
        self._timeout = timeout

    def status(self) -> Document:
        return self._json("GET", "/api/v1/status")

    def queue(self, filter: Document) -> list[Document]:
        messages: list[Document] = self._json("GET", f"/api/v1/queue?filter={quote(json.dumps(filter))}")["messages"]
        return messages

    def message(self, message_id: str) -> Document:
        return self._json("GET", f"/api/v1/queue/{quote(message_id, safe='')}")

    def body(self, message_id: str) -> bytes:
        return self._ask("GET", f"/api/v1/queue/{quote(message_id, safe='')}/body")

    def act(self, action: str, filter: Document) -> int:
        """``retry`` or ``drop``; how many messages that were."""
        return int(self._json("POST", f"/api/v1/queue/{action}", filter)["messages"])

    def auth_test(self, user: str, password: str, mechanism: str, listener: str) -> Document:
        """Has *user* authenticated by the server."""
        wanted = {"user": user, "password": password, "mechanism": mechanism, "listener": listener}
        return self._json("POST", "/api/v1/auth/test", wanted)

    def _json(self, method: str, path: str, document: Any = None) -> Document:
        answer: Document = json.loads(self._ask(method, path, document))
        return answer

    def _ask(self, method: str, path: str, document: Any = None) -> bytes:
        connection = _UnixConnection(self.path, self._timeout)
        try:
            connection.request(method, path, None if document is None else json.dumps(document).encode())
            answer = connection.getresponse()
            octets = answer.read()
        except PermissionError:
            raise Unreachable(
                f"no relayd answers on {self.path}: only root and the user that relayd runs as may ask it"
            ) from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise Unreachable(f"no relayd answers on {self.path}; is it running, with this configuration?") from None
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"no relayd answers on {self.path}: {error}") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise ControlError(answer.status, _error(octets))
        return octets


def _error(octets: bytes) -> str:
    try:
        return str(json.loads(octets)["error"])
    except (ValueError, KeyError, TypeError):
        return octets.decode("utf-8", "replace")
