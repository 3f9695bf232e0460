"""Which next hop mail goes to, and from where: failover, direct_first, both families, source addresses, TLS."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.configurations import HEAD, listener
from tests.e2e.conftest import StartRelay
from tests.lab.ca import LabCA
from tests.lab.dns import DnsServer
from tests.lab.net import free_port
from tests.lab.relay import Relay
from tests.lab.sink import HANG_UP, RecordingSink

FROM, TO = "alice@local.example", "bob@elsewhere.example"


def config(delivery: str, *, dns: DnsServer | None = None, domains: str = "") -> str:
    return (
        HEAD
        + (f'[dns]\nservers = ["{dns.address}"]\n' if dns is not None else "")
        + listener()
        + '[relay]\nlist = ["127.0.0.1"]\n[[domain]]\nname = "local.example"\n'
        + domains
        + f'[delivery]\nretry = ["1s"]\n{delivery}'
    )


def send(relay: Relay, to: str = TO) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port()) as client:
        client.sendmail(FROM, to, b"Subject: x\r\n\r\nx\r\n")


def says(verb: bytes, reply: bytes) -> Callable[[bytes], bytes | None]:
    """Answers *verb* (b"": the greeting) with *reply*."""
    return lambda line: reply if line.partition(b" ")[0].partition(b":")[0] == verb else None


class TestFailover:
    @pytest.mark.parametrize(
        ("verb", "reply"),
        [
            (b"", b"554 5.7.1 not you"),
            (b"", b"421 4.3.2 full"),
            (b"EHLO", b"550 5.7.1 not you"),
            (b"MAIL", b"530 5.7.0 authenticate first"),
            (b"MAIL", HANG_UP),
        ],
        ids=str,
    )
    def test_the_second_smart_host_takes_what_the_first_does_not(
        self, start_relay: StartRelay, sink: RecordingSink, verb: bytes, reply: bytes
    ) -> None:
        with RecordingSink(answer=says(verb, reply)) as first:
            relay = start_relay(config(f'smart_host = ["127.0.0.1:{first.port}", "127.0.0.1:{sink.port}"]\n'))
            send(relay)
            sink.wait()
            delivered = relay.wait_for("delivered", recipient=TO)
            assert delivered["host"].endswith(f":{sink.port}")
            assert list(relay.find("deferred")) == []
            relay.assert_clean()

    def test_the_dead_one_is_not_tried_for_each_message(self, start_relay: StartRelay, sink: RecordingSink) -> None:
        dead = free_port()
        relay = start_relay(config(f'smart_host = ["127.0.0.1:{dead}", "127.0.0.1:{sink.port}"]\n'))
        for _ in range(20):
            send(relay)
        sink.wait(20)
        relay.wait_for("delivered", count=20)
        assert len(list(relay.find("hop-rests"))) <= 5  # a second, doubled each time

    def test_what_is_refused_is_not_offered_to_the_next(self, start_relay: StartRelay, sink: RecordingSink) -> None:
        with RecordingSink(answer=says(b"RCPT", b"550 5.1.1 nobody")) as first:
            relay = start_relay(config(f'smart_host = ["127.0.0.1:{first.port}", "127.0.0.1:{sink.port}"]\n'))
            send(relay)
            assert relay.wait_for("bounced", recipient=TO)["reply"] == "550 5.1.1 nobody"
            assert sink.sessions == []


ZONE = {("elsewhere.example", "MX"): ["10 mx.elsewhere.example."], ("mx.elsewhere.example", "A"): ["127.0.0.3"]}


class TestDirectFirst:
    def start(self, start_relay: StartRelay, dns: DnsServer, port: int, smart: int) -> Relay:
        delivery = f'direct_first = true\nport = {port}\nsmart_host = ["127.0.0.1:{smart}"]\n'
        return start_relay(config(delivery, dns=dns))

    def test_the_exchanger_gets_it(self, start_relay: StartRelay, sink: RecordingSink) -> None:
        with DnsServer(ZONE) as dns, RecordingSink("127.0.0.3") as exchanger:
            relay = self.start(start_relay, dns, exchanger.port, sink.port)
            send(relay)
            exchanger.wait()
            relay.wait_for("delivered", recipient=TO)
            assert sink.sessions == []

    @pytest.mark.parametrize("how", ["away", "unknown", "dns"])
    def test_the_smart_host_gets_what_cannot_go_there(
        self, start_relay: StartRelay, sink: RecordingSink, how: str
    ) -> None:
        with DnsServer({} if how == "unknown" else ZONE) as dns:
            dns.broken |= {"elsewhere.example"} if how == "dns" else set()
            relay = self.start(start_relay, dns, free_port("127.0.0.3"), sink.port)
            send(relay)
            sink.wait()
            relay.wait_for("delivered", recipient=TO)
            relay.assert_clean()

    def test_a_domain_that_takes_no_mail_gets_none(self, start_relay: StartRelay, sink: RecordingSink) -> None:
        with DnsServer({("elsewhere.example", "MX"): ["0 ."]}) as dns:
            relay = self.start(start_relay, dns, free_port(), sink.port)
            send(relay)
            assert relay.wait_for("bounced", recipient=TO)["reply"].startswith("556 5.1.10 ")


class TestAddresses:
    def test_over_ipv6(self, start_relay: StartRelay) -> None:
        with RecordingSink("::1") as sink:
            relay = start_relay(config(f'smart_host = ["[::1]:{sink.port}"]\n'))
            send(relay)
            sink.wait()
            assert relay.wait_for("delivered", recipient=TO)["host"] == f"::1[::1]:{sink.port}"

    def test_ipv4_where_ipv6_is_dead(self, start_relay: StartRelay, sink: RecordingSink) -> None:
        zone = {
            ("elsewhere.example", "MX"): ["10 mx.elsewhere.example."],
            ("mx.elsewhere.example", "A"): ["127.0.0.1"],
            ("mx.elsewhere.example", "AAAA"): ["::1"],
        }
        with DnsServer(zone) as dns:
            relay = start_relay(config(f"port = {sink.port}\n", dns=dns))
            send(relay)
            sink.wait()
            assert relay.wait_for("delivered", recipient=TO)["host"] == f"mx.elsewhere.example[127.0.0.1]:{sink.port}"

    def test_an_address_literal(self, start_relay: StartRelay) -> None:
        with RecordingSink("127.0.0.4") as sink:
            relay = start_relay(config(f"port = {sink.port}\n"))
            send(relay, "bob@[127.0.0.4]")
            assert list(sink.wait()[0].to) == ["bob@[127.0.0.4]"]

    def test_source_address(self, start_relay: StartRelay, sink: RecordingSink) -> None:
        relay = start_relay(config(f'smart_host = ["127.0.0.1:{sink.port}"]\nsource_address = "127.0.0.9"\n'))
        send(relay)
        assert sink.wait()[0].session.peer[0] == "127.0.0.9"


class TestTls:
    def test_implicit(self, start_relay: StartRelay, ca: LabCA) -> None:
        leaf = ca.leaf("localhost", filename="implicit")
        with RecordingSink(tls=leaf.server_context(), implicit_tls=True) as sink:
            hop = f'smart_host = ["localhost:{sink.port}"]\nsmart_host_tls = "implicit"\nca = "{ca.path}"\n'
            relay = start_relay(config(hop))
            send(relay)
            assert sink.wait()[0].secure
            assert relay.wait_for("delivered", recipient=TO)["tls"].endswith(" verified")

    @pytest.mark.parametrize("shown", [True, False])
    def test_a_connector_that_knows_the_relay_by_its_certificate(
        self, start_relay: StartRelay, ca: LabCA, shown: bool
    ) -> None:
        context = ca.leaf("localhost", filename="connector").server_context()
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(ca.path)
        own = ca.leaf("relay.example", filename="own", client=True)
        with RecordingSink(tls=context) as sink:
            hop = f'smart_host = ["localhost:{sink.port}"]\nsmart_host_tls = "verify"\nca = "{ca.path}"\n'
            certificate = f'client_certificate = "{own.chain}"\nclient_key = "{own.key}"\n' if shown else ""
            relay = start_relay(config(hop + certificate))
            send(relay)
            if shown:
                sink.wait()
            else:
                relay.wait_for("deferred", recipient=TO)
                assert sink.mails == []

    def test_cleartext_after_a_failed_handshake_under_may_alone(self, start_relay: StartRelay, ca: LabCA) -> None:
        context = ca.leaf("localhost", filename="old").server_context()
        context.set_ciphers("NULL-SHA256:@SECLEVEL=0")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with RecordingSink(tls=context) as sink:
            domains = "".join(
                f'[[domain]]\nname = "{level}.example"\nkind = "remote"\ntls = "{level}"\n'
                f'route = ["localhost:{sink.port}"]\n'
                for level in ("may", "require")
            )
            relay = start_relay(config("", domains=domains))
            send(relay, "bob@may.example")
            send(relay, "bob@require.example")
            (mail,) = sink.wait()
            assert (mail.to, mail.secure) == (("bob@may.example",), False)
            assert relay.wait_for("deferred", recipient="bob@require.example")["reply"].startswith("451 4.7.5 ")
            assert relay.wait_for("delivered", recipient="bob@may.example").get("tls", "") == ""


def test_the_longest_wildcard(start_relay: StartRelay, tmp_path: Path) -> None:
    with RecordingSink() as exact, RecordingSink() as longer, RecordingSink() as shorter:
        names = {"a.b.partner.example": exact, "*.b.partner.example": longer, "*.partner.example": shorter}
        domains = "".join(
            f'[[domain]]\nname = "{name}"\nkind = "remote"\nroute = ["127.0.0.1:{hop.port}"]\n'
            for name, hop in names.items()
        )
        relay = start_relay(config("", domains=domains))
        for host in ("a.b", "x.b", "y.x.b", "x"):
            send(relay, f"bob@{host}.partner.example")
        relay.wait_for("delivered", count=4)
        assert [sorted(m.to[0].partition("@")[2] for m in hop.mails) for hop in (exact, longer, shorter)] == [
            ["a.b.partner.example"],
            ["x.b.partner.example", "y.x.b.partner.example"],
            ["x.partner.example"],
        ]
