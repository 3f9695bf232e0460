"""Next hops that fail once, at one step of the dialogue, and are well from then on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

#: The steps of a session with one message for two recipients, in order.
STEPS = ("greeting", "EHLO", "MAIL", "RCPT 1", "RCPT 2", "DATA", "body", "end")

#: What goes wrong there: the connection is closed instead of the reply, or behind it; another reply is given; nothing.
FAULTS = ("close", "reply, close", "450", "550", "421", "noise", "silence")

_SAID = {
    "450": b"450 4.2.0 not now\r\n",
    "550": b"550 5.2.0 never\r\n",
    "421": b"421 4.3.2 leaving\r\n",
    "noise": b"\x00\xff what?\r\n",
}


class _Gone(Exception):
    """The connection ends here."""


@dataclass
class FaultyHop:
    """One of them.

    :param extensions: what it offers.
    :param step: of :data:`STEPS`. *body* is the middle of the message: what is said there is said too early.
    :param fault: of :data:`FAULTS`.
    :param lmtp: it speaks LMTP (RFC 2033): a reply for each recipient after the message.
    :ivar taken: for each message that was read to its end, answered or not, its recipients' local parts.
    """

    extensions: tuple[str, ...]
    step: str
    fault: str
    lmtp: bool = False
    port: int = 0
    taken: list[tuple[str, ...]] = field(default_factory=list)
    failed: bool = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _Session(self, reader, writer).run()
        except (_Gone, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


class _Session:
    def __init__(self, hop: FaultyHop, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hop, self.reader, self.writer = hop, reader, writer
        self.mail = False
        self.asked = 0
        self.recipients: list[str] = []
        self.refused = False

    async def run(self) -> None:
        await self.reply("greeting", b"220 hop.example")
        while True:
            line = (await self.reader.readuntil(b"\r\n")).strip()
            verb = line.split(b" ")[0].upper()
            if verb in (b"EHLO", b"LHLO"):
                lines = ["hop.example", *self.hop.extensions]
                marks = ["-"] * (len(lines) - 1) + [" "]
                await self.reply("EHLO", "\r\n".join(f"250{m}{t}" for m, t in zip(marks, lines, strict=True)).encode())
            elif verb == b"MAIL":
                self.mail = await self.reply("MAIL", b"250 2.1.0 ok")
                self.asked, self.recipients = 0, []
            elif verb == b"RCPT":
                await self.rcpt(line)
            elif verb == b"DATA":
                await self.data()
            elif verb == b"BDAT":
                await self.chunk(line)
            elif verb == b"RSET":
                self.mail, self.recipients = False, []
                self.say(b"250 2.0.0 ok")
            elif verb == b"QUIT":
                self.say(b"221 2.0.0 bye")
                return
            else:
                self.say(b"500 5.5.2 what?")

    async def rcpt(self, line: bytes) -> None:
        self.asked += 1
        if not self.mail:
            self.say(b"503 5.5.1 MAIL first")
        elif await self.reply(f"RCPT {self.asked}", b"250 2.1.5 ok"):
            self.recipients.append(line.partition(b"<")[2].partition(b"@")[0].decode())

    async def data(self) -> None:
        if not self.recipients:
            self.say(b"503 5.5.1 RCPT first")
            return
        if not await self.reply("DATA", b"354 go on"):
            return
        if self.due("body"):
            await self.reader.readexactly(100)
            self.refused = not await self.reply("body", b"") and self.hop.fault != "noise"
        await self.reader.readuntil(b"\r\n.\r\n")
        await self.end()

    async def chunk(self, line: bytes) -> None:
        words = line.split()
        size = int(words[1])
        if not self.recipients:
            await self.reader.readexactly(size)
            self.say(b"503 5.5.1 RCPT first")
            return
        if self.due("body"):
            await self.reader.readexactly(100)
            size -= 100
            self.refused = not await self.reply("body", b"") and self.hop.fault != "noise"
        await self.reader.readexactly(size)
        if words[-1].upper() == b"LAST":
            await self.end()
        else:
            self.say(b"250 2.0.0 ok")

    async def end(self) -> None:
        recipients, self.recipients, self.mail = self.recipients, [], False
        refused, self.refused = self.refused, False
        if refused:  # said in the middle, and nothing behind it but what LMTP owes the others
            for _ in recipients[1:] if self.hop.lmtp else ():
                self.writer.write(_SAID[self.hop.fault])
            return
        taken = list(recipients)
        if self.due("end") and self.hop.fault in ("450", "550", "421"):
            taken = taken[1:] if self.hop.lmtp and self.hop.fault != "421" else []
        if taken:
            self.hop.taken.append(tuple(taken))
        for _ in recipients if self.hop.lmtp else recipients[:1]:
            await self.reply("end", b"250 2.0.0 taken")

    def due(self, step: str) -> bool:
        return step == self.hop.step and not self.hop.failed

    async def reply(self, step: str, usual: bytes) -> bool:
        """Says what is usual, but for the one time that it fails; whether it was positive."""
        if not self.due(step):
            self.say(usual)
            return True
        fault = self.hop.fault
        self.hop.failed = True
        if fault == "close":
            raise _Gone
        if fault == "silence":
            await self.reader.read()  # until the other end has had enough
            raise _Gone
        if fault == "reply, close":
            self.say(usual)
            raise _Gone
        self.writer.write(_SAID[fault])
        if fault == "421":
            raise _Gone
        return False

    def say(self, line: bytes) -> None:
        self.writer.write(line + b"\r\n")


class FaultyHops:
    """Many of them, in a thread of their own, each on a port of the kernel's choice. A context manager."""

    def __init__(self, hops: Iterable[FaultyHop]) -> None:
        self.hops = list(hops)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-hops", daemon=True)
        self._servers: list[asyncio.Server] = []

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> None:
        for hop in self.hops:
            server = await asyncio.start_server(hop.serve, "127.0.0.1", 0, limit=1 << 22)
            hop.port = server.sockets[0].getsockname()[1]
            self._servers.append(server)

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        me = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not me]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
