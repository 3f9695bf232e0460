"""Channel bindings of TLS (RFC 5929): what ties an authentication to the connection that it is on."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes


def end_point_binding(certificate: x509.Certificate) -> bytes:
    """The channel binding ``tls-server-end-point`` of a server's certificate (RFC 5929 4.1).

    Empty where it is undefined: a signature such as Ed25519 names no hash function.
    """
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return b""
    if algorithm is None:
        return b""
    if isinstance(algorithm, hashes.MD5 | hashes.SHA1):
        algorithm = hashes.SHA256()
    return b"tls-server-end-point:" + certificate.fingerprint(algorithm)
