"""AccountLockout: no account is locked in the directory by relayd, no service is locked out of relayd by strangers."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from relayd.auth import AccountLockout, Limits, client_key
from relayd.directory import LockoutPolicy
from relayd.model import client_address
from relayd.settings import Lockout

SID = "S-1-5-21-1-2-3-1001"
WINDOW = 600.0


def limits(threshold: int) -> Limits:
    return Limits.of(Lockout(), LockoutPolicy(threshold, WINDOW))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lockout(clock: Clock) -> AccountLockout:
    return AccountLockout(clock.seconds)


@pytest.mark.parametrize("threshold", range(3, 40))
def test_relayd_alone_never_reaches_the_directorys_threshold(lockout: AccountLockout, threshold: int) -> None:
    """Whoever fails as often as they are let, known and strangers, from as many clients as they like."""
    allowed = limits(threshold)
    lockout.succeeded(SID, "known-1")
    lockout.succeeded(SID, "known-2")
    failures = 0
    for client in ("known-1", "known-2", *(f"stranger-{number}" for number in range(threshold))):
        while not lockout.blocked(SID, client, allowed):
            lockout.failed(SID, client, allowed)
            failures += 1
    assert failures < threshold


@pytest.mark.parametrize("threshold", [0, 1, 2, 3, 5, 10])
def test_strangers_do_not_lock_a_service_out_elsewhere(lockout: AccountLockout, threshold: int) -> None:
    allowed = limits(threshold)
    lockout.succeeded(SID, "192.0.2.7")
    for number in range(100):
        if not lockout.blocked(SID, f"stranger-{number}", allowed):
            lockout.failed(SID, f"stranger-{number}", allowed)
    assert lockout.blocked(SID, "somebody new", allowed)
    assert not lockout.blocked(SID, "192.0.2.7", allowed)


def test_half_of_the_threshold_from_one_client(lockout: AccountLockout) -> None:
    allowed = limits(10)
    for _ in range(5):
        assert not lockout.blocked(SID, "a", allowed)
        lockout.failed(SID, "a", allowed)
    assert lockout.blocked(SID, "a", allowed)
    assert not lockout.blocked("S-1-5-21-1-2-3-1002", "a", allowed)


def test_a_success_forgives_the_client_and_not_the_strangers(lockout: AccountLockout) -> None:
    allowed = limits(4)
    lockout.failed(SID, "a", allowed)
    lockout.failed(SID, "stranger", allowed)
    lockout.succeeded(SID, "a")
    assert not lockout.blocked(SID, "a", allowed)
    assert lockout.blocked(SID, "other", allowed)


def test_a_right_password_that_was_not_asked_for_makes_known_and_forgives_nothing(lockout: AccountLockout) -> None:
    allowed = limits(4)
    lockout.succeeded(SID, "a")
    lockout.failed(SID, "a", allowed)
    lockout.recognised(SID, "a")
    assert lockout.blocked(SID, "a", allowed)
    lockout.recognised(SID, "b")
    assert lockout.blocked(SID, "b", allowed)  # of the share of the known


def test_the_window_begins_anew_with_each_failure(clock: Clock, lockout: AccountLockout) -> None:
    """As badPwdCount: one failure every nine minutes locks an account in the end."""
    allowed = limits(6)
    for _ in range(3):
        assert not lockout.blocked(SID, "a", allowed)
        lockout.failed(SID, "a", allowed)
        clock.advance(WINDOW - 1)
    assert lockout.blocked(SID, "a", allowed)
    clock.advance(2)
    assert not lockout.blocked(SID, "a", allowed)


def test_what_may_have_been_counted_counts(lockout: AccountLockout) -> None:
    allowed = limits(4)
    lockout.failed(SID, "a", allowed, times=2)
    assert lockout.blocked(SID, "a", allowed)
    lockout.failed(SID, "b", allowed, times=0)


def test_what_the_administrator_wrote() -> None:
    written = Limits.of(Lockout(auto=False, failures=4, seconds=900.0), LockoutPolicy(3, WINDOW))
    assert written == Limits(4, 4, 4, 900.0)


def test_a_directory_that_locks_nobody_still_gets_a_brake() -> None:
    allowed = limits(0)
    assert 0 < allowed.client < allowed.strangers
    assert allowed.window > 0


def test_strangers_cannot_fill_the_memory(clock: Clock) -> None:
    lockout = AccountLockout(clock.seconds, keys=3)
    allowed = limits(2)
    for number in range(10):
        lockout.failed(SID, f"stranger-{number}", allowed)
        lockout.succeeded(SID, f"known-{number}")
    assert lockout.blocked(SID, "stranger-0", allowed)  # the account's own count stays
    assert len(lockout._known) <= 3


def test_names_that_no_account_has_do_not_make_accounts_forgotten(clock: Clock) -> None:
    lockout = AccountLockout(clock.seconds, keys=3)
    allowed = limits(2)
    lockout.failed(SID, "stranger", allowed)
    for number in range(10):
        lockout.failed(f"any{number}\\alice", "stranger", allowed)
    assert lockout.blocked(SID, "another stranger", allowed)
    assert lockout.blocked("any9\\alice", "stranger", allowed)
    assert not lockout.blocked("any0\\alice", "stranger", allowed)


def test_an_ipv6_host_is_one_client() -> None:
    assert client_key(client_address("2001:db8::1")) == client_key(client_address("2001:db8::2:3"))
    assert client_key(client_address("2001:db8::1")) != client_key(client_address("2001:db8:0:1::1"))
    assert client_key(client_address("::ffff:192.0.2.7")) == client_key(client_address("192.0.2.7"))
