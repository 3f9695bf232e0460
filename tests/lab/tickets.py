"""Kerberos initiators, and tickets as no controller of the lab makes them: expired, of another key version, huge.

A service ticket is encrypted with its service's key, which is in the lab's keytab: so a real one can be opened, changed
and closed again, and libkrb5 sends it as any other. It needs gssapi, krb5 and impacket.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import gssapi
import krb5
from impacket.krb5 import asn1, crypto
from pyasn1.codec.der import decoder, encoder

__all__ = [
    "KERBEROS",
    "SERVICE",
    "SPNEGO",
    "edited",
    "edited_pac",
    "initiator",
    "named",
    "skewed",
    "with_groups",
    "without_validity",
]

KERBEROS = gssapi.OID.from_int_seq("1.2.840.113554.1.2.2")
SPNEGO = gssapi.OID.from_int_seq("1.3.6.1.5.5.2")
SERVICE = "smtp/relay.lab.example"

AES256, TICKET_USAGE, AUTHENTICATOR_USAGE, PAC_USAGE = 18, 2, 11, 17  # RFC 3962 7, RFC 4120 7.5.1, MS-PAC 2.8.1
PAC, LOGON_INFO, SERVER_CHECKSUM, KDC_CHECKSUM = 128, 1, 6, 7


def initiator(
    cache: Path,
    service: str = SERVICE,
    mechanism: gssapi.OID = KERBEROS,
    binding: bytes = b"",
    flags: list[gssapi.RequirementFlag] | None = None,
) -> gssapi.SecurityContext:
    """An initiator with the tickets of `cache`; its first `step` takes no token. KRB5_CONFIG must be the lab's.

    :param flags: what it asks for; None: what gssapi asks for, mutual authentication among it.
    """
    return gssapi.SecurityContext(
        name=gssapi.Name(f"{service}@LAB.EXAMPLE", gssapi.NameType.kerberos_principal),
        creds=gssapi.Credentials(usage="initiate", mechs=[KERBEROS, SPNEGO], store={"ccache": f"FILE:{cache}"}),
        usage="initiate",
        mech=mechanism,
        flags=flags,
        channel_bindings=gssapi.raw.ChannelBindings(application_data=binding) if binding else None,
    )


def skewed(cache: Path, seconds: int) -> Path:
    """A cache with the tickets of `cache`, whose owner's clock goes fast by some seconds.

    A cache notes how far its host's clock is from the controller's (MIT's file format 4, tag 1), and libkrb5 makes up
    for that.
    """
    octets = cache.read_bytes()
    header = struct.pack(">HHii", 1, 8, seconds, 0)
    behind = 4 + int.from_bytes(octets[2:4], "big")
    return _beside(cache, octets[:2] + len(header).to_bytes(2, "big") + header + octets[behind:])


def edited(
    cache: Path,
    keytab: Path,
    change: Callable[[asn1.EncTicketPart], None] = lambda _: None,
    kvno: int | None = None,
    key: bytes = b"",
) -> Path:
    """A cache with the tickets of `cache`, the one for `SERVICE` changed inside.

    :param change: changes its encrypted part in place.
    :param kvno: the key version that it says it is encrypted with.
    :param key: what it is encrypted with; empty: the service's key.
    """
    initiator(cache).step()  # the controller makes the ticket
    context = krb5.init_context()
    stored = krb5.cc_resolve(context, f"FILE:{cache}".encode())
    (octets,) = (each.ticket for each in stored if each.server.name == f"{SERVICE}@LAB.EXAMPLE".encode())
    ticket = decoder.decode(octets, asn1Spec=asn1.Ticket())[0]
    own = crypto.Key(AES256, _key(keytab))
    plain = crypto.decrypt(own, TICKET_USAGE, bytes(ticket["enc-part"]["cipher"]))
    inside = decoder.decode(plain, asn1Spec=asn1.EncTicketPart())[0]
    change(inside)
    closing = crypto.Key(AES256, key) if key else own
    ticket["enc-part"]["cipher"] = crypto.encrypt(closing, TICKET_USAGE, encoder.encode(inside), os.urandom(16))
    if kvno is not None:
        ticket["enc-part"]["kvno"] = kvno
    changed = encoder.encode(ticket)
    old, new = (len(each).to_bytes(4, "big") + each for each in (octets, changed))
    assert cache.read_bytes().count(old) == 1
    return _beside(cache, cache.read_bytes().replace(old, new))


def named(cache: Path, keytab: Path, components: list[str], realm: str) -> bytes:
    """An initial token (RFC 4121 4.1) of somebody called so, by the ticket of `cache` for `SERVICE`; without a PAC."""

    def rename(inside: asn1.EncTicketPart) -> None:
        _name(inside, components, realm)
        inside["authorization-data"].clear()

    context = krb5.init_context()
    stored = krb5.cc_resolve(context, f"FILE:{edited(cache, keytab, rename)}".encode())
    (octets,) = (each.ticket for each in stored if each.server.name == f"{SERVICE}@LAB.EXAMPLE".encode())
    ticket = decoder.decode(octets, asn1Spec=asn1.Ticket())[0]
    plain = crypto.decrypt(crypto.Key(AES256, _key(keytab)), TICKET_USAGE, bytes(ticket["enc-part"]["cipher"]))
    key = decoder.decode(plain, asn1Spec=asn1.EncTicketPart())[0]["key"]
    now = datetime.now(UTC)
    authenticator = asn1.Authenticator()
    authenticator["authenticator-vno"] = 5
    _name(authenticator, components, realm)
    authenticator["cusec"], authenticator["ctime"] = now.microsecond, now.strftime("%Y%m%d%H%M%SZ")
    # RFC 4121 4.1.1: no bindings, and GSS_C_INTEG_FLAG.
    authenticator["cksum"]["cksumtype"] = 0x8003
    authenticator["cksum"]["checksum"] = struct.pack("<I16xI", 16, 0x20)
    session = crypto.Key(int(key["keytype"]), bytes(key["keyvalue"]))
    sealed = crypto.encrypt(session, AUTHENTICATOR_USAGE, encoder.encode(authenticator), os.urandom(16))
    request = asn1.AP_REQ()
    request["pvno"], request["msg-type"], request["ap-options"] = 5, 14, "0" * 32
    request["ticket"]["tkt-vno"], request["ticket"]["realm"] = 5, str(ticket["realm"])
    request["ticket"]["sname"]["name-type"] = int(ticket["sname"]["name-type"])
    for index, component in enumerate(ticket["sname"]["name-string"]):
        request["ticket"]["sname"]["name-string"][index] = str(component)
    for each in ("etype", "kvno", "cipher"):
        request["ticket"]["enc-part"][each] = ticket["enc-part"][each]
    request["authenticator"]["etype"], request["authenticator"]["cipher"] = int(key["keytype"]), sealed
    message = bytes.fromhex("06092a864886f712010202") + b"\1\0" + encoder.encode(request)  # RFC 2743 3.1, KRB_AP_REQ
    return b"\x60\x82" + len(message).to_bytes(2, "big") + message


def _name(whose: asn1.EncTicketPart | asn1.Authenticator, components: list[str], realm: str) -> None:
    whose["crealm"] = realm
    whose["cname"]["name-type"] = 1
    whose["cname"]["name-string"].clear()
    for index, component in enumerate(components):
        whose["cname"]["name-string"][index] = component


def without_validity(inside: asn1.EncTicketPart) -> None:
    """Makes it a ticket that ended long ago."""
    for name in ("authtime", "starttime", "endtime", "renew-till"):
        inside[name] = "20200101000000Z"


def edited_pac(
    keytab: Path, change: Callable[[bytes], bytes], sign: bool = True
) -> Callable[[asn1.EncTicketPart], None]:
    """For `edited`: changes KERB_VALIDATION_INFO in the ticket's PAC.

    :param sign: with the service's key, as the controller would.
    """

    def edit(inside: asn1.EncTicketPart) -> None:
        held = decoder.decode(bytes(inside["authorization-data"][0]["ad-data"]), asn1Spec=asn1.AuthorizationData())[0]
        assert int(held[0]["ad-type"]) == PAC
        held[0]["ad-data"] = _pac_with(bytes(held[0]["ad-data"]), change, _key(keytab) if sign else b"")
        inside["authorization-data"][0]["ad-data"] = encoder.encode(held)

    return edit


def with_groups(count: int) -> Callable[[bytes], bytes]:
    """For `edited_pac`: adds groups with the RIDs 100000 and up."""

    def add(logon: bytes) -> bytes:
        # MS-PAC 2.5: GroupCount is at 128, and the list begins with its length, as NDR has it.
        had = struct.unpack_from("<I", logon, 128)[0]
        domain_users = struct.pack("<II", 513, 7)
        at = logon.index(struct.pack("<I", had) + domain_users)
        more = b"".join(struct.pack("<II", 100000 + index, 7) for index in range(count))
        end = at + 4 + 8 * had
        changed = logon[:at] + struct.pack("<I", had + count) + logon[at + 4 : end] + more + logon[end:]
        changed = changed[:128] + struct.pack("<I", had + count) + changed[132:]
        # MS-RPCE 2.2.6.2: how long the object is.
        return changed[:8] + struct.pack("<I", len(changed) - 16) + changed[12:]

    return add


def _pac_with(pac: bytes, change: Callable[[bytes], bytes], key: bytes) -> bytes:
    # MS-PAC 2.3, 2.4: a count and a version, then type, size and offset of each buffer, then these, each at a multiple
    # of eight.
    count, version = struct.unpack_from("<II", pac)
    heads = [struct.unpack_from("<IIQ", pac, 8 + 16 * index) for index in range(count)]
    buffers = [(kind, pac[offset : offset + size]) for kind, size, offset in heads]
    buffers = [(kind, change(octets) if kind == LOGON_INFO else octets) for kind, octets in buffers]
    if not key:
        return _pac_of(version, buffers)
    # MS-PAC 2.8.1: both signatures are zeros while the first is made.
    zeroed = [
        (kind, octets[:4] + bytes(12) if kind in (SERVER_CHECKSUM, KDC_CHECKSUM) else octets)
        for kind, octets in buffers
    ]
    made = crypto.make_checksum(
        crypto.Cksumtype.SHA1_AES256, crypto.Key(AES256, key), PAC_USAGE, _pac_of(version, zeroed)
    )
    return _pac_of(
        version, [(kind, octets[:4] + made if kind == SERVER_CHECKSUM else octets) for kind, octets in buffers]
    )


def _pac_of(version: int, buffers: list[tuple[int, bytes]]) -> bytes:
    heads, body = struct.pack("<II", len(buffers), version), b""
    start = 8 + 16 * len(buffers)
    for kind, octets in buffers:
        heads += struct.pack("<IIQ", kind, len(octets), start + len(body))
        body += octets + bytes(-len(octets) % 8)
    return heads + body


def _key(keytab: Path) -> bytes:
    context = krb5.init_context()
    principal = krb5.parse_name_flags(context, f"{SERVICE}@LAB.EXAMPLE".encode())
    entry = krb5.kt_get_entry(context, krb5.kt_resolve(context, f"FILE:{keytab}".encode()), principal, 0, AES256)
    return bytes(entry.key.data)


def _beside(cache: Path, octets: bytes) -> Path:
    made = Path(tempfile.mkdtemp(prefix="edited-", dir=cache.parent)) / "cache"
    made.write_bytes(octets)
    return made
