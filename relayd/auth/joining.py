"""Joins this relay to its domain: a computer account, its keys in a keytab, and its password in a file.

The order is such that a failure leaves as little as can be: everything that can be known beforehand is looked at first,
what was made is taken away again, and success is reported when a KDC has taken the new keys.
"""

from __future__ import annotations

import secrets
import ssl
import string
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Final

from relayd.auth import keytab, secret_file
from relayd.auth.kdc import Kdc, KdcFault
from relayd.auth.keytab import Key, KeytabError
from relayd.auth.secret_file import Owner
from relayd.auth.service_names import principals
from relayd.directory.computer import (
    AES_ENCRYPTION,
    PASSWORD_NOT_REQUIRED,
    WORKSTATION,
    Account,
    Changing,
    NotAllowed,
    container,
    find_account,
    find_by_principals,
    password_octets,
    read_account,
)
from relayd.directory.connection import Controller
from relayd.directory.faults import ControllerFault
from relayd.directory.names import Domain
from relayd.model import IPAddress

__all__ = ["Administrator", "JoinFailed", "JoinRefused", "Joined", "Joining", "Plan", "new_password"]

#: Characters of a machine password; Windows makes them as long.
PASSWORD_LENGTH: Final = 120
_SYMBOLS: Final = "!#%+-.:=@_"
#: An ordinary user who may make computers by ms-DS-MachineAccountQuota writes these alone (MS-ADTS 3.1.1.5.2).
_ORDINARY: Final = (
    "an ordinary user may make a computer that is called as its host, in the domain's own container, with the names of "
    "that host alone; for more, sign in as an administrator, or have the right to create computers in --ou delegated"
)


class JoinRefused(Exception):
    """It cannot be done as it was asked for; the text says why, and what would be right."""


class JoinFailed(Exception):
    """A controller, its KDC or this host's disk failed."""


class _Unsettled(ControllerFault):
    """A change went out, and nobody can be asked whether it was done."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What shall be there afterwards.

    :ivar computer: the account's name without its ``$``.
    :ivar host: dNSHostName.
    :ivar services: service principal names, ``smtp/relay.corp.example``.
    :ivar ou: where a new account goes; empty: where the domain wants it.
    :ivar owner: whose the files become; None: they stay the caller's.
    """

    computer: str
    host: str
    services: tuple[str, ...]
    keytab: File
    secret: File
    owner: Owner | None = None
    ou: str = ""
    reuse: bool = False
    rotate: bool = False

    @property
    def account(self) -> str:
        return f"{self.computer}$"

    @property
    def next_secret(self) -> File:
        """Holds a password before the directory has it: whatever ends the process, it is not lost."""
        return self.secret.with_name(f"{self.secret.name}.next")


@dataclass(frozen=True, slots=True)
class Joined:
    """What is there now. *made*: the account is new."""

    computer: str
    dn: str
    sid: str
    made: bool
    kvno: int
    services: tuple[str, ...]
    principals: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Administrator:
    """Whoever signs in, and to which controller.

    :ivar name: as a bind takes it.
    :ivar itself: it is the computer, which may change its password and no more.
    """

    controller: Controller
    address: IPAddress
    context: ssl.SSLContext
    name: str = ""
    password: str = field(default="", repr=False)
    itself: bool = False

    def open(self) -> Changing:
        """A connection that is signed in.

        :raises JoinRefused: the user is refused.
        :raises ControllerFault: the controller cannot tell.
        """
        connection = self.connect()
        refused = connection.bind(self.name, self.password.encode())
        if refused is not None:
            connection.close()
            raise JoinRefused(f"{self.controller} does not let {self.name} in: {refused}")
        return connection

    def connect(self) -> Changing:
        return Changing(self.controller, self.address, self.context)

    def signs_in(self, name: str, password: str) -> bool:
        """Whether the controller takes this name and password. Raises ControllerFault."""
        connection = self.connect()
        try:
            return connection.bind(name, password.encode()) is None
        finally:
            connection.close()


class Joining:
    """One run. All of it blocks.

    :param say: hears of each step that was done.
    """

    def __init__(
        self, plan: Plan, domain: Domain, administrator: Administrator, kdc: Kdc, say: Callable[[str], None]
    ) -> None:
        self.plan = plan
        self.domain = domain
        self._administrator = administrator
        self._kdc = kdc
        self._say = say
        self._undo: list[tuple[str, Callable[[], None]]] = []
        self._connection: Changing | None = None
        self._aes_refused = False

    def run(self) -> Joined:
        """Does it.

        :raises JoinRefused: nothing was changed, or all was taken back; the text says what was not.
        :raises JoinFailed: the same.
        """
        try:
            old = self._places()
            self._kdc.reach(self._connecting)
            with self._taken_back():
                self._connection = self._administrator.open()
                self._say(f"{self._administrator.controller}: signed in as {self._administrator.name}")
                existing = self._existing()
                done = self._rotated(existing, old) if self.plan.rotate and existing else self._made(existing, old)
        except NotAllowed as refused:
            hint = f"; {_ORDINARY}" if refused.access and not self.plan.rotate else ""
            raise JoinRefused(f"{refused}{hint}") from None
        except (ControllerFault, KdcFault, KeytabError, OSError) as failed:
            raise JoinFailed(str(failed)) from None
        finally:
            if self._connection is not None:
                self._connection.close()
        return done

    _connecting = 5.0

    # ---- before anything is changed ---------------------------------------------------------------------------

    def _places(self) -> tuple[Key, ...]:
        """Sees that both files can be written; what the keytab holds now."""
        for file in (self.plan.keytab, self.plan.secret):
            if file.is_dir():
                raise JoinRefused(f"{file} is a directory; name a file")
            try:
                with tempfile.TemporaryFile(dir=file.parent):
                    pass
            except OSError as error:
                raise JoinRefused(f"{file} cannot be written: {error.strerror}") from None
        if not self.plan.keytab.exists() or not self.plan.keytab.stat().st_size:
            return ()
        try:
            return keytab.read(self.plan.keytab)
        except KeytabError as error:
            raise JoinRefused(f"{error}; move it away, or name another") from None

    def _existing(self) -> Account | None:
        plan = self.plan
        existing = find_account(self.domain, plan.account, self._live)
        if existing is None:
            if plan.rotate:
                raise JoinRefused(f"there is no account {plan.account}; join without --rotate first")
            if plan.reuse:
                self._say(f"{plan.account}: there is none yet; it will be made")
        else:
            if not existing.is_computer:
                raise JoinRefused(f"{existing.dn} is no ordinary computer's account; use another name with --computer")
            if not (plan.reuse or plan.rotate):
                raise JoinRefused(
                    f"{existing.dn} exists already; if it is this relay's, join with --reuse, which gives it a new "
                    "password, or name another with --computer"
                )
            if existing.disabled:
                raise JoinRefused(f"{existing.dn} is disabled; enable it first")
        if not plan.rotate:
            self._unclaimed(existing)
        return existing

    def _unclaimed(self, existing: Account | None) -> None:
        """A name that two accounts have is nobody's: the KDC gives no ticket for it."""
        wanted = {name.casefold() for name in self.plan.services}
        claimed = []
        for holder in find_by_principals(self.domain, self.plan.services, self._live):
            if existing is None or holder.dn != existing.dn:
                names = ", ".join(name for name in holder.principals if name.casefold() in wanted)
                claimed.append(f"{holder.dn} has {names}")
        if claimed:
            raise JoinRefused(
                f"{'; '.join(claimed)}: a name belongs to one account. Take it from that one first (setspn -D), or "
                "join as that one, with --computer and --reuse"
            )

    # ---- a new account, or one that is taken over ---------------------------------------------------------------

    def _made(self, existing: Account | None, old: tuple[Key, ...]) -> Joined:
        password = new_password()
        self._write_next(password)
        dn = self._create(password) if existing is None else self._take_over(existing, password)
        account = self._read(dn)
        if existing is None:
            self._say(f"{dn}: made, key version {account.kvno}")
        names = principals(account, self._kdc.realm)
        keys = self._keys(password, account, names)
        merged = keytab.merge(old, keys, fresh=existing is None)
        staged = self.plan.keytab.with_name(f"{self.plan.keytab.name}.next")
        self._undo.append((f"{staged}", lambda: staged.unlink(missing_ok=True)))
        keytab.write(staged, merged, self.plan.owner)
        self._check(staged, names)
        self._place(staged, self.plan.keytab)
        self._settle_secret()
        return self._joined(account, names, made=existing is None)

    def _create(self, password: str) -> str:
        plan = self.plan
        try:
            place = container(self.domain, plan.ou, self._live)
        except LookupError as error:
            raise JoinRefused(str(error)) from None
        dn = f"CN={plan.computer},{place}"
        attributes = {
            "objectClass": ["top", "person", "organizationalPerson", "user", "computer"],
            "sAMAccountName": plan.account,
            "userAccountControl": str(WORKSTATION),
            "unicodePwd": password_octets(password),
            "dNSHostName": plan.host,
            "servicePrincipalName": list(plan.services),
        }
        encryption = {"msDS-SupportedEncryptionTypes": str(AES_ENCRYPTION)}
        undo = (dn, lambda: self._remove(dn, password))
        self._undo.append(undo)
        try:
            try:
                self._settled(lambda: self._live.add(dn, attributes | encryption), dn, password)
            except NotAllowed as refused:
                if not refused.access:
                    raise
                self._settled(lambda: self._live.add(dn, attributes), dn, password)
                self._only_aes(dn, password)
        except NotAllowed:
            self._undo.remove(undo)
            raise
        return dn

    def _only_aes(self, dn: str, password: str) -> None:
        """Who made an account by quota may not write this attribute; the computer itself may try."""
        wanted = {"msDS-SupportedEncryptionTypes": [str(AES_ENCRYPTION)]}
        with suppress(NotAllowed):
            self._live.replace(dn, wanted)
            return
        itself = self._administrator.connect()
        try:
            if itself.bind(dn, password.encode()) is None:
                with suppress(NotAllowed):
                    itself.replace(dn, wanted)
                    return
        finally:
            itself.close()
        self._aes_refused = True

    def _take_over(self, existing: Account, password: str) -> str:
        plan, dn = self.plan, existing.dn
        had = {name.casefold() for name in existing.principals}
        services = (*existing.principals, *(name for name in plan.services if name.casefold() not in had))
        wanted = {
            "dNSHostName": ([plan.host], [existing.host] if existing.host else []),
            "servicePrincipalName": (list(services), list(existing.principals)),
            "msDS-SupportedEncryptionTypes": (
                [str(AES_ENCRYPTION)],
                [str(existing.encryption)] if existing.encryption else [],
            ),
            "userAccountControl": (
                [str((existing.control | WORKSTATION) & ~PASSWORD_NOT_REQUIRED)],
                [str(existing.control)],
            ),
        }
        changed = {name: pair for name, pair in wanted.items() if pair[0] != pair[1]}
        if changed:
            before = {name: pair[1] for name, pair in changed.items()}
            undo = (f"{', '.join(changed)} of {dn}", lambda: self._live.replace(dn, before))
            self._undo.append(undo)
            try:
                self._live.replace(dn, {name: pair[0] for name, pair in changed.items()})
            except NotAllowed:  # one modification: nothing of it was done
                self._undo.remove(undo)
                raise
        unicode_password = {"unicodePwd": [password_octets(password)]}
        self._settled(lambda: self._live.replace(dn, unicode_password), dn, password)
        self._undo.append((f"the password of {dn}", _never))
        self._say(f"{dn}: taken over, with a new password")
        return dn

    # ---- a new password for the account that is there -----------------------------------------------------------

    def _rotated(self, existing: Account, old: tuple[Key, ...]) -> Joined:
        plan, dn, password = self.plan, existing.dn, new_password()
        names = principals(existing, self._kdc.realm)
        # Tickets with the new key come as soon as the directory has the new password, so the keytab goes first.
        foreseen = self._keys(password, existing, names, kvno=existing.kvno + 1)
        before = plan.keytab.read_bytes() if plan.keytab.exists() else None
        self._undo.append((str(plan.keytab), lambda: secret_file.restore(plan.keytab, before, plan.owner)))
        keytab.write(plan.keytab, keytab.merge(old, foreseen), plan.owner)
        self._write_next(password)

        def change() -> None:
            if self._administrator.itself:
                self._live.change_password(dn, self._administrator.password, password)
            else:
                self._live.replace(dn, {"unicodePwd": [password_octets(password)]})

        try:
            self._settled(change, dn, password)
        except _Unsettled as unknown:
            self._undo.clear()  # both passwords are in their files, and the keys of both in the keytab
            raise JoinFailed(f"{unknown}: whether the password is the new one is not known; rotate again") from None
        # From here on the new password is the only one: nothing is taken back, whatever fails.
        self._undo.clear()
        self._settle_secret()
        self._undo.clear()
        account = self._read(dn)
        keys = self._keys(password, account, names)
        if [(k.kvno, k.secret) for k in keys] != [(k.kvno, k.secret) for k in foreseen]:
            keytab.write(plan.keytab, keytab.merge(old, keys), plan.owner)
        self._say(f"{dn}: new password, key version {account.kvno}")
        self._check(plan.keytab, names)
        return self._joined(account, names, made=False)

    # ---- what these have in common ------------------------------------------------------------------------------

    @property
    def _live(self) -> Changing:
        """The connection, opened again where it was lost."""
        if self._connection is None or self._connection.closed:
            self._connection = self._administrator.open()
        return self._connection

    def _settled(self, change: Callable[[], None], dn: str, password: str) -> None:
        """Makes a change that sets a password; whether it was done is found out where no answer came."""
        try:
            change()
        except ControllerFault as fault:
            try:
                done = self._administrator.signs_in(dn, password)
            except ControllerFault:
                raise _Unsettled(str(fault)) from None
            if not done:
                raise

    def _read(self, dn: str) -> Account:
        account = read_account(dn, self._live)
        if account is None:
            raise ControllerFault(f"{dn} is not there any more")
        if not account.kvno:
            raise JoinRefused(f"{self._administrator.name} may not read msDS-KeyVersionNumber of {dn}")
        return account

    def _keys(self, password: str, account: Account, names: tuple[str, ...], kvno: int = 0) -> tuple[Key, ...]:
        salt = self._kdc.salt(names[0])
        return keytab.derive(password.encode(), salt, names, kvno or account.kvno)

    def _check(self, file: File, names: tuple[str, ...]) -> None:
        try:
            self._kdc.check(file, names[0], names[1:])
        except KdcFault as fault:
            if not self._aes_refused:
                raise
            # Without it a domain's default may be RC4.
            raise JoinRefused(
                f"{fault}; this user may not set msDS-SupportedEncryptionTypes to {AES_ENCRYPTION}: sign in as an "
                f"administrator, or have one make {self.plan.account} with it, and join with --reuse"
            ) from None
        self._say(f"{self.plan.keytab}: {len(names)} principals, verified with the KDC at {self._kdc.address}")

    def _joined(self, account: Account, names: tuple[str, ...], made: bool) -> Joined:
        return Joined(account.name, account.dn, account.sid, made, account.kvno, account.principals, names)

    def _write_next(self, password: str) -> None:
        file = self.plan.next_secret
        self._undo.append((str(file), lambda: file.unlink(missing_ok=True)))
        secret_file.write(file, password.encode() + b"\n", self.plan.owner)

    def _settle_secret(self) -> None:
        self._place(self.plan.next_secret, self.plan.secret)
        self._say(f"{self.plan.secret}: the password of {self.plan.account}")

    def _place(self, made: File, file: File) -> None:
        before = file.read_bytes() if file.exists() else None
        self._undo.append((str(file), lambda: secret_file.restore(file, before, self.plan.owner)))
        secret_file.put(made, file, self.plan.owner)

    def _remove(self, dn: str, password: str) -> None:
        """Takes away the account that was made; whoever may not do that disables it."""
        if read_account(dn, self._live) is None or not self._administrator.signs_in(dn, password):
            return
        try:
            self._live.delete(dn)
        except NotAllowed:
            self._live.replace(dn, {"userAccountControl": [str(WORKSTATION | 0x2)]})
            raise JoinRefused("it may not be removed, and was disabled") from None

    @contextmanager
    def _taken_back(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            left = []
            for what, undo in reversed(self._undo):
                try:
                    undo()
                except Exception as failed:
                    left.append(f"{what}: {failed}")
            if left and not isinstance(error, Exception):
                self._say(f"not taken back: {'; '.join(left)}")
            if not left or not isinstance(error, Exception):
                raise
            kind = JoinRefused if isinstance(error, NotAllowed | JoinRefused) else JoinFailed
            raise kind(f"{error}; not taken back: {'; '.join(left)}") from None


def new_password() -> str:
    """A random one, of all the kinds of characters that a domain may demand."""
    kinds = (string.ascii_lowercase, string.ascii_uppercase, string.digits, _SYMBOLS)
    while True:
        password = "".join(secrets.choice("".join(kinds)) for _ in range(PASSWORD_LENGTH))
        if all(any(c in kind for c in password) for kind in kinds):
            return password


def _never() -> None:
    raise JoinRefused("its old one is gone")
