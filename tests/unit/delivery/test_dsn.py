"""Delivery status notifications, read back by parsers that nobody here wrote."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage
from typing import Any

import pytest
from flufl.bounce import scan_message
from hypothesis import given
from hypothesis import strategies as st

from relayd.delivery.dsn import DsnKind, Report, Reporter, compose, returns_whole, wanted
from relayd.model import Body, Envelope, Path, Recipient, Reply, Sender
from relayd.queue.store import NewMessage
from relayd.wire import DataWriter
from tests.unit.delivery.values import MESSAGE, path, recipient

REPORTER = Reporter("relay.corp.example", Path("postmaster", "corp.example"))
UNKNOWN = Reply.of(550, "5.1.1", "no such user here")
HOST = "mx.dest.example[192.0.2.1]:25"


def made(
    kind: DsnKind = DsnKind.FAILURE,
    *reports: Report,
    sender: Sender | None = None,
    returned: bytes = MESSAGE,
    whole: bool = True,
    **more: Any,
) -> NewMessage:
    origin = Envelope(sender or Sender(path("alice@corp.example")), (), helo="app.corp.example")
    return compose(
        kind,
        REPORTER,
        origin,
        reports or (Report(recipient("bob@dest.example"), UNKNOWN, HOST),),
        returned,
        whole=whole,
        received_at=1_700_000_000.0,
        now=1_700_000_060.0,
        token="0123456789abcdef",
        **more,
    )


def parsed(notice: NewMessage) -> EmailMessage:
    return email.message_from_bytes(notice.octets, _class=EmailMessage, policy=email.policy.SMTP)


def fields(notice: NewMessage) -> list[dict[str, str]]:
    """The message/delivery-status part: the fields of the message, then those of each recipient."""
    report: Any = email.message_from_bytes(notice.octets)
    blocks = report.get_payload()[1].get_payload()
    return [{key: " ".join(str(value).split()) for key, value in block.items()} for block in blocks]


class TestForm:
    def test_envelope(self) -> None:
        envelope = made().envelope
        assert envelope.sender.path.null
        assert envelope.recipients == (Recipient(path("alice@corp.example")),)
        assert envelope.session == "dsn"

    def test_report_of_three_parts(self) -> None:
        message = parsed(made())
        assert message.get_content_type() == "multipart/report"
        assert message.get_param("report-type") == "delivery-status"
        kinds = [part.get_content_type() for part in message.iter_parts()]
        assert kinds == ["text/plain", "message/delivery-status", "message/rfc822"]
        assert not message.defects

    def test_header(self) -> None:
        message = parsed(made())
        assert message["From"] == "Mail Delivery System <postmaster@corp.example>"
        assert message["To"] == "alice@corp.example"
        assert message["Auto-Submitted"] == "auto-replied"
        assert message["Subject"] == "Delivery Status Notification (Failure)"
        assert message["Message-ID"] == "<0123456789abcdef@relay.corp.example>"
        assert message["References"] == "<1@x>"
        assert message["Date"]

    def test_fields_of_a_failure(self) -> None:
        whole, each = fields(made(sender=Sender(path("alice@corp.example"), envid="job 7")))
        assert whole["Reporting-MTA"] == "dns; relay.corp.example"
        assert whole["Original-Envelope-Id"] == "job 7"
        assert whole["Received-From-MTA"] == "dns; app.corp.example"
        assert "Arrival-Date" in whole
        assert each["Final-Recipient"] == "rfc822; bob@dest.example"
        assert each["Action"] == "failed"
        assert each["Status"] == "5.1.1"
        assert each["Remote-MTA"] == "dns; mx.dest.example"
        assert each["Diagnostic-Code"] == "smtp; 550 5.1.1 no such user here"
        assert "Last-Attempt-Date" in each

    def test_orcpt_comes_back(self) -> None:
        report = Report(recipient("bob@dest.example", orcpt="rfc822;robert@old.example"), UNKNOWN, HOST)
        assert fields(made(DsnKind.FAILURE, report))[1]["Original-Recipient"] == "rfc822;robert@old.example"

    def test_what_relayd_itself_says_is_not_said_to_be_smtp(self) -> None:
        report = Report(recipient("bob@dest.example"), Reply.of(556, "5.1.10", "takes no mail"))
        each = fields(made(DsnKind.FAILURE, report))[1]
        assert each["Diagnostic-Code"].startswith("x-relayd; 556")
        assert "Remote-MTA" not in each

    @pytest.mark.parametrize(
        ("kind", "action", "status", "subject"),
        [
            (DsnKind.DELAY, "delayed", "4.2.1", "(Delay)"),
            (DsnKind.SUCCESS, "delivered", "2.0.0", "(Success)"),
            (DsnKind.RELAYED, "relayed", "2.0.0", "(Relay)"),
        ],
    )
    def test_other_kinds(self, kind: DsnKind, action: str, status: str, subject: str) -> None:
        reply = Reply.of(450, "4.2.1", "busy") if kind is DsnKind.DELAY else Reply.of(250, "", "OK")
        notice = made(
            kind, Report(recipient("bob@dest.example"), reply, HOST), whole=False, retry_until=1_700_100_000.0
        )
        each = fields(notice)[1]
        assert (each["Action"], each["Status"]) == (action, status)
        assert ("Will-Retry-Until" in each) == (kind is DsnKind.DELAY)
        assert subject in parsed(notice)["Subject"]

    def test_expired(self) -> None:
        report = Report(recipient("bob@dest.example"), Reply.of(451, "4.4.1", "No connection"), HOST, expired=True)
        each = fields(made(DsnKind.FAILURE, report))[1]
        assert (each["Action"], each["Status"]) == ("failed", "4.4.7")

    @pytest.mark.parametrize("enhanced", ["", "4.1.1", "5.x", "2.0.0"])
    def test_the_status_of_a_failure_is_of_class_5(self, enhanced: str) -> None:
        report = Report(recipient("bob@dest.example"), Reply.of(550, enhanced, "no"), HOST)
        assert fields(made(DsnKind.FAILURE, report))[1]["Status"] == "5.0.0"

    def test_the_host_of_an_address_literal(self) -> None:
        report = Report(recipient("bob@[192.0.2.1]"), UNKNOWN, "[192.0.2.1]:25")
        assert fields(made(DsnKind.FAILURE, report))[1]["Remote-MTA"] == "dns; [192.0.2.1]"

    def test_never_to_the_null_sender(self) -> None:
        with pytest.raises(ValueError, match="null"):
            made(sender=Sender(Path("")))

    def test_copy(self) -> None:
        notice = made(copy_to=path("it@corp.example"))
        assert [str(r.path) for r in notice.envelope.recipients] == ["alice@corp.example", "it@corp.example"]
        assert len(made(copy_to=path("Alice@Corp.Example")).envelope.recipients) == 1


class TestWhatComesBack:
    def test_the_whole_message_octet_by_octet(self) -> None:
        assert b"\r\n\r\n" + MESSAGE + b"\r\n--" in made().octets

    def test_the_header_alone(self) -> None:
        message = parsed(made(whole=False))
        last = list(message.iter_parts())[2]
        assert last.get_content_type() == "text/rfc822-headers"
        assert "Subject: =?utf-8?q?caf=C3=A9?=" in last.get_payload()
        assert b"Hello" not in made(whole=False).octets

    def test_a_message_that_is_all_header(self) -> None:
        assert made(returned=b"Subject: x\r\n", whole=False).octets.count(b"Subject: x\r\n") == 1

    def test_an_endless_header_is_cut_at_a_line(self) -> None:
        notice = made(returned=b"X-Filler: " + b"\r\n y" * 50000, whole=False)
        assert len(notice.octets) < 70000
        assert parsed(notice).get_content_type() == "multipart/report"

    @pytest.mark.parametrize(
        ("ret", "kind", "size", "whole"),
        [
            ("", DsnKind.FAILURE, 1000, True),
            ("", DsnKind.FAILURE, 100_000, False),
            ("FULL", DsnKind.FAILURE, 100_000, True),
            ("FULL", DsnKind.FAILURE, 2_000_000, False),
            ("HDRS", DsnKind.FAILURE, 10, False),
            ("FULL", DsnKind.DELAY, 10, False),
            ("FULL", DsnKind.SUCCESS, 10, False),
        ],
    )
    def test_ret(self, ret: str, kind: DsnKind, size: int, whole: bool) -> None:
        assert returns_whole(Sender(path("a@b"), ret=ret), kind, size) is whole

    def test_a_boundary_in_the_message_does_not_break_it(self) -> None:
        evil = MESSAGE + b"--0123456789abcdef--\r\nmore\r\n"
        assert len(list(parsed(made(returned=evil)).iter_parts())) == 3


class TestEightBits:
    def test_ascii_stays_seven_bit(self) -> None:
        notice = made()
        assert notice.octets.isascii()
        assert notice.envelope.sender.body is Body.SEVEN_BIT

    def test_an_eight_bit_message_is_declared(self) -> None:
        notice = made(returned=MESSAGE + "Grüße\r\n".encode("latin-1"))
        assert notice.envelope.sender.body is Body.EIGHT_BIT
        assert not notice.envelope.sender.smtputf8
        assert parsed(notice)["Content-Transfer-Encoding"] == "8bit"

    def test_an_international_sender_gets_an_international_notice(self) -> None:
        notice = made(sender=Sender(Path("älice", "corp.example"), smtputf8=True))
        assert notice.envelope.sender.smtputf8
        kinds = [part.get_content_type() for part in parsed(notice).iter_parts()]
        assert kinds == ["text/plain", "message/global-delivery-status", "message/global"]
        assert "To: <älice@corp.example>\r\n".encode() in notice.octets

    def test_an_international_recipient(self) -> None:
        notice = made(DsnKind.FAILURE, Report(Recipient(Path("bøb", "dest.example")), UNKNOWN, HOST), whole=False)
        assert "Final-Recipient: utf-8; bøb@dest.example\r\n".encode() in notice.octets
        assert [part.get_content_type() for part in parsed(notice).iter_parts()][2] == "message/global-headers"
        assert not notice.envelope.sender.smtputf8
        assert notice.envelope.sender.body is Body.EIGHT_BIT


class TestRecognised:
    @pytest.mark.parametrize("whole", [True, False])
    def test_failure_by_flufl_bounce(self, whole: bool) -> None:
        reports = [Report(recipient(f"u{n}@dest.example"), UNKNOWN, HOST) for n in range(3)]
        message = email.message_from_bytes(made(DsnKind.FAILURE, *reports, whole=whole).octets)
        assert scan_message(message) == {b"u0@dest.example", b"u1@dest.example", b"u2@dest.example"}

    def test_a_delay_is_no_bounce(self) -> None:
        report = Report(recipient("bob@dest.example"), Reply.of(450, "4.2.1", "busy"), HOST)
        message = email.message_from_bytes(made(DsnKind.DELAY, report, whole=False).octets)
        assert scan_message(message) == set()


ANYTHING = st.text(max_size=300)


class TestNothingIsInjected:
    @given(text=st.lists(ANYTHING, max_size=5), host=ANYTHING, envid=ANYTHING, orcpt=ANYTHING, helo=ANYTHING)
    def test_by_what_others_said(self, text: list[str], host: str, envid: str, orcpt: str, helo: str) -> None:
        origin = Envelope(Sender(path("alice@corp.example"), envid=envid), (), helo=helo)
        report = Report(recipient("bob@dest.example", orcpt=orcpt), Reply(550, "5.1.1", tuple(text)), host)
        notice = compose(
            DsnKind.FAILURE,
            REPORTER,
            origin,
            [report],
            MESSAGE,
            whole=True,
            received_at=1.0,
            now=2.0,
            token="0123456789abcdef",
        )
        DataWriter().write(notice.octets)  # raises for octets that must never leave
        assert max(map(len, notice.octets.split(b"\r\n"))) < 998
        message = parsed(notice)
        assert [part.get_content_type() for part in message.iter_parts()] == [
            "text/plain",
            "message/delivery-status",
            "message/rfc822",
        ]
        assert sorted(message.keys()) == sorted(
            ["From", "To", "Subject", "Date", "Message-ID", "References", "Auto-Submitted", "MIME-Version"]
            + ["Content-Type"]
            + ["Content-Transfer-Encoding"] * (not notice.octets.isascii())
        )
        status = notice.octets.partition(b"message/delivery-status")[2].partition(b"\r\n--")[0]
        assert status.count(b"\r\nFinal-Recipient:") == 1
        assert status.count(b"\r\nAction: failed\r\n") == 1

    def test_by_a_reply_that_looks_like_a_field(self) -> None:
        reply = Reply.of(550, "5.1.1", "no\r\nAction: delivered\r\n\r\nFinal-Recipient: rfc822; x@y")
        blocks = fields(made(DsnKind.FAILURE, Report(recipient("bob@dest.example"), reply, HOST)))
        assert len(blocks) == 2
        assert blocks[1]["Action"] == "failed"

    def test_by_a_message_id(self) -> None:
        evil = b"Message-ID: <a@b>\r\n\r\nMessage-ID: <c@d>\r\n"
        assert parsed(made(returned=evil))["References"] == "<a@b>"
        assert parsed(made(returned=b"Message-ID: <a b>\r\n\r\n"))["References"] is None


@pytest.mark.parametrize(
    ("notify", "kinds"),
    [
        ((), {DsnKind.FAILURE, DsnKind.DELAY}),
        (("NEVER",), set()),
        (("SUCCESS",), {DsnKind.SUCCESS, DsnKind.RELAYED}),
        (("FAILURE", "SUCCESS"), {DsnKind.FAILURE, DsnKind.SUCCESS, DsnKind.RELAYED}),
        (("DELAY",), {DsnKind.DELAY}),
    ],
)
def test_notify(notify: tuple[str, ...], kinds: set[DsnKind]) -> None:
    assert {kind for kind in DsnKind if wanted(recipient("a@b", *notify), kind)} == kinds
