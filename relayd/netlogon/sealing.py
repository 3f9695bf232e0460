"""The Netlogon signature token with AES (MS-NRPC 3.3.4.2): how a message is sealed, and one that came is opened.

impacket has the cryptography, and opens sealed messages without looking at their checksum or sequence number. Here
both are held to what they must be before anything that was inside is believed.
"""

from __future__ import annotations

import hmac
import os
import struct
from typing import Final

from impacket.dcerpc.v5 import nrpc

__all__ = ["TOKEN", "NotGenuine", "seal", "unseal"]

#: Octets of a token with a confounder (NL_AUTH_SHA2_SIGNATURE, MS-NRPC 2.2.1.3.3).
TOKEN: Final = 56
# What counts of a token: algorithms, padding, flags, sequence number, checksum, confounder.
_COUNTS: Final = 32

# HMAC-SHA256, AES-128, padding, no flags.
_ALGORITHMS: Final = struct.pack("<HHHH", nrpc.NL_SIGNATURE_HMAC_SHA256, nrpc.NL_SEAL_AES128, 0xFFFF, 0)


class NotGenuine(Exception):
    """The message is not what the other side sent at this point."""


def seal(message: bytes, sequence: int, key: bytes) -> tuple[bytes, bytes]:
    """*message* sealed by the client, and its token.

    :param sequence: of the messages on this connection, in both directions, from 0.
    :param key: the session key, 16 octets.
    """
    sealed, token = nrpc.SEAL(message, os.urandom(8), sequence, key, True)
    return bytes(sealed), bytes(token.getData())


def unseal(sealed: bytes, token: bytes, sequence: int, key: bytes) -> bytes:
    """The message that the server sealed.

    :raises NotGenuine: it was changed, or was sent at another time, by another key or in another direction.
    """
    if len(token) < _COUNTS or token[:8] != _ALGORITHMS:
        raise NotGenuine("the answer is not sealed by AES")
    message, confounder = nrpc.UNSEAL(sealed, token, key, True)
    signature = nrpc.NL_AUTH_SIGNATURE(token)
    checksum = nrpc.ComputeNetlogonSignatureAES(signature, message, confounder, key)
    # MS-NRPC 3.3.4.2.2: the checksum, and the sequence number with the bit of the direction: clear from the server.
    sent = nrpc.decryptSequenceNumberAES(token[8:16], token[16:24], key)
    expected = struct.pack(">II", sequence & 0xFFFFFFFF, sequence >> 32)
    if not hmac.compare_digest(checksum, token[16:24]):
        raise NotGenuine("the checksum of the answer is wrong")
    if not hmac.compare_digest(sent, expected):
        raise NotGenuine("the sequence number of the answer is wrong")
    return bytes(message)
