"""AUTH NTLM against local accounts, by curl: no domain, no directory, no Kerberos."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import StartRelay
from tests.lab import clients
from tests.lab.relay import MINIMAL, Relay

NTLM = f'{MINIMAL}\n[ntlm]\nbackend = "accounts"\n'


@pytest.fixture
def relay(start_relay: StartRelay) -> Relay:
    relay = start_relay(NTLM)
    relay.ctl("account", "add", "alice", "--password-file", "-", "--group", "Staff", input="secret\n")
    return relay


def send(relay: Relay, user: str, password: str, *more: str) -> clients.Ran:
    return clients.curl("127.0.0.1", relay.port(), auth=(user, password), mechanism="NTLM", more=more)


@pytest.mark.parametrize("more", [(), ("--sasl-ir",)])
@pytest.mark.parametrize("user", ["alice", "CORP\\alice"])
def test_the_right_password(relay: Relay, user: str, more: tuple[str, ...]) -> None:
    send(relay, user, "secret", *more).require()
    found = relay.wait_for("authenticated", mechanism="NTLM")
    assert (found["user"], found["source"]) == ("alice", "accounts")


def test_a_wrong_one(relay: Relay) -> None:
    assert send(relay, "alice", "wrong").code == 67
    assert relay.wait_for("authentication-failed", user="alice")["reason"] == "unknown account or wrong password"


def test_too_many_wrong_ones(relay: Relay) -> None:
    for _ in range(10):
        send(relay, "alice", "wrong")
    assert send(relay, "alice", "secret").code == 67
    relay.wait_for("authentication-failed", reply="454 4.7.0 Temporary authentication failure")
