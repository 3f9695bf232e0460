"""Whether a Kerberos authenticator binds to a channel at all (RFC 4121 4.1.1.2).

Windows says of every authenticator that its client knows of channel bindings (KERB_AP_OPTIONS_CBT, MS-KILE 3.2.5.8),
also where the program gave it none, as .NET's SmtpClient does. MIT refuses that (since 1.19), with the same error as
bindings to another channel. Which of the two it was stands in the authenticator alone, and GSS-API does not show it:
hence libkrb5 itself, whose structures are those of its public header.
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_uint, c_void_p
from typing import Any, Final

__all__ = ["unbound"]

#: The checksum that carries bindings and flags of GSS-API (RFC 4121 4.1.1), and where it has the hash of the bindings.
_GSS_CHECKSUM: Final = 0x8003
_HASH: Final = slice(4, 20)


class _Data(Structure):
    _fields_ = [("magic", c_int), ("length", c_uint), ("data", c_char_p)]


class _Checksum(Structure):
    _fields_ = [("magic", c_int), ("type", c_int), ("length", c_uint), ("contents", c_void_p)]


class _Authenticator(Structure):
    # As far as it is read; libkrb5 makes it.
    _fields_ = [("magic", c_int), ("client", c_void_p), ("checksum", POINTER(_Checksum))]


def unbound(request: bytes, keytab: str) -> bool:
    """Whether the authenticator in an AP-REQ has no channel bindings.

    :param request: the AP-REQ (RFC 4120 5.5.1), which was accepted but for its bindings. It is not a replay for being
        looked at here.
    :param keytab: with its type (``FILE:/etc/krb5.keytab``); empty: the system's.
    :raises OSError: libkrb5 is not there, or cannot read the request any more.
    """
    krb5 = ctypes.CDLL("libkrb5.so.3")
    with ExitStack() as made:
        context, exchange, keys = c_void_p(), c_void_p(), c_void_p()
        authenticator = POINTER(_Authenticator)()

        def call(name: str, *arguments: Any) -> None:
            if code := getattr(krb5, name)(*arguments):
                raise OSError(f"{name}: {code}")

        call("krb5_init_context", byref(context))
        made.callback(krb5.krb5_free_context, context)
        if keytab:
            call("krb5_kt_resolve", context, keytab.encode(), byref(keys))
        else:
            call("krb5_kt_default", context, byref(keys))
        made.callback(krb5.krb5_kt_close, context, keys)
        call("krb5_auth_con_init", context, byref(exchange))
        made.callback(krb5.krb5_auth_con_free, context, exchange)
        # Without KRB5_AUTH_CONTEXT_DO_TIME the replay cache is left alone.
        call("krb5_auth_con_setflags", context, exchange, 0)
        octets = _Data(0, len(request), request)
        call("krb5_rd_req", context, byref(exchange), byref(octets), None, keys, None, None)
        call("krb5_auth_con_getauthenticator", context, exchange, byref(authenticator))
        made.callback(krb5.krb5_free_authenticator, context, authenticator)
        return _has_none(authenticator.contents.checksum)


def _has_none(checksum: Any) -> bool:
    if not checksum or checksum.contents.type != _GSS_CHECKSUM:
        return False
    octets = ctypes.string_at(checksum.contents.contents, checksum.contents.length)
    return octets[_HASH] == bytes(16)
