"""The accounts file: local accounts, for hosts without a directory.

One JSON object, written by ``relayctl account``: ``{"accounts": {NAME: {"password": ARGON2, "addresses": […],
"groups": […]}}}``. It holds argon2id hashes (RFC 9106), never a password. It is replaced atomically and read again when
it has changed.

For NTLM against local accounts, and then alone, an account has an NT hash too (``"nt": HEX``). NTLM proves knowledge of
that hash, not of the password: whoever reads it can sign in with it, here and wherever the password is the same. It
is unsalted and fast to guess. So it is written only where ``[ntlm] backend = "accounts"`` asks for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as File
from unicodedata import normalize

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from ldap3.core.exceptions import LDAPExceptionError
from ldap3.protocol.sasl.sasl import sasl_prep

from relayd.auth.secret_file import keeper, write

#: Characters of the longest name of an account.
LONGEST_NAME = 255
#: Characters of the longest name or password that is looked at: SASLprep takes seconds for 64 KiB of combining marks.
LONGEST_TEXT = 512


class AccountsFileError(Exception):
    """The accounts file cannot be read or written, or does not hold what it must; the text says where."""


@dataclass(frozen=True, slots=True)
class Account:
    """One local account. *password* is an argon2id hash in PHC string form.

    :ivar nt: the NT hash in hexadecimal (NTOWFv1, MS-NLMP 3.3.1), as good as the password; empty: no NTLM.
    """

    name: str
    password: str
    addresses: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    nt: str = field(default="", repr=False)


def prepared(text: str) -> str:
    """*text* by SASLprep (RFC 4013).

    :raises ValueError: it holds what SASLprep prohibits, or is too long.
    """
    if len(text) > LONGEST_TEXT or len(normalize("NFKC", text)) > LONGEST_TEXT:  # that makes 18 of some characters
        raise ValueError(f"not allowed in a name or password: more than {LONGEST_TEXT} characters")
    try:
        return str(sasl_prep(text))
    except LDAPExceptionError as error:
        raise ValueError(f"not allowed in a name or password: {error}") from None


def same_name(name: str) -> str:
    """Names that mean the same account are the same here; one that SASLprep prohibits means none."""
    try:
        return prepared(name).casefold()
    except ValueError:
        return name.casefold()


class AccountsFile:
    """The accounts in *file*. All methods block for a moment: they are for a thread or a command line."""

    def __init__(self, file: File, hasher: PasswordHasher | None = None) -> None:
        self.file = file
        self._hasher = hasher or PasswordHasher()
        self._stamp: tuple[int, int, int] | None = None
        self._accounts: dict[str, Account] = {}
        # Checked in place of an account that does not exist, so that both take the same time.
        self._nobody = self._hasher.hash(os.urandom(16))

    def accounts(self) -> Mapping[str, Account]:
        """All accounts by folded name. A file that does not exist yet holds none.

        :raises AccountsFileError: the file is there and cannot be used.
        """
        try:
            found = self.file.stat()
        except FileNotFoundError:
            self._stamp, self._accounts = None, {}
            return self._accounts
        except OSError as error:
            raise AccountsFileError(f"{self.file}: {error.strerror}") from None
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp != self._stamp:
            self._accounts = self._read()
            self._stamp = stamp
        return self._accounts

    def find(self, name: str) -> Account | None:
        """The account called *name*, in any case."""
        try:
            return self.accounts().get(prepared(name).casefold())
        except ValueError:
            return None

    def verify(self, name: str, password: str) -> Account | None:
        """The account, when *password* is right. Takes as long for a name that does not exist."""
        account = self.find(name)
        try:
            self._hasher.verify(account.password if account else self._nobody, prepared(password))
        except (Argon2Error, InvalidHashError, ValueError):
            return None
        return account

    def add(
        self, name: str, password: str, addresses: tuple[str, ...], groups: tuple[str, ...], *, nt: bool = False
    ) -> Account:
        """Adds an account, or replaces the one of this name.

        :param nt: keep the NT hash too, for NTLM.
        :raises ValueError: the name or the password is not allowed.
        """
        name = prepared(name)
        if not name or any(c in name for c in "\\/:\0") or len(name) > LONGEST_NAME:
            raise ValueError(f"not a name for an account: {name!r}")
        if not password:
            raise ValueError("an empty password is not allowed")
        hashed = self._hasher.hash(prepared(password))
        account = Account(
            name, hashed, tuple(a.lower() for a in addresses), groups, _nt_hash_of(password) if nt else ""
        )
        self._write({**self.accounts(), name.casefold(): account})
        return account

    def remove(self, name: str) -> bool:
        """Removes an account; False where there is none of this name."""
        accounts = dict(self.accounts())
        if accounts.pop(prepared(name).casefold(), None) is None:
            return False
        self._write(accounts)
        return True

    def _read(self) -> dict[str, Account]:
        try:
            document = json.loads(self.file.read_text("utf-8"))
            return {
                name.casefold(): Account(
                    str(name),
                    str(entry["password"]),
                    tuple(str(a).lower() for a in entry.get("addresses", ())),
                    tuple(str(g) for g in entry.get("groups", ())),
                    _nt_hash(entry.get("nt", "")),
                )
                for name, entry in document["accounts"].items()
            }
        except OSError as error:
            raise AccountsFileError(f"{self.file}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AccountsFileError(f"{self.file}: not an accounts file: {error!r}") from None

    def _write(self, accounts: Mapping[str, Account]) -> None:
        document = {
            "accounts": {
                a.name: {"password": a.password, "addresses": list(a.addresses), "groups": list(a.groups)}
                | ({"nt": a.nt} if a.nt else {})
                for a in sorted(accounts.values(), key=lambda a: a.name.casefold())
            }
        }
        text = json.dumps(document, ensure_ascii=False, indent=2)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write(self.file, f"{text}\n".encode(), keeper(self.file))
        except OSError as error:
            raise AccountsFileError(f"{self.file}: {error.strerror}") from None
        self._stamp = None


def _nt_hash_of(password: str) -> str:
    """NTOWFv1 (MS-NLMP 3.3.1) of the password as it was typed: no NTLM client knows SASLprep."""
    from spnego._ntlm_raw.md4 import md4  # late: pyspnego loads all of Kerberos that there is

    return md4(password.encode("utf-16-le")).hex()


def _nt_hash(text: object) -> str:
    if text == "" or (isinstance(text, str) and len(bytes.fromhex(text)) == 16):
        return text
    raise ValueError("nt is no NT hash")  # and is not shown: it may be almost one
