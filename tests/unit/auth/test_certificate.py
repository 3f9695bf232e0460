"""Which account a client certificate belongs to, and which certificates belong to none."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from contextlib import suppress
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from twisted.cred.error import UnauthorizedLogin

from relayd.auth.certificate import (
    CertificateChecker,
    certificate_name,
    certificate_sid,
    certificate_upn,
    strong_mappings,
)
from relayd.auth.credentials import ClientCertificate
from relayd.directory import AccountState, Unavailable, User
from relayd.model import Client, Fault, Peer, Principal, Tls, client_address
from tests.lab.ca import LabCA, Leaf
from tests.unit.auth.test_directory import ALICE, result

BOB = User(dn="CN=bob,DC=corp", name="bob", upn="bob@corp.example", sid="S-1-5-21-1-2-3-1002")
SECURITY = x509.ObjectIdentifier("1.3.6.1.4.1.311.25.2")


class FakeDirectory:
    def __init__(self) -> None:
        self.users = {"alice": ALICE, "alice@corp.example": ALICE, "CORP\\alice": ALICE, "bob": BOB}
        self.sids = {ALICE.sid: ALICE, BOB.sid: BOB}
        self.mappings: dict[str, User] = {}
        self.asked: list[object] = []
        self.fault: Exception | None = None

    async def find(self, name: str, default_domain: str = "", *, fresh: bool = False) -> User | None:
        self.asked.append((name, default_domain))
        return self.users.get(name)

    async def find_sid(self, sid: str, *, fresh: bool = False) -> User | None:
        self.asked.append(sid)
        if self.fault is not None:
            raise self.fault
        return self.sids.get(sid)

    async def find_mapping(self, identities: tuple[str, ...], *, fresh: bool = False) -> User | None:
        self.asked.append(identities)
        found = {self.mappings[one].dn: self.mappings[one] for one in identities if one in self.mappings}
        return next(iter(found.values())) if len(found) == 1 else None


class Setting:
    def __init__(self, ca: LabCA) -> None:
        self.ca = ca
        self.directory = FakeDirectory()

    def login(self, shown: Leaf | Tls | None, authorise: str = "", client_map: str = "sid") -> Principal:
        checker = CertificateChecker(
            self.directory,  # type: ignore[arg-type]
            client_map,
            {"smtp": "corp.example"}.__getitem__,
        )
        if isinstance(shown, Leaf):
            shown = Tls("TLSv1.3", "", certificate=shown.certificate.public_bytes(Encoding.DER))
        client = Client(Peer(client_address("192.0.2.7")), "smtp", tls=shown)
        principal: Principal = result(checker.requestAvatarId(ClientCertificate(authorise, client)))
        return principal

    def refused(self, *arguments: Any, **more: Any) -> str:
        with pytest.raises(UnauthorizedLogin) as caught:
            self.login(*arguments, **more)
        return str(caught.value)

    def deferred(self, *arguments: Any, **more: Any) -> str:
        with pytest.raises(Fault) as caught:
            self.login(*arguments, **more)
        assert str(caught.value.reply).startswith("454 4.7.0")
        return caught.value.detail


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> LabCA:
    return LabCA(tmp_path_factory.mktemp("ca"), "clients")


@pytest.fixture
def setting(ca: LabCA) -> Setting:
    return Setting(ca)


def made(issuer: x509.Name, serial: int = 1, *extensions: tuple[x509.ExtensionType, bool]) -> x509.Certificate:
    """A certificate with anything in it, signed by nobody in particular."""
    key = ec.generate_private_key(ec.SECP256R1())
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), serial, start, start.replace(year=2027))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, hashes.SHA256())


def name(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


class TestSid:
    def test_alice(self, setting: Setting) -> None:
        leaf = setting.ca.leaf("whoever", client=True, sid=ALICE.sid)
        assert setting.login(leaf) == Principal(
            name="alice",
            mechanism="EXTERNAL",
            source="certificate",
            upn="alice@corp.example",
            sid=ALICE.sid,
            groups=ALICE.groups,
            addresses=ALICE.addresses,
        )

    def test_of_nobody(self, setting: Setting) -> None:
        """A deleted account's certificate is not somebody else's, whatever else is mapped to it."""
        leaf = setting.ca.leaf("alice", client=True, sid="S-1-5-21-1-2-3-9999", upn="alice@corp.example")
        setting.directory.mappings = dict.fromkeys(strong_mappings(leaf.certificate), ALICE)
        assert setting.refused(leaf) == "no account for CN=alice by sid"

    def test_names_and_addresses_are_not_looked_at(self, setting: Setting) -> None:
        setting.refused(setting.ca.leaf("alice", "alice@corp.example", client=True, upn="alice@corp.example"))
        (asked,) = setting.directory.asked
        assert all(one.startswith(("X509:<I>", "X509:<SKI>", "X509:<SHA1-PUKEY>")) for one in asked)  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        "octets",
        [
            b"",
            b"\x30\x00",
            b"S-1-5-21-1-2-3-1001",
            b"\x30\x03\x82\x01a",  # a dNSName
            bytes.fromhex("3018a01606052b0601040101a00d040b") + b"S-1-5-21-1-",
            b"\x30\x82\xea\x60" + b"\xa0\x00" * 30000,
            b"\x30\x82\xea\x60\xa0\x82\xea\x5c\x06\x82\xea\x58" + b"\x01" * 60000,
        ],
    )
    def test_unreadable(self, setting: Setting, octets: bytes) -> None:
        certificate = made(name(), 1, (x509.UnrecognizedExtension(SECURITY, octets), False))
        with pytest.raises(ValueError, match=r".*"):
            certificate_sid(certificate)
        tls = Tls("TLSv1.3", "", certificate=certificate.public_bytes(Encoding.DER))
        assert "cannot be read" in setting.refused(tls)
        assert not setting.directory.asked

    @pytest.mark.parametrize("sid", ["S-1-5-21-1*", "alice", "S-1-", "S-1-5-21-1-2-3-1001\0", " S-1-5-21-1"])
    def test_no_sid(self, setting: Setting, sid: str) -> None:
        assert "cannot be read" in setting.refused(setting.ca.leaf("alice", client=True, sid=sid))
        assert not setting.directory.asked


@given(st.binary(max_size=64))
def test_any_octets_are_a_sid_or_a_value_error(octets: bytes) -> None:
    certificate = _Extended(octets)
    with suppress(ValueError):
        assert certificate_sid(certificate).startswith("S-1-")  # type: ignore[arg-type]
    with suppress(ValueError):
        assert isinstance(certificate_upn(certificate), str)  # type: ignore[arg-type]


class _Extended:
    """A certificate with the same octets wherever they are read."""

    def __init__(self, octets: bytes) -> None:
        name = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), octets)
        extensions = [x509.UnrecognizedExtension(SECURITY, octets), x509.SubjectAlternativeName([name])]
        self.extensions = x509.Extensions([x509.Extension(one.oid, False, one) for one in extensions])


class TestMappings:
    @pytest.mark.parametrize("kind", ["X509:<I>CN=clients<SR>", "X509:<SKI>", "X509:<SHA1-PUKEY>"])
    def test_each_kind(self, setting: Setting, kind: str) -> None:
        leaf = setting.ca.leaf("whoever", client=True)
        mappings = [mapping for mapping in strong_mappings(leaf.certificate) if mapping.startswith(kind)]
        assert mappings
        for mapping in mappings:
            setting.directory.mappings = {mapping: BOB}
            assert setting.login(leaf).name == "bob"

    def test_of_two_accounts(self, setting: Setting) -> None:
        leaf = setting.ca.leaf("whoever", client=True)
        one, other, *_ = strong_mappings(leaf.certificate)
        setting.directory.mappings = {one: BOB, other: ALICE}
        assert setting.refused(leaf) == "no account for CN=whoever by sid"

    def test_the_example_of_kb5014754(self) -> None:
        """CN=CONTOSO-DC-CA, DC=contoso, DC=com with 2B0000000011AC0000000012, as Windows shows them."""
        dc = NameOID.DOMAIN_COMPONENT
        issuer = name((dc, "com"), (dc, "contoso"), (NameOID.COMMON_NAME, "CONTOSO-DC-CA"))
        mapping, *_ = strong_mappings(made(issuer, 0x2B0000000011AC0000000012))
        assert mapping == "X509:<I>DC=com,DC=contoso,CN=CONTOSO-DC-CA<SR>1200000000ac11000000002b"

    def test_names_as_windows_spells_them(self) -> None:
        issuer = name(
            (NameOID.COUNTRY_NAME, "US"),
            (NameOID.STATE_OR_PROVINCE_NAME, "New York"),
            (NameOID.ORGANIZATION_NAME, 'Lab "9", Inc.'),
            (NameOID.ORGANIZATIONAL_UNIT_NAME, " U.S. "),
            (NameOID.EMAIL_ADDRESS, "ca@lab.example"),
            (NameOID.USER_ID, "ca1"),
            (NameOID.COMMON_NAME, "Bücher"),
        )
        mapping, *_ = strong_mappings(made(issuer, 1))
        assert mapping == (
            'X509:<I>C=US,S=New York,O="Lab ""9"", Inc.",OU=" U.S. ",E=ca@lab.example,'
            "OID.0.9.2342.19200300.100.1.1=ca1,CN=Bücher<SR>01"
        )

    def test_a_serial_number_with_its_sign_octet_or_without(self) -> None:
        found = strong_mappings(made(name((NameOID.COMMON_NAME, "ca")), 0xA1B2C3))
        assert found[:2] == ("X509:<I>CN=ca<SR>c3b2a1", "X509:<I>CN=ca<SR>c3b2a100")

    def test_keys(self, ca: LabCA) -> None:
        certificate = ca.leaf("whoever", client=True).certificate
        key = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest.hex()
        assert {f"X509:<SKI>{key}", f"X509:<SHA1-PUKEY>{key}"} < set(strong_mappings(certificate))

    def test_without_issuer_or_key_identifier(self) -> None:
        assert all(one.startswith("X509:<SHA1-PUKEY>") for one in strong_mappings(made(name())))

    def test_none_of_them_is_the_thumbprint_or_a_name(self, ca: LabCA) -> None:
        certificate = ca.leaf("alice", client=True).certificate
        thumbprint = hashlib.sha1(certificate.public_bytes(Encoding.DER)).hexdigest()
        for mapping in strong_mappings(certificate):
            assert thumbprint not in mapping
            assert "alice" not in mapping


class TestUpn:
    def test_alice(self, setting: Setting) -> None:
        leaf = setting.ca.leaf("whoever", client=True, upn="alice@corp.example")
        assert setting.login(leaf, client_map="upn").name == "alice"

    def test_the_sid_is_not_looked_at(self, setting: Setting) -> None:
        leaf = setting.ca.leaf("whoever", client=True, upn="alice@corp.example", sid=BOB.sid)
        assert setting.login(leaf, client_map="upn").name == "alice"

    def test_a_dns_name_is_none(self, setting: Setting) -> None:
        leaf = setting.ca.leaf("alice@corp.example", client=True)
        assert setting.refused(leaf, client_map="upn") == "no account for CN=alice@corp.example by upn"
        assert not setting.directory.asked

    @pytest.mark.parametrize("upn", ["alice", "CORP\\alice", "S-1-5-21-1-2-3-1001"])
    def test_no_upn(self, setting: Setting, upn: str) -> None:
        setting.refused(setting.ca.leaf("whoever", client=True, upn=upn), client_map="upn")
        assert not setting.directory.asked

    def test_several(self, setting: Setting) -> None:
        kind = x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")
        values = [b"\x0c\x05a@b.c", b"\x0c\x05d@e.f"]
        names = x509.SubjectAlternativeName([x509.OtherName(kind, value) for value in values])
        certificate = made(name(), 1, (names, False))
        with pytest.raises(ValueError, match="several"):
            certificate_upn(certificate)
        tls = Tls("TLSv1.3", "", certificate=certificate.public_bytes(Encoding.DER))
        assert "cannot be read" in setting.refused(tls, client_map="upn")

    @pytest.mark.parametrize("value", [b"\x04\x05a@b.c", b"\x0c\x05a@b.c\x00", b"\x0c\x82\xea\x60" + b"@" * 60000])
    def test_unreadable(self, value: bytes) -> None:
        other = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), value)
        with pytest.raises(ValueError, match=r".*"):
            certificate_upn(made(name(), 1, (x509.SubjectAlternativeName([other]), False)))


class TestState:
    @pytest.mark.parametrize(
        ("field", "why"),
        [
            ("disabled", "account disabled"),
            ("expired", "account expired"),
            ("locked", "account locked"),
            ("off_hours", "not at this time of day"),
            ("must_change", ""),
            ("password_expired", ""),
        ],
    )
    def test_each(self, setting: Setting, field: str, why: str) -> None:
        """A certificate is no password, so the password may be what it likes."""
        leaf = setting.ca.leaf("whoever", client=True, sid=ALICE.sid)
        state = AccountState(**{field: True})
        setting.directory.sids[ALICE.sid] = dataclasses.replace(ALICE, state=state)
        if why:
            assert setting.refused(leaf) == f"{why}: alice of CN=whoever"
        else:
            assert setting.login(leaf).name == "alice"

    def test_one_that_is_hidden_from_relayd_is_no_good_one(self, setting: Setting) -> None:
        setting.directory.sids[ALICE.sid] = dataclasses.replace(ALICE, state_known=False)
        assert "hidden" in setting.deferred(setting.ca.leaf("whoever", client=True, sid=ALICE.sid))


class TestAuthorisation:
    @pytest.mark.parametrize("own", ["alice", "CORP\\alice", "alice@corp.example", "al\u00adice"])
    def test_own(self, setting: Setting, own: str) -> None:
        assert setting.login(setting.ca.leaf("x", client=True, sid=ALICE.sid), own).name == "alice"

    @pytest.mark.parametrize("other", ["bob", "nobody", "a\x07", "*"])
    def test_nobody_acts_for_another(self, setting: Setting, other: str) -> None:
        leaf = setting.ca.leaf("x", client=True, sid=ALICE.sid)
        assert setting.refused(leaf, other) == f"asks to act as {other!r}, and is alice"

    def test_bare_names_belong_to_the_listeners_domain(self, setting: Setting) -> None:
        setting.login(setting.ca.leaf("x", client=True, sid=ALICE.sid), "alice")
        assert setting.directory.asked[-1] == ("alice", "corp.example")


class TestNoCertificate:
    @pytest.mark.parametrize(
        ("tls", "why"),
        [
            (None, "no client certificate"),
            (Tls("TLSv1.3", ""), "no client certificate"),
            (Tls("TLSv1.3", "", distrust="CN=x: it is revoked"), "CN=x: it is revoked"),
        ],
    )
    def test_is_a_refusal(self, setting: Setting, tls: Tls | None, why: str) -> None:
        assert setting.refused(tls) == why

    def test_one_that_nobody_can_judge_is_temporary(self, setting: Setting) -> None:
        assert setting.deferred(Tls("TLSv1.3", "", undecided="the list has expired")) == "the list has expired"

    def test_a_sick_directory_is_temporary(self, setting: Setting) -> None:
        setting.directory.fault = Unavailable("gone")
        assert "gone" in setting.deferred(setting.ca.leaf("x", client=True, sid=ALICE.sid))

    def test_garbage(self, setting: Setting) -> None:
        assert "cannot be read" in setting.refused(Tls("TLSv1.3", "", certificate=b"garbage"))


class TestName:
    def test_is_one_short_line(self) -> None:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a\r\n\x1b[2J")])
        certificate = made(subject)
        assert certificate_name(certificate) == "CN=x"
        assert certificate_name(_Named(subject)).isprintable()  # type: ignore[arg-type]

    def test_without_a_subject(self) -> None:
        assert certificate_name(_Named(x509.Name([]))) == "certificate ff"  # type: ignore[arg-type]

    def test_of_one_that_is_too_large_to_be_spelled(self) -> None:
        novel = x509.SubjectAlternativeName([x509.DNSName(f"{number}.corp.example") for number in range(1000)])
        assert certificate_name(made(name(), 1, (novel, False))) != "CN=x"
        assert certificate_name(made(name(), 1, (novel, False))).startswith("certificate ")


class _Named:
    serial_number = 0xFF
    tbs_certificate_bytes = b""

    def __init__(self, subject: x509.Name) -> None:
        self.subject = subject
