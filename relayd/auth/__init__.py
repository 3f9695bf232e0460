"""Who is it? The cred portal, its credentials and its checkers."""

from relayd.auth.accounts import Account, AccountsFile, AccountsFileError
from relayd.auth.checkers import AccountsChecker, AnonymousChecker
from relayd.auth.credentials import IPassword, Password
from relayd.auth.lockout import FailureCount

__all__ = [
    "Account",
    "AccountsChecker",
    "AccountsFile",
    "AccountsFileError",
    "AnonymousChecker",
    "FailureCount",
    "IPassword",
    "Password",
]
