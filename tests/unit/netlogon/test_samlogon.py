"""The call and its answer. The octets in samlogon/ are what the lab's controller said of its users."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.netlogon.faults import CannotTell
from relayd.netlogon.samlogon import decode_answer, granted
from relayd.netlogon.statuses import LogonRefused
from relayd.validation import ValidationInfo

FILES = Path(__file__).parent / "samlogon"
ALICE = (FILES / "alice.answer").read_bytes()
DISABLED = (FILES / "disabled.answer").read_bytes()
DOMAIN = "S-1-5-21-1122961614-3056574745-4203957825"
ENGINEERS = struct.pack("<II", 1118, 7)
GROUP_COUNT = 8 + 48 + 48 + 4 + 8


def alice() -> ValidationInfo:
    status, info = decode_answer(ALICE)
    assert status == 0
    assert info is not None
    return info


class TestAnswers:
    def test_an_account_with_nested_groups(self) -> None:
        info = alice()
        assert (info.name, info.domain, info.domain_sid) == ("alice", "LAB", DOMAIN)
        # Domain Users; Engineers, Staff and Relay Users, each in the next.
        assert (info.user, info.primary, info.groups) == (1103, 513, (513, 1118, 1119, 1120))
        assert len(info.session_key) == 16
        assert repr(info.session_key) not in repr(info)

    def test_a_refusal(self) -> None:
        assert decode_answer(DISABLED) == (0xC0000072, None)

    @pytest.mark.parametrize("attributes", [0, 0x3, 0x17])
    def test_a_group_that_is_not_enabled_or_only_denies_gives_nothing(self, attributes: int) -> None:
        assert ALICE.count(ENGINEERS) == 1
        _, info = decode_answer(ALICE.replace(ENGINEERS, struct.pack("<II", 1118, attributes)))
        assert info is not None
        assert info.groups == (513, 1119, 1120)

    def test_another_level_is_none(self) -> None:
        with pytest.raises(ValueError, match="level 3"):
            decode_answer(b"\x03\x00" + ALICE[2:])

    @pytest.mark.parametrize("count", [0, 2, 0x40000000, 0xFFFFFFFF])
    def test_a_list_of_another_length_than_it_says(self, count: int) -> None:
        octets = ALICE[:GROUP_COUNT] + struct.pack("<I", count) + ALICE[GROUP_COUNT + 4 :]
        with pytest.raises(ValueError, match="longer or shorter"):
            decode_answer(octets)

    def test_cut_short(self) -> None:
        length = next(n for n in range(len(ALICE), 0, -1) if not _decodes(ALICE[:n])) + 1
        assert len(ALICE) - length < 16  # padding
        assert not any(_decodes(ALICE[:n]) for n in range(length))

    @given(st.integers(0, len(ALICE) - 1), st.binary(min_size=1, max_size=4))
    def test_changed_octets_are_an_answer_or_an_error(self, at: int, octets: bytes) -> None:
        with contextlib.suppress(ValueError, CannotTell, LogonRefused):
            _, info = decode_answer(ALICE[:at] + octets + ALICE[at + len(octets) :])
            assert info is None or granted(info).sid.startswith("S-1-")

    @given(st.binary(max_size=400))
    def test_other_octets_are_an_answer_or_an_error(self, octets: bytes) -> None:
        with contextlib.suppress(ValueError):
            decode_answer(octets)


def _decodes(octets: bytes) -> bool:
    try:
        decode_answer(octets)
    except ValueError:
        return False
    return True


class TestGranted:
    def test_an_account(self) -> None:
        logon = granted(alice())
        assert (logon.name, logon.domain, logon.sid) == ("alice", "LAB", f"{DOMAIN}-1103")
        assert logon.group_sids == {f"{DOMAIN}-{rid}" for rid in (513, 1118, 1119, 1120)}
        assert logon.session_key == alice().session_key
        assert repr(logon.session_key) not in repr(logon)

    def test_groups_of_other_domains_and_of_the_resource_domain(self) -> None:
        logon = granted(replace(alice(), groups=(), extra=("S-1-5-21-9-9-9-1200", "S-1-18-1")))
        assert logon.group_sids == {f"{DOMAIN}-513", "S-1-5-21-9-9-9-1200", "S-1-18-1"}

    @pytest.mark.parametrize("info", [replace(alice(), flags=0x121), replace(alice(), user=501)], ids=["flag", "user"])
    def test_a_guest_proves_nothing(self, info: ValidationInfo) -> None:
        with pytest.raises(LogonRefused, match="guest"):
            granted(info)

    @pytest.mark.parametrize(
        "info",
        [
            replace(alice(), session_key=bytes(16)),
            replace(alice(), session_key=b""),
            replace(alice(), name=""),
            replace(alice(), user=0),
            replace(alice(), domain_sid=""),
        ],
    )
    def test_an_answer_that_lacks_something_is_no_refusal(self, info: ValidationInfo) -> None:
        with pytest.raises(CannotTell):
            granted(info)
