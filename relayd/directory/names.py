"""What people type as a user name -> what the directory is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from ldap3.utils.conv import escape_bytes, escape_filter_chars

__all__ = [
    "AccountName",
    "Domain",
    "account_name",
    "equals",
    "mapping_filter",
    "recipient_filter",
    "sid_filter",
    "user_filter",
]


@dataclass(frozen=True, slots=True)
class Domain:
    """What a directory says of itself.

    :ivar base: where searches begin.
    :ivar root: the domain's own entry.
    :ivar dns: its DNS name; *netbios*: the name in ``CORP\\alice``. Empty where it has none.
    """

    base: str
    root: str
    dns: str = ""
    netbios: str = ""

    def is_called(self, name: str) -> bool:
        """Whether *name* means this domain."""
        return name.casefold() in {self.dns.casefold(), self.netbios.casefold()} - {""}


@dataclass(frozen=True, slots=True)
class AccountName:
    """*upn* is looked for first, and *account* (sAMAccountName) where no UPN is so; either may be empty."""

    upn: str = ""
    account: str = ""


def account_name(text: str, default_domain: str, domain: Domain) -> AccountName | None:
    """What *text* means in *domain*: ``alice``, ``HOST$``, ``CORP\\alice``, ``alice@corp.example``, ``alice@CORP``, or
    a UPN with any suffix.

    A UPN that was given to somebody goes before the one that every account has by its name and domain, as it does
    when Windows signs in (MS-ADTS 5.1.1.1.1).

    :param default_domain: what a bare name belongs to; empty: this domain.
    :returns: None for a name that cannot be an account's here.
    """
    if "\\" in text:
        qualifier, _, name = text.partition("\\")
        return AccountName(account=name) if name and "\\" not in name and domain.is_called(qualifier) else None
    name, at, suffix = text.rpartition("@")
    if at:
        if not name or not suffix:
            return None
        return AccountName(text, name if domain.is_called(suffix) else "")
    if not text:
        return None
    if default_domain and not domain.is_called(default_domain):
        return AccountName(f"{text}@{default_domain}")
    return AccountName(account=text)


def equals(attribute: str, value: str) -> str:
    """A filter for entries where *attribute* equals *value* (RFC 4515)."""
    return f"({attribute}={escape_filter_chars(value)})"


def user_filter(name: AccountName) -> str:
    """Finds people and computers, but no accounts of trusts between domains."""
    parts = [equals("userPrincipalName", name.upn)] if name.upn else []
    parts += [equals("sAMAccountName", name.account)] if name.account else []
    # 1.2.840.113556.1.4.803: all of these bits; 2048: INTERDOMAIN_TRUST_ACCOUNT (MS-ADTS 2.2.16).
    trusts = "(userAccountControl:1.2.840.113556.1.4.803:=2048)"
    return f"(&(objectClass=user)(!{trusts})(|{''.join(parts)}))"


def recipient_filter(addresses: tuple[str, ...]) -> str:
    """Finds whatever has one of these mail addresses: people, groups, contacts, public folders."""
    parts = [equals("proxyAddresses", f"smtp:{address}") + equals("mail", address) for address in addresses]
    return f"(|{''.join(parts)})"


def mapping_filter(identities: tuple[str, ...]) -> str:
    """Finds the users and computers with one of these explicit mappings (MS-ADA1 2.61)."""
    return f"(|{''.join(equals('altSecurityIdentities', identity) for identity in identities)})"


def sid_filter(sids: tuple[bytes, ...]) -> str:
    """Finds the entries with these SIDs, in their binary form."""
    return f"(|{''.join(f'(objectSid={escape_bytes(sid)})' for sid in sids)})"
