"""``relayctl route``: the way of a recipient's mail, and what the next hops offer."""

from __future__ import annotations

import json
import pty
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.configurations import HEAD, listener, password_file
from tests.lab.ca import LabCA
from tests.lab.dns import DnsServer
from tests.lab.net import free_port
from tests.lab.relay import ENVIRONMENT, Relay, program
from tests.lab.sink import RecordingSink

ZONE = {
    ("dest.example", "MX"): ["20 mx2.dest.example.", "10 mx1.dest.example."],
    ("mx1.dest.example", "A"): ["127.0.0.1"],
    ("mx2.dest.example", "A"): ["127.0.0.2"],
    ("null.example", "MX"): ["0 ."],
    ("self.example", "MX"): ["10 relay.example."],
    ("relay.example", "A"): ["127.0.0.1"],
}


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer(ZONE) as running:
        running.broken.add("broken.example")
        yield running


class Way:
    """Answers of relayctl to one configuration; no relay runs."""

    def __init__(self, directory: Path, dns: DnsServer, text: str = "") -> None:
        head = HEAD + f'[dns]\nservers = ["{dns.address}"]\n' + listener()
        local = '[[domain]]\nname = "local.example"\naliases = ["old.example"]\n'
        self.relay = Relay(directory, head + local + text)

    def document(self, address: str, *options: str, code: int = 0) -> Any:
        done = self.relay.ctl("--json", "route", address, *options)
        assert (done.returncode, done.stderr) == (code, ""), done
        return json.loads(done.stdout)

    def text(self, address: str, *options: str, code: int = 0) -> str:
        done = self.relay.ctl("route", address, *options)
        assert (done.returncode, done.stderr) == (code, ""), done
        return "\n".join(line.rstrip() for line in done.stdout.splitlines())


def test_mx(tmp_path: Path, dns: DnsServer) -> None:
    way = Way(tmp_path, dns)
    document = way.document("bob@dest.example")
    assert (document["kind"], document["way"]["kind"], document["way"]["name"]) == ("remote", "mx", "mx dest.example")
    assert [(h["host"], h["address"], h["port"], h["preference"]) for h in document["hops"]] == [
        ("mx1.dest.example", "127.0.0.1", 25, 10),
        ("mx2.dest.example", "127.0.0.2", 25, 20),
    ]
    assert document["tls"] == {"level": "may", "written": "may", "rule": "delivery.tls", "line": 0}
    shown = way.text("bob@dest.example").splitlines()
    assert [" ".join(line.split()) for line in shown] == [
        "RULE LINE",
        "address bob@dest.example",
        "domain remote, not listed",
        "way mx dest.example",
        "TLS may delivery.tls",
        "connections 20 at most delivery.connections_per_hop",
        "",
        "TRIED MX TLS WHY",
        "mx1.dest.example[127.0.0.1]:25 10 may MX of dest.example",
        "mx2.dest.example[127.0.0.2]:25 20 may MX of dest.example",
        "",
        "there is a way",
    ]


@pytest.mark.parametrize("address", ["bob@local.example", "bob@old.example", "bob", "Postmaster"])
def test_local(tmp_path: Path, dns: DnsServer, address: str) -> None:
    document = Way(tmp_path, dns).document(address)
    assert (document["kind"], document["domain"], document["way"]["kind"]) == ("local", "local.example", "drop")
    assert document["way"]["name"] == str(tmp_path / "state" / "drop")
    assert document["rule"] == ("domain[0].aliases[0]" if "old" in address else "domain[0]")
    assert document["line"] > 0
    assert document["hops"] == []


def test_a_domain_with_everything(tmp_path: Path, dns: DnsServer) -> None:
    secret = password_file(tmp_path, "p4ss")
    text = (
        '[[domain]]\nname = "*.partner.example"\nkind = "remote"\nroute = ["[127.0.0.9]:2525", "gone.example:26"]\n'
        'auth = "provider"\nrewrite_sender = "*@corp.example"\nconnections = 3\nrate = "30/1m"\n'
        f'[[credential]]\nname = "provider"\nuser = "relay"\npassword_file = "{secret}"\n'
    )
    way = Way(tmp_path, dns, text)
    document = way.document("bob@x.partner.example")
    assert document["rule"] == "domain[1]"
    assert document["way"]["rule"] == "domain[1].route"
    assert (document["tls"]["level"], document["tls"]["written"]) == ("verify", "may")
    assert document["credential"] == {"name": "provider", "kind": "password", "rule": "domain[1].auth", "line": 28}
    assert (document["sender"]["example"], document["sender"]["becomes"]) == ("user@local.example", "user@corp.example")
    assert document["sender"]["rule"] == "domain[1].rewrite_sender"
    assert (document["connections"], document["rate"]) == (3, "30 in 60 s")
    assert (document["connections_by"]["rule"], document["rate_by"]["rule"]) == (
        "domain[1].connections",
        "domain[1].rate",
    )
    assert [(h["address"], h["port"], h["tls"]) for h in document["hops"]] == [("127.0.0.9", 2525, "verify")]
    assert document["left_out"] == ["gone.example:26"]
    assert document["cut"][0]["why"] == "The domain gone.example does not exist"
    shown = way.text("bob@x.partner.example")
    assert "verify, raised from may for the credential" in shown
    assert "gone.example:26  The domain gone.example does not exist" in shown
    assert "p4ss" not in shown + json.dumps(document)


def test_smart_host_and_masquerade(tmp_path: Path, dns: DnsServer) -> None:
    text = '[delivery]\nsmart_host = ["127.0.0.9:26"]\nmasquerade_domain = "corp.example"\nsmart_host_tls = "require"\n'
    document = Way(tmp_path, dns, text).document("bob@dest.example")
    assert (document["way"]["kind"], document["way"]["rule"]) == ("hops", "delivery.smart_host")
    assert (document["tls"]["level"], document["tls"]["rule"]) == ("require", "delivery.smart_host_tls")
    assert document["sender"]["rule"] == "delivery.masquerade_domain"


def test_direct_first(tmp_path: Path, dns: DnsServer) -> None:
    text = '[delivery]\nsmart_host = ["127.0.0.9:26"]\ndirect_first = true\n'
    document = Way(tmp_path, dns, text).document("bob@dest.example")
    assert [(h["address"], h["way"]) for h in document["hops"]] == [
        ("127.0.0.1", ""),
        ("127.0.0.2", ""),
        ("127.0.0.9", "smart host 127.0.0.9:26"),
    ]


@pytest.mark.parametrize(
    ("address", "exit_code", "code", "enhanced"),
    [
        ("bob@null.example", 1, 556, "5.1.10"),
        ("bob@nowhere.example", 1, 550, "5.1.2"),
        ("bob@self.example", 1, 554, "5.4.6"),
        ("bob@broken.example", 2, 451, "4.4.3"),
        ("bob%elsewhere.example", 1, 550, "5.7.1"),
    ],
)
def test_no_way(tmp_path: Path, dns: DnsServer, address: str, exit_code: int, code: int, enhanced: str) -> None:
    way = Way(tmp_path, dns)
    document = way.document(address, code=exit_code)
    assert (document["ok"], document["code"], document["enhanced"]) == (False, code, enhanced)
    what = "there is no way: " if exit_code == 1 else "nobody can tell for now: "
    assert f"{what}{code} {enhanced} " in way.text(address, code=exit_code)


def test_secure_by_dane(tmp_path: Path, dns: DnsServer) -> None:
    dns.secure.add("dest.example")
    dns.records["_25._tcp.mx1.dest.example", "TLSA"] = ["3 1 1 " + "ab" * 32]
    way = Way(tmp_path, dns, '[delivery]\ntls = "dane"\n')
    way.relay.config.write_text(way.relay.config.read_text().replace("[dns]\n", "[dns]\ntrust_ad = true\n"))
    hops = way.document("bob@dest.example")["hops"]
    assert [(h["host"], h["tls"], h["why"]) for h in hops] == [
        ("mx1.dest.example", "dane", "DANE: 1 TLSA record"),
        ("mx2.dest.example", "may", "DANE: no TLSA records"),
    ]


def test_probe(tmp_path: Path, dns: DnsServer, ca: LabCA) -> None:
    """One that is well, one whose certificate is a stranger's, one that is not there, one that never says a word."""
    stranger = LabCA(tmp_path / "stranger")
    good, bad = (one.leaf("localhost", filename="probe").server_context() for one in (ca, stranger))
    secret = password_file(tmp_path, "p4ss")
    with (
        RecordingSink(tls=good, accounts={"relay": "p4ss"}) as well,
        RecordingSink(tls=bad) as untrusted,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        ports = [well.port, untrusted.port, free_port(), silent.getsockname()[1]]
        hops = ", ".join(f'"localhost:{port}"' for port in ports)
        text = (
            f'[delivery]\nsmart_host = [{hops}]\nsmart_host_auth = "provider"\nca = "{ca.path}"\n'
            f'[[credential]]\nname = "provider"\nuser = "relay"\npassword_file = "{secret}"\n'
        )
        way = Way(tmp_path, dns, text)
        found = way.document("bob@elsewhere.example", "--probe")["hops"]
        probes = {hop["port"]: hop["probe"] for hop in found if hop["address"] == "127.0.0.1"}
        first, *others = (probes[port] for port in ports)
        assert first["ok"]
        assert first["tls"].endswith(" verified")
        assert first["mechanisms"] == ["PLAIN", "LOGIN"]
        assert {"PIPELINING", "CHUNKING", "SMTPUTF8"} <= set(first["extensions"])
        assert (first["greeting"], first["starttls"]) == ("220 sink.example ESMTP", True)
        assert [other["ok"] for other in others] == [False] * 3
        assert "self-signed certificate in chain" in others[0]["reply"]
        assert "Connection refused" in others[1]["reply"]
        assert "No answer within 15 s (greeting)" in others[2]["reply"]
        (session,) = well.wait_sessions()
        assert session.auth is None
        assert session.lines[-1] == b"QUIT"
        assert well.mails == []
    assert "no next hop passes" in way.text("bob@elsewhere.example", "--probe", code=2)


def test_what_is_cut(tmp_path: Path, dns: DnsServer) -> None:
    more = ["5 gone.dest.example.", "30 relay.example.", "40 mx4.dest.example."]
    dns.records["dest.example", "MX"] = [*ZONE["dest.example", "MX"], *more]
    dns.records["mx4.dest.example", "A"] = ["127.0.0.4"]
    way = Way(tmp_path, dns)
    document = way.document("bob@dest.example")
    assert [hop["host"] for hop in document["hops"]] == ["mx1.dest.example", "mx2.dest.example"]
    loop = "this relay itself is an exchanger, of preference 30: mail would loop"
    assert [(one["host"], one["preference"], one["why"]) for one in document["cut"]] == [
        ("gone.dest.example", 5, "The domain gone.dest.example does not exist"),
        ("relay.example", 30, loop),
        ("mx4.dest.example", 40, loop),
    ]
    shown = way.text("bob@dest.example").splitlines()
    assert [" ".join(line.split()) for line in shown][11:15] == [
        "NOT TRIED MX WHY",
        "gone.dest.example:25 5 The domain gone.dest.example does not exist",
        f"relay.example:25 30 {loop}",
        f"mx4.dest.example:25 40 {loop}",
    ]


def test_equals(tmp_path: Path, dns: DnsServer) -> None:
    """Two exchangers of equal preference; the smart hosts behind them have none, and keep their order."""
    dns.records["dest.example", "MX"] = ["10 mx1.dest.example.", "10 mx2.dest.example."]
    text = '[delivery]\nsmart_host = ["127.0.0.8:26", "127.0.0.9:26"]\ndirect_first = true\n'
    hops = Way(tmp_path, dns, text).document("bob@dest.example")["hops"]
    assert [hop["reason"] for hop in hops] == ["MX of dest.example, in random order among equals"] * 2 + [
        "delivery.smart_host (line 25)"
    ] * 2


def test_direct_first_where_dns_fails(tmp_path: Path, dns: DnsServer) -> None:
    secret = password_file(tmp_path, "p4ss")
    text = (
        '[delivery]\nsmart_host = ["127.0.0.9:26"]\ndirect_first = true\nsmart_host_auth = "provider"\n'
        f'[[credential]]\nname = "provider"\nuser = "relay"\npassword_file = "{secret}"\n'
    )
    way = Way(tmp_path, dns, text)
    document = way.document("bob@broken.example")
    assert [hop["address"] for hop in document["hops"]] == ["127.0.0.9"]
    assert (document["cut"][0]["host"], document["cut"][0]["why"]) == (
        "broken.example",
        "DNS did not answer for broken.example",
    )
    assert document["credential"] is None
    assert document["fallback"]["tls"]["level"] == "verify"
    assert document["fallback"]["credential"]["rule"] == "delivery.smart_host_auth"


@pytest.mark.parametrize("how", ["may", "require"])
def test_probe_of_tls_that_breaks(tmp_path: Path, dns: DnsServer, ca: LabCA, how: str) -> None:
    """As delivery does it: in the clear, under may alone."""
    context = ca.leaf("localhost", filename="old").server_context()
    context.set_ciphers("NULL-SHA256:@SECLEVEL=0")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with RecordingSink(tls=context) as sink:
        way = Way(tmp_path, dns, f'[delivery]\nsmart_host = ["127.0.0.1:{sink.port}"]\nsmart_host_tls = "{how}"\n')
        code = 0 if how == "may" else 2
        (hop,) = way.document("bob@elsewhere.example", "--probe", code=code)["hops"]
        found = hop["probe"]
        assert (found["ok"], found["tls"], found["starttls"]) == (how == "may", "", True)
        assert "TLS failed" in found["broken" if how == "may" else "reply"]
        shown = way.text("bob@elsewhere.example", "--probe", code=code)
        assert ("none: 451 4.7.5 TLS failed" in shown) is (how == "may")
        assert ("no next hop passes" in shown) is (how == "require")


def test_probe_for_people(tmp_path: Path, dns: DnsServer, ca: LabCA) -> None:
    """A certificate that does not hold, where nothing depends on it; a recipient that the hop cannot take; a greeting
    with an escape sequence in it."""
    leaf = LabCA(tmp_path / "stranger").leaf("localhost")
    offers = ("PIPELINING", "SIZE 26214400")
    greeting = b"220 sink.example \x1b]0;owned\x07ESMTP"
    with RecordingSink(
        tls=leaf.server_context(), extensions=offers, answer=lambda line: greeting if line == b"" else None
    ) as sink:
        way = Way(tmp_path, dns, f'[delivery]\nsmart_host = ["127.0.0.1:{sink.port}"]\nca = "{ca.path}"\n')
        shown = way.text("josé@elsewhere.example", "--probe")
        assert [" ".join(line.split()) for line in shown.splitlines()][10:] == [
            "PROBE",
            f"127.0.0.1[127.0.0.1]:{sink.port} passes",
            "greeting 220 sink.example ?]0;owned?ESMTP",
            "STARTTLS offered",
            "TLS TLSv1.3 TLS_AES_256_GCM_SHA384, not verified: self-signed certificate in chain",
            "offers PIPELINING",
            "SIZE 25M",
            "recipient 553 5.6.7 The next hop does not take internationalized addresses",
            "",
            "there is a way",
        ]
        (session,) = sink.wait_sessions()
        assert [line.partition(b" ")[0] for line in session.lines] == [b"EHLO", b"STARTTLS", b"EHLO", b"QUIT"]


def test_probe_of_a_hop_that_takes_no_password(tmp_path: Path, dns: DnsServer, ca: LabCA) -> None:
    secret = password_file(tmp_path, "p4ss")
    with RecordingSink(tls=ca.leaf("localhost", "127.0.0.1", filename="mute").server_context()) as sink:
        text = (
            f'[delivery]\nsmart_host = ["127.0.0.1:{sink.port}"]\nsmart_host_auth = "provider"\nca = "{ca.path}"\n'
            f'[[credential]]\nname = "provider"\nuser = "relay"\npassword_file = "{secret}"\n'
        )
        (hop,) = Way(tmp_path, dns, text).document("bob@elsewhere.example", "--probe", code=2)["hops"]
        assert hop["probe"]["reply"] == "451 4.7.0 Neither AUTH PLAIN nor AUTH LOGIN is offered (AUTH)"
        assert hop["probe"]["tls"].endswith(" verified")


def test_nothing_of_an_address_reaches_the_terminal_raw(tmp_path: Path, dns: DnsServer) -> None:
    relay = Way(tmp_path, dns).relay
    command = [program("relayctl"), "--config", relay.config, "route", "bob@x\x07\x9b31m"]
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal, open(theirs, "wb", buffering=0) as end:
        assert subprocess.run(command, stdout=end, stderr=end, env=ENVIRONMENT, timeout=60).returncode == 1
        shown = terminal.read(65536)
    assert b"bob@x??31m" in shown


@pytest.mark.parametrize("address", ["bob@@x", "<>", "", "bob@x\x1b[31m", "a b@x.example"])
def test_what_is_no_address(tmp_path: Path, dns: DnsServer, address: str) -> None:
    done = Way(tmp_path, dns).relay.ctl("route", address)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


def test_international_addresses(tmp_path: Path, dns: DnsServer) -> None:
    dns.records["xn--bcher-kva.example", "MX"] = ["10 mx1.dest.example."]
    assert Way(tmp_path, dns).document("josé@bücher.example")["way"]["name"] == "mx xn--bcher-kva.example"


def test_a_mail_store(tmp_path: Path, dns: DnsServer) -> None:
    text = '[[domain]]\nname = "store.example"\ndeliver = "lmtp+unix:///nowhere/lmtp"\n'
    way = Way(tmp_path, dns, text)
    document = way.document("bob@store.example")
    assert (document["way"]["kind"], document["way"]["rule"]) == ("lmtp", "domain[1].deliver")
    assert document["hops"][0]["socket"] == "/nowhere/lmtp"
    assert "/nowhere/lmtp" in way.text("bob@store.example")
    assert not way.document("bob@store.example", "--probe", code=2)["hops"][0]["probe"]["ok"]


def test_mta_sts_with_what_relayd_keeps(tmp_path: Path, dns: DnsServer, ca: LabCA) -> None:
    """The policy's host is not there; what relayd fetched once is, and stays as it is."""
    folder = tmp_path / "state" / "sts"
    folder.mkdir(parents=True)
    text = (
        f"domain: dest.example\nid: 1\nfetched: {time.time():.0f}\nused: {time.time():.0f}\n"
        "version: STSv1\nmode: enforce\nmax_age: 604800\nmx: mx2.dest.example\n"
    )
    for name, content in {"dest.example": text, ".other.example.part": "half", "bad.example": "nonsense"}.items():
        (folder / name).write_text(content)
    before = {file.name: file.read_text() for file in folder.iterdir()}
    way = Way(tmp_path, dns, f'[delivery]\ntls = "sts"\nca = "{ca.path}"\n')
    document = way.document("bob@dest.example")
    hops = document["hops"]
    assert [(h["host"], h["tls"], h["why"]) for h in hops] == [
        ("mx2.dest.example", "verify", "MTA-STS policy: enforce")
    ]
    (cut,) = document["cut"]
    assert (cut["host"], cut["why"]) == ("mx1.dest.example", "the domain's MTA-STS policy does not name it")
    assert any("bad.example" in note for note in document["notes"])
    assert {file.name: file.read_text() for file in folder.iterdir()} == before


def test_mta_sts_that_cannot_be_fetched(tmp_path: Path, dns: DnsServer, ca: LabCA) -> None:
    dns.records["_mta-sts.dest.example", "TXT"] = ['"v=STSv1; id=1;"']
    way = Way(tmp_path, dns, f'[delivery]\ntls = "sts"\nca = "{ca.path}"\n')
    document = way.document("bob@dest.example")
    assert {hop["why"] for hop in document["hops"]} == {"no MTA-STS policy"}
    (note,) = document["notes"]
    assert note.startswith("the MTA-STS policy of dest.example cannot be fetched: mta-sts.dest.example: ")
    assert f"note: {note}" in way.text("bob@dest.example")


def test_postmaster_of_a_relay_without_local_domains(tmp_path: Path, dns: DnsServer) -> None:
    way = Way(tmp_path, dns)
    text = way.relay.config.read_text()
    way.relay.config.write_text(text.partition("[[domain]]")[0])
    document = way.document("postmaster")
    assert (document["kind"], document["address"], document["given"]) == (
        "local",
        "postmaster@relay.example",
        "postmaster",
    )
    refused = way.document("bob", code=1)
    assert (refused["kind"], refused["code"], refused["way"]) == ("", 553, None)
