"""What people type as a user name -> what the directory is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from ldap3.utils.conv import escape_bytes, escape_filter_chars

from relayd.directory.entries import Group

__all__ = [
    "AccountName",
    "Domain",
    "account_name",
    "dns_name",
    "equals",
    "mapping_filter",
    "recipient_filter",
    "sid_filter",
    "user_filter",
]


@dataclass(frozen=True, slots=True)
class Domain:
    """What a directory says of itself.

    :ivar base: where searches begin; empty: everywhere in the forest, which a global catalog holds.
    :ivar root: the domain's own entry.
    :ivar dns: its DNS name; *netbios*: the name in ``CORP\\alice``. Empty where it has none.
    :ivar others: the other domains of the forest, where a global catalog is asked.
    """

    base: str
    root: str
    dns: str = ""
    netbios: str = ""
    others: tuple[Domain, ...] = ()

    @property
    def groups(self) -> str:
        """Where groups are searched: they may lie outside of *base*."""
        return self.root if self.base else ""

    def is_called(self, name: str) -> bool:
        """Whether *name* means this domain."""
        return name.casefold() in {self.dns.casefold(), self.netbios.casefold()} - {""}

    def called(self, name: str) -> Domain | None:
        """The domain that *name* means: this one, or another of the forest."""
        return next((domain for domain in (self, *self.others) if domain.is_called(name)), None)

    def of(self, dn: str) -> Domain:
        """The domain of an entry; a child's entries have names that end like its parent's."""
        folded = dn.casefold()
        holding = [one for one in (self, *self.others) if f",{folded}".endswith(f",{one.root.casefold()}")]
        return max(holding, key=lambda one: len(one.root), default=self)

    def spellings(self, group: Group) -> frozenset[str]:
        """How a policy may spell *group*: SID, DN, ``CORP\\name``; the bare name means a group of this domain alone."""
        home = self.of(group.dn)
        names = (f"{home.netbios}\\{group.name}" if home.netbios else "", group.name if home is self else "")
        return frozenset((group.sid, group.dn, *(names if group.name else ()))) - {""}


@dataclass(frozen=True, slots=True)
class AccountName:
    """*upn* is looked for first, and *account* (sAMAccountName) where no UPN is so; either may be empty.

    :ivar root: the domain that the account is in, where there are several to search; empty: there is one.
    """

    upn: str = ""
    account: str = ""
    root: str = ""


def account_name(text: str, default_domain: str, domain: Domain) -> AccountName | None:
    """What *text* means in *domain*: ``alice``, ``HOST$``, ``CORP\\alice``, ``alice@corp.example``, ``alice@CORP``, or
    a UPN with any suffix.

    A UPN that was given to somebody goes before the one that every account has by its name and domain, as it does
    when Windows signs in (MS-ADTS 5.1.1.1.1).

    :param default_domain: what a bare name belongs to; empty: this domain.
    :returns: None for a name that cannot be an account's here.
    """

    def root(home: Domain | None) -> str:
        return "" if domain.base or home is None else home.root

    if "\\" in text:
        qualifier, _, name = text.partition("\\")
        home = domain.called(qualifier)
        return AccountName(account=name, root=root(home)) if name and "\\" not in name and home is not None else None
    name, at, suffix = text.rpartition("@")
    if at:
        if not name or not suffix:
            return None
        home = domain.called(suffix)
        return AccountName(text, name if home is not None else "", root(home))
    if not text:
        return None
    home = domain.called(default_domain) if default_domain else domain
    return AccountName(account=text, root=root(home)) if home is not None else AccountName(f"{text}@{default_domain}")


def dns_name(dn: str) -> str:
    """The DNS name of the domain whose DN, or an entry's DN in it, is *dn*; empty where there is none (RFC 2247)."""
    parts = [part.strip() for part in dn.split(",")]
    return ".".join(part[3:] for part in parts if part[:3].lower() == "dc=")


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
