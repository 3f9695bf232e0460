"""Scanners that others use to find open relays and weak TLS."""

from __future__ import annotations

import os
import pwd
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.configurations import HEAD, listener, relaying
from tests.e2e.conftest import StartRelay
from tests.lab import clients
from tests.lab.ca import LabCA, Leaf
from tests.lab.relay import Relay
from tests.lab.scanners import nmap_open_relay, run_testssl
from tests.lab.sink import RecordingSink


def test_nmap_finds_none_of_its_relays_open(start_relay: StartRelay, sink: RecordingSink) -> None:
    relay = start_relay(relaying(sink.port, allow='["192.0.2.1"]'))
    scan = nmap_open_relay("127.0.0.1", relay.port())
    assert scan.open == ()
    assert scan.verdict.startswith("Server doesn't seem to be an open relay")
    assert sink.mails == []
    relay.assert_clean()


@pytest.mark.parametrize("name", ["smtp", "smtps"])
def test_testssl_finds_no_fault_of_medium_or_worse(
    name: str, start_relay: StartRelay, leaf: Leaf, ca: LabCA, sink: RecordingSink
) -> None:
    relay = start_relay(relaying(sink.port, leaf=leaf))
    findings = run_testssl("127.0.0.1", relay.port(name), starttls=name == "smtp", ca=ca.path)
    assert [finding for finding in findings if finding.at_least("MEDIUM")] == []
    assert any(finding.name == "TLS1_3" for finding in findings)
    assert not list(relay.find("fault"))


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="relayd-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_ipv4_clients_of_a_dual_stack_listener_are_matched_as_ipv4(open_directory: Path, sink: RecordingSink) -> None:
    config = (
        # As root a listener beyond loopback wants a user.
        HEAD.replace("[server]", '[server]\nuser = "nobody"')
        + listener(address="::")
        + '[access]\nallow = "only"\nlist = ["127.0.0.2", "127.0.0.3", "::1"]\n[relay]\nlist = ["127.0.0.2"]\n'
        + '[[domain]]\nname = "local.example"\n'
        + f'[delivery]\nsmart_host = ["127.0.0.1:{sink.port}"]\n'
    )
    with Relay(open_directory, config) as relay:

        def greeting(source: str) -> bytes:
            with socket.create_connection(("127.0.0.1", relay.port()), 10, (source, 0)) as connection:
                return connection.recv(1000)

        assert greeting("127.0.0.2").startswith(b"220 ")
        assert greeting("127.0.0.3").startswith(b"220 ")
        assert greeting("127.0.0.4").startswith(b"554 5.7.1 ")
        with socket.create_connection(("::1", relay.port()), 10) as connection:
            assert connection.recv(1000).startswith(b"220 ")
        to = ("127.0.0.1", relay.port(), "a@local.example", "bob@elsewhere.example")
        assert clients.swaks(*to, more=["--local-interface", "127.0.0.2"]).ok
        assert not clients.swaks(*to, more=["--local-interface", "127.0.0.3"]).ok
        (mail,) = sink.wait()
        assert b"[127.0.0.2]" in mail.content
        assert relay.process is not None
        if os.geteuid() == 0:
            status = Path(f"/proc/{relay.process.pid}/status").read_text()
            assert f"Uid:\t{pwd.getpwnam('nobody').pw_uid}\t" in status
        relay.assert_clean()


def test_root_does_not_speak_to_the_network(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("root does not exist here")
    relay = Relay(tmp_path, HEAD + listener(address="0.0.0.0"))
    relay.start(ready=False)
    assert relay.process is not None
    assert relay.process.wait(30) == 1
    relay.wait_until(lambda: bool(relay.other_lines), "a reason")
    assert "relayd.toml:1: server.user: started as root" in relay.other_lines[0]
