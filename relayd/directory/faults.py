"""What a directory may answer with, sorted: it refuses the account, or it cannot tell for now."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from relayd.model import AUTH_UNAVAILABLE, Fault


class Unavailable(Fault):
    """The directory cannot be asked for now. Never a refusal: 454 4.7.0 to AUTH (design, promise 5).

    :ivar asked: binds that went out without an answer; a controller may have counted each as a failure.
    """

    def __init__(self, detail: str, asked: int = 0) -> None:
        super().__init__(AUTH_UNAVAILABLE, f"directory: {detail}")
        self.asked = asked


class ControllerFault(Exception):
    """One controller failed; another may do.

    :ivar lost: the connection ended, as it does when a controller closes an idle one.
    :ivar asked: as in :class:`Unavailable`.
    """

    def __init__(self, detail: str, *, lost: bool = False, asked: int = 0) -> None:
        super().__init__(detail)
        self.lost = lost
        self.asked = asked


class SearcherFault(Exception):
    """The account that searches cannot sign in; no controller is to blame, and none is asked again soon."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The directory does not let the account in.

    :ivar code: Active Directory's sub-code in hexadecimal (a Win32 error), empty where there is none.
    :ivar unanswered: binds before it that went out without an answer.
    """

    code: str
    text: str
    unanswered: int = 0

    @property
    def wrong_password(self) -> bool:
        """Whether the password may be what is wrong: what a directory counts towards its lockout."""
        return self.code not in REFUSALS or self.code in ("52e", "525")

    @property
    def failures(self) -> int:
        """How many the directory counted, or may have."""
        return 1 + self.unanswered if self.wrong_password else 0

    def __str__(self) -> str:
        return f"{self.code} {self.text}".strip()


#: Sub-codes that refuse the account (MS-ERREF 2.2, as in the "data" of MS-ADTS bind errors).
REFUSALS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "525": "unknown account",
        "52e": "unknown account or wrong password",
        "52f": "account restriction",
        "530": "not at this time of day",
        "531": "not from this workstation",
        "532": "password expired",
        "533": "account disabled",
        "534": "logon type not granted",
        "568": "too many groups",
        "569": "logon type not granted",
        "701": "account expired",
        "773": "password must be changed",
        "775": "account locked",
    }
)

# Sub-codes that come with invalidCredentials, and say only that this controller cannot tell.
_CANNOT_TELL: Final[Mapping[str, str]] = MappingProxyType(
    {
        "51f": "no logon server",  # a read-only controller that reaches no other
        "54b": "no such domain",
        "54f": "internal error",
        "6fa": "no trust secret",
        "6fb": "no trust account",
        "6fc": "trust failed",
        "6fd": "trust failed",
        "6ba": "RPC server unavailable",
    }
)

_SUB_CODE: Final = re.compile(r"\bdata ([0-9a-f]+)\b", re.IGNORECASE)

# Result codes (RFC 4511 A.2) of a bind that speak of the account.
_CONSTRAINT, _NO_SUCH_OBJECT, _INVALID_CREDENTIALS = 19, 32, 49


def refusal(result: int, message: str) -> Refusal | None:
    """What a failed bind says of the account; None: nothing, this controller cannot tell."""
    if result in (_CONSTRAINT, _NO_SUCH_OBJECT):
        return Refusal("", "unknown account" if result == _NO_SUCH_OBJECT else "refused by the password policy")
    if result != _INVALID_CREDENTIALS:
        return None
    found = _SUB_CODE.search(message)
    code = found[1].lower() if found else ""
    if code in _CANNOT_TELL:
        return None
    return Refusal(code, REFUSALS.get(code, "invalid credentials"))
