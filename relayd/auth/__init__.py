"""Who is it? The cred portal, its credentials and its checkers."""

from relayd.auth.accounts import Account, AccountsFile, AccountsFileError
from relayd.auth.checkers import AccountsChecker, AnonymousChecker
from relayd.auth.credentials import IPassword, Password
from relayd.auth.directory import LdapChecker, PasswordChecker, directory_principal
from relayd.auth.lockout import AccountLockout, FailureCount, Limits, client_key

__all__ = [
    "Account",
    "AccountLockout",
    "AccountsChecker",
    "AccountsFile",
    "AccountsFileError",
    "AnonymousChecker",
    "FailureCount",
    "IPassword",
    "LdapChecker",
    "Limits",
    "Password",
    "PasswordChecker",
    "client_key",
    "directory_principal",
]
