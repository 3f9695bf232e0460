"""The certificates that clients show in a TLS handshake, and whether they are good.

OpenSSL judges them: the chain, its times, what the certificates may be used for, and their revocation by CRLs (RFC 5280
6). A bad one never breaks the handshake; it only proves nothing.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path as File
from types import MappingProxyType
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags

from relayd.auth.certificate import certificate_name
from relayd.model import Tls
from relayd.revocation import revocation_lists

__all__ = ["ClientCertificates", "Judgement"]

#: Certificates between a client's and its CA's at most.
DEPTH: Final = 8

# OpenSSL's numbers (x509_vfy.h) for what is wrong with a certificate …
_WRONG: Final = MappingProxyType(
    {
        2: "its issuer is not known",
        7: "its signature is wrong",
        9: "it is not valid yet",
        10: "it has expired",
        18: "it is self-signed",
        19: "its CA is not client_ca",
        20: "its issuer is not client_ca",
        21: "its issuer is not client_ca",
        22: "its chain is too long",
        23: "it is revoked",
        24: "its issuer is no CA",
        25: "its chain is longer than a CA in it allows",
        26: "it is not for client authentication",
        27: "it is not trusted",
        28: "it is not trusted for this",
        34: "it has a critical extension that is not understood",
        66: "its key is too weak",
        67: "its CA's key is too weak",
        68: "its signature is too weak",
        79: "its issuer is no CA",
    }
)
_NO_CRL: Final = 3
# … and with a CRL: whoever keeps the lists is to be told, not the client.
_CRL_FAULTS: Final = MappingProxyType(
    {
        _NO_CRL: "client_crl has no list of its issuer",
        5: "the signature of the list of its issuer cannot be read",
        8: "the signature of the list of its issuer is wrong",
        11: "the list of its issuer in client_crl is not valid yet",
        12: "the list of its issuer in client_crl has expired",
        15: "the list of its issuer has a broken lastUpdate",
        16: "the list of its issuer has a broken nextUpdate",
        33: "who issued the list in client_crl is not known",
        35: "its issuer may not sign lists",
        36: "the list of its issuer has a critical extension that is not understood",
        44: "the list in client_crl does not cover it",
        54: "who issued the list in client_crl is not trusted",
    }
)

_UNREADABLE: Final = "a certificate that cannot be read"


class ClientCertificates:
    """Which client certificates are good.

    A CRL file that was replaced is read anew at the next handshake. One that cannot be read then leaves the lists in
    force that were read before; they expire, and a certificate that nobody can judge is nobody's fault but ours.

    :param ca: PEM: trust anchors. An intermediate CA is one where its issuer is not among them.
    :param crl: PEM, with one list or several, or DER with one; then each certificate of a chain needs the list of its
        issuer, but for the anchor. None: revocation is not checked.
    :raises ValueError: a file cannot be read, or holds none. The text names it.
    """

    def __init__(self, ca: File, crl: File | None = None) -> None:
        self._ca = ca
        self._crl = crl
        self._fault = ""
        try:
            anchors = x509.load_pem_x509_certificates(ca.read_bytes())
        except OSError as error:
            raise ValueError(f"{ca}: {error.strerror or error}") from None
        except ValueError as error:
            raise ValueError(f"{ca}: no usable certificate: {error}") from None
        subjects = {anchor.subject for anchor in anchors}
        orphans = [anchor for anchor in anchors if anchor.issuer not in subjects]
        self._orphans = frozenset(orphan.fingerprint(SHA256()) for orphan in orphans)
        self._stamp: tuple[int, int, int] | None = None
        self._lists: list[x509.CertificateRevocationList] = []
        if crl is not None:
            self._stamp = _stamp(crl)
            self._lists = revocation_lists(crl)

    def trust(self, context: SSL.Context) -> None:
        """Makes *context*, which must be new, trust what is to be trusted."""
        store = context.get_cert_store()
        assert store is not None
        self._store = store
        flags = X509StoreFlags.PARTIAL_CHAIN if self._orphans else 0
        if self._crl is not None:
            flags |= X509StoreFlags.CRL_CHECK | X509StoreFlags.CRL_CHECK_ALL
        store.set_flags(flags)
        context.set_verify_depth(DEPTH)
        context.load_verify_locations(os.fspath(self._ca))
        context.load_client_ca(os.fsencode(self._ca))  # clients choose by these names which one to show, if any
        for one in self._lists:
            store.add_crl(one)

    def judgement(self) -> Judgement:
        """For the next handshake."""
        if self._crl is not None:
            self._refresh(self._crl)
        return Judgement(self._orphans, self._fault)

    def _refresh(self, crl: File) -> None:
        try:
            stamp, self._stamp = self._stamp, None
            self._stamp = _stamp(crl)
            if self._stamp == stamp:
                return
            for one in revocation_lists(crl):
                self._store.add_crl(one)  # of two lists of one issuer OpenSSL takes the later
            self._fault = ""
        except ValueError as error:
            self._fault = str(error)


class Judgement:
    """What OpenSSL said of the certificates that one client showed.

    Only a chain that was verified in this very handshake makes a certificate good: in a resumed session OpenSSL says
    nothing.
    """

    __slots__ = ("_crl_fault", "_distrust", "_orphans", "_undecided", "_verified")

    def __init__(self, orphans: frozenset[bytes], crl_fault: str) -> None:
        self._orphans = orphans
        self._crl_fault = f" ({crl_fault})" if crl_fault else ""
        self._verified = False
        self._distrust = ""
        self._undecided = ""

    def note(self, certificate: X509, error: int, depth: int) -> None:
        """Takes one word.

        :param error: 0: this certificate of the chain is good.
        :param depth: 0 is the client's own, the last that is spoken of.
        """
        if not error:
            self._verified = depth == 0
            return
        if error == _NO_CRL and depth and _fingerprint(certificate) in self._orphans:
            return  # OpenSSL wants a list for an anchor too
        whose = f"{_name(certificate)}: " if depth else ""
        if (text := _CRL_FAULTS.get(error)) is None:
            self._distrust = self._distrust or whose + _WRONG.get(error, f"X.509 error {error}")
        else:
            self._undecided = self._undecided or whose + text + self._crl_fault

    def over(self, connection: SSL.Connection, tls: Tls) -> Tls:
        """*tls* with the result, once the handshake is over."""
        shown = connection.get_peer_certificate() if self._verified or self._distrust or self._undecided else None
        if shown is None:
            return tls
        if self._distrust:
            return replace(tls, distrust=f"{_name(shown)}: {self._distrust}")
        if self._undecided:
            return replace(tls, undecided=f"{_name(shown)}: {self._undecided}")
        try:
            return replace(tls, certificate=shown.to_cryptography().public_bytes(Encoding.DER))
        except Exception:  # cryptography has more kinds than it documents
            return replace(tls, distrust=_UNREADABLE)


def _name(certificate: X509) -> str:
    try:
        return certificate_name(certificate.to_cryptography())
    except Exception:  # cryptography has more kinds than it documents
        return _UNREADABLE


def _fingerprint(certificate: X509) -> bytes:
    try:
        return certificate.to_cryptography().fingerprint(SHA256())
    except Exception:  # as above
        return b""


def _stamp(file: File) -> tuple[int, int, int]:
    try:
        found = os.stat(file)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or error}") from None
    return found.st_mtime_ns, found.st_size, found.st_ino
