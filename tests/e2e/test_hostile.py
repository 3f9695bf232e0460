"""What a hostile client can do to a running relayd: nothing that breaks a promise, or is not answered for."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.auth import AccountsFile
from relayd.control.client import ControlClient
from tests.lab.net import wait_for
from tests.lab.raw import Raw
from tests.lab.relay import Relay

CONFIG = """\
[server]
hostname = "relay.example"
state = "state"

[accounts]
file = "accounts.json"

[log]
format = "json"

[authentication]
lockout = "4 in 15m"

[limits]
connections_per_client = 1000

[[domain]]
name = "local.example"

[[listener]]
name = "smtp"
address = "127.0.0.1"
port = 0

[[listener]]
name = "smtps"
address = "127.0.0.1"
port = 0
tls = "implicit"
connections_per_client = 20

[[listener]]
name = "strict"
address = "127.0.0.1"
port = 0
require_tls = true

[[listener]]
name = "legacy"
address = "127.0.0.1"
port = 0
legacy_clients = ["127.0.0.0/8"]
basic_requires_tls = false

[[listener]]
name = "small"
address = "127.0.0.1"
port = 0
message_size = "1K"
session_size = "3K"
recipients = 20
connections_per_client = 3

[[listener]]
name = "hasty"
address = "127.0.0.1"
port = 0
command_timeout = "1s"

[[listener]]
name = "hasty-tls"
address = "127.0.0.1"
port = 0
tls = "implicit"
command_timeout = "1s"
"""

#: The endings of issue 2 that never end DATA.
SMUGGLED = [
    b"\n.\n",
    b"\r.\r",
    b"\r.\n",
    b"\n.\r",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\n\n.\r\n",
]
INNER = (
    b"MAIL FROM:<evil@client.example>\r\nRCPT TO:<victim@local.example>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\n"
)
END = b"\r\n.\r\n"


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    directory = tmp_path_factory.mktemp("hostile")
    accounts = AccountsFile(directory / "accounts.json")
    for name in ("alice", "bob"):
        accounts.add(name, "secret", (), ())
    with Relay(directory, CONFIG) as running:
        # What is opened once, and kept.
        for size in (10, 300_000):
            with Raw(running.port()) as client:
                client.ready().send(b"x: y\r\n\r\n" + b"z" * size + END)
                assert client.codes(1) == [250]
        running.wait_for("delivered", 2)
        sessions(running)
        yield running


@pytest.fixture(scope="module")
def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.fixture(autouse=True)
def _unharmed(relay: Relay) -> Iterator[None]:
    """After each test all sessions have ended, no descriptor and no temporary file is left, and the log is clean."""
    before = descriptors(relay)
    yield
    wait_for(lambda: sessions(relay) == 0, "the sessions to end")
    wait_for(lambda: descriptors(relay) <= before, "the descriptors to be closed")
    wait_for(lambda: not bodies(relay), "the files of large bodies to go")
    relay.assert_clean()


def sessions(relay: Relay) -> int:
    status = ControlClient(relay.state / "control.sock").status()
    return sum(listener["sessions"] for listener in status["listeners"])


def descriptors(relay: Relay) -> int:
    assert relay.process is not None
    return len(os.listdir(f"/proc/{relay.process.pid}/fd"))


def bodies(relay: Relay) -> list[Path]:
    return [file for file in (relay.state / "queue").rglob("*") if file.is_file() and not file.name.startswith("0.")]


def resident(relay: Relay) -> int:
    """The memory of the process, in KiB."""
    assert relay.process is not None
    status = Path(f"/proc/{relay.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def threads(relay: Relay) -> int:
    assert relay.process is not None
    return len(os.listdir(f"/proc/{relay.process.pid}/task"))


def accepted(relay: Relay) -> int:
    return len(list(relay.find("accepted")))


def one_by_one(octets: bytes) -> list[bytes]:
    return [octets[i : i + 1] for i in range(len(octets))]


# ---- smuggling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", SMUGGLED, ids=repr)
@pytest.mark.parametrize("segments", ["one", "ending", "octets"])
def test_no_ending_but_the_true_one_ends_data(relay: Relay, ending: bytes, segments: str) -> None:
    before = accepted(relay)
    content = b"Subject: outer\r\n\r\ntext" + ending + INNER
    # INNER ends as DATA ends, so what follows it is a command.
    writes = {
        "one": [content],
        "ending": [b"Subject: outer\r\n\r\ntext", *one_by_one(ending), INNER],
        "octets": one_by_one(content),
    }[segments]
    with Raw(relay.port()) as client:
        client.ready().send(*writes)
        assert client.reply().startswith(b"550 5.6.0 ")
        assert client.say(b"NOOP").startswith(b"250")
        assert client.say(b"QUIT").startswith(b"221")
        assert client.rest() == b""
    assert accepted(relay) == before


@pytest.mark.parametrize("ending", SMUGGLED, ids=repr)
def test_no_ending_passes_in_chunks(relay: Relay, ending: bytes) -> None:
    before = accepted(relay)
    content = b"Subject: outer\r\n\r\ntext" + ending + INNER
    for size in (1, 7, len(content)):
        with Raw(relay.port()) as client:
            client.ready(data=False)
            chunks = [content[i : i + size] for i in range(0, len(content), size)]
            codes = []
            for index, chunk in enumerate(chunks):
                last = b" LAST" if index == len(chunks) - 1 else b""
                client.send(b"BDAT %d%b\r\n" % (len(chunk), last) + chunk)
                codes.append(int(client.reply()[:3]))
                if codes[-1] != 250:
                    break
            assert codes[-1] == 550
            assert set(codes[:-1]) <= {250}
            # The next chunk that comes all the same is read as a chunk, whatever it holds.
            client.send(b"BDAT %d LAST\r\n" % len(INNER) + INNER)
            assert client.codes(1) == [503]
            assert client.say(b"NOOP").startswith(b"250")
    assert accepted(relay) == before


def test_a_true_ending_in_any_segments_ends_data_once(relay: Relay) -> None:
    before = accepted(relay)
    for cut in range(1, len(END)):
        with Raw(relay.port()) as client:
            client.ready().send(b"Subject: x\r\n\r\ntext" + END[:cut], END[cut:] + b"NOOP\r\n")
            assert client.codes(2) == [250, 250]
    relay.wait_until(lambda: accepted(relay) == before + len(END) - 1, "as many messages as were sent")


def test_a_pipeline_cannot_hide_a_second_message_behind_a_refused_one(relay: Relay) -> None:
    before = accepted(relay)
    with Raw(relay.port()) as client:
        client.ready(data=False)
        client.send(b"DATA\r\nSubject: x\r\n\r\n.\n" + INNER + b"RSET\r\nNOOP\r\n")
        assert client.codes(4) == [354, 550, 250, 250]
    assert accepted(relay) == before


def test_a_chunk_that_no_message_waits_for_is_not_read_as_commands(relay: Relay) -> None:
    before = accepted(relay)
    for port in (relay.port(), relay.port("strict"), relay.port("legacy")):
        with Raw(port) as client:
            client.say(b"EHLO x")
            client.send(b"BDAT %d LAST\r\n" % len(INNER) + INNER + b"NOOP\r\n")
            assert client.codes(2) in ([503, 250], [530, 250])
        for size in (b"", b"x", b"-1", b"1 LAST LAST", b"0x10", b"9" * 40, b"\xb2"):
            with Raw(port) as client:
                client.say(b"EHLO x")
                client.send(b"BDAT " + size + b"\r\n" + INNER)
                assert b"\r\n250" not in client.rest()
    assert accepted(relay) == before


# ---- STARTTLS -------------------------------------------------------------------------------------------------


def test_nothing_said_in_the_clear_holds_under_tls(relay: Relay, trusting: ssl.SSLContext) -> None:
    with Raw(relay.port()) as client:
        client.ready(data=False)
        client.starttls(trusting)
        assert client.say(b"DATA").startswith(b"503")
        assert client.say(b"MAIL FROM:<a@client.example>").startswith(b"503")
        assert client.say(b"EHLO x").startswith(b"250")
        assert client.say(b"STARTTLS").startswith(b"503")
        assert client.say(b"MAIL FROM:<a@client.example>").startswith(b"250")


@pytest.mark.parametrize("behind", [b"NOOP\r\n", b"N", b"\r\n", b"\x16\x03\x01\x02\x00", INNER])
def test_what_came_with_starttls_is_never_run(relay: Relay, behind: bytes) -> None:
    with Raw(relay.port()) as client:
        client.say(b"EHLO x")
        client.send(b"STARTTLS\r\n" + behind)
        assert client.reply().startswith(b"421")
        assert client.rest() == b""


def test_what_came_before_the_220_to_starttls_is_never_run(relay: Relay, trusting: ssl.SSLContext) -> None:
    with Raw(relay.port()) as client:
        client.say(b"EHLO x")
        # A segment of its own, sent before the server can have answered.
        client.send(b"STARTTLS\r\n", b"MAIL FROM:<injected@client.example>\r\n")
        said = client.rest()
        assert said.count(b"\r\n") <= 1


@pytest.mark.parametrize(
    "garbage", [b"\0" * 100, b"GET / HTTP/1.0\r\n\r\n", b"EHLO x\r\n", b"\x16\x03\x01\x00\x05xxxxx"]
)
def test_garbage_in_place_of_a_handshake(relay: Relay, garbage: bytes) -> None:
    closed = len(list(relay.find("session-closed")))
    with Raw(relay.port("smtps"), greeting=False) as client:
        client.send(garbage)
        client.finish()
        client.rest()
    with Raw(relay.port()) as client:
        client.say(b"EHLO x", b"STARTTLS")
        client.send(garbage)
        client.finish()
        client.rest()
    relay.wait_for("session-closed", closed + 2)


def test_a_handshake_that_never_comes_is_timed_out(relay: Relay) -> None:
    with Raw(relay.port("hasty-tls"), greeting=False) as client:
        assert client.rest() == b""
    with Raw(relay.port("hasty")) as client:
        client.say(b"EHLO x", b"STARTTLS")
        assert client.rest() == b""


def test_connections_without_a_handshake_are_capped(relay: Relay, trusting: ssl.SSLContext) -> None:
    port = relay.port("smtps")
    clients = [Raw(port, greeting=False) for _ in range(40)]
    closed = len(list(relay.find("session-closed")))
    try:
        wait_for(lambda: sessions(relay) == 20, "20 sessions of 40")
    finally:
        for client in clients:
            client.close()
    wait_for(lambda: sessions(relay) == 0, "no sessions")
    with Raw(port, tls=trusting) as client:
        assert client.say(b"NOOP").startswith(b"250")
    assert closed


# ---- lines and arguments --------------------------------------------------------------------------------------

CONTROLS = [bytes([c]) for c in (*range(32), 127) if c not in (9, 10, 13)] + ["\u2028".encode(), b"\xc2\x85", b"\xff"]


def test_controls_in_arguments(relay: Relay) -> None:
    for control in CONTROLS:
        with Raw(relay.port()) as client:
            for line in (
                b"EHLO a" + control + b"b",
                b"HELO a" + control + b"b",
                b"NOO" + control + b"P",
            ):
                reply = client.say(line)
                assert reply[:1] == b"5" or control == b"\xff", (line, reply)
        with Raw(relay.port()) as client:
            client.say(b"EHLO x")
            for line in (
                b"MAIL FROM:<a" + control + b"b@client.example> SMTPUTF8",
                b'MAIL FROM:<"a' + control + b'b"@client.example> SMTPUTF8',
                b"MAIL FROM:<a@client" + control + b".example> SMTPUTF8",
                b"MAIL FROM:<a@client.example> SMTPUTF8 ENVID=a" + control,
                b"MAIL FROM:<a@client.example> SMTPUTF8 AUTH=a" + control,
            ):
                reply = client.say(line)
                assert reply[:1] == b"5", (line, reply)


@pytest.mark.parametrize("inside", [b"\n", b"\r", b"\0", b"\r\r", b"\n\r"])
def test_half_a_line_ending_is_none(relay: Relay, inside: bytes) -> None:
    with Raw(relay.port()) as client:
        client.say(b"EHLO x")
        reply = client.say(b"MAIL FROM:<a@client.example>" + inside + b"RCPT TO:<b@local.example>")
        assert reply.startswith(b"500 5.5.2"), reply
        # Not one of the two was run.
        assert client.say(b"RCPT TO:<b@local.example>").startswith(b"503")
        assert client.say(b"MAIL FROM:<a@client.example>").startswith(b"250")


def test_encoded_controls_in_parameters(relay: Relay) -> None:
    with Raw(relay.port()) as client:
        client.say(b"EHLO x")
        for parameter in (b"ENVID=+0D+0A", b"AUTH=a+0D+0Ab@x", b"ENVID=+00", b"AUTH=+C2+85@x"):
            reply = client.say(b"MAIL FROM:<a@client.example> " + parameter)
            assert reply.startswith(b"501"), (parameter, reply)
        client.say(b"MAIL FROM:<a@client.example>")
        for orcpt in (b"rfc822;a+0D+0Ab", b"utf-8;a\\x{0D}\\x{0A}b", b"utf-8;a\\x{2028}", b"a\tb;c", b";x", b"rfc822;"):
            reply = client.say(b"RCPT TO:<b@local.example> ORCPT=" + orcpt)
            assert reply.startswith(b"501"), (orcpt, reply)


def test_long_lines_cost_one_reply_and_no_memory(relay: Relay) -> None:
    with Raw(relay.port()) as client:
        client.say(b"EHLO x")
        before = resident(relay)
        for _ in range(64):
            client.send(b"x" * 2**18)
        client.send(b"\r\nNOOP\r\n")
        assert client.codes(2) == [500, 250]
        assert resident(relay) < before + 20_000
        for line in (b"MAIL FROM:<" + b"a" * 5000 + b"@x>", b"NOOP " + b"x" * 5000, b"EHLO " + b"x" * 300):
            assert client.say(line)[:3] in (b"500", b"501")


def test_addresses_at_their_limits(relay: Relay) -> None:
    with Raw(relay.port()) as client:
        client.say(b"EHLO x")
        for path, code in (
            (b"a" * 100 + b"@client.example", b"250"),
            (b"a" * 300 + b"@client.example", b"501"),
            (b"a@" + b".".join([b"x" * 63] * 3) + b".example", b"250"),
            (b"a@" + b"x" * 64 + b".example", b"501"),
            (b"a@" + b".".join([b"x" * 60] * 5), b"501"),
            (b"a..b@client.example", b"501"),
            (b".a@client.example", b"501"),
            (b"a@.client.example", b"501"),
            (b"a@client..example", b"501"),
            (b"a@-client.example", b"501"),
            (b'"a\\"@client.example', b"501"),
            (b"a@b@client.example", b"501"),
            (b"a b@client.example", b"501"),
            (b"a@[127.0.0.1]", b"250"),
            (b"a@[127.0.0.256]", b"501"),
            (b"a@[IPv6:::1%lo]", b"501"),
        ):
            reply = client.say(b"MAIL FROM:<" + path + b">")
            assert reply.startswith(code), (path, reply)
            client.say(b"RSET")
            if code == b"501":
                client.say(b"MAIL FROM:<a@client.example>", b"RCPT TO:<b@local.example>", b"DATA")
                assert client.say(b"x: y\r\n\r\n.").startswith(b"250")  # forgets the errors


def test_ten_thousand_commands_in_one_write(relay: Relay, trusting: ssl.SSLContext) -> None:
    for client in (Raw(relay.port()), Raw(relay.port("smtps"), tls=trusting)):
        with client:
            client.say(b"EHLO x")
            client.send(b"NOOP\r\n" * 10_000 + b"QUIT\r\n")
            said = client.rest()
            assert said.count(b"250 2.0.0 OK\r\n") == 10_000
            assert said.endswith(b"221 2.0.0 Bye\r\n")


def test_a_client_that_does_not_read_fills_no_memory(relay: Relay) -> None:
    clients = [Raw(relay.port(), receive_buffer=4096) for _ in range(20)]
    before = resident(relay)
    try:
        for client in clients:
            client.socket.setblocking(False)
            try:
                for _ in range(200):
                    client.socket.send(b"EHLO\r\n" * 10_000)
            except BlockingIOError:
                pass
        ControlClient(relay.state / "control.sock").status()
        with Raw(relay.port()) as other:  # the rest are served meanwhile
            assert other.say(b"NOOP").startswith(b"250")
        grown = resident(relay) - before
        print("grown KiB", grown)
        assert grown < 40_000
    finally:
        for client in clients:
            client.abort()


def test_bad_commands_end_the_session(relay: Relay, trusting: ssl.SSLContext) -> None:
    for line in (
        b"FOO",
        b"\xff\xfe",
        b"",
        b"MAIL",
        b"AUTH",
        b"UNKNOWN",
        b"RCPT TO:<a@b>",
        b"AUTH PLAIN !",
        b"STARTTLS x",
    ):
        with Raw(relay.port("smtps"), tls=trusting) as client:
            client.say(b"EHLO x")
            client.send((line + b"\r\n") * 1000)
            said = client.rest()
            assert said.splitlines()[-1].startswith(b"421 4.7.0"), (line, said[-200:])
            assert said.count(b"\r\n") <= 11


def test_a_browser_is_sent_away(relay: Relay) -> None:
    for verb in (b"GET", b"POST", b"CONNECT", b"OPTIONS"):
        for name in ("smtp", "strict", "legacy"):
            with Raw(relay.port(name)) as client:
                client.send(verb + b" / HTTP/1.1\r\nHost: x\r\n\r\nEHLO x\r\n" + INNER)
                said = client.rest()
                assert said.count(b"\r\n") == 1, (name, said)
                assert said.startswith(b"421")
