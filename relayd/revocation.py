"""Certificate revocation lists (RFC 5280 5), as they lie in files."""

from __future__ import annotations

import re
from pathlib import Path as File
from typing import Final

from cryptography import x509

__all__ = ["revocation_lists"]

_PEM: Final = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


def revocation_lists(file: File) -> list[x509.CertificateRevocationList]:
    """The CRLs in *file*: PEM, with one or several, or DER with one, as AD CS publishes it.

    :raises ValueError: it cannot be read, or holds none. The text names it.
    """
    try:
        content = file.read_bytes()
        if b"-----BEGIN" not in content:
            return [x509.load_der_x509_crl(content)]
        found = [x509.load_pem_x509_crl(one) for one in _PEM.findall(content)]
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or error}") from None
    except ValueError:
        found = []
    if not found:
        raise ValueError(f"{file}: no usable certificate revocation list")
    return found
