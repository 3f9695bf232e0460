"""What may be asked."""

from __future__ import annotations

from typing import Any

import pytest

from relayd.netlogon.logon import LONGEST_NAME, LONGEST_RESPONSE, NetworkLogon
from relayd.netlogon.statuses import LogonRefused

V2 = bytes(16) + b"\x01\x01" + bytes(60)


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
