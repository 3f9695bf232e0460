"""Starting and stopping: what cannot start says why on one line and exits 1; what is up says so and stops cleanly."""

from __future__ import annotations

import os
import re
import resource
import smtplib
import socket
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.configurations import HEAD, listener, password_file, relaying
from tests.e2e.conftest import StartRelay
from tests.lab import clients
from tests.lab.net import wait_for
from tests.lab.relay import DEADLINE, ENVIRONMENT, Relay, program
from tests.lab.sink import RecordingSink

LOCAL = '[[domain]]\nname = "local.example"\n'


def refused(relay: Relay) -> str:
    """Starts *relay*, which must not start; what it said."""
    relay.start(ready=False)
    assert relay.process is not None
    code = relay.process.wait(DEADLINE)
    relay.stop()
    said = "".join(relay.other_lines) + "".join(str(event.get("detail")) for event in relay.find("fault"))
    assert code == 1, said
    assert "Traceback" not in said
    assert not list(relay.find("ready"))
    return said


def test_a_broken_configuration(tmp_path: Path) -> None:
    said = refused(Relay(tmp_path, HEAD + listener() + "[relay]\nallow = 5\n[deliverey]\n"))
    lines = said.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{tmp_path}/relayd.toml:20: relay.allow: ")
    assert "delivery" in lines[1]


def test_an_open_relay(tmp_path: Path) -> None:
    config = HEAD + listener() + '[relay]\nallow = "all-except"\n'
    assert "open relay" in refused(Relay(tmp_path, config))
    with Relay(tmp_path, config, ("--allow-open-relay",)) as relay:
        relay.assert_clean()


def test_a_port_that_somebody_else_has(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = HEAD + listener().replace("port = 0", f"port = {taken.getsockname()[1]}")
        assert "listener smtp: cannot listen on 127.0.0.1:" in refused(Relay(tmp_path, config))


def test_a_state_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    assert "state" in refused(Relay(tmp_path, HEAD + listener() + LOCAL))


def test_a_second_relayd_on_the_same_queue(tmp_path: Path) -> None:
    with Relay(tmp_path, HEAD + listener() + LOCAL) as first:
        second = Relay(tmp_path, HEAD + listener() + LOCAL)
        assert "queue" in refused(second)
        assert first.ctl("status").returncode == 0


def test_a_damaged_queue_is_not_overwritten(tmp_path: Path) -> None:
    with Relay(tmp_path, HEAD + listener() + LOCAL) as relay:
        relay.assert_clean()
    database = relay.state / "queue" / "0.db"
    damaged = b"not a database at all" * 1000
    database.write_bytes(damaged)
    assert "0.db" in refused(relay)
    assert database.read_bytes() == damaged


def test_the_log_may_be_a_file(tmp_path: Path) -> None:
    config = (HEAD + listener() + LOCAL).replace('format = "json"', 'format = "text"\nfile = "relayd.log"')
    relay = Relay(tmp_path, config)
    relay.start(ready=False)
    log = tmp_path / "relayd.log"
    wait_for(lambda: log.exists() and " info ready listening=" in log.read_text(), "the ready line", timeout=DEADLINE)
    relay.stop()
    assert " info stopping\n" in log.read_text()
    assert relay.other_lines == []


def test_as_a_daemon_it_logs_where_twistd_logs(tmp_path: Path) -> None:
    (tmp_path / "relayd.toml").write_text(HEAD + listener() + LOCAL)
    log, pidfile = tmp_path / "twistd.log", tmp_path / "twistd.pid"
    subprocess.run(
        [program("twistd"), "relayd", "--config", "relayd.toml"],
        cwd=tmp_path,
        check=True,
        timeout=DEADLINE,
        env=ENVIRONMENT,
    )
    pid = int(wait_for(lambda: pidfile.exists() and pidfile.read_text(), "a pid", timeout=DEADLINE))
    try:
        wait_for(lambda: log.exists() and '"event": "ready"' in log.read_text(), "the ready line", timeout=DEADLINE)
    finally:
        os.kill(pid, 15)
        wait_for(lambda: not pidfile.exists(), "the end of the daemon", timeout=DEADLINE)


def test_a_daemon_that_cannot_start_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = HEAD + listener().replace("port = 0", f"port = {taken.getsockname()[1]}")
        (tmp_path / "relayd.toml").write_text(config)
        done = subprocess.run(
            [program("twistd"), "relayd", "--config", "relayd.toml"],
            cwd=tmp_path,
            timeout=DEADLINE,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert "listener smtp: cannot listen on 127.0.0.1:" in done.stderr
    log = (tmp_path / "twistd.log").read_text()
    assert "cannot listen" in log
    assert "Traceback" not in log
    assert not (tmp_path / "twistd.pid").exists()


def test_a_start_that_fails_is_told_at_the_terminal_though_the_log_is_a_file(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = HEAD.replace('format = "json"', 'format = "json"\nfile = "relayd.log"') + listener()
        config = config.replace("port = 0", f"port = {taken.getsockname()[1]}")
        assert "relayd: listener smtp: cannot listen on" in refused(Relay(tmp_path, config))
    assert '"event": "fault"' in (tmp_path / "relayd.log").read_text()


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="relayd-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_accounts_that_root_adds_are_read_by_the_user_that_relayd_becomes(open_directory: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("root does not exist here")
    config = HEAD.replace("[server]", '[server]\nuser = "nobody"') + listener() + LOCAL
    relay = Relay(open_directory, config)
    (open_directory / "password").write_text("secret\n")
    add = ("account", "add", "printer", "--password-file", str(open_directory / "password"))
    assert relay.ctl(*add).returncode == 0
    with relay, smtplib.SMTP("127.0.0.1", relay.port()) as client:
        client.starttls()
        assert client.login("printer", "secret")[0] == 235
        assert _checked(relay) == (0, "")
    # Written by something else, for root alone: no start, instead of nobody who can sign in.
    os.chown(open_directory / "accounts.json", 0, 0)
    assert "accounts.json cannot be read by the user that relayd runs as" in refused(relay)
    code, said = _checked(relay)
    assert code == 1
    assert re.search(r"relayd\.toml:[0-9]+: accounts\.file: .*accounts\.json cannot be read by nobody\n", said)


def test_a_password_that_the_user_cannot_read_stops_the_start(open_directory: Path) -> None:
    """It would be missed with the first message, hours later."""
    if os.geteuid() != 0:
        pytest.skip("root does not exist here")
    secret = password_file(open_directory, "p4ss")
    config = (
        HEAD.replace("[server]", '[server]\nuser = "nobody"')
        + listener()
        + LOCAL
        + f'[[credential]]\nname = "provider"\nuser = "relay"\npassword_file = "{secret}"\n'
    )
    relay = Relay(open_directory, config)
    assert f"{secret} cannot be read by the user that relayd runs as" in refused(relay)
    code, said = _checked(relay)
    assert code == 1
    assert re.search(r"relayd\.toml:[0-9]+: credential\[0\]\.password_file: .* cannot be read by nobody\n", said)


def test_the_user_that_relayd_becomes_picks_up_what_others_write(open_directory: Path) -> None:
    """It may not take leases of their files, so it looks longer; who has one open is seen all the same."""
    if os.geteuid() != 0:
        pytest.skip("root does not exist here")
    folder = open_directory / "pickup"
    folder.mkdir(0o755)
    config = HEAD.replace("[server]", '[server]\nuser = "nobody"') + listener() + LOCAL
    relay = Relay(open_directory, f'{config}[pickup]\ndirectory = "{folder}"\n')
    assert "relayd may not read it and write to it" in refused(relay)
    code, said = _checked(relay)
    assert code == 1
    assert re.search(r"relayd\.toml:[0-9]+: pickup\.directory: .* cannot be read and written to by nobody\n", said)
    folder.chmod(0o777)
    assert _checked(relay) == (0, "")
    mail = b"From: a@local.example\nTo: b@local.example\nSubject: %b\n\nfirst\n"
    with relay:
        closed = folder / "closed"
        closed.write_bytes(mail % b"closed")
        closed.chmod(0o600)
        with (folder / "open").open("wb", buffering=0) as writer:
            writer.write(mail % b"open")
            (folder / "whole").write_bytes(mail % b"whole")
            relay.wait_for("accepted", file="whole")
            relay.wait_for("notice", text=f"{closed}: it cannot be read: Permission denied")
            assert list(relay.find("accepted", file="open")) == []
            writer.write(b"second\n")
        relay.wait_for("accepted", file="open")
        relay.wait_for("delivered", count=2)
        assert sorted(message.endswith(b"first\r\nsecond\r\n") for message in relay.dropped()) == [False, True]
        assert closed.exists()
    relay.assert_clean()


def _checked(relay: Relay) -> tuple[int, str]:
    """What --check says: its exit code, and its complaints."""
    done = subprocess.run(
        [program("twistd"), "relayd", "--config", str(relay.config), "--check"],
        timeout=DEADLINE,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


def test_a_shells_limit_of_descriptors_is_raised(tmp_path: Path) -> None:
    relay = Relay(tmp_path, HEAD + listener() + LOCAL)
    relay.start(prefix=["sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh"])
    try:
        assert relay.process is not None
        soft, hard = resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE)
        assert soft == min(hard, 65_536)
    finally:
        relay.stop()


def test_systemd_is_told(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(DEADLINE)
        relay = Relay(tmp_path, HEAD + listener() + LOCAL)
        relay.start(environment={"NOTIFY_SOCKET": str(path)})
        assert manager.recv(100) == b"READY=1"
        relay.stop()
        assert manager.recv(100) == b"STOPPING=1"


def test_a_stop_lets_a_message_that_is_coming_in_finish(start_relay: StartRelay, sink: RecordingSink) -> None:
    relay = start_relay(relaying(sink.port))
    with socket.create_connection(("127.0.0.1", relay.port()), 10) as connection:
        stream = connection.makefile("rwb")

        def say(line: bytes) -> bytes:
            stream.write(line + b"\r\n")
            stream.flush()
            return bytes(stream.readline())

        assert stream.readline().startswith(b"220 ")
        assert say(b"HELO client.example").startswith(b"250 ")
        assert say(b"MAIL FROM:<a@local.example>").startswith(b"250 ")
        assert say(b"RCPT TO:<b@local.example>").startswith(b"250 ")
        assert say(b"DATA").startswith(b"354 ")
        stopping = threading.Thread(target=relay.stop)
        stopping.start()
        relay.wait_for("stopping")
        assert say(b"Subject: late\r\n\r\n.").startswith(b"250 ")
        stopping.join(DEADLINE)
    relay.start()
    relay.wait_for("delivered", recipient="b@local.example") if not relay.dropped() else None
    assert len(relay.dropped()) == 1


def test_a_full_queue_is_not_a_refusal_and_passes(start_relay: StartRelay, sink: RecordingSink) -> None:
    """A writer that does not let go stands for a disk that does not answer."""
    relay = start_relay(relaying(sink.port))
    with sqlite3.connect(relay.state / "queue" / "0.db", isolation_level=None) as intruder:
        intruder.execute("BEGIN IMMEDIATE")
        ran = clients.curl("127.0.0.1", relay.port(), "a@local.example", "b@elsewhere.example")
        assert not ran.ok
        assert "451 4.3.0" in ran.output
        intruder.execute("ROLLBACK")
    intruder.close()
    assert clients.curl("127.0.0.1", relay.port(), "a@local.example", "b@elsewhere.example").ok
    assert len(sink.wait()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system to fill does not exist without root")
def test_a_full_disk_is_not_a_refusal_and_passes(tmp_path: Path, sink: RecordingSink) -> None:
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "relayd-test", str(state)], check=True)
    try:
        with Relay(tmp_path, relaying(sink.port)) as relay:
            filler = state / "filler"
            with pytest.raises(OSError, match="No space"):
                filler.write_bytes(bytes(5 * 1024**2))
            where = ("127.0.0.1", relay.port(), "a@local.example", "b@elsewhere.example")
            big = b"Subject: big\r\n\r\n" + b"x" * 70 * 10_000 + b"\r\n"
            for data in (clients.SAMPLE, big):
                ran = clients.curl(*where, data=data)
                assert not ran.ok
                assert "452 4.3.1" in ran.output
            assert relay.ctl("status").returncode == 0
            filler.unlink()
            assert clients.curl(*where, data=big).ok
            assert len(sink.wait()) == 1
            relay.wait_for("delivered")
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)


def test_auth_is_not_offered_where_nobody_could_sign_in(start_relay: StartRelay) -> None:
    config = (HEAD + listener() + LOCAL).replace('[accounts]\nfile = "accounts.json"\n', "")
    assert "[accounts]" not in config
    relay = start_relay(config)
    notices = [event["key"] for event in relay.find("notice")]
    assert "authentication.basic" in notices
    with smtplib.SMTP("127.0.0.1", relay.port(), timeout=DEADLINE) as client:
        client.starttls()
        client.ehlo()
        assert not client.has_extn("auth")
        assert client.docmd("AUTH", "PLAIN AGEAYg==")[0] == 504
