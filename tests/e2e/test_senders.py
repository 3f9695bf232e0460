"""DKIM signatures and rewritten senders, at a next hop that keeps each octet."""

from __future__ import annotations

import smtplib
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from relayd.delivery import Key
from relayd.settings import Dkim
from tests.e2e.configurations import relaying
from tests.e2e.conftest import StartRelay
from tests.lab.malformed import as_crlf, mails
from tests.lab.postfix import Postfix
from tests.lab.sink import RecordingSink

FROM, TO = "alice@local.example", "bob@elsewhere.example"


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("dkim") / "s1.pem"
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    file.chmod(0o600)
    return file


def signing(key_file: Path) -> str:
    return f'[[dkim]]\ndomain = "local.example"\nselector = "s1"\nkey_file = "{key_file}"\n'


def holds(content: bytes, key_file: Path) -> bool:
    record = Key.load(Dkim("local.example", "s1", key_file)).record
    return bool(dkim.verify(content, dnsfunc=lambda name, timeout=5: record))


def readable(content: bytes) -> bool:
    """Whether dkimpy takes it for a message."""
    try:
        dkim.DKIM(content)
    except dkim.MessageFormatError:
        return False
    return True


def test_what_leaves_is_signed(start_relay: StartRelay, sink: RecordingSink, key_file: Path) -> None:
    relay = start_relay(relaying(sink.port, more=signing(key_file)))
    large = b"0123456789 \r\n" * 50_000
    given = [b"From: Alice <alice@local.example>\r\n" + as_crlf(mail) for mail in mails().values()]
    given = [mail for mail in given if mail.count(b"\nFrom: ") == 0 and readable(mail)][:20]
    given += [b"From: alice@local.example\r\nSubject: large\r\n\r\n" + large]
    with smtplib.SMTP("127.0.0.1", relay.port()) as client:
        for mail in given:
            client.sendmail(FROM, TO, mail, ["BODY=8BITMIME"])
        client.sendmail(FROM, TO, b"From: mallory@elsewhere.example\r\n\r\n")
    arrived = sink.wait(len(given) + 1)
    signed = [mail.content for mail in arrived if mail.content.startswith(b"DKIM-Signature:")]
    assert len(signed) == len(given)
    for content in signed:
        assert holds(content, key_file)
    relay.assert_clean()


def test_through_postfix_it_still_holds(start_relay: StartRelay, sink: RecordingSink, key_file: Path) -> None:
    with Postfix(("127.0.0.1", sink.port)) as postfix:
        relay = start_relay(relaying(postfix.port, more=signing(key_file)))
        with smtplib.SMTP("127.0.0.1", relay.port()) as client:
            client.sendmail(FROM, TO, b"From: alice@local.example\r\nSubject: x\r\n\r\n.a\r\n\r\n")
        (mail,) = sink.wait(1)
        assert holds(mail.content, key_file)


def test_a_signature_of_somebody_else_survives(start_relay: StartRelay, sink: RecordingSink, key_file: Path) -> None:
    relay = start_relay(relaying(sink.port, delivery="complete_headers = true\n"))
    message = b"From: alice@local.example\r\nTo: bob@elsewhere.example\r\nSubject:  x  y\r\n\r\nHello \r\n.\r\n\r\n"
    for canonical in ((b"simple", b"simple"), (b"relaxed", b"relaxed")):
        field = dkim.sign(message, b"s1", b"local.example", key_file.read_bytes(), canonicalize=canonical)
        with smtplib.SMTP("127.0.0.1", relay.port()) as client:
            client.sendmail(FROM, TO, field + message)
    for mail in sink.wait(2):
        assert holds(mail.content, key_file)


def test_notices_are_signed(start_relay: StartRelay, key_file: Path) -> None:
    with RecordingSink(answer=lambda line: b"550 5.1.1 no" if line.startswith(b"RCPT TO:<bob@") else None) as sink:
        relay = start_relay(relaying(sink.port, more=signing(key_file)))
        with smtplib.SMTP("127.0.0.1", relay.port()) as client:
            client.sendmail("carol@elsewhere.example", TO, b"Subject: x\r\n\r\n")
        (notice,) = sink.wait(1)
        assert notice.sender == ""
        assert holds(notice.content, key_file)


def test_strangers_are_not_vouched_for(start_relay: StartRelay, sink: RecordingSink, key_file: Path) -> None:
    """What anybody may send to a domain with `relay` is passed on unsigned."""
    anybody = '[[domain]]\nname = "elsewhere.example"\nkind = "remote"\nrelay = true\n'
    relay = start_relay(relaying(sink.port, allow="[]", more=signing(key_file) + anybody))
    with smtplib.SMTP("127.0.0.1", relay.port()) as client:
        client.sendmail(FROM, TO, b"From: alice@local.example\r\n\r\n")
    (mail,) = sink.wait(1)
    assert b"DKIM-Signature" not in mail.content


def test_a_device_gets_another_sender(start_relay: StartRelay, sink: RecordingSink) -> None:
    rewrite = '[[rewrite]]\nmatch = ["127.0.0.2"]\nfrom = "scanner@local.example"\nheader = true\n'
    relay = start_relay(relaying(sink.port, allow='["127.0.0.0/8"]', more=rewrite))
    mail = b"From: Scan <x@printer.local>\r\nSubject: x\r\n\r\nbody\r\n"
    for source in ("127.0.0.2", "127.0.0.3"):
        with smtplib.SMTP("127.0.0.1", relay.port(), source_address=(source, 0)) as client:
            client.sendmail("x@printer.local", TO, mail)
    by_sender = {mail.sender: mail.content.partition(b" +0000\r\n")[2] for mail in sink.wait(2)}
    assert by_sender == {
        "x@printer.local": mail,
        "scanner@local.example": mail.replace(
            b"From: Scan <x@printer.local>\r\n",
            b"From: Scan <scanner@local.example>\r\nReply-To: Scan <x@printer.local>\r\n",
        ),
    }
    assert relay.wait_for("accepted", sender="scanner@local.example")["rewritten"] == "x@printer.local"
    relay.assert_clean()


def test_a_route_has_its_own_sender(start_relay: StartRelay, sink: RecordingSink) -> None:
    more = (
        '[[domain]]\nname = "elsewhere.example"\nkind = "remote"\n'
        f'route = ["127.0.0.1:{sink.port}"]\nrewrite_sender = "*@accepted.example"\n'
    )
    relay = start_relay(relaying(1, more=more))
    with smtplib.SMTP("127.0.0.1", relay.port()) as client:
        client.sendmail(FROM, TO, b"Subject: x\r\n\r\n")
    (mail,) = sink.wait(1)
    assert mail.sender == "alice@accepted.example"
