"""Keytabs: the keys of principals in a file, read and written by MIT's krb5 library (the extra ``relayd[kerberos]``).

A file is replaced as a whole, so that a relay that reads it meanwhile finds either the old keys or the new ones.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Final

from relayd.auth import secret_file
from relayd.auth.secret_file import Owner

__all__ = ["AES", "Key", "KeytabError", "derive", "encryption_name", "merge", "missing", "read", "write"]

#: AES256 and AES128 with SHA-1 (RFC 3962 7), the strongest first.
AES: Final = (18, 17)
#: Versions that are kept beside the newest: there are tickets for them until these end, hours later.
OLD_VERSIONS: Final = 4

_NAMES: Final = {17: "aes128", 18: "aes256", 19: "aes128-sha2", 20: "aes256-sha2", 23: "rc4", 3: "des", 1: "des"}


class KeytabError(Exception):
    """A keytab cannot be read or written; the text names it and says why."""


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of a keytab.

    :ivar principal: ``smtp/relay.corp.example@CORP.EXAMPLE``.
    :ivar kvno: the version of the account's password that it comes from.
    :ivar enctype: RFC 3961 8's number.
    """

    principal: str
    kvno: int
    enctype: int
    secret: bytes = field(repr=False)


def missing() -> str:
    """What has to be installed first; empty: nothing."""
    if importlib.util.find_spec("krb5") is not None and importlib.util.find_spec("gssapi") is not None:
        return ""
    packages = "libkrb5-dev gcc python3-dev"
    return f"Kerberos needs the extra relayd[kerberos]; apt-get install {packages}, then pip install 'relayd[kerberos]'"


def encryption_name(enctype: int) -> str:
    """``aes256`` for 18."""
    return _NAMES.get(enctype, f"encryption type {enctype}")


def derive(password: bytes, salt: bytes, principals: Iterable[str], kvno: int) -> tuple[Key, ...]:
    """The keys that a password makes, for each of the principals of one account (RFC 3962 4).

    :param salt: as the KDC has it; all principals of an account share the account's own.
    """
    import krb5

    context = krb5.init_context()
    secrets = [(enctype, bytes(krb5.c_string_to_key(context, enctype, password, salt).data)) for enctype in AES]
    return tuple(Key(name, kvno, enctype, secret) for name in principals for enctype, secret in secrets)


def merge(old: Iterable[Key], new: Sequence[Key], *, own: Collection[str] = (), fresh: bool = False) -> tuple[Key, ...]:
    """What a keytab holds after its account got *new* keys: those, the versions before them, and what is others'.

    :param own: principals of the account besides those of *new*.
    :param fresh: the account is a new one, so older keys of its principals belong to none.
    """
    ours = {key.principal for key in new} | set(own)
    kvno = max(key.kvno for key in new)

    def stays(key: Key) -> bool:
        return key.principal not in ours or (not fresh and kvno - OLD_VERSIONS <= key.kvno < kvno)

    return (*filter(stays, old), *new)


def read(file: File | None) -> tuple[Key, ...]:
    """The entries of *file*; None: of the system's keytab.

    :raises KeytabError: it cannot be read.
    """
    import krb5

    name = str(file) if file is not None else "the system's keytab"
    try:
        context = krb5.init_context()
        keytab = krb5.kt_resolve(context, f"FILE:{file}".encode()) if file is not None else krb5.kt_default(context)
        return tuple(Key(str(e.principal), e.kvno, e.key.enctype, bytes(e.key.data)) for e in keytab)
    except (krb5.Krb5Error, UnicodeDecodeError) as error:
        raise KeytabError(f"{name}: {error}") from None


def write(file: File, keys: Iterable[Key], owner: Owner | None = None) -> None:
    """Replaces *file* by one that holds *keys*: mode 0600, safe on the disk when this returns.

    :param owner: whose the file becomes; None: it stays the caller's.
    :raises KeytabError: it cannot be written; the old file is still there.
    """
    import krb5

    try:
        # A folder of its own: the library makes the file itself, and nobody else may be there before.
        with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
            made = File(folder) / "keytab"
            context = krb5.init_context()
            keytab = krb5.kt_resolve(context, f"FILE:{made}".encode())
            for key in keys:
                principal = krb5.parse_name_flags(context, key.principal.encode())
                block = krb5.init_keyblock(context, key.enctype, key.secret)
                krb5.kt_add_entry(context, keytab, principal, key.kvno, 0, block)
            secret_file.put(made, file, owner)
    except krb5.Krb5Error as error:
        raise KeytabError(f"{file}: {error}") from None
    except OSError as error:
        raise KeytabError(f"{file}: {error.strerror or error}") from None
