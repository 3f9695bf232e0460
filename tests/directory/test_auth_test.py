"""`relayctl auth test` by each mechanism that goes by a password: the administrator sees what a client would get."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.directory.relays import integrated, running
from tests.lab import domain
from tests.lab.directory import DirectoryLab
from tests.lab.relay import Relay

SOURCES = {"PLAIN": "ldap", "LOGIN": "ldap", "GSSAPI": "kerberos", "GSS-SPNEGO": "kerberos", "NTLM": "ntlm"}


@pytest.fixture(scope="module")
def relay(lab: DirectoryLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    folder = tmp_path_factory.mktemp("relay")
    with running(folder, integrated(lab), env=lab.environment) as relay:
        yield relay


def asked(relay: Relay, user: str, mechanism: str, password: str) -> tuple[int, dict[str, object]]:
    done = relay.ctl(
        *("--json", "auth", "test", user, "--mechanism", mechanism, "--password-file", "-"), input=f"{password}\n"
    )
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("mechanism", SOURCES)
def test_a_right_password(relay: Relay, mechanism: str) -> None:
    code, found = asked(relay, "alice", mechanism, domain.USERS["alice"])
    assert (code, found["verdict"]) == (0, "accept"), found
    principal = found["principal"]
    assert isinstance(principal, dict)
    assert (principal["name"], principal["source"]) == ("alice", SOURCES[mechanism])


@pytest.mark.parametrize("mechanism", SOURCES)
def test_an_account_that_is_disabled(relay: Relay, mechanism: str) -> None:
    """No mechanism takes it for the directory's fault."""
    code, found = asked(relay, "disabled", mechanism, domain.USERS["disabled"])
    assert (code, found["verdict"], found["code"]) == (1, "refuse", 535), found


@pytest.mark.parametrize(("user", "why"), [("lapsed", "Password has expired"), ("nobody", "not found in Kerberos")])
def test_whom_the_kdc_refuses(relay: Relay, user: str, why: str) -> None:
    name = f"{user}@{domain.REALM}"
    code, found = asked(relay, name, "GSSAPI", domain.USERS.get(user, "x"))
    assert (code, found["verdict"]) == (1, "refuse")
    assert why in str(found["reason"])


def test_a_kdc_that_is_away(relay: Relay) -> None:
    code, found = asked(relay, "alice@ELSEWHERE.EXAMPLE", "GSSAPI", "x")
    assert (code, found["verdict"], found["code"]) == (2, "defer", 454)
    assert "ELSEWHERE.EXAMPLE" in str(found["reason"])


def test_it_binds_to_the_listeners_channel(lab: DirectoryLab, tmp_path: Path) -> None:
    config = integrated(lab, '[authentication]\nchannel_binding = "require"')
    with running(tmp_path, config, env=lab.environment) as relay:
        for mechanism in SOURCES:
            code, found = asked(relay, "alice", mechanism, domain.USERS["alice"])
            assert (code, found["verdict"]) == (0, "accept"), found
