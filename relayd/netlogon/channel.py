"""One secure channel to one controller (MS-NRPC 3.1.4, 3.4). It blocks, and is for one thread.

Opened, both sides have proved that they know the machine account's secret, and all that is said is sealed by a key that
comes of it, by AES: no older cryptography is taken, and what was agreed on in the clear is confirmed under seal.
"""

from __future__ import annotations

import hmac
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from impacket.dcerpc.v5 import epm, nrpc, rpcrt
from impacket.dcerpc.v5.dtypes import NULL
from impacket.ntlm import compute_nthash

from relayd.model import IPAddress
from relayd.netlogon.faults import CannotTell, ChannelFault, MachineFault
from relayd.netlogon.logon import Logon, NetworkLogon
from relayd.netlogon.rpc import SealedRpc, Transport
from relayd.netlogon.samlogon import OPERATION, decode_answer, encode_request, granted
from relayd.netlogon.statuses import MACHINE_REFUSED, OK, TRUSTS, LogonRefused, judged, status_text

__all__ = ["Machine", "SecureChannel"]

T = TypeVar("T")

ENDPOINT_MAPPER: Final = 135

# MS-NRPC 3.1.4.2: what Windows offers; AES with SHA-2 (W) and sealed RPC (Y) it must have.
_OFFERED: Final = 0x612F_FFFF
_NEEDED: Final = 0x0100_0000 | 0x4000_0000
_WORKSTATION: Final = nrpc.NETLOGON_SECURE_CHANNEL_TYPE.WorkstationSecureChannel


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine account that asks.

    :ivar account: with its ``$``; *domain* the NetBIOS or DNS name of its domain.
    :ivar secret: the NT hash of its password, 16 octets.
    """

    account: str
    domain: str
    secret: bytes = field(repr=False)

    @classmethod
    def of(cls, account: str, domain: str, password: bytes) -> Machine:
        """By its *password*, UTF-8."""
        return cls(account, domain, bytes(compute_nthash(password.decode("utf-8"))))

    @property
    def computer(self) -> str:
        return self.account.removesuffix("$")


class SecureChannel:
    """Opens a channel.

    :param host: the controller's name, for the log.
    :param until: when everything must have ended, on the monotonic clock.
    :raises ChannelFault: it could not be opened.
    :raises MachineFault: the controller refuses the machine account.
    """

    def __init__(self, host: str, address: IPAddress, machine: Machine, until: float) -> None:
        self.host = host
        self.used = time.monotonic()
        self._machine = machine
        self._address = address
        self._transport: Transport | None = None
        self._guarded(lambda: self._open(until))

    @property
    def stale(self) -> bool:
        """Whether the controller ended the channel."""
        return self._transport is None or self._transport.stale

    def logon(self, asked: NetworkLogon, until: float) -> Logon:
        """The account that *asked* is right for (MS-NRPC 3.5.4.5.1).

        :raises LogonRefused: none.
        :raises CannotTell: no controller of the account's domain can be reached.
        :raises ChannelFault: there is no answer that can be believed; the channel is closed.
        """
        stub = encode_request(self._machine.computer, asked)
        return self._guarded(lambda: self._judge(stub, until), asked=1)

    def confirm(self, until: float) -> None:
        """Has the controller confirm under seal what was agreed on in the clear (MS-NRPC 3.4.5.2.10).

        :raises ChannelFault: it does not; the channel is closed.
        """
        self._guarded(lambda: self._confirm(until))

    def abort(self) -> None:
        """Ends the call that waits, from another thread."""
        if (transport := self._transport) is not None:
            transport.abort()

    def close(self) -> None:
        """Ends the channel at once; it may be called again."""
        if self._transport is not None:
            self._transport.disconnect()
            self._transport = None

    # ---- what a controller is told ----------------------------------------------------------------------------

    def _open(self, until: float) -> None:
        port = self._port(until)
        key = self._key(port, until)
        self._transport = Transport(self._address, port, until)
        self._rpc = SealedRpc(self._transport, self._machine.account, self._machine.domain, key)
        self._rpc.bind(nrpc.MSRPC_UUID_NRPC)
        self._confirm(until)

    def _port(self, until: float) -> int:
        """Where the controller has Netlogon, by its endpoint mapper (C706 appendix O)."""
        with _Plain(self._address, ENDPOINT_MAPPER, until) as rpc:
            binding = epm.hept_map(str(self._address), nrpc.MSRPC_UUID_NRPC, protocol="ncacn_ip_tcp", dce=rpc)
        found = re.search(r"\[(\d{1,5})\]$", str(binding))
        if found is None or not 0 < int(found[1]) < 65536:
            raise ChannelFault("the endpoint mapper knows no Netlogon")
        return int(found[1])

    def _key(self, port: int, until: float) -> bytes:
        """The session key, once each side has proved to the other that it knows the secret (MS-NRPC 3.1.4.1)."""
        machine = self._machine
        with _Plain(self._address, port, until) as rpc:
            rpc.bind(nrpc.MSRPC_UUID_NRPC)
            ours = _challenge()
            request = nrpc.NetrServerReqChallenge()
            request["PrimaryName"] = NULL
            request["ComputerName"] = f"{machine.computer}\0"
            request["ClientChallenge"] = ours
            answer = rpc.request(request, checkError=False)
            if answer["ErrorCode"] != OK:
                raise ChannelFault(f"NetrServerReqChallenge: {status_text(answer['ErrorCode'])}")
            theirs = bytes(answer["ServerChallenge"])
            if len(theirs) != 8 or weak(theirs):
                raise ChannelFault("the controller's challenge is no random number")
            key = nrpc.ComputeSessionKeyAES("", ours, theirs, machine.secret)
            self._credential = nrpc.ComputeNetlogonCredentialAES(ours, key)
            request = nrpc.NetrServerAuthenticate3()
            request["PrimaryName"] = NULL
            request["AccountName"] = f"{machine.account}\0"
            request["SecureChannelType"] = _WORKSTATION
            request["ComputerName"] = f"{machine.computer}\0"
            request["ClientCredential"] = self._credential
            request["NegotiateFlags"] = _OFFERED
            answer = rpc.request(request, checkError=False)
        status = int(answer["ErrorCode"])
        if status in MACHINE_REFUSED:
            raise MachineFault(f"{self.host} refuses {machine.account}: {status_text(status)}")
        if status != OK:
            raise ChannelFault(f"NetrServerAuthenticate3: {status_text(status)}")
        self._agreed = int(answer["NegotiateFlags"])
        if self._agreed & _NEEDED != _NEEDED:
            raise ChannelFault(f"the controller offers no AES (flags {self._agreed:08x})")
        proof = nrpc.ComputeNetlogonCredentialAES(theirs, key)
        if not hmac.compare_digest(bytes(answer["ServerCredential"]), proof):
            raise ChannelFault("the controller does not prove that it knows the secret")
        return bytes(key)

    def _confirm(self, until: float) -> None:
        self._limit(until)
        key = self._rpc.key
        authenticator = nrpc.ComputeNetlogonAuthenticatorAES(self._credential, key)
        request = nrpc.NetrLogonGetCapabilities()
        request["ServerName"] = "\0"
        request["ComputerName"] = f"{self._machine.computer}\0"
        request["Authenticator"] = authenticator
        request["ReturnAuthenticator"]["Credential"] = bytes(8)
        request["ReturnAuthenticator"]["Timestamp"] = 0
        request["QueryLevel"] = 1
        answer = self._rpc.request(request, checkError=False)
        if answer["ErrorCode"] != OK:
            raise ChannelFault(f"NetrLogonGetCapabilities: {status_text(answer['ErrorCode'])}")
        # MS-NRPC 3.1.4.5: the credential that the authenticator was made of moves on by its time, then by one.
        self._credential = _added(self._credential, int(authenticator["Timestamp"]) + 1)
        proof = nrpc.ComputeNetlogonCredentialAES(self._credential, key)
        if not hmac.compare_digest(bytes(answer["ReturnAuthenticator"]["Credential"]), proof):
            raise ChannelFault("the controller's authenticator is wrong")
        capabilities = int(answer["ServerCapabilities"]["ServerCapabilities"])
        if capabilities != self._agreed:
            raise ChannelFault(f"flags {self._agreed:08x} came for {capabilities:08x}: somebody wants weaker ones")

    def _judge(self, stub: bytes, until: float) -> Logon:
        self._limit(until)
        self._rpc.call(OPERATION, stub)
        status, info = decode_answer(self._rpc.recv())
        self.used = time.monotonic()
        if (refused := judged(status)) is not None:
            raise refused
        if status in TRUSTS:
            raise CannotTell(f"{self.host}: {status_text(status)}")
        if status != OK:
            raise ChannelFault(f"NetrLogonSamLogonEx: {status_text(status)}", asked=1)
        if info is None:
            raise ChannelFault("a good status without an account", asked=1)
        return granted(info)

    def _limit(self, until: float) -> None:
        if self._transport is None:
            raise ChannelFault("closed")
        self._transport.limit(until)

    def _guarded(self, work: Callable[[], T], asked: int = 0) -> T:
        """What *work* brings. impacket raises anything at answers that are none: it all ends the channel."""
        try:
            return work()
        except (LogonRefused, CannotTell):
            raise
        except MachineFault:
            self.close()
            raise
        except Exception as error:
            timed_out = isinstance(error, TimeoutError)
            self.close()
            raise ChannelFault(f"{self.host}: {_reason(error)}", timed_out=timed_out, asked=asked) from None


class _Plain:
    """A bare RPC connection, for the length of a ``with``."""

    def __init__(self, address: IPAddress, port: int, until: float) -> None:
        self._transport = Transport(address, port, until)

    def __enter__(self) -> Any:
        return rpcrt.DCERPC_v5(self._transport)

    def __exit__(self, *exception: object) -> None:
        self._transport.disconnect()


def weak(challenge: bytes) -> bool:
    """Whether the first five octets are all one, which MS-NRPC 3.1.4.1 forbids: AES-CFB8 with the fixed initialisation
    vector makes zeros of zeros once in 256 keys (CVE-2020-1472)."""
    return len(set(challenge[:5])) == 1


def _challenge() -> bytes:
    while weak(challenge := os.urandom(8)):
        pass
    return challenge


def _added(credential: bytes, seconds: int) -> bytes:
    low = int.from_bytes(credential[:4], "little") + seconds
    return (low & 0xFFFFFFFF).to_bytes(4, "little") + credential[4:]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    if isinstance(error, OSError) or type(error).__module__.startswith("relayd."):
        return text or type(error).__name__
    return f"an answer that is none ({type(error).__name__}: {text})"
