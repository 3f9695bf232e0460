"""Entries of Active Directory as values: users, their groups, their account's state."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = [
    "GROUP_ATTRIBUTES",
    "OWN_ATTRIBUTES",
    "USER_ATTRIBUTES",
    "AccountState",
    "Entry",
    "Group",
    "LockoutPolicy",
    "User",
    "group",
    "interval",
    "sid_octets",
    "sid_text",
    "user",
]

USER_ATTRIBUTES: Final = (
    "sAMAccountName",
    "userPrincipalName",
    "objectSid",
    "mail",
    "proxyAddresses",
    "userAccountControl",
    "accountExpires",
    "pwdLastSet",
    "logonHours",
    "primaryGroupID",
)
#: What a directory computes when it is asked for one entry alone (MS-ADTS 3.1.1.4.5).
OWN_ATTRIBUTES: Final = ("tokenGroups", "msDS-ResultantPSO", "msDS-User-Account-Control-Computed")
GROUP_ATTRIBUTES: Final = ("objectSid", "sAMAccountName")

_DISABLED, _LOCKED, _PASSWORD_EXPIRED = 0x2, 0x10, 0x800000  # MS-ADTS 2.2.16
_NEVER: Final = (0, 0x7FFF_FFFF_FFFF_FFFF)
_EPOCH: Final = 11_644_473_600  # seconds from 1601 to 1970

# A group whose name reads like a SID or a DN would pass for another group in the policy's lists.
_NOT_A_NAME: Final = re.compile(r"s-1-|.*[\\=,]", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as it came: *attributes* by lower-case name."""

    dn: str
    attributes: Mapping[str, Sequence[bytes]]

    def raw(self, attribute: str) -> Sequence[bytes]:
        return self.attributes.get(attribute.lower(), ())

    def texts(self, attribute: str) -> tuple[str, ...]:
        return tuple(value.decode("utf-8", "replace") for value in self.raw(attribute))

    def text(self, attribute: str) -> str:
        """The first value, empty where there is none."""
        return next(iter(self.texts(attribute)), "")

    def number(self, attribute: str, default: int = 0) -> int:
        try:
            return int(self.text(attribute))
        except ValueError:
            return default


@dataclass(frozen=True, slots=True)
class AccountState:
    """Why an account may not sign in, whatever its password."""

    disabled: bool = False
    expired: bool = False
    locked: bool = False
    must_change: bool = False
    password_expired: bool = False
    off_hours: bool = False

    @property
    def good(self) -> bool:
        return self == AccountState()

    def __str__(self) -> str:
        words = {
            "disabled": self.disabled,
            "expired": self.expired,
            "locked": self.locked,
            "must change its password": self.must_change,
            "password expired": self.password_expired,
            "not at this time of day": self.off_hours,
        }
        return ", ".join(word for word, holds in words.items() if holds) or "good"


@dataclass(frozen=True, slots=True)
class Group:
    sid: str
    dn: str
    name: str


@dataclass(frozen=True, slots=True)
class LockoutPolicy:
    """After *threshold* wrong passwords within *window* seconds the directory locks an account; 0: never."""

    threshold: int
    window: float


@dataclass(frozen=True, slots=True)
class User:
    """A user or computer of the directory.

    :ivar name: sAMAccountName.
    :ivar addresses: own mail addresses, lower case.
    :ivar group_sids: of all groups, nested ones included.
    :ivar groups: the same as a policy may spell them: SID, DN, name, ``CORP\\name``.
    :ivar password_set: pwdLastSet as it stands; it changes with each new password.
    :ivar policy: the DN of the fine-grained password policy that holds for the account; empty: the domain's.
    :ivar state_known: *state* is the whole truth. The account that searches may not read all of it; a global catalog
        does not hold it.
    """

    dn: str
    name: str
    upn: str = ""
    sid: str = ""
    addresses: tuple[str, ...] = ()
    state: AccountState = AccountState()
    group_sids: tuple[str, ...] = ()
    groups: frozenset[str] = frozenset()
    password_set: int = 0
    policy: str = ""
    state_known: bool = True

    @property
    def key(self) -> str:
        """What tells this account from all others, however it was spelled."""
        return self.sid or self.dn.casefold()


def user(entry: Entry, own: Entry, now: float) -> User:
    """The user of *entry*, with what the directory computed in *own*, at *now* (seconds since the epoch)."""
    sid = sid_text(next(iter(entry.raw("objectSid")), b""))
    proxies = [text[5:] for text in entry.texts("proxyAddresses") if text[:5].lower() == "smtp:"]
    addresses = (address.lower() for address in (entry.text("mail"), *proxies) if "@" in address)
    control = entry.number("userAccountControl")
    computed = own.number("msDS-User-Account-Control-Computed")
    expires = entry.number("accountExpires")
    password_set = entry.number("pwdLastSet", -1)
    groups = [text for raw in own.raw("tokenGroups") if (text := sid_text(raw))]
    if sid and (primary := entry.number("primaryGroupID")):
        groups.append(f"{sid.rpartition('-')[0]}-{primary}")
    return User(
        dn=entry.dn,
        name=entry.text("sAMAccountName"),
        upn=entry.text("userPrincipalName"),
        sid=sid,
        addresses=tuple(dict.fromkeys(addresses)),
        state=AccountState(
            disabled=bool(control & _DISABLED),
            expired=expires not in _NEVER and expires / 10_000_000 - _EPOCH <= now,
            locked=bool(computed & _LOCKED),
            must_change=password_set == 0,
            password_expired=bool(computed & _PASSWORD_EXPIRED) and password_set != 0,
            off_hours=not _within(next(iter(entry.raw("logonHours")), b""), now),
        ),
        group_sids=tuple(dict.fromkeys(groups)),
        password_set=password_set,
        policy=own.text("msDS-ResultantPSO"),
        state_known=bool(
            entry.raw("userAccountControl")
            and entry.raw("accountExpires")
            and own.raw("msDS-User-Account-Control-Computed")
        ),
    )


def _within(hours: bytes, now: float) -> bool:
    """Whether logonHours allows *now*: 168 bits, the first for Sunday's first hour, UTC (MS-SAMR 2.2.6.5)."""
    if len(hours) != 21:  # none: every hour
        return True
    hour = (int(now // 3600) + 4 * 24) % 168  # 1970 began on a Thursday
    return bool(hours[hour // 8] >> hour % 8 & 1)


def group(entry: Entry) -> Group:
    name = entry.text("sAMAccountName")
    sid = sid_text(next(iter(entry.raw("objectSid")), b""))
    return Group(sid, entry.dn, "" if _NOT_A_NAME.match(name) else name)


def sid_text(raw: bytes) -> str:
    """A binary SID as S-1-… (MS-DTYP 2.4.2.2); empty when it is none."""
    if len(raw) < 8 or raw[0] != 1 or len(raw) != 8 + 4 * raw[1]:
        return ""
    authority = int.from_bytes(raw[2:8], "big")
    return "-".join(map(str, ("S-1", authority, *struct.unpack(f"<{raw[1]}I", raw[8:]))))


def sid_octets(text: str) -> bytes:
    """The binary form of S-1-….

    :raises ValueError: it is no SID.
    """
    parts = text.split("-")
    try:
        if parts[0].upper() != "S" or parts[1] != "1":
            raise ValueError
        authority, *subs = map(int, parts[2:])
        return struct.pack("BB", 1, len(subs)) + authority.to_bytes(6, "big") + struct.pack(f"<{len(subs)}I", *subs)
    except (ValueError, IndexError, struct.error, OverflowError):
        raise ValueError(f"not a SID: {text!r}") from None


def interval(value: int) -> float:
    """Seconds of a negative count of 100 ns, as Active Directory writes durations."""
    return -value / 10_000_000 if value < 0 else 0.0
