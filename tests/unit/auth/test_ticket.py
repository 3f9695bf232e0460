"""A Kerberos identity becomes a principal that knows what the policy asks for, and asks the directory for no more."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred

from relayd.auth.credentials import KerberosIdentity
from relayd.auth.membership import Membership, Wanted
from relayd.auth.pac import Pac
from relayd.auth.ticket import KerberosChecker
from relayd.directory import Directory, Domain, Unavailable, User
from relayd.model import Client, Peer, Principal
from relayd.settings import Relay

SID = "S-1-5-21-1-2-3-1104"
STAFF = "S-1-5-21-1-2-3-1200"
CLIENT = Client(Peer(ip_address("127.0.0.1")), "smtp")
ALICE = User(
    "CN=alice", "alice", "alice@corp.example", SID, ("alice@corp.example",), groups=frozenset({STAFF, "Staff"})
)


class FakeDirectory:
    """Knows alice and the group Staff, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.away = False

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if self.away:
            raise Unavailable("away")

    async def named_groups(self, sids: Iterable[str]) -> frozenset[str]:
        self._note("groups")
        return frozenset(sids) | ({"Staff", "CN=Staff"} if STAFF in sids else frozenset())

    async def find_sid(self, sid: str) -> User | None:
        self._note("sid")
        return ALICE if sid == SID else None

    async def find(self, name: str) -> User | None:
        self._note(name)
        return ALICE if name == "CORP.EXAMPLE\\alice" else None

    async def domain(self) -> Domain:
        return Domain("DC=corp", "DC=corp", "corp.example", "CORP")


def identity(pac: Pac | None, principal: str = "alice@CORP.EXAMPLE") -> KerberosIdentity:
    return KerberosIdentity(principal, pac, "GSSAPI", CLIENT)


PAC = Pac(SID, frozenset({STAFF}), "alice", "CORP", "alice@corp.example")


def check(asked: KerberosIdentity, directory: FakeDirectory | None, relay: Relay = Relay()) -> Any:  # noqa: B008
    known = cast(Directory | None, directory)
    checker = KerberosChecker(known, Membership(known, {"smtp": relay}.__getitem__))
    results: list[Any] = []
    done: Deferred[Any] = checker.requestAvatarId(asked)
    done.addCallbacks(results.append, lambda failure: results.append(failure.value))
    (result,) = results
    return result


def test_a_pac_says_all_when_the_policy_names_sids_alone() -> None:
    directory = FakeDirectory()
    found = check(identity(PAC), directory, Relay(groups=(STAFF,)))
    assert found == Principal("alice", "GSSAPI", "kerberos", "alice@corp.example", SID, frozenset({STAFF}))
    assert directory.asked == []


def test_names_of_groups_are_asked_for_when_a_rule_has_one() -> None:
    directory = FakeDirectory()
    assert "Staff" in check(identity(PAC), directory, Relay(groups=(STAFF, "Staff"))).groups
    assert directory.asked == ["groups"]


def test_addresses_are_asked_for_when_senders_are_held_to_them() -> None:
    directory = FakeDirectory()
    assert check(identity(PAC), directory, Relay(send_as="own")).addresses == ("alice@corp.example",)
    assert directory.asked == ["sid"]


def test_a_user_of_another_domain_has_no_addresses() -> None:
    stranger = Pac("S-1-5-21-9-9-9-1104", frozenset(), "alice", "PARTNER")
    assert check(identity(stranger, "alice@PARTNER.EXAMPLE"), FakeDirectory(), Relay(send_as="own")).addresses == ()


def test_a_directory_that_is_away_is_no_refusal_and_no_answer() -> None:
    directory = FakeDirectory()
    directory.away = True
    fault = check(identity(PAC), directory, Relay(groups=("Staff",)))
    assert isinstance(fault, Unavailable)
    assert check(identity(PAC), directory, Relay()).sid == SID


def test_without_a_directory() -> None:
    assert check(identity(PAC), None, Relay(groups=("Staff",))).groups == {STAFF}
    found = check(identity(None), None)
    assert (found.name, str(found), found.groups) == ("alice@CORP.EXAMPLE", "alice@CORP.EXAMPLE", frozenset())


def test_without_a_pac_the_directory_is_asked_for_its_own_realm_alone() -> None:
    directory = FakeDirectory()
    found = check(identity(None), directory)
    assert (found.sid, found.source, found.mechanism) == (SID, "kerberos", "GSSAPI")
    directory.asked.clear()
    for another in ("alice@PARTNER.EXAMPLE", "alice@corp.example"):
        found = check(identity(None, another), directory)
        assert (found.name, found.sid) == (another, "")
    assert directory.asked == []


@pytest.mark.parametrize(
    ("relay", "names", "addresses"),
    [
        (Relay(), False, False),
        (Relay(groups=(STAFF, STAFF.lower())), False, False),
        (Relay(groups=("CN=Staff,DC=corp",)), True, False),
        (Relay(send_as_groups={"App Senders": ("*@apps.example",)}), False, False),
        (Relay(send_as="own", send_as_groups={"App Senders": ("*@apps.example",)}), True, True),
        (Relay(send_as="own", send_as_groups={STAFF: ("*@apps.example",)}), False, True),
    ],
)
def test_what_is_wanted(relay: Relay, names: bool, addresses: bool) -> None:
    assert Wanted.by(relay) == Wanted(names, addresses)
