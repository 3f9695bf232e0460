"""A recording SMTP server: keeps every octet of a message exactly as it came on the wire.

It is no mail server: it takes what it is given, and `answer` lets a test make it refuse, defer, stall or hang up.
Written on plain asyncio instead of aiosmtpd, since aiosmtpd hands over the message after it has split, checked and
un-stuffed its lines, and what a test wants to see is what came before that.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

__all__ = ["HANG_UP", "Answer", "Mail", "RecordingSink", "Session", "unstuff"]

HANG_UP = b""
"""An answer that closes the connection without a reply."""

Answer = Callable[[bytes], bytes | None]
"""Asked with every command line (without CRLF) and, when a message is complete, with b"." or b"BDAT LAST":
None lets the sink answer as usual, else the reply to send (CRLF is added where it is missing), or HANG_UP."""


@dataclass(slots=True)
class Session:
    """One connection.

    :ivar lines: every command line as it came, without CRLF, in order; lines inside AUTH too.
    :ivar secure: whether TLS was on when the session ended.
    """

    peer: tuple[str, int]
    lines: list[bytes] = field(default_factory=list)
    secure: bool = False
    auth: tuple[str, str, str] | None = None
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Mail:
    """One message that was answered 250.

    :ivar mail_from: what stood after `MAIL FROM:`, parameters and all, e.g. b"<a@b.example> SIZE=10".
    :ivar recipients: what stood after each accepted `RCPT TO:`.
    :ivar wire: every octet after the 354, the end-of-data marker included; for BDAT the chunks joined.
    :ivar content: the message: `wire` without the marker, dot-stuffing undone.
    :ivar auth: (mechanism, user, password) when the client authenticated.
    """

    mail_from: bytes
    recipients: tuple[bytes, ...]
    wire: bytes
    content: bytes
    secure: bool
    auth: tuple[str, str, str] | None
    session: Session

    @property
    def sender(self) -> str:
        """The reverse-path without its angle brackets."""
        return _path(self.mail_from)

    @property
    def to(self) -> tuple[str, ...]:
        """The forward-paths without their angle brackets."""
        return tuple(_path(recipient) for recipient in self.recipients)


def _path(argument: bytes) -> str:
    inside = argument.strip()
    if inside.startswith(b"<"):
        inside = inside[1 : inside.rindex(b">")]
    return inside.decode("utf-8", "surrogateescape")


def unstuff(wire: bytes) -> bytes:
    """Undo DATA's framing: drop the end-of-data marker and one dot at the start of each line (RFC 5321 4.5.2).

    Only CRLF ends a line here, so a bare CR or LF stays what it is.
    """
    if wire == b".\r\n":
        return b""
    assert wire.endswith(b"\r\n.\r\n")
    text = wire[:-3]
    if text.startswith(b"."):
        text = text[1:]
    return text.replace(b"\r\n.", b"\r\n")


class _Gone(Exception):
    """The client closed the connection, or `answer` told the sink to."""


class RecordingSink:
    """An SMTP server in a thread of its own, on a port of the kernel's choice.

    Use as a context manager::

        with RecordingSink() as sink:
            ...send to sink.host, sink.port...
            mail, = sink.wait(1)

    :param tls: a server context; with it STARTTLS is offered, or `implicit_tls` speaks TLS at once.
    :param accounts: user -> password; with it AUTH PLAIN LOGIN is offered.
    :param tokens: access tokens that hold; with it AUTH XOAUTH2 is offered, as Exchange Online does it. It stands in
        for Exchange Online, which cannot be had here.
    :param require_auth: refuse MAIL with 530 until the client authenticated.
    :param extensions: further EHLO lines.
    :param answer: see `Answer`.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        *,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        accounts: dict[str, str] | None = None,
        tokens: set[str] | None = None,
        require_auth: bool = False,
        extensions: Sequence[str] = (
            "PIPELINING",
            "SIZE 0",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
            "CHUNKING",
        ),
        answer: Answer | None = None,
        port: int = 0,
    ) -> None:
        self.host = host
        self.port = port
        self.tls = tls
        self.implicit_tls = implicit_tls
        self.accounts = accounts
        self.tokens = tokens
        self.require_auth = require_auth
        self.extensions = tuple(extensions)
        self.answer: Answer = answer or (lambda line: None)
        self.mails: list[Mail] = []
        self.sessions: list[Session] = []
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="recording-sink", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; `port` is known afterwards."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def stop(self) -> None:
        """Close the listener and every connection."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def wait(self, count: int = 1, timeout: float = 15.0) -> list[Mail]:
        """The messages so far, once there are at least `count`.

        :raises TimeoutError: when fewer came in `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.mails) >= count, timeout):
                raise TimeoutError(f"{len(self.mails)} of {count} messages came in {timeout:g} s")
            return list(self.mails)

    def wait_sessions(self, count: int = 1, timeout: float = 15.0) -> list[Session]:
        """The sessions so far, once at least `count` have ended.

        :raises TimeoutError: when fewer ended in `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: sum(s.closed for s in self.sessions) >= count, timeout):
                raise TimeoutError(f"fewer than {count} sessions ended in {timeout:g} s")
            return list(self.sessions)

    async def _listen(self) -> None:
        context = self.tls if self.implicit_tls else None
        self._server = await asyncio.start_server(self._serve, self.host, self.port, ssl=context, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        me = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not me]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        session = Session((peer[0], peer[1]), secure=self.implicit_tls)
        with self._changed:
            self.sessions.append(session)
        try:
            await _Conversation(self, session, reader, writer).run()
        except (_Gone, ConnectionError, ssl.SSLError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with self._changed:
                session.closed = True
                self._changed.notify_all()

    def _record(self, mail: Mail) -> None:
        with self._changed:
            self.mails.append(mail)
            self._changed.notify_all()


class _Conversation:
    def __init__(
        self,
        sink: RecordingSink,
        session: Session,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.sink = sink
        self.session = session
        self.reader = reader
        self.writer = writer
        self.buffer = bytearray()
        self.reset()

    def reset(self) -> None:
        self.mail_from: bytes | None = None
        self.recipients: list[bytes] = []
        self.chunks = bytearray()

    async def run(self) -> None:
        await self.reply(self.sink.answer(b"") or b"220 sink.example ESMTP")
        while True:
            line = await self.line()
            told = self.sink.answer(line)
            verb = line.split(b" ", 1)[0].split(b":", 1)[0].upper().decode("latin-1")
            argument = line[len(verb) :].strip()
            if told is not None and verb != "BDAT":
                await self.reply(told)
            elif verb == "QUIT":
                await self.reply(b"221 2.0.0 bye")
                return
            else:
                method = getattr(self, f"do_{verb}", None)
                await (method(argument) if method else self.reply(b"500 5.5.1 unknown command"))

    async def more(self) -> None:
        got = await self.reader.read(65536)
        if not got:
            raise _Gone
        self.buffer += got

    async def line(self) -> bytes:
        while (end := self.buffer.find(b"\n")) < 0:
            await self.more()
        line = bytes(self.buffer[: end + 1])
        del self.buffer[: end + 1]
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        self.session.lines.append(line)
        return line

    async def reply(self, text: bytes) -> None:
        if text == HANG_UP:
            raise _Gone
        self.writer.write(text if text.endswith(b"\r\n") else text + b"\r\n")
        await self.writer.drain()

    async def do_HELO(self, argument: bytes) -> None:
        self.reset()
        await self.reply(b"250 sink.example")

    async def do_EHLO(self, argument: bytes) -> None:
        self.reset()
        offers = ["sink.example", *self.sink.extensions]
        if self.sink.tls and not self.session.secure:
            offers.append("STARTTLS")
        if self.sink.accounts is not None:
            offers.append("AUTH PLAIN LOGIN")
        if self.sink.tokens is not None:
            offers.append("AUTH LOGIN XOAUTH2")
        lines = [f"250-{offer}" for offer in offers[:-1]] + [f"250 {offers[-1]}"]
        await self.reply("\r\n".join(lines).encode())

    async def do_STARTTLS(self, argument: bytes) -> None:
        if self.sink.tls is None or self.session.secure:
            await self.reply(b"503 5.5.1 no TLS here")
            return
        await self.reply(b"220 2.0.0 go ahead")
        self.buffer.clear()
        await self.writer.start_tls(self.sink.tls)
        self.session.secure = True
        self.reset()

    async def do_AUTH(self, argument: bytes) -> None:
        words = argument.split()
        mechanism = words[0].upper() if words else b""
        if mechanism == b"XOAUTH2" and self.sink.tokens is not None:
            await self.xoauth2(words[1], self.sink.tokens)
            return
        if self.sink.accounts is None or mechanism not in (b"PLAIN", b"LOGIN"):
            await self.reply(b"504 5.5.4 no such mechanism")
            return
        first = words[1] if len(words) > 1 else None
        if mechanism == b"PLAIN":
            if first is None:
                await self.reply(b"334 ")
                first = await self.line()
            user, password = (part.decode() for part in base64.b64decode(first).split(b"\0")[1:])
        else:
            if first is None:
                await self.reply(b"334 VXNlcm5hbWU6")
                first = await self.line()
            user = base64.b64decode(first).decode()
            await self.reply(b"334 UGFzc3dvcmQ6")
            password = base64.b64decode(await self.line()).decode()
        if self.sink.accounts.get(user) != password:
            await self.reply(b"535 5.7.8 wrong")
            return
        self.session.auth = (mechanism.decode(), user, password)
        await self.reply(b"235 2.7.0 welcome")

    async def xoauth2(self, response: bytes, tokens: set[str]) -> None:
        user, bearer, *rest = base64.b64decode(response).decode().split("\1")
        token = bearer.removeprefix("auth=Bearer ")
        if rest != ["", ""] or token not in tokens:
            await self.reply(b"334 " + base64.b64encode(b'{"status":"401","schemes":"bearer"}'))
            assert await self.line() == b""
            await self.reply(b"535 5.7.3 Authentication unsuccessful")
            return
        self.session.auth = ("XOAUTH2", user.removeprefix("user="), token)
        await self.reply(b"235 2.7.0 welcome")

    async def do_MAIL(self, argument: bytes) -> None:
        if self.sink.require_auth and self.session.auth is None:
            await self.reply(b"530 5.7.0 authenticate first")
            return
        self.reset()
        self.mail_from = argument.partition(b":")[2].strip()
        await self.reply(b"250 2.1.0 ok")

    async def do_RCPT(self, argument: bytes) -> None:
        if self.mail_from is None:
            await self.reply(b"503 5.5.1 MAIL first")
            return
        self.recipients.append(argument.partition(b":")[2].strip())
        await self.reply(b"250 2.1.5 ok")

    async def do_RSET(self, argument: bytes) -> None:
        self.reset()
        await self.reply(b"250 2.0.0 ok")

    async def do_NOOP(self, argument: bytes) -> None:
        await self.reply(b"250 2.0.0 ok")

    async def do_DATA(self, argument: bytes) -> None:
        if not self.recipients:
            await self.reply(b"503 5.5.1 RCPT first")
            return
        await self.reply(b"354 go ahead")
        start = 0
        while True:
            if self.buffer.startswith(b".\r\n"):
                end = 3
                break
            if (found := self.buffer.find(b"\r\n.\r\n", start)) >= 0:
                end = found + 5
                break
            start = max(0, len(self.buffer) - 4)
            await self.more()
        wire = bytes(self.buffer[:end])
        del self.buffer[:end]
        await self.complete(wire, unstuff(wire), b".")

    async def do_BDAT(self, argument: bytes) -> None:
        words = argument.upper().split()
        size = int(words[0])
        while len(self.buffer) < size:
            await self.more()
        self.chunks += self.buffer[:size]
        del self.buffer[:size]
        if not self.recipients:
            await self.reply(b"503 5.5.1 RCPT first")
        elif b"LAST" in words[1:]:
            await self.complete(bytes(self.chunks), bytes(self.chunks), b"BDAT LAST")
        else:
            await self.reply(b"250 2.0.0 chunk ok")

    async def complete(self, wire: bytes, content: bytes, event: bytes) -> None:
        told = self.sink.answer(event)
        if told is None or told.startswith(b"250"):
            assert self.mail_from is not None
            state = (self.session.secure, self.session.auth, self.session)
            self.sink._record(Mail(self.mail_from, tuple(self.recipients), wire, content, *state))
        self.reset()
        await self.reply(b"250 2.0.0 kept" if told is None else told)
