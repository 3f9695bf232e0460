"""Passwords against a directory: what is bound, what is not, and what the client is told."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from relayd.auth import (
    AccountLockout,
    AccountsChecker,
    AccountsFile,
    FailureCount,
    LdapChecker,
    Password,
    PasswordChecker,
)
from relayd.directory import AccountState, LockoutPolicy, Refusal, Unavailable, User
from relayd.model import Client, Fault, Peer, Principal, client_address
from relayd.settings import Lockout
from tests.unit.auth.test_accounts import CHEAP
from tests.unit.auth.test_checkers import AtOnce

WRONG = Refusal("52e", "unknown account or wrong password")
ALICE = User(
    dn="CN=alice,DC=corp",
    name="alice",
    upn="alice@corp.example",
    sid="S-1-5-21-1-2-3-1001",
    addresses=("alice@corp.example",),
    groups=frozenset({"S-1-5-32-545", "Users"}),
    password_set=1,
)


class FakeDirectory:
    """Users by any of their names; passwords by DN."""

    def __init__(self) -> None:
        self.users = {"alice": ALICE, "CORP\\alice": ALICE, "alice@corp.example": ALICE}
        self.passwords = {ALICE.dn: b"secret"}
        self.refused: Refusal | None = None
        self.fault: Exception | None = None
        self.policy = LockoutPolicy(6, 600.0)
        self.asked: Counter[str] = Counter()
        self.names: list[tuple[str, str]] = []
        self.held: list[Deferred[None]] | None = None

    async def find(self, name: str, default_domain: str = "", *, fresh: bool = False) -> User | None:
        self.names.append((name, default_domain))
        self.asked["fresh" if fresh else "find"] += 1
        if self.fault and not isinstance(self.fault, Unavailable):
            raise self.fault
        return self.users.get(name)

    async def verify(self, user: User, password: bytes) -> Refusal | None:
        assert password
        self.asked["bind"] += 1
        if self.held is not None:
            turn: Deferred[None] = Deferred()
            self.held.append(turn)
            await turn
        if self.fault:
            raise self.fault
        return WRONG if self.passwords.get(user.dn) != password else self.refused

    async def lockout_policy(self, user: User) -> LockoutPolicy:
        self.asked["policy"] += 1
        return self.policy


class Setting:
    def __init__(self, keep: float = 60.0, settings: Lockout = Lockout()) -> None:  # noqa: B008
        self.clock = Clock()
        self.directory = FakeDirectory()
        self.checker = LdapChecker(
            self.directory,  # type: ignore[arg-type]
            AccountLockout(self.clock.seconds),
            settings,
            {"smtp": "", "partner": "partner.example"}.__getitem__,
            keep,
            self.clock.seconds,
        )

    def begin(
        self, name: str | bytes, password: str | bytes, address: str = "192.0.2.7", listener: str = "smtp"
    ) -> Deferred[Principal]:
        octets = [text if isinstance(text, bytes) else text.encode() for text in (name, password)]
        client = Client(Peer(client_address(address)), listener)
        return self.checker.requestAvatarId(Password(octets[0], octets[1], "PLAIN", client))

    def login(self, *arguments: Any, **more: Any) -> Principal:
        principal: Principal = result(self.begin(*arguments, **more))
        return principal

    def refused(self, *arguments: Any, **more: Any) -> str:
        with pytest.raises(UnauthorizedLogin) as caught:
            self.login(*arguments, **more)
        return str(caught.value)

    def deferred(self, *arguments: Any, **more: Any) -> str:
        with pytest.raises(Fault) as caught:
            self.login(*arguments, **more)
        assert str(caught.value.reply).startswith("454 4.7.0")
        return caught.value.detail

    @property
    def binds(self) -> int:
        return self.directory.asked["bind"]


def result(deferred: Deferred[Any]) -> Any:
    """What *deferred* has fired with."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    (fired,) = results
    if isinstance(fired, Failure):
        fired.raiseException()
    return fired


@pytest.fixture
def setting() -> Setting:
    return Setting()


class TestWho:
    def test_a_right_password_makes_a_principal(self, setting: Setting) -> None:
        assert setting.login("CORP\\alice", "secret") == Principal(
            name="alice",
            mechanism="PLAIN",
            source="ldap",
            upn="alice@corp.example",
            sid="S-1-5-21-1-2-3-1001",
            groups=frozenset({"S-1-5-32-545", "Users"}),
            addresses=("alice@corp.example",),
        )

    @pytest.mark.parametrize("code", ["533", "701", "773", "775", "532", "530"])
    def test_sub_codes_are_the_reason(self, setting: Setting, code: str) -> None:
        setting.directory.refused = Refusal(code, "why")
        assert setting.refused("alice", "secret") == f"{code} why"

    def test_unknown(self, setting: Setting) -> None:
        assert setting.refused("nobody", "secret") == "unknown account"
        assert not setting.binds

    def test_an_empty_password_never_reaches_the_directory(self, setting: Setting) -> None:
        assert setting.refused("alice", "") == "empty password"
        assert not setting.directory.asked

    @pytest.mark.parametrize(
        ("name", "password"), [(b"\xff", b"x"), (b"alice", b"\xff"), (b"a\x07", b"x"), (b"", b"x"), (b"x" * 256, b"x")]
    )
    def test_what_no_account_is_called(self, setting: Setting, name: bytes, password: bytes) -> None:
        setting.refused(name, password)
        assert not setting.directory.asked

    def test_names_are_prepared(self, setting: Setting) -> None:
        setting.login("al\u00adice", "secret")
        assert setting.directory.names[0][0] == "alice"

    def test_each_listener_has_its_default_domain(self, setting: Setting) -> None:
        setting.login("alice", "secret", listener="partner")
        assert setting.directory.names[0] == ("alice", "partner.example")


class TestSickness:
    def test_an_unreachable_directory_is_temporary(self, setting: Setting) -> None:
        setting.directory.fault = Unavailable("gone")
        assert "gone" in setting.deferred("alice", "secret")

    def test_binds_without_an_answer_are_counted(self, setting: Setting) -> None:
        """A controller that hangs may have counted them."""
        setting.directory.fault = Unavailable("gone", asked=1)
        for _ in range(10):
            setting.deferred("alice", "wrong")
        assert setting.binds == 3

    def test_binds_that_never_left_are_not(self, setting: Setting) -> None:
        setting.directory.fault = Unavailable("gone", asked=0)
        for _ in range(10):
            setting.deferred("alice", "secret")
        setting.directory.fault = None
        assert setting.login("alice", "secret")

    def test_a_password_that_was_right_of_late_does_without_the_directory(self, setting: Setting) -> None:
        setting.login("alice", "secret")
        setting.directory.fault = Unavailable("gone")
        assert setting.login("alice", "secret")
        setting.deferred("alice", "other")

    def test_any_other_error_frees_the_account_for_others(self, setting: Setting) -> None:
        setting.directory.fault = RuntimeError("bug")
        with pytest.raises(RuntimeError):
            setting.login("alice", "secret")
        setting.directory.fault = None
        assert setting.login("alice", "secret")


class TestReuse:
    def test_a_right_password_is_not_bound_again(self, setting: Setting) -> None:
        for _ in range(5):
            setting.login("alice", "secret")
            setting.login("alice@corp.example", "secret")
        assert setting.binds == 1
        setting.clock.advance(61)
        setting.login("alice", "secret")
        assert setting.binds == 2

    def test_no_cache(self) -> None:
        setting = Setting(keep=0.0)
        setting.login("alice", "secret")
        setting.login("alice", "secret")
        assert setting.binds == 2

    def test_a_right_password_ends_with_the_password(self, setting: Setting) -> None:
        setting.login("alice", "secret")
        setting.directory.users["alice"] = dataclasses.replace(ALICE, password_set=2)
        setting.directory.passwords[ALICE.dn] = b"changed"
        assert "52e" in setting.refused("alice", "secret")

    @pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(AccountState)])
    def test_a_right_password_ends_with_the_account(self, setting: Setting, field: str) -> None:
        setting.login("alice", "secret")
        state = AccountState(**{field: True})
        setting.directory.users["alice"] = dataclasses.replace(ALICE, state=state)
        setting.directory.refused = Refusal("533", "account disabled")
        assert "533" in setting.refused("alice", "secret")

    def test_a_wrong_password_is_bound_once_while_it_stays_wrong(self, setting: Setting) -> None:
        """A forgotten device with last year's password costs the account one failure, and nobody else anything."""
        for _ in range(50):
            assert "52e" in setting.refused("alice", "old")
        assert setting.binds == 1
        assert setting.login("alice", "secret")

    def test_a_wrong_password_that_becomes_right_is_right_at_once(self, setting: Setting) -> None:
        setting.refused("alice", "new")
        setting.directory.passwords[ALICE.dn] = b"new"
        setting.directory.users["alice"] = dataclasses.replace(ALICE, password_set=2)
        assert setting.login("alice", "new")

    def test_where_password_changes_cannot_be_seen_each_is_bound(self, setting: Setting) -> None:
        setting.directory.users["alice"] = dataclasses.replace(ALICE, password_set=-1)
        setting.refused("alice", "new")
        setting.directory.passwords[ALICE.dn] = b"new"
        assert setting.login("alice", "new")

    def test_a_renamed_account_is_no_wrong_password(self, setting: Setting) -> None:
        renamed = dataclasses.replace(ALICE, dn="CN=alice smith,DC=corp")
        setting.directory.passwords = {renamed.dn: b"secret"}

        async def find(name: str, default_domain: str = "", *, fresh: bool = False) -> User:
            return renamed if fresh else ALICE

        setting.directory.find = find  # type: ignore[method-assign]
        assert setting.login("alice", "secret")

    def test_passwords_are_not_kept_readable(self, setting: Setting) -> None:
        setting.login("alice", "secret")
        setting.refused("alice", "hunter2")
        kept = repr([vars(answers) for answers in (setting.checker._right, setting.checker._wrong)])
        assert "secret" not in kept
        assert "hunter2" not in kept


class TestLockout:
    def test_past_half_of_the_threshold_nothing_is_bound(self, setting: Setting) -> None:
        for number in range(3):
            setting.refused("alice", f"guess{number}")
        detail = setting.deferred("CORP\\alice", "secret")  # by any of its names
        assert "too many failures of alice" in detail
        assert setting.binds == 3
        setting.clock.advance(601)
        assert setting.login("alice", "secret")

    def test_strangers_everywhere_do_not_lock_a_service_out(self, setting: Setting) -> None:
        setting.login("alice", "secret")
        setting.clock.advance(61)
        for number in range(20):
            with pytest.raises((UnauthorizedLogin, Fault)):
                setting.login("alice", f"guess{number}", f"198.51.100.{number}")
        assert setting.binds == 4
        assert setting.login("alice", "secret")

    def test_guesses_at_once_are_counted_one_after_another(self, setting: Setting) -> None:
        setting.directory.held = []
        guesses = [setting.begin("alice", f"guess{number}", f"198.51.100.{number}") for number in range(20)]
        for guess in guesses:
            guess.addErrback(lambda failure: None)
        while setting.directory.held:
            setting.directory.held.pop().callback(None)
        assert all(guess.called for guess in guesses)
        assert setting.binds == 3

    def test_logins_at_once_need_one_bind(self, setting: Setting) -> None:
        setting.directory.held = []
        logins = [setting.begin("alice", "secret", f"198.51.100.{number}") for number in range(50)]
        (bind,) = setting.directory.held
        bind.callback(None)
        assert [result(login).name for login in logins] == ["alice"] * 50
        assert setting.binds == 1

    def test_those_who_wait_are_bounded(self, setting: Setting) -> None:
        setting.directory.held = []
        logins = [setting.begin("alice", "secret") for _ in range(200)]
        assert sum(login.called for login in logins) == 99
        for login in logins:
            login.addErrback(lambda failure: failure.trap(Fault))
        setting.directory.held.pop().callback(None)
        assert all(login.called for login in logins)

    @pytest.mark.parametrize("code", ["533", "701", "773", "775", "532", "530"])
    def test_a_right_password_of_a_closed_account_is_no_guess(self, setting: Setting, code: str) -> None:
        setting.directory.refused = Refusal(code, "why")
        for _ in range(10):
            assert code in setting.refused("alice", "secret")

    def test_binds_that_were_lost_before_the_refusal_count_too(self) -> None:
        setting = Setting(settings=Lockout(auto=False, failures=3, seconds=100.0))
        setting.directory.refused = Refusal("52e", "wrong password", unanswered=2)
        setting.refused("alice", "secret")
        setting.deferred("alice", "another guess")

    def test_what_the_administrator_wrote(self) -> None:
        setting = Setting(settings=Lockout(auto=False, failures=2, seconds=100.0))
        for number in range(2):
            setting.refused("alice", f"guess{number}")
        setting.deferred("alice", "secret")
        assert not setting.directory.asked["policy"]


class TestBoth:
    """A name in the accounts file is checked there alone, any other in the directory alone."""

    @pytest.fixture
    def both(self, setting: Setting, tmp_path: Path) -> Setting:
        accounts = AccountsFile(tmp_path / "accounts.json", CHEAP)
        accounts.add("alice", "local", (), ("Local",))
        pool: Any = AtOnce()
        local = AccountsChecker(accounts, pool, FailureCount(9, 60.0, setting.clock.seconds), setting.clock.seconds)
        setting.checker = PasswordChecker(accounts, local, setting.checker)  # type: ignore[assignment]
        self.accounts = accounts
        return setting

    def test_local(self, both: Setting) -> None:
        assert both.login("ALICE", "local").source == "accounts"
        both.refused("alice", "secret")  # which is right in the directory
        assert not both.directory.asked

    def test_directory(self, both: Setting) -> None:
        assert both.login("alice@corp.example", "secret").source == "ldap"
        both.refused("CORP\\alice", "local")
        assert both.refused("nobody", "local") == "unknown account"

    def test_an_accounts_file_that_cannot_be_read_is_temporary_for_all(self, both: Setting) -> None:
        self.accounts.file.write_text("{")
        both.deferred("alice", "local")
        both.deferred("alice@corp.example", "secret")
        assert not both.directory.asked
