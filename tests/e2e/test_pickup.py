"""The pickup folder of a real relay: what programs and people write there."""

from __future__ import annotations

import email
import email.policy
import os
import stat
from pathlib import Path

import pytest

from tests.e2e.configurations import picking_up
from tests.e2e.conftest import StartRelay
from tests.lab.relay import Relay
from tests.lab.sink import Mail, RecordingSink

HAND = b"""\
From: Alice <alice@local.example>
To: bob@elsewhere.example
Bcc: carol@elsewhere.example
Subject: by hand

Hi
"""


@pytest.fixture
def relay(start_relay: StartRelay, sink: RecordingSink, folder: Path) -> Relay:
    return start_relay(picking_up(sink.port, folder))


def parsed(mail: Mail) -> email.message.EmailMessage:
    message = email.message_from_bytes(mail.content, policy=email.policy.default)
    assert isinstance(message, email.message.EmailMessage)
    return message


def empty(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


def test_by_hand(relay: Relay, sink: RecordingSink, folder: Path) -> None:
    (folder / "mail.txt").write_bytes(HAND)
    (mail,) = sink.wait()
    assert (mail.sender, sorted(mail.to)) == (
        "alice@local.example",
        ["bob@elsewhere.example", "carol@elsewhere.example"],
    )
    message = parsed(mail)
    assert message["Bcc"] is None
    assert b"carol" not in mail.content
    assert message["Date"]
    assert message["Message-ID"].endswith("@relay.example>")
    assert message["Received"].startswith("by relay.example (pickup)")
    assert mail.content.endswith(b"\r\nSubject: by hand\r\n\r\nHi\r\n")
    accepted = relay.wait_for("accepted", session="pickup")
    assert accepted["rule"].startswith("pickup.directory (line ")
    relay.wait_until(lambda: empty(folder), "an empty folder")
    relay.wait_for("delivered", count=2)
    relay.assert_clean()


def test_dots(relay: Relay, sink: RecordingSink, folder: Path) -> None:
    """Stuffed files lose a dot a line, others keep theirs; the mark at the end goes."""
    head = b"From: a@local.example\r\nTo: b@elsewhere.example\r\nSubject: %b\r\n\r\n"
    (folder / "stuffed").write_bytes(head % b"stuffed" + b"..a\r\n...\r\n.\r\n")
    (folder / "plain").write_bytes(head % b"plain" + b".a\r\n..\r\n")
    mails = {parsed(mail)["Subject"]: mail.content.partition(b"\r\n\r\n")[2] for mail in sink.wait(2)}
    assert mails == {"stuffed": b".a\r\n..\r\n", "plain": b".a\r\n..\r\n"}


def test_what_the_drop_folder_writes_can_be_picked_up(relay: Relay, sink: RecordingSink, folder: Path) -> None:
    (folder / "first").write_bytes(HAND.replace(b"bob@elsewhere.example", b"bob@local.example"))
    sink.wait(1)
    relay.wait_for("delivered", recipient="bob@local.example")
    (dropped,) = (relay.state / "drop").glob("*.eml")
    changed = dropped.read_bytes().replace(b"X-Receiver: bob@local.example", b"X-Receiver: dave@elsewhere.example")
    (folder / "second").write_bytes(changed)
    assert list(sink.wait(2)[1].to) == ["dave@elsewhere.example"]


def test_half_written_files_are_waited_for(relay: Relay, sink: RecordingSink, folder: Path) -> None:
    with (folder / "slow").open("wb", buffering=0) as slow:
        slow.write(HAND)
        # Written later, and long sent: the relay has looked several times since.
        for number in range(3):
            (folder / f"quick{number}").write_bytes(HAND)
            sink.wait(number + 1)
        assert (folder / "slow").exists()
        slow.write(b"the end\n")
    assert sink.wait(4)[3].content.endswith(b"Hi\r\nthe end\r\n")


def test_a_large_one(relay: Relay, sink: RecordingSink, folder: Path) -> None:
    body = b"".join(b"%07d\xe4\n" % number for number in range(400_000))
    (folder / "large").write_bytes(HAND + body)
    (mail,) = sink.wait()
    assert mail.content.endswith(body.replace(b"\n", b"\r\n"))
    assert b"BODY=8BITMIME" in mail.mail_from
    relay.wait_until(lambda: empty(folder), "an empty folder")
    relay.assert_clean()


def test_bad_ones_go_to_badmail_with_the_reason(relay: Relay, sink: RecordingSink, folder: Path) -> None:
    bad = {
        "no-sender": (b"To: b@elsewhere.example\n\nx\n", "it names no sender"),
        "no-recipient": (b"From: a@local.example\n\nx\n", "it names no recipient"),
        "text": (b"Hello Bob,\n\nhow are you?\n", "its first line is no header field"),
        "nul": (HAND + b"\0", "NUL"),
        "utf-16": (HAND.decode().encode("utf-16"), "UTF-16"),
        "route": (HAND.replace(b"bob@elsewhere.example", b"bob%elsewhere.example"), "Unable to relay"),
        "circles": (b"Received: x\n" * 100 + HAND, "circles"),
        "large": (HAND + b"0123456789\n" * 2_500_000, "limits.message_size is 26214400"),
        "header": (HAND.replace(b"\n\n", b"\n") + b"X: y\n" * 60_000, "its header has no end"),
    }
    for name, (octets, _) in bad.items():
        (folder / name).write_bytes(octets)
    (folder / "good").write_bytes(HAND)
    relay.wait_for("badmail", count=len(bad))
    said = {event["reason"].split(": ")[1]: event for event in relay.find("badmail")}
    for name, (octets, why) in bad.items():
        kept = Path(said[name]["file"])
        assert kept.read_bytes() == octets
        reason = kept.with_suffix(".reason").read_text()
        assert f"File: {name}\n" in reason
        assert why in reason, name
        assert why in said[name]["reason"]
    assert len(sink.wait(1)) == 1
    relay.wait_until(lambda: empty(folder), "an empty folder")
    relay.assert_clean()


def test_what_cannot_be_read_is_said_once(start_relay: StartRelay, sink: RecordingSink, folder: Path) -> None:
    """Links are never followed: whoever may write here could read with relayd's eyes."""
    secret = folder.parent / "secret"
    secret.write_bytes(HAND)
    (folder / "link").symlink_to(secret)
    start_relay(picking_up(sink.port, folder))
    (folder / "good").write_bytes(HAND)
    sink.wait(1)
    (folder / "again").write_bytes(HAND)
    sink.wait(2)
    assert (folder / "link").is_symlink()
    assert len(sink.mails) == 2
    assert stat.S_IMODE((folder / ".relayd").stat().st_mode) == 0o700


def test_a_folder_that_vanishes_and_comes_back(relay: Relay, sink: RecordingSink, folder: Path) -> None:
    elsewhere = folder.with_name("elsewhere")
    folder.rename(elsewhere)
    notice = relay.wait_for("notice", key="pickup.directory")
    assert "nothing is picked up" in notice["text"]
    elsewhere.rename(folder)
    (folder / "mail").write_bytes(HAND)
    sink.wait(1)
    relay.wait_until(lambda: empty(folder), "an empty folder")
    assert len(list(relay.find("notice", key="pickup.directory"))) == 1


def test_what_was_taken_before_a_crash_is_sent_once(start_relay: StartRelay, sink: RecordingSink, folder: Path) -> None:
    """Taken and not queued: it is sent. Queued and still there: it is not sent again."""
    relay = start_relay(picking_up(sink.port, folder))
    (folder / "mail").write_bytes(HAND)
    sink.wait(1)
    relay.wait_for("delivered", count=2)
    queued = next(iter(relay.find("accepted")))["queue_id"]
    relay.wait_until(lambda: not relay.ctl_json("queue", "list"), "an empty queue")
    relay.kill()
    (folder / ".relayd" / f"{queued}.mail").write_bytes(HAND)
    (folder / ".relayd" / "7ZZZZZZZZZZZZ.other").write_bytes(HAND.replace(b"by hand", b"other"))
    relay.start()
    mails = sink.wait(2)
    relay.wait_until(lambda: empty(folder), "an empty folder")
    assert [parsed(mail)["Subject"] for mail in mails] == ["by hand", "other"]
    assert len(sink.mails) == 2


def test_a_folder_that_relayd_may_not_write_to_stops_the_start(tmp_path: Path, sink: RecordingSink) -> None:
    folder = tmp_path / "pickup"
    folder.mkdir()
    (folder / ".relayd").write_text("in the way")
    relay = Relay(tmp_path, picking_up(sink.port, folder))
    relay.start(ready=False)
    assert relay.process is not None
    assert relay.process.wait(30) == 1
    assert ".relayd" in next(iter(relay.find("fault")))["detail"]


def test_masquerade_and_the_history(start_relay: StartRelay, sink: RecordingSink, folder: Path) -> None:
    relay = start_relay(
        picking_up(sink.port, folder).replace("[delivery]\n", '[delivery]\nmasquerade_domain = "corp.example"\n')
    )
    (folder / "mail").write_bytes(HAND.replace(b"Alice <alice@local.example>", b"alice"))
    assert sink.wait(1)[0].sender == "alice@corp.example"
    queue_id = relay.wait_for("accepted")["queue_id"]
    shown = relay.ctl_json("queue", "show", queue_id)
    assert shown[0]["sender"] == "alice@local.example"
    assert os.fspath(folder) not in str(shown)
