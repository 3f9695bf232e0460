"""A stand-in for relayd: the least SMTP server that signs clients in by GSSAPI, GSS-SPNEGO, NTLM, PLAIN and LOGIN.

It shows that the client programs and the way they are run are sound, by libraries alone (python-gssapi for Kerberos,
pyspnego for NTLM) and without a line of relayd's. It is no model of how a server should behave: it believes what its
libraries say, and keeps no message.
"""

from __future__ import annotations

import binascii
import os
import socketserver
import ssl
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["StandIn"]

Exchange = Generator[bytes, bytes, str]
"""Yields challenges, is sent responses, and returns who it was."""

ALL = "GSSAPI GSS-SPNEGO NTLM LOGIN PLAIN"
SILENCE = b"no reply, one more line"
NO_LAYER = b"\x01\x00\x00\x00"
NTLMSSP = b"NTLMSSP\0"


class Refused(Exception):
    """Not signed in; the text says why."""


class StandIn:
    """Use as a context manager.

    :param keytab: the keys of the services it plays.
    :param passwords: by name; names for NTLM are ``user``, the domain being `netbios`.
    :param certificate: PEM chain and key, for STARTTLS.
    :param mechanisms: what EHLO offers.
    :param layer: whether GSSAPI goes on with the security layer (RFC 4752), or ends once the context is complete, as
        IIS did.
    :ivar authenticated: (mechanism, user) of each success.
    :ivar refused: (mechanism, reason) of each failure.
    :ivar senders: who sent each message that was taken: the user, "" without authentication.
    """

    def __init__(
        self,
        keytab: Path,
        passwords: Mapping[str, str],
        netbios: str,
        certificate: tuple[Path, Path],
        mechanisms: str = ALL,
        layer: bool = True,
    ) -> None:
        self.keytab = keytab
        self.passwords = passwords
        self.netbios = netbios
        self.mechanisms = mechanisms
        self.layer = layer
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*certificate)
        self.authenticated: list[tuple[str, str]] = []
        self.refused: list[tuple[str, str]] = []
        self.senders: list[str] = []
        self._ntlm_users = keytab.with_name("standin-ntlm-users")
        self._server = _Server(("127.0.0.1", 0), _Session)
        self._server.standin = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        # The format of Heimdal's NTLM backend, which pyspnego reads where this variable says.
        self._ntlm_users.write_text(
            "".join(f"{self.netbios}:{name}:{password}\n" for name, password in self.passwords.items())
        )
        self._before = os.environ.get("NTLM_USER_FILE")
        os.environ["NTLM_USER_FILE"] = str(self._ntlm_users)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
        self._ntlm_users.unlink()
        if self._before is None:
            del os.environ["NTLM_USER_FILE"]
        else:
            os.environ["NTLM_USER_FILE"] = self._before

    def exchange(self, mechanism: str) -> Callable[[bytes], Exchange] | None:
        """What takes the client's first response; None when the mechanism is not offered."""
        if mechanism not in self.mechanisms.split():
            return None
        return {
            "GSSAPI": lambda first: self._gssapi(first, layer=self.layer),
            "GSS-SPNEGO": lambda first: self._gssapi(first, layer=False),
            "NTLM": self._ntlm,
            "PLAIN": self._plain,
            "LOGIN": self._login,
        }[mechanism]

    def _gssapi(self, first: bytes, layer: bool) -> Exchange:
        token = first or (yield b"")
        if token.startswith(NTLMSSP):
            return (yield from self._ntlm(token))
        if not _offers_kerberos(token):
            return (yield from self._ntlm(token, "negotiate"))
        import gssapi

        store = {"keytab": str(self.keytab)}
        context = gssapi.SecurityContext(creds=gssapi.Credentials(usage="accept", store=store), usage="accept")
        try:
            answer = context.step(token)
            while not context.complete:
                answer = context.step((yield answer or b""))
            if answer and (yield answer):
                raise Refused("a token after the end of the context")
            user = str(context.initiator_name)
            if layer:
                # .NET sends two empty lines for one empty response.
                response = (yield context.wrap(NO_LAYER, False).message) or (yield SILENCE)
                response = context.unwrap(_without_length(response)).message
                authorize = response[4:].decode()
                if response[:4] != NO_LAYER or authorize not in ("", user, user.partition("@")[0]):
                    raise Refused(f"asks for layer {response[:4].hex()} as {authorize!r}")
        except gssapi.exceptions.GSSError as error:
            raise Refused(str(error)) from None
        return user

    def _ntlm(self, first: bytes, protocol: str = "ntlm") -> Exchange:
        import spnego
        from spnego.exceptions import SpnegoError

        # pyspnego's own code, not a GSSAPI plugin for NTLM.
        own = spnego.NegotiateOptions.use_ntlm if protocol == "ntlm" else spnego.NegotiateOptions.use_negotiate
        server = spnego.server(protocol=protocol, options=own)
        token = first or (yield b"")
        try:
            while not server.complete:
                if _is_ntlmv1(token):
                    raise Refused("NTLMv1")
                answer = server.step(token)
                if answer or not server.complete:
                    token = yield answer or b""
        except (SpnegoError, ValueError) as error:
            raise Refused(str(error)) from None
        return str(server.client_principal)

    def _plain(self, first: bytes) -> Exchange:
        _, name, password = (first or (yield b"")).split(b"\0")
        return self._checked(name, password)

    def _login(self, first: bytes) -> Exchange:
        name = first or (yield b"Username:")
        return self._checked(name, (yield b"Password:"))

    def _checked(self, name: bytes, password: bytes) -> str:
        user = name.decode().rpartition("\\")[2].partition("@")[0]
        if self.passwords.get(user) != password.decode():
            raise Refused(f"wrong password of {user}")
        return user


def _offers_kerberos(token: bytes) -> bool:
    from spnego._spnego import NegTokenInit, unpack_token

    if b"\x2b\x06\x01\x05\x05\x02" not in token[:20]:
        return True  # no SPNEGO: it is for Kerberos to judge
    with suppress(Exception):
        unpacked = unpack_token(token)
        if isinstance(unpacked, NegTokenInit):
            return any(mechanism.startswith("1.2.840.") for mechanism in unpacked.mech_types)
    return True


def _is_ntlmv1(token: bytes) -> bool:
    from spnego._ntlm_raw.messages import Authenticate

    # MS-NLMP 2.2.2.6: version 1 answers in 24 octets.
    return token.startswith(NTLMSSP + b"\3") and len(Authenticate.unpack(token).nt_challenge_response or b"") == 24


def _without_length(octets: bytes) -> bytes:
    # .NET puts its length in front, little-endian.
    return octets[4:] if len(octets) - 4 == int.from_bytes(octets[:4], "little") else octets


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    standin: StandIn


class _Session(socketserver.StreamRequestHandler):
    server: _Server
    timeout = 30
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.user = ""
        self.secure = False
        self.empty_line_due = False

    def handle(self) -> None:
        with suppress(OSError):
            self._reply("220 relay.lab.example stands in")
            while line := self.rfile.readline(200_000):
                command, _, argument = line.decode(errors="replace").rstrip("\r\n").partition(" ")
                verb = command.upper()
                if not verb and self.empty_line_due:
                    self.empty_line_due = False
                    continue
                self.empty_line_due = False
                self._command(verb, argument)
                if verb == "QUIT":
                    return

    def _reply(self, *lines: str) -> None:
        *first, last = lines
        text = "".join(f"{line[:3]}-{line[4:]}\r\n" for line in first) + f"{last}\r\n"
        self.wfile.write(text.encode())

    def _command(self, verb: str, argument: str) -> None:
        match verb:
            case "EHLO":
                more = [] if self.secure else ["250 STARTTLS"]
                self._reply("250 relay.lab.example", *more, f"250 AUTH {self.server.standin.mechanisms}")
            case "STARTTLS":
                self._reply("220 go")
                self.request = self.server.standin.context.wrap_socket(self.request, server_side=True)
                self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", 0)
                self.secure = True
            case "AUTH":
                self._auth(argument)
            case "DATA":
                self._reply("354 go")
                while self.rfile.readline(200_000) not in (b".\r\n", b""):
                    pass
                self.server.standin.senders.append(self.user)
                self._reply("250 2.0.0 taken")
            case "MAIL" if not self.user:
                self._reply("530 5.7.0 Authentication required")
            case "HELO" | "MAIL" | "RCPT" | "RSET" | "NOOP":
                self._reply("250 2.0.0 OK")
            case "QUIT":
                self._reply("221 2.0.0 bye")
            case _:
                self._reply("500 5.5.1 what?")

    def _auth(self, argument: str) -> None:
        standin = self.server.standin
        name, _, initial = argument.partition(" ")
        name = name.upper()
        begin = standin.exchange(name)
        if begin is None:
            return self._reply("504 5.5.4 Unrecognized authentication type")
        try:
            steps = begin(b"" if initial == "=" else b64decode(initial))
            answer = next(steps)
            while True:
                if answer != SILENCE:
                    self._reply(f"334 {b64encode(answer).decode()}")
                line = self.rfile.readline(200_000).strip()
                if line == b"*":
                    raise Refused("cancelled")
                answer = steps.send(b64decode(line))
        except StopIteration as ended:
            self.user = ended.value
            self.empty_line_due = name == "GSSAPI"
            standin.authenticated.append((name, self.user))
            self._reply("235 2.7.0 Authentication successful")
        except (Refused, binascii.Error, ValueError) as refused:
            standin.refused.append((name, str(refused)))
            self._reply("535 5.7.8 Authentication credentials invalid")
