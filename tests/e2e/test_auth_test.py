"""`relayctl auth test`: the running server authenticates, and the administrator sees whom it sees, or why not."""

from __future__ import annotations

import json

import pytest

from tests.e2e.configurations import relaying
from tests.e2e.conftest import StartRelay
from tests.lab.net import free_port
from tests.lab.relay import Relay


@pytest.fixture
def relay(start_relay: StartRelay) -> Relay:
    relay = start_relay(relaying(free_port()))
    done = relay.ctl(
        *("account", "add", "app", "--password-file", "-", "--address", "app@local.example", "--group", "Apps"),
        input="s3cret\n",
    )
    assert done.returncode == 0, done
    return relay


def asked(relay: Relay, *arguments: str, password: str = "s3cret\n") -> tuple[int, dict[str, object]]:
    done = relay.ctl("--json", "auth", "test", "--password-file", "-", *arguments, input=password)
    return done.returncode, json.loads(done.stdout) if done.stdout else {"error": done.stderr}


def test_a_right_password(relay: Relay) -> None:
    code, found = asked(relay, "app")
    assert code == 0
    assert found == {
        "mechanism": "PLAIN",
        "listener": "smtp",
        "verdict": "accept",
        "code": 235,
        "enhanced": "2.7.0",
        "reply": "235 2.7.0 Authentication successful",
        "reason": "",
        "principal": {
            "name": "app",
            "upn": "",
            "sid": "",
            "source": "accounts",
            "addresses": ["app@local.example"],
            "groups": ["Apps"],
        },
    }
    assert relay.wait_for("admin")["action"] == "auth test"
    assert "s3cret" not in json.dumps(relay.events)


def test_a_wrong_password_says_why(relay: Relay) -> None:
    code, found = asked(relay, "app", "--mechanism", "login", password="guess\n")
    assert (code, found["verdict"], found["code"], found["mechanism"]) == (1, "refuse", 535, "LOGIN")
    assert found["reason"] == "unknown account or wrong password"


def test_for_people(relay: Relay) -> None:
    done = relay.ctl("auth", "test", "app", "--listener", "smtps", "--password-file", "-", input="s3cret\n")
    assert done.returncode == 0
    for text in ("PLAIN on smtps", "app@local.example", "Apps", "accept: 235 2.7.0"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "password", "text"),
    [
        (("app",), "\n", "an empty password is never tried"),
        (("app", "--listener", "nowhere"), "x\n", "nowhere: no such listener; there are: smtp, smtps"),
    ],
)
def test_what_is_not_tried(relay: Relay, arguments: tuple[str, ...], password: str, text: str) -> None:
    code, found = asked(relay, *arguments, password=password)
    assert code == 1
    assert text in str(found["error"])


def test_a_mechanism_that_is_not_offered(relay: Relay) -> None:
    code, found = asked(relay, "app", "--mechanism", "XOAUTH2")
    assert (code, found["code"], found["reason"]) == (1, 504, "refused by authentication.basic")


def test_without_a_server(relay: Relay) -> None:
    relay.stop()
    assert asked(relay, "app")[0] == 2
