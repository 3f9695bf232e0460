"""DER of strangers: what others write is read, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyasn1.codec.der import encoder
from pyasn1.type import univ

from relayd.auth import der


def tlv(tag: int, content: bytes) -> bytes:
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    head = bytes([len(content)]) if len(content) < 128 else bytes([0x80 | len(length)]) + length
    return bytes([tag]) + head + content


class TestElements:
    @given(st.integers(0, 255), st.binary(max_size=70000), st.binary(max_size=5))
    def test_one_and_what_follows(self, tag: int, content: bytes, rest: bytes) -> None:
        assert der.element(tlv(tag, content) + rest) == ((tag, content), rest)

    @pytest.mark.parametrize("length", [1, 100, 200, 300])
    def test_cut_short_anywhere(self, length: int) -> None:
        octets = tlv(0x30, bytes(length))
        for cut in range(len(octets)):
            with pytest.raises(ValueError, match="cut short"):
                der.element(octets[:cut])

    @pytest.mark.parametrize(
        "octets", [b"\x30\x80\x00\x00", b"\x30\x85\x00\x00\x00\x00\x01x", b"\x30\xff" + bytes(200)]
    )
    def test_lengths_of_no_known_form(self, octets: bytes) -> None:
        with pytest.raises(ValueError, match="length"):
            der.element(octets)

    def test_the_whole_of_one(self) -> None:
        assert der.whole(b"\x04\x02ab", der.OCTET_STRING) == b"ab"
        with pytest.raises(ValueError, match="1 octets behind"):
            der.whole(b"\x04\x02abc", der.OCTET_STRING)
        with pytest.raises(ValueError, match="0x4 expected, not 0x5"):
            der.whole(b"\x05\x02ab", der.OCTET_STRING)


class TestSequences:
    def test_children(self) -> None:
        assert der.children(b"\x30\x05\x05\x00\x04\x01x", 2) == [(5, b""), (4, b"x")]
        assert der.children(b"\x30\x00", 0) == []

    def test_no_more_than_there_may_be(self) -> None:
        with pytest.raises(ValueError, match="more than 2"):
            der.children(tlv(0x30, b"\x05\x00" * 30000), 2)

    def test_fields(self) -> None:
        assert der.fields(b"\x30\x05\xa1\x00\xa0\x01x") == {0xA1: b"", 0xA0: b"x"}
        with pytest.raises(ValueError, match="more than 16"):
            der.fields(tlv(0x30, b"\xa0\x00" * 30000))
        with pytest.raises(ValueError, match="twice"):
            der.fields(tlv(0x30, b"\xa0\x00" * 2))


class TestIntegers:
    @given(st.integers(-(2**62), 2**63 - 1))
    def test_as_others_write_them(self, number: int) -> None:
        assert der.integer(encoder.encode(univ.Integer(number))) == number

    @pytest.mark.parametrize("octets", [b"\x02\x00", b"\x02\x09" + bytes(9), tlv(2, bytes(65000)), b"\x04\x01x", b""])
    def test_none(self, octets: bytes) -> None:
        with pytest.raises(ValueError, match=r"INTEGER|expected|cut short"):
            der.integer(octets)


class TestObjectIdentifiers:
    @given(st.lists(st.integers(0, 2**32), max_size=10))
    def test_as_others_write_them(self, arcs: list[int]) -> None:
        name = ".".join(map(str, (1, 2, *arcs)))
        element, _ = der.element(encoder.encode(univ.ObjectIdentifier(name)))
        assert der.oid(element) == name

    @pytest.mark.parametrize(
        "content", [b"", b"\x81", b"\x2a\x81", b"\x01" * 65, b"\x81" * 64000 + b"\x01", b"\x01" * 64000]
    )
    def test_none(self, content: bytes) -> None:
        with pytest.raises(ValueError, match="no OID"):
            der.oid((der.OID, content))

    def test_another_type(self) -> None:
        with pytest.raises(ValueError, match="no OID"):
            der.oid((der.OCTET_STRING, b"\x2a"))


@given(st.binary(max_size=300))
def test_nonsense_is_a_value_error(octets: bytes) -> None:
    readers: list[Callable[[bytes], object]] = [der.element, der.fields, der.integer]
    for read in readers:
        with contextlib.suppress(ValueError):
            read(octets)
