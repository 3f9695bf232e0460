"""How long one client waits: a session that sends a message after the other, and takes the time of each."""

from __future__ import annotations

import socket
import time

__all__ = ["latencies"]


def latencies(port: int, messages: int, length: int) -> list[float]:
    """Seconds from MAIL to the 250 of the final dot, for each of *messages* in one session, without pipelining."""
    body = b"Subject: benchmark\r\n\r\n" + b"x" * 76 + b"\r\n"
    body += (b"x" * 76 + b"\r\n") * ((length - len(body)) // 78) + b".\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        replies = connection.makefile("rb")

        def ask(octets: bytes, code: bytes) -> None:
            connection.sendall(octets)
            while (line := replies.readline())[3:4] == b"-":
                pass
            if line[:3] != code:
                raise RuntimeError(f"{line!r} instead of {code!r}")

        ask(b"", b"220")
        ask(b"EHLO client.lab.example\r\n", b"250")
        times = []
        for _ in range(messages):
            start = time.perf_counter()
            ask(b"MAIL FROM:<alice@lab.example>\r\n", b"250")
            ask(b"RCPT TO:<bob@lab.example>\r\n", b"250")
            ask(b"DATA\r\n", b"354")
            ask(body, b"250")
            times.append(time.perf_counter() - start)
        ask(b"QUIT\r\n", b"221")
    return times
