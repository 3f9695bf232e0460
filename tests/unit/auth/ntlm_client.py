"""NTLM clients for tests: pyspnego as it is, and one that may leave out what pyspnego always does."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Any

from spnego import NegotiateOptions
from spnego import client as spnego_client
from spnego._ntlm_raw.crypto import compute_response_v2, ntowfv1, ntowfv2, rc4k
from spnego._ntlm_raw.messages import Authenticate, AvId, Challenge, FileTime, Negotiate, NegotiateFlags, TargetInfo
from spnego.channel_bindings import GssChannelBindings

__all__ = ["FLAGS", "PlainClient", "Spnego", "rebuilt"]

FLAGS = (
    NegotiateFlags.unicode
    | NegotiateFlags.oem
    | NegotiateFlags.ntlm
    | NegotiateFlags.request_target
    | NegotiateFlags.extended_session_security
    | NegotiateFlags.always_sign
)


class Spnego:
    """pyspnego's client: NTLMv2 with a MIC, as Windows does.

    :param binding: channel binding data.
    """

    def __init__(self, user: str, password: str, binding: bytes = b"") -> None:
        bindings = GssChannelBindings(application_data=binding) if binding else None
        self.context: Any = spnego_client(
            user,
            password,
            hostname="relay01.corp.example",
            service="smtp",
            protocol="ntlm",
            channel_bindings=bindings,
            options=NegotiateOptions.use_ntlm,  # its own code, whatever GSSAPI has
        )
        self.negotiate: bytes = self.context.step()

    def answer(self, challenge: bytes) -> bytes:
        answer: bytes = self.context.step(challenge)
        return answer

    def signature(self, octets: bytes) -> bytes:
        """As of a mechListMIC."""
        signed: bytes = self.context.sign(octets)
        return signed


class PlainClient:
    """NTLMv2 as curl speaks it: no MIC; by hand, so that tests can say what is in it.

    :ivar pairs: what goes into the target info in place of what the challenge has; None takes a pair out.
    """

    def __init__(self, user: str, password: str, domain: str = "CORP", flags: int = FLAGS) -> None:
        self.user, self.password, self.domain = user, password, domain
        self.hashed_domain = domain
        self.negotiate = Negotiate(flags).pack()
        self.flags = flags
        self.pairs: Mapping[AvId, Any] = {}
        self.session_key = b""

    def answer(self, challenge: bytes, **fields: Any) -> bytes:
        asked = Challenge.unpack(challenge)
        info = TargetInfo(asked.target_info or {})
        for pair, value in self.pairs.items():
            if value is None:
                info.pop(pair, None)
            else:
                info[pair] = value
        key = ntowfv2(self.user, ntowfv1(self.password), self.hashed_domain)
        now = info.get(AvId.timestamp) or FileTime.now()
        nt, lm, base = compute_response_v2(key, asked.server_challenge, os.urandom(8), now, info)
        self.session_key = base
        if asked.flags & NegotiateFlags.key_exch:
            self.session_key = os.urandom(16)
            fields["encrypted_session_key"] = rc4k(base, self.session_key)
        values = {"domain_name": self.domain, "username": self.user, "workstation": "PC"} | fields
        lm = values.pop("lm", lm)
        return Authenticate(
            values.pop("flags", asked.flags), lm, values.pop("nt", nt), encoding="utf-8", **values
        ).pack()


def rebuilt(octets: bytes, **changes: Any) -> bytes:
    """An AUTHENTICATE message anew, without room for version and MIC, with *changes* to its parts.

    Parts: lm, nt, domain, user, workstation, key (octets) and flags.
    """
    old = Authenticate.unpack(octets)
    parts = dict(zip(("lm", "nt", "domain", "user", "workstation", "key"), _fields(octets), strict=True)) | changes
    header, payload = old.signature, b""
    for name in ("lm", "nt", "domain", "user", "workstation", "key"):
        header += struct.pack("<HHI", len(parts[name]), len(parts[name]), 64 + len(payload))
        payload += parts[name]
    return header + struct.pack("<I", parts.get("flags", old.flags)) + payload


def _fields(octets: bytes) -> list[bytes]:
    found = []
    for at in range(12, 60, 8):
        length, _, offset = struct.unpack_from("<HHI", octets, at)
        found.append(octets[offset : offset + length])
    return found
