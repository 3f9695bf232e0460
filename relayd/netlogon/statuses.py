"""What a controller's status says: something of the account, or only that this controller cannot tell."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["MACHINE_REFUSED", "OK", "TRUSTS", "LogonRefused", "judged", "status_text"]

OK: Final = 0

#: Statuses of a logon that refuse the account (MS-ERREF 2.3), all others only say that nobody can tell.
REFUSALS: Final[Mapping[int, str]] = MappingProxyType(
    {
        0xC0000064: "unknown account",
        0xC000006A: "wrong password",
        0xC000006D: "unknown account or wrong password",
        0xC000006E: "account restriction",
        0xC000006F: "not at this time of day",
        0xC0000070: "not from this workstation",
        0xC0000071: "password expired",
        0xC0000072: "account disabled",
        0xC000015B: "logon type not granted",
        0xC0000193: "account expired",
        0xC0000198: "account of a trust between domains",
        0xC0000199: "account of a computer",
        0xC000019A: "account of a controller",
        0xC0000224: "password must be changed",
        # Samba's (4.17) word for a wrong password, when the name was a UPN. It is final there too.
        0xC0000225: "unknown account or wrong password",
        0xC0000234: "account locked",
        0xC0000413: "not allowed to authenticate to this computer",
        0xC0000418: "NTLM is blocked by a policy of the domain",
    }
)

_WRONG_PASSWORD: Final = frozenset({0xC0000064, 0xC000006A, 0xC000006D, 0xC0000225})

_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {
        0xC000000D: "invalid parameter",
        0xC0000022: "access denied",
        0xC000005E: "no logon server",
        0xC000009A: "insufficient resources",
        0xC00000DC: "invalid server state",
        0xC00000DF: "no such domain",
        0xC0000133: "clocks differ",
        0xC000018A: "no trust secret",
        0xC000018B: "no machine account of this name that is enabled",
        0xC000018C: "the trust between domains failed",
        0xC000018D: "the trust of this computer failed",
        0xC0000190: "trust failed",
        0xC0000192: "netlogon is not running",
        0xC0000388: "downgrade detected",
    }
)

#: Answers to NetrServerAuthenticate3 that speak of the machine account or its secret, not of the controller.
MACHINE_REFUSED: Final = frozenset(
    {
        0xC0000022,
        0xC0000064,
        0xC000006A,
        0xC000006D,
        0xC0000072,
        0xC000018A,
        0xC000018B,
        0xC000018D,
        0xC0000193,
        0xC0000199,
    }
)

#: Answers to a logon that speak of the way to the account's domain: this controller does its part.
TRUSTS: Final = frozenset({0xC000005E, 0xC00000DF, 0xC000018A, 0xC000018B, 0xC000018C, 0xC000018D, 0xC0000190})


class LogonRefused(Exception):
    """A controller does not let the account in.

    :ivar status: the NTSTATUS; 0: relayd refuses it.
    :ivar text: says it in words.
    :ivar wrong_password: the password may be what is wrong: what a directory counts towards its lockout.
    :ivar unanswered: how often a controller was asked before that, without an answer.
    """

    def __init__(self, status: int, text: str, wrong_password: bool) -> None:
        super().__init__(f"{status:08x} {text}" if status else text)
        self.status = status
        self.text = text
        self.wrong_password = wrong_password
        self.unanswered = 0


def judged(status: int) -> LogonRefused | None:
    """What the *status* of a logon says of the account; None: nothing."""
    text = REFUSALS.get(status)
    return LogonRefused(status, text, status in _WRONG_PASSWORD) if text else None


def status_text(status: int) -> str:
    """*status* for the log."""
    return f"{status:08x} {REFUSALS.get(status) or _NAMES.get(status, '')}".rstrip()
