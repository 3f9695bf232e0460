"""What happens to mail whose next hop is away, refuses, or speaks TLS; with real next hops."""

from __future__ import annotations

import email
import email.policy
import smtplib
from email.message import EmailMessage
from pathlib import Path

import pytest
from flufl.bounce import scan_message

from tests.e2e.configurations import HEAD, listener, password_file, relaying
from tests.e2e.conftest import StartRelay
from tests.lab import clients
from tests.lab.ca import LabCA, Leaf
from tests.lab.dns import DnsServer
from tests.lab.postfix import SmtpSink
from tests.lab.sink import RecordingSink

FROM, TO = "alice@local.example", "bob@elsewhere.example"


def message(content: bytes) -> EmailMessage:
    found = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    return found


def test_a_deferral_is_tried_again(start_relay: StartRelay) -> None:
    answers = iter([b"450 4.2.1 not now"])
    with RecordingSink(answer=lambda line: next(answers, None) if line.upper().startswith(b"RCPT") else None) as sink:
        relay = start_relay(relaying(sink.port))
        assert clients.curl("127.0.0.1", relay.port(), FROM, TO).ok
        deferred = relay.wait_for("deferred")
        assert deferred["reply"].startswith("450 4.2.1")
        relay.wait_for("delivered")
        assert len(sink.wait()) == 1
        relay.assert_clean()


def test_a_refusal_comes_back_as_a_notice_that_mail_software_understands(start_relay: StartRelay) -> None:
    with RecordingSink(answer=lambda line: b"550 5.1.1 nobody" if line.startswith(b"RCPT TO:<bob@") else None) as sink:
        relay = start_relay(relaying(sink.port))
        assert clients.curl("127.0.0.1", relay.port(), FROM, [TO, "carol@elsewhere.example"]).ok
        bounced = relay.wait_for("bounced")
        assert bounced["recipient"] == TO
        relay.wait_for("delivered", recipient="carol@elsewhere.example")
        relay.wait_for("delivered", recipient=FROM)
        (mail,) = sink.wait()
        assert list(mail.to) == ["carol@elsewhere.example"]
    (dropped,) = relay.dropped()
    assert dropped.startswith(b"X-Sender: <>\r\nX-Receiver: alice@local.example\r\n"), dropped[:100]
    notice = message(dropped)
    assert notice.get_content_type() == "multipart/report"
    assert scan_message(notice) == {TO.encode()}
    assert "550 5.1.1 nobody" in notice.as_string()
    relay.assert_clean()


def test_a_bounce_that_cannot_go_is_kept_in_badmail(start_relay: StartRelay) -> None:
    with RecordingSink(answer=lambda line: b"550 5.1.1 nobody" if line.startswith(b"RCPT") else None) as sink:
        relay = start_relay(relaying(sink.port))
        assert clients.curl("127.0.0.1", relay.port(), "", TO).ok
        relay.wait_for("badmail")
    kept = list((relay.state / "badmail").glob("*.eml"))
    assert len(kept) == 1
    assert b".leading dot" in kept[0].read_bytes()
    assert "5.1.1 nobody" in kept[0].with_suffix(".reason").read_text()
    assert relay.ctl_json("status")[0]["queue"]["messages"] == 0


def test_mail_expires_with_a_notice(start_relay: StartRelay) -> None:
    with RecordingSink(answer=lambda line: b"451 4.3.0 never" if line.startswith(b"RCPT") else None) as sink:
        relay = start_relay(relaying(sink.port, delivery='expire = "3s"\ndelay_notice = "1s"\n'))
        assert clients.curl("127.0.0.1", relay.port(), FROM, TO).ok
        relay.wait_for("dsn-queued", kind="delay")
        relay.wait_for("bounced")
        relay.wait_for("delivered", count=2, recipient=FROM)
    actions = sorted(
        str(part["action"])
        for dropped in relay.dropped()
        for report in message(dropped).walk()
        if report.get_content_type() == "message/delivery-status"
        for part in report.get_payload()
        if part["action"]
    )
    assert actions == ["delayed", "failed"]


def test_a_loop_is_cut(start_relay: StartRelay, sink: RecordingSink) -> None:
    relay = start_relay(relaying(sink.port, delivery="max_hops = 5"))
    hop = b"Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\r\n"
    with smtplib.SMTP("127.0.0.1", relay.port()) as client:
        client.sendmail(FROM, TO, hop * 4 + b"Subject: four\r\n\r\n")
        with pytest.raises(smtplib.SMTPDataError) as refused:
            client.sendmail(FROM, TO, hop * 5 + b"Subject: five\r\n\r\n")
    assert refused.value.smtp_code == 554
    assert refused.value.smtp_error.startswith(b"5.4.6")
    assert len(sink.wait()) == 1


def test_a_smart_host_with_tls_and_a_password(start_relay: StartRelay, leaf: Leaf, ca: LabCA, tmp_path: Path) -> None:
    secret = password_file(tmp_path, "p4ss")
    credential = f'[[credential]]\nname = "provider"\nuser = "relay"\npassword_file = "{secret}"\n'
    with RecordingSink(tls=leaf.server_context(), accounts={"relay": "p4ss"}, require_auth=True) as sink:
        more = f'smart_host_auth = "provider"\nca = "{ca.path}"\n'
        config = relaying(sink.port, delivery=more, more=credential).replace("127.0.0.1:", "localhost:")
        relay = start_relay(config)
        assert clients.curl("127.0.0.1", relay.port(), FROM, TO).ok
        (mail,) = sink.wait()
        assert mail.secure
        assert mail.auth is not None
        assert mail.auth[1:] == ("relay", "p4ss")
        assert "verified" in relay.wait_for("delivered")["tls"]
        assert "p4ss" not in str(relay.events)
        relay.assert_clean()


def test_a_password_never_goes_to_a_host_that_cannot_prove_its_name(
    start_relay: StartRelay, leaf: Leaf, tmp_path: Path
) -> None:
    secret = password_file(tmp_path, "p4ss")
    credential = f'[[credential]]\nname = "provider"\nuser = "relay"\npassword_file = "{secret}"\n'
    with RecordingSink(tls=leaf.server_context(), accounts={"relay": "p4ss"}) as sink:
        config = relaying(sink.port, delivery='smart_host_auth = "provider"\n', more=credential)
        relay = start_relay(config.replace("127.0.0.1:", "localhost:"))
        assert clients.curl("127.0.0.1", relay.port(), FROM, TO).ok
        relay.wait_for("deferred", count=2)
        assert all(session.auth is None for session in sink.sessions)
        assert sink.mails == []


def test_mx_delivery(start_relay: StartRelay, sink: RecordingSink) -> None:
    zone = {
        ("elsewhere.example", "MX"): ["10 dead.elsewhere.example.", "20 mx.elsewhere.example."],
        ("dead.elsewhere.example", "A"): ["127.0.0.9"],
        ("mx.elsewhere.example", "A"): ["127.0.0.1"],
        ("null.example", "MX"): ["0 ."],
    }
    with DnsServer(zone) as dns:
        config = (
            HEAD
            + listener()
            + f'[dns]\nservers = ["{dns.address}"]\n[relay]\nlist = ["127.0.0.1"]\n[[domain]]\nname = "local.example"\n'
            + f"[delivery]\nport = {sink.port}\n"
        )
        relay = start_relay(config)
        assert clients.curl("127.0.0.1", relay.port(), FROM, [TO, "x@null.example", "y@nowhere.example"]).ok
        (mail,) = sink.wait()
        assert list(mail.to) == [TO]
        assert "mx.elsewhere.example[127.0.0.1]" in relay.wait_for("delivered", recipient=TO)["host"]
        assert relay.wait_for("bounced", recipient="x@null.example")["reply"].startswith("556 5.1.10")
        assert "5.1.2" in relay.wait_for("bounced", recipient="y@nowhere.example")["reply"]
        relay.assert_clean()


def test_a_next_hop_that_hangs_up_loses_nothing(start_relay: StartRelay) -> None:
    with SmtpSink("-q", "EHLO", dump=False) as broken:
        relay = start_relay(relaying(broken.port))
        clients.smtp_source("127.0.0.1", relay.port(), FROM, TO, sessions=5, messages=30, length=2000).require()
        assert "EHLO" in relay.wait_for("deferred")["detail"]
        port = broken.port
        broken.stop()
    with RecordingSink(port=port) as sink:
        assert len(sink.wait(30, timeout=90)) == 30
        relay.wait_for("delivered", count=30)
        assert relay.ctl_json("status")[0]["queue"]["messages"] == 0
        relay.assert_clean()
