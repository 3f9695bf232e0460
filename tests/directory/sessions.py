"""A client under TLS that signs in by any of relayd's mechanisms, from any address of this machine.

python-gssapi and pyspnego make its tokens; `tests.lab.integrated_clients` has clients that others wrote.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import gssapi
import spnego
from gssapi.raw import set_cred_option
from impacket.ntlm import compute_nthash

from tests.directory.relays import Answer
from tests.lab.ca import Leaf
from tests.lab.directory import DirectoryLab
from tests.lab.raw import Raw
from tests.lab.relay import Relay
from tests.lab.tickets import KERBEROS, SPNEGO, initiator

__all__ = ["BY_PASSWORD", "BY_TICKET", "Session"]

#: RFC 4752 3.3: no security layer.
NO_LAYER = b"\1\0\0\0"


class Session:
    """One connection of one client.

    :param source: its address.
    :param leaf: its certificate.
    """

    def __init__(
        self,
        lab: DirectoryLab,
        relay: Relay,
        source: str = "127.0.0.1",
        leaf: Leaf | None = None,
        listener: str = "smtp",
    ) -> None:
        context = ssl.create_default_context(cafile=str(lab.ca))
        if leaf is not None:
            context.load_cert_chain(leaf.chain, leaf.key)
        self.raw = Raw(relay.port(listener), source=source)
        try:
            self.raw.say(b"EHLO client.example")
            self.raw.starttls(context)
            self.raw.say(b"EHLO client.example")
        except BaseException:
            self.raw.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.raw.close()

    # ---- signing in: each returns what it ended with ----------------------------------------------------------

    def plain(self, name: str, password: str) -> Answer:
        return _answer(self._auth(b"PLAIN", f"\0{name}\0{password}".encode()))

    def login(self, name: str, password: str) -> Answer:
        reply = self._auth(b"LOGIN", name.encode())
        return _answer(self._respond(password.encode()) if reply.startswith(b"334") else reply)

    def ntlm(self, name: str, password: str) -> Answer:
        """NTLM by its name."""
        options = spnego.NegotiateOptions.use_ntlm
        context = spnego.client(name, password, protocol="ntlm", options=options)
        return self._exchange(b"NTLM", context, _stepped)

    def negotiated_ntlm(self, name: str, password: str) -> Answer:
        """NTLM inside SPNEGO inside GSSAPI, as of a client that has no ticket."""
        # With a hash pyspnego cannot ask for a ticket first.
        secret = spnego.NTLMHash(username=name, nt_hash=compute_nthash(password).hex())
        options = spnego.NegotiateOptions.use_negotiate
        return self._exchange(b"GSSAPI", spnego.client(secret, protocol="negotiate", options=options), _stepped)

    def gssapi(self, cache: Path) -> Answer:
        """Raw Kerberos with the tickets of `cache`; KRB5_CONFIG must be the lab's."""
        return self._exchange(b"GSSAPI", initiator(cache, mechanism=KERBEROS), _layered)

    def gss_spnego(self, cache: Path) -> Answer:
        """Kerberos inside SPNEGO, and no security layer; see `gssapi`."""
        credentials = gssapi.Credentials(usage="initiate", mechs=[KERBEROS, SPNEGO], store={"ccache": f"FILE:{cache}"})
        set_cred_option(NO_CI_FLAGS, credentials, b"")
        wanted = gssapi.RequirementFlag.mutual_authentication
        name = gssapi.Name("smtp/relay.lab.example@LAB.EXAMPLE", gssapi.NameType.kerberos_principal)
        context = gssapi.SecurityContext(name=name, creds=credentials, usage="initiate", mech=SPNEGO, flags=wanted)
        return self._exchange(b"GSS-SPNEGO", context, _stepped)

    def external(self) -> Answer:
        return _answer(self.raw.say(b"AUTH EXTERNAL ="))

    # ---- and then ---------------------------------------------------------------------------------------------

    def mail(self, sender: str) -> Answer:
        return _answer(self.raw.say(f"MAIL FROM:<{sender}>".encode()))

    def rcpt(self, recipient: str) -> Answer:
        return _answer(self.raw.say(f"RCPT TO:<{recipient}>".encode()))

    def send(self, sender: str, recipient: str) -> Answer:
        """A message; what refuses it, or what takes it in the end."""
        answer = self.mail(sender)
        if answer.code == 250:
            answer = self.rcpt(recipient)
        if answer.code == 250:
            answer = _answer(self.raw.say(b"DATA", b"Subject: hello\r\n\r\nIt works.\r\n."))
        return answer

    def _exchange(self, mechanism: bytes, context: Any, answer: Callable[[Any, bytes], bytes]) -> Answer:
        reply = self._auth(mechanism, context.step())
        while reply.startswith(b"334"):
            reply = self._respond(answer(context, base64.b64decode(reply[4:])))
        return _answer(reply)

    def _auth(self, mechanism: bytes, response: bytes) -> bytes:
        return self.raw.say(b"AUTH " + mechanism + b" " + base64.b64encode(response))

    def _respond(self, response: bytes) -> bytes:
        return self.raw.say(base64.b64encode(response))


#: GSS_KRB5_CRED_NO_CI_FLAGS_X: no integrity or confidentiality flag that was not asked for, as Cyrus SASL has it.
NO_CI_FLAGS = gssapi.OID.from_int_seq("1.2.752.43.13.29")

BY_PASSWORD: dict[str, Callable[[Session, str, str], Answer]] = {
    "PLAIN": Session.plain,
    "LOGIN": Session.login,
    "NTLM": Session.ntlm,
    "GSSAPI/NTLM": Session.negotiated_ntlm,
}
"""How a session signs in with a name and a password."""

BY_TICKET: dict[str, Callable[[Session, Path], Answer]] = {
    "GSSAPI": Session.gssapi,
    "GSS-SPNEGO": Session.gss_spnego,
}
"""How a session signs in with a cache of tickets."""


def _stepped(context: Any, challenge: bytes) -> bytes:
    return context.step(challenge) or b""


def _layered(context: Any, challenge: bytes) -> bytes:
    """RFC 4752 3.1: behind the tokens comes the wrapped offer of security layers."""
    if not context.complete:
        return context.step(challenge) or b""
    assert context.unwrap(challenge).message == NO_LAYER
    return bytes(context.wrap(NO_LAYER, False).message)


def _answer(reply: bytes) -> Answer:
    return Answer(int(reply[:3] or 0), reply[4:].decode().rstrip("\r\n"))
