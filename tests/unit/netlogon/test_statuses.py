"""What statuses say."""

from __future__ import annotations

import pytest

from relayd.netlogon.statuses import MACHINE_REFUSED, REFUSALS, TRUSTS, judged, status_text


@pytest.mark.parametrize(
    ("status", "text", "wrong_password"),
    [
        (0xC000006A, "c000006a wrong password", True),
        (0xC0000064, "c0000064 unknown account", True),
        (0xC000006D, "c000006d unknown account or wrong password", True),
        (0xC0000225, "c0000225 unknown account or wrong password", True),
        (0xC0000072, "c0000072 account disabled", False),
        (0xC0000193, "c0000193 account expired", False),
        (0xC0000071, "c0000071 password expired", False),
        (0xC0000224, "c0000224 password must be changed", False),
        (0xC0000234, "c0000234 account locked", False),
        (0xC000006F, "c000006f not at this time of day", False),
        (0xC0000070, "c0000070 not from this workstation", False),
    ],
)
def test_what_speaks_of_the_account(status: int, text: str, wrong_password: bool) -> None:
    refused = judged(status)
    assert refused is not None
    assert (str(refused), refused.status, refused.wrong_password) == (text, status, wrong_password)


@pytest.mark.parametrize(
    "status",
    # Success, access denied, no logon servers, trust failures, netlogon not started, RPC's own, unknown ones
    [
        0,
        0xC0000022,
        0xC000005E,
        0xC000018A,
        0xC000018B,
        0xC000018D,
        0xC0000190,
        0xC0000192,
        0xC0000133,
        0x5,
        0xC0FFEE00,
    ],
)
def test_what_does_not(status: int) -> None:
    assert judged(status) is None


def test_a_status_of_a_trust_never_refuses() -> None:
    assert not TRUSTS & REFUSALS.keys()


def test_for_the_log() -> None:
    assert status_text(0xC000018B) == "c000018b no machine account of this name that is enabled"
    assert status_text(0xC0FFEE00) == "c0ffee00"
    assert all(status_text(status) != f"{status:08x}" for status in MACHINE_REFUSED | TRUSTS)
