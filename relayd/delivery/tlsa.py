"""What TLSA records say of a certificate (RFC 6698, RFC 7671), as SMTP has it (RFC 7672). Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname

from relayd.model import Tlsa

#: Certificate usages: the host's own certificate, and a CA above it. RFC 7672 3.1.3: the PKIX usages are not for SMTP.
DANE_TA, DANE_EE = 2, 3
_FULL, _SHA256, _SHA512 = 0, 1, 2
_LENGTHS: Final = {_SHA256: 32, _SHA512: 64}


def usable(records: Sequence[Tlsa]) -> tuple[Tlsa, ...]:
    """Those of *records* that say something to a mail client (RFC 7672 3.1)."""
    return tuple(record for record in records if _is_usable(record))


def _is_usable(record: Tlsa) -> bool:
    if record.usage not in (DANE_TA, DANE_EE) or record.selector not in (0, 1):
        return False
    if record.matching != _FULL:
        return len(record.data) == _LENGTHS.get(record.matching, -1)
    return _parsed(record) is not None if record.selector == 0 else bool(record.data)


def fault(records: Sequence[Tlsa], chain: Sequence[x509.Certificate], names: Sequence[str], now: float) -> str:
    """Why a host's certificate does not hold; empty: it does.

    :param records: usable ones, at least one.
    :param chain: as the host sent it, its own certificate first.
    :param names: those of which its certificate must carry one, where a CA vouches for it (RFC 7672 3.2.2).
    :param now: seconds since the epoch.
    """
    if not chain:
        return "no certificate was shown"
    records = _agile(records)
    # RFC 7672 3.1.1: names and dates of the certificate do not matter, the record has them.
    if any(record.usage == DANE_EE and _matches(record, chain[0]) for record in records):
        return ""
    anchors = [record for record in records if record.usage == DANE_TA]
    why = "certificate matches no TLSA record"
    for anchor in _anchors(anchors, chain):
        why = _path_fault(chain, anchor, now) or _name_fault(chain[0], names)
        if not why:
            return ""
    return why


def _agile(records: Sequence[Tlsa]) -> list[Tlsa]:
    """Of each usage and selector only the strongest digest counts, and whole ones always (RFC 7671 9)."""
    strongest: dict[tuple[int, int], int] = {}
    for record in records:
        key = record.usage, record.selector
        strongest[key] = max(strongest.get(key, _FULL), record.matching)
    return [r for r in records if r.matching in (_FULL, strongest[r.usage, r.selector])]


def _matches(record: Tlsa, certificate: x509.Certificate) -> bool:
    if record.selector == 0:
        octets = certificate.public_bytes(Encoding.DER)
    else:
        octets = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if record.matching == _FULL:
        return octets == record.data
    return hashlib.new("sha256" if record.matching == _SHA256 else "sha512", octets).digest() == record.data


def _anchors(records: Sequence[Tlsa], chain: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """The CAs that *records* name, of *chain* or whole in a record: it need not be sent then."""
    found = [c for c in chain[1:] if any(_matches(record, c) for record in records)]
    whole = (_parsed(record) for record in records if record.selector == 0 and record.matching == _FULL)
    return [*found, *(certificate for certificate in whole if certificate is not None)]


def _parsed(record: Tlsa) -> x509.Certificate | None:
    try:
        return x509.load_der_x509_certificate(record.data)
    except ValueError:
        return None


def _path_fault(chain: Sequence[x509.Certificate], anchor: x509.Certificate, now: float) -> str:
    """Why no path leads from the first of *chain* to *anchor*, which need not be a root (RFC 7671 5.2)."""
    store = crypto.X509Store()
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    store.set_time(datetime.fromtimestamp(now, UTC).replace(tzinfo=None))
    store.add_cert(crypto.X509.from_cryptography(anchor))
    own, *others = (crypto.X509.from_cryptography(certificate) for certificate in chain)
    try:
        crypto.X509StoreContext(store, own, others).verify_certificate()
    except crypto.X509StoreContextError as error:
        return f"certificate does not lead to the CA of the TLSA records: {error}"
    return ""


def _name_fault(certificate: x509.Certificate, names: Sequence[str]) -> str:
    for name in names:
        try:
            verify_certificate_hostname(certificate, name)
        except (VerificationError, CertificateError, ValueError):
            continue
        return ""
    return f"certificate is not for {' or '.join(names)}"
