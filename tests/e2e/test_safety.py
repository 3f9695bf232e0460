"""Mail is safe before 250 says so, and next hops that misbehave cost none; with the real binary."""

from __future__ import annotations

import os
import re
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.configurations import HEAD, listener, relaying
from tests.e2e.conftest import StartRelay
from tests.lab import clients
from tests.lab.net import wait_for
from tests.lab.relay import DEADLINE, Relay
from tests.lab.sink import HANG_UP, RecordingSink

FROM, TO = "alice@local.example", "bob@elsewhere.example"
LARGE = b"Subject: large\r\n\r\n" + b"0123456789abcdef" * 4 + b"\r\n" + (b"y" * 70 + b"\r\n") * 8000


def submit(relay: Relay, *to: str, content: bytes = b"Subject: x\r\n\r\nx\r\n", sender: str = FROM) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port(), timeout=DEADLINE) as client:
        client.sendmail(sender, to or (TO,), content)


# ---- 250 means safe ---------------------------------------------------------------------------------------------


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[tuple[Relay, Callable[[], list[str]]]]:
    """A relay under strace, and its system calls that matter here: in the order they ended."""
    strace = shutil.which("strace")
    output = tmp_path / "trace"
    if strace is None or subprocess.run([strace, "-o", "/dev/null", "true"], capture_output=True).returncode:
        pytest.skip("no strace, or no leave to use it")
    relay = Relay(tmp_path, HEAD + listener() + '[[domain]]\nname = "local.example"\n').start()
    assert relay.process is not None
    calls = "trace=fsync,fdatasync,sendto,rename,mkdir,unlink"
    arguments = [strace, "-f", "-y", "-s", "64", "-e", calls, "-o", str(output), "-p", str(relay.process.pid)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr is not None
        assert b"attached" in tracer.stderr.readline()

        def seen() -> list[str]:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(DEADLINE)
            begun: dict[str, str] = {}
            done = []
            for line in output.read_text(errors="replace").splitlines():
                thread, _, text = line.partition(" ")
                text = text.strip()
                if text.endswith("<unfinished ...>"):
                    begun[thread] = text.removesuffix("<unfinished ...>")
                    continue
                if text.startswith("<..."):
                    text = begun.pop(thread) + text.partition("resumed>")[2]
                done.append(text)
            return done

        yield relay, seen
        if tracer.poll() is None:
            tracer.send_signal(signal.SIGINT)
    relay.stop()


def position(calls: list[str], pattern: str) -> int:
    found = [number for number, call in enumerate(calls) if re.search(pattern, call)]
    assert found, f"no {pattern} in {calls}"
    return found[0]


def test_a_small_message_is_on_disk_before_its_250(traced: tuple[Relay, Callable[[], list[str]]]) -> None:
    relay, seen = traced
    submit(relay, "carol@local.example")
    calls = seen()
    data = position(calls, r"sendto.*354 ")
    answer = position(calls, r"sendto.*250 2\.0\.0 OK: queued")
    assert any(re.search(r"f(data)?sync\(.*/queue/0\.db-wal>\)\s*= 0", call) for call in calls[data:answer]), calls


def test_a_large_message_is_on_disk_before_its_row_and_its_250(
    traced: tuple[Relay, Callable[[], list[str]]],
) -> None:
    relay, seen = traced
    submit(relay, "carol@local.example", content=LARGE)
    calls = seen()
    order = [
        position(calls, r"sendto.*354 "),
        position(calls, r"mkdir\(.*/queue/bodies/.."),
        position(calls, r"fsync\(.*/queue/bodies>\)\s*= 0"),
        position(calls, r"fsync\(.*/queue/bodies/../\w{13}>\)\s*= 0"),
        position(calls, r"fsync\(.*/queue/bodies/..>\)\s*= 0"),
    ]
    assert order == sorted(order), calls
    answer = position(calls, r"sendto.*250 2\.0\.0 OK: queued")
    row = [n for n in range(order[-1], answer) if re.search(r"sync\(.*/0\.db-wal>\)\s*= 0", calls[n])]
    assert row, calls


# ---- a disk that is full ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=6m tmpfs {disk} 2>/dev/null"):
        pytest.skip("may not mount")
    yield disk
    os.system(f"umount -l {disk}")


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


#: How a sink is asked what to say to a whole message.
WHOLE = (b".", b"BDAT LAST")


def test_what_was_sent_while_the_disk_was_full_is_not_sent_again(start_relay: StartRelay, small_disk: Path) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def answer(line: bytes) -> bytes | None:
        if line in WHOLE:
            arrived.set()
            assert go_on.wait(DEADLINE)
        return None

    with RecordingSink(answer=answer) as sink:
        config = relaying(sink.port).replace('state = "state"', f'state = "{small_disk}/state"')
        relay = start_relay(config)
        submit(relay)
        assert arrived.wait(DEADLINE)
        filler = fill(small_disk)
        go_on.set()
        relay.wait_for("delivered")
        relay.wait_for("fault", where="queue: settle")
        with pytest.raises(smtplib.SMTPResponseException) as refused:
            submit(relay, content=b"x" * 100_000 + b"\r\n")
        assert refused.value.smtp_code == 452
        filler.unlink()
        wait_for(lambda: relay.ctl_json("status")[0]["queue"]["messages"] == 0, "settled", timeout=DEADLINE)
        assert len(sink.mails) == 1
        submit(relay)
        assert len(sink.wait(2)) == 2


# ---- an administrator meanwhile ---------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"Subject: x\r\n\r\nx\r\n", LARGE], ids=["small", "large"])
def test_a_message_that_is_dropped_while_it_is_sent(start_relay: StartRelay, content: bytes) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def answer(line: bytes) -> bytes | None:
        if line in WHOLE:
            arrived.set()
            assert go_on.wait(DEADLINE)
            return b"550 5.7.1 never"
        return None

    with RecordingSink(answer=answer) as sink:
        relay = start_relay(relaying(sink.port))
        submit(relay, content=content)
        assert arrived.wait(DEADLINE)
        queue_id = relay.wait_for("accepted")["queue_id"]
        try:
            assert relay.ctl_json("queue", "drop", queue_id) == [{"messages": 1}]
            assert relay.ctl("queue", "retry", queue_id).returncode == 1  # there is nothing to retry
        finally:
            go_on.set()
        relay.wait_for("bounced")
        wait_for(lambda: relay.ctl_json("status")[0]["queue"]["messages"] == 0, "nothing left", timeout=DEADLINE)
        assert not list(relay.find("dsn-queued")), "nobody is told of what an administrator dropped"
        wait_for(lambda: not any((relay.state / "queue" / "bodies").glob("*/*")), "the file is gone")
        relay.stop()
        assert not list(relay.find("fault")), list(relay.find("fault"))
        relay.assert_clean()


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(start_relay: StartRelay, sink: RecordingSink) -> None:
    relay = start_relay(relaying(sink.port))
    for closing in (socket.SHUT_WR, None):
        with socket.create_connection(("127.0.0.1", relay.port()), DEADLINE) as client:
            client.sendall(b"EHLO x\r\nMAIL FROM:<%b>\r\nRCPT TO:<%b>\r\nDATA\r\n" % (FROM.encode(), TO.encode()))
            received = b""
            while b"354 " not in received:
                received += client.recv(65536)
            client.sendall(LARGE)
            wait_for(lambda: any((relay.state / "queue" / "bodies").glob("*/*")), "a file", timeout=DEADLINE)
            if closing is not None:
                client.shutdown(closing)
        wait_for(lambda: not any((relay.state / "queue" / "bodies").glob("*/*")), "no file", timeout=DEADLINE)
    assert relay.ctl_json("status")[0]["queue"]["messages"] == 0
    relay.assert_clean()


# ---- next hops that misbehave -----------------------------------------------------------------------------------

PATH_TROUBLE = {
    "554 greeting": (b"", b"554 5.7.1 go away"),
    "421 greeting": (b"", b"421 4.7.0 busy"),
    "550 EHLO": (b"EHLO", b"550 5.7.1 who are you"),
    "530 MAIL": (b"MAIL", b"530 5.7.0 authenticate"),
    "535 RCPT": (b"RCPT", b"535 5.7.8 no"),
    "538 end": (b".", b"538 5.7.11 encrypt"),
    "554 DATA": (b"DATA", b"554 5.5.1 no"),
    "552 RCPT": (b"RCPT", b"552 5.5.3 too many"),
    "421 MAIL": (b"MAIL", b"421 4.3.2 closing"),
    "421 RCPT": (b"RCPT", b"421 4.3.2 closing"),
    "421 DATA": (b"DATA", b"421 4.3.2 closing"),
    "421 end": (b".", b"421 4.3.2 closing"),
    "gone at MAIL": (b"MAIL", HANG_UP),
    "gone at end": (b".", HANG_UP),
    "noise at EHLO": (b"EHLO", b"what?"),
    "503 BDAT": (b"BDAT LAST", b"503 5.5.1 no"),
    "538 BDAT": (b"BDAT LAST", b"538 5.7.11 encrypt"),
    "421 BDAT": (b"BDAT LAST", b"421 4.3.2 closing"),
    "gone at BDAT": (b"BDAT LAST", HANG_UP),
}


@pytest.mark.parametrize("trouble", PATH_TROUBLE)
def test_a_next_hop_in_trouble_never_makes_a_bounce(start_relay: StartRelay, trouble: str) -> None:
    where, says = PATH_TROUBLE[trouble]
    sick = True

    def answer(line: bytes) -> bytes | None:
        here = line == where if where in (b"", *WHOLE) else line.upper().startswith(where)
        return says if sick and here else None

    extensions = ("PIPELINING", "8BITMIME", *["CHUNKING"] * (where == b"BDAT LAST"))
    with RecordingSink(answer=answer, extensions=extensions) as sink:
        relay = start_relay(relaying(sink.port))
        submit(relay, TO, "carol@elsewhere.example")
        relay.wait_for("deferred")
        (listed,) = relay.ctl_json("queue", "list")
        assert all(recipient["last_reply"].startswith("4") for recipient in listed["recipients"]), listed
        sick = False
        assert relay.ctl("queue", "retry", "--domain", "elsewhere.example").returncode in (0, 1)
        relay.wait_for("delivered", recipient=TO)
        relay.wait_for("delivered", recipient="carol@elsewhere.example")
        assert len(sink.wait()) >= 1
        assert not list(relay.find("bounced"))
        relay.assert_clean()


def test_partial_acceptance(start_relay: StartRelay) -> None:
    once = iter([b"450 4.2.1 later"])
    answers = {
        b"RCPT TO:<no@": lambda: b"550 5.1.1 nobody",
        b"RCPT TO:<later@": lambda: next(once, None),
        b"RCPT TO:<many@": lambda: None,
    }

    def answer(line: bytes) -> bytes | None:
        return next((say() for start, say in answers.items() if line.startswith(start)), None)

    with RecordingSink(answer=answer) as sink:
        relay = start_relay(relaying(sink.port))
        submit(relay, *(f"{name}@elsewhere.example" for name in ("yes", "no", "later", "many")))
        relay.wait_for("bounced", recipient="no@elsewhere.example")
        first, second = sorted(sink.wait(2), key=lambda mail: -len(mail.to))
        assert sorted(first.to) == ["many@elsewhere.example", "yes@elsewhere.example"]
        assert list(second.to) == ["later@elsewhere.example"]
        relay.wait_for("delivered", recipient=FROM)
        assert len(relay.dropped()) == 1
        relay.assert_clean()


def test_tls_that_is_offered_and_broken_does_not_hold_mail_up(start_relay: StartRelay) -> None:
    """RFC 7435: with `may`, in the clear rather than not at all."""
    broken = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # without a certificate no handshake comes to its end
    with RecordingSink(tls=broken) as sink:
        relay = start_relay(relaying(sink.port))
        submit(relay)
        (mail,) = sink.wait()
        assert not mail.secure
        assert sink.sessions[0].lines[-1] == b"STARTTLS"
        relay.wait_for("delivered")
        relay.assert_clean()


def test_mail_for_a_dead_host_expires_on_time_and_tells_why_it_waits(start_relay: StartRelay) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    relay = start_relay(relaying(port, delivery='expire = "12s"\ndelay_notice = "4s"\n'))
    clients.smtp_source("127.0.0.1", relay.port(), FROM, TO, sessions=5, messages=200, length=500).require()
    relay.wait_for("hop-rests")
    listed = relay.ctl_json("queue", "list")
    replies = {recipient["last_reply"] for entry in listed for recipient in entry["recipients"] if entry["sender"]}
    assert replies <= {"451 4.4.1 No connection: Connection refused", ""}, replies
    assert "451 4.4.1 No connection: Connection refused" in replies
    relay.wait_for("bounced", count=200)
    relay.wait_for("delivered", count=400, recipient=FROM)  # a delay and a failure each
    assert relay.ctl_json("status")[0]["queue"]["messages"] == 0
    relay.assert_clean()


def test_a_stop_and_a_kill_in_a_long_queue(start_relay: StartRelay) -> None:
    """What waits for a dead host is there after both, and all of it arrives once when the host is back."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    relay = start_relay(relaying(port))
    clients.smtp_source("127.0.0.1", relay.port(), FROM, TO, sessions=10, messages=1000, length=500).require()
    for end in (relay.stop, relay.kill, relay.stop):
        end()
        relay.assert_clean()
        relay.start()
        assert relay.ctl_json("status")[0]["queue"]["messages"] == 1000
    with RecordingSink(port=port) as sink:
        assert len(sink.wait(1000, timeout=DEADLINE * 3)) == 1000
        wait_for(lambda: relay.ctl_json("status")[0]["queue"]["messages"] == 0, "all settled", timeout=DEADLINE)
        assert len(sink.mails) == 1000
