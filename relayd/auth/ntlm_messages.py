"""The messages of NTLM, the acceptor's side (MS-NLMP 2.2.1), and what is computed from them.

pyspnego's message classes read and write them. They take what is cut short or points nowhere without a word, so all
that comes from a client is held to its bounds here first.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import md5
from types import MappingProxyType
from typing import Final

from spnego._ntlm_raw import messages
from spnego._ntlm_raw.crypto import rc4init, rc4k, sealkey, signkey
from spnego._ntlm_raw.messages import AvFlags, AvId, FileTime, MessageType, NegotiateFlags, TargetInfo, Version
from spnego._ntlm_raw.security import sign
from spnego.channel_bindings import GssChannelBindings

from relayd.model import Fault, Reply

__all__ = [
    "OWN_NAMES",
    "Authenticate",
    "Target",
    "binding_hash",
    "exported_session_key",
    "insist_on_negotiate",
    "make_challenge",
    "mech_list_mic",
    "message_mic",
    "own_pairs",
    "parse_authenticate",
    "server_challenge",
]

_MALFORMED = Reply.of(501, "5.5.2", "Malformed response")
_SIGNATURE = b"NTLMSSP\0"
#: 1970-01-01 in units of 100 ns since 1601 (MS-DTYP 2.3.3).
_EPOCH = 116_444_736_000_000_000
#: Octets of NTLMv2_RESPONSE: the proof, and NTLMv2_CLIENT_CHALLENGE before its pairs (MS-NLMP 2.2.2.7, 2.2.2.8).
_PROOF, _FIXED = 16, 28
#: MS-NLMP 2.2.2.1 knows eleven pairs.
_MOST_PAIRS: Final = 64
#: What a client may choose. NTLM, target and target info are added, what belongs to LM and datagrams is not.
_CHOICES = (
    NegotiateFlags.key_56
    | NegotiateFlags.key_128
    | NegotiateFlags.key_exch
    | NegotiateFlags.version
    | NegotiateFlags.extended_session_security
    | NegotiateFlags.always_sign
    | NegotiateFlags.seal
    | NegotiateFlags.sign
)
#: The names in a CHALLENGE's target info, which an answer repeats.
OWN_NAMES: Final = (AvId.nb_domain_name, AvId.nb_computer_name, AvId.dns_domain_name, AvId.dns_computer_name)
#: A client looks at the revision in it at most (MS-NLMP 2.2.2.10).
_VERSION = Version(major=6, minor=1)


@dataclass(frozen=True, slots=True)
class Target:
    """Who asks for the answer: the names in the CHALLENGE's target info (MS-NLMP 2.2.2.1).

    :ivar computer: NetBIOS name, without the ``$`` of its account: ``RELAY01``.
    :ivar domain: NetBIOS name of its domain; empty: it belongs to none.
    :ivar dns_computer: ``relay01.corp.example``; *dns_domain*: ``corp.example``, or empty.
    """

    computer: str
    domain: str = ""
    dns_computer: str = ""
    dns_domain: str = ""


def insist_on_negotiate(octets: bytes) -> None:
    """Takes a NEGOTIATE message (MS-NLMP 2.2.1.1) for one.

    :raises Fault: 501 5.5.2: it is none.
    """
    _insist(octets, MessageType.negotiate, messages.Negotiate.MINIMUM_LENGTH)


def make_challenge(negotiate: bytes, target: Target, now: float, nonce: bytes | None = None) -> bytes:
    """The CHALLENGE message for a client's NEGOTIATE (MS-NLMP 3.2.5.1.1).

    It has a timestamp, so that clients send a MIC (3.1.5.1.2).

    :param now: seconds since the epoch.
    :param nonce: the server challenge, 8 octets; None: random ones.
    :raises Fault: 501 5.5.2: *negotiate* is no NEGOTIATE message.
    """
    insist_on_negotiate(negotiate)
    offered = int.from_bytes(negotiate[12:16], "little")
    flags = offered & _CHOICES
    flags |= NegotiateFlags.ntlm | NegotiateFlags.request_target | NegotiateFlags.target_info
    flags |= NegotiateFlags.target_type_domain if target.domain else NegotiateFlags.target_type_server
    name = target.domain or target.computer
    if offered & NegotiateFlags.unicode:
        flags |= NegotiateFlags.unicode
    elif offered & NegotiateFlags.oem:
        flags |= NegotiateFlags.oem
        name = name.encode("ascii", "replace").decode()
    else:
        raise Fault(_MALFORMED, "NEGOTIATE message without a character set")
    if not flags & (NegotiateFlags.sign | NegotiateFlags.seal):
        flags &= ~NegotiateFlags.key_exch  # nothing would use the key
    message = messages.Challenge(
        flags,
        nonce or os.urandom(8),
        target_name=name,
        target_info=_target_info(target, now),
        version=_VERSION if flags & NegotiateFlags.version else None,
    )
    return message.pack()


def _target_info(target: Target, now: float) -> TargetInfo:
    info = TargetInfo()
    for pair, name in (
        (AvId.nb_domain_name, target.domain or target.computer),
        (AvId.nb_computer_name, target.computer),
        (AvId.dns_domain_name, target.dns_domain),
        (AvId.dns_computer_name, target.dns_computer),
    ):
        if name:
            info[pair] = name
    info[AvId.timestamp] = FileTime.unpack(struct.pack("<Q", _EPOCH + int(now * 10_000_000)))
    return info


def server_challenge(challenge: bytes) -> bytes:
    """The 8 octets that a CHALLENGE message asks with."""
    return challenge[24:32]


def own_pairs(challenge: bytes) -> Mapping[int, bytes]:
    """The target info of a CHALLENGE message of our own making: values as octets by AvId."""
    length, _, offset = struct.unpack_from("<HHI", challenge, 40)
    return _pairs(challenge[offset : offset + length])


@dataclass(frozen=True, slots=True)
class Authenticate:
    """An AUTHENTICATE message (MS-NLMP 2.2.1.3) whose parts lie where it says.

    :ivar octets: the whole message.
    :ivar domain: as the client wrote it: it is part of what the answer is computed from.
    :ivar nt: NtChallengeResponse, *lm*: LmChallengeResponse, as a domain controller wants them.
    :ivar pairs: of an NTLMv2 answer: its target info, values as octets by AvId (MS-NLMP 2.2.2.1); else empty.
    :ivar mic: as it stands in the message; empty where there is no room for one.
    """

    octets: bytes = field(repr=False)
    flags: int
    user: str
    domain: str
    workstation: str
    nt: bytes = field(repr=False)
    lm: bytes = field(repr=False)
    encrypted_session_key: bytes = field(repr=False)
    pairs: Mapping[int, bytes] = field(repr=False)
    mic: bytes = field(repr=False)

    @property
    def anonymous(self) -> bool:
        """Whether it asks to be let in as nobody (MS-NLMP 3.2.5.1.2), or has no answer at all."""
        return (
            not self.user
            or bool(self.flags & NegotiateFlags.anonymous)
            or (not self.nt and self.lm in (b"", b"\0"))  # Z(1), MS-NLMP 3.3.1
        )

    @property
    def weakness(self) -> str:
        """What the answer is when it is not NTLMv2; empty: it is."""
        if _is_v2(self.nt):
            return ""
        if not self.nt:
            return "LM response alone"
        if len(self.nt) == 24 and self.lm[8:] == bytes(16) and self.flags & NegotiateFlags.extended_session_security:
            return "NTLMv1 response with NTLM2 session security"
        return "NTLMv1 response"

    @property
    def has_mic(self) -> bool:
        """Whether the answer, under its proof, says that there is a MIC (MS-NLMP 3.2.5.1.2)."""
        return bool(int.from_bytes(self.pairs.get(AvId.flags, b""), "little") & AvFlags.mic)

    @property
    def binding(self) -> bytes:
        """The hash of the channel that the client bound to; empty: to none (MS-NLMP 2.2.2.1: Z(16) means none)."""
        found = self.pairs.get(AvId.channel_bindings, b"")
        return b"" if found == bytes(16) else found

    @property
    def target(self) -> str:
        """The service that the client believes it signs in to: ``smtp/relay.corp.example``; empty: it does not say
        (MS-NLMP 2.2.2.1, MsvAvTargetName)."""
        return self.pairs.get(AvId.target_name, b"").decode("utf-16-le", "replace")


def parse_authenticate(octets: bytes) -> Authenticate:
    """Reads an AUTHENTICATE message.

    :raises Fault: 501 5.5.2: it is none.
    """
    _insist(octets, MessageType.authenticate, messages.Authenticate.MINIMUM_LENGTH)
    for at in range(12, 60, 8):  # six pairs of length and offset
        length, _, offset = struct.unpack_from("<HHI", octets, at)
        if length and (offset < messages.Authenticate.MINIMUM_LENGTH or offset + length > len(octets)):
            raise Fault(_MALFORMED, "AUTHENTICATE message: a field lies outside of it")
    # Characters other than UTF-16 are those of the client's code page, which it does not name.
    message = messages.Authenticate.unpack(octets, encoding="utf-8")
    nt = message.nt_challenge_response or b""
    key = message.encrypted_random_session_key or b""
    if _exchanges_key(message.flags) and len(key) not in (0, 16):
        raise Fault(_MALFORMED, "AUTHENTICATE message: its session key is none")
    try:
        return Authenticate(
            octets=octets,
            flags=message.flags,
            user=message.user_name or "",
            domain=message.domain_name or "",
            workstation=message.workstation or "",
            nt=nt,
            lm=message.lm_challenge_response or b"",
            encrypted_session_key=key,
            pairs=_answered_pairs(nt),
            mic=message.mic or b"",
        )
    except UnicodeDecodeError:
        raise Fault(_MALFORMED, "AUTHENTICATE message: a name is not in its character set") from None


def _exchanges_key(flags: int) -> bool:
    return bool(flags & NegotiateFlags.key_exch and flags & (NegotiateFlags.sign | NegotiateFlags.seal))


def _answered_pairs(nt: bytes) -> Mapping[int, bytes]:
    """The target info of an NTLMv2_RESPONSE (MS-NLMP 2.2.2.8)."""
    return _pairs(nt[_PROOF + _FIXED :]) if _is_v2(nt) else MappingProxyType({})


def _is_v2(nt: bytes) -> bool:
    return len(nt) > _PROOF + _FIXED and nt[_PROOF : _PROOF + 2] == b"\x01\x01"  # RespType, HiRespType


def _pairs(octets: bytes) -> Mapping[int, bytes]:
    """A sequence of AV_PAIR up to MsvAvEOL (MS-NLMP 2.2.2.1). What follows it is padding.

    pyspnego reads on behind the end, and lets the last of two pairs win: two readers could see two things.
    """
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(octets):
        pair, length = struct.unpack_from("<HH", octets, at)
        at += 4
        if pair == AvId.eol:
            return MappingProxyType(found)
        if pair in found or len(found) == _MOST_PAIRS or at + length > len(octets):
            break
        found[pair] = octets[at : at + length]
        at += length
    raise Fault(_MALFORMED, "NTLM target info is cut short, too long, or says something twice")


def _insist(octets: bytes, kind: MessageType, shortest: int) -> None:
    if len(octets) < shortest or octets[:8] != _SIGNATURE or octets[8:12] != struct.pack("<I", kind):
        raise Fault(_MALFORMED, f"no NTLM {kind.name.upper()} message")


def exported_session_key(base: bytes, message: Authenticate) -> bytes:
    """The key that signs (MS-NLMP 3.2.5.1.2), of the session base key *base*; for NTLMv2 alone."""
    exchanged = _exchanges_key(message.flags) and message.encrypted_session_key
    return rc4k(base, message.encrypted_session_key) if exchanged else base


def message_mic(key: bytes, negotiate: bytes, challenge: bytes, message: Authenticate) -> bytes:
    """The MIC that *message* must have, under the exported session *key* (MS-NLMP 3.2.5.1.2).

    :raises ValueError: there is no room for one in it.
    """
    blank = messages.Authenticate.unpack(message.octets)
    blank.mic = bytes(16)
    return hmac.digest(key, negotiate + challenge + blank.pack(), "md5")


def mech_list_mic(key: bytes, flags: int, mech_list: bytes) -> bytes:
    """The client's signature of its SPNEGO mechanism list, its first under this *key* (RFC 4178 5, MS-NLMP 3.4.4)."""
    if not flags & (NegotiateFlags.sign | NegotiateFlags.always_sign):
        return b""
    handle = rc4init(sealkey(flags, key, "initiate"))
    return sign(flags, handle, signkey(flags, key, "initiate"), 0, mech_list)


def binding_hash(binding: bytes) -> bytes:
    """What MsvAvChannelBindings holds for channel binding data like ``tls-server-end-point:…`` (MS-NLMP 3.1.5.1.2)."""
    return md5(GssChannelBindings(application_data=binding).pack(), usedforsecurity=False).digest()
