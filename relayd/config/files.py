"""The files that a configuration names: there, readable, and certificates with the keys that are theirs."""

from __future__ import annotations

import datetime
import stat
from collections.abc import Iterator
from pathlib import Path as File
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from relayd.config.dkim import GOOD_BITS, private_key
from relayd.config.faults import shown
from relayd.config.reading import Reading
from relayd.config.schema import is_file, is_secret
from relayd.revocation import revocation_lists
from relayd.settings import Settings

_UNTIL: Final = "client certificates that need it get 454 until there is a new one"


def check(reading: Reading, settings: Settings) -> None:
    """Notes what is wrong with each file that was written, and with each certificate and key."""
    for rule, value in reading.written.items():
        if isinstance(value, File) and is_file(rule) and reading.good(rule):
            _readable(reading, rule, value)
    authorities = (
        ("delivery.ca", settings.delivery.ca),
        ("directory.ca", settings.directory.ca),
        ("tls.client_ca", settings.tls.client_ca),
    )
    for key, ca in authorities:
        if ca is not None and reading.good(key):
            _certificate(reading, key, ca)
    for index, entry in enumerate(settings.dkim):
        if reading.good(f"dkim[{index}].key_file"):
            _signing(reading, f"dkim[{index}].key_file", entry.key_file)
    tls = settings.tls
    if tls.client_crl is not None and tls.client_ca is not None and reading.good("tls.client_ca", "tls.client_crl"):
        _revocation(reading, "tls.client_crl", tls.client_crl, tls.client_ca)
    for certificate, certificate_file, key, key_file in _pairs(reading, settings):
        if reading.good(certificate, key):
            _pair(reading, certificate, certificate_file, key, key_file)


def _signing(reading: Reading, rule: str, file: File) -> None:
    try:
        key = private_key(file)
    except OSError:
        return  # was told
    except ValueError as error:
        reading.fault(rule, str(error))
        return
    if isinstance(key, RSAPrivateKey) and key.key_size < GOOD_BITS:
        reading.warn(rule, f"{file} holds RSA of {key.key_size} bits; some receivers want {GOOD_BITS} at least")


_Pair = tuple[str, File | None, str, File | None]


def _pairs(reading: Reading, settings: Settings) -> Iterator[_Pair]:
    """Each certificate and key that belong together, with the rules that name them."""
    yield "tls.certificate", settings.tls.certificate, "tls.key", settings.tls.key
    for listener in settings.listeners:
        own = [f"{listener.origin}.{name}" for name in ("certificate", "key")]
        written = [rule in reading.written or rule in reading.bad for rule in own]
        if any(written):
            certificate, key = (
                rule if is_own else f"tls.{rule.rpartition('.')[2]}" for rule, is_own in zip(own, written, strict=True)
            )
            yield certificate, listener.tls_settings.certificate, key, listener.tls_settings.key
    delivery = settings.delivery
    yield "delivery.client_certificate", delivery.client_certificate, "delivery.client_key", delivery.client_key


def _readable(reading: Reading, key: str, file: File) -> None:
    try:
        if not file.is_file():
            what = (
                f"{file} is not a file; name one"
                if file.exists()
                else f"there is no file {file}; name one that is there"
            )
            reading.fault(key, what)
            return
        with file.open("rb") as opened:
            empty = not opened.read(1)
    except OSError as error:
        reading.fault(key, f"{file} cannot be read: {error.strerror}")
        return
    if empty:
        reading.fault(key, f"{file} is empty; write into it, or name another")
    mode = stat.S_IMODE(file.stat().st_mode)
    if is_secret(key) and mode not in (0o600, 0o640):
        reading.warn(key, f"{file} holds a secret and has mode {mode:04o}; make it 0600 or 0640")


def _pair(reading: Reading, certificate_key: str, certificate: File | None, key_key: str, key: File | None) -> None:
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        one, other = (certificate_key, key_key) if key is None else (key_key, certificate_key)
        reading.fault(one, f"needs {other} as well")
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
    except Exception:  # cryptography has more kinds than it documents
        reading.fault(key, f"{file} holds no certificate in PEM form; name one that does")
        return None
    if certificate.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        reading.warn(key, f"{file} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; renew it")
    return public


def _revocation(reading: Reading, key: str, file: File, ca: File) -> None:
    """Lists that are there, in time, and enough for the CAs in *ca*."""
    try:
        lists = revocation_lists(file)
    except ValueError:
        reading.fault(key, f"{file} holds no certificate revocation list in PEM or DER form; name one that does")
        return
    now = datetime.datetime.now(datetime.UTC)
    for one in lists:
        end = one.next_update_utc
        if end is not None and end < now:
            reading.warn(key, f"the list of {_named(one.issuer)} expired on {end:%Y-%m-%d}; {_UNTIL}")
    issuers = {one.issuer for one in lists}
    for certificate in x509.load_pem_x509_certificates(ca.read_bytes()):
        if certificate.subject not in issuers:
            reading.warn(key, f"{file} holds no list of {_named(certificate.subject)}; {_UNTIL}")


def _named(name: x509.Name) -> str:
    return shown(name.rfc4514_string())


def _public_of(reading: Reading, key: str, file: File) -> PublicKeyTypes | None:
    try:
        private = serialization.load_pem_private_key(file.read_bytes(), None)
    except TypeError:
        reading.fault(key, f"{file} is protected by a passphrase; relayd needs the key without one")
    except Exception:  # cryptography has more kinds than it documents
        reading.fault(key, f"{file} holds no private key in PEM form; name one that does")
    else:
        return private.public_key()
    return None
