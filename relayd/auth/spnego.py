"""SPNEGO, the acceptor's side (RFC 4178, MS-SPNG), as far as relayd speaks it itself: to choose NTLM, and to carry it.

A negotiation that ends in Kerberos is the GSS library's (:mod:`relayd.auth.kerberos`). pyspnego writes the tokens.
They are read here: its reader takes what is cut short, and works for most of a second on 64 KiB of small elements.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from spnego._asn1 import unpack_asn1_object_identifier
from spnego._context import GSSMech
from spnego._spnego import NegState, NegTokenResp

__all__ = ["NTLMSSP", "Answer", "Offer", "challenge", "parse_answer", "parse_offer"]

#: How every NTLM message begins (MS-NLMP 2.2.1).
NTLMSSP: Final = b"NTLMSSP\0"

#: Kerberos, and the misprint of its OID that Windows offers first (MS-SPNG 3.1.5.2).
_KERBEROS: Final = frozenset({"1.2.840.113554.1.2.2", "1.2.840.48018.1.2.2"})
_NTLM: Final[str] = GSSMech.ntlm.value
#: 1.3.6.1.5.5.2 in DER.
_SPNEGO: Final = b"\x06\x06\x2b\x06\x01\x05\x05\x02"

# Tags (X.690 8.1.2).
_OCTET_STRING, _OID, _SEQUENCE = 0x04, 0x06, 0x30
_INITIAL_CONTEXT_TOKEN = b"\x60"  # RFC 2743 3.1
_NEG_TOKEN_INIT, _NEG_TOKEN_RESP = 0xA0, 0xA1  # RFC 4178 4.2
_MECH_TYPES, _MECH_TOKEN = 0xA0, 0xA2  # 4.2.1
_RESPONSE_TOKEN, _RESP_MIC = 0xA2, 0xA3  # 4.2.2

#: Nobody offers more mechanisms, one with a longer OID, or says more of a token than that.
_MOST_MECHANISMS, _LONGEST_OID, _MOST_FIELDS = 64, 64, 16


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
    token = _whole(octets, _INITIAL_CONTEXT_TOKEN[0]).removeprefix(_SPNEGO)
    fields = _fields(_whole(token, _NEG_TOKEN_INIT))
    mech_list = fields.get(_MECH_TYPES, b"")
    left = _whole(mech_list, _SEQUENCE)
    mechanisms: list[str] = []
    while left:
        if len(mechanisms) == _MOST_MECHANISMS:
            raise ValueError("SPNEGO: too many mechanisms")
        mechanism, left = _element(left)
        mechanisms.append(_oid(mechanism))
    return Offer(tuple(mechanisms), _octet_string(fields, _MECH_TOKEN), mech_list)


def parse_answer(octets: bytes) -> Answer:
    """Reads a token that follows.

    :raises ValueError: it is malformed.
    """
    fields = _fields(_whole(octets, _NEG_TOKEN_RESP))
    return Answer(_octet_string(fields, _RESPONSE_TOKEN), _octet_string(fields, _RESP_MIC))


def challenge(token: bytes, *, first: bool, preferred: bool) -> bytes:
    """The acceptor's token that carries *token* of NTLM's.

    :param first: it is the acceptor's first token, which names the mechanism.
    :param preferred: NTLM stood first in the offer. If not, MICs must prove the list (RFC 4178 5).
    """
    state = NegState.request_mic if first and not preferred else NegState.accept_incomplete
    return NegTokenResp(state, _NTLM if first else None, token or None).pack()


# DER (X.690), of lengths that a token can have.


def _element(octets: bytes) -> tuple[tuple[int, bytes], bytes]:
    """The first element, as tag and content, and what stands behind it."""
    if len(octets) < 2:
        raise ValueError("SPNEGO: cut short")
    tag, length, at = octets[0], octets[1], 2
    if length & 0x80:
        at += length & 0x7F
        if not 2 < at <= 6:
            raise ValueError("SPNEGO: a length of no known form")
        length = int.from_bytes(octets[2:at], "big")
    if at + length > len(octets):
        raise ValueError("SPNEGO: cut short")
    return (tag, octets[at : at + length]), octets[at + length :]


def _whole(octets: bytes, tag: int) -> bytes:
    """The content of the one element that *octets* are."""
    (found, content), rest = _element(octets)
    if found != tag or rest:
        raise ValueError(f"SPNEGO: tag {tag:#x} expected")
    return content


def _fields(octets: bytes) -> dict[int, bytes]:
    """The fields of a SEQUENCE of tagged ones; there may be some that RFC 4178 does not know yet."""
    left = _whole(octets, _SEQUENCE)
    fields: dict[int, bytes] = {}
    while left:
        (tag, content), left = _element(left)
        if tag in fields or len(fields) == _MOST_FIELDS:
            raise ValueError(f"SPNEGO: field {tag:#x} twice, or too many")
        fields[tag] = content
    return fields


def _octet_string(fields: dict[int, bytes], tag: int) -> bytes:
    return _whole(fields[tag], _OCTET_STRING) if tag in fields else b""


def _oid(element: tuple[int, bytes]) -> str:
    tag, content = element
    if tag != _OID or not 1 <= len(content) <= _LONGEST_OID or content[-1] & 0x80:
        raise ValueError("SPNEGO: no OID")
    return unpack_asn1_object_identifier(content)
