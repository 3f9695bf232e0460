"""Turns: one at a time for each account, in order, and not without end."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from relayd.auth.turns import WAITING, Turns
from relayd.model import Fault
from tests.unit.auth.test_ntlm_accounts import result


class Work:
    """Runs until it is told to end; remembers who began."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.begun: list[int] = []
        self.running: list[Deferred[Any]] = []

    def take(self, account: str, number: int) -> Deferred[int]:
        async def run() -> int:
            self.begun.append(number)
            wait: Deferred[Any] = Deferred()
            self.running.append(wait)
            await wait
            return number

        return Deferred.fromCoroutine(self._turns.take(account, run))


@pytest.fixture
def work() -> Work:
    return Work(Turns())


def test_one_after_the_other(work: Work) -> None:
    outcomes = [work.take("alice", number) for number in range(3)]
    for number, outcome in enumerate(outcomes):
        assert work.begun == list(range(number + 1))
        work.running.pop().callback(None)
        assert result(outcome) == number


def test_others_do_not_wait(work: Work) -> None:
    work.take("alice", 1)
    work.take("bob", 2)
    assert work.begun == [1, 2]


def test_one_that_fails_lets_the_next_begin(work: Work) -> None:
    failed, _ = work.take("alice", 1), work.take("alice", 2)
    work.running.pop().errback(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        result(failed)
    assert work.begun == [1, 2]


def test_too_many_are_told_so_at_once(work: Work) -> None:
    for number in range(WAITING + 1):
        work.take("alice", number)
    with pytest.raises(Fault) as caught:
        result(work.take("alice", -1))
    assert str(caught.value.reply).startswith("454 4.7.0")
    while work.running:
        work.running.pop().callback(None)
    assert sorted(work.begun) == list(range(WAITING + 1))
