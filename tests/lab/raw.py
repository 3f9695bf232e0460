"""An SMTP client that does what no client does: it sends any octets at any time, and reads what comes back."""

from __future__ import annotations

import socket
import ssl
import struct
from types import TracebackType
from typing import Self

__all__ = ["Raw"]

#: Whatever is waited for has to come in this many seconds.
DEADLINE = 20.0


class Raw:
    """One connection.

    :param source: the address to connect from; on Linux all of 127.0.0.0/8 is this machine.
    :param tls: a client context: TLS from the first octet.
    :param greeting: whether a 220 is waited for.
    """

    def __init__(
        self,
        port: int,
        *,
        source: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        greeting: bool = True,
        receive_buffer: int = 0,
    ) -> None:
        plain = socket.socket()
        plain.settimeout(DEADLINE)
        if receive_buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        plain.bind((source, 0))
        plain.connect(("127.0.0.1", port))
        # Each write of a test is to be a segment of its own.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = tls.wrap_socket(plain, server_hostname="127.0.0.1") if tls else plain
        self._buffer = b""
        if greeting:
            assert self.reply().startswith(b"220 ")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def send(self, *writes: bytes) -> Self:
        """Sends each of *writes* in a segment of its own."""
        for octets in writes:
            self.socket.sendall(octets)
        return self

    def line(self) -> bytes:
        """The next line, with its CRLF; what there was of it when the server closed."""
        while b"\n" not in self._buffer:
            more = self._receive()
            if not more:
                break
            self._buffer += more
        line, newline, self._buffer = self._buffer.partition(b"\n")
        return line + newline

    def reply(self) -> bytes:
        """The next reply, all of its lines; b"" when the server closed instead."""
        lines = [self.line()]
        while lines[-1][3:4] == b"-":
            lines.append(self.line())
        return b"".join(lines)

    def replies(self, count: int) -> list[bytes]:
        return [self.reply() for _ in range(count)]

    def codes(self, count: int) -> list[int]:
        """The codes of the next replies; 0 where the server closed."""
        return [int(reply[:3] or 0) for reply in self.replies(count)]

    def say(self, *lines: bytes) -> bytes:
        """Sends each line, and waits for its reply; the last reply."""
        reply = b""
        for line in lines:
            self.send(line + b"\r\n")
            reply = self.reply()
        return reply

    def ready(self, *recipients: bytes, sender: bytes = b"<a@client.example>", data: bool = True) -> Self:
        """Says hello, and goes on to where a message begins."""
        for line in (b"EHLO client.example", b"MAIL FROM:" + sender):
            reply = self.say(line)
            assert reply.startswith(b"250"), reply
        for recipient in recipients or (b"<b@local.example>",):
            reply = self.say(b"RCPT TO:" + recipient)
            assert reply.startswith(b"250"), reply
        if data:
            reply = self.say(b"DATA")
            assert reply.startswith(b"354"), reply
        return self

    def starttls(self, context: ssl.SSLContext) -> Self:
        reply = self.say(b"STARTTLS")
        assert reply.startswith(b"220"), reply
        assert not self._buffer
        self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1")
        return self

    def rest(self) -> bytes:
        """All that the server sends until it closes."""
        octets = self._buffer
        self._buffer = b""
        while more := self._receive():
            octets += more
        return octets

    def finish(self) -> None:
        """Says no more; the server may."""
        self.socket.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Resets the connection."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(65536)
        except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
            return b""
