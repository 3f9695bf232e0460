"""A real Postfix as the next hop: what relayd hands it is what it got, and what it refuses comes back."""

from __future__ import annotations

import email
import email.policy
import smtplib
from collections.abc import Iterator

import pytest

from tests.e2e.configurations import relaying
from tests.e2e.conftest import StartRelay
from tests.lab.malformed import as_crlf, mails
from tests.lab.postfix import Postfix
from tests.lab.sink import RecordingSink

FROM, TO = "alice@local.example", "bob@elsewhere.example"


@pytest.fixture(scope="module")
def behind() -> Iterator[RecordingSink]:
    """What stands behind Postfix, and keeps each octet."""
    with RecordingSink() as sink:
        yield sink


@pytest.fixture(scope="module")
def postfix(behind: RecordingSink) -> Iterator[Postfix]:
    settings = {
        "message_size_limit": "1000000",
        "smtpd_recipient_restrictions": "check_recipient_access inline:{{nobody@elsewhere.example=550 5.1.1 nobody}},"
        "permit_mynetworks,reject",
    }
    with Postfix(("127.0.0.1", behind.port), settings) as running:
        yield running


def test_octets_and_parameters(start_relay: StartRelay, postfix: Postfix, behind: RecordingSink) -> None:
    """Odd mails, over few connections: none is cut, joined, or changed but for what Postfix itself must change."""
    relay = start_relay(relaying(postfix.port))
    before = len(behind.mails)
    sent = {}
    with smtplib.SMTP("127.0.0.1", relay.port()) as client:
        for number, mail in enumerate(mails().values()):
            content = b"X-Number: %d\r\n" % number + as_crlf(mail)
            if len(content) > 900_000 or any(len(line) > 900 for line in content.split(b"\r\n")):
                continue  # Postfix breaks long lines, as it may
            client.sendmail(FROM, TO, content, ["BODY=8BITMIME"])
            sent[number] = content
    arrived = {}
    for mail in behind.wait(before + len(sent), timeout=60)[before:]:
        number = mail.content.partition(b"X-Number: ")[2].partition(b"\r\n")[0]
        arrived[int(number)] = mail.content
    assert sorted(arrived) == sorted(sent)
    for number, content in sent.items():
        body = content.partition(b"\r\n\r\n")[2]
        assert arrived[number].endswith(body), number
    relay.wait_for("delivered", count=len(sent))
    relay.assert_clean()


def test_what_it_refuses(start_relay: StartRelay, postfix: Postfix, behind: RecordingSink) -> None:
    relay = start_relay(relaying(postfix.port))
    before = len(behind.mails)
    with smtplib.SMTP("127.0.0.1", relay.port()) as client:
        client.sendmail(FROM, [TO, "nobody@elsewhere.example"], b"Subject: one of two\r\n\r\n")
        client.sendmail(FROM, TO, b"Subject: large\r\n\r\n" + b"x" * 70 + b"\r\n" + b"0123456789\r\n" * 100_000)
    assert behind.wait(before + 1)[before].to == (TO,)
    refused = relay.wait_for("bounced", recipient="nobody@elsewhere.example")
    assert refused["reply"].startswith("550 5.1.1 ")
    assert relay.wait_for("bounced", recipient=TO)["reply"].startswith("552 5.3.4 ")
    relay.wait_for("delivered", count=2, recipient=FROM)
    relay.assert_clean()


def test_who_asked_for_a_notice_gets_one_of_postfix(
    start_relay: StartRelay, postfix: Postfix, behind: RecordingSink
) -> None:
    """DSN parameters are handed on; Postfix, whose next hop has no DSN, reports that it relayed."""
    relay = start_relay(relaying(postfix.port))
    before = len(behind.mails)
    with smtplib.SMTP("127.0.0.1", relay.port()) as client:
        client.ehlo()
        client.sendmail(
            FROM,
            TO,
            b"Subject: asked\r\n\r\n",
            ["RET=HDRS", "ENVID=QQ314159"],
            ["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;bob@elsewhere.example"],
        )
    by_sender = {mail.sender: mail for mail in behind.wait(before + 2)[before:]}
    report = email.message_from_bytes(by_sender[""].content, policy=email.policy.default)
    assert by_sender[""].to == (FROM,)
    text = report.as_string()
    assert "Original-Envelope-Id: QQ314159" in text
    assert "Action: relayed" in text
    assert "Original-Recipient: rfc822;bob@elsewhere.example" in text
    assert not list(relay.find("dsn-queued"))
    relay.assert_clean()
