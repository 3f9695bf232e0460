"""TLSA records for the lab's certificates."""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

__all__ = ["record", "text"]


def text(usage: int, selector: int, matching: int, certificate: x509.Certificate) -> str:
    """A record as it stands in a zone."""
    return f"{usage} {selector} {matching} {record(selector, matching, certificate).hex()}"


def record(selector: int, matching: int, certificate: x509.Certificate) -> bytes:
    """What a record holds (RFC 6698 2.1)."""
    if selector == 0:
        octets = certificate.public_bytes(Encoding.DER)
    else:
        octets = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return (octets, hashlib.sha256(octets).digest(), hashlib.sha512(octets).digest())[matching]
