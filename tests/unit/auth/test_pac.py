"""The account in a PAC. The octets in pac/ came from the lab's domain controller, in tickets of its users."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.auth.pac import Pac, logon_info, upn_dns_info

FILES = Path(__file__).parent / "pac"
ALICE = (FILES / "alice.logon-info").read_bytes()
COMPUTER = (FILES / "computer.logon-info").read_bytes()
ALICE_UPN = (FILES / "alice.upn-dns-info").read_bytes()
DOMAIN_SID = "S-1-5-21-3593830300-3267166862-2730359800"
# MS-PAC 2.5, behind the 20 octets of the NDR headers and of a pointer
USER_ID, GROUP_COUNT, USER_FLAGS = 120, 128, 136
ENGINEERS = struct.pack("<II", 1118, 7)


def sids(*ends: str) -> frozenset[str]:
    return frozenset(end if end.startswith("S-") else f"{DOMAIN_SID}-{end}" for end in ends)


def test_user_with_nested_groups() -> None:
    assert logon_info(ALICE) == Pac(
        sid=f"{DOMAIN_SID}-1103",
        # Domain Users; Engineers, Staff and Relay Users, each in the next; "authentication authority asserted identity"
        group_sids=sids("513", "1118", "1119", "1120", "S-1-18-1"),
        name="alice",
        domain="LAB",
    )


def test_computer() -> None:
    found = logon_info(COMPUTER)
    assert (found.name, found.sid) == ("RELAY01$", f"{DOMAIN_SID}-1117")
    assert found.group_sids == sids("515", "1121", "S-1-18-1")


@pytest.mark.parametrize("attributes", [0, 0x17])
def test_group_that_is_not_enabled_or_only_denies_gives_nothing(attributes: int) -> None:
    assert ALICE.count(ENGINEERS) == 1
    changed = ALICE.replace(ENGINEERS, struct.pack("<II", 1118, attributes))
    assert logon_info(changed).group_sids == logon_info(ALICE).group_sids - sids("1118")


def test_extra_sids_count_only_where_the_flags_say_so() -> None:
    assert "S-1-18-1" not in logon_info(patched(ALICE, USER_FLAGS, 0)).group_sids


def test_account_of_another_domain_is_named_by_the_first_extra_sid() -> None:
    found = logon_info(patched(ALICE, USER_ID, 0))
    assert found.sid.startswith("S-1-")
    assert found.sid in found.group_sids
    with pytest.raises(ValueError, match="no SID"):
        logon_info(patched(patched(ALICE, USER_ID, 0), USER_FLAGS, 0))


@pytest.mark.parametrize("count", [0, 2, 0x40000000, 0xFFFFFFFF])
def test_list_of_another_length_than_it_says(count: int) -> None:
    with pytest.raises(ValueError, match="longer or shorter"):
        logon_info(patched(ALICE, GROUP_COUNT, count))


@pytest.mark.parametrize("length", range(len(ALICE)))
def test_cut_short(length: int) -> None:
    # The padding at the end may go; all else may not.
    if length < len(ALICE) - 8:
        with pytest.raises(ValueError, match="KERB_VALIDATION_INFO"):
            logon_info(ALICE[:length])


@given(st.integers(0, len(ALICE) - 1), st.binary(min_size=1, max_size=4))
def test_changed_octets_are_an_account_or_an_error(at: int, octets: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert logon_info(ALICE[:at] + octets + ALICE[at + len(octets) :]).sid.startswith("S-1-")


@given(st.binary(max_size=400))
def test_other_octets_are_an_error(octets: bytes) -> None:
    with pytest.raises(ValueError, match="KERB_VALIDATION_INFO"):
        logon_info(octets)


def test_upn() -> None:
    assert upn_dns_info(ALICE_UPN) == "alice@lab.example"
    assert upn_dns_info((FILES / "carol.upn-dns-info").read_bytes()) == "carol@corp.example"


@given(st.binary(max_size=64))
def test_other_octets_are_a_name_or_an_error(octets: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert len(upn_dns_info(octets)) <= len(octets)


def test_upn_outside_of_its_buffer() -> None:
    with pytest.raises(ValueError, match="outside"):
        upn_dns_info(struct.pack("<HHHHI", 40, 12, 0, 0, 0) + bytes(39))


def patched(octets: bytes, at: int, value: int) -> bytes:
    """*octets* with the number at *at* replaced."""
    return octets[:at] + struct.pack("<I", value) + octets[at + 4 :]
