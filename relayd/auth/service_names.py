"""What clients ask a KDC for, against who has it in the directory and what the keytab opens. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from relayd.auth.keytab import Key, encryption_name
from relayd.directory.computer import Account

__all__ = ["Finding", "compare", "keytab_names", "principals", "service_names", "with_aliases"]

#: Mail programs ask for smtp, .NET for SMTPSVC.
MAIL_SERVICES: Final = ("smtp", "SMTPSVC")
#: Browsers, for the console. Whoever has HOST/name has it too (the domain's sPNMappings).
WEB_SERVICE, ITS_ALIAS = "HTTP", "HOST"

# msDS-SupportedEncryptionTypes (MS-KILE 2.2.7) -> RFC 3961 8, the strongest first: what a KDC takes.
_ENCRYPTION: Final = ((0x10, 18), (0x08, 17), (0x04, 23))
_RC4: Final = 23


@dataclass(frozen=True, slots=True)
class Finding:
    """One name, and all that is wrong with it.

    :ivar name: ``smtp/relay.corp.example``.
    :ivar accounts: who has it in the directory; one is right.
    :ivar keys: those of the keytab for it, the newest version alone.
    :ivar faults: what keeps clients from a session, or will.
    :ivar note: what is worth a word, and no fault.
    """

    name: str
    accounts: tuple[Account, ...]
    keys: tuple[Key, ...]
    faults: tuple[str, ...] = ()
    note: str = ""


def service_names(hosts: Iterable[str], *, web: bool) -> tuple[str, ...]:
    """What clients of these hosts ask for; they know a host by its full name, or by the first label alone."""
    services = (*MAIL_SERVICES, *((WEB_SERVICE,) if web else ()))
    names = dict.fromkeys(name for host in hosts for name in (host, host.partition(".")[0]))
    return tuple(f"{service}/{name}" for name in names for service in services)


def keytab_names(name: str) -> tuple[str, ...]:
    """How a keytab must spell *name*: it tells upper case from lower, and clients ask for ``smtp`` and ``SMTP``, which
    are one in the directory."""
    service, slash, rest = name.partition("/")
    return (f"smtp/{rest}", f"SMTP/{rest}") if slash and service.casefold() == "smtp" else (name,)


def principals(account: Account, realm: str) -> tuple[str, ...]:
    """What a keytab of *account* holds: its own principal, then each service's."""
    names = [account.name]
    for name in account.principals:
        if "@" in name or "/" not in name:
            continue
        names += keytab_names(name)
    return tuple(dict.fromkeys(f"{name}@{realm}" for name in names))


def with_aliases(names: Iterable[str]) -> tuple[str, ...]:
    """The names to look for in the directory."""
    return tuple(dict.fromkeys(spelled for name in names for spelled in (name, _alias(name)) if spelled))


def compare(
    names: Sequence[str], accounts: Sequence[Account], keys: Sequence[Key], realm: str, *, optional: Iterable[str] = ()
) -> tuple[Finding, ...]:
    """What is found of each name.

    :param accounts: all that have one of *names*, or of their aliases.
    :param keys: the keytab.
    :param optional: names that nobody need have.
    """
    spared = set(optional)
    return tuple(_finding(name, accounts, keys, realm, name in spared) for name in names)


def _finding(name: str, accounts: Sequence[Account], keys: Sequence[Key], realm: str, optional: bool) -> Finding:
    holders = _holders(name, accounts) or _holders(_alias(name), accounts)
    spelled = {f"{one}@{realm}" for one in keytab_names(name)}
    exact = [key for key in keys if key.principal in spelled]
    newest = max((key.kvno for key in exact), default=0)
    current = tuple(key for key in exact if key.kvno == newest)
    if not holders and optional:
        return Finding(name, holders, current, note="no account has it: clients get no ticket for this name")
    if optional and not exact and not any(_is_own(holder, keys, realm) for holder in holders):
        whose = " and ".join(holder.name for holder in holders)
        return Finding(name, holders, current, note=f"{whose} has it: clients that come here by this name get 454")
    faults = list(_in_directory(holders))
    absent = sorted(spelled - {key.principal for key in exact})
    if absent:
        faults.append(_absent(absent, keys))
    if len(holders) == 1 and current:
        faults += _versions(holders[0], newest, current)
    return Finding(name, holders, current, tuple(faults))


def _is_own(holder: Account, keys: Sequence[Key], realm: str) -> bool:
    """Whether the keytab is *holder*'s. A certificate may be for several relays, each with an account of its own."""
    return f"{holder.name}@{realm}".casefold() in {key.principal.casefold() for key in keys}


def _holders(name: str, accounts: Sequence[Account]) -> tuple[Account, ...]:
    wanted = name.casefold()
    return tuple(a for a in accounts if wanted and wanted in {one.casefold() for one in a.principals})


def _alias(name: str) -> str:
    service, _, rest = name.partition("/")
    return f"{ITS_ALIAS}/{rest}" if service == WEB_SERVICE else ""


def _in_directory(holders: Sequence[Account]) -> Iterable[str]:
    if not holders:
        yield "missing in the directory: no account has it"
    elif len(holders) > 1:
        yield f"duplicate: {' and '.join(holder.dn for holder in holders)} have it, so nobody gets a ticket"
    else:
        yield from (f"{holder.name} is disabled" for holder in holders if holder.disabled)


def _absent(absent: Sequence[str], keys: Sequence[Key]) -> str:
    folded = {name.casefold() for name in absent}
    others = sorted({key.principal for key in keys if key.principal.casefold() in folded})
    names = ", ".join(absent)
    if others:
        return f"wrong case: the keytab has {', '.join(others)}, and not {names}"
    return f"missing in the keytab: {names}"


def _versions(holder: Account, newest: int, current: Sequence[Key]) -> Iterable[str]:
    if holder.kvno and newest < holder.kvno:
        yield f"old keys: the keytab has version {newest}, {holder.name} has {holder.kvno}"
        return
    if holder.kvno and newest > holder.kvno:
        yield (
            f"version {newest} in the keytab, and {holder.name} has {holder.kvno}: the keys are another account's, "
            "or this controller does not know the new ones yet"
        )
        return
    enctypes = {key.enctype for key in current}
    offered = [enctype for bit, enctype in _ENCRYPTION if holder.encryption & bit] or [_RC4]
    if offered[0] not in enctypes:
        wish = "set msDS-SupportedEncryptionTypes to 24" if offered[0] == _RC4 else "make the keytab anew"
        yield f"tickets come with {encryption_name(offered[0])}, for which the keytab has no key; {wish}"
