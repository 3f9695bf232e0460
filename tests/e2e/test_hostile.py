"""What a hostile client can do to a running relayd: nothing that breaks a promise, or is not answered for."""

from __future__ import annotations

import itertools
import json
import os
import socket
import ssl
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from email import message_from_bytes
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from time import monotonic

import pytest

from relayd.auth import AccountsFile
from relayd.config import load
from relayd.control.client import ControlClient
from relayd.model import NULL_PATH
from relayd.policy import Policy, Question, explain
from relayd.wire import parse_address
from tests.e2e.conftest import StartRelay
from tests.lab.net import wait_for
from tests.lab.raw import Raw
from tests.lab.relay import Relay
from tests.unit.wire.octets import VECTORS

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

INNER = (
    b"MAIL FROM:<evil@client.example>\r\nRCPT TO:<victim@local.example>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\n"
)
END = b"\r\n.\r\n"


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    directory = tmp_path_factory.mktemp("hostile")
    accounts = AccountsFile(directory / "accounts.json")
    for name in ("alice", "bob", "carol"):
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
    """How many are open; without those of the database, which has as many readers as there was need for."""
    assert relay.process is not None
    return sum("/queue/0.db" not in file for file in open_files(relay.process.pid))


def open_files(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            yield os.readlink(f"{folder}/{name}")


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


@pytest.mark.parametrize("ending", VECTORS, ids=repr)
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


@pytest.mark.parametrize("ending", VECTORS, ids=repr)
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


# ---- AUTH -----------------------------------------------------------------------------------------------------


def plain(name: bytes, password: bytes = b"secret", authorise: bytes = b"") -> bytes:
    return b64encode(authorise + b"\0" + name + b"\0" + password)


def tls_client(relay: Relay, trusting: ssl.SSLContext, source: str = "127.0.0.1") -> Raw:
    client = Raw(relay.port("smtps"), tls=trusting, source=source)
    client.say(b"EHLO x")
    return client


def test_authentication_may_be_pipelined_and_given_up_at_each_step(relay: Relay, trusting: ssl.SSLContext) -> None:
    with tls_client(relay, trusting) as client:
        for steps in (
            [b"AUTH PLAIN", b"*"],
            [b"AUTH LOGIN", b"*"],
            [b"AUTH LOGIN", b64encode(b"alice"), b"*"],
            [b"AUTH LOGIN " + b64encode(b"alice"), b"*"],
        ):
            client.send(b"\r\n".join([*steps, b"NOOP", b""]))
            codes = client.codes(len(steps) + 1)
            assert codes == [334] * (len(steps) - 1) + [501, 250], steps
        client.send(
            b"AUTH LOGIN\r\n" + b64encode(b"alice") + b"\r\n" + b64encode(b"secret") + b"\r\nAUTH PLAIN\r\nNOOP\r\n"
        )
        assert client.codes(5) == [334, 334, 235, 503, 250]
        assert client.say(b"MAIL FROM:<a@client.example>").startswith(b"250")
        assert client.say(b"RCPT TO:<b@elsewhere.example>").startswith(b"250")


@pytest.mark.parametrize("steps", range(3))
@pytest.mark.parametrize("how", ["close", "abort", "finish"])
def test_a_client_that_leaves_within_authentication(
    relay: Relay, trusting: ssl.SSLContext, steps: int, how: str
) -> None:
    for _ in range(3):
        client = tls_client(relay, trusting)
        client.send(*[b"AUTH LOGIN\r\n", b64encode(b"alice") + b"\r\n", b64encode(b"wrong") + b"\r\n"][: steps + 1])
        getattr(client, how)()
        client.close()


def test_bad_tokens(relay: Relay, trusting: ssl.SSLContext) -> None:
    for token in (
        b"!",
        b"A",
        b"AA=A",
        b"AAAA====",
        b"=AAA",
        b"A" * 100_000,
        b64encode(b"alice"),
        b64encode(b"\0alice\0secret\0"),
        b64encode(b"\0\0\0"),
        b64encode(b"\0alice\0"),
        b64encode(b"\0\0secret"),
        b64encode(b"\0\xff\xfe\0secret"),
        plain(b"alice", authorise=b"bob"),
        plain(b"alice\r\n"),
        plain(b"a" * 30_000, b"b" * 30_000),
    ):
        with tls_client(relay, trusting, "127.0.0.9") as client:
            for command in (b"AUTH PLAIN " + token, b"AUTH PLAIN\r\n" + token):
                client.send(command + b"\r\n")
                reply = client.reply()
                if reply.startswith(b"334"):
                    reply = client.reply()
                assert reply[:3] in (b"500", b"501", b"535", b"454"), (token[:50], reply)
                if token == b"A" * 100_000:
                    break
            client.send(b"QUIT\r\n")
            assert client.rest().endswith(b"221 2.0.0 Bye\r\n")


def test_names_that_would_break_a_log_line(relay: Relay, trusting: ssl.SSLContext) -> None:
    names = ["a\r\nb", 'a"b', "a\x1b[31m", "a\u2028b", "a\u202eb", "\ud7ff", "a=b c=d", "x" * 4000]
    for name in names:
        with tls_client(relay, trusting, "127.0.0.10") as client:
            assert client.say(b"AUTH PLAIN " + plain(name.encode(), b"wrong")).startswith((b"535", b"454"))
    relay.wait_for("authentication-failed", len(names), client="127.0.0.10")


def test_a_guesser_is_locked_out_however_he_spells_the_name(relay: Relay, trusting: ssl.SSLContext) -> None:
    """What SASLprep takes for the same name (RFC 4013) is the same name to the count of failures."""
    spellings = ["bob", "BOB", "b\u00adob", "bo\u00adb", "\uff42ob", "b\u2060ob", "\u00adb\u00ado\u00adb"]
    codes = []
    for name in spellings:
        with tls_client(relay, trusting, "127.0.0.2") as client:
            codes.append(client.say(b"AUTH PLAIN " + plain(name.encode(), b"wrong"))[:3])
    assert codes == [b"535"] * 4 + [b"454"] * 3
    with tls_client(relay, trusting, "127.0.0.2") as client:
        assert client.say(b"AUTH PLAIN " + plain(b"bob")).startswith(b"454")


def test_guesses_at_the_same_time_are_counted_like_others(relay: Relay, trusting: ssl.SSLContext) -> None:
    clients = [tls_client(relay, trusting, "127.0.0.3") for _ in range(15)]
    for client in clients:
        client.send(b"AUTH PLAIN " + plain(b"alice", b"wrong") + b"\r\n")
    codes = sorted(client.codes(1)[0] for client in clients)
    for client in clients:
        client.close()
    assert codes == [454] * 11 + [535] * 4


def test_three_failures_end_the_session(relay: Relay, trusting: ssl.SSLContext) -> None:
    with tls_client(relay, trusting, "127.0.0.4") as client:
        client.send(b"".join(b"AUTH PLAIN " + plain(b"nobody%d" % n) + b"\r\n" for n in range(10)))
        assert client.codes(4) == [535, 535, 535, 421]
        assert client.rest() == b""


def test_no_password_in_the_clear(relay: Relay) -> None:
    with Raw(relay.port()) as client:
        assert b"AUTH" not in client.say(b"EHLO x")
        assert client.say(b"AUTH PLAIN " + plain(b"alice")).startswith(b"538 5.7.11")


# ---- what ends up in headers, files and logs ------------------------------------------------------------------


def test_nothing_a_client_says_makes_a_header_line(relay: Relay, trusting: ssl.SSLContext) -> None:
    before = {file.name for file in (relay.state / "drop").glob("*.eml")}
    hello = b'x) by evil (\\"; for <z@z>\xe2\x80\xae\xc3\xa9 [1.2.3.4]'
    sender = b'<"a b;\\"\\\\<>@, X-Receiver: z"@client.example>'
    with Raw(relay.port()) as client:
        assert client.say(b"EHLO " + hello).startswith(b"250")
        assert client.say(b"MAIL FROM:" + sender + b" ENVID=+3Cx+3E").startswith(b"250")
        assert client.say(b'RCPT TO:<"q \\" X-Sender: y"@local.example>').startswith(b"250")
        client.send(b"DATA\r\nSubject: x\r\n\r\ntext\r\n.\r\n")
        assert client.codes(2) == [354, 250]
    wait_for(lambda: len(list((relay.state / "drop").glob("*.eml"))) > len(before), "the message in the drop folder")
    (file,) = [file for file in (relay.state / "drop").glob("*.eml") if file.name not in before]
    text = file.read_bytes()
    head = text.partition(b"\r\n\r\n")[0].replace(b"\r\n\t", b" ").split(b"\r\n")
    assert [line.partition(b":")[0] for line in head] == [b"X-Sender", b"X-Receiver", b"Received", b"Subject"]
    assert head[0] == b"X-Sender: " + sender[1:-1]
    received = head[2]
    assert received.isascii()
    assert received.count(b"(") == received.count(b")") == 1
    parsed = message_from_bytes(text)
    assert parsed.keys() == ["X-Sender", "X-Receiver", "Received", "Subject"]


def test_a_message_without_a_header_does_not_run_into_the_trace(relay: Relay) -> None:
    with Raw(relay.port()) as client:
        for body in (b"\r\n", b"", b"\r\ntext", b"no header at all\r\n", b" folded\r\n", b":\r\n", b"\t\r\n\r\nx"):
            client.send(
                b"EHLO x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@local.example>\r\nDATA\r\n"
                + body
                + (b"" if body.endswith(b"\r\n") or not body else b"\r\n")
                + b".\r\n"
            )
            assert client.codes(5) == [250, 250, 250, 354, 250]


# ---- limits ---------------------------------------------------------------------------------------------------


def test_sizes_at_their_edges(relay: Relay) -> None:
    port = relay.port("small")
    with Raw(port) as client:
        assert b"SIZE 1024\r\n" in client.say(b"EHLO x")
        assert client.say(b"MAIL FROM:<a@x> SIZE=1025").startswith(b"552 5.3.4")
        assert client.say(b"MAIL FROM:<a@x> SIZE=99999999999999999999").startswith(b"552 5.3.4")
        assert client.say(b"MAIL FROM:<a@x> SIZE=999999999999999999999").startswith(b"501")
        assert client.say(b"MAIL FROM:<a@x> SIZE=-1").startswith(b"501")
        assert client.say(b"MAIL FROM:<a@x> SIZE=1024").startswith(b"250")
        client.say(b"RCPT TO:<b@local.example>", b"DATA")
        assert client.say(b"x" * 1022 + b"\r\n.").startswith(b"250")
    with Raw(port) as client:
        client.ready()
        assert client.say(b"x" * 1023 + b"\r\n.").startswith(b"552 5.3.4")
        # Dots that are stuffed do not count.
        client.ready()
        assert client.say(b"..\r\n" * 300 + b"." + b"x" * 120 + b"\r\n.").startswith(b"250")
    with Raw(port) as client:
        client.ready(data=False)
        client.send(b"BDAT 1024\r\n" + b"x" * 1022 + b"\r\n" + b"BDAT 0 LAST\r\n")
        assert client.codes(2) == [250, 250]
        client.ready(data=False)
        client.send(b"BDAT 1023 LAST\r\n" + b"x" * 1023)  # and the CRLF that it lacks
        assert client.codes(1) == [552]
        client.ready(data=False)
        client.send(b"BDAT 1000\r\n" + b"x" * 1000, b"BDAT 1000\r\n" + b"x" * 1000, b"BDAT 9 LAST\r\n123456789")
        assert client.codes(3) == [250, 552, 503]


def test_a_session_has_its_size(relay: Relay) -> None:
    with Raw(relay.port("small")) as client:
        for _ in range(3):
            client.ready()
            assert client.say(b"x" * 1022 + b"\r\n.").startswith(b"250")
        assert client.say(b"MAIL FROM:<a@x>").startswith(b"421 4.7.0")
        assert client.rest() == b""


def test_recipients_over_the_limit_are_put_off_one_by_one(relay: Relay) -> None:
    with Raw(relay.port("small")) as client:
        client.ready(data=False)
        client.send(b"".join(b"RCPT TO:<r%d@local.example>\r\n" % n for n in range(39)))
        assert client.codes(39) == [250] * 19 + [452] * 20
        assert client.say(b"DATA").startswith(b"354")
        assert client.say(b"x: y\r\n\r\n.").startswith(b"250")


def test_connections_over_the_cap(relay: Relay) -> None:
    clients = [Raw(relay.port("small")) for _ in range(3)]
    try:
        with Raw(relay.port("small"), greeting=False) as fourth:
            assert fourth.rest().startswith(b"421 4.7.0")
        with Raw(relay.port("small"), source="127.0.0.77") as other:
            assert other.say(b"NOOP").startswith(b"250")
    finally:
        for client in clients:
            client.abort()
    wait_for(lambda: sessions(relay) == 0, "the sessions to end")
    Raw(relay.port("small")).close()


# ---- clients that leave or dawdle -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 3_000_000], ids=["small", "large"])
@pytest.mark.parametrize("how", ["close", "abort", "finish"])
@pytest.mark.parametrize("by", ["DATA", "BDAT"])
def test_a_client_that_leaves_within_a_message(relay: Relay, size: int, how: str, by: str) -> None:
    before = accepted(relay)
    for _ in range(5):
        client = Raw(relay.port())
        client.ready(data=by == "DATA")
        if by == "BDAT":
            client.send(b"BDAT %d LAST\r\n" % (size + 1000))
        client.send(b"Subject: x\r\n\r\n" + (b"y" * 98 + b"\r\n") * (size // 100))
        getattr(client, how)()
        if how == "finish":
            client.rest()
        client.close()
    wait_for(lambda: sessions(relay) == 0, "the sessions to end")
    assert accepted(relay) == before
    assert ControlClient(relay.state / "control.sock").queue({"state": "queued"}) == []


@pytest.mark.parametrize("size", [1000, 3_000_000], ids=["small", "large"])
@pytest.mark.parametrize("how", ["close", "abort"])
def test_a_client_that_leaves_while_its_message_is_made_safe(relay: Relay, size: int, how: str) -> None:
    """Then it is taken or it is not; nothing is left over."""
    for _ in range(10):
        client = Raw(relay.port())
        client.ready()
        client.send(b"Subject: x\r\n\r\n" + (b"y" * 98 + b"\r\n") * (size // 100) + b".\r\n")
        getattr(client, how)()
        client.close()
    wait_for(lambda: sessions(relay) == 0, "the sessions to end")


def test_a_client_that_says_no_more_still_hears_the_answers(relay: Relay, trusting: ssl.SSLContext) -> None:
    before = accepted(relay)
    with Raw(relay.port()) as client:
        client.send(
            b"EHLO x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@local.example>\r\n"
            b"BDAT 6 LAST\r\nx: y\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@local.example>\r\nDATA\r\nx: y\r\n.\r\nQUIT\r\n"
        )
        client.finish()
        said = client.rest()
    assert said.endswith(b"221 2.0.0 Bye\r\n"), said
    relay.wait_until(lambda: accepted(relay) == before + 2, "both messages")


def test_slow_clients_are_timed_out(relay: Relay, trusting: ssl.SSLContext) -> None:
    port = relay.port("hasty")
    silent = Raw(port)
    command = Raw(port).send(b"EHL")
    message = Raw(port).ready().send(b"Subject: x\r\n")
    chunk = Raw(port).ready(data=False).send(b"BDAT 100 LAST\r\nxyz")
    between = Raw(port).ready(data=False).send(b"BDAT 3\r\nxyz")
    assert between.codes(1) == [250]
    login = Raw(relay.port("hasty-tls"), tls=trusting).send(b"EHLO x\r\nAUTH LOGIN\r\n")
    assert login.codes(2) == [250, 334]
    for client in (silent, command, message, chunk, between, login):
        with client:
            assert client.rest().startswith(b"421 4.4.2")


def test_an_octet_at_a_time_buys_no_time(relay: Relay) -> None:
    client = Raw(relay.port("hasty")).ready()
    client.socket.settimeout(0.3)
    end = monotonic() + 15
    said = b""
    with client:
        while not said and monotonic() < end:
            try:
                said = client.send(b"x").socket.recv(1000)
            except TimeoutError:
                continue
            except OSError:
                break
    assert said.startswith(b"421 4.4.2")


# ---- order ----------------------------------------------------------------------------------------------------


def test_a_transaction_begins_anew_wherever_it_is_broken_off(relay: Relay) -> None:
    for again in (b"RSET", b"EHLO y", b"HELO y"):
        with Raw(relay.port()) as client:
            for behind in (0, 1, 2):
                client.ready(data=False)
                if behind == 0:
                    client.say(again)
                    client.say(b"MAIL FROM:<c@x>")
                if behind == 2:
                    client.send(b"BDAT 3\r\nx: ")
                    assert client.codes(1) == [250]
                assert client.say(again).startswith(b"250")
                client.send(b"BDAT 3 LAST\r\ny\r\n")
                assert client.codes(1) == [503]
                assert client.say(b"DATA").startswith(b"503")
            client.ready()
            assert client.say(b"x: y\r\n\r\n.").startswith(b"250")


def test_a_stop_waits_for_messages_and_for_nobody_else(start_relay: StartRelay, trusting: ssl.SSLContext) -> None:
    stopping = start_relay(CONFIG)
    port = stopping.port()
    message = Raw(port).ready().send(b"Subject: x\r\n")
    chunk = Raw(port).ready(data=False).send(b"BDAT 7 LAST\r\nx: y")
    idle = Raw(port)
    between = Raw(port).ready(data=False)
    secure = Raw(stopping.port("smtps"), tls=trusting)
    silent = Raw(stopping.port("smtps"), greeting=False)
    half = Raw(port)
    half.say(b"EHLO x", b"STARTTLS")
    assert stopping.process is not None
    stopping.process.terminate()
    stopping.wait_for("stopping")
    stopping.process.terminate()  # by somebody who does not like to wait
    for client in (idle, between, secure):
        assert client.rest() == b"421 4.3.2 Shutting down\r\n"
        client.close()
    for client in (silent, half):
        assert client.rest() == b""
    # All that while, these two could go on.
    message.send(b".\r\nMAIL FROM:<a@x>\r\n")
    chunk.send(b"z\r\nMAIL FROM:<a@x>\r\n")
    for client in (message, chunk):
        assert client.codes(3) == [250, 421, 0]
    stopping.stop()
    stopping.assert_clean()


# ---- memory ---------------------------------------------------------------------------------------------------


def test_large_messages_are_not_held_in_memory(relay: Relay) -> None:
    block = (b"y" * 98 + b"\r\n") * 2621  # 256 KiB
    before = resident(relay)
    most = before
    clients = [Raw(relay.port()).ready() for _ in range(4)]
    for client in clients:
        client.send(b"Subject: large\r\n\r\n")
    for number in range(95):
        for client in clients:
            client.send(block)
        if number % 10 == 0:
            most = max(most, resident(relay))
    for client in clients:
        client.send(b".\r\n")
        assert client.codes(1) == [250]
        client.close()
    most = max(most, resident(relay))
    print("grown KiB", most - before)
    assert most - before < 30_000


# ---- legacy clients -------------------------------------------------------------------------------------------


def test_old_devices_are_let_off_and_nothing_else_is(relay: Relay) -> None:
    before = {file.name for file in (relay.state / "drop").glob("*.eml")}
    with Raw(relay.port("legacy")) as client:
        assert b"250-AUTH=PLAIN LOGIN\r\n" in client.say(b"EHLO x") or b"AUTH=PLAIN LOGIN" in client.say(b"EHLO x")
    with Raw(relay.port("legacy")) as client:
        client.send(b"MAIL FROM:a@client.example\nRCPT TO: b@local.example\nDATA\n")
        assert client.codes(3) == [250, 250, 354]
        client.send(b"Subject: x\n\na\n.\nb\r\n.\nc\n.\r\nd\n" + INNER)
        assert client.codes(1) == [250]
        client.ready().send(b"x\r.\r\n.\r\n")
        assert client.codes(1) == [550]
        client.ready().send(b"x\0\n.\r\n\r\n.\r\n")
        assert client.codes(1) == [550]
    wait_for(lambda: len(list((relay.state / "drop").glob("*.eml"))) > len(before), "the message in the drop folder")
    (file,) = [file for file in (relay.state / "drop").glob("*.eml") if file.name not in before]
    text = file.read_bytes().partition(b"Subject: x\r\n")[2]
    assert text == b"\r\na\r\n.\r\nb\r\n.\r\nc\r\n.\r\nd\r\n" + INNER.removesuffix(b".\r\n")


# ---- the control socket ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"limit": Infinity}',
        b'{"limit": 5}',
        b'{"older": NaN}',
        b'{"older": -1}',
        b'{"state": ["queued"]}',
        b'{"ids": []}',
        b'{"sender": ""}',
        b'{"what": 1}',
        '{"sender": "*"}'.encode("utf-16"),
        b'{"sender": "' + b"x" * 2**20 + b'"}',
    ],
    ids=lambda request_: repr(request_[:24]),
)
def test_a_bad_request_does_nothing_and_is_named(relay: Relay, request_: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(10)
        control.connect(str(relay.state / "control.sock"))
        control.sendall(b"POST /api/v1/queue/drop HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(request_) + request_)
        head, _, body = b"".join(iter(lambda: control.recv(65536), b"")).partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert json.loads(body)["error"]


# ---- explain --------------------------------------------------------------------------------------------------


def rule_logged(relay: Relay, event: str, where: str, rule: str) -> bool:
    return any(rule in entry.get(where, "") for entry in relay.find(event))


def named(relay: Relay, rule: str) -> bool:
    """Whether the log has refused something by *rule*."""
    return any(rule in str(event.get("rule")) for event in relay.find("refused")) or any(
        rule in str(event["reason"]) for event in relay.find("authentication-failed")
    )


def test_explain_says_what_the_server_does(relay: Relay, trusting: ssl.SSLContext) -> None:
    policy = Policy(load(relay.config).settings)
    tried = 0
    for listener, source, tls, user in itertools.product(
        ("smtp", "smtps", "strict", "legacy", "small"), ("127.0.0.1", "127.0.0.99"), (False, True), ("", "carol")
    ):
        if tls != (listener == "smtps") and listener in ("smtps", "legacy", "small"):
            continue
        for sender, recipient, size in (
            ("a@client.example", "b@local.example", 0),
            ("a@client.example", "b@elsewhere.example", 0),
            ("a@client.example", "b@local.example", 2000),
            ("a", "b", 0),
            ("", "postmaster", 0),
            ("", "b%elsewhere.example@local.example", 0),
            ("", "b%elsewhere.example@other.example", 0),
            ("", '"b@elsewhere.example"@other.example', 0),
        ):
            with Raw(relay.port(listener), source=source, tls=trusting if listener == "smtps" else None) as client:
                client.say(b"EHLO x")
                if tls and listener != "smtps":
                    client.starttls(trusting).say(b"EHLO x")
                reply = client.say(b"AUTH PLAIN " + plain(b"carol")) if user else b""
                if not reply or reply.startswith(b"235"):
                    reply = client.say(f"MAIL FROM:<{sender}>{f' SIZE={size}' if size else ''}".encode())
                    if reply.startswith(b"250"):
                        reply = client.say(f"RCPT TO:<{recipient}>".encode())
            question = Question(
                ip_address(source),
                parse_address(sender) if sender else NULL_PATH,
                parse_address(recipient),
                listener=listener,
                tls=tls,
                user=user,
                size=size,
            )
            verdict = explain(policy, question).verdict
            assert int(reply[:3]) == verdict.reply.code, (question, reply, verdict)
            if not verdict.accepted:
                assert reply.decode().rstrip() == str(verdict.reply)
                relay.wait_until(partial(named, relay, str(verdict.rule)), f"{verdict} in the log")
            tried += 1
    assert tried > 100


def test_what_a_client_says_gives_no_orders_to_a_terminal(relay: Relay) -> None:
    with Raw(relay.port()) as client:
        client.say(b"EHLO a\xe2\x80\xaeb\xc2\xadc [bold] :smile:", b'MAIL FROM:<"[red]:x:"@client.example>')
        assert client.say(b"RCPT TO:<b@local.example>", b"RCPT TO:<b@local.example>").startswith(b"250")
        client.say(b"DATA")
        queue_id = client.say(b"x: y\r\n\r\n.").split()[-1].decode()
    relay.wait_for("delivered", queue_id=queue_id, recipient="b@local.example")
    shown = relay.ctl("queue", "show", queue_id).stdout
    assert shown.replace("\n", "").isprintable()
    assert "helo a?b?c [bold] :smile:" in shown
    assert '"[red]:x:"@client.example' in shown
    # The recipient that was said twice is one.
    assert len(relay.ctl_json("queue", "show", queue_id)[0]["recipients"]) == 1
