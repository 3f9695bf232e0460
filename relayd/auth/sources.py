"""Everything that can vouch for an account, made from the settings: the accounts file, the directory, tickets, NTLM and
client certificates. Each is a cred checker.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path as File
from typing import Any, TypeVar

from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import Deferred, gatherResults, succeed

from relayd.auth.accounts import AccountsFile
from relayd.auth.certificate import CertificateChecker
from relayd.auth.checkers import AccountsChecker, AnonymousChecker
from relayd.auth.directory import LdapChecker, PasswordChecker
from relayd.auth.kerberos import KerberosAcceptor, kerberos_missing
from relayd.auth.lockout import FAILURE_WINDOW, FAILURES, AccountLockout, FailureCount
from relayd.auth.membership import Membership
from relayd.auth.ntlm import NtlmBackend
from relayd.auth.ntlm_accounts import AccountsBackend
from relayd.auth.ntlm_checker import LocalNtlmChecker, NtlmChecker
from relayd.auth.ntlm_netlogon import NetlogonBackend
from relayd.auth.ticket import KerberosChecker
from relayd.auth.winbind import WinbindBackend
from relayd.config import system_keytab
from relayd.directory import Directory
from relayd.events import Events, Notice
from relayd.model import AUTH_BUSY
from relayd.netlogon import Netlogon
from relayd.settings import Listener, Settings
from relayd.threads import BoundedPool

__all__ = ["Sources"]

T = TypeVar("T")


class Sources:
    """The sources of one configuration.

    :ivar tickets: where tickets are opened. Passwords are hashed elsewhere: that takes a thousand times as long, and
        strangers who guess shall keep nobody waiting who has a ticket.
    :ivar lockout: the failures of the directory's accounts, over all mechanisms.
    :ivar kerberos: the keys that tickets are opened with; None: there are none.
    :ivar ntlm: who judges NTLM; None: nobody.
    """

    def __init__(self, settings: Settings, directory: Directory | None, reactor: Any, events: Events) -> None:
        self._settings = settings
        self._directory = directory
        self._reactor = reactor
        self._listeners = {entry.name: entry for entry in settings.listeners}
        self.tickets = BoundedPool("tickets", reactor, threads=2, waiting=100, full=AUTH_BUSY)
        self._hashing = BoundedPool("passwords", reactor, threads=2, waiting=100, full=AUTH_BUSY)
        self.lockout = AccountLockout(time.monotonic)
        self.kerberos: KerberosAcceptor | None = None
        self.ntlm: NtlmBackend | None = None
        self.netlogon: Netlogon | None = None
        self._winbind: WinbindBackend | None = None
        self._accounts = AccountsFile(settings.accounts.file) if settings.accounts.file is not None else None
        self._failures = self._failure_count()
        self._passwords = self._password_checker()
        self._events = events

    def open(self, may_read: Callable[[File], bool] = lambda _: True) -> None:
        """Reads the keytab, and finds out who judges NTLM.

        :param may_read: whether who relayd becomes may read a file, when root asks.
        :raises ValueError: the keytab cannot be used; the text says why.
        """
        if any(entry.authentication.integrated for entry in self._settings.listeners):
            self._integrated(may_read)

    @property
    def passwords(self) -> bool:
        """Whether there is anybody whose password could be checked."""
        return self._passwords is not None

    @property
    def checkers(self) -> tuple[ICredentialsChecker, ...]:
        """For the portal."""
        found: list[ICredentialsChecker] = [AnonymousChecker()]
        if self._passwords is not None:
            found.append(self._passwords)
        if self.kerberos is not None:
            membership = Membership(self._directory, self._of(lambda entry: entry.relay))
            found.append(KerberosChecker(self._directory, membership))
        if self.ntlm is not None:
            found.append(self._ntlm_checker())
        if self._directory is not None:
            default_domain = self._of(lambda entry: entry.authentication.default_domain)
            found.append(CertificateChecker(self._directory, self._settings.tls.client_map, default_domain))
        return tuple(found)

    def close(self) -> Deferred[Any]:
        """Asks nobody any more. Fires when the threads and processes have ended."""
        return gatherResults(
            [
                self.netlogon.close() if self.netlogon is not None else succeed(None),
                self._winbind.close() if self._winbind is not None else succeed(None),
                self.tickets.end(),
                self._hashing.end(),
            ]
        )

    def _of(self, key: Callable[[Listener], T]) -> Callable[[str], T]:
        """A listener's key, by its name."""
        return lambda name: key(self._listeners[name])

    def _failure_count(self) -> FailureCount:
        lockout = self._settings.authentication.lockout
        limit, window = (FAILURES, FAILURE_WINDOW) if lockout.auto else (lockout.failures, lockout.seconds)
        return FailureCount(limit, window, self._reactor.seconds)

    def _password_checker(self) -> ICredentialsChecker | None:
        """Who checks names and passwords: the accounts file, the directory, or both."""
        local = ldap = None
        if self._accounts is not None:
            local = AccountsChecker(self._accounts, self._hashing, self._failures, self._reactor.seconds)
        if self._directory is not None:
            ldap = LdapChecker(
                self._directory,
                self.lockout,
                self._settings.authentication.lockout,
                self._of(lambda entry: entry.authentication.default_domain),
                self._settings.directory.cache,
                time.monotonic,
            )
        if self._accounts is not None and local is not None and ldap is not None:
            return PasswordChecker(self._accounts, local, ldap)
        return local or ldap

    def _integrated(self, may_read: Callable[[File], bool]) -> None:
        settings, hostname = self._settings, self._settings.server.hostname
        keytab = settings.kerberos.keytab
        if keytab is not None:
            self.kerberos = KerberosAcceptor(keytab)
        elif system_keytab() and not kerberos_missing():
            try:
                self.kerberos = _of_the_system(may_read)
            except ValueError as error:  # nobody asked for it by name
                self._events.emit(Notice(text=f"is off: {error}", key="kerberos.keytab"))
        if not any(entry.authentication.ntlm for entry in settings.listeners):
            return
        backend = settings.ntlm.backend
        if backend == "netlogon":
            assert self._directory is not None  # the configuration was checked
            self.netlogon = Netlogon(self._directory, settings.ntlm, self._reactor, self._events)
            self.ntlm = NetlogonBackend(self.netlogon, hostname, time.time)
        elif backend == "winbind":
            self.ntlm = self._winbind = WinbindBackend(self._reactor)
        elif backend == "accounts" and self._accounts is not None:
            self.ntlm = AccountsBackend(self._accounts, hostname, time.time)

    def _ntlm_checker(self) -> ICredentialsChecker:
        channel_binding = self._of(lambda entry: entry.authentication.channel_binding)
        if self._settings.ntlm.backend == "accounts":
            return LocalNtlmChecker(self._failures, channel_binding)
        directory = self._directory
        return NtlmChecker(
            directory,
            self.lockout,
            self._settings.authentication.lockout,
            channel_binding,
            directory.named_groups if directory is not None else None,
        )


def _of_the_system(may_read: Callable[[File], bool]) -> KerberosAcceptor:
    """By the host's own keys.

    :raises ValueError: they cannot be used; the text says why.
    """
    acceptor = KerberosAcceptor(None)
    if not may_read(File(acceptor.keytab)):
        raise ValueError(f"keytab {acceptor.keytab} cannot be read by the user that relayd runs as")
    return acceptor
