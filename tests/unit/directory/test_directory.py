"""Questions to a directory that is well, and how often it is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from twisted.internet.defer import Deferred, gatherResults

from relayd.directory import Directory, LockoutPolicy, Operations, Refusal, Unavailable, User
from relayd.directory.connection import Controller
from relayd.directory.entries import AccountState, sid_octets
from tests.lab.net import wait_for
from tests.unit.directory.conftest import FakeDns, MakeDirectory, descriptors, fired
from tests.unit.directory.server import BASE, SEARCHER, FakeDirectory, person
from tests.unit.test_resolver import ThreadedClock

ALICE = f"CN=alice,{BASE}"


def found(clock: ThreadedClock, directory: Directory, name: str, default_domain: str = "") -> User:
    user = clock.result(directory.find(name, default_domain))
    assert user is not None
    return user


class TestUsers:
    @pytest.mark.parametrize("name", ["alice", "ALICE", "CORP\\alice", "alice@corp.example", "alice@CORP"])
    def test_all_that_is_known_of_a_user(self, clock: ThreadedClock, directory: Directory, name: str) -> None:
        assert found(clock, directory, name) == User(
            dn=ALICE,
            name="alice",
            upn="alice@corp.example",
            sid="S-1-5-21-1-2-3-1001",
            addresses=("alice@corp.example", "sales@corp.example"),
            state=AccountState(),
            group_sids=("S-1-5-21-1-2-3-600",),
            groups=frozenset(
                {"S-1-5-21-1-2-3-600", "App Senders", "CORP\\App Senders", f"CN=Senders,{BASE}"},
            ),
            password_set=134400403457254380,
        )

    def test_a_computer(self, clock: ThreadedClock, directory: Directory) -> None:
        assert found(clock, directory, "CORP\\HOST$").sid == "S-1-5-21-1-2-3-1003"

    def test_by_sid(self, clock: ThreadedClock, directory: Directory) -> None:
        user = clock.result(directory.find_sid("S-1-5-21-1-2-3-1002"))
        assert user is not None
        assert user.name == "bob"
        assert clock.result(directory.find_sid("S-1-5-21-1-2-3-1")) is None
        with pytest.raises(ValueError, match="SID"):
            clock.result(directory.find_sid("bob"))

    @pytest.mark.parametrize("name", ["nobody", "OTHER\\alice", "*", "alice@other.example", "", "App Senders"])
    def test_who_is_not_there(self, clock: ThreadedClock, directory: Directory, name: str) -> None:
        assert clock.result(directory.find(name)) is None

    def test_a_upn_that_was_given_goes_before_the_one_that_everybody_has(
        self, clock: ThreadedClock, server: FakeDirectory, directory: Directory
    ) -> None:
        server.entries[f"CN=smith,{BASE}"] = person("smith", 1009, userPrincipalName=[b"bob@corp.example"])
        server.entries[f"CN=bob,{BASE}"]["userPrincipalName"] = [b"robert@corp.example"]
        assert found(clock, directory, "bob@corp.example").name == "smith"
        assert found(clock, directory, "CORP\\bob").name == "bob"

    def test_two_of_a_name_are_nobody(self, clock: ThreadedClock, server: FakeDirectory, directory: Directory) -> None:
        server.entries[f"CN=twin,{BASE}"] = person("alice", 1010)
        assert clock.result(directory.find("CORP\\alice")) is None

    def test_groups_where_tokens_are_hidden(
        self, clock: ThreadedClock, server: FakeDirectory, directory: Directory
    ) -> None:
        del server.entries[ALICE]["tokenGroups"]
        server.entries[ALICE]["primaryGroupID"] = [b"600"]
        assert "App Senders" in found(clock, directory, "alice").groups

    def test_a_group_of_another_domain_counts_by_its_sid_alone(
        self, clock: ThreadedClock, server: FakeDirectory, directory: Directory
    ) -> None:
        del server.entries[f"CN=Senders,{BASE}"]
        assert found(clock, directory, "alice").groups == {"S-1-5-21-1-2-3-600"}

    def test_what_the_administrator_wrote_goes_before_what_the_directory_says(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory
    ) -> None:
        directory = make(server.url, netbios="HEADQUARTERS", domain="hq.example")
        assert found(clock, directory, "HEADQUARTERS\\alice").name == "alice"
        assert found(clock, directory, "alice@hq.example").name == "alice"
        assert clock.result(directory.find("CORP\\alice")) is None

    def test_base(self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory) -> None:
        server.entries[f"CN=carol,OU=Staff,{BASE}"] = person("carol", 1020)
        directory = make(server.url, base=f"OU=Staff,{BASE}")
        assert found(clock, directory, "CORP\\carol").name == "carol"
        assert clock.result(directory.find("CORP\\alice")) is None


class TestGroups:
    """What a ticket or a controller's answer says: SIDs alone."""

    SENDERS, STRANGE = "S-1-5-21-1-2-3-600", "S-1-5-21-9-9-9-1"

    def test_as_a_policy_may_spell_them(self, clock: ThreadedClock, directory: Directory) -> None:
        named = clock.result(directory.named_groups([self.SENDERS, self.STRANGE, self.SENDERS]))
        assert named == {self.SENDERS, self.STRANGE, "App Senders", "CORP\\App Senders", f"CN=Senders,{BASE}"}
        assert clock.result(directory.named_groups([])) == frozenset()

    def test_a_user_is_no_group(self, clock: ThreadedClock, directory: Directory) -> None:
        assert clock.result(directory.named_groups(["S-1-5-21-1-2-3-1001"])) == {"S-1-5-21-1-2-3-1001"}

    def test_names_are_reused_for_a_while(
        self, clock: ThreadedClock, server: FakeDirectory, directory: Directory
    ) -> None:
        clock.result(directory.named_groups([self.SENDERS, self.STRANGE]))
        before = server.asked.total()
        clock.result(directory.named_groups([self.STRANGE, self.SENDERS]))
        assert server.asked.total() == before
        clock.advance(61)
        clock.result(directory.named_groups([self.SENDERS]))
        assert server.asked.total() == before + 1

    def test_what_is_no_sid(self, clock: ThreadedClock, directory: Directory) -> None:
        with pytest.raises(ValueError, match="SID"):
            clock.result(directory.named_groups(["App Senders"]))

    def test_a_directory_that_is_away(self, clock: ThreadedClock, server: FakeDirectory, directory: Directory) -> None:
        server.answer = lambda kind, name: ConnectionError
        with pytest.raises(Unavailable):
            clock.result(directory.named_groups([self.SENDERS]))


class TestPasswords:
    def test_right_and_wrong(self, clock: ThreadedClock, directory: Directory) -> None:
        alice = found(clock, directory, "alice")
        assert clock.result(directory.verify(alice, b"wonderland")) is None
        assert clock.result(directory.verify(alice, b"wrong")) == Refusal("52e", "unknown account or wrong password")

    @pytest.mark.parametrize("code", ["533", "701", "773", "775", "532", "530"])
    def test_sub_codes(self, clock: ThreadedClock, server: FakeDirectory, directory: Directory, code: str) -> None:
        server.refusals[ALICE] = code
        refused = clock.result(directory.verify(found(clock, directory, "alice"), b"wonderland"))
        assert refused is not None
        assert refused.code == code
        assert not refused.wrong_password

    def test_an_empty_password_is_never_bound(
        self, clock: ThreadedClock, server: FakeDirectory, directory: Directory
    ) -> None:
        alice = found(clock, directory, "alice")
        with pytest.raises(ValueError, match="empty"):
            clock.result(directory.verify(alice, b""))
        assert not server.asked["bind", ALICE]

    def test_no_password_is_kept_in_the_connection(self, clock: ThreadedClock, directory: Directory) -> None:
        import gc

        import ldap3

        clock.result(directory.verify(found(clock, directory, "alice"), b"wonderland"))
        for each in gc.get_objects():
            if isinstance(each, ldap3.Connection):
                # Other tests' connections, to a domain controller of the lab, may live on in this process.
                assert each.password not in (b"wonderland", "wonderland")
                assert b"wonderland" not in repr(each.request).encode()


class TestRecipients:
    @pytest.mark.parametrize(
        ("addresses", "there"),
        [
            (("Alice@Corp.example",), True),
            (("sales@corp.example",), True),
            (("nobody@corp.example", "sales@corp.example"), True),
            (("nobody@corp.example",), False),
            (("*@corp.example",), False),
        ],
    )
    def test_whether_an_address_is_there(
        self, clock: ThreadedClock, directory: Directory, addresses: tuple[str, ...], there: bool
    ) -> None:
        assert clock.result(directory.has_recipient(*addresses)) is there


class TestLockout:
    def test_the_domains(self, clock: ThreadedClock, directory: Directory) -> None:
        alice = found(clock, directory, "alice")
        assert clock.result(directory.lockout_policy(alice)) == LockoutPolicy(5, 600.0)

    def test_fine_grained(self, clock: ThreadedClock, server: FakeDirectory, directory: Directory) -> None:
        policy = f"CN=Strict,{BASE}"
        server.entries[ALICE]["msDS-ResultantPSO"] = [policy.encode()]
        alice = found(clock, directory, "alice")
        # It cannot be read: taken for strict.
        assert clock.result(directory.lockout_policy(alice)).threshold == 3
        clock.advance(301)
        server.entries[policy] = {
            "objectClass": [b"msDS-PasswordSettings"],
            "msDS-LockoutThreshold": [b"20"],
            "msDS-LockoutObservationWindow": [b"-18000000000"],
        }
        assert clock.result(directory.lockout_policy(alice)) == LockoutPolicy(20, 1800.0)


class TestReuse:
    def test_connections_are_bound_again_rather_than_opened_again(
        self, clock: ThreadedClock, server: FakeDirectory, directory: Directory
    ) -> None:
        for name, password in [("alice", b"wonderland"), ("bob", b"builder"), ("alice", b"no")] * 3:
            clock.result(directory.verify(found(clock, directory, name), password))
        assert server.connections == 2  # one searches, one checks
        assert server.asked["bind", SEARCHER] == 1

    def test_many_at_once_have_no_more_connections_than_there_are_threads(
        self, clock: ThreadedClock, server: FakeDirectory, make: MakeDirectory
    ) -> None:
        directory = make(server.url, threads=2, waiting=30)
        alice = found(clock, directory, "alice")
        asked = [Deferred.fromCoroutine(directory.verify(alice, b"wonderland")) for _ in range(20)]
        assert clock.result(fired(gatherResults(asked))) == [None] * 20
        assert server.connections <= 3  # one of them searched

    def test_what_is_asked_is_counted(self, clock: ThreadedClock, server: FakeDirectory, make: MakeDirectory) -> None:
        directory = make("ldaps://localhost:1", server.url)
        assert directory.operations() == Operations()
        for password in (b"wonderland", b"no"):
            clock.result(directory.verify(found(clock, directory, "alice"), password))
        clock.result(directory.has_recipient("alice@corp.example"))
        operations = directory.operations()
        assert operations.connections == server.connections + 1  # one that was not let in
        assert operations.binds == sum(n for (kind, _), n in server.asked.items() if kind == "bind")
        assert operations.searches == sum(n for (kind, _), n in server.asked.items() if kind == "search")

    def test_answers_are_reused_for_a_while(
        self, clock: ThreadedClock, server: FakeDirectory, directory: Directory
    ) -> None:
        found(clock, directory, "alice")
        before = server.asked.total()
        found(clock, directory, "ALICE")
        assert server.asked.total() == before
        clock.result(directory.find("alice", fresh=True))
        again = server.asked.total()
        assert again > before
        clock.advance(61)
        found(clock, directory, "alice")
        assert server.asked.total() > again

    @pytest.mark.parametrize(("one", "other"), [("straße", "strasse"), ("ﬁona", "fiona"), ("\u212aelvin", "kelvin")])
    def test_no_answer_is_another_accounts(
        self, clock: ThreadedClock, server: FakeDirectory, directory: Directory, one: str, other: str
    ) -> None:
        """Samba has both of them, in one domain."""
        for rid, name in enumerate((one, other), 1100):
            server.entries[f"CN={rid},{BASE}"] = person(name, rid)
        assert [found(clock, directory, name).sid[-4:] for name in (one, other)] == ["1100", "1101"]

    def test_who_is_not_there_may_come_soon(
        self, clock: ThreadedClock, server: FakeDirectory, directory: Directory
    ) -> None:
        assert clock.result(directory.find("carol")) is None
        server.entries[f"CN=carol,{BASE}"] = person("carol", 1020)
        assert clock.result(directory.find("carol")) is None
        clock.advance(11)
        assert found(clock, directory, "carol").name == "carol"

    def test_without_a_cache_the_directory_is_always_asked(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory
    ) -> None:
        directory = make(server.url, cache=0.0)
        found(clock, directory, "alice")
        del server.entries[ALICE]
        assert clock.result(directory.find("alice")) is None

    def test_equal_questions_at_once_are_one(
        self, clock: ThreadedClock, server: FakeDirectory, make: MakeDirectory
    ) -> None:
        directory = make(server.url, threads=2, waiting=2)
        asked = [Deferred.fromCoroutine(directory.find("alice")) for _ in range(50)]
        users = clock.result(fired(gatherResults(asked)))
        assert {user and user.name for user in users} == {"alice"}
        assert server.asked["search", ALICE] == 1

    def test_what_the_other_side_ended_does_not_stay_open(
        self, clock: ThreadedClock, server: FakeDirectory, directory: Directory
    ) -> None:
        before = descriptors()
        found(clock, directory, "alice")
        server.hang_up()
        clock.advance(61)
        wait_for(lambda: descriptors() <= before, "descriptors closed")


class TestControllers:
    def test_starttls(self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory) -> None:
        with FakeDirectory(server.leaf, ldaps=False) as plain:
            directory = make(plain.url)
            assert clock.result(directory.verify(found(clock, directory, "alice"), b"wonderland")) is None
            assert plain.asked["starttls", ""] == 2
            assert plain.connections == 2

    def test_by_srv_records(
        self, clock: ThreadedClock, make: MakeDirectory, dns: FakeDns, server: FakeDirectory
    ) -> None:
        with FakeDirectory(server.leaf, ldaps=False) as plain:
            dns.records["_ldap._tcp.dc._msdcs.corp.example"] = (
                (0, 100, "dc.elsewhere.example", 1),
                (10, 100, "dc1.corp.example", plain.port),
            )
            directory = make(domain="corp.example")
            assert found(clock, directory, "alice").name == "alice"
            # DNS may fail later: what it said last is good enough.
            dns.broken = True
            clock.advance(61)
            server.hang_up()
            plain.hang_up()
            assert found(clock, directory, "alice").name == "alice"

    def test_probe(self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory) -> None:
        well, sick = clock.result(make(server.url, "ldaps://localhost:1").probe())
        assert well.controller == server.url
        assert not well.fault
        assert min(well.connect, well.bind, well.search) > 0
        assert sick.fault

    @pytest.mark.parametrize("url", ["ldaps://", "http://x", "ldaps://x/dc=a", "ldaps://x:99999", "ldap://x?y", "x"])
    def test_what_is_no_server(self, make: MakeDirectory, url: str) -> None:
        with pytest.raises(ValueError, match=r"."):
            make(url)

    def test_status(self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory) -> None:
        directory = make("ldaps://localhost:1", server.url)
        assert [standing.why for standing in directory.status()] == []
        found(clock, directory, "alice")
        sick, well = directory.status()
        assert (sick.controller, well.controller) == ("ldaps://localhost:1", server.url)
        assert sick.rests > 0
        assert "refused" in sick.why
        assert (well.rests, well.why) == (0.0, "")
        clock.advance(61)
        assert directory.status()[0].rests == 0
        assert directory.status()[0].why  # it is asked again, and has not worked yet

    def test_a_probe_says_how_long_the_certificate_is_good(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory
    ) -> None:
        (well,) = clock.result(make(server.url).probe())
        assert well.address == "127.0.0.1"
        assert (
            well.expires
            == x509.load_pem_x509_certificate(server.leaf.chain.read_bytes()).not_valid_after_utc.timestamp()
        )

    def test_a_probe_of_whom_the_searcher_cannot_sign_in_to(
        self, clock: ThreadedClock, make: MakeDirectory, server: FakeDirectory, password_file: Path
    ) -> None:
        password_file.write_bytes(b"wrong")
        (refused,) = clock.result(make(server.url).probe())
        assert refused.connect > 0
        assert refused.expires > 0
        assert "52e" in refused.fault


class TestForest:
    """A global catalog answers for several domains."""

    CHILD = f"DC=child,{BASE}"

    @pytest.fixture(autouse=True)
    def catalog(self, server: FakeDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
        # Its port is what tells a catalog, and the fake one has another.
        monkeypatch.setattr(Controller, "catalog", True)
        server.entries[f"CN=CHILD,CN=Partitions,CN=Configuration,{BASE}"] = {
            "objectClass": [b"crossRef"],
            "nCName": [self.CHILD.encode()],
            "dnsRoot": [b"child.corp.example"],
            "nETBIOSName": [b"CHILD"],
        }
        child = person(
            "alice", 2001, userPrincipalName=[b"al@child.corp.example"], tokenGroups=[sid_octets("S-1-5-9-1")]
        )
        server.entries[f"CN=alice,{self.CHILD}"] = child
        server.entries[f"CN=Senders,{self.CHILD}"] = {
            "objectClass": [b"group"],
            "sAMAccountName": [b"App Senders"],
            "objectSid": [sid_octets("S-1-5-9-1")],
        }

    @pytest.mark.parametrize("name", ["alice", "CORP\\alice", "alice@corp.example"])
    def test_the_domains_own(self, clock: ThreadedClock, directory: Directory, name: str) -> None:
        user = found(clock, directory, name)
        assert user.dn == ALICE
        assert "App Senders" in user.groups

    @pytest.mark.parametrize(
        "name", ["CHILD\\alice", "al@child.corp.example", "alice@child.corp.example", "alice@CHILD"]
    )
    def test_another_domains(self, clock: ThreadedClock, directory: Directory, name: str) -> None:
        user = found(clock, directory, name)
        assert user.dn == f"CN=alice,{self.CHILD}"
        assert user.groups == {"S-1-5-9-1", f"CN=Senders,{self.CHILD}", "CHILD\\App Senders"}

    def test_who_is_not_there(self, clock: ThreadedClock, directory: Directory) -> None:
        assert clock.result(directory.find("CHILD\\bob")) is None
        assert clock.result(directory.find("OTHER\\alice")) is None

    def test_a_lockout_that_a_catalog_does_not_hold_counts_as_strict(
        self, clock: ThreadedClock, server: FakeDirectory, directory: Directory
    ) -> None:
        server.entries[self.CHILD] = {"objectClass": [b"domainDNS"]}
        assert clock.result(directory.lockout_policy(found(clock, directory, "CHILD\\alice"))).threshold == 3
        assert clock.result(directory.lockout_policy(found(clock, directory, "alice"))).threshold == 5

    def test_the_domain_that_was_written_is_where_bare_names_are(
        self, clock: ThreadedClock, server: FakeDirectory, make: MakeDirectory
    ) -> None:
        directory = make(server.url, domain="child.corp.example")
        assert found(clock, directory, "alice").dn == f"CN=alice,{self.CHILD}"
        assert found(clock, directory, "CORP\\alice").dn == ALICE

    def test_with_a_base_it_is_one_domain(
        self, clock: ThreadedClock, server: FakeDirectory, make: MakeDirectory
    ) -> None:
        directory = make(server.url, base=BASE)
        assert clock.result(directory.find("CHILD\\alice")) is None
