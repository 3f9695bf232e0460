"""Files that programs for IIS write into the pickup folder: the real .NET SmtpClient, and CDO by its pattern."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.e2e.configurations import picking_up
from tests.e2e.conftest import StartRelay
from tests.lab import clients
from tests.lab.relay import Relay
from tests.lab.sink import Mail, RecordingSink

FROM = "alice@local.example"


@pytest.fixture
def relay(start_relay: StartRelay, sink: RecordingSink, folder: Path) -> Relay:
    return start_relay(picking_up(sink.port, folder))


def parsed(mail: Mail) -> EmailMessage:
    message = email.message_from_bytes(mail.content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def test_dotnet(relay: Relay, sink: RecordingSink, folder: Path) -> None:
    octets = bytes(range(256)) * 2000
    body = ".one\r\n..two\r\n...three\r\n" + "a line long enough to be folded. " * 20 + "\r\n.\r\nthe end"
    ran = clients.dotnet(
        "",
        25,
        f"Ælice <{FROM}>",
        ['"See, Bob" <bob@elsewhere.example>'],
        cc=["carol@elsewhere.example"],
        bcc=["dave@elsewhere.example"],
        body=body,
        attachments={"all.bin": octets},
        pickup=folder,
        count=3,
    ).require()
    assert ran.json()["sent"] == 3
    for mail in sink.wait(3):
        assert mail.sender == FROM
        assert sorted(mail.to) == ["bob@elsewhere.example", "carol@elsewhere.example", "dave@elsewhere.example"]
        message = parsed(mail)
        assert message["X-Sender"] is message["X-Receiver"] is message["Bcc"] is None
        assert b"dave" not in mail.content
        assert message["To"].addresses[0].display_name == "See, Bob"
        text, attachment = message.iter_parts()
        assert isinstance(attachment, EmailMessage)
        assert attachment.get_content() == octets
        assert isinstance(text, EmailMessage)
        payload = text.get_payload(decode=True)
        assert isinstance(payload, bytes)
        assert payload.decode().rstrip("\r\n") == body  # not a dot more, not a dot less
    relay.assert_clean()


def test_a_message_with_a_sender_beside_its_author(relay: Relay, sink: RecordingSink, folder: Path) -> None:
    """What CDO writes: lower-case names, folded, dots doubled, Sender beside From; the message as in KB Q221384."""
    (folder / "cdo.eml").write_bytes(
        b"x-sender: app@local.example\r\nx-receiver: bob@elsewhere.example\r\nx-receiver: carol@elsewhere.example\r\n"
        b"Thread-Topic: =?iso-8859-1?Q?caf=E9?=\r\nFrom: <alice@local.example>\r\nSender: <app@local.example>\r\n"
        b"To: <bob@elsewhere.example>,\r\n\t<carol@elsewhere.example>\r\nBcc: <dave@elsewhere.example>\r\n"
        b"Content-Class: urn:content-classes:message\r\n\r\nTesting.\r\n..\r\n\r\n..hidden\r\nthe end\r\n"
    )
    (mail,) = sink.wait(1)
    assert mail.sender == "app@local.example"
    assert sorted(mail.to) == ["bob@elsewhere.example", "carol@elsewhere.example"]
    assert b"\r\nFrom: <alice@local.example>\r\nSender: <app@local.example>\r\n" in mail.content
    assert b"dave" not in mail.content
    assert mail.content.endswith(b"\r\n\r\nTesting.\r\n.\r\n\r\n.hidden\r\nthe end\r\n")
    relay.assert_clean()
