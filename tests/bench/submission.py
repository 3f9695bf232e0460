"""A client that hands in messages for many recipients: smtp-source knows one alone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable

__all__ = ["submit"]


def submit(port: int, recipient: Callable[[int], str], messages: int, length: int, sessions: int = 10) -> None:
    """Hands in *messages* of *length* octets, over *sessions* at once; the n-th goes to ``recipient(n)``.

    :raises RuntimeError: one was refused.
    """
    body = b"Subject: benchmark\r\n\r\n" + b"x" * 76 + b"\r\n"
    body += (b"x" * 76 + b"\r\n") * ((length - len(body)) // 78) + b".\r\n"
    failures: list[Exception] = []

    def session(first: int) -> None:
        try:
            _session(port, (recipient(number) for number in range(first, messages, sessions)), body)
        except (OSError, RuntimeError) as error:
            failures.append(error)

    threads = [threading.Thread(target=session, args=(first,)) for first in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"not all messages were taken: {failures[0]}") from failures[0]


def _session(port: int, recipients: Iterable[str], body: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        replies = connection.makefile("rb")

        def expect(*codes: bytes) -> None:
            for code in codes:
                while (line := replies.readline())[3:4] == b"-":
                    pass
                if line[:3] != code:
                    raise RuntimeError(f"{line!r} instead of {code!r}")

        expect(b"220")
        connection.sendall(b"EHLO client.lab.example\r\n")
        expect(b"250")
        for recipient in recipients:
            connection.sendall(b"MAIL FROM:<alice@lab.example>\r\nRCPT TO:<%s>\r\nDATA\r\n" % recipient.encode("ascii"))
            expect(b"250", b"250", b"354")
            connection.sendall(body)
            expect(b"250")
        connection.sendall(b"QUIT\r\n")
        expect(b"221")
