"""DANE with the real relay, a DNS server that says what is secure, and mail exchangers with TLS of all kinds."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.e2e.configurations import HEAD, listener, password_file
from tests.e2e.conftest import StartRelay
from tests.lab.ca import LabCA
from tests.lab.dns import DnsServer
from tests.lab.policy_host import loopback_address
from tests.lab.relay import Relay
from tests.lab.sink import RecordingSink
from tests.lab.tlsa import text
from tests.lab.unbound import Unbound

FROM, TO = "alice@local.example", "bob@dest.example"
MX1, MX2 = "mx1.dest.example", "mx2.dest.example"


class World:
    """dest.example, secure; its exchangers have certificates of a CA that relayd knows nothing of."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self.stack = stack
        self.ca = LabCA(directory / "theirs")
        self.dns = stack.enter_context(DnsServer(ttl=1))
        self.dns.secure.add("dest.example")
        self.certificates: dict[str, x509.Certificate] = {}
        self.port = 0
        self.sinks = 0

    def exchanger(self, name: str, *, tls: bool = True, names: tuple[str, ...] = (), **more: Any) -> RecordingSink:
        """The next exchanger by preference, *name*."""
        context = None
        if tls:
            leaf = self.ca.leaf(*(names or (name,)), filename=name)
            self.certificates[name] = leaf.certificate
            context = leaf.server_context()
            context.load_cert_chain(leaf.chain, leaf.key)
        address = loopback_address(40 + self.sinks)
        self.sinks += 1
        sink = self.stack.enter_context(RecordingSink(address, tls=context, port=self.port, **more))
        self.port = sink.port
        self.dns.records[name, "A"] = [address]
        self.dns.records.setdefault(("dest.example", "MX"), []).append(f"{self.sinks}0 {name}.")
        return sink

    def publish(self, name: str, *records: str) -> None:
        self.dns.records[f"_{self.port}._tcp.{name}", "TLSA"] = list(records)

    def config(self, more: str = "", *, tls: str = "dane", trust: str = "true") -> str:
        return (
            HEAD
            + f'[dns]\nservers = ["{self.dns.address}"]\ntrust_ad = {trust}\n'
            + listener()
            + '[relay]\nlist = ["127.0.0.1"]\n[[domain]]\nname = "local.example"\n'
            + f'[delivery]\ntls = "{tls}"\nport = {self.port}\nretry = ["1s"]\n{more}'
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, tmp_path)


def send(relay: Relay, to: str = TO) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port()) as client:
        client.sendmail(FROM, to, b"Subject: x\r\n\r\nx\r\n")


@pytest.mark.parametrize("which", ["own", "ca"])
def test_a_certificate_that_dns_vouches_for(world: World, start_relay: StartRelay, which: str) -> None:
    sink = world.exchanger(MX1)
    authority = x509.load_pem_x509_certificate(world.ca.path.read_bytes())
    world.publish(MX1, text(3, 1, 1, world.certificates[MX1]) if which == "own" else text(2, 0, 1, authority))
    relay = start_relay(world.config())
    send(relay)
    assert sink.wait()[0].secure
    delivered = relay.wait_for("delivered", recipient=TO)
    assert delivered["tls"].endswith(" dane")
    history = relay.ctl_json("queue", "show", delivered["queue_id"])[0]["history"]
    assert any(entry["tls"].endswith(" dane") for entry in history if entry["what"] == "delivered")
    relay.assert_clean()


@pytest.mark.parametrize("how", ["stranger", "no TLS", "name"])
def test_another_certificate_gets_nothing_and_the_next_exchanger_does(
    world: World, start_relay: StartRelay, how: str
) -> None:
    bad = world.exchanger(MX1, tls=how != "no TLS", names=("other.example",) if how == "name" else ())
    stranger = LabCA(world.ca.directory / "stranger")
    authority = x509.load_pem_x509_certificate(world.ca.path.read_bytes())
    record = text(2, 0, 1, authority) if how == "name" else text(3, 1, 1, stranger.leaf(MX1).certificate)
    world.publish(MX1, record)
    relay = start_relay(world.config())
    send(relay)
    deferred = relay.wait_for("deferred", recipient=TO)
    assert deferred["reply"].startswith("451 4.7.4 " if how == "no TLS" else "451 4.7.5 ")
    good = world.exchanger(MX2)
    good.wait()
    assert bad.mails == []
    assert not any(line.upper().startswith(b"MAIL") for session in bad.sessions for line in session.lines)
    relay.assert_clean()


@pytest.mark.parametrize("why", ["absent", "insecure MX", "insecure addresses", "insecure records"])
def test_what_goes_as_under_may(world: World, start_relay: StartRelay, why: str) -> None:
    """Nothing published, or nothing that can be believed: cleartext is good enough."""
    sink = world.exchanger(MX1, tls=False)
    stranger = LabCA(world.ca.directory / "stranger").leaf(MX1).certificate
    if why != "absent":
        world.publish(MX1, text(3, 1, 1, stranger))
    if why == "insecure MX":
        world.dns.secure = {MX1}
    elif why == "insecure addresses":
        world.dns.secure |= {f"_tcp.{MX1}"}
        world.dns.insecure |= {MX1}
    elif why == "insecure records":
        world.dns.insecure |= {f"_tcp.{MX1}"}
    relay = start_relay(world.config())
    send(relay)
    assert not sink.wait()[0].secure
    relay.assert_clean()


def test_records_of_which_none_is_usable_ask_for_tls(world: World, start_relay: StartRelay) -> None:
    sink = world.exchanger(MX1, tls=False)
    world.publish(MX1, "1 1 1 " + "00" * 32)
    relay = start_relay(world.config())
    send(relay)
    assert relay.wait_for("deferred", recipient=TO)["reply"].startswith("451 4.7.4 ")
    assert sink.mails == []


@pytest.mark.parametrize("what", ["TLSA", "addresses", "MX"])
def test_what_cannot_be_looked_up_defers(world: World, start_relay: StartRelay, what: str) -> None:
    """A bogus answer and a server that is down look alike: SERVFAIL."""
    sink = world.exchanger(MX1, tls=False)
    broken = {
        "TLSA": (f"_{world.port}._tcp.{MX1}", "TLSA"),
        "addresses": (MX1, "AAAA"),
        "MX": ("dest.example", "MX"),
    }[what]
    world.dns.broken.add(broken)
    relay = start_relay(world.config())
    send(relay)
    deferred = relay.wait_for("deferred", recipient=TO)
    assert deferred["reply"].startswith("451 4.4.3 " if what == "MX" else "451 4.7.5 ")
    assert sink.sessions == []
    world.dns.broken.clear()
    sink.wait()
    relay.assert_clean()


def test_a_password_goes_by_dane_and_by_nothing_less(world: World, start_relay: StartRelay, tmp_path: Path) -> None:
    sink = world.exchanger(MX1, accounts={"relay": "p4ss"})
    secret = password_file(tmp_path, "p4ss")
    more = (
        f'smart_host = ["{MX1}"]\nsmart_host_auth = "provider"\n'
        f'[[credential]]\nname = "provider"\nuser = "relay"\npassword_file = "{secret}"\n'
    )
    relay = start_relay(world.config(more))
    send(relay)
    assert relay.wait_for("deferred", recipient=TO)["reply"].startswith("451 4.7.5 ")  # a CA that nobody knows
    assert all(session.auth is None for session in sink.sessions)
    world.publish(MX1, text(3, 1, 1, world.certificates[MX1]))
    assert sink.wait()[0].auth == ("PLAIN", "relay", "p4ss")
    assert relay.wait_for("delivered", recipient=TO)["tls"].endswith(" dane")
    relay.assert_clean()


def test_an_alias(world: World, start_relay: StartRelay) -> None:
    sink = world.exchanger("real.dest.example")
    world.dns.records["dest.example", "MX"] = [f"10 {MX1}."]
    world.dns.records[MX1, "CNAME"] = ["real.dest.example."]
    world.publish("real.dest.example", text(3, 1, 1, world.certificates["real.dest.example"]))
    relay = start_relay(world.config())
    send(relay)
    sink.wait()
    assert relay.wait_for("delivered", recipient=TO)["tls"].endswith(" dane")


def test_without_trust_it_does_not_start(world: World, start_relay: StartRelay) -> None:
    world.exchanger(MX1)
    relay = start_relay(world.config(trust="false"), ready=False)
    assert relay.process is not None
    assert relay.process.wait(30) == 1
    assert any('delivery.tls: "dane" needs [dns] trust_ad = true' in line for line in relay.other_lines)


def test_with_a_resolver_that_validates(start_relay: StartRelay, tmp_path: Path) -> None:
    """A real one, and zones that are signed, unsigned, and forged: each host shows another certificate than the one
    that is published."""
    theirs = LabCA(tmp_path / "theirs")
    leaves = {name: theirs.leaf(f"mx.{name}", filename=name) for name in ("good", "wrong", "plain", "forged")}
    with ExitStack() as stack:
        unbound = Unbound()
        sinks: dict[str, RecordingSink] = {}
        port = 0
        for number, (name, leaf) in enumerate(leaves.items()):
            sink = RecordingSink(loopback_address(60 + number), tls=leaf.server_context(), port=port)
            sinks[name] = stack.enter_context(sink)
            port = sink.port
        for name, sink in sinks.items():
            published = leaves["good"] if name == "wrong" else leaves[name]
            unbound.zone(
                f"{name}.example",
                "@ MX 10 mx",
                f"mx A {sink.host}",
                f"_{port}._tcp.mx TLSA {text(3, 1, 1, published.certificate)}",
                signed=name != "plain",
                # Somebody on the way has another exchanger in mind.
                forged=(sink.host, "127.0.0.1") if name == "forged" else None,
            )
        stack.enter_context(unbound)
        relay = start_relay(
            HEAD
            + f'[dns]\nservers = ["{unbound.address}"]\ntrust_ad = true\n'
            + listener()
            + '[relay]\nlist = ["127.0.0.1"]\n[[domain]]\nname = "local.example"\n'
            + f'[delivery]\ntls = "dane"\nport = {port}\nretry = ["1h"]\n'
        )
        for name in sinks:
            send(relay, f"bob@{name}.example")
        expected = {"good": "delivered", "wrong": "deferred", "plain": "delivered", "forged": "deferred"}
        ends = {name: relay.wait_for(event, recipient=f"bob@{name}.example") for name, event in expected.items()}
        assert ends["good"]["tls"].endswith(" dane")
        assert not ends["plain"]["tls"].endswith((" dane", " verified"))
        assert "matches no TLSA record" in ends["wrong"]["reply"]
        assert ends["forged"]["reply"].startswith("451 4.4.3 ")
        assert [len(sinks[name].mails) for name in sinks] == [1, 0, 1, 0]
        relay.assert_clean()
