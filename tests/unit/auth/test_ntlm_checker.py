"""The checker of the domain's accounts: whose failures are counted, who signed in, and what is refused all the same."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from spnego._ntlm_raw.crypto import hmac_md5, ntowfv1, ntowfv2, rc4k
from spnego._ntlm_raw.messages import NegotiateFlags
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from relayd.auth import AccountLockout
from relayd.auth.credentials import NtlmResponse
from relayd.auth.ntlm import AskedExchange, NtlmAccount, NtlmExchange, NtlmRefused
from relayd.auth.ntlm_checker import NtlmChecker
from relayd.auth.ntlm_messages import Authenticate, Target, make_challenge, server_challenge
from relayd.directory import LockoutPolicy, Unavailable, User
from relayd.directory.names import Domain
from relayd.model import Client, Fault, Peer, Principal, Reply, client_address
from relayd.settings import Lockout
from tests.unit.auth.ntlm_client import FLAGS, PlainClient, Spnego, rebuilt
from tests.unit.auth.test_ntlm_accounts import result

SID = "S-1-5-21-1-2-3-1001"
ALICE = User(
    dn="CN=alice,DC=corp",
    name="alice",
    upn="alice@corp.example",
    sid=SID,
    addresses=("alice@corp.example",),
    group_sids=("S-1-5-32-545",),
    groups=frozenset({"S-1-5-32-545", "Users"}),
)
BOB = dataclasses.replace(ALICE, dn="CN=bob,DC=corp", name="bob", upn="bob@corp.example", sid="S-1-5-21-1-2-3-1002")


class FakeDirectory:
    """Users by any of their names."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        for user in (ALICE, BOB):
            for name in (user.name, f"CORP\\{user.name}", f"corp.example\\{user.name}", user.upn):
                self.users[name] = user
        self.policy = LockoutPolicy(6, 600.0)
        self.fault: Exception | None = None
        self.asked: Counter[str] = Counter()

    async def find(self, name: str, default_domain: str = "", *, fresh: bool = False) -> User | None:
        self.asked[name] += 1
        if self.fault is not None:
            raise self.fault
        return self.users.get(name)

    async def find_sid(self, sid: str, *, fresh: bool = False) -> User | None:
        self.asked[sid] += 1
        return next((user for user in self.users.values() if user.sid == sid), None)

    async def lockout_policy(self, user: User) -> LockoutPolicy:
        return LockoutPolicy(20, 600.0) if user.policy else self.policy

    async def domain(self) -> Domain:
        return Domain("DC=corp", "DC=corp", "corp.example", "CORP")


class Controller:
    """A backend that knows passwords as a domain controller does: by user, whatever the domain is called."""

    name = "netlogon"

    def __init__(self) -> None:
        self.passwords = {"alice": "secret", "alice@corp.example": "secret", "bob": "hidden", "carol": "other"}
        self.accounts = {
            "alice": NtlmAccount("alice", "CORP", SID, frozenset({"S-1-5-32-545", "S-1-18-1"})),
            "alice@corp.example": NtlmAccount("alice", "CORP", SID),
            "bob": NtlmAccount("bob", "CORP", BOB.sid),
            "carol": NtlmAccount("carol", "OTHER", "S-1-5-21-9-9-9-1001", frozenset({"S-1-5-21-9-9-9-513"})),
        }
        self.keeps_key = False
        self.checks_mic = False
        self.exported = False
        self.fault: Exception | None = None
        self.judged = 0
        self.held: list[Deferred[None]] | None = None
        self.abandoned = 0

    async def begin(self, negotiate: bytes) -> NtlmExchange:
        target = Target("RELAY01", "CORP", "relay01.corp.example", "corp.example")
        challenge = make_challenge(negotiate, target, 1_700_000_000.0)

        async def judge(message: Authenticate) -> NtlmAccount:
            return await self._judge(message, server_challenge(challenge))

        return _Counting(self, AskedExchange(negotiate, challenge, judge))

    async def _judge(self, message: Authenticate, asked: bytes) -> NtlmAccount:
        self.judged += 1
        if self.held is not None:
            turn: Deferred[None] = Deferred()
            self.held.append(turn)
            await turn
        if self.fault is not None:
            raise self.fault
        password = self.passwords.get(message.user)
        if password is None:
            raise NtlmRefused("c0000064 unknown account", wrong_password=True)
        key = ntowfv2(message.user, ntowfv1(password), message.domain)
        if hmac_md5(key, asked + message.nt[16:]) != message.nt[:16]:
            raise NtlmRefused("c000006a wrong password", wrong_password=True)
        base = hmac_md5(key, message.nt[:16])
        account = dataclasses.replace(self.accounts[message.user], checked=self.checks_mic)
        if self.exported:
            return dataclasses.replace(account, exported_key=rc4k(base, message.encrypted_session_key))
        return account if self.keeps_key else dataclasses.replace(account, session_key=base)


class _Counting:
    """An exchange that counts who abandons it."""

    def __init__(self, controller: Controller, exchange: AskedExchange) -> None:
        self._controller = controller
        self._exchange = exchange
        self.negotiate, self.challenge, self.verify = exchange.negotiate, exchange.challenge, exchange.verify

    def abandon(self) -> None:
        self._controller.abandoned += 1


class Setting:
    def __init__(self, settings: Lockout = Lockout(), *, directory: bool = True) -> None:  # noqa: B008
        self.clock = Clock()
        self.directory = FakeDirectory()
        self.controller = Controller()
        self.named: list[frozenset[str]] = []
        self.checker = NtlmChecker(
            self.directory if directory else None,  # type: ignore[arg-type]
            AccountLockout(self.clock.seconds),
            settings,
            lambda _: "accept",
            self.groups_of if directory else None,
        )

    async def groups_of(self, sids: frozenset[str]) -> frozenset[str]:
        self.named.append(sids)
        return frozenset(f"name of {sid}" for sid in sids)

    def begin(self, client: PlainClient | Spnego, address: str = "192.0.2.7", **more: Any) -> Deferred[Principal]:
        exchange = result(Deferred.fromCoroutine(self.controller.begin(client.negotiate)))
        answer = client.answer(exchange.challenge)
        if mech_list := more.get("mech_list"):
            more["mech_list_mic"] = more.get("mech_list_mic") or client.signature(mech_list)  # type: ignore[union-attr]
        return self.checker.requestAvatarId(
            NtlmResponse(exchange, answer, "NTLM", Client(Peer(client_address(address)), "smtp"), **more)
        )

    def login(
        self, user: str = "alice", password: str = "secret", domain: str = "CORP", address: str = "192.0.2.7"
    ) -> Principal:
        return result(self.begin(PlainClient(user, password, domain), address))  # type: ignore[no-any-return]

    def refused(self, *arguments: Any, **more: Any) -> str:
        with pytest.raises(UnauthorizedLogin) as caught:
            self.login(*arguments, **more)
        return str(caught.value)

    def deferred(self, *arguments: Any, **more: Any) -> str:
        with pytest.raises(Fault) as caught:
            self.login(*arguments, **more)
        assert str(caught.value.reply).startswith("454 4.7.0")
        return caught.value.detail


@pytest.fixture
def setting() -> Setting:
    return Setting()


class TestWho:
    @pytest.mark.parametrize(
        ("user", "domain"), [("alice", "CORP"), ("alice", "corp.example"), ("alice", ""), ("alice@corp.example", "")]
    )
    def test_a_user_of_the_directory(self, setting: Setting, user: str, domain: str) -> None:
        principal = setting.login(user, domain=domain)
        assert (principal.name, principal.upn, principal.sid) == ("alice", "alice@corp.example", SID)
        assert (principal.mechanism, principal.source) == ("NTLM", "ntlm")
        assert principal.addresses == ("alice@corp.example",)
        assert principal.groups >= {"S-1-5-32-545", "Users"}

    def test_groups_that_the_controller_alone_knows_are_spelled_too(self, setting: Setting) -> None:
        groups = setting.login().groups
        assert groups == {"S-1-5-32-545", "Users", "S-1-18-1", "name of S-1-18-1"}
        assert setting.named == [frozenset({"S-1-18-1"})]

    def test_an_account_of_another_domain_is_the_controllers_word_alone(self, setting: Setting) -> None:
        assert setting.login("carol", "other", "OTHER") == Principal(
            name="OTHER\\carol",
            mechanism="NTLM",
            source="ntlm",
            sid="S-1-5-21-9-9-9-1001",
            groups=frozenset({"S-1-5-21-9-9-9-513", "name of S-1-5-21-9-9-9-513"}),
        )

    def test_without_a_directory_too(self) -> None:
        principal = Setting(directory=False).login()
        assert (principal.name, principal.sid, principal.addresses) == ("CORP\\alice", SID, ())
        assert principal.groups == {"S-1-5-32-545", "S-1-18-1"}

    def test_it_is_whom_the_controller_names_not_whom_the_client_wrote(self, setting: Setting) -> None:
        setting.controller.accounts["alice"] = NtlmAccount("bob", "CORP", BOB.sid)
        assert setting.login().name == "bob"

    @pytest.mark.parametrize(("name", "domain"), [("bob", "CORP"), ("bob", "")])
    def test_by_name_where_the_backend_knows_no_sid(self, setting: Setting, name: str, domain: str) -> None:
        setting.controller.accounts["alice"] = NtlmAccount(name, domain)
        assert setting.login().sid == BOB.sid

    def test_a_name_of_another_domain_is_not_the_users_own(self, setting: Setting) -> None:
        setting.controller.accounts["alice"] = NtlmAccount("alice", "OTHER")
        principal = setting.login()
        assert (principal.name, principal.sid, principal.groups) == ("OTHER\\alice", "", frozenset())

    def test_an_account_that_the_directory_does_not_have_is_nobody(self, setting: Setting) -> None:
        assert setting.refused("nobody") == "unknown account"
        assert setting.refused("nobody", domain="") == "unknown account"
        assert setting.controller.judged == 0

    def test_a_name_of_another_domain_is_the_controllers_business(self, setting: Setting) -> None:
        assert "c0000064" in setting.refused("nobody", domain="OTHER")
        assert "c0000064" in setting.refused("nobody@other.example", domain="")


class TestSickness:
    def test_a_directory_that_is_away(self, setting: Setting) -> None:
        setting.directory.fault = Unavailable("away")
        assert "away" in setting.deferred()

    def test_a_backend_that_is_away(self, setting: Setting) -> None:
        setting.controller.fault = Fault(Reply.of(454, "4.7.0", "Temporary authentication failure"), "away")
        assert setting.deferred() == "away"

    def test_every_exchange_is_given_up(self, setting: Setting) -> None:
        setting.login()
        setting.refused("nobody")
        setting.refused(password="wrong")
        setting.directory.fault = Unavailable("away")
        setting.deferred()
        assert setting.controller.abandoned == 4


class TestLockout:
    def test_wrong_passwords_block_before_the_controller_is_asked(self, setting: Setting) -> None:
        for domain in ("CORP", "corp.example", ""):  # half of 6
            assert "c000006a" in setting.refused(password="wrong", domain=domain)
        judged = setting.controller.judged
        assert "too many failures of alice" in setting.deferred()
        assert setting.controller.judged == judged

    def test_states_of_an_account_do_not_count(self, setting: Setting) -> None:
        setting.controller.fault = NtlmRefused("c0000072 account disabled")
        for _ in range(10):
            assert "c0000072" in setting.refused()

    def test_answers_that_were_lost_count(self, setting: Setting) -> None:
        setting.controller.fault = Unavailable("lost", asked=1)
        for _ in range(3):
            assert "lost" in setting.deferred()
        setting.controller.fault = None
        assert "too many failures" in setting.deferred()

    def test_answers_that_were_lost_before_the_refusal_count_too(self, setting: Setting) -> None:
        setting.controller.fault = NtlmRefused("c000006a wrong password", wrong_password=True, unanswered=2)
        setting.refused()
        setting.controller.fault = None
        assert "too many failures" in setting.deferred()

    def test_a_right_answer_forgets_and_makes_known(self, setting: Setting) -> None:
        for _ in range(4):
            setting.refused(password="wrong")
            setting.login()

    def test_what_is_wrong_with_the_messages_is_no_success(self, setting: Setting) -> None:
        for _ in range(2):
            setting.refused(password="wrong")
        client = Spnego("CORP\\alice", "secret")
        with pytest.raises(UnauthorizedLogin, match="mechListMIC"):
            result(setting.begin(client, mech_list=b"list", mech_list_mic=b"wrong"))
        setting.refused(password="wrong")
        assert "too many failures" in setting.deferred()

    def test_invented_domains_are_worth_no_further_guesses(self, setting: Setting) -> None:
        for number in range(3):
            assert "c000006a" in setting.refused(password="wrong", domain=f"ANY{number}")
        assert "too many failures" in setting.deferred(password="wrong", domain="ANY9")
        assert "too many failures" in setting.deferred()

    def test_nor_before_a_upn_that_is_not_the_accounts_name(self, setting: Setting) -> None:
        setting.directory.users["liddell@corp.example"] = ALICE
        for number in range(3):
            refused = setting.refused("liddell@corp.example", "wrong", f"ANY{number}")
            assert "c0000064" in refused
        assert "too many failures" in setting.deferred("liddell@corp.example", "wrong", "ANY9")
        assert "too many failures" in setting.deferred()

    def test_nor_without_a_directory(self) -> None:
        setting = Setting(Lockout(auto=False, failures=3, seconds=60.0), directory=False)
        for user, domain in (("alice", "A"), ("ALICE", "B"), ("alice@any.example", "")):
            setting.refused(user, "wrong", domain)
        assert "too many failures" in setting.deferred()
        setting.clock.advance(61)
        assert setting.login()

    def test_what_an_administrator_wrote(self) -> None:
        setting = Setting(Lockout(auto=False, failures=2, seconds=60.0))
        for _ in range(2):
            setting.refused(password="wrong")
        assert "too many failures" in setting.deferred()

    def test_guesses_made_at_once_are_counted_one_after_the_other(self, setting: Setting) -> None:
        setting.controller.held = []
        outcomes: list[Any] = []
        for _ in range(6):
            setting.begin(PlainClient("alice", "wrong")).addErrback(lambda failure: outcomes.append(failure.value))
        while setting.controller.held:
            setting.controller.held.pop().callback(None)
        assert setting.controller.judged == 3
        assert sorted(isinstance(outcome, Fault) for outcome in outcomes) == [False] * 3 + [True] * 3

    def test_others_do_not_wait(self, setting: Setting) -> None:
        setting.controller.held = []
        setting.begin(PlainClient("alice", "secret"))
        setting.begin(PlainClient("bob", "hidden"))
        assert len(setting.controller.held) == 2


class TestSignatures:
    LIST = b"0\x0c\x06\n+\x06\x01\x04\x01\x827\x02\x02\n"

    @pytest.mark.parametrize("exported", [True, False])
    def test_with_a_key(self, setting: Setting, exported: bool) -> None:
        setting.controller.exported = exported
        assert result(setting.begin(Spnego("CORP\\alice", "secret"), mech_list=self.LIST)).name == "alice"

    def test_a_key_that_the_backend_keeps_to_itself(self, setting: Setting) -> None:
        setting.controller.keeps_key = True
        with pytest.raises(Fault, match="no session key") as caught:
            result(setting.begin(Spnego("CORP\\alice", "secret")))
        assert caught.value.reply.code == 454
        assert setting.login().name == "alice"  # nothing is signed

    def test_a_backend_that_checked_the_mic(self, setting: Setting) -> None:
        setting.controller.keeps_key = setting.controller.checks_mic = True
        assert result(setting.begin(Spnego("CORP\\alice", "secret"))).name == "alice"

    def test_a_mechanism_list_that_nobody_can_check_is_taken_where_the_mic_is_an_extra(self, setting: Setting) -> None:
        setting.controller.keeps_key = setting.controller.checks_mic = True
        begun = setting.begin(Spnego("CORP\\alice", "secret"), mech_list=self.LIST, list_in_doubt=False)
        assert result(begun).name == "alice"

    def test_and_refused_where_it_is_needed(self, setting: Setting) -> None:
        setting.controller.keeps_key = setting.controller.checks_mic = True
        with pytest.raises(UnauthorizedLogin, match="mechListMIC"):
            result(setting.begin(Spnego("CORP\\alice", "secret"), mech_list=self.LIST, list_in_doubt=True))

    @pytest.mark.parametrize("in_doubt", [True, False])
    def test_a_wrong_one_is_refused_wherever_it_can_be_checked(self, setting: Setting, in_doubt: bool) -> None:
        begun = setting.begin(
            Spnego("CORP\\alice", "secret"), mech_list=self.LIST, mech_list_mic=bytes(16), list_in_doubt=in_doubt
        )
        with pytest.raises(UnauthorizedLogin, match="wrong mechListMIC"):
            result(begun)

    def test_a_client_that_exchanges_no_key_although_it_says_so(self, setting: Setting) -> None:
        client = PlainClient("alice", "secret", flags=FLAGS | NegotiateFlags.key_exch | NegotiateFlags.sign)
        exchange = result(Deferred.fromCoroutine(setting.controller.begin(client.negotiate)))
        answer = rebuilt(client.answer(exchange.challenge), key=b"")
        who = Client(Peer(client_address("192.0.2.7")), "smtp")
        assert result(setting.checker.requestAvatarId(NtlmResponse(exchange, answer, "NTLM", who))).name == "alice"
