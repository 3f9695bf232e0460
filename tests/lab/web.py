"""A web server over HTTPS for tests: answers what the test says, and keeps what it was asked."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs


@dataclass(frozen=True)
class Request:
    """One request."""

    method: str
    path: str
    host: str
    content: bytes

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.content.decode()).items()}


@dataclass(frozen=True)
class Response:
    """What the server answers; *header* has more lines."""

    code: int = 200
    content: bytes = b""
    content_type: str = "text/plain"
    header: tuple[tuple[str, str], ...] = ()


class WebServer:
    """Use as a context manager.

    :param tls: a server context.
    :param answer: what to say to a request; it runs in a thread of its own, and may wait.
    """

    def __init__(
        self, tls: ssl.SSLContext, answer: Callable[[Request], Response], host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.requests: list[Request] = []
        self.answer = answer
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def setup(self) -> None:
                self.request.settimeout(30)
                self.request.do_handshake()
                super().setup()

            def handle_any(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                request = Request(self.command, self.path, self.headers.get("host", ""), self.rfile.read(length))
                outer.requests.append(request)
                response = outer.answer(request)
                self.send_response(response.code)
                self.send_header("Content-Type", response.content_type)
                self.send_header("Content-Length", str(len(response.content)))
                for name, value in response.header:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(response.content)

            do_GET = do_POST = handle_any

            def log_message(self, *arguments: object) -> None:
                """The test knows."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Clients that do not like the certificate leave."""

        self._server = Server((host, port), Handler)
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.host, self.port = host, self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
