"""Windows-integrated authentication as SASL mechanisms: GSSAPI (RFC 4752), GSS-SPNEGO and NTLM (MS-SMTPNTLM).

The names of the mechanisms say little about the tokens inside: GSSAPI is raw Kerberos to the RFC, curl and MailKit,
SPNEGO to .NET and Exchange, and SPNEGO may carry NTLM; Windows sends raw NTLM too where it has nothing to negotiate. So
:class:`Gssapi` looks at the first token, and leaves the rest to :class:`Kerberos`, :class:`Ntlm` or
:class:`NtlmInSpnego`.

No security layer is ever negotiated: that is what TLS is for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred

from relayd.auth import spnego
from relayd.auth.credentials import KerberosIdentity, NtlmResponse
from relayd.auth.ntlm import NtlmBackend, NtlmExchange
from relayd.auth.ntlm_messages import parse_authenticate
from relayd.auth.pac import Pac
from relayd.model import Client, Fault
from relayd.smtpd import replies
from relayd.smtpd.sasl import Challenge, Done, MechanismFactory, Step

if TYPE_CHECKING:
    from relayd.auth.kerberos import KerberosAcceptor, KerberosContext

__all__ = ["Gssapi", "Kerberos", "Ntlm", "NtlmInSpnego", "integrated_mechanisms"]

#: Runs a blocking call in a thread, as ``BoundedPool.run`` does.
Run = Callable[..., Deferred[Any]]

#: Of the server: no layer but "none" is offered, and so there is no longest message. Of the client: it takes that.
_NO_LAYER: Final = b"\x01\x00\x00\x00"  # RFC 4752 3.3


def integrated_mechanisms(
    kerberos: KerberosAcceptor | None, ntlm: NtlmBackend | None, run: Run, channel_binding: str
) -> Mapping[str, MechanismFactory]:
    """The mechanisms of one listener, for ``VirtualServer.mechanisms``.

    GSSAPI and GSS-SPNEGO are there with *kerberos* alone: to most clients they mean Kerberos, which would be refused,
    and those that would take NTLM inside of them take NTLM by its name too.

    :param kerberos: the keys; None: there are none.
    :param ntlm: who judges NTLM; None: it is not served, inside SPNEGO either.
    :param run: for what blocks; a full pool should answer 454 4.7.0.
    :param channel_binding: ``ignore``, ``accept`` or ``require``, for Kerberos. NTLM's is the checker's to see to.
    """
    mechanisms: dict[str, MechanismFactory] = {}
    if kerberos is not None:
        begin = partial(Kerberos, kerberos, run, channel_binding)
        mechanisms["GSSAPI"] = partial(Gssapi, "GSSAPI", partial(begin, True), ntlm)
        mechanisms["GSS-SPNEGO"] = partial(Gssapi, "GSS-SPNEGO", partial(begin, False), ntlm)
    if ntlm is not None:
        mechanisms["NTLM"] = partial(Ntlm, "NTLM", ntlm)
    return mechanisms


class Gssapi:
    """GSSAPI or GSS-SPNEGO: whatever the first token begins.

    :param name: of the SASL mechanism.
    :param kerberos: makes the exchange for Kerberos.
    """

    def __init__(
        self, name: str, kerberos: Callable[[str, Client], Kerberos], ntlm: NtlmBackend | None, client: Client
    ) -> None:
        self._name = name
        self._kerberos = kerberos
        self._ntlm = ntlm
        self._client = client
        self._chosen: Kerberos | Ntlm | NtlmInSpnego | None = None

    @property
    def user(self) -> str:
        return "" if self._chosen is None else self._chosen.user

    def step(self, response: bytes | None) -> Step | Deferred[Step]:
        if response is None:
            return Challenge()
        if self._chosen is None:
            if not response:
                raise Fault(replies.MALFORMED_RESPONSE, "no token")
            self._chosen = self._choose(response)
        return self._chosen.step(response)

    def _choose(self, token: bytes) -> Kerberos | Ntlm | NtlmInSpnego:
        if token.startswith(spnego.NTLMSSP):
            return Ntlm(self._name, self._served(self._ntlm), self._client)
        try:
            offer = spnego.parse_offer(token)
        except ValueError as error:
            raise UnauthorizedLogin(str(error)) from None
        if offer is None or (offer.kerberos and not (offer.prefers_ntlm and self._ntlm is not None)):
            # Raw Kerberos, a negotiation that can end in Kerberos, or nothing known: the GSS library tells which.
            return self._kerberos(self._name, self._client)
        if not offer.ntlm:
            others = ", ".join(offer.mechanisms[:8])
            raise UnauthorizedLogin(f"SPNEGO offers neither Kerberos nor NTLM, but {others}")
        return NtlmInSpnego(offer, Ntlm(self._name, self._served(self._ntlm), self._client))

    @staticmethod
    def _served(ntlm: NtlmBackend | None) -> NtlmBackend:
        if ntlm is None:
            raise UnauthorizedLogin(
                "the client has no Kerberos ticket for this relay and tries NTLM, which is not served"
            )
        return ntlm

    def close(self) -> None:
        if self._chosen is not None:
            self._chosen.close()


@dataclass(frozen=True, slots=True)
class _Established:
    """What a complete security context says.

    :ivar protection: the client asked for integrity or confidentiality of messages.
    :ivar offer: the wrapped offer of security layers, where one is to be made.
    """

    principal: str
    pac: Pac | None
    protection: bool
    offer: bytes


class Kerberos:
    """A Kerberos security context, raw or by SPNEGO, and with *layer* RFC 4752's exchange over security layers.

    GSS-SPNEGO has no such exchange: a client that asks the context for integrity or confidentiality takes the layer as
    agreed, and wraps all that follows (so do Cyrus SASL and Active Directory). It is refused, or it would hang.
    """

    def __init__(
        self, acceptor: KerberosAcceptor, run: Run, channel_binding: str, layer: bool, name: str, client: Client
    ) -> None:
        self._acceptor = acceptor
        self._run = run
        self._channel_binding = channel_binding
        self._layer = layer
        self._name = name
        self._client = client
        self._context: KerberosContext | None = None
        self._established: _Established | None = None
        self._next: Callable[[bytes], Step | Deferred[Step]] = self._establish
        self.user = ""

    def step(self, response: bytes | None) -> Step | Deferred[Step]:
        return Challenge() if response is None else self._next(response)

    def close(self) -> None:
        self._context = None

    # In a thread.

    def _accept(self, token: bytes) -> tuple[bytes, _Established | None]:
        context = self._context
        if context is None:
            tls = self._client.tls
            context = self._acceptor.context(tls.binding if tls is not None else b"", self._channel_binding)
            self._context = context
        reply = context.step(token)
        if not context.complete:
            return reply, None
        offer = context.wrap(_NO_LAYER) if self._layer else b""
        return reply, _Established(context.principal, context.pac, context.protection, offer)

    def _unwrap(self, octets: bytes) -> bytes:
        assert self._context is not None
        return self._context.unwrap(octets)

    # In the reactor.

    def _establish(self, token: bytes) -> Deferred[Step]:
        return self._run(self._accept, token).addCallback(self._accepted)

    def _accepted(self, result: tuple[bytes, _Established | None]) -> Step:
        reply, established = result
        if established is None:
            return Challenge(reply)
        self._established = established
        self.user = established.principal
        if established.protection and not self._layer:
            raise UnauthorizedLogin(
                "GSS-SPNEGO with a security layer, which is not served: the client must ask for none"
                " (Cyrus SASL: a maximum SSF of 0), or take GSSAPI"
            )
        if self._layer and not reply:
            return self._offer()
        # .NET takes 235 for success only behind a 334, so there is one, empty if need be.
        self._next = self._acknowledged
        return Challenge(reply)

    def _acknowledged(self, response: bytes) -> Step:
        """The client has taken the last token, and has none left."""
        if response:
            raise UnauthorizedLogin("a token behind the end of the negotiation")
        return self._offer() if self._layer else self._done()

    def _offer(self) -> Step:
        assert self._established is not None
        self._next = self._answered
        return Challenge(self._established.offer)

    def _answered(self, response: bytes) -> Deferred[Step]:
        # .NET on Linux puts the length in front, which GSS_Wrap does not.
        if int.from_bytes(response[:4], "little") == len(response) - 4:
            response = response[4:]
        return self._run(self._unwrap, response).addCallback(self._agreed)

    def _agreed(self, answer: bytes) -> Step:
        """The client's choice of a layer, its longest message (no matter here), and an authorisation identity."""
        if len(answer) < len(_NO_LAYER):
            raise UnauthorizedLogin("the answer to the offer of security layers is cut short")
        if answer[0] != _NO_LAYER[0]:
            raise UnauthorizedLogin(f"the client chose security layer {answer[0]:#04x}, which was not offered")
        self._authorise(answer[len(_NO_LAYER) :])
        return self._done()

    def _authorise(self, identity: bytes) -> None:
        """Holds an authorisation identity to the principal: nobody acts for somebody else here.

        gsasl and mutt send one. Names are the directory's, which knows no case.
        """
        assert self._established is not None
        principal, pac = self._established.principal, self._established.pac
        names = {"", principal, principal.rpartition("@")[0]}
        if pac is not None:
            names |= {pac.name, pac.upn, f"{pac.domain}\\{pac.name}"}
        asked = identity.decode("utf-8", "replace").casefold()
        if asked not in {name.casefold() for name in names}:
            raise UnauthorizedLogin(f"asks to act as another user: {asked[:255]}")

    def _done(self) -> Done:
        assert self._established is not None
        established = self._established
        return Done(KerberosIdentity(established.principal, established.pac, self._name, self._client))


class Ntlm:
    """NTLM: NEGOTIATE, CHALLENGE, AUTHENTICATE (MS-NLMP 1.3.1.1). The portal's checker judges the last."""

    def __init__(self, name: str, backend: NtlmBackend, client: Client) -> None:
        self._name = name
        self._backend = backend
        self._client = client
        self._exchange: NtlmExchange | None = None
        self.user = ""

    def step(self, response: bytes | None) -> Step | Deferred[Step]:
        if response is None:
            # MS-SMTPNTLM 2.2.1.2 has text for people here, which is no base64 (RFC 4954 4).
            return Challenge()
        if self._exchange is None:
            return Deferred.fromCoroutine(self._begin(response))
        return self.answer(response)

    async def _begin(self, negotiate: bytes) -> Step:
        return Challenge(await self.challenge(negotiate))

    async def challenge(self, negotiate: bytes) -> bytes:
        """The CHALLENGE message."""
        self._exchange = await self._backend.begin(negotiate)
        return self._exchange.challenge

    def answer(
        self, authenticate: bytes, mech_list: bytes = b"", mic: bytes = b"", list_in_doubt: bool = False
    ) -> Done:
        """What the client says to it; the rest is SPNEGO's, as in :class:`NtlmResponse`."""
        assert self._exchange is not None
        self.user = _claimed(authenticate)
        return Done(NtlmResponse(self._exchange, authenticate, self._name, self._client, mech_list, mic, list_in_doubt))

    def close(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()


class NtlmInSpnego:
    """NTLM in SPNEGO's tokens (RFC 4178, MS-SPNG), from NegTokenInit on.

    The acceptor's last token is not sent: 235 says it (.NET takes that). The mechListMIC in it only some backends could
    make.
    """

    def __init__(self, offer: spnego.Offer, ntlm: Ntlm) -> None:
        self._offer = offer
        self._ntlm = ntlm
        self._next: Callable[[bytes], Step | Deferred[Step]] = self._negotiate

    @property
    def user(self) -> str:
        return self._ntlm.user

    def step(self, response: bytes | None) -> Step | Deferred[Step]:
        return Challenge() if response is None else self._next(response)

    def close(self) -> None:
        self._ntlm.close()

    def _negotiate(self, _: bytes) -> Step | Deferred[Step]:
        if self._offer.prefers_ntlm and self._offer.token:
            return self._challenge(self._offer.token, first=True)
        self._next = self._late_negotiate
        return Challenge(spnego.challenge(b"", first=True, preferred=self._offer.prefers_ntlm))

    def _late_negotiate(self, response: bytes) -> Deferred[Step]:
        return self._challenge(_answer(response).token, first=False)

    def _challenge(self, negotiate: bytes, *, first: bool) -> Deferred[Step]:
        self._next = self._authenticate
        return Deferred.fromCoroutine(self._challenged(negotiate, first=first))

    async def _challenged(self, negotiate: bytes, *, first: bool) -> Step:
        challenge = await self._ntlm.challenge(negotiate)
        return Challenge(spnego.challenge(challenge, first=first, preferred=self._offer.prefers_ntlm))

    def _authenticate(self, response: bytes) -> Step:
        answer = _answer(response)
        in_doubt = not self._offer.prefers_ntlm
        if not answer.mic:
            if in_doubt:
                # Somebody may have struck the better mechanisms off the list (RFC 4178 5).
                raise UnauthorizedLogin("SPNEGO: NTLM was not the first choice, and no mechListMIC proves the list")
            return self._ntlm.answer(answer.token)
        return self._ntlm.answer(answer.token, self._offer.mech_list, answer.mic, in_doubt)


def _answer(response: bytes) -> spnego.Answer:
    try:
        return spnego.parse_answer(response)
    except ValueError as error:
        raise UnauthorizedLogin(str(error)) from None


def _claimed(authenticate: bytes) -> str:
    """Who an AUTHENTICATE message says it is of, for the log. Whether it is one is for the checker to find out."""
    try:
        message = parse_authenticate(authenticate)
    except Fault:
        return ""
    return f"{message.domain}\\{message.user}" if message.domain else message.user
