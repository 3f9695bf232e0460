"""Somebody on the wire between a relay and a controller's RPC, who changes what he likes."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

from impacket.dcerpc.v5 import epm, nrpc

__all__ = [
    "BODY",
    "FAULT",
    "REQUEST",
    "RESPONSE",
    "TOKEN",
    "RpcProxy",
    "kind",
    "operation",
    "passes",
    "sealed",
    "stub_end",
]

#: Where the octets of a call begin (C706 12.6.4), and how long are the trailer and the token behind them.
BODY, TRAILER, TOKEN = 24, 8, 56
#: Kinds of PDU (C706 12.6.1).
REQUEST, RESPONSE, FAULT = 0, 2, 3

Change = Callable[[bytes], Iterable[bytes]]


def kind(pdu: bytes) -> int:
    return pdu[2]


def operation(pdu: bytes) -> int:
    """The operation of a request."""
    return int(struct.unpack_from("<H", pdu, 22)[0]) if kind(pdu) == REQUEST else -1


def sealed(pdu: bytes) -> bool:
    """Whether it is a request or response with a token."""
    return kind(pdu) in (REQUEST, RESPONSE) and pdu[10:12] != b"\0\0"


def stub_end(pdu: bytes) -> int:
    """Where the octets of a sealed call end, and its trailer begins."""
    return len(pdu) - TRAILER - TOKEN


def passes(pdu: bytes) -> Iterable[bytes]:
    """Changes nothing."""
    return (pdu,)


class RpcProxy:
    """Listens on an address of its own at the ports that a controller has for RPC. Use as a context manager.

    :ivar requests: makes what the controller gets of each PDU of the client's.
    :ivar answers: makes what the client gets of each PDU of the controller's.
    """

    def __init__(self, controller: str) -> None:
        self._controller = controller
        binding = epm.hept_map(controller, nrpc.MSRPC_UUID_NRPC, protocol="ncacn_ip_tcp")
        self.ports = (135, int(binding.rpartition("[")[2].rstrip("]")))
        self.requests: Change = passes
        self.answers: Change = passes
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.address = self._bind()

    def _bind(self) -> IPv4Address:
        for last in range(1, 255):
            address = f"127.0.1.{last}"
            bound = []
            try:
                for port in self.ports:
                    bound.append(socket.create_server((address, port)))
            except OSError:
                for each in bound:
                    each.close()
                continue
            self._open += bound
            return IPv4Address(address)
        raise OSError("no address of 127.0.1.0/24 is free")

    def __enter__(self) -> Self:
        for listener, port in zip(tuple(self._open), self.ports, strict=True):
            self._start(self._accept, listener, port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(30)

    def _start(self, call: Callable[..., None], *args: object) -> None:
        self._threads.append(threading.Thread(target=call, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self, listener: socket.socket, port: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((self._controller, port), timeout=30)
                self._open += [client, server]
                self._start(self._pump, client, server, lambda pdu: self.requests(pdu))
                self._start(self._pump, server, client, lambda pdu: self.answers(pdu))

    def _pump(self, source: socket.socket, sink: socket.socket, change: Change) -> None:
        with contextlib.suppress(OSError):
            while len(header := _exactly(source, 16)) == 16:
                pdu = header + _exactly(source, struct.unpack_from("<H", header, 8)[0] - 16)
                for each in change(pdu):
                    sink.sendall(each)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _exactly(source: socket.socket, count: int) -> bytes:
    octets = b""
    while len(octets) < count and (more := source.recv(count - len(octets))):
        octets += more
    return octets
