"""Each real client and peer works here, seen by a sink that records octets: what e2e tests show is relayd's doing."""

from __future__ import annotations

import email
import email.policy
import os
import smtplib
import socket
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from tests.lab import clients, malformed, packages
from tests.lab.ca import LabCA, Leaf
from tests.lab.net import free_port, listener_pids, wait_for
from tests.lab.postfix import Postfix, SmtpSink
from tests.lab.scanners import Finding, nmap_open_relay, run_testssl
from tests.lab.sink import HANG_UP, Mail, RecordingSink, unstuff

CREDENTIALS = ("bob", 'p@ss "w$rd')
FROM = "alice@lab.example"
TO = ["bob@lab.example", "carol@lab.example"]

Sender = Callable[..., Any]

ALL: dict[str, Sender] = {
    "swaks": clients.swaks,
    "curl": clients.curl,
    "msmtp": clients.msmtp,
    "smtplib": clients.python_smtplib,
    "nodemailer": clients.nodemailer,
    "dotnet": clients.dotnet,
}
EXACT = [clients.curl, clients.msmtp, clients.python_smtplib]
"""Clients that are given a whole message and send it as it is."""


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    packages.ensure()


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> LabCA:
    return LabCA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def leaf(ca: LabCA) -> Leaf:
    return ca.leaf()


@pytest.fixture
def sink() -> Iterator[RecordingSink]:
    with RecordingSink() as running:
        yield running


@pytest.fixture
def secure_sink(leaf: Leaf) -> Iterator[RecordingSink]:
    with RecordingSink(tls=leaf.server_context(), accounts=dict([CREDENTIALS]), require_auth=True) as running:
        yield running


def parsed(mail: Mail) -> EmailMessage:
    message = email.message_from_bytes(mail.content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


@pytest.mark.parametrize("name", ALL)
class TestEveryClient:
    def test_sends_to_two_recipients_and_stuffs_dots(self, name: str, sink: RecordingSink) -> None:
        given = {"data": b"Subject: s\r\n\r\nHello.\r\n.leading dot\r\n"} if name == "swaks" else {}
        assert clients.succeeded(ALL[name], "127.0.0.1", sink.port, FROM, TO, **given)
        (mail,) = sink.wait()
        assert (mail.sender, list(mail.to)) == (FROM, TO)
        assert ".leading dot" in parsed(mail).get_content()
        assert mail.wire.endswith(b"\r\n.\r\n")

    def test_authenticates_in_the_clear_where_that_is_offered(self, name: str) -> None:
        with RecordingSink(accounts=dict([CREDENTIALS]), require_auth=True) as sink:
            assert clients.succeeded(ALL[name], "127.0.0.1", sink.port, FROM, TO, auth=CREDENTIALS)
            (mail,) = sink.wait()
        assert mail.auth is not None
        assert mail.auth[1:] == CREDENTIALS

    def test_authenticates_under_starttls_with_a_verified_certificate(
        self, name: str, secure_sink: RecordingSink, ca: LabCA
    ) -> None:
        send = ALL[name]
        assert clients.succeeded(send, "localhost", secure_sink.port, FROM, TO, auth=CREDENTIALS, tls=True, ca=ca.path)
        (mail,) = secure_sink.wait()
        assert mail.secure
        assert mail.auth is not None
        assert mail.auth[1:] == CREDENTIALS

    def test_refuses_a_certificate_of_an_unknown_authority(
        self, name: str, secure_sink: RecordingSink, tmp_path: Path
    ) -> None:
        stranger = LabCA(tmp_path, "stranger")
        where = ("localhost", secure_sink.port, FROM, TO)
        assert not clients.succeeded(ALL[name], *where, auth=CREDENTIALS, tls=True, ca=stranger.path)
        assert secure_sink.mails == []
        assert all(session.auth is None for session in secure_sink.sessions)

    def test_reports_a_refused_recipient(self, name: str, sink: RecordingSink) -> None:
        sink.answer = lambda line: b"550 5.7.1 no" if line.upper().startswith(b"RCPT") else None
        assert not clients.succeeded(ALL[name], "127.0.0.1", sink.port, FROM, TO)
        assert sink.mails == []


@pytest.mark.parametrize("send", EXACT)
def test_octets_arrive_as_they_were_given(send: Sender, sink: RecordingSink) -> None:
    data = b"Subject: \xe4\r\n\r\n.\r\n..\r\n\x80\xff\r\n" + b"x" * 900 + b"\r\n.end\r\n"
    assert clients.succeeded(send, "127.0.0.1", sink.port, FROM, TO, data=data)
    (mail,) = sink.wait()
    assert mail.content == data
    assert b"\r\n..\r\n...\r\n" in mail.wire


@pytest.mark.parametrize("name", ["swaks", "curl", "msmtp", "smtplib", "nodemailer"])
def test_implicit_tls(name: str, leaf: Leaf, ca: LabCA) -> None:
    with RecordingSink(tls=leaf.server_context(), implicit_tls=True) as sink:
        assert clients.succeeded(ALL[name], "localhost", sink.port, FROM, TO, implicit_tls=True, ca=ca.path)
        (mail,) = sink.wait()
    assert mail.secure


def test_dotnet_sends_attachments_and_several_messages(sink: RecordingSink) -> None:
    blob = bytes(range(256)) * 40
    answer = clients.dotnet(
        "127.0.0.1",
        sink.port,
        FROM,
        TO,
        cc=["dora@lab.example"],
        bcc=["eve@lab.example"],
        attachments={"b.bin": blob},
        count=3,
    )
    assert answer.require().json() == {"sent": 3}
    mails = sink.wait(3)
    for mail in mails:
        assert set(mail.to) == {*TO, "dora@lab.example", "eve@lab.example"}
        (attachment,) = parsed(mail).iter_attachments()
        assert attachment.get_content() == blob


def test_dotnet_says_which_recipient_was_refused(sink: RecordingSink) -> None:
    sink.answer = lambda line: b"550 5.1.1 who?" if b"carol" in line else None
    answer = clients.dotnet("127.0.0.1", sink.port, FROM, TO).json()
    assert answer["status"] == 550
    assert answer["failed"] == ["<carol@lab.example>"]


def test_nodemailer_sends_attachments(sink: RecordingSink) -> None:
    message = {"subject": "grüße", "text": "hi", "attachments": [{"filename": "a.txt", "content": "inside"}]}
    assert clients.nodemailer("127.0.0.1", sink.port, FROM, TO, message=message).require().json()["accepted"] == TO
    (mail,) = sink.wait()
    assert parsed(mail)["subject"] == "grüße"
    assert [part.get_filename() for part in parsed(mail).iter_attachments()] == ["a.txt"]


def test_a_client_that_gets_no_answer_is_ended(sink: RecordingSink) -> None:
    with pytest.raises(TimeoutError, match=r"not done in 0\.5 s"):
        clients.run(["sh", "-c", "echo waiting; cat /dev/zero > /dev/null"], timeout=0.5)


class TestSmtpSource:
    @pytest.mark.parametrize("reuse", [False, True])
    def test_messages_over_several_sessions(self, reuse: bool, sink: RecordingSink) -> None:
        clients.smtp_source("127.0.0.1", sink.port, sessions=3, messages=30, length=4096, reuse=reuse).require()
        mails = sink.wait(30)
        assert len(mails) == 30
        assert (len(sink.sessions) == 30) is not reuse
        assert all(len(mail.content) > 4096 for mail in mails)

    def test_refusal_is_an_error(self, sink: RecordingSink) -> None:
        sink.answer = lambda line: b"451 4.3.0 later" if line == b"." else None
        assert not clients.smtp_source("127.0.0.1", sink.port).ok


class TestSmtpSink:
    def test_keeps_and_counts(self) -> None:
        with SmtpSink() as sink:
            assert listener_pids(sink.port) == {sink.pid}
            data = b"Subject: s\r\n\r\n.dot\r\nbody\r\n"
            assert clients.python_smtplib("127.0.0.1", sink.port, FROM, TO, data=data) == {}
            clients.smtp_source("127.0.0.1", sink.port, sessions=2, messages=9).require()
            sink.wait(10)
            (mail,) = [mail for mail in sink.mails() if len(mail.to) == 2]
            assert (mail.helo, mail.sender, list(mail.to)) == ("client.lab.example", FROM, TO)
            assert mail.content == data.replace(b"\r\n", b"\n")
            assert len(sink.mails()) == sink.count() == 10

    def test_starts_again_where_it_was(self) -> None:
        with SmtpSink(dump=False) as sink:
            port = sink.port
            sink.stop(keep=True)
            assert listener_pids(port) == set()
            sink.start(port)
            assert clients.python_smtplib("127.0.0.1", port) == {}
            sink.wait(1)


@pytest.mark.skipif(os.geteuid() != 0, reason="Postfix runs as root alone")
def test_private_postfix_relays_and_ends() -> None:
    with SmtpSink() as sink:
        with Postfix(("127.0.0.1", sink.port)) as postfix:
            clients.smtp_source("127.0.0.1", postfix.port, sessions=5, messages=50, length=4096).require()
            sink.wait(50)
            wait_for(lambda: postfix.queued() == 0, "an empty queue")
            pids = postfix.pids()
            assert "status=sent" in postfix.log_text()
        assert all(b"by postfix.lab.example (Postfix)" in mail.content for mail in sink.mails())
    assert pids
    wait_for(lambda: not any(_runs(pid) for pid in pids), "Postfix to end")
    assert not postfix.directory.exists()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class TestRecordingSink:
    def test_keeps_octets_of_data_as_on_the_wire(self, sink: RecordingSink) -> None:
        body = b"a\n.\nb\r.\rc\0\r\n...\r\n"
        with socket.create_connection(("127.0.0.1", sink.port), timeout=10) as client:
            client.sendall(b"HELO x\r\nMAIL FROM:<> X=Y\r\nRCPT TO:<a@b>\r\nDATA\r\n" + body + b".\r\nQUIT\r\n")
            assert client.makefile("rb").read().count(b"\r\n") == 7
        (mail,) = sink.wait()
        assert mail.mail_from == b"<> X=Y"
        assert mail.wire == body + b".\r\n"
        assert mail.content == b"a\n.\nb\r.\rc\0\r\n..\r\n"

    def test_bdat(self, sink: RecordingSink) -> None:
        with smtplib.SMTP("127.0.0.1", sink.port, timeout=10) as client:
            client.ehlo()
            client.mail("a@b")
            client.rcpt("c@d")
            assert client.sock is not None
            client.sock.sendall(b"BDAT 3\r\n.\r\nBDAT 5 LAST\r\nabc\r\n")
            assert client.getreply()[0] == 250
            assert client.getreply()[0] == 250
        (mail,) = sink.wait()
        assert mail.content == b".\r\nabc\r\n"

    @pytest.mark.parametrize("data", [b"", b".\r\n", b"..\r\n", b"a\r\n.b\r\n\r\n"])
    def test_unstuff_undoes_stuffing(self, data: bytes) -> None:
        stuffed = (b"\r\n" + data).replace(b"\r\n.", b"\r\n..")[2:]
        assert unstuff(stuffed + b".\r\n") == data

    def test_hangs_up_when_told_to(self, sink: RecordingSink) -> None:
        sink.answer = lambda line: HANG_UP if line == b"DATA" or line == b"data" else None
        with pytest.raises(smtplib.SMTPServerDisconnected):
            clients.python_smtplib("127.0.0.1", sink.port)
        (session,) = sink.wait_sessions()
        assert session.lines[-1] == b"data"

    def test_says_how_many_came_when_too_few_did(self, sink: RecordingSink) -> None:
        with pytest.raises(TimeoutError, match="0 of 1 messages"):
            sink.wait(1, timeout=0.05)


def test_nmap_finds_an_open_relay_and_none_where_there_is_none(sink: RecordingSink) -> None:
    assert len(nmap_open_relay("127.0.0.1", sink.port).open) == 16
    sink.answer = lambda line: b"550 5.7.1 Unable to relay" if line.startswith(b"RCPT") else None
    closed = nmap_open_relay("127.0.0.1", sink.port)
    assert closed.open == ()
    assert "all tests failed" in closed.verdict


def test_nmap_without_a_verdict_is_no_pass(sink: RecordingSink) -> None:
    sink.answer = lambda line: HANG_UP if line.startswith(b"EHLO") else None
    with pytest.raises(AssertionError):
        nmap_open_relay("127.0.0.1", sink.port)


def test_testssl_finds_what_is_wrong_with_a_certificate_and_nothing_else(ca: LabCA) -> None:
    expired = ca.leaf("relay.example", filename="expired", days=-1).server_context()
    with RecordingSink(tls=expired) as sink:
        findings = run_testssl("127.0.0.1", sink.port, name="relay.example", ca=ca.path, checks=["-S"])
    bad = {finding.name for finding in findings if finding.at_least("MEDIUM")}
    # It says "expired" under three names.
    assert bad == {"cert_expirationStatus", "cert_notAfter", "cert_chain_of_trust"}


def test_findings_are_graded() -> None:
    medium = Finding("BEAST", "MEDIUM", "", "")
    assert medium.at_least("LOW")
    assert medium.at_least("MEDIUM")
    assert not medium.at_least("HIGH")


def test_malformed_mails_are_there_and_travel(sink: RecordingSink) -> None:
    mails = malformed.mails()
    assert len(mails) >= 40
    for number, mail in enumerate(mails.values(), 1):
        octets = malformed.as_crlf(mail)
        assert clients.python_smtplib("127.0.0.1", sink.port, data=octets) == {}
        assert sink.wait(number)[-1].content == octets


class TestPackages:
    def test_nothing_to_do_when_all_is_there(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert packages.main() == 0
        assert capfd.readouterr() == ("", "")

    def test_without_root_it_lists_what_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(packages.Missing) as missing:
            packages.ensure((*packages.DEBIAN, "no-such-package-a", "no-such-package-b"))
        said = str(missing.value)
        assert "no-such-package-a no-such-package-b" in said.splitlines()[-1]
        assert "apt-get install" in said
        assert "swaks" not in said


def test_free_port_is_free() -> None:
    assert listener_pids(free_port()) == set()
