"""Real clients, each through the real binary to a sink behind it, that nobody here wrote."""

from __future__ import annotations

import email
import email.policy
import re
import smtplib
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.configurations import relaying
from tests.e2e.conftest import StartRelay
from tests.lab import clients
from tests.lab.ca import LabCA, Leaf
from tests.lab.malformed import as_crlf, mails
from tests.lab.net import wait_for
from tests.lab.postfix import SmtpSink
from tests.lab.relay import Relay
from tests.lab.sink import Mail, RecordingSink

Send = Callable[..., Any]

CLIENTS: dict[str, Send] = {
    "swaks": clients.swaks,
    "curl": clients.curl,
    "msmtp": clients.msmtp,
    "smtplib": clients.python_smtplib,
    "nodemailer": clients.nodemailer,
    "dotnet": clients.dotnet,
}
#: Those that do TLS from the first octet; .NET's SmtpClient cannot.
IMPLICIT = sorted(set(CLIENTS) - {"dotnet"})

TRACE = rb"Received: from \S+ \(\[127\.0\.0\.1\]\) by relay\.example with ESMTP id [0-9A-Z]{13};? .*\r\n"

FROM = "alice@local.example"
TO = ["bob@elsewhere.example", "carol@other.example"]
USER = "Printer"


def password(name: str) -> str:
    """smtplib cannot send one beyond ASCII."""
    return "password with blanks" if name == "smtplib" else "pässword with blanks"


def sent(name: str, *where: Any, **what: Any) -> bool:
    """Whether the client says that all was accepted."""
    return clients.succeeded(CLIENTS[name], *where, **what)


def parsed(mail: Mail) -> EmailMessage:
    message = email.message_from_bytes(mail.content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def received(content: bytes) -> tuple[bytes, bytes]:
    """The Received field that relayd put on top, unfolded, and what it was put on."""
    match = re.match(rb"Received: [^\r]*\r\n(?:[ \t][^\r]*\r\n)*", content)
    assert match, content[:500]
    return re.sub(rb"\r\n[ \t]+", b" ", match[0]), content[match.end() :]


def with_account(relay: Relay, name: str) -> Relay:
    """The relay, with an account whose password the client called *name* can send."""
    done = relay.ctl("account", "add", USER, "--password-file", "-", input=password(name) + "\n")
    assert done.returncode == 0, done
    return relay


@pytest.mark.parametrize("name", CLIENTS)
def test_relays_by_address(name: str, sink: RecordingSink, start_relay: StartRelay) -> None:
    relay = start_relay(relaying(sink.port))
    assert sent(name, "127.0.0.1", relay.port(), FROM, TO)
    (mail,) = sink.wait()
    assert (mail.sender, sorted(mail.to)) == (FROM, TO)
    assert "leading dot" in parsed(mail).get_content() or name == "swaks"
    relay.wait_for("delivered", count=2)
    relay.assert_clean()


@pytest.mark.parametrize("name", CLIENTS)
def test_relays_by_authentication_under_starttls(
    name: str, sink: RecordingSink, start_relay: StartRelay, leaf: Leaf, ca: LabCA
) -> None:
    relay = with_account(start_relay(relaying(sink.port, leaf=leaf, allow="[]")), name)
    where = ("localhost", relay.port(), FROM, TO)
    assert not sent(name, *where)
    assert sent(name, *where, auth=(USER, password(name)), tls=True, ca=ca.path)
    (mail,) = sink.wait()
    assert (mail.sender, sorted(mail.to)) == (FROM, TO)
    field, _ = received(mail.content)
    assert b" with ESMTPSA " in field
    assert relay.wait_for("authenticated")["user"] == USER
    relay.wait_for("delivered", count=2)
    relay.assert_clean()


@pytest.mark.parametrize("name", IMPLICIT)
def test_relays_by_authentication_under_implicit_tls(
    name: str, sink: RecordingSink, start_relay: StartRelay, leaf: Leaf, ca: LabCA
) -> None:
    relay = with_account(start_relay(relaying(sink.port, leaf=leaf, allow="[]")), name)
    assert sent(
        name, "localhost", relay.port("smtps"), FROM, TO, auth=(USER, password(name)), implicit_tls=True, ca=ca.path
    )
    assert len(sink.wait()) == 1
    relay.assert_clean()


@pytest.mark.parametrize("name", CLIENTS)
def test_a_wrong_password_relays_nothing(
    name: str, sink: RecordingSink, start_relay: StartRelay, leaf: Leaf, ca: LabCA
) -> None:
    relay = with_account(start_relay(relaying(sink.port, leaf=leaf, allow="[]")), name)
    assert not sent(name, "localhost", relay.port(), FROM, TO, auth=(USER, "hunter2 is not it"), tls=True, ca=ca.path)
    failed = relay.wait_for("authentication-failed")
    assert (failed["user"], failed["reply"][:9]) == (USER, "535 5.7.8")
    assert "hunter2" not in str(relay.events)
    assert sink.mails == []
    relay.assert_clean()


@pytest.mark.parametrize("name", CLIENTS)
def test_no_client_is_offered_a_password_in_the_clear(name: str, sink: RecordingSink, start_relay: StartRelay) -> None:
    relay = with_account(start_relay(relaying(sink.port, allow="[]")), name)
    assert not sent(name, "127.0.0.1", relay.port(), FROM, TO, auth=(USER, password(name)))
    assert not list(relay.find("authenticated"))
    assert sink.mails == []


@pytest.mark.parametrize("name", CLIENTS)
def test_local_mail_is_dropped_with_its_envelope_on_top(
    name: str, sink: RecordingSink, start_relay: StartRelay
) -> None:
    relay = start_relay(relaying(sink.port, allow="[]"))
    assert sent(name, "127.0.0.1", relay.port(), FROM, ["dave@local.example"])
    relay.wait_for("delivered", recipient="dave@local.example")
    (dropped,) = relay.dropped()
    assert dropped.startswith(b"X-Sender: alice@local.example\r\nX-Receiver: dave@local.example\r\nReceived: ")
    assert sink.mails == []


def test_dotnet_sends_attachments_and_many_messages(sink: RecordingSink, start_relay: StartRelay) -> None:
    relay = start_relay(relaying(sink.port))
    octets = bytes(range(256)) * 2000
    ran = clients.dotnet(
        "127.0.0.1", relay.port(), FROM, TO[:1], cc=TO[1:], attachments={"all.bin": octets}, count=5
    ).require()
    assert ran.json()["sent"] == 5
    for mail in sink.wait(5):
        (attachment,) = parsed(mail).iter_attachments()
        assert attachment.get_content() == octets
    relay.assert_clean()


def test_octets_arrive_as_they_were_sent(sink: RecordingSink, start_relay: StartRelay) -> None:
    """Odd and malformed mails: what arrives is what was sent, and Received."""
    relay = start_relay(relaying(sink.port))
    given = {name: as_crlf(mail) for name, mail in mails().items()}
    given["dots"] = b"Subject: dots\r\n\r\n.\r\n..\r\n...\r\n.a\r\n. \r\n\r\n.\r\n"
    given["eight bits"] = b"Subject: \xe4\r\n\r\n\x80\xff\x1b\x7f\t\x01\r\n"
    given["no header"] = b"\r\nbody alone\r\n"
    given["no empty line"] = b"just a line\r\n"
    given["long lines"] = b"X-Long: " + b"a" * 70_000 + b"\r\n\r\n" + (b"." * 100_000 + b"\r\n") * 3
    given["big"] = b"Subject: big\r\n\r\n" + (b"." * 71 + b"\r\n") * 20_000
    assert len(given) > 45
    with smtplib.SMTP("127.0.0.1", relay.port()) as client:
        for name, mail in given.items():
            sender = f"{sorted(given).index(name)}@local.example"
            assert client.sendmail(sender, TO, mail, ["BODY=8BITMIME"]) == {}, name
    arrived = {mail.sender: mail for mail in sink.wait(len(given))}
    assert len(arrived) == len(given)
    for index, name in enumerate(sorted(given)):
        field, content = received(arrived[f"{index}@local.example"].content)
        assert content == given[name], name
        assert re.fullmatch(TRACE, field), field
    relay.assert_clean()


def test_smtp_source_through_relayd_into_smtp_sink(start_relay: StartRelay, tmp_path: Path) -> None:
    with SmtpSink(dump=False) as sink:
        relay = start_relay(relaying(sink.port))
        for sessions, messages, length, reuse in (
            (1, 50, 4096, True),
            (20, 400, 4096, False),
            (4, 8, 3_000_000, False),
        ):
            clients.smtp_source(
                "127.0.0.1", relay.port(), FROM, TO[0], sessions=sessions, messages=messages, length=length, reuse=reuse
            ).require()
        relay.wait_for("delivered", count=458)
        wait_for(lambda: sink.count() == 458, "all messages in the sink", timeout=30)
        relay.wait_for("accepted", count=458)
        assert len({event["queue_id"] for event in relay.find("accepted")}) == 458
        status = relay.ctl_json("status")[0]
        assert status["queue"]["messages"] == 0
        assert status["totals"]["recipients_delivered"] == 458
        relay.assert_clean()
