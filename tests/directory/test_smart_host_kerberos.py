"""A smart host that takes Kerberos alone: relayd signs in to it with the keytab's own account."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.directory.relays import Log, integrated, running
from tests.lab import domain
from tests.lab.directory import DirectoryLab
from tests.lab.relay import Relay

SENDER = """\
[server]
hostname = "client.lab.example"
state = "state"

[[listener]]
name = "smtp"
address = "127.0.0.1"
port = 0

[authentication]
integrated = false

[relay]
list = ["127.0.0.1"]

[[domain]]
name = "local.example"

[delivery]
smart_host = ["{host}:{port}"]
smart_host_auth = "keytab"
ca = "{ca}"
retry = ["1s"]

[[credential]]
name = "keytab"
kind = "gssapi"

[kerberos]
keytab = "{keytab}"

[log]
format = "json"
"""


@pytest.fixture
def own_keytab(lab: DirectoryLab, tmp_path: Path) -> Path:
    file = tmp_path / "own.keytab"
    domain.tool(lab.directory, "samba-tool", "domain", "exportkeytab", str(file), f"--principal={domain.COMPUTER}")
    return file


@pytest.fixture(params=["accept", "require"])
def smart_host(lab: DirectoryLab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Relay]:
    more = (
        '[[domain]]\nname = "dest.example"\n[authentication]\nanonymous = false\nbasic = false\nntlm = false\n'
        f'channel_binding = "{request.param}"\n'
    )
    place = tmp_path / "smart"
    place.mkdir()
    with running(place, integrated(lab, more), env=lab.environment) as relay:
        yield relay


@pytest.fixture
def sender(lab: DirectoryLab, smart_host: Relay, own_keytab: Path, tmp_path: Path) -> Iterator[Relay]:
    config = SENDER.format(host=domain.RELAY, port=smart_host.port(), ca=lab.ca, keytab=own_keytab)
    place = tmp_path / "sender"
    place.mkdir()
    with running(place, config, prefix=lab.named(), env=lab.environment) as relay:
        yield relay


def send(relay: Relay) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port()) as client:
        client.sendmail("alice@local.example", "bob@dest.example", b"Subject: x\r\n\r\n")


def test_it_signs_in(sender: Relay, smart_host: Relay) -> None:
    log = Log(smart_host)
    send(sender)
    assert "verified" in sender.wait_for("delivered")["tls"]
    event = log.one("authenticated")
    assert (event["mechanism"], event["source"]) == ("GSSAPI", "kerberos")
    assert event["user"].upper().startswith(domain.COMPUTER)
    smart_host.wait_for("delivered")
    (dropped,) = smart_host.dropped()
    assert b"X-Receiver: bob@dest.example" in dropped
    send(sender)
    sender.wait_for("delivered", count=2)


def test_a_keytab_without_keys_waits(sender: Relay, smart_host: Relay, own_keytab: Path) -> None:
    kept = own_keytab.read_bytes()
    own_keytab.write_bytes(b"\x05\x02")
    send(sender)
    deferred = sender.wait_for("deferred")
    assert deferred["reply"].startswith("451 4.7.0 Credential keytab cannot be used")
    assert "has no key of an account's own" in deferred["detail"]
    own_keytab.write_bytes(kept)
    sender.wait_for("delivered")
    smart_host.wait_for("delivered")
