"""DCE/RPC over TCP as the Netlogon channel needs it (C706; MS-RPCE 2.2.2): each wait ends at the moment it was given,
and on a sealed connection nothing is believed that is not sealed.

impacket binds, and knows the calls. For the rest it trusts the network: it takes an answer that is not sealed for one
that is, and lets a field outside of the seal say where the answer ends.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from typing import Any, Final

from impacket.dcerpc.v5 import rpcrt

from relayd.model import IPAddress
from relayd.netlogon.sealing import TOKEN, NotGenuine, seal, unseal

__all__ = ["RpcFault", "SealedRpc", "Transport"]

#: Octets of an answer at most: a thousand groups are 30 KiB.
LONGEST_ANSWER: Final = 1024 * 1024
#: Octets of the call in one fragment: with header and token no more than everybody takes (C706 12.6.3.1: 1432).
FRAGMENT: Final = 1312

_HEADER: Final = struct.Struct("<BBBBIHHI")  # version, minor, type, flags, representation, length, token, call
_BODY: Final = struct.Struct("<IHH")  # allocation hint, context, operation (request) or cancel count (response)
_TRAILER: Final = struct.Struct("<BBBBI")  # type, level, padding, reserved, context
_LITTLE_ENDIAN: Final = 0x10


class RpcFault(Exception):
    """A fault PDU (C706 12.6.4.7). Nobody signs them: it proves nothing but that there is no answer."""


class Transport:
    """A TCP connection whose operations all together end by :attr:`until`, on the monotonic clock. impacket's transport
    to its RPC.

    :raises OSError: no connection, or not in time.
    """

    def __init__(self, address: IPAddress, port: int, until: float) -> None:
        self.until = until
        self.timed_out = False
        self._octets = 0
        self._socket = socket.create_connection((str(address), port), timeout=max(0.001, until - time.monotonic()))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def limit(self, until: float) -> None:
        """The next operations end by *until*."""
        self.until = until
        self._octets = 0

    def send(self, octets: bytes, forceWriteAndx: int = 0, forceRecv: int = 0) -> None:
        self._wait()
        try:
            self._socket.sendall(octets)
        except TimeoutError:
            self.timed_out = True
            raise

    def recv(self, forceRecv: int = 0, count: int = 0) -> bytes:
        """*count* octets, or one whole PDU."""
        if count:
            return self._exactly(count)
        header = self._exactly(_HEADER.size)
        length: int = _HEADER.unpack(header)[5]
        if length < _HEADER.size:
            raise OSError("not DCE/RPC")
        return header + self._exactly(length - len(header))

    def _exactly(self, count: int) -> bytes:
        self._octets += count
        if self._octets > LONGEST_ANSWER:
            raise OSError("the answer is too long")
        octets = bytearray()
        while len(octets) < count:
            self._wait()
            try:
                more = self._socket.recv(count - len(octets))
            except TimeoutError:
                self.timed_out = True
                raise
            if not more:
                raise ConnectionResetError("the controller ended the connection")
            octets += more
        return bytes(octets)

    def _wait(self) -> None:
        left = self.until - time.monotonic()
        if left <= 0:
            self.timed_out = True
            raise TimeoutError("timed out")
        self._socket.settimeout(left)

    @property
    def stale(self) -> bool:
        """Whether the other side ended the connection, or says something that nobody asked for."""
        try:
            poll = select.poll()
            poll.register(self._socket.fileno(), select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True

    def abort(self) -> None:
        """Ends whatever waits on the connection, from another thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def disconnect(self) -> None:
        self._socket.close()


class SealedRpc(rpcrt.DCERPC_v5):  # type: ignore[misc]
    """Calls whose octets both sides seal with the session key of a secure channel. To be bound once, then called.

    :param account: the machine account, with its ``$``; *domain* its domain's NetBIOS or DNS name.
    """

    def __init__(self, transport: Transport, account: str, domain: str, key: bytes) -> None:
        super().__init__(transport)
        self.set_credentials(account, "", domain)  # before the level, which it resets
        self.set_auth_type(rpcrt.RPC_C_AUTHN_NETLOGON)
        self.set_auth_level(rpcrt.RPC_C_AUTHN_LEVEL_PKT_PRIVACY)
        self._wire = transport
        self.key = key
        self._messages = 0
        self._call = 1  # the bind's

    def send(self, data: Any) -> None:
        """Sends a call that impacket made, in as many fragments as it takes."""
        stub, operation = bytes(data["pduData"]), int(data["op_num"])
        self._call += 1
        for start in range(0, max(1, len(stub)), FRAGMENT):
            part = stub[start : start + FRAGMENT]
            # The token is aligned (MS-RPCE 2.2.2.11); to 16, as some want it.
            padding = -len(part) % 16
            sealed, token = seal(part + bytes(padding), self._messages, self.key)
            self._messages += 1
            flags = (rpcrt.PFC_FIRST_FRAG if start == 0 else 0) | (
                rpcrt.PFC_LAST_FRAG if start + FRAGMENT >= len(stub) else 0
            )
            length = _HEADER.size + _BODY.size + len(sealed) + _TRAILER.size + len(token)
            self._wire.send(
                _HEADER.pack(5, 0, rpcrt.MSRPC_REQUEST, flags, _LITTLE_ENDIAN, length, len(token), self._call)
                + _BODY.pack(len(stub), self._ctx, operation)
                + sealed
                + _TRAILER.pack(*self._security, padding, 0, self._security_context)
                + token
            )

    def recv(self) -> bytes:
        """The answer, with the padding behind it.

        :raises NotGenuine: it is not what the controller sent.
        :raises RpcFault: there is none.
        """
        answer = bytearray()
        last = 0
        while not last:
            pdu = self._wire.recv()
            part, last = self._opened(pdu, first=not answer)
            answer += part
        return bytes(answer)

    def _opened(self, pdu: bytes, first: bool) -> tuple[bytes, int]:
        version, _, kind, flags, representation, length, token_length, call = _HEADER.unpack_from(pdu)
        start = _HEADER.size + _BODY.size
        if kind == rpcrt.MSRPC_FAULT:
            (status,) = struct.unpack_from("<I", pdu, start)
            raise RpcFault(f"RPC fault {status:08x}")
        if (version, kind, representation, call) != (5, rpcrt.MSRPC_RESPONSE, _LITTLE_ENDIAN, self._call):
            raise NotGenuine("not an answer to this call")
        if bool(flags & rpcrt.PFC_FIRST_FRAG) is not first:
            raise NotGenuine("a fragment of the answer is missing")
        end = length - token_length - _TRAILER.size
        if token_length < 1 or token_length > TOKEN or end < start:
            raise NotGenuine("the answer is not sealed")
        kind, level, _, _, context = _TRAILER.unpack_from(pdu, end)
        if (kind, level) != self._security or context != self._security_context:
            raise NotGenuine("the answer is not sealed by this channel")
        part = unseal(pdu[start:end], pdu[end + _TRAILER.size :], self._messages, self.key)
        self._messages += 1
        return part, flags & rpcrt.PFC_LAST_FRAG

    @property
    def _security(self) -> tuple[int, int]:
        return rpcrt.RPC_C_AUTHN_NETLOGON, rpcrt.RPC_C_AUTHN_LEVEL_PKT_PRIVACY

    @property
    def _security_context(self) -> int:
        return int(self._ctx) + 79231  # as impacket binds it
