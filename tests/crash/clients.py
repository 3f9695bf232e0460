"""Recording clients: each writes down a message once it has read the 250 to its final dot, and outlives a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

from tests.crash.mail import content

__all__ = ["Load"]

#: Octets, below and above what the queue keeps in a database row: both ways to store a body are hit in their midst.
SMALL = (200, 8 * 1024)
LARGE = (257 * 1024, 600 * 1024)

#: Seconds until a client that gets no reply complains.
PATIENCE = 30.0


class Unexpected(Exception):
    """A reply that a healthy relay does not give to a blameless client."""


class Load:
    """*clients* sessions at a time, each with one to ten messages, until `stop`.

    :param recipient: of every message.
    :param large: the share of messages that are too big for a database row.
    :param full: while it answers true no message is begun, so that what is under way stays bounded.
    :ivar port: where the relay listens in its present life.
    :ivar tried: every token of which an octet may have been sent.
    :ivar accepted: the tokens whose 250 was read, in that order; the value says whether the message was large.
    :ivar complaints: what the clients saw that is no crash.
    """

    def __init__(self, recipient: str, *, clients: int, seed: int, large: float, full: Callable[[], bool]) -> None:
        self.port = 0
        self.tried: set[str] = set()
        self.accepted: dict[str, bool] = {}
        self.complaints: list[str] = []
        self._recipient = recipient.encode()
        self._clients = clients
        self._seed = seed
        self._large = large
        self._full = full
        self._running = True

    async def run(self) -> None:
        """Ends after `stop`, when every client has finished its message."""
        await asyncio.gather(*(self._client(number) for number in range(self._clients)))

    def stop(self) -> None:
        self._running = False

    async def _client(self, number: int) -> None:
        random = Random(f"{self._seed} {number}")
        while self._running and not self.complaints:
            try:
                await self._session(random, number)
            except TimeoutError:
                self.complaints.append(f"no reply in {PATIENCE:g} s")
            except (OSError, EOFError):
                await asyncio.sleep(0.01)  # the relay is down; try again soon
            except Unexpected as wrong:
                self.complaints.append(str(wrong))

    async def _session(self, random: Random, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            dialog = _Dialog(reader, writer)
            await dialog.expect(b"220")
            await dialog.ask(b"EHLO client.example\r\n", b"250")
            for _ in range(random.randint(1, 10)):
                while self._full() and self._running:  # noqa: ASYNC110  # asked, not told: the sink knows nothing of us
                    await asyncio.sleep(0.01)
                if not self._running:
                    break
                await self._message(dialog, random, number)
            await dialog.ask(b"QUIT\r\n", b"221")
        finally:
            writer.close()

    async def _message(self, dialog: _Dialog, random: Random, number: int) -> None:
        large = random.random() < self._large
        token = f"{number}-{random.getrandbits(64):016x}"
        message = content(token, random.randint(*(LARGE if large else SMALL)))
        await dialog.ask(b"MAIL FROM:<client@corp.example>\r\n", b"250")
        await dialog.ask(b"RCPT TO:<%s>\r\n" % self._recipient, b"250")
        await dialog.ask(b"DATA\r\n", b"354")
        self.tried.add(token)
        await dialog.ask(message + b".\r\n", b"250")
        self.accepted[token] = large


class _Dialog:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, octets: bytes, code: bytes) -> None:
        """Sends *octets*, and waits for a reply that has to be *code*.

        :raises OSError: EOFError too: the relay went away.
        """
        self._writer.write(octets)
        async with asyncio.timeout(PATIENCE):
            await self._writer.drain()
        await self.expect(code)

    async def expect(self, code: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            line = await self._reader.readuntil(b"\r\n")
            while line[3:4] == b"-":
                line = await self._reader.readuntil(b"\r\n")
        if line[:3] != code:
            raise Unexpected(f"{line!r} instead of {code!r}")
