"""What a token of GSS-API is, seen from outside (RFC 2743 3.1): its mechanism, the Kerberos token in it, its ticket.

For choosing who takes a token, and for the log when it was refused; who authenticated is never read here. Anybody may
send them, so they are read by :mod:`relayd.auth.der`, level by level.
"""

from __future__ import annotations

from typing import Final

from relayd.auth import der

__all__ = ["KERBEROS", "NTLMSSP", "SPNEGO", "kerberos_token", "mechanism", "request", "ticket"]

KERBEROS: Final = "1.2.840.113554.1.2.2"
SPNEGO: Final = "1.3.6.1.5.5.2"
NTLMSSP: Final = "1.3.6.1.4.1.311.2.2.10"

_INITIAL_CONTEXT_TOKEN: Final = 0x60  # RFC 2743 3.1
_NEG_TOKEN_INIT, _NEG_TOKEN_RESP = 0xA0, 0xA1  # RFC 4178 4.2
_TOK_ID: Final = 2  # octets, RFC 4121 4.1
# RFC 4120: the applications' tags, and those of the fields that are read.
_AP_REQ, _AP_REQ_TICKET = 0x6E, 0xA3  # 5.5.1
_TICKET, _REALM, _SNAME, _ENC_PART = 0x61, 0xA1, 0xA2, 0xA3  # 5.3
_NAME_STRING: Final = 0xA1  # 5.2.2
_KVNO: Final = 0xA1  # 5.2.9

#: No principal's name has more components.
_MOST_COMPONENTS: Final = 16


def mechanism(token: bytes) -> str:
    """The object identifier of the mechanism of an initial *token*.

    SPNEGO's is read to its end: MIT works for a quarter of a second on 64 KiB of mechanisms.

    :raises ValueError: it is no initial token of GSS-API's, nor NTLM's own; or of SPNEGO, and malformed.
    """
    from relayd.auth import spnego

    if token.startswith(b"NTLMSSP\0"):
        return NTLMSSP
    if token[:1] == bytes((_NEG_TOKEN_INIT,)):
        spnego.parse_unframed(token)  # a NegTokenInit without its frame, which MIT takes too
        return SPNEGO
    if token[:1] != bytes((_INITIAL_CONTEXT_TOKEN,)):
        raise ValueError("no token of GSS-API")
    try:
        found = der.oid(_framed(token)[0])
    except ValueError as error:
        raise ValueError(f"a token without a mechanism: {error}") from None
    if found == SPNEGO:
        spnego.parse_offer(token)
    return found


def kerberos_token(token: bytes) -> bytes:
    """The Kerberos token that *token* is, or carries by SPNEGO (RFC 4178 4.2).

    :raises ValueError: none, or cut short.
    """
    from relayd.auth import spnego

    (tag, _), rest = der.element(token)
    if rest:
        raise ValueError(f"{len(rest)} octets behind the end of the token")
    if tag == _NEG_TOKEN_RESP:
        inner = spnego.parse_answer(token).token
    elif tag == _NEG_TOKEN_INIT:
        inner = spnego.parse_unframed(token).token
    elif offer := spnego.parse_offer(token):
        inner = offer.token
    else:
        return token
    if not inner:
        raise ValueError("SPNEGO without a token of its mechanism")
    return inner


def request(token: bytes) -> bytes:
    """The Kerberos message in an initial Kerberos *token* (RFC 4121 4.1): an AP-REQ, where all is well.

    :raises ValueError: there is none.
    """
    mechanism, message = _framed(token)
    der.oid(mechanism)
    return message[_TOK_ID:]


def ticket(token: bytes) -> str:
    """What the ticket in an initial Kerberos *token* is for: ``smtp/relay.corp.example@CORP.EXAMPLE, kvno 3``.

    :raises ValueError: there is no AP-REQ (RFC 4120 5.5.1) in it.
    """
    try:
        message = der.fields(der.whole(request(token), _AP_REQ))
        fields = der.fields(der.whole(message[_AP_REQ_TICKET], _TICKET))
        components = der.children(der.fields(fields[_SNAME])[_NAME_STRING], _MOST_COMPONENTS)
        service = b"/".join(content for _, content in components)
        realm = der.whole(fields[_REALM], der.GENERAL_STRING)
        encrypted = der.fields(fields[_ENC_PART])
        version = f"kvno {der.integer(encrypted[_KVNO])}" if _KVNO in encrypted else "no kvno"
    except KeyError:
        raise ValueError("no AP-REQ: a field is missing") from None
    except ValueError as error:
        raise ValueError(f"no AP-REQ: {error}") from None
    return f"{_printable(service + b'@' + realm)}, {version}"


def _framed(token: bytes) -> tuple[der.Element, bytes]:
    """The OID of an initial token, and what it frames.

    :raises ValueError: it has no frame.
    """
    return der.element(der.whole(token, _INITIAL_CONTEXT_TOKEN))


def _printable(name: bytes) -> str:
    # Anybody may write anything there, and the log shall stay readable.
    return name[:256].decode("latin-1").encode("unicode_escape").decode("ascii")
