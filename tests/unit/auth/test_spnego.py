"""SPNEGO's tokens as relayd reads them, against those that pyspnego writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spnego._context import GSSMech
from spnego._spnego import NegState, NegTokenInit, NegTokenResp, pack_mech_type_list

from relayd.auth import spnego

KERBEROS, MS_KERBEROS, NTLM, NEGOEX = (
    mechanism.value for mechanism in (GSSMech.kerberos, GSSMech._ms_kerberos, GSSMech.ntlm, GSSMech.negoex)
)
OIDS = st.lists(st.sampled_from([KERBEROS, MS_KERBEROS, NTLM, NEGOEX, "1.2.3.4.5"]), max_size=8)


def complaint(parse: Callable[[bytes], object], token: bytes) -> str:
    """What *parse* raises ValueError with; no other exception passes."""
    try:
        parse(token)
    except ValueError as error:
        return str(error)
    return "SPNEGO: none"


class TestOffer:
    @given(OIDS, st.none() | st.binary(max_size=70000), st.none() | st.binary(max_size=40))
    def test_what_pyspnego_writes(self, mechanisms: list[str], token: bytes | None, mic: bytes | None) -> None:
        offer = spnego.parse_offer(NegTokenInit(mechanisms, mech_token=token, mech_list_mic=mic).pack())
        assert offer is not None
        assert offer.mechanisms == tuple(mechanisms)
        assert offer.token == (token or b"")
        assert offer.mech_list == pack_mech_type_list(mechanisms)
        assert offer.kerberos == bool({KERBEROS, MS_KERBEROS} & set(mechanisms))
        assert offer.ntlm == (NTLM in mechanisms)
        assert offer.prefers_ntlm == (mechanisms[:1] == [NTLM])

    def test_hints_of_windows(self) -> None:
        offer = spnego.parse_offer(NegTokenInit([NTLM], hint_name=b"not_defined_in_RFC4178@please_ignore").pack())
        assert offer is not None
        assert offer.prefers_ntlm

    @pytest.mark.parametrize(
        "token", [b"", b"\x60", b"NTLMSSP\0\1\0\0\0", b"\x60\x05\x06\x03\x2a\x03\x04", b"\xa1\x02\x30\x00"]
    )
    def test_of_others(self, token: bytes) -> None:
        assert spnego.parse_offer(token) is None

    def test_cut_short_anywhere(self) -> None:
        token = NegTokenInit([KERBEROS, NTLM], mech_token=b"x" * 200).pack()
        for length in range(12, len(token)):
            with pytest.raises(ValueError, match="SPNEGO"):
                spnego.parse_offer(token[:length])

    def test_more_behind_it(self) -> None:
        with pytest.raises(ValueError, match="SPNEGO"):
            spnego.parse_offer(NegTokenInit([KERBEROS]).pack() + b"\0")

    def test_without_a_list(self) -> None:
        with pytest.raises(ValueError, match="SPNEGO"):
            spnego.parse_offer(b"\x60\x0c\x06\x06\x2b\x06\x01\x05\x05\x02\xa0\x02\x30\x00")

    def test_a_list_that_never_ends(self) -> None:
        with pytest.raises(ValueError, match="more than 64 elements"):
            spnego.parse_offer(NegTokenInit([NTLM] * 5000).pack())

    @given(st.binary(max_size=300))
    def test_nonsense(self, octets: bytes) -> None:
        for token in (octets, b"\x60" + octets, b"\x60\x81\x80\x06\x06\x2b\x06\x01\x05\x05\x02" + octets):
            assert complaint(spnego.parse_offer, token).startswith("SPNEGO: ")

    @given(st.data())
    def test_a_few_octets_wrong(self, data: st.DataObject) -> None:
        token = bytearray(NegTokenInit([MS_KERBEROS, KERBEROS, NTLM], mech_token=b"token", mech_list_mic=b"mic").pack())
        for _ in range(data.draw(st.integers(1, 4))):
            token[data.draw(st.integers(0, len(token) - 1))] = data.draw(st.integers(0, 255))
        assert complaint(spnego.parse_offer, bytes(token)).startswith("SPNEGO: ")


class TestAnswer:
    @given(
        st.none() | st.binary(max_size=70000), st.none() | st.binary(max_size=40), st.none() | st.sampled_from(NegState)
    )
    def test_what_pyspnego_writes(self, token: bytes | None, mic: bytes | None, state: NegState | None) -> None:
        answer = spnego.parse_answer(NegTokenResp(state, None, token, mic).pack())
        assert answer == spnego.Answer(token or b"", mic or b"")

    @given(st.binary(max_size=300))
    def test_nonsense(self, octets: bytes) -> None:
        for token in (octets, b"\xa1" + octets):
            assert complaint(spnego.parse_answer, token).startswith("SPNEGO: ")

    def test_a_field_that_nobody_knows(self) -> None:
        token = b"\xa1\x0d\x30\x0b\xa2\x03\x04\x01x\xa9\x04\x02\x02\x01\x01"
        assert spnego.parse_answer(token) == spnego.Answer(b"x", b"")

    def test_fields_without_end(self) -> None:
        fields = b"".join(bytes([tag, 0]) for tag in range(0xA0, 0xBF))
        with pytest.raises(ValueError, match="more than 16 elements"):
            spnego.parse_answer(b"\xa1" + bytes([len(fields) + 2]) + b"\x30" + bytes([len(fields)]) + fields)

    def test_a_field_twice(self) -> None:
        with pytest.raises(ValueError, match="twice"):
            spnego.parse_answer(b"\xa1\x0a\x30\x08\xa2\x02\x04\x00\xa2\x02\x04\x00")


class TestChallenge:
    def test_the_first_names_the_mechanism(self) -> None:
        told = NegTokenResp.unpack(_inside(spnego.challenge(b"token", first=True, preferred=True)))
        assert (told.neg_state, told.supported_mech, told.response_token) == (
            NegState.accept_incomplete,
            NTLM,
            b"token",
        )

    def test_a_second_choice_must_be_proven(self) -> None:
        told = NegTokenResp.unpack(_inside(spnego.challenge(b"", first=True, preferred=False)))
        assert (told.neg_state, told.supported_mech, told.response_token) == (NegState.request_mic, NTLM, None)

    def test_a_later_one(self) -> None:
        told = NegTokenResp.unpack(_inside(spnego.challenge(b"token", first=False, preferred=False)))
        assert (told.neg_state, told.supported_mech, told.response_token) == (
            NegState.accept_incomplete,
            None,
            b"token",
        )


def test_no_token_in_a_repr() -> None:
    offer = spnego.parse_offer(NegTokenInit([NTLM], mech_token=b"secret").pack())
    assert "secret" not in repr(offer)
    assert "secret" not in repr(spnego.Answer(b"secret", b"secret"))


def _inside(token: bytes) -> bytes:
    assert token[0] == 0xA1
    return token[2:]
