"""Host lists with names while DNS is slow, broken or lies: a sick resolver is no refusal, and a lie opens nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import count

import pytest

from relayd.config import load
from relayd.control.client import ControlClient
from relayd.model import Names
from relayd.policy import Policy, Question, explain
from relayd.wire import parse_address
from tests.lab.dns import DnsServer
from tests.lab.net import wait_for
from tests.lab.raw import Raw
from tests.lab.relay import Relay

CONFIG = """\
[server]
hostname = "relay.example"
state = "state"

[dns]
servers = ["{dns}"]

[log]
format = "json"

[access]
list = ["*.evil.example"]

[relay]
list = ["192.0.2.0/24", "*.trusted.example"]

[[domain]]
name = "local.example"

[[domain]]
name = "open.example"
kind = "remote"
relay = true
route = ["127.0.0.1:{dead}"]

[[listener]]
name = "smtp"
address = "127.0.0.1"
port = 0

[[listener]]
name = "relaying"
address = "127.0.0.1"
port = 0
access = {{ allow = "all-except", list = [] }}

[[listener]]
name = "only"
address = "127.0.0.1"
port = 0
access = {{ allow = "only", list = ["*.trusted.example"] }}
"""

#: A client of each test of its own, since answers are kept.
clients = count(1)


@dataclass
class Lab:
    relay: Relay
    dns: DnsServer

    def client(self, name: str = "", address: str | None = None, more: tuple[str, ...] = ()) -> str:
        """The address of a new client with this PTR *name*, which resolves to *address* (None: to the client)."""
        number = next(clients)
        source = f"127.3.{number // 250}.{number % 250 + 1}"
        if name:
            self.dns.records[pointer(source), "PTR"] = [f"{n}." for n in (name, *more)]
            self.dns.records[name, "A"] = [address or source]
        return source

    def greeting(self, source: str, listener: str = "smtp") -> bytes:
        with Raw(self.relay.port(listener), source=source, greeting=False) as client:
            return client.reply()

    def rcpt(self, source: str, recipient: str = "b@elsewhere.example", listener: str = "relaying") -> bytes:
        with Raw(self.relay.port(listener), source=source) as client:
            client.say(b"EHLO x", b"MAIL FROM:<a@client.example>")
            return client.say(f"RCPT TO:<{recipient}>".encode())


def pointer(source: str) -> str:
    return ip_address(source).reverse_pointer


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with DnsServer(ttl=0) as dns:
        config = CONFIG.format(dns=dns.address, dead=1)
        with Relay(tmp_path_factory.mktemp("names"), config) as relay:
            yield Lab(relay, dns)


@pytest.fixture(autouse=True)
def _clean(lab: Lab) -> Iterator[None]:
    yield
    control = ControlClient(lab.relay.state / "control.sock")
    wait_for(lambda: sum(entry["sessions"] for entry in control.status()["listeners"]) == 0, "the sessions to end")
    lab.relay.assert_clean()


def test_a_confirmed_name_opens_the_list(lab: Lab) -> None:
    assert lab.rcpt(lab.client("a.trusted.example")).startswith(b"250")


def test_a_name_that_lies_opens_nothing(lab: Lab) -> None:
    assert lab.rcpt(lab.client("b.trusted.example", "192.0.2.1")).startswith(b"550 5.7.1")
    source = lab.client("c.other.example", more=("d.trusted.example",))
    assert lab.rcpt(source).startswith(b"550 5.7.1")
    assert lab.greeting(source, "only").startswith(b"554 5.7.1")


def test_a_name_that_lies_still_closes_the_list(lab: Lab) -> None:
    assert lab.greeting(lab.client("a.evil.example", "192.0.2.1")).startswith(b"554 5.7.1")
    assert lab.greeting(lab.client("good.example", more=("b.evil.example",))).startswith(b"554 5.7.1")


def test_no_name_is_no_match(lab: Lab) -> None:
    assert lab.rcpt(lab.client()).startswith(b"550 5.7.1")
    assert lab.greeting(lab.client()).startswith(b"220")


@pytest.mark.parametrize("name", ["a\\000b.trusted.example", "a\\010\\013b.trusted.example", "x.trusted.example\\032y"])
def test_a_name_that_is_none_matches_nothing_and_breaks_no_line(lab: Lab, name: str) -> None:
    assert lab.rcpt(lab.client(name)).startswith(b"550 5.7.1")


@pytest.mark.parametrize("how", ["broken", "silent"])
@pytest.mark.parametrize("where", ["PTR", "A"])
def test_dns_that_fails_is_no_refusal(lab: Lab, how: str, where: str) -> None:
    source = lab.client(f"{how}-{where}.trusted.example".lower())
    getattr(lab.dns, how).add(pointer(source) if where == "PTR" else f"{how}-{where}.trusted.example".lower())
    said = lab.greeting(source)
    if where == "PTR":
        assert said.startswith(b"421 4.4.3")
    assert not said.startswith(b"5")
    assert lab.greeting(source, "only").startswith(b"421 4.4.3")
    assert lab.rcpt(source).startswith(b"451 4.4.3")
    # Where no name could change the verdict, there is one.
    assert lab.rcpt(source, "b@local.example").startswith(b"250")
    assert lab.rcpt(source, "b@open.example").startswith(b"250")


def test_a_name_that_confirms_decides_though_another_fails(lab: Lab) -> None:
    source = lab.client("e.trusted.example", more=("f.silent.example",))
    lab.dns.silent.add("f.silent.example")
    assert lab.rcpt(source).startswith(b"250")


def test_more_clients_than_dns_can_serve_are_put_off(lab: Lab) -> None:
    """Each asks for eight names that nobody answers for: the pool of threads fills up."""
    waiting = []
    for number in range(60):
        names = tuple(f"h{number}-{n}.slow.example" for n in range(8))
        lab.dns.silent.update(names)
        source = lab.client(names[0], more=names[1:])
        waiting.append(Raw(lab.relay.port("only"), source=source, greeting=False))
    for client in waiting[-10:]:
        assert client.reply()[:9] in (b"421 4.3.2", b"421 4.4.3")
    for client in waiting:
        client.close()
    assert lab.relay.ctl("status").returncode == 0


def test_explain_says_what_the_server_did(lab: Lab) -> None:
    policy = Policy(load(lab.relay.config).settings)
    for name, address, names in (
        ("g.trusted.example", None, Names(confirmed=("g.trusted.example",))),
        ("h.trusted.example", "192.0.2.1", Names(claimed=("h.trusted.example",))),
        ("", None, Names()),
    ):
        source = lab.client(name, address)
        for recipient in ("b@local.example", "b@open.example", "b@elsewhere.example", "postmaster@elsewhere.example"):
            reply = lab.rcpt(source, recipient)
            question = Question(
                ip_address(source),
                parse_address("a@client.example"),
                parse_address(recipient),
                names=names,
                listener="relaying",
            )
            verdict = explain(policy, question).verdict
            assert int(reply[:3]) == verdict.reply.code
            if not verdict.accepted:
                assert reply.decode().rstrip() == str(verdict.reply)
                refused = lab.relay.wait_for("refused", client=source, recipient=recipient)
                assert refused["rule"] == str(verdict.rule)
