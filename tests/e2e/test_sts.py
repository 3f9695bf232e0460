"""MTA-STS, with the real relay, a DNS server, a policy host over HTTPS, and mail exchangers with TLS of all kinds."""

from __future__ import annotations

import smtplib
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.configurations import HEAD, listener
from tests.e2e.conftest import StartRelay
from tests.lab.ca import LabCA
from tests.lab.dns import DnsServer
from tests.lab.policy_host import PolicyHost, loopback_address
from tests.lab.relay import Relay
from tests.lab.sink import RecordingSink
from tests.lab.web import Response

FROM, TO = "alice@local.example", "bob@dest.example"
GOOD, STRANGER = "mx1.dest.example", "mx2.dest.example"


class World:
    """dest.example: mx1 by preference, then mx2; and its policy host."""

    def __init__(self, stack: ExitStack, ca: LabCA, directory: Path) -> None:
        self.stack = stack
        self.ca = ca
        self.strangers = LabCA(directory / "strangers")
        self.dns = stack.enter_context(DnsServer(ttl=1))
        self.host = PolicyHost(self.dns, ca, loopback_address(1))
        self.sinks: dict[str, RecordingSink] = {}
        self.port = 0
        self.dns.records["dest.example", "MX"] = [f"10 {GOOD}.", f"20 {STRANGER}."]

    def exchanger(self, name: str, tls: str = "good", **more: Any) -> RecordingSink:
        """A mail exchanger whose certificate is good, of another name, of a CA that nobody knows, or not there."""
        context = None
        if tls != "none":
            signer = self.strangers if tls == "stranger" else self.ca
            context = signer.leaf("other.example" if tls == "name" else name, filename=name).server_context()
        address = loopback_address(10 + len(self.sinks))
        sink = self.stack.enter_context(RecordingSink(address, tls=context, port=self.port, **more))
        self.port = sink.port
        self.dns.records[name, "A"] = [address]
        self.sinks[name] = sink
        return sink

    def serve(self, *domains: str, ca: LabCA | None = None) -> None:
        self.stack.enter_context(self.host.serving(*(domains or ("dest.example",)), ca=ca))

    def config(self) -> str:
        return (
            HEAD
            + f'[dns]\nservers = ["{self.dns.address}"]\n'
            + listener()
            + '[relay]\nlist = ["127.0.0.1"]\n[[domain]]\nname = "local.example"\n'
            + f'[delivery]\ntls = "sts"\nport = {self.port}\nca = "{self.ca.path}"\nretry = ["1s"]\n'
        )


@pytest.fixture
def world(ca: LabCA, tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, ca, tmp_path)


def send(relay: Relay, to: str = TO) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port()) as client:
        client.sendmail(FROM, to, b"Subject: x\r\n\r\nx\r\n")


def test_enforced(world: World, start_relay: StartRelay) -> None:
    """The exchanger that DNS prefers is not in the policy: it is not even connected to."""
    good, stranger = world.exchanger(GOOD), world.exchanger(STRANGER)
    world.dns.records["dest.example", "MX"] = [f"20 {GOOD}.", f"10 {STRANGER}."]
    world.host.publish("dest.example", "1", "enforce", GOOD)
    world.serve()
    relay = start_relay(world.config())
    send(relay)
    send(relay)
    assert [mail.secure for mail in good.wait(2)] == [True, True]
    delivered = relay.wait_for("delivered", 2)
    assert delivered["tls"].endswith(" verified")
    assert stranger.sessions == []
    assert world.host.requests == ["dest.example"]
    report = relay.wait_for("tls-report")
    assert (report["host"], report["mode"]) == (STRANGER, "enforce")
    relay.assert_clean()


@pytest.mark.parametrize(
    ("tls", "reply"),
    [
        ("none", "451 4.7.4 TLS is required, and not offered"),
        ("name", "451 4.7.5 "),
        ("stranger", "451 4.7.5 "),
    ],
)
def test_a_host_that_fails_gets_nothing_and_the_next_one_does(
    world: World, start_relay: StartRelay, tls: str, reply: str
) -> None:
    bad = world.exchanger(GOOD, tls)
    world.host.publish("dest.example", "1", "enforce", "*.dest.example")
    world.serve()
    world.dns.records["dest.example", "MX"] = [f"10 {GOOD}."]
    world.exchanger("mx3.dest.example")
    relay = start_relay(world.config())
    send(relay)
    assert relay.wait_for("deferred")["reply"].startswith(reply)
    world.dns.records["dest.example", "MX"] = [f"10 {GOOD}.", "20 mx3.dest.example."]
    relay.wait_for("delivered")
    assert bad.mails == []
    assert all(not line.upper().startswith(b"MAIL") for session in bad.sessions for line in session.lines)
    relay.assert_clean()


def test_dns_that_lies_gets_nothing_until_the_policy_changes(world: World, start_relay: StartRelay) -> None:
    stranger = world.exchanger(STRANGER)
    world.dns.records["dest.example", "MX"] = [f"10 {STRANGER}."]
    world.host.publish("dest.example", "1", "enforce", GOOD)
    world.serve()
    relay = start_relay(world.config())
    send(relay)
    deferred = relay.wait_for("deferred")
    assert deferred["reply"] == "451 4.7.5 No mail exchanger of dest.example is named by its MTA-STS policy"
    assert deferred["detail"] == f"DNS names {STRANGER}; the policy names {GOOD}"
    assert stranger.sessions == []
    world.host.publish("dest.example", "2", "enforce", STRANGER)
    (mail,) = stranger.wait()
    assert mail.secure
    assert world.host.requests == ["dest.example", "dest.example"]
    relay.assert_clean()


@pytest.mark.parametrize(
    ("tls", "reason"),
    [
        ("good", None),
        ("none", "it was sent to without TLS"),
        ("name", "its certificate does not hold"),
        ("stranger", "its certificate does not hold"),
    ],
)
def test_testing_reports_what_enforcing_would_hold_back(
    world: World, start_relay: StartRelay, tls: str, reason: str | None
) -> None:
    world.exchanger(GOOD, tls)
    world.host.publish("dest.example", "1", "testing", GOOD)
    world.serve()
    relay = start_relay(world.config())
    send(relay)
    relay.wait_for("delivered")
    if reason is not None:
        assert relay.wait_for("tls-report") == relay.wait_for(
            "tls-report", domain="dest.example", host=GOOD, mode="testing", reason=reason
        )
    else:
        assert not list(relay.find("tls-report"))
    relay.assert_clean()


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("certificate", "certificate verify failed"),
        ("gone", "answers 404"),
        ("redirect", "answers 302"),
        ("html", "text/html"),
        ("long", "more than 65536 octets"),
        ("nonsense", "the policy does not hold: line 1 is no field"),
        ("away", "no connection"),
        ("nowhere", "mta-sts.dest.example"),
    ],
)
def test_a_policy_that_cannot_be_had_is_none(world: World, start_relay: StartRelay, fault: str, why: str) -> None:
    sink = world.exchanger(GOOD, "none")
    world.host.publish("dest.example", "1", "enforce", STRANGER)
    answers = {
        "gone": Response(404),
        "redirect": Response(302, header=(("Location", "https://mta-sts.dest.example/other"),)),
        "html": Response(content=world.host.policies["dest.example"].content, content_type="text/html"),
        "long": Response(content=world.host.policies["dest.example"].content + b"x:y\n" * 20_000),
        "nonsense": Response(content=b"<html>"),
    }
    if fault in answers:
        world.host.policies["dest.example"] = answers[fault]
    if fault == "nowhere":
        del world.dns.records["mta-sts.dest.example", "A"]
    if fault != "away":
        world.serve(ca=world.strangers if fault == "certificate" else None)
    relay = start_relay(world.config())
    send(relay)
    sink.wait()
    event = relay.wait_for("policy-unfetched")
    assert event["domain"] == "dest.example"
    assert why in event["reason"]
    relay.assert_clean()


def test_it_survives_a_crash_and_whoever_holds_dns_and_the_policy_host(world: World, start_relay: StartRelay) -> None:
    good = world.exchanger(GOOD)
    stranger = world.exchanger(STRANGER, "none")
    world.host.publish("dest.example", "1", "enforce", GOOD)
    relay = start_relay(world.config())
    with world.host.serving("dest.example"):
        send(relay)
        good.wait()
        relay.wait_until(lambda: (relay.state / "sts" / "dest.example").exists(), "file of the policy")
    relay.kill()
    world.dns.records["dest.example", "MX"] = [f"10 {STRANGER}."]
    del world.dns.records["_mta-sts.dest.example", "TXT"]
    relay.start()
    send(relay)
    assert "named by its MTA-STS policy" in relay.wait_for("deferred")["reply"]
    world.host.announce("dest.example", "2")  # of a policy that nobody serves
    relay.wait_for("policy-unfetched")
    assert relay.wait_for("policy-unfetched")["kept_until"] > 0
    assert stranger.sessions == []
    world.dns.records["dest.example", "MX"] = [f"10 {GOOD}."]
    good.wait(2)
    relay.assert_clean()


def test_a_policy_host_that_hangs_holds_up_its_own_domain_alone(world: World, start_relay: StartRelay) -> None:
    sink = world.exchanger(GOOD, "none")
    world.dns.records["quick.example", "MX"] = [f"10 {GOOD}."]
    world.host.announce("dest.example", "1")
    with socket.create_server((world.host.address, 443)):  # it accepts, and says nothing
        relay = start_relay(world.config())
        send(relay)
        send(relay, "bob@quick.example")
        (mail,) = sink.wait()
        assert mail.to == ("bob@quick.example",)
        assert not list(relay.find("deferred"))
        relay.stop()  # a fetch under way does not keep it
    relay.assert_clean()
