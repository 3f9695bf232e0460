"""A real Dovecot as the mail store of a local domain: LMTP over TCP and a unix socket."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.configurations import HEAD, listener
from tests.e2e.conftest import StartRelay
from tests.lab.ca import LabCA
from tests.lab.dovecot import Dovecot
from tests.lab.relay import Relay

FROM = "alice@partner.example"
BOB, SMALL, NOBODY = (f"{name}@corp.example" for name in ("bob", "small", "nobody"))
LARGE = b"Subject: large\r\n\r\n" + b"0123456789abcde\r\n" * 60_000


@pytest.fixture(scope="module")
def dovecot() -> Iterator[Dovecot]:
    with Dovecot({"bob": 0, "carol": 0, "small": 4}) as running:
        yield running


def config(deliver: str, *, more: str = "") -> str:
    return (
        HEAD
        + listener()
        + f'[[domain]]\nname = "corp.example"\ndeliver = "{deliver}"\naliases = ["corp.test"]\n'
        + '[[domain]]\nname = "partner.example"\n'
        + f'[delivery]\nretry = ["1s"]\n{more}'
    )


@pytest.fixture(params=["tcp", "unix"])
def relay(request: pytest.FixtureRequest, start_relay: StartRelay, dovecot: Dovecot) -> Relay:
    tcp = request.param == "tcp"
    return start_relay(config(f"lmtp://127.0.0.1:{dovecot.port}" if tcp else f"lmtp+unix://{dovecot.socket}"))


def send(relay: Relay, to: list[str], content: bytes = b"Subject: x\r\n\r\nhello\r\n.\r\n", *options: str) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port()) as client:
        client.sendmail(FROM, to, content, options)


def test_each_recipient_is_answered_by_the_store(relay: Relay, dovecot: Dovecot) -> None:
    before = len(dovecot.mails("bob"))
    send(relay, [BOB, SMALL, NOBODY], LARGE)
    delivered = relay.wait_for("delivered", recipient=BOB)
    assert delivered["reply"].startswith("250 2.0.0 ")
    assert relay.wait_for("bounced", recipient=SMALL)["reply"].startswith("552 5.2.2 ")
    assert relay.wait_for("bounced", recipient=NOBODY)["reply"].startswith("550 5.1.1 ")
    kept = dovecot.mails("bob")
    assert len(kept) == before + 1
    largest = max(kept, key=len)
    assert largest.endswith(LARGE.partition(b"\r\n\r\n")[2].replace(b"\r\n", b"\n"))
    assert largest.startswith(f"Return-Path: <{FROM}>\n".encode())
    assert dovecot.mails("small") == []
    relay.wait_for("delivered", recipient=FROM)  # the report
    relay.assert_clean()


def test_an_alias_and_dots(relay: Relay, dovecot: Dovecot) -> None:
    before = len(dovecot.mails("carol"))
    send(relay, ["carol@corp.test"])
    relay.wait_for("delivered", recipient="carol@corp.test")
    (new,) = [mail for mail in dovecot.mails("carol") if b"hello\n" in mail][before:] or [b""]
    assert new.endswith(b"\n\nhello\n.\n")


def test_a_notice_of_delivery_is_ours_where_the_store_has_no_dsn(relay: Relay) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port()) as client:
        client.ehlo()
        client.mail(FROM)
        client.rcpt(BOB, ["NOTIFY=SUCCESS"])
        client.data(b"Subject: x\r\n\r\n")
    relay.wait_for("delivered", recipient=FROM)
    (report,) = (relay.directory / "state" / "drop").glob("*.eml")
    text = report.read_text()
    assert "Action: delivered\n" in text
    assert f"Final-Recipient: rfc822; {BOB}\n" in text


def test_a_store_that_is_away_gets_it_later(start_relay: StartRelay) -> None:
    for kind in ("tcp", "unix"):
        with Dovecot({"bob": 0}) as dovecot:
            deliver = f"lmtp://127.0.0.1:{dovecot.port}" if kind == "tcp" else f"lmtp+unix://{dovecot.socket}"
            relay = start_relay(config(deliver))
            dovecot.stop()
            send(relay, [BOB])
            deferred = relay.wait_for("deferred", recipient=BOB)
            assert deferred["reply"].startswith("451 4.4.1 ")
            assert str(dovecot.socket if kind == "unix" else dovecot.port) in deferred["detail"]
            dovecot.start()
            relay.wait_for("delivered", recipient=BOB)
            assert len(dovecot.mails("bob")) == 1
            relay.assert_clean()


def test_tls_where_the_store_has_it(start_relay: StartRelay, ca: LabCA) -> None:
    """No name is checked: the store is this site's own, and gets no credential."""
    with Dovecot({"bob": 0}, tls=ca.leaf("store.corp.example")) as dovecot:
        relay = start_relay(config(f"lmtp://127.0.0.1:{dovecot.port}"))
        send(relay, [BOB])
        assert relay.wait_for("delivered", recipient=BOB)["tls"].startswith("TLSv1.3 ")
        relay.assert_clean()


def test_no_socket_there(start_relay: StartRelay, tmp_path: Path) -> None:
    relay = start_relay(config(f"lmtp+unix://{tmp_path}/none"))
    send(relay, [BOB])
    deferred = relay.wait_for("deferred", recipient=BOB)
    assert deferred["reply"].startswith("451 4.4.1 ")
    assert f"{tmp_path}/none" in deferred["detail"]
    relay.assert_clean()
