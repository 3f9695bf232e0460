"""SPNEGO, the acceptor's side (RFC 4178, MS-SPNG), as far as relayd speaks it itself: to choose NTLM, and to carry it.

A negotiation that ends in Kerberos is the GSS library's (:mod:`relayd.auth.kerberos`). pyspnego writes the tokens;
what a stranger wrote is read by :mod:`relayd.auth.der`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from spnego._context import GSSMech
from spnego._spnego import NegState, NegTokenResp

from relayd.auth import der

__all__ = ["NTLMSSP", "Answer", "Offer", "challenge", "parse_answer", "parse_offer", "parse_unframed"]

#: How every NTLM message begins (MS-NLMP 2.2.1).
NTLMSSP: Final = b"NTLMSSP\0"

#: Kerberos, and the misprint of its OID that Windows offers first (MS-SPNG 3.1.5.2).
_KERBEROS: Final = frozenset({"1.2.840.113554.1.2.2", "1.2.840.48018.1.2.2"})
_NTLM: Final[str] = GSSMech.ntlm.value
#: 1.3.6.1.5.5.2 in DER.
_SPNEGO: Final = b"\x06\x06\x2b\x06\x01\x05\x05\x02"

# Tags (X.690 8.1.2).
_INITIAL_CONTEXT_TOKEN = b"\x60"  # RFC 2743 3.1
_NEG_TOKEN_INIT, _NEG_TOKEN_RESP = 0xA0, 0xA1  # RFC 4178 4.2
_MECH_TYPES, _MECH_TOKEN = 0xA0, 0xA2  # 4.2.1
_RESPONSE_TOKEN, _RESP_MIC = 0xA2, 0xA3  # 4.2.2

#: Nobody offers more.
_MOST_MECHANISMS: Final = 64


@dataclass(frozen=True, slots=True)
class Offer:
    """An initiator's first token (NegTokenInit, RFC 4178 4.2.1).

    :ivar mechanisms: the OIDs it offers, the one it likes best first.
    :ivar token: its token for the first of them, sent in hope; maybe empty.
    :ivar mech_list: *mechanisms* as they came (DER): what a mechListMIC signs.
    """

    mechanisms: tuple[str, ...]
    token: bytes = field(repr=False)
    mech_list: bytes = field(repr=False)

    @property
    def kerberos(self) -> bool:
        """Whether Kerberos is on the list."""
        return not _KERBEROS.isdisjoint(self.mechanisms)

    @property
    def ntlm(self) -> bool:
        """Whether NTLM is on the list."""
        return _NTLM in self.mechanisms

    @property
    def prefers_ntlm(self) -> bool:
        """Whether NTLM stands first, so that *token* is its NEGOTIATE message."""
        return self.mechanisms[:1] == (_NTLM,)


@dataclass(frozen=True, slots=True)
class Answer:
    """A later token of an initiator (NegTokenResp, RFC 4178 4.2.2).

    :ivar mic: mechListMIC; empty: there is none.
    """

    token: bytes = field(repr=False)
    mic: bytes = field(repr=False)


def parse_offer(octets: bytes) -> Offer | None:
    """Reads an initial token.

    :returns: None: it is not SPNEGO's.
    :raises ValueError: it is, and malformed.
    """
    if octets[:1] != _INITIAL_CONTEXT_TOKEN or _SPNEGO not in octets[2 : 2 + 4 + len(_SPNEGO)]:
        return None
    try:
        token = der.whole(octets, _INITIAL_CONTEXT_TOKEN[0]).removeprefix(_SPNEGO)
    except ValueError as error:
        raise ValueError(f"SPNEGO: {error}") from None
    return parse_unframed(token)


def parse_unframed(token: bytes) -> Offer:
    """Reads a NegTokenInit without the frame of an initial token, as MIT takes it too.

    :raises ValueError: it is malformed.
    """
    try:
        fields = der.fields(der.whole(token, _NEG_TOKEN_INIT))
        mech_list = fields.get(_MECH_TYPES, b"")
        mechanisms = tuple(map(der.oid, der.children(mech_list, _MOST_MECHANISMS)))
        return Offer(mechanisms, _octet_string(fields, _MECH_TOKEN), mech_list)
    except ValueError as error:
        raise ValueError(f"SPNEGO: {error}") from None


def parse_answer(octets: bytes) -> Answer:
    """Reads a token that follows.

    :raises ValueError: it is malformed.
    """
    try:
        fields = der.fields(der.whole(octets, _NEG_TOKEN_RESP))
        return Answer(_octet_string(fields, _RESPONSE_TOKEN), _octet_string(fields, _RESP_MIC))
    except ValueError as error:
        raise ValueError(f"SPNEGO: {error}") from None


def challenge(token: bytes, *, first: bool, preferred: bool) -> bytes:
    """The acceptor's token that carries *token* of NTLM's.

    :param first: it is the acceptor's first token, which names the mechanism.
    :param preferred: NTLM stood first in the offer. If not, MICs must prove the list (RFC 4178 5).
    """
    state = NegState.request_mic if first and not preferred else NegState.accept_incomplete
    return NegTokenResp(state, _NTLM if first else None, token or None).pack()


def _octet_string(fields: dict[int, bytes], tag: int) -> bytes:
    return der.whole(fields[tag], der.OCTET_STRING) if tag in fields else b""
