"""Client certificates: which account of the directory one belongs to.

A certificate is mapped by what its CA vouches for and nobody else can have: the SID that AD CS writes into it, or an
explicit mapping of the account's that names this one certificate or its key (KB5014754: "strong"). Never by a mail
address, a subject, or any other name that may be given twice. ``client_map = "upn"`` is for a CA that writes UPNs, and
lets nobody else choose them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pyasn1.codec.der import decoder
from pyasn1.type import char, namedtype, tag, univ
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from zope.interface import implementer

from relayd.auth.accounts import prepared
from relayd.auth.credentials import ClientCertificate, IClientCertificate
from relayd.auth.directory import directory_principal
from relayd.directory import AccountState, Directory, User
from relayd.model import AUTH_UNAVAILABLE, Fault, Principal

__all__ = ["CertificateChecker", "certificate_name", "certificate_sid", "certificate_upn", "strong_mappings"]

_SECURITY: Final = x509.ObjectIdentifier("1.3.6.1.4.1.311.25.2")  # szOID_NTDS_CA_SECURITY_EXT, MS-WCCE 2.2.2.7.7.4
_OBJECT_SID: Final = univ.ObjectIdentifier("1.3.6.1.4.1.311.25.2.1")  # szOID_NTDS_OBJECTSID
_UPN: Final = x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")  # szOID_NT_PRINCIPAL_NAME, MS-WCCE 2.2.2.7.5

_SID: Final = re.compile(r"S-1(-[0-9]{1,15}){2,16}")

# The types of Windows' CertNameToStr with CERT_X500_NAME_STR, by which a KDC spells an issuer (MS-PKCA 3.1.5.2.1.4).
_TYPES: Final = MappingProxyType(
    {
        "2.5.4.3": "CN",
        "2.5.4.4": "SN",
        "2.5.4.5": "SERIALNUMBER",
        "2.5.4.6": "C",
        "2.5.4.7": "L",
        "2.5.4.8": "S",
        "2.5.4.9": "STREET",
        "2.5.4.10": "O",
        "2.5.4.11": "OU",
        "2.5.4.12": "T",
        "2.5.4.13": "Description",
        "2.5.4.17": "PostalCode",
        "2.5.4.18": "POBox",
        "2.5.4.20": "Phone",
        "2.5.4.42": "G",
        "2.5.4.43": "I",
        "1.2.840.113549.1.9.1": "E",
        "0.9.2342.19200300.100.1.25": "DC",
    }
)
_QUOTED: Final = re.compile(r'[,+="\n<>#;]|^\s|\s$')

#: Octets of the largest certificate whose subject is spelled for the log: anybody may show one of 100 KiB.
_LARGEST_NAMED: Final = 8192
#: Octets of the longest SID or UPN in a certificate, with what is around it.
_LONGEST_VALUE: Final = 1024

#: What cryptography says of a certificate whose insides are not as they should be.
_UNREADABLE: Final = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


class _OtherName(univ.Sequence):
    """RFC 5280 4.2.1.6, as GeneralName takes it."""

    tagSet = univ.Sequence.tagSet.tagImplicitly(tag.Tag(tag.tagClassContext, tag.tagFormatConstructed, 0))
    componentType = namedtype.NamedTypes(
        namedtype.NamedType("type-id", univ.ObjectIdentifier()),
        namedtype.NamedType(
            "value",
            univ.OctetString().subtype(explicitTag=tag.Tag(tag.tagClassContext, tag.tagFormatConstructed, 0)),
        ),
    )


class _SecurityExtension(univ.SequenceOf):
    """GeneralNames with the one otherName that AD CS puts there."""

    componentType = _OtherName()


def certificate_name(certificate: x509.Certificate) -> str:
    """The subject of *certificate*, for the log: one line, and not too long."""
    try:
        small = len(certificate.tbs_certificate_bytes) <= _LARGEST_NAMED
        name = certificate.subject.rfc4514_string() if small else ""
    except _UNREADABLE:
        name = ""
    name = "".join(c if c.isprintable() else "?" for c in name[:200])
    return name or f"certificate {certificate.serial_number:x}"


def certificate_sid(certificate: x509.Certificate) -> str:
    """The SID of the account that AD CS issued *certificate* to; empty: it does not say.

    :raises ValueError: the extension is there, and holds no SID.
    """
    try:
        extension = certificate.extensions.get_extension_for_oid(_SECURITY).value
    except x509.ExtensionNotFound:
        return ""
    assert isinstance(extension, x509.UnrecognizedExtension)
    (name,) = _decoded(extension.value, _SecurityExtension())
    sid = bytes(name["value"]).decode("ascii")
    if name["type-id"] != _OBJECT_SID or not _SID.fullmatch(sid):
        raise ValueError("no SID")
    return sid


def certificate_upn(certificate: x509.Certificate) -> str:
    """The UPN in *certificate*; empty: it has none.

    :raises ValueError: it has several, or one that cannot be read.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    found = [name.value for name in names.get_values_for_type(x509.OtherName) if name.type_id == _UPN]
    if len(found) > 1:
        raise ValueError("several UPNs")
    return str(_decoded(found[0], char.UTF8String())) if found else ""


def strong_mappings(certificate: x509.Certificate) -> tuple[str, ...]:
    """The values of altSecurityIdentities that map *certificate* alone, or its key (MS-PKCA 3.1.5.2.1.4, KB5014754).

    Those by subject, by issuer and subject, or by mail address are weak, and none of these.
    """
    found = []
    if issuer := _issuer(certificate):
        found += [f"X509:<I>{issuer}<SR>{serial}" for serial in _serials(certificate.serial_number)]
    try:
        identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        found.append(f"X509:<SKI>{identifier.hex()}")
    except x509.ExtensionNotFound:
        pass
    public = certificate.public_key()
    # "SHA1 hash of public key": of the key alone, as in RFC 5280 4.2.1.2, or of all of SubjectPublicKeyInfo.
    own = x509.SubjectKeyIdentifier.from_public_key(public).digest
    whole = hashlib.sha1(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    found += [f"X509:<SHA1-PUKEY>{hashed.hex()}" for hashed in (own, whole)]
    return tuple(found)


@implementer(ICredentialsChecker)
class CertificateChecker:
    """Vouches for the account that a verified client certificate belongs to.

    The account must not be disabled, expired or locked, and this must be one of its logon hours. An expired password,
    or one that must be changed, is none of a certificate's business, as it is none of PKINIT's.

    :param client_map: ``sid``: the SID in the certificate, or where it has none, a strong mapping; ``upn``: the UPN.
    :param default_domain: what a bare authorisation identity belongs to, by the listener's name.
    """

    credentialInterfaces = (IClientCertificate,)

    def __init__(self, directory: Directory, client_map: str, default_domain: Callable[[str], str]) -> None:
        self._directory = directory
        self._map = client_map
        self._default_domain = default_domain

    # cred hands any avatar id on to the realm; its annotation knows bytes alone.
    def requestAvatarId(self, credentials: ClientCertificate) -> Deferred[Principal]:  # type: ignore[override]
        return Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: ClientCertificate) -> Principal:
        certificate = _verified(credentials)
        user = await self._mapped(certificate)
        name = certificate_name(certificate)
        if user is None:
            raise UnauthorizedLogin(f"no account for {name} by {self._map}")
        if why := _closed(user.state):
            raise UnauthorizedLogin(f"{why}: {user.name} of {name}")
        if not user.state_known:
            # With a password the directory itself has the last word; here there is nobody else to ask.
            hidden = "userAccountControl, accountExpires or msDS-User-Account-Control-Computed"
            why = f"whether {user.name} may sign in is hidden from relayd: it cannot read {hidden}"
            raise Fault(AUTH_UNAVAILABLE, why)
        if credentials.authorise and not await self._same(credentials, user):
            raise UnauthorizedLogin(f"asks to act as {credentials.authorise[:255]!r}, and is {user.name}")
        return directory_principal(user, "EXTERNAL", "certificate")

    async def _mapped(self, certificate: x509.Certificate) -> User | None:
        try:
            if self._map == "upn":
                upn = certificate_upn(certificate)
                return await self._directory.find(upn) if "@" in upn else None
            if sid := certificate_sid(certificate):
                return await self._directory.find_sid(sid)
            return await self._directory.find_mapping(strong_mappings(certificate))
        except _UNREADABLE as error:
            raise UnauthorizedLogin(f"{certificate_name(certificate)}: cannot be read: {error}") from None

    async def _same(self, credentials: ClientCertificate, user: User) -> bool:
        """Whether the client asks to act as nobody but itself."""
        try:
            name = prepared(credentials.authorise)
        except ValueError:
            return False
        wanted = await self._directory.find(name, self._default_domain(credentials.client.listener))
        return wanted is not None and wanted.key == user.key


def _verified(credentials: ClientCertificate) -> x509.Certificate:
    """The certificate that TLS verified.

    :raises UnauthorizedLogin: there is none.
    :raises Fault: 454 4.7.0: it could not be told whether it is good.
    """
    tls = credentials.client.tls
    if tls is None or not tls.certificate:
        if tls is not None and tls.undecided:
            raise Fault(AUTH_UNAVAILABLE, tls.undecided)
        raise UnauthorizedLogin((tls.distrust if tls is not None else "") or "no client certificate")
    try:
        return x509.load_der_x509_certificate(tls.certificate)
    except _UNREADABLE as error:
        raise UnauthorizedLogin(f"the client certificate cannot be read: {error}") from None


def _closed(state: AccountState) -> str:
    reasons = {
        "account disabled": state.disabled,
        "account expired": state.expired,
        "account locked": state.locked,
        "not at this time of day": state.off_hours,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _decoded(octets: bytes, kind: Any) -> Any:
    if len(octets) > _LONGEST_VALUE:
        raise ValueError("a SID or UPN that is too long")
    try:
        value, rest = decoder.decode(octets, asn1Spec=kind)
    except Exception:  # pyasn1 has more kinds than PyAsn1Error
        raise ValueError("not the ASN.1 that it should be") from None
    if rest:
        raise ValueError("octets behind the ASN.1")
    return value


def _issuer(certificate: x509.Certificate) -> str:
    """The issuer as CertNameToStr spells it, in the order of the certificate."""
    return ",".join("+".join(map(_attribute, rdn)) for rdn in certificate.issuer.rdns)


def _attribute(attribute: x509.NameAttribute[Any]) -> str:
    oid, value = attribute.oid.dotted_string, attribute.value
    text = value if isinstance(value, str) else f"#{value.hex()}"
    if not text or _QUOTED.search(text):
        text = '"' + text.replace('"', '""') + '"'
    return f"{_TYPES.get(oid, f'OID.{oid}')}={text}"


def _serials(number: int) -> tuple[str, ...]:
    """A serial number in hexadecimal, least octet first; with the leading zero of its DER and without."""
    octets = number.to_bytes((number.bit_length() + 7) // 8 or 1, "little")
    return (octets.hex(), *((octets + b"\0").hex() for _ in range(octets[-1] >> 7)))
