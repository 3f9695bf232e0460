from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.queue import delay_notice_due, next_attempt

RETRY = (900.0, 1800.0, 3600.0, 14400.0)
DAY = 86400.0


@pytest.mark.parametrize(
    ("attempts", "wait"), [(1, 900.0), (2, 1800.0), (3, 3600.0), (4, 14400.0), (5, 14400.0), (99, 14400.0)]
)
def test_waits_follow_the_list_and_the_last_one_repeats(attempts: int, wait: float) -> None:
    assert next_attempt(attempts, 1000.0, 2000.0, RETRY, 2 * DAY) == 2000.0 + wait


def test_the_last_attempt_comes_when_the_message_expires() -> None:
    assert next_attempt(9, 0.0, DAY - 60, RETRY, DAY) == DAY


@pytest.mark.parametrize("now", [DAY, DAY + 1, 99 * DAY])
def test_what_has_expired_is_not_tried_again(now: float) -> None:
    assert next_attempt(1, 0.0, now, RETRY, DAY) is None


def test_no_expiry_at_all_means_one_attempt() -> None:
    assert next_attempt(1, 1000.0, 1000.0, RETRY, 0.0) is None


@given(
    st.integers(1, 1000),
    st.floats(0, 2e9),
    st.floats(0, 1e7),
    st.lists(st.floats(0, 1e6), min_size=1, max_size=9),
    st.floats(0, 1e7),
)
def test_the_next_attempt_is_always_later_than_now(
    attempts: int, received: float, age: float, retry: list[float], expire: float
) -> None:
    now = received + age
    at = next_attempt(attempts, received, now, tuple(retry), expire)
    assert at is None or now < at <= max(received + expire, now + 1.0)


@given(st.floats(1, 1e6), st.lists(st.floats(0, 1e5), min_size=1, max_size=5))
def test_every_message_ends(expire: float, retry: list[float]) -> None:
    retry[-1] = max(retry[-1], expire / 50)
    now: float | None = 0.0
    for attempts in range(1, 200):
        assert now is not None
        now = next_attempt(attempts, 0.0, now, tuple(retry), expire)
        if now is None:
            return
    raise AssertionError("it goes on for ever")


def test_bad_arguments_are_told() -> None:
    with pytest.raises(ValueError, match="retry"):
        next_attempt(1, 0.0, 0.0, (), DAY)
    with pytest.raises(ValueError, match="attempts"):
        next_attempt(0, 0.0, 0.0, RETRY, DAY)


@pytest.mark.parametrize(
    ("age", "after", "notified", "due"),
    [
        (0.0, 3600.0, False, False),
        (3599.0, 3600.0, False, False),
        (3600.0, 3600.0, False, True),
        (9999.0, 3600.0, False, True),
        (9999.0, 3600.0, True, False),
        (9999.0, 0.0, False, False),
    ],
)
def test_a_delay_is_told_once(age: float, after: float, notified: bool, due: bool) -> None:
    assert delay_notice_due(1000.0, 1000.0 + age, after, notified) is due
