"""What is asked of Active Directory, each as a function over one connection; in a thread."""

from __future__ import annotations

import time
from collections.abc import Iterable

from relayd.directory.connection import Connection
from relayd.directory.entries import (
    GROUP_ATTRIBUTES,
    OWN_ATTRIBUTES,
    USER_ATTRIBUTES,
    Entry,
    Group,
    LockoutPolicy,
    User,
    group,
    interval,
    sid_octets,
    user,
)
from relayd.directory.faults import ControllerFault
from relayd.directory.names import (
    AccountName,
    Domain,
    dns_name,
    equals,
    mapping_filter,
    recipient_filter,
    sid_filter,
    user_filter,
)

_ANY = "(objectClass=*)"
#: SIDs in one search at most.
_SIDS_AT_ONCE = 100


def own_domain(base: str, dns: str, netbios: str, connection: Connection) -> Domain:
    """What the controller says of its domain; what an administrator wrote goes first."""
    root = connection.search("", _ANY, ("defaultNamingContext", "configurationNamingContext"), scope="BASE")
    entry = root[0] if root else Entry("", {})
    context = entry.text("defaultNamingContext")
    if not context and not base:
        raise ControllerFault(f"{connection.controller}: has no defaultNamingContext; write base")
    dns = dns or dns_name(context)
    found = _domains(entry.text("configurationNamingContext"), connection)
    whole = connection.controller.catalog and not base
    # In a forest the domain that was written may be another one than this controller's.
    own = next((one for one in found if whole and one.is_called(dns)), None) or next(
        (one for one in found if one.root.casefold() == context.casefold()), Domain("", context)
    )
    others = tuple(one for one in found if one is not own) if whole else ()
    start = "" if whole else base or own.root
    return Domain(start, own.root or base, dns, netbios or own.netbios, others)


def _domains(configuration: str, connection: Connection) -> list[Domain]:
    """The domains of the forest."""
    if not configuration:
        return []
    # MS-ADTS 6.1.1.2.1.1.5: of the partitions, the domains alone have a NetBIOS name.
    attributes = ("nCName", "dnsRoot", "nETBIOSName")
    found = connection.search(
        f"CN=Partitions,{configuration}", "(&(objectClass=crossRef)(nETBIOSName=*))", attributes, scope="LEVEL"
    )
    return [Domain("", one.text("nCName"), one.text("dnsRoot"), one.text("nETBIOSName")) for one in found]


def find_user(domain: Domain, name: AccountName, connection: Connection) -> User | None:
    """The user called *name*, with the SIDs of its groups; None where there is none, or no single one."""
    if name.root:
        return _find_in_forest(domain, name, connection)
    found = connection.search(domain.base, user_filter(name), USER_ATTRIBUTES, most=3)
    if len(found) > 1:
        found = [entry for entry in found if name.upn and entry.text("userPrincipalName").lower() == name.upn.lower()]
    if len(found) != 1:
        return None
    return _complete(domain, found[0], connection)


def _find_in_forest(domain: Domain, name: AccountName, connection: Connection) -> User | None:
    """A UPN is looked for in all domains, an account's name in its own."""
    found: list[Entry] = []
    if name.upn:
        found = connection.search(domain.base, user_filter(AccountName(name.upn)), USER_ATTRIBUTES, most=2)
    if name.account and not found:
        found = connection.search(name.root, user_filter(AccountName(account=name.account)), USER_ATTRIBUTES)
        found = [entry for entry in found if domain.of(entry.dn).root == name.root]
    return _complete(domain, found[0], connection) if len(found) == 1 else None


def find_sid(domain: Domain, sid: str, connection: Connection) -> User | None:
    """The user or computer with this SID."""
    filter = f"(&(objectClass=user){sid_filter((sid_octets(sid),))})"
    found = connection.search(domain.base, filter, USER_ATTRIBUTES, most=2)
    return _complete(domain, found[0], connection) if len(found) == 1 else None


def find_mapping(domain: Domain, identities: tuple[str, ...], connection: Connection) -> User | None:
    """The user or computer that a certificate is mapped to; None where there is none, or no single one."""
    filter = f"(&(objectClass=user){mapping_filter(identities)})"
    found = connection.search(domain.base, filter, USER_ATTRIBUTES, most=2)
    return _complete(domain, found[0], connection) if len(found) == 1 else None


def _complete(domain: Domain, entry: Entry, connection: Connection) -> User | None:
    own = connection.search(entry.dn, _ANY, OWN_ATTRIBUTES, scope="BASE")
    if not own:  # gone, or renamed, between the two searches
        return None
    if not own[0].raw("tokenGroups"):
        # tokenGroups may be hidden from the account that searches; members seldom are.
        # 1.2.840.113556.1.4.1941: LDAP_MATCHING_RULE_IN_CHAIN (MS-ADTS 3.1.1.3.4.4.3).
        filter = f"(&(objectClass=group){equals('member:1.2.840.113556.1.4.1941:', entry.dn)})"
        chain = connection.search(domain.groups, filter, ("objectSid",))
        sids = tuple(raw for one in chain for raw in one.raw("objectSid"))
        own = [Entry(entry.dn, {**own[0].attributes, "tokengroups": sids})]
    return user(entry, own[0], time.time())


def find_groups(domain: Domain, sids: Iterable[str], connection: Connection) -> dict[str, Group]:
    """The groups of the domain with these SIDs; those of other domains are not among them."""
    wanted = tuple(map(sid_octets, sids))
    found: dict[str, Group] = {}
    for start in range(0, len(wanted), _SIDS_AT_ONCE):
        filter = f"(&(objectClass=group){sid_filter(wanted[start : start + _SIDS_AT_ONCE])})"
        for entry in connection.search(domain.groups, filter, GROUP_ATTRIBUTES):
            one = group(entry)
            found[one.sid] = one
    return found


def has_recipient(domain: Domain, addresses: tuple[str, ...], connection: Connection) -> bool:
    """Whether anything in the directory has one of these mail addresses."""
    return bool(connection.search(domain.base, recipient_filter(addresses), ("mail",), most=1))


def domain_lockout(root: str, connection: Connection) -> LockoutPolicy | None:
    """The lockout of the domain whose own entry is *root*; None where it may not be read, as in a global catalog."""
    return _lockout(root, "lockoutThreshold", "lockOutObservationWindow", connection)


def fine_grained_lockout(dn: str, connection: Connection) -> LockoutPolicy | None:
    """The lockout of a fine-grained password policy; None where the account that searches may not read it."""
    return _lockout(dn, "msDS-LockoutThreshold", "msDS-LockoutObservationWindow", connection)


def _lockout(dn: str, threshold: str, window: str, connection: Connection) -> LockoutPolicy | None:
    found = connection.search(dn, _ANY, (threshold, window), scope="BASE")
    if not found or not found[0].raw(threshold):
        return None
    return LockoutPolicy(found[0].number(threshold), interval(found[0].number(window)))
