"""The private keys of ``[[dkim]]``."""

from __future__ import annotations

from pathlib import Path as File
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

__all__ = ["GOOD_BITS", "PrivateKey", "private_key"]

PrivateKey = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

#: RFC 8301 3.2: verifiers need not take less than the first, and signers should use the second.
_LEAST_BITS: Final = 1024
GOOD_BITS: Final = 2048


def private_key(file: File) -> PrivateKey:
    """The key in *file*.

    :raises ValueError: it holds none that DKIM can use; the text says what would be right.
    :raises OSError: it cannot be read.
    """
    octets = file.read_bytes()
    try:
        key = load_pem_private_key(octets, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(f"{file} holds no PEM private key without a passphrase; name one that does") from None
    if not isinstance(key, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        raise ValueError(f"{file} holds a key of a kind that DKIM does not use; RSA of 2048 bits is right")
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < _LEAST_BITS:
        raise ValueError(f"{file} holds RSA of {key.key_size} bits, which nobody verifies; 2048 bits are right")
    return key
