"""Computer accounts: found, made, changed and taken away again, over one connection of whoever may do that.

What an ordinary user may write is less than what an administrator may: MS-ADTS 3.1.1.5.2 (add), and the validated
writes of MS-ADTS 3.1.1.5.3.1.1 for dNSHostName and servicePrincipalName.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import ldap3

from relayd.directory.connection import Connection, Controller, Scope
from relayd.directory.entries import Entry, sid_text
from relayd.directory.faults import ControllerFault, Refusal
from relayd.directory.names import Domain, equals
from relayd.model import IPAddress

__all__ = [
    "AES_ENCRYPTION",
    "WORKSTATION",
    "Account",
    "Changing",
    "NotAllowed",
    "container",
    "find_account",
    "find_by_principals",
    "password_octets",
]

# userAccountControl (MS-ADTS 2.2.16)
DISABLED: Final = 0x2
PASSWORD_NOT_REQUIRED: Final = 0x20
WORKSTATION: Final = 0x1000
CONTROLLER: Final = 0x2000
#: msDS-SupportedEncryptionTypes (MS-KILE 2.2.7): AES128 and AES256.
AES_ENCRYPTION: Final = 24

_ATTRIBUTES: Final = (
    "objectClass",
    "sAMAccountName",
    "objectSid",
    "userAccountControl",
    "dNSHostName",
    "servicePrincipalName",
    "msDS-SupportedEncryptionTypes",
    "msDS-KeyVersionNumber",
)
_ANY: Final = "(objectClass=*)"
#: The container of new computers, wherever an administrator has moved it (MS-ADTS 6.1.1.4.3).
_COMPUTERS: Final = "aa312825768811d1aded00c04fd8d5cd"
#: How long one operation may take, in seconds: a change is worth waiting for.
PATIENCE: Final = 20.0
#: Principals in one search at most.
_AT_ONCE: Final = 50

_SUCCESS, _NO_SUCH_OBJECT, _INSUFFICIENT = 0, 32, 50  # RFC 4511 A.1
_REFERRAL: Final = 10
#: Results that speak of the controller, not of what was asked: busy, unavailable.
_CANNOT: Final = (51, 52)
_WIN32: Final = re.compile(r"\b(?:0x)?(0000[0-9A-Fa-f]{4})\b")

#: What a Win32 error in the text of a refusal means (MS-ERREF 2.2).
_MEANING: Final[Mapping[str, str]] = {
    "00000005": "access denied",
    "00000524": "an account of this name exists",
    "0000052d": "the domain's password policy refuses the password; a minimum age may be in force",
    "0000216d": "this user has made as many computer accounts as ms-DS-MachineAccountQuota allows",
    "00002071": "an object of this name exists there",
    "0000208d": "there is no such place in the directory",
    "000021c7": "another account in the forest has one of these service principal names",
    "000021c8": "another account in the forest has this user principal name",
}


class NotAllowed(Exception):
    """The directory refuses a change; the text says what and why.

    :ivar access: it is this user who may not.
    """

    def __init__(self, what: str, code: int, description: str, message: str) -> None:
        found = _WIN32.search(message)
        meaning = _MEANING.get(found[1].lower(), "") if found else ""
        said = " ".join(message.replace("\0", " ").split())[:300]
        if code == _REFERRAL:
            meaning = "this controller takes no changes (it is read-only, or of another domain)"
        super().__init__(
            f"{what}: {description} ({code}){f': {meaning}' if meaning else ''}{f' [{said}]' if said else ''}"
        )
        self.access = code == _INSUFFICIENT
        self.code = code


@dataclass(frozen=True, slots=True)
class Account:
    """A user or computer, as far as its service principals and keys go.

    :ivar name: sAMAccountName.
    :ivar control: userAccountControl.
    :ivar encryption: msDS-SupportedEncryptionTypes; 0: the domain's default.
    :ivar kvno: msDS-KeyVersionNumber; 0: it may not be read.
    """

    dn: str
    name: str
    sid: str = ""
    control: int = 0
    host: str = ""
    principals: tuple[str, ...] = ()
    encryption: int = 0
    kvno: int = 0
    classes: frozenset[str] = frozenset()

    @property
    def disabled(self) -> bool:
        return bool(self.control & DISABLED)

    @property
    def is_computer(self) -> bool:
        """Whether it is an ordinary computer's: no controller's, no managed service's, no person's."""
        managed = {"msds-groupmanagedserviceaccount", "msds-managedserviceaccount"} & self.classes
        return "computer" in self.classes and not managed and not self.control & CONTROLLER


class Changing(Connection):
    """A connection that also changes what is in the directory; each operation may take *patience* seconds."""

    def __init__(
        self, controller: Controller, address: IPAddress, context: ssl.SSLContext, patience: float = PATIENCE
    ) -> None:
        self._patience = patience
        super().__init__(controller, address, context, time.monotonic() + patience)

    @property
    def closed(self) -> bool:
        return bool(self._ldap.closed)

    def bind(self, name: str, password: bytes) -> Refusal | None:
        self.limit(time.monotonic() + self._patience)
        return super().bind(name, password)

    def search(
        self, base: str, filter: str, attributes: Iterable[str], *, scope: Scope = "SUBTREE", most: int = 0
    ) -> list[Entry]:
        self.limit(time.monotonic() + self._patience)
        return super().search(base, filter, attributes, scope=scope, most=most)

    def add(self, dn: str, attributes: Mapping[str, Any]) -> None:
        """Adds an entry.

        :raises NotAllowed: it is refused.
        :raises ControllerFault: the controller cannot tell; the entry may have been made.
        """
        self._change(f"cannot add {dn}", lambda: self._ldap.add(dn, attributes=dict(attributes)))

    def replace(self, dn: str, attributes: Mapping[str, Iterable[Any]]) -> None:
        """Replaces the values of attributes; no values remove one that is there. Raises as :meth:`add`."""
        changes = {
            name: [(ldap3.MODIFY_REPLACE if (new := list(values)) else ldap3.MODIFY_DELETE, new)]
            for name, values in attributes.items()
        }
        self._change(f"cannot write {', '.join(attributes)} of {dn}", lambda: self._ldap.modify(dn, changes))

    def change_password(self, dn: str, old: str, new: str) -> None:
        """Changes a password as its owner does (MS-ADTS 3.1.1.3.1.5). Raises as :meth:`add`."""
        values = [(ldap3.MODIFY_DELETE, [password_octets(old)]), (ldap3.MODIFY_ADD, [password_octets(new)])]
        self._change(f"cannot change the password of {dn}", lambda: self._ldap.modify(dn, {"unicodePwd": values}))

    def delete(self, dn: str) -> None:
        """Takes an entry away. Raises as :meth:`add`."""
        self._change(f"cannot remove {dn}", lambda: self._ldap.delete(dn))

    def _change(self, what: str, change: Callable[[], object]) -> None:
        self.limit(time.monotonic() + self._patience)
        try:
            if self._ldap.closed:  # ldap3 would open it again, without TLS
                raise ControllerFault("the connection is closed")
            change()
            result = self._ldap.result
            code, description, message = int(result["result"]), str(result["description"]), str(result["message"])
        except Exception as error:
            raise self._failed(error) from None
        finally:
            self._ldap.request = None  # there may be a password in it
        if code in _CANNOT:
            raise ControllerFault(f"{self.controller}: {what}: {description} ({code}) {message}".rstrip())
        if code != _SUCCESS:
            raise NotAllowed(what, code, description, message)


def password_octets(password: str) -> bytes:
    """A password as ``unicodePwd`` takes it: in quotes, UTF-16 (MS-ADTS 3.1.1.3.1.5)."""
    return f'"{password}"'.encode("utf-16-le")


def container(domain: Domain, ou: str, connection: Connection) -> str:
    """Where a new computer goes: *ou*, or where the domain wants it.

    :raises LookupError: there is no such place.
    """
    base = ou or f"<WKGUID={_COMPUTERS},{domain.root}>"
    found = connection.search(base, _ANY, ("objectClass",), scope="BASE")
    if not found:
        raise LookupError(f"there is no {ou}" if ou else f"{domain.root} names no container for computers; use --ou")
    return found[0].dn


def find_account(domain: Domain, name: str, connection: Connection) -> Account | None:
    """The account whose sAMAccountName is *name*."""
    found = connection.search(domain.root, f"(&(objectClass=user){equals('sAMAccountName', name)})", ("1.1",), most=2)
    return read_account(found[0].dn, connection) if len(found) == 1 else None


def read_account(dn: str, connection: Connection) -> Account | None:
    """The account at *dn*. The version of its key is computed for a search of the entry alone."""
    found = connection.search(dn, _ANY, _ATTRIBUTES, scope="BASE")
    return _account(found[0]) if found else None


def find_by_principals(domain: Domain, principals: Iterable[str], connection: Connection) -> tuple[Account, ...]:
    """All accounts of the domain that have one of these service principal names; the directory ignores case."""
    wanted = list(dict.fromkeys(principals))
    dns: dict[str, None] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        parts = "".join(equals("servicePrincipalName", name) for name in wanted[start : start + _AT_ONCE])
        dns |= dict.fromkeys(entry.dn for entry in connection.search(domain.root, f"(|{parts})", ("1.1",)))
    found = (read_account(dn, connection) for dn in dns)
    return tuple(account for account in found if account is not None)


def _account(entry: Entry) -> Account:
    return Account(
        dn=entry.dn,
        name=entry.text("sAMAccountName"),
        sid=sid_text(next(iter(entry.raw("objectSid")), b"")),
        control=entry.number("userAccountControl"),
        host=entry.text("dNSHostName"),
        principals=entry.texts("servicePrincipalName"),
        encryption=entry.number("msDS-SupportedEncryptionTypes"),
        kvno=entry.number("msDS-KeyVersionNumber"),
        classes=frozenset(text.lower() for text in entry.texts("objectClass")),
    )
