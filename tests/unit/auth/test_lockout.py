"""FailureCount: a sliding window, bounded."""

from twisted.internet.task import Clock

from relayd.auth import FailureCount


def test_blocked_from_the_limit_on_until_the_oldest_failure_ages_out() -> None:
    clock = Clock()
    count = FailureCount(2, 10.0, clock.seconds)
    count.failed("a")
    clock.advance(6)
    count.failed("a")
    assert count.blocked("a")
    assert not count.blocked("b")
    clock.advance(4)
    assert not count.blocked("a")
    count.failed("a")
    assert count.blocked("a")


def test_a_success_forgives() -> None:
    count = FailureCount(1, 10.0, Clock().seconds)
    count.failed("a")
    count.succeeded("a")
    assert not count.blocked("a")


def test_many_strangers_cannot_fill_the_memory() -> None:
    count = FailureCount(1, 10.0, Clock().seconds, keys=3)
    for key in "abcde":
        count.failed(key)
    assert [key for key in "abcde" if count.blocked(key)] == ["c", "d", "e"]
