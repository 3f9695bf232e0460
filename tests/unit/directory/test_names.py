"""What a user name means, and what is asked for it."""

import ldap3
import pytest
from ldap3.operation.search import search_operation

from relayd.directory.entries import Group, sid_octets
from relayd.directory.names import AccountName, Domain, account_name, recipient_filter, sid_filter, user_filter

CORP = Domain("DC=corp,DC=example", "DC=corp,DC=example", "corp.example", "CORP")


@pytest.mark.parametrize(
    ("text", "default_domain", "meant"),
    [
        ("alice", "", AccountName(account="alice")),
        ("HOST$", "", AccountName(account="HOST$")),
        ("alice", "corp", AccountName(account="alice")),
        ("alice", "Corp.Example", AccountName(account="alice")),
        ("alice", "partner.example", AccountName(upn="alice@partner.example")),
        ("CORP\\alice", "partner.example", AccountName(account="alice")),
        ("corp\\HOST$", "", AccountName(account="HOST$")),
        ("corp.example\\alice", "", AccountName(account="alice")),
        ("alice@corp.example", "", AccountName("alice@corp.example", "alice")),
        ("alice@CORP", "", AccountName("alice@CORP", "alice")),
        ("alice@partner.example", "", AccountName("alice@partner.example")),
        ("alice@home@corp.example", "", AccountName("alice@home@corp.example", "alice@home")),
        ("OTHER\\alice", "", None),
        ("\\alice", "", None),
        ("CORP\\", "", None),
        ("CORP\\x\\alice", "", None),
        ("@corp.example", "", None),
        ("alice@", "", None),
        ("", "", None),
    ],
)
def test_names(text: str, default_domain: str, meant: AccountName | None) -> None:
    assert account_name(text, default_domain, CORP) == meant


HOME = "DC=corp,DC=example"
FOREST = Domain(
    "",
    HOME,
    "corp.example",
    "CORP",
    (Domain("", f"DC=lab,{HOME}", "lab.corp.example", "LAB"), Domain("", "DC=x", "x", "X")),
)


@pytest.mark.parametrize(
    ("text", "default_domain", "meant"),
    [
        ("alice", "", AccountName(account="alice", root=HOME)),
        ("CORP\\alice", "", AccountName(account="alice", root=HOME)),
        ("lab\\alice", "", AccountName(account="alice", root=f"DC=lab,{HOME}")),
        ("alice", "LAB", AccountName(account="alice", root=f"DC=lab,{HOME}")),
        ("alice@lab.corp.example", "", AccountName("alice@lab.corp.example", "alice", f"DC=lab,{HOME}")),
        ("alice@partner.example", "", AccountName("alice@partner.example")),
        ("OTHER\\alice", "", None),
    ],
)
def test_names_in_a_forest(text: str, default_domain: str, meant: AccountName | None) -> None:
    assert account_name(text, default_domain, FOREST) == meant


@pytest.mark.parametrize(
    ("dn", "netbios"),
    [
        (f"CN=g,CN=Users,{HOME}", "CORP"),
        (f"CN=g,cn=users,dc=LAB,{HOME.lower()}", "LAB"),
        (f"CN=g,OU=xDC=lab,{HOME}", "CORP"),
        ("CN=g,DC=x", "X"),
        ("CN=g,DC=elsewhere", "CORP"),
    ],
)
def test_whose_entry_it_is(dn: str, netbios: str) -> None:
    assert FOREST.of(dn).netbios == netbios


def test_a_bare_name_means_no_group_of_another_domain() -> None:
    """Else whoever administers one domain could name a group like one that may relay in another."""
    own, other = f"CN=Senders,{HOME}", f"CN=Senders,DC=lab,{HOME}"
    assert FOREST.spellings(Group("S-1-5-1", own, "Senders")) == {"S-1-5-1", own, "Senders", "CORP\\Senders"}
    assert FOREST.spellings(Group("S-1-5-2", other, "Senders")) == {"S-1-5-2", other, "LAB\\Senders"}


def test_a_domain_without_a_netbios_name_is_not_called_nothing() -> None:
    assert account_name("\\alice", "", Domain("DC=x", "DC=x")) is None
    assert account_name("alice@", "", Domain("DC=x", "DC=x")) is None


@pytest.mark.parametrize("name", ["*", "a*", "x)(objectClass=*", "a\\2a", "(", "nul\0", "jörg", "\\", "&|!"])
def test_nothing_in_a_name_is_syntax(name: str) -> None:
    """ldap3 reads the filter as three clauses, with the name as the value of one."""
    filter = user_filter(AccountName(account=name))
    request = search_operation("DC=x", filter, ldap3.SUBTREE, ldap3.DEREF_NEVER, None, 0, 0, False, False, False)
    (_, _, either) = request["filter"].getComponent()
    (clause,) = either.getComponent()
    assert bytes(clause.getComponent()["assertionValue"]) == name.encode()


def test_a_recipient_is_looked_for_among_proxies_and_mail() -> None:
    assert recipient_filter(("a@b", "*@b")) == (
        "(|(proxyAddresses=smtp:a@b)(mail=a@b)(proxyAddresses=smtp:\\2a@b)(mail=\\2a@b))"
    )


def test_a_binary_sid_is_escaped() -> None:
    assert sid_filter((sid_octets("S-1-5-32"),)) == "(|(objectSid=\\01\\01\\00\\00\\00\\00\\00\\05\\20\\00\\00\\00))"
