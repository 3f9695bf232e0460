"""The checkers behind the portal: who gets in, as whom, and what refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.cred.checkers import ANONYMOUS
from twisted.cred.credentials import Anonymous
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from zope.interface import Interface, implementer

from relayd.auth import AccountsChecker, AccountsFile, AnonymousChecker, FailureCount, Password
from relayd.model import Client, Fault, Peer, Principal, Reply, client_address
from tests.unit.auth.test_accounts import CHEAP


class AtOnce:
    """A pool that runs calls on the spot, and counts them."""

    def __init__(self) -> None:
        self.calls = 0
        self.full = False

    def run(self, call: Callable[..., Any], *args: object) -> Deferred[Any]:
        if self.full:
            return fail(Fault(Reply.of(454, "4.7.0", "busy")))
        self.calls += 1
        try:
            return succeed(call(*args))
        except Exception as error:
            return fail(error)


@implementer(IRealm)
class WhoRealm:
    """The avatar is the avatar id."""

    def requestAvatar(self, avatarId: Any, mind: Any, *interfaces: type[Interface]) -> tuple[Any, Any, Any]:
        return interfaces[0], avatarId, lambda: None


class Setting:
    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self.pool = AtOnce()
        self.accounts = AccountsFile(directory / "accounts.json", CHEAP)
        self.accounts.add("alice", "secret", ("alice@corp.example",), ("App Senders",))
        self.failures = FailureCount(3, 60.0, self.clock.seconds)
        checker = AccountsChecker(
            self.accounts,
            self.pool,  # type: ignore[arg-type]
            self.failures,
            self.clock.seconds,
        )
        self.portal = Portal(WhoRealm(), [AnonymousChecker(), checker])

    def login(self, name: bytes, password: bytes, address: str = "192.0.2.7") -> Deferred[Any]:
        client = Client(Peer(client_address(address)), "smtp")
        return self.portal.login(Password(name, password, "PLAIN", client), None, IRealm)

    def refused(self, name: bytes, password: bytes, kind: type[Exception], address: str = "192.0.2.7") -> Exception:
        failure = Deferred.fromCoroutine(_failure(self.login(name, password, address)))
        return failure.result if isinstance(failure.result, kind) else pytest.fail(f"{failure.result}")


async def _failure(login: Deferred[Any]) -> Exception:
    try:
        return AssertionError(f"logged in as {await login}")
    except Exception as error:
        return error


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def test_a_right_password_makes_a_principal(setting: Setting) -> None:
    _, avatar, _ = setting.login(b"ALICE", b"secret").result
    assert avatar == Principal(
        name="alice",
        mechanism="PLAIN",
        source="accounts",
        groups=frozenset({"App Senders"}),
        addresses=("alice@corp.example",),
    )


def test_anonymous_is_nobody(setting: Setting) -> None:
    _, avatar, _ = setting.portal.login(Anonymous(), None, IRealm).result
    assert avatar is ANONYMOUS


@pytest.mark.parametrize(
    ("name", "password"),
    [
        (b"alice", b"wrong"),
        (b"bob", b"secret"),
        (b"alice", b""),
        (b"\xff", b"secret"),
        (b"alice", b"\xff"),
        (b"", b"x"),
    ],
)
def test_everything_else_is_unauthorized(setting: Setting, name: bytes, password: bytes) -> None:
    setting.refused(name, password, UnauthorizedLogin)


def test_an_empty_password_is_not_even_checked(setting: Setting) -> None:
    setting.refused(b"alice", b"", UnauthorizedLogin)
    assert setting.pool.calls == 0


def test_a_full_pool_is_temporary(setting: Setting) -> None:
    setting.pool.full = True
    fault = setting.refused(b"alice", b"secret", Fault)
    assert isinstance(fault, Fault)
    assert fault.reply.code == 454


def test_a_broken_accounts_file_is_temporary(setting: Setting) -> None:
    setting.accounts.file.write_text("{")
    fault = setting.refused(b"alice", b"secret", Fault)
    assert isinstance(fault, Fault)
    assert fault.reply.code == 454
    assert "accounts.json" in fault.detail


def test_after_too_many_failures_the_password_is_not_looked_at(setting: Setting) -> None:
    for _ in range(3):
        setting.refused(b"alice", b"wrong", UnauthorizedLogin)
    looked = setting.pool.calls
    fault = setting.refused(b"Alice", b"secret", Fault)
    assert isinstance(fault, Fault)
    assert fault.reply.code == 454
    assert setting.pool.calls == looked
    # From elsewhere the account is open: a stranger cannot lock a service out.
    assert setting.login(b"alice", b"secret", "192.0.2.8").result
    setting.clock.advance(61)
    assert setting.login(b"alice", b"secret").result


def test_a_right_password_is_remembered_for_a_while(setting: Setting) -> None:
    for _ in range(3):
        assert setting.login(b"alice", b"secret").result
    assert setting.pool.calls == 1
    setting.clock.advance(61)
    assert setting.login(b"alice", b"secret").result
    assert setting.pool.calls == 2


def test_what_is_remembered_ends_with_the_password(setting: Setting) -> None:
    assert setting.login(b"alice", b"secret").result
    setting.accounts.add("alice", "changed", (), ())
    setting.refused(b"alice", b"secret", UnauthorizedLogin)
    setting.accounts.remove("alice")
    setting.refused(b"alice", b"changed", UnauthorizedLogin)


def test_the_password_is_not_in_the_credentials_repr() -> None:
    shown = repr(Password(b"alice", b"hunter2", "LOGIN", Client(Peer(client_address("192.0.2.7")), "smtp")))
    assert "hunter2" not in shown
    assert "alice" in shown


def test_spellings_of_a_name_are_counted_together(setting: Setting) -> None:
    for name in ("alice", "ALICE", "al\u00adice"):
        setting.refused(name.encode(), b"wrong", UnauthorizedLogin)
    assert isinstance(setting.refused("\uff41lice".encode(), b"secret", Fault), Fault)


def test_the_addresses_of_one_ipv6_host_are_counted_together(setting: Setting) -> None:
    for host in range(1, 4):
        setting.refused(b"alice", b"wrong", UnauthorizedLogin, f"2001:db8::{host}")
    setting.refused(b"alice", b"secret", Fault, "2001:db8::ffff:1")
    assert setting.login(b"alice", b"secret", "2001:db8:0:1::1").result


class InTurn(AtOnce):
    """A pool that runs its calls when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Callable[[], None]] = []

    def run(self, call: Callable[..., Any], *args: object) -> Deferred[Any]:
        result: Deferred[Any] = Deferred()
        self.waiting.append(lambda: super(InTurn, self).run(call, *args).chainDeferred(result))
        return result

    def work(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


def test_guesses_made_at_once_are_counted_like_others(setting: Setting) -> None:
    pool = InTurn()
    setting.portal.registerChecker(
        AccountsChecker(setting.accounts, pool, setting.failures, setting.clock.seconds)  # type: ignore[arg-type]
    )
    guesses = [Deferred.fromCoroutine(_failure(setting.login(b"alice", b"wrong"))) for _ in range(200)]
    assert len(pool.waiting) == 1
    pool.work()
    kinds = [type(guess.result) for guess in guesses]
    assert kinds == [UnauthorizedLogin] * 3 + [Fault] * 197


def test_a_device_with_many_connections_is_checked_once(setting: Setting) -> None:
    pool = InTurn()
    setting.portal.registerChecker(
        AccountsChecker(setting.accounts, pool, setting.failures, setting.clock.seconds)  # type: ignore[arg-type]
    )
    logins = [setting.login(b"alice", b"secret") for _ in range(200)]
    pool.work()
    assert all(login.result for login in logins)
    assert pool.calls == 1


def test_a_name_longer_than_any_account_s_is_not_looked_up(setting: Setting) -> None:
    setting.refused(b"x" * 256, b"secret", UnauthorizedLogin)
    assert setting.pool.calls == 0
