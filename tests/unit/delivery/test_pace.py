"""``rate``: no stretch of time sees more messages than were written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relayd.delivery.pace import Pace
from relayd.settings import Rate
from tests.unit.delivery.fakes import Rig, Sending
from tests.unit.delivery.values import claim, remote, settings


class Timed(Rig):
    """Notes when each message went."""

    def __init__(self, *domains: object) -> None:
        super().__init__(settings(*domains))  # type: ignore[arg-type]
        self.sent_at: list[float] = []

        def answer(sending: Sending) -> None:
            self.sent_at.append(self.clock.seconds())
            sending.answer()

        self.pool.answers = answer


def test_two_in_ten_seconds() -> None:
    rig = Timed(remote("dest.example", rate=Rate(2, 10.0)))
    for number in range(5):
        rig.scheduler.take(claim("u@dest.example", message_id=f"M{number}", first_id=number))
    assert len(rig.sent_at) == 2
    rig.clock.pump([1.0] * 9)
    assert len(rig.sent_at) == 2
    rig.clock.pump([1.0])
    assert len(rig.sent_at) == 4
    rig.clock.pump([1.0] * 10)
    assert len(rig.sent_at) == 5
    assert set(rig.store.states().values()) == {"delivered"}


def test_all_domains_under_a_wildcard_keep_it_together() -> None:
    rig = Timed(remote("*.dest.example", rate=Rate(2, 10.0)))
    for number in range(4):
        rig.scheduler.take(claim(f"u@d{number}.dest.example", message_id=f"M{number}", first_id=number))
    assert len(rig.sent_at) == 2
    rig.clock.pump([10.0])
    assert len(rig.sent_at) == 4


def test_others_are_not_held_up() -> None:
    rig = Timed(remote("slow.example", rate=Rate(1, 3600.0)))
    for number in range(10):
        rig.scheduler.take(claim("u@slow.example", message_id=f"S{number}", first_id=number))
    for number in range(10):
        rig.scheduler.take(claim("u@quick.example", message_id=f"Q{number}", first_id=100 + number))
    assert len(rig.sent_at) == 11


def test_a_stop_gives_back_what_waits() -> None:
    rig = Timed(remote("dest.example", rate=Rate(1, 3600.0)))
    for number in range(3):
        rig.scheduler.take(claim("u@dest.example", message_id=f"M{number}", first_id=number))
    rig.scheduler.stopService()
    assert sorted(rig.store.states().values()) == ["delivered", "queued", "queued"]
    assert not [call for call in rig.clock.getDelayedCalls() if call.getTime() > 1100]


@given(
    st.integers(1, 5),
    st.floats(0.1, 100.0),
    st.lists(st.floats(0.0, 50.0), max_size=60),
)
def test_no_stretch_sees_more(count: int, seconds: float, gaps: list[float]) -> None:
    pace, now = Pace(Rate(count, seconds)), 0.0
    sent: list[float] = []
    for gap in gaps:
        now += gap
        now += pace.wait(now)
        assert pace.wait(now) <= 1e-6
        pace.take(now)
        sent.append(now)
    for early, late in zip(sent, sent[count:], strict=False):
        assert late - early >= seconds - 1e-6
