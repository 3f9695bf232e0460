"""A DNS server for tests: authoritative for whatever it is told, on a loopback port that the kernel chose."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from collections import Counter
from types import TracebackType

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

__all__ = ["DnsServer"]

Zone = dict[tuple[str, str], list[str]]


class DnsServer:
    """Answers over UDP and TCP, each on the same port.

    Answers come from :attr:`records`: `records["example.org", "MX"] = ["10 mx.example.org."]`, names in lower
    case without the final dot. A name without any record is NXDOMAIN. A CNAME is followed. A name in
    :attr:`broken` (or a name and type) gets SERVFAIL, one in :attr:`silent` no answer. :attr:`questions` counts what
    was asked. Answers about names in :attr:`secure` zones, and not in :attr:`insecure` ones, say that they were
    validated (AD), to those who ask with DO.

    :param ttl: of every record, in seconds; also the negative TTL.
    """

    def __init__(self, records: Zone | None = None, *, ttl: int = 60) -> None:
        self.records: Zone = dict(records or {})
        self.broken: set[str | tuple[str, str]] = set()
        self.secure: set[str] = set()
        self.insecure: set[str] = set()
        self.silent: set[str] = set()
        self.questions: Counter[tuple[str, str]] = Counter()
        self.over_tcp = 0
        self.ttl = ttl
        self._servers: list[socketserver.BaseServer] = []
        self.port = 0

    @property
    def address(self) -> str:
        """`127.0.0.1:port`, as it is written in `[dns] servers`."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> DnsServer:
        for _ in range(20):
            udp = socketserver.ThreadingUDPServer(("127.0.0.1", 0), self._udp_handler())
            self.port = udp.server_address[1]
            try:
                tcp = socketserver.ThreadingTCPServer(("127.0.0.1", self.port), self._tcp_handler())
            except OSError:  # somebody has that TCP port
                udp.server_close()
                continue
            self._servers = [udp, tcp]
            break
        else:
            raise RuntimeError("no port that is free for UDP and TCP")
        for server in self._servers:
            if isinstance(server, socketserver.ThreadingMixIn):
                server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._servers = []

    def __enter__(self) -> DnsServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def answer(self, wire: bytes, *, size: int = 65535) -> bytes | None:
        """The answer to one question; None = silence."""
        try:
            question = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        asked = question.question[0]
        name = asked.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(asked.rdtype)
        self.questions[name, kind] += 1
        if name in self.silent:
            return None
        response = dns.message.make_response(question, recursion_available=True)
        if name in self.broken or (name, kind) in self.broken:
            response.set_rcode(dns.rcode.SERVFAIL)
            return response.to_wire()
        names = [name]
        for _ in range(8):
            if (name, kind) in self.records or (name, "CNAME") not in self.records:
                break
            target = self.records[name, "CNAME"]
            response.answer.append(dns.rrset.from_text_list(name + ".", self.ttl, "IN", "CNAME", target))
            name = target[0].rstrip(".").lower()
            names.append(name)
        if question.ednsflags & dns.flags.DO and all(self._is_secure(one) for one in names):
            response.flags |= dns.flags.AD
        if (name, kind) in self.records:
            texts = self.records[name, kind]
            response.answer.append(dns.rrset.from_text_list(name + ".", self.ttl, "IN", kind, texts))
        else:
            if not any(known == name for known, _ in self.records):
                response.set_rcode(dns.rcode.NXDOMAIN)
            soa = f"ns.invalid. root.invalid. 1 3600 600 86400 {self.ttl}"
            zone = dns.name.from_text(name).parent().to_text() if "." in name else "."
            response.authority.append(dns.rrset.from_text(zone, self.ttl, "IN", "SOA", soa))
        try:
            return response.to_wire(max_size=size)
        except dns.exception.TooBig:
            response.answer.clear()
            response.flags |= dns.flags.TC
            return response.to_wire()

    def _is_secure(self, name: str) -> bool:
        def within(zones: set[str]) -> bool:
            return any(name == zone or name.endswith(f".{zone}") for zone in zones)

        return within(self.secure) and not within(self.insecure)

    def _udp_handler(self) -> type[socketserver.BaseRequestHandler]:
        lab = self

        class Datagram(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                wire, sock = self.request
                if (answer := lab.answer(wire, size=1232)) is not None:
                    sock.sendto(answer, self.client_address)

        return Datagram

    def _tcp_handler(self) -> type[socketserver.BaseRequestHandler]:
        lab = self

        class Stream(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, struct.error):
                    while True:
                        (length,) = struct.unpack("!H", _exactly(self.request, 2))
                        wire = _exactly(self.request, length)
                        lab.over_tcp += 1
                        if (answer := lab.answer(wire)) is None:
                            return
                        self.request.sendall(struct.pack("!H", len(answer)) + answer)

        return Stream


def _exactly(connection: socket.socket, count: int) -> bytes:
    octets = b""
    while len(octets) < count:
        more = connection.recv(count - len(octets))
        if not more:
            raise OSError("closed")
        octets += more
    return octets
