"""Log lines: one an event, whatever is in it."""

import json
import os
from collections.abc import Callable
from typing import cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, Logger, LogPublisher

from relayd.events import Event, Events, InternalFault, MessageAccepted, Notice, Ready
from relayd.log import LogWriter, json_line, text_line, twisted_observer

AT = 1_700_000_000.25


def accepted(sender: str = "alice@corp.example") -> MessageAccepted:
    return MessageAccepted(session="s1", queue_id="Q1", client="192.0.2.7", sender=sender, recipients=2, size=812)


def test_a_text_line() -> None:
    assert text_line(AT, accepted()) == (
        "2023-11-14T22:13:20.250Z info accepted session=s1 queue_id=Q1 client=192.0.2.7 "
        "sender=alice@corp.example recipients=2 size=812\n"
    )
    assert text_line(AT, Ready(listening=("smtp 127.0.0.1:25", "x"))).endswith(
        ' info ready listening="smtp 127.0.0.1:25,x"\n'
    )


def test_a_json_line() -> None:
    assert json.loads(json_line(AT, accepted())) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "event": "accepted",
        "session": "s1",
        "queue_id": "Q1",
        "client": "192.0.2.7",
        "sender": "alice@corp.example",
        "recipients": 2,
        "size": 812,
    }


@given(st.text(), st.sampled_from([text_line, json_line]))
def test_nothing_in_an_event_makes_a_second_line(text: str, line: Callable[[float, Event], str]) -> None:
    written = line(AT, accepted(text))
    assert len(written.splitlines()) == 1
    assert written.endswith("\n")
    assert written[:-1].isprintable()


@given(st.text(min_size=1))
def test_a_value_cannot_pass_for_another_field(text: str) -> None:
    line = text_line(AT, Notice(text=text))
    value = line.rstrip("\n").partition(" text=")[2]
    assert (json.loads(value) if value.startswith('"') else value) == text


def test_lines_of_one_turn_leave_in_one_write() -> None:
    reader, writer = os.pipe()
    clock = Clock()
    events = Events(lambda: AT)
    events.subscribe(LogWriter("text", writer, clock))
    events.emit(accepted())
    events.emit(accepted())
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(0)
    assert os.read(reader, 10_000).count(b" accepted ") == 2
    os.close(reader)
    events.emit(accepted())
    clock.advance(0)  # nobody reads: the mail goes on
    os.close(writer)


def test_what_twisted_warns_of_becomes_an_event_and_its_small_talk_does_not() -> None:
    seen: list[Event] = []
    events = Events(lambda: AT)
    events.subscribe(lambda at, event: seen.append(event))
    observer = cast(ILogObserver, twisted_observer(events))
    log = Logger("some.namespace", observer=LogPublisher(observer))
    log.info("small talk")
    log.warn("the {thing} is odd", thing="moon")
    try:
        raise LookupError("no such thing")
    except LookupError:
        log.failure("it failed")
    warned, failed = seen
    assert warned == InternalFault(where="some.namespace", detail="the moon is odd")
    assert isinstance(failed, InternalFault)
    assert "LookupError: no such thing" in failed.detail
