"""Who is it? The cred portal, its credentials and its checkers."""

from relayd.auth.accounts import Account, AccountsFile, AccountsFileError
from relayd.auth.checkers import AccountsChecker, AnonymousChecker
from relayd.auth.credentials import (
    ClientCertificate,
    IClientCertificate,
    IKerberosIdentity,
    INtlmResponse,
    IPassword,
    KerberosIdentity,
    NtlmResponse,
    Password,
)
from relayd.auth.directory import LdapChecker, PasswordChecker, directory_principal
from relayd.auth.initiator import PasswordInitiator, account_of
from relayd.auth.lockout import AccountLockout, FailureCount, Limits, client_key
from relayd.auth.membership import Membership
from relayd.auth.sources import Sources
from relayd.auth.ticket import KerberosChecker

__all__ = [
    "Account",
    "AccountLockout",
    "AccountsChecker",
    "AccountsFile",
    "AccountsFileError",
    "AnonymousChecker",
    "ClientCertificate",
    "FailureCount",
    "IClientCertificate",
    "IKerberosIdentity",
    "INtlmResponse",
    "IPassword",
    "KerberosChecker",
    "KerberosIdentity",
    "LdapChecker",
    "Limits",
    "Membership",
    "NtlmResponse",
    "Password",
    "PasswordChecker",
    "PasswordInitiator",
    "Sources",
    "account_of",
    "client_key",
    "directory_principal",
]
