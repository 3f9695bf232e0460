"""What a token of GSS-API is, seen from outside (RFC 2743 3.1): its mechanism, the Kerberos token in it, its ticket.

For choosing who takes a token, and for the log when it was refused; who authenticated is never read here. The decoders
are pyspnego's, which let whatever out that their arithmetic on odd octets comes to: here it is ValueError alone.
"""

from __future__ import annotations

from typing import Final

__all__ = ["KERBEROS", "NTLMSSP", "SPNEGO", "kerberos_token", "mechanism", "request", "ticket"]

KERBEROS: Final = "1.2.840.113554.1.2.2"
SPNEGO: Final = "1.3.6.1.5.5.2"
NTLMSSP: Final = "1.3.6.1.4.1.311.2.2.10"


def mechanism(token: bytes) -> str:
    """The object identifier of the mechanism of an initial *token*.

    :raises ValueError: it is no initial token of GSS-API's, nor NTLM's own.
    """
    from spnego._asn1 import unpack_asn1, unpack_asn1_object_identifier

    if token.startswith(b"NTLMSSP\0"):
        return NTLMSSP
    if token.startswith(b"\xa0"):
        return SPNEGO  # a NegTokenInit without its frame, which MIT takes too
    if not token.startswith(b"\x60"):
        raise ValueError("no token of GSS-API")
    try:
        frame, _ = unpack_asn1(token)
        return str(unpack_asn1_object_identifier(unpack_asn1(frame.b_data)[0]))
    except Exception as error:
        raise ValueError(f"a token without a mechanism ({type(error).__name__})") from None


def kerberos_token(token: bytes) -> bytes:
    """The Kerberos token that *token* is, or carries by SPNEGO (RFC 4178 4.2).

    :raises ValueError: none, or cut short.
    """
    from spnego._spnego import NegTokenInit, NegTokenResp, unpack_token

    _whole(token)
    try:
        outer = unpack_token(token)
    except Exception as error:
        raise ValueError(f"a malformed frame ({type(error).__name__})") from None
    if isinstance(outer, NegTokenInit):
        inner = outer.mech_token
    elif isinstance(outer, NegTokenResp):
        inner = outer.response_token
    else:
        return token
    if not inner:
        raise ValueError("SPNEGO without a token of its mechanism")
    _whole(inner)
    return bytes(inner)


def request(token: bytes) -> bytes:
    """The Kerberos message in an initial Kerberos *token* (RFC 4121 4.1): an AP-REQ, where all is well.

    :raises ValueError: there is none.
    """
    from spnego._spnego import InitialContextToken, unpack_token

    try:
        frame = unpack_token(token, unwrap=True)
    except Exception as error:
        raise ValueError(f"a malformed frame ({type(error).__name__})") from None
    if not isinstance(frame, InitialContextToken):
        raise ValueError("a Kerberos message without its frame")
    return bytes(frame.inner_context_token[2:])  # behind TOK_ID


def ticket(token: bytes) -> str:
    """What the ticket in an initial Kerberos *token* is for: ``smtp/relay.corp.example@CORP.EXAMPLE, kvno 3``.

    :raises ValueError: there is no AP-REQ (RFC 4120 5.5.1) in it.
    """
    from spnego._asn1 import unpack_asn1
    from spnego._kerberos import KerberosV5Msg, KrbApReq

    try:
        message = KerberosV5Msg.unpack(unpack_asn1(unpack_asn1(request(token))[0].b_data)[0])
        assert isinstance(message, KrbApReq)
        service = b"/".join(message.ticket.sname.value) + b"@" + message.ticket.realm
        return f"{_printable(service)}, kvno {message.ticket.enc_part.kvno}"
    except Exception as error:
        raise ValueError(f"no AP-REQ ({type(error).__name__})") from None


def _printable(name: bytes) -> str:
    # Anybody may write anything there, and the log shall stay readable.
    return name[:256].decode("latin-1").encode("unicode_escape").decode("ascii")


def _whole(token: bytes) -> None:
    """:raises ValueError: *token* is longer or shorter than its outermost DER value says (X.690 8.1.3)."""
    short = token[1:2]
    if not short:
        raise ValueError("an empty token")
    octets = short[0] & 0x7F if short[0] & 0x80 else 0
    length = int.from_bytes(token[2 : 2 + octets], "big") if octets else short[0]
    if len(token) != 2 + octets + length:
        raise ValueError(f"a token of {len(token)} octets that says it has {2 + octets + length}")
