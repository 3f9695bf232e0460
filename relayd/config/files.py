"""The files that a configuration names: there, readable, and certificates with the keys that are theirs."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path as File

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from relayd.config.reading import Reading
from relayd.config.schema import is_file, is_secret
from relayd.settings import Settings


def check(reading: Reading, settings: Settings) -> None:
    """Notes what is wrong with each file that was written, and with each certificate and key."""
    for key, value in list(reading.written.items()):
        if isinstance(value, File) and is_file(key):
            _readable(reading, key, value)
    pairs: list[tuple[str, File | None, str, File | None]] = [
        ("tls.certificate", settings.tls.certificate, "tls.key", settings.tls.key)
    ]
    for listener in settings.listeners:
        own = listener.tls_settings
        if (own.certificate, own.key) != (settings.tls.certificate, settings.tls.key):
            names = (f"{listener.origin}.certificate", f"{listener.origin}.key")
            pairs.append((names[0], own.certificate, names[1], own.key))
    delivery = settings.delivery
    pairs.append(
        ("delivery.client_certificate", delivery.client_certificate, "delivery.client_key", delivery.client_key)
    )
    for certificate_key, certificate, key_key, key in pairs:
        if reading.good(certificate_key, key_key):
            _pair(reading, certificate_key, certificate, key_key, key)


def _readable(reading: Reading, key: str, file: File) -> None:
    try:
        if not file.is_file():
            reading.fault(key, f"{file} is a folder; name a file" if file.is_dir() else f"there is no file {file}")
            return
        with file.open("rb") as opened:
            empty = not opened.read(1)
    except OSError as error:
        reading.fault(key, f"{file} cannot be read: {error.strerror}")
        return
    if empty:
        reading.fault(key, f"{file} is empty")
    mode = stat.S_IMODE(file.stat().st_mode)
    if is_secret(key) and mode not in (0o600, 0o640):
        reading.warn(key, f"{file} holds a secret and has mode {mode:04o}; make it 0600 or 0640")


def _pair(reading: Reading, certificate_key: str, certificate: File | None, key_key: str, key: File | None) -> None:
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        one, other = (certificate_key, key_key) if key is None else (key_key, certificate_key)
        reading.fault(one, f"needs {other} as well", at=one)
        return
    public = _certificate(reading, certificate_key, certificate)
    own = _public_of(reading, key_key, key)
    if public is not None and own is not None and public != own:
        reading.fault(key_key, f"{key} is not the key of {certificate}; name the key that its request was made with")


def _certificate(reading: Reading, key: str, file: File) -> PublicKeyTypes | None:
    """The public key of the first certificate, which is the server's own (RFC 5246 7.4.2)."""
    try:
        certificate = x509.load_pem_x509_certificates(file.read_bytes())[0]
        public = certificate.public_key()
    except (OSError, ValueError, TypeError) as error:
        reading.fault(key, f"{file} holds no certificate in PEM form: {_one_line(error)}")
        return None
    except Exception as error:  # cryptography has more kinds than it documents
        reading.fault(key, f"{file} holds a certificate that cannot be used: {_one_line(error)}")
        return None
    if certificate.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        reading.warn(key, f"{file} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; renew it")
    return public


def _public_of(reading: Reading, key: str, file: File) -> PublicKeyTypes | None:
    try:
        private = serialization.load_pem_private_key(file.read_bytes(), None)
    except TypeError:
        reading.fault(key, f"{file} is protected by a passphrase; relayd needs the key without one")
    except (OSError, ValueError) as error:
        reading.fault(key, f"{file} holds no private key in PEM form: {_one_line(error)}")
    except Exception as error:  # cryptography has more kinds than it documents
        reading.fault(key, f"{file} holds a key that cannot be used: {_one_line(error)}")
    else:
        return private.public_key()
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:80].partition(". ")[0].partition(" (")[0]
