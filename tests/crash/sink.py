"""A next hop that keeps up: it knows each message by its token, and keeps nothing else."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from random import Random

from tests.crash.mail import recognise
from tests.lab.sink import unstuff

__all__ = ["TokenSink"]

_END = b"\r\n.\r\n"


class TokenSink:
    """What arrived, and in which life of the relay.

    :param refusals: the share of messages that get 451 at their end and so must come again.
    :ivar life: counted up by whoever starts the relay.
    :ivar taken: token -> the lives in which the message was answered 250.
    :ivar strange: messages that no client sent, or that did not come whole.
    """

    def __init__(self, seed: int, refusals: float) -> None:
        self.life = 0
        self.taken: defaultdict[str, list[int]] = defaultdict(list)
        self.strange: list[bytes] = []
        self.refused = 0
        self._random = Random(seed)
        self._refusals = refusals
        self._server: asyncio.Server | None = None

    async def listen(self) -> int:
        """Its port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Session(self), "127.0.0.1", 0, backlog=512)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def take(self, wire: bytes, life: int) -> bytes:
        """The reply to one message of a session that the relay began in *life*."""
        if self._random.random() < self._refusals:
            self.refused += 1
            return b"451 4.3.0 come again\r\n"
        message = unstuff(wire)
        token = recognise(message)
        if token is None:
            self.strange.append(message)
        else:
            self.taken[token].append(life)
        return b"250 2.0.0 taken\r\n"


class _Session(asyncio.Protocol):
    """As much SMTP as a well-behaved client needs; pipelining is allowed."""

    def __init__(self, sink: TokenSink) -> None:
        self._sink = sink
        self._buffer = bytearray()
        self._in_data = False
        self._searched = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # What a dead relay left in the socket still belongs to the life that sent it.
        self._life = self._sink.life
        transport.write(b"220 sink.example ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        replies: list[bytes] = []
        while (reply := self._next()) is not None:
            replies.append(reply)
        if replies:
            self._transport.write(b"".join(replies))

    def _next(self) -> bytes | None:
        """The reply to the next whole thing in the buffer."""
        if self._in_data:
            wire = self._message()
            if wire is None:
                return None
            self._in_data = False
            return self._sink.take(wire, self._life)
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return None
        verb = bytes(self._buffer[:4]).upper()
        del self._buffer[: end + 2]
        if verb == b"EHLO":
            return b"250-sink.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 SIZE 0\r\n"
        if verb == b"DATA":
            self._in_data = True
            self._searched = 0
            return b"354 go ahead\r\n"
        if verb == b"QUIT":
            self._transport.close()
            return b"221 2.0.0 bye\r\n"
        return b"250 2.0.0 ok\r\n"

    def _message(self) -> bytes | None:
        end = self._buffer.find(_END, max(0, self._searched - len(_END)))
        if end < 0:
            self._searched = len(self._buffer)
            return None
        end += len(_END)
        wire = bytes(self._buffer[:end])
        del self._buffer[:end]
        return wire
