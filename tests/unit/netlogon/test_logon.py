"""What may be asked, and what a good answer must hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from relayd.netlogon.faults import CannotTell
from relayd.netlogon.logon import LONGEST_NAME, LONGEST_RESPONSE, NetworkLogon, granted
from relayd.netlogon.statuses import LogonRefused

DOMAIN = "S-1-5-21-1-2-3"
V2 = bytes(16) + b"\x01\x01" + bytes(60)


@dataclass
class Sid:
    text: str

    def formatCanonical(self) -> str:
        return self.text


def member(rid: int, attributes: int = 7) -> dict[str, int]:
    return {"RelativeId": rid, "Attributes": attributes}


def extra(sid: str, attributes: int = 7) -> dict[str, object]:
    return {"Sid": Sid(sid), "Attributes": attributes}


def info(**more: Any) -> dict[str, Any]:
    """As impacket decodes it."""
    return {
        "UserFlags": 0x120,
        "UserId": 1103,
        "PrimaryGroupId": 513,
        "EffectiveName": "alice",
        "LogonDomainName": "LAB",
        "LogonDomainId": Sid(DOMAIN),
        "GroupIds": [member(513), member(1118)],
        "ExtraSids": [],
        "UserSessionKey": bytes(range(16)),
        **more,
    }


class TestGranted:
    def test_an_account(self) -> None:
        logon = granted(info())
        assert (logon.name, logon.domain, logon.sid) == ("alice", "LAB", f"{DOMAIN}-1103")
        assert logon.group_sids == {f"{DOMAIN}-513", f"{DOMAIN}-1118"}
        assert logon.session_key == bytes(range(16))
        assert "0001" not in repr(logon)

    def test_groups_of_other_domains_and_of_the_resource_domain(self) -> None:
        logon = granted(info(ExtraSids=[extra("S-1-5-21-9-9-9-1200"), extra("S-1-18-1")]))
        assert logon.group_sids == {f"{DOMAIN}-513", f"{DOMAIN}-1118", "S-1-5-21-9-9-9-1200", "S-1-18-1"}

    def test_groups_that_only_deny_do_not_count(self) -> None:
        logon = granted(
            info(GroupIds=[member(513), member(1118, 0x10), member(1119, 0x3)], ExtraSids=[extra("S-1-5-9", 0x14)])
        )
        assert logon.group_sids == {f"{DOMAIN}-513"}

    def test_no_lists_of_groups(self) -> None:
        assert granted(info(GroupIds=b"", ExtraSids=None)).group_sids == {f"{DOMAIN}-513"}

    @pytest.mark.parametrize("more", [{"UserFlags": 0x121}, {"UserId": 501}], ids=["flag", "account"])
    def test_a_guest_proves_nothing(self, more: dict[str, Any]) -> None:
        with pytest.raises(LogonRefused, match="guest"):
            granted(info(**more))

    @pytest.mark.parametrize(
        "more",
        [
            {"UserSessionKey": bytes(16)},
            {"UserSessionKey": b""},
            {"EffectiveName": ""},
            {"EffectiveName": b""},
            {"UserId": 0},
            {"LogonDomainId": b""},
        ],
    )
    def test_an_answer_that_lacks_something_is_no_refusal(self, more: dict[str, Any]) -> None:
        with pytest.raises(CannotTell):
            granted(info(**more))


class TestAsked:
    def ask(self, account: str = "alice", domain: str = "LAB", nt: bytes = V2, **more: Any) -> NetworkLogon:
        return NetworkLogon(account, domain, "PC1", more.pop("challenge", bytes(8)), nt, more.pop("lm", bytes(24)))

    def test_nothing_secret_is_shown(self) -> None:
        shown = repr(self.ask(challenge=b"Q" * 8, nt=b"N" * 80, lm=b"L" * 24))
        assert "alice" in shown
        assert not {"QQQ", "NNN", "LLL"} & {shown[i : i + 3] for i in range(len(shown))}

    def test_a_upn(self) -> None:
        assert self.ask("alice@lab.example", "").domain == ""

    @pytest.mark.parametrize(
        ("asked", "why"),
        [
            ({"account": ""}, "anonymous"),
            ({"account": "a\0b"}, "no name"),
            ({"account": "\ud800"}, "no name"),
            ({"account": "a" * (LONGEST_NAME + 1)}, "no name"),
            ({"domain": "d" * (LONGEST_NAME + 1)}, "no name"),
            ({"nt": b""}, "NTLMv1"),
            ({"nt": bytes(24)}, "NTLMv1"),
            ({"nt": bytes(LONGEST_RESPONSE + 1)}, "too long"),
            ({"lm": bytes(LONGEST_RESPONSE + 1)}, "too long"),
        ],
    )
    def test_what_is_never_asked(self, asked: dict[str, Any], why: str) -> None:
        with pytest.raises(LogonRefused, match=why) as caught:
            self.ask(**asked)
        assert not caught.value.wrong_password

    def test_a_challenge_has_8_octets(self) -> None:
        with pytest.raises(ValueError, match="8"):
            self.ask(challenge=bytes(7))
