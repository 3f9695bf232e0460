"""Access tokens: asked for once, renewed before they end, and not asked for by each message where there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from relayd.delivery import Tokens
from relayd.delivery.https import Answer, HttpsFault
from relayd.delivery.oauth import NoToken
from relayd.events import Event, Events
from relayd.settings import Credential
from tests.unit.delivery.peer import Result, in_thread


class Server:
    """A token server that the test answers for."""

    def __init__(self) -> None:
        self.asked: list[Deferred[Answer]] = []

    async def fetch(self, method: str, url: str, *, headers: Any = None, body: bytes = b"") -> Answer:
        answer: Deferred[Answer] = Deferred()
        self.asked.append(answer)
        return await answer

    def give(self, token: str, **more: object) -> None:
        content = {"access_token": token, "token_type": "bearer", "expires_in": 3600} | more
        self.asked.pop().callback(Answer(200, "application/json", json.dumps(content).encode()))


class Setting:
    def __init__(self, secret: Path) -> None:
        self.clock = Clock()
        self.server = Server()
        self.events: list[Event] = []
        events = Events(self.clock.seconds)
        events.subscribe(lambda at, event: self.events.append(event))
        self.tokens = Tokens(self.server, in_thread, events, self.clock.seconds)
        self.credential = Credential("m365", "oauth2", token_url="https://x/", client_secret_file=secret)

    def token(self) -> Result:
        return Result(Deferred.fromCoroutine(self.tokens.token(self.credential)))


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    return Setting(secret)


def test_all_who_wait_share_one_question(setting: Setting) -> None:
    waiting = [setting.token() for _ in range(5)]
    assert len(setting.server.asked) == 1
    setting.server.give("T1")
    assert [each.value for each in waiting] == ["T1"] * 5
    assert setting.token().value == "T1"


@pytest.mark.parametrize(("lasts", "fresh"), [(3600, 3299), (60, 47), ("3600", 3299), (None, 239), (-1, 239)])
def test_it_is_renewed_before_it_ends(setting: Setting, lasts: object, fresh: float) -> None:
    first = setting.token()
    setting.server.give("T1", expires_in=lasts)
    assert first.value == "T1"
    setting.clock.advance(fresh)
    assert setting.token().value == "T1"
    setting.clock.advance(2)
    second = setting.token()
    assert second.waiting
    setting.server.give("T2")
    assert second.value == "T2"


def test_one_that_was_refused_is_not_given_again(setting: Setting) -> None:
    first = setting.token()
    setting.server.give("T1")
    setting.tokens.refused(setting.credential, "an older one")
    assert setting.token().value == first.value
    setting.tokens.refused(setting.credential, "T1")
    assert setting.token().waiting


def test_a_failure_is_remembered_for_a_while(setting: Setting) -> None:
    first = setting.token()
    setting.server.asked.pop().errback(HttpsFault("no answer"))
    assert str(first.fault(NoToken)) == "token server: no answer"
    assert str(setting.token().fault(NoToken)) == "token server: no answer"
    assert not setting.server.asked
    assert [event.name for event in setting.events] == ["token-refused"]
    setting.clock.advance(15)
    assert setting.token().waiting


def test_a_secret_that_cannot_be_read(setting: Setting) -> None:
    file = setting.credential.client_secret_file
    assert file is not None
    file.unlink()
    assert str(setting.token().fault(NoToken)) == f"{file} cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(400, "application/json", b'{"error": "s3cret\\r\\nis"}'), "token server: 400 …  is"),
        (Answer(200, "application/json", b"[]"), "token server: 200 without JSON"),
        (Answer(200, "application/json", b'{"access_token": 5}'), "token server: 200 without a usable access_token"),
        (
            Answer(200, "application/json", b'{"access_token": "\\u0001"}'),
            "token server: 200 without a usable access_token",
        ),
        (
            Answer(200, "application/json", b'{"access_token": "x", "token_type": "mac"}'),
            "token server: its token is no bearer token",
        ),
    ],
)
def test_what_is_no_token(setting: Setting, answer: Answer, why: str) -> None:
    asked = setting.token()
    setting.server.asked.pop().callback(answer)
    assert str(asked.fault(NoToken)) == why
