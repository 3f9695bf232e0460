"""Tokens of GSS-API seen from outside: what is said of good ones, and that hostile ones are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spnego._spnego import NegTokenInit, NegTokenResp

from relayd.auth import gss_token
from tests.unit.auth.test_der import tlv

KERBEROS_OID = b"\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02"
MOST = 65536
READERS = (gss_token.mechanism, gss_token.kerberos_token, gss_token.request, gss_token.ticket)


def number(value: int) -> bytes:
    return tlv(2, bytes([value]))


def name(components: Sequence[bytes]) -> bytes:
    """A PrincipalName (RFC 4120 5.2.2)."""
    return tlv(0x30, tlv(0xA0, number(2)) + tlv(0xA1, tlv(0x30, b"".join(tlv(0x1B, part) for part in components))))


def token(
    service: bytes = name([b"smtp", b"relay.corp.example"]),
    realm: bytes = b"CORP.EXAMPLE",
    kvno: bytes = tlv(0xA1, number(3)),
    cipher: bytes = b"secret",
) -> bytes:
    """An initial Kerberos token with an AP-REQ (RFC 4120 5.5.1)."""
    encrypted = tlv(0x30, tlv(0xA0, number(18)) + kvno + tlv(0xA2, tlv(4, cipher)))
    fields = (tlv(0xA0, number(5)), tlv(0xA1, tlv(0x1B, realm)), tlv(0xA2, service), tlv(0xA3, encrypted))
    ticket = tlv(0x61, tlv(0x30, b"".join(fields)))
    authenticator = tlv(0x30, tlv(0xA0, number(18)) + tlv(0xA2, tlv(4, b"secret")))
    message = (
        tlv(0xA0, number(5)),
        tlv(0xA1, number(14)),
        tlv(0xA2, b"\x03\x05\x00\x20\x00\x00\x00"),
        tlv(0xA3, ticket),
        tlv(0xA4, authenticator),
    )
    return framed(b"\x01\x00" + tlv(0x6E, tlv(0x30, b"".join(message))))


def framed(inner: bytes, oid: bytes = KERBEROS_OID) -> bytes:
    """As RFC 2743 3.1 has it."""
    return tlv(0x60, oid + inner)


def nested(tag: int, prefix: bytes = b"") -> bytes:
    """As deep as a token can be."""
    octets = b""
    while len(octets) + len(prefix) + 8 < MOST:
        octets = tlv(tag, prefix + octets)
    return octets


def _content(octets: bytes) -> bytes:
    """Of the one element that *octets* are."""
    long = octets[1] & 0x7F if octets[1] & 0x80 else 0
    return octets[2 + long :]


class TestMechanism:
    @pytest.mark.parametrize(
        ("octets", "found"),
        [
            (token(), gss_token.KERBEROS),
            (NegTokenInit([gss_token.KERBEROS]).pack(), gss_token.SPNEGO),
            (_content(NegTokenInit([gss_token.KERBEROS]).pack())[8:], gss_token.SPNEGO),  # without its frame
            (b"NTLMSSP\0\1\0\0\0", gss_token.NTLMSSP),
            (framed(b"", b"\x06\x01\x2a"), "1.2"),
        ],
    )
    def test_of_an_initial_token(self, octets: bytes, found: str) -> None:
        assert gss_token.mechanism(octets) == found

    @pytest.mark.parametrize("octets", [b"", b"hello", bytes(MOST), b"\xa1\x02\x30\x00"])
    def test_of_no_token(self, octets: bytes) -> None:
        with pytest.raises(ValueError, match="no token"):
            gss_token.mechanism(octets)

    @pytest.mark.parametrize(
        "octets",
        [
            b"\x60",
            b"\x60" + b"\xff" * 65535,
            framed(b"", tlv(6, b"\x81" * 65000 + b"\x01")),
            framed(b"", tlv(6, b"\x01" * 65000)),
            framed(b"", tlv(6, b"\x01" * 65)),
            framed(b"", b"\x06\x00"),
            framed(b"", b"\x04\x01\x2a"),
            token()[:-1],
            token() + b"x",
            nested(0x60),
        ],
    )
    def test_without_one(self, octets: bytes) -> None:
        with pytest.raises(ValueError, match="without a mechanism"):
            gss_token.mechanism(octets)

    def test_of_spnego_without_end(self) -> None:
        frame = NegTokenInit([gss_token.KERBEROS] * 5000).pack()
        for octets in (frame, _content(frame)[8:]):
            with pytest.raises(ValueError, match="more than 64"):
                gss_token.mechanism(octets)


class TestKerberosToken:
    def test_as_it_is(self) -> None:
        assert gss_token.kerberos_token(token()) == token()

    def test_by_spnego(self) -> None:
        first = NegTokenInit([gss_token.KERBEROS], mech_token=token()).pack()
        assert gss_token.kerberos_token(first) == token()
        assert gss_token.kerberos_token(_content(first)[8:]) == token()  # without its frame
        assert gss_token.kerberos_token(NegTokenResp(response_token=token()).pack()) == token()

    @pytest.mark.parametrize("octets", [NegTokenInit([gss_token.KERBEROS]).pack(), NegTokenResp().pack()])
    def test_spnego_without_one(self, octets: bytes) -> None:
        with pytest.raises(ValueError, match="without a token"):
            gss_token.kerberos_token(octets)

    def test_cut_short_or_too_long(self) -> None:
        for octets in (token(), NegTokenInit([gss_token.KERBEROS], mech_token=token()).pack()):
            for length in range(len(octets)):
                with pytest.raises(ValueError, match="cut short"):
                    gss_token.kerberos_token(octets[:length])
            with pytest.raises(ValueError, match="1 octets behind"):
                gss_token.kerberos_token(octets + b"x")

    @pytest.mark.parametrize(
        ("octets", "reason"),
        [
            (NegTokenInit([gss_token.KERBEROS] * 5000, mech_token=b"x").pack(), "more than 64"),
            (NegTokenInit(["1" + ".2" * 60000], mech_token=b"x").pack(), "no OID"),
            (tlv(0xA1, tlv(0x30, b"\xa5\x00" * 32000)), "more than 16"),
            (tlv(0xA1, nested(0x30)), "cut short|without a token"),
            (tlv(0xA0, nested(0x30)), "cut short|without a token|expected"),
        ],
    )
    def test_spnego_without_end(self, octets: bytes, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            gss_token.kerberos_token(octets)

    def test_one_level_of_spnego_is_taken_off(self) -> None:
        inner = NegTokenResp(response_token=token()).pack()
        assert gss_token.kerberos_token(NegTokenResp(response_token=inner).pack()) == inner


class TestTicket:
    def test_what_it_is_for(self) -> None:
        assert gss_token.ticket(token()) == "smtp/relay.corp.example@CORP.EXAMPLE, kvno 3"
        assert gss_token.ticket(token(kvno=b"")) == "smtp/relay.corp.example@CORP.EXAMPLE, no kvno"

    def test_a_large_one(self) -> None:
        assert gss_token.ticket(token(cipher=bytes(65000))) == "smtp/relay.corp.example@CORP.EXAMPLE, kvno 3"

    def test_names_stay_on_the_line(self) -> None:
        said = gss_token.ticket(token(service=name([b"\r\n250 \xff" + b"x" * 60000])))
        assert said.isprintable()
        assert len(said) < 1200

    @pytest.mark.parametrize(
        "octets",
        [
            b"",
            b"\x60",
            framed(b""),
            framed(b"\x01\x00"),
            framed(b"\x01\x00" + nested(0x6E)[:65000]),
            framed(b"\x01\x00" + nested(0x30)[:65000]),
            framed(b"\x01\x00" + tlv(0x6E, tlv(0x30, b"\x05\x00" * 32000))),
            framed(b"\x01\x00" + tlv(0x6E, tlv(0x30, b""))),
            token(service=name([b""] * 32000)),
            token(service=name([b"a"] * 17)),
            token(service=nested(0x30)[:65000]),
            token(service=tlv(0x30, b"")),
            token(kvno=tlv(0xA1, tlv(2, bytes(60000)))),
            token(kvno=tlv(0xA1, b"")),
            nested(0x60, KERBEROS_OID),
            NegTokenInit([gss_token.KERBEROS], mech_token=token()).pack(),
        ],
    )
    def test_none(self, octets: bytes) -> None:
        with pytest.raises(ValueError, match="no AP-REQ"):
            gss_token.ticket(octets)


@given(st.binary(max_size=300))
def test_nonsense(octets: bytes) -> None:
    for read in READERS:
        for prefix in (b"", b"\x60", b"\x60\x81\x80" + KERBEROS_OID + b"\x01\x00\x6e", b"\xa0", b"\xa1"):
            _complain(read, prefix + octets)


@given(st.data())
def test_a_few_octets_wrong(data: st.DataObject) -> None:
    octets = bytearray(NegTokenInit([gss_token.KERBEROS], mech_token=token()).pack())
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    for read in READERS:
        _complain(read, bytes(octets))
        _complain(read, bytes(octets[-len(token()) :]))


def _complain(read: Callable[[bytes], object], octets: bytes) -> None:
    """No other exception than ValueError passes, and what is said fits on a line of the log."""
    try:
        said = str(read(octets))
    except ValueError as error:
        said = str(error)
        assert said.isprintable()
        assert 0 < len(said) < 200
