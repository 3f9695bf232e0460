from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.queue.ids import ALPHABET, LENGTH, MessageIds, decode, encode
from tests.unit.queue.loop import Now

numbers = st.integers(0, 2**63 - 1)


@given(numbers)
def test_an_id_is_short_and_tells_its_number(number: int) -> None:
    text = encode(number)
    assert len(text) == LENGTH == 13
    assert set(text) <= set(ALPHABET)
    assert decode(text) == number


@given(numbers, numbers)
def test_ids_sort_as_their_numbers(one: int, other: int) -> None:
    assert (encode(one) < encode(other)) == (one < other)


def test_letters_that_people_confuse_mean_the_same() -> None:
    assert decode("0OoIiLl1abcde") == decode("0001111" + "1ABCDE")


@pytest.mark.parametrize("text", ["", "0", "U" * 13, "ZZZZZZZZZZZZZ", "000000000000", "0000000000000 ", "é" * 13])
def test_what_is_no_id(text: str) -> None:
    assert decode(text) is None


@given(st.lists(st.floats(0, 4_000_000_000), max_size=50))
def test_whatever_the_clock_does_ids_grow(times: list[float]) -> None:
    now = Now(0.0)
    ids = MessageIds(clock=now)
    made = []
    for now.at in times:
        made += [ids.next() for _ in range(3)]
    assert made == sorted(set(made))


def test_ids_go_on_behind_those_of_a_dead_predecessor() -> None:
    now = Now()
    last = MessageIds(clock=now).next()
    now.at -= 3600
    assert MessageIds(last, clock=now).next() > last


def test_more_ids_than_fit_a_millisecond_borrow_of_the_next() -> None:
    ids = MessageIds(clock=Now())
    made = [ids.next() for _ in range(40_000)]
    assert made == sorted(set(made))
    assert (made[-1] >> 20) - (made[0] >> 20) <= 3


def test_shards_never_make_the_same_id() -> None:
    now = Now()
    shards = [MessageIds(shard=shard, clock=now) for shard in (0, 1, 63)]
    made = [shard.next() for shard in shards for _ in range(20_000)]
    assert len(set(made)) == len(made)
    with pytest.raises(ValueError, match="shard"):
        MessageIds(shard=64)
