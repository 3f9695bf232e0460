"""AUTH exchanges that can be stopped at any step, or go on with anything.

`tests.directory.sessions` has clients that go through with them.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import gssapi
import spnego
from gssapi.raw import set_cred_option
from impacket.ntlm import compute_nthash

from tests.directory.sessions import NO_CI_FLAGS, NO_LAYER
from tests.lab.raw import Raw
from tests.lab.tickets import KERBEROS, SPNEGO, initiator

__all__ = [
    "Begun",
    "Exchange",
    "external",
    "gss_spnego",
    "gssapi_kerberos",
    "login",
    "negotiated_ntlm",
    "ntlm",
    "plain",
    "spoiled",
]

#: Yields the responses of a client, and is sent the server's challenges.
Responses = Generator[bytes, bytes, None]


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a client says to sign in.

    :ivar mechanism: of SASL.
    :ivar tls: it is offered under TLS alone.
    :ivar responses: begins it.
    """

    mechanism: bytes
    responses: Callable[[], Responses]
    tls: bool = False

    def on(self, raw: Raw, steps: int = 99) -> Begun:
        """Says so many of its responses, waiting for the reply to each."""
        begun = Begun(self, raw)
        while begun.reply.startswith(b"334") and steps > 0:
            begun.answer()
            steps -= 1
        return begun


class Begun:
    """An exchange under way in a session.

    :ivar exchange: which one; *raw* the session.
    :ivar reply: the last one; a 334 before the first response.
    :ivar said: how many responses went out.
    """

    def __init__(self, exchange: Exchange, raw: Raw) -> None:
        self.reply = b"334 \r\n"
        self.said = 0
        self.exchange = exchange
        self.raw = raw
        self._responses = exchange.responses()
        self._command = b"AUTH " + exchange.mechanism + b" "

    def next(self) -> bytes:
        """The response that is next, as it is before base64."""
        if not self.said:
            return next(self._responses)
        return self._responses.send(base64.b64decode(self.reply[4:]))

    def line(self, response: bytes) -> bytes:
        """The line that carries *response*, without its end."""
        return (b"" if self.said else self._command) + (base64.b64encode(response) or (b"" if self.said else b"="))

    def send(self, response: bytes, behind: bytes = b"") -> None:
        """Says *response*, and what comes *behind* its line in the same segment."""
        self.raw.send(self.line(response) + b"\r\n" + behind)
        self.said += 1

    def answer(self, response: bytes | None = None) -> bytes:
        """The reply to *response*, or to the one that is next."""
        self.send(self.next() if response is None else response)
        self.reply = self.raw.reply()
        return self.reply

    @property
    def code(self) -> int:
        return int(self.reply[:3] or 0)


def plain(name: str, password: str) -> Exchange:
    def responses() -> Responses:
        yield f"\0{name}\0{password}".encode()

    return Exchange(b"PLAIN", responses, tls=True)


def login(name: str, password: str) -> Exchange:
    def responses() -> Responses:
        yield name.encode()
        yield password.encode()

    return Exchange(b"LOGIN", responses, tls=True)


def ntlm(name: str, password: str) -> Exchange:
    """NTLM by its name."""
    options = spnego.NegotiateOptions.use_ntlm
    return Exchange(b"NTLM", lambda: _stepped(spnego.client(name, password, protocol="ntlm", options=options)))


def negotiated_ntlm(name: str, password: str) -> Exchange:
    """NTLM inside SPNEGO inside GSSAPI, as of a client that has no ticket."""
    options = spnego.NegotiateOptions.use_negotiate

    def responses() -> Responses:
        # With a hash pyspnego cannot ask for a ticket first.
        secret = spnego.NTLMHash(username=name, nt_hash=compute_nthash(password).hex())
        return _stepped(spnego.client(secret, protocol="negotiate", options=options))

    return Exchange(b"GSSAPI", responses)


def gssapi_kerberos(cache: Path, mechanism: bytes = b"GSSAPI") -> Exchange:
    """Raw Kerberos with the tickets of *cache*; KRB5_CONFIG must be the lab's."""

    def responses() -> Responses:
        context = initiator(cache, mechanism=KERBEROS)
        challenge = yield context.step() or b""
        while not context.complete:
            challenge = yield context.step(challenge) or b""
        # RFC 4752 3.1: behind the tokens comes the wrapped offer of security layers.
        assert context.unwrap(challenge).message == NO_LAYER
        yield bytes(context.wrap(NO_LAYER, False).message)

    return Exchange(mechanism, responses)


def gss_spnego(cache: Path) -> Exchange:
    """Kerberos inside SPNEGO, and no security layer; see `gssapi_kerberos`."""

    def responses() -> Responses:
        credentials = gssapi.Credentials(usage="initiate", mechs=[KERBEROS, SPNEGO], store={"ccache": f"FILE:{cache}"})
        set_cred_option(NO_CI_FLAGS, credentials, b"")
        wanted = gssapi.RequirementFlag.mutual_authentication
        name = gssapi.Name("smtp/relay.lab.example@LAB.EXAMPLE", gssapi.NameType.kerberos_principal)
        return _stepped(
            gssapi.SecurityContext(name=name, creds=credentials, usage="initiate", mech=SPNEGO, flags=wanted)
        )

    return Exchange(b"GSS-SPNEGO", responses)


def external(identity: bytes = b"") -> Exchange:
    def responses() -> Responses:
        yield identity

    return Exchange(b"EXTERNAL", responses, tls=True)


def _stepped(context: spnego.ContextProxy | gssapi.SecurityContext) -> Responses:
    challenge = yield context.step() or b""
    while True:
        challenge = yield context.step(challenge) or b""


def spoiled(token: bytes, dice: random.Random) -> bytes:
    """`token` with octets changed, taken out, put in, or cut off."""
    made = bytearray(token)
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = dice.randrange(len(made) or 1)
        match dice.randrange(4):
            case 0:
                made[at : at + 1] = dice.randbytes(1)
            case 1:
                del made[at : at + dice.choice((1, 4, 400))]
            case 2:
                made[at:at] = dice.randbytes(dice.choice((1, 4, 400)))
            case 3:
                del made[at:]
    return bytes(made)
