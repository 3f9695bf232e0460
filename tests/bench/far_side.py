"""The far side of many destinations: their DNS, and the hosts of those that hang. A process of its own.

Domain number n is ``d<n>.crowd.example``, its mail exchanger ``mx<n>.crowd.example``. All that are well have one
address, where an smtp-sink listens; each that hangs has its own, whose listener completes the TCP handshake and
says nothing, ever. ``mute`` ones have name servers that do not answer.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["WELL", "FarSide", "domain", "is_ill"]

#: Where those that are well listen, and the name server; the n-th that hangs is 127.77.2.n.
WELL, NAME_SERVER = "127.77.1.1", "127.77.0.53"
#: One domain of so many is ill.
OF = 10
TTL = 3600

A, MX, AAAA = 1, 15, 28


def domain(number: int) -> str:
    return f"d{number}.crowd.example"


def is_ill(number: int) -> bool:
    """Whether a domain hangs, or is mute, in a run where any are."""
    return number % OF == OF - 1


def _hanging_address(number: int) -> str:
    return f"127.77.2.{number // OF + 1}"


class FarSide:
    """Runs it.

    :param domains: how many there are, 2,500 at most.
    :param ill: ``hanging``, ``mute`` or ``none``: what every tenth is.
    :param port: where the sink of the others listens; those that hang listen there, too.
    """

    def __init__(self, domains: int, ill: str, port: int) -> None:
        self._arguments = [str(domains), ill, str(port)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.far_side", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("the far side did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.communicate(timeout=10)  # the end of its input ends it


def _answer(query: bytes, ill: str) -> bytes | None:
    """The answer to a query of one question; None = silence. Of a compressed name (RFC 1035 4.1.4) 0xC00C is the start
    of the question."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].lower())
        at += 1 + length
    question = query[12 : at + 5]
    (kind,) = struct.unpack("!H", question[-4:-2])
    first = labels[0].decode("ascii", "replace") if labels else ""
    name = first.lstrip("dmx")
    number = int(name) if name.isdigit() and labels[1:] == [b"crowd", b"example"] else None
    if number is not None and ill == "mute" and is_ill(number):
        return None
    data = b""
    if number is not None and kind == MX and first.startswith("d"):
        exchanger = f"mx{number}".encode()
        # preference 10, the label, and a pointer to the second label of the question
        data = struct.pack("!HB", 10, len(exchanger)) + exchanger + struct.pack("!H", 0xC00C + 1 + len(first))
    elif number is not None and kind == A and first.startswith("mx"):
        data = socket.inet_aton(_hanging_address(number) if ill == "hanging" and is_ill(number) else WELL)
    record = struct.pack("!HHHIH", 0xC00C, kind, 1, TTL, len(data)) + data if data else b""
    authority = b""
    if not data:  # an SOA of the root says how long "none" is true (RFC 2308)
        soa = b"\0\0" + struct.pack("!5I", 1, 3600, 600, 86400, TTL)
        authority = b"\0" + struct.pack("!HHIH", 6, 1, TTL, len(soa)) + soa
    flags = 0x8580 if number is not None else 0x8583  # an answer with authority; NXDOMAIN
    header = query[:2] + struct.pack("!5H", flags, 1, bool(data), not data, 0)
    return header + question + record + authority


def main(domains: int, ill: str, port: int) -> None:
    hanging = []
    if ill == "hanging":
        for number in filter(is_ill, range(domains)):
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((_hanging_address(number), port))
            listener.listen(4096)  # the kernel accepts, nobody else does
            hanging.append(listener)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
    server.bind((NAME_SERVER, 53))  # resolv.conf knows no other port
    os.write(1, b"ready\n")
    while True:
        ready, _, _ = select.select([server, 0], [], [])
        if 0 in ready and not os.read(0, 1):
            return
        query, client = server.recvfrom(4096)
        if (answer := _answer(query, ill)) is not None:
            server.sendto(answer, client)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
