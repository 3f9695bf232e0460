"""What a file says: envelope, dot-stuffing, line ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.model import NULL_PATH
from relayd.pickup import Content, Refused, Submission, marked_end, stuffed
from tests.unit.wire.octets import chunks, clean, cuts


def envelope(*lines: str) -> tuple[str, list[str], str]:
    found = Submission.parse("".join(f"{line}\r\n" for line in lines).encode())
    return str(found.sender), [str(path) for path in found.recipients], found.header.decode()


class TestEnvelope:
    def test_x_lines_as_dotnet_writes_them(self) -> None:
        sender, recipients, header = envelope(
            "X-Sender: app@corp.example",
            "X-Receiver: bob@partner.example",
            "X-Receiver: secret@partner.example",
            "MIME-Version: 1.0",
            "From: app@corp.example",
            "To: bob@partner.example",
        )
        assert sender == "app@corp.example"
        assert recipients == ["bob@partner.example", "secret@partner.example"]
        assert header == "MIME-Version: 1.0\r\nFrom: app@corp.example\r\nTo: bob@partner.example\r\n"

    def test_the_null_sender_of_a_dropped_notice(self) -> None:
        found = Submission.parse(b"X-Sender: <>\r\nX-Receiver: <bob@partner.example>\r\nFrom: postmaster@x.example\r\n")
        assert found.sender == NULL_PATH

    @pytest.mark.parametrize(
        ("lines", "sender", "recipients"),
        [
            (["From: A <a@x.example>", "To: b@y.example, C <c@y.example>"], "a@x.example", "b@y.example c@y.example"),
            (["From: a@x.example", "Cc: b@y.example", "Bcc: c@y.example"], "a@x.example", "b@y.example c@y.example"),
            (["From: a@x.example", "To: b@y.example", "Cc: b@y.example"], "a@x.example", "b@y.example"),
            (["From: a@x.example", "To: team: b@y.example, c@y.example;"], "a@x.example", "b@y.example c@y.example"),
            (["From: a@x.example, b@x.test", "Sender: b@x.test", "To: c@y.example"], "b@x.test", "c@y.example"),
            (["From: a@x.example", "Sender: b@x.example", "To: c@y.example"], "a@x.example", "c@y.example"),
            (["Sender: b@x.example", "To: c@y.example"], "b@x.example", "c@y.example"),
            (["From: a@x.example, b@x.example", "To: c@y.example"], "a@x.example", "c@y.example"),
            (["X-Sender: a@x.example", "From: b@x.example", "To: c@y.example"], "a@x.example", "c@y.example"),
            (["X-Receiver: c@y.example", "From: b@x.example", "To: d@y.example"], "b@x.example", "c@y.example"),
            (["from: app", "to: postmaster"], "app", "postmaster"),
            (['From: "Doe, Jane" <jane@x.example>', "To:", " bob@y.example,", "\tcarol@y.example"], "jane@x.example",
             "bob@y.example carol@y.example"),
            (["From: josé@x.example", "To: b@y.example"], "josé@x.example", "b@y.example"),
        ],
    )  # fmt: skip
    def test_by_the_header(self, lines: list[str], sender: str, recipients: str) -> None:
        found = envelope(*lines)
        assert (found[0], " ".join(found[1])) == (sender, recipients)

    def test_bcc_does_not_leave(self) -> None:
        header = envelope(
            "From: a@x.example", "Bcc: b@y.example,", " c@y.example", "To: d@y.example", "BCC : e@y.example"
        )
        assert header[2] == "From: a@x.example\r\nTo: d@y.example\r\n"

    def test_x_lines_further_down_are_a_strangers(self) -> None:
        """A dropped message that somebody hands on: its own header was written elsewhere."""
        _, recipients, header = envelope(
            "X-Sender: a@x.example",
            "X-Receiver: b@y.example",
            "Received: from elsewhere",
            "X-Receiver: everybody@victim.example",
        )
        assert recipients == ["b@y.example"]
        assert "everybody" in header

    @pytest.mark.parametrize(
        ("lines", "why"),
        [
            (["From: a@x.example", "Subject: x"], "no recipient"),
            (["From: a@x.example", "To: undisclosed-recipients:;"], "no recipient"),
            (["To: b@y.example"], "no sender"),
            (["From: a@x.example", "To: b@@y.example"], "To: "),
            (["From: a@x.example", "To: Jane Doe"], "To: 'Jane Doe' is no address"),
            (["From: a@x.example", "To: <>"], "To: '<>' is no address"),
            (["From: nobody here at all", "To: b@y.example"], "From: "),
            (["X-Sender: a@x.example, b@x.example", "X-Receiver: b@y.example"], "no single address"),
            (["X-Sender:", "X-Receiver: b@y.example"], "no single address"),
            (["X-Receiver: b y", "From: a@x.example"], "X-Receiver: "),
            (["Hello Bob,", "To: b@y.example"], "first line is no header field"),
            ([], "first line is no header field"),
        ],
    )
    def test_refused(self, lines: list[str], why: str) -> None:
        with pytest.raises(Refused) as raised:
            envelope(*lines)
        assert why in str(raised.value)

    @given(st.binary(max_size=200))
    def test_any_octets_are_a_message_or_refused(self, octets: bytes) -> None:
        try:
            found = Submission.parse(octets)
        except Refused:
            return
        assert found.recipients


class TestStuffing:
    @pytest.mark.parametrize(
        ("octets", "expected"),
        [
            (b"", False),
            (b"a\r\nb\r\n", False),
            (b"a\r\n..b\r\n", True),
            (b"a\n..b\n", True),
            (b"a\r\n.b\r\n", False),
            (b"a\r\n..b\r\n.c\r\n", False),
            (b"..a\r\n", True),
            (b".a\r\n", False),
            (b"a\r\n..\r\nb\r\n", True),
            (b"a\r\n.\r\nb\r\n..c\r\n", False),
            (b"a\r\n...\r\n", False),
            (b"a\r\n....\r\n", True),
            (b"a\r\n...\r\n..b\r\n", True),
            (b"a\r\n...........\r\n", False),
            (b"a.\r\n..", True),
            (b"a\r\n.", False),
            (b"a..b\r\n", False),
        ],
    )
    def test_each_cut(self, octets: bytes, expected: bool) -> None:
        for size in range(1, len(octets) + 2):
            assert stuffed(chunks(octets, [size])) is expected

    @pytest.mark.parametrize(
        ("octets", "mark"),
        [
            (b"", 0),
            (b"a\r\n", 0),
            (b"a\r\n.\r\n", 3),
            (b"a\n.\n", 2),
            (b"a\r\n.", 1),
            (b".\r\n", 3),
            (b".", 1),
            (b"a.\r\n", 0),
            (b"a\r\n..\r\n", 0),
            (b"a\r\n.\r\n\r\n", 0),
        ],
    )
    def test_the_mark_at_the_end(self, octets: bytes, mark: int) -> None:
        assert marked_end(octets[-4:]) == mark


def content(octets: bytes, sizes: list[int], *, unstuff: bool = False) -> bytes:
    reader = Content(unstuff=unstuff)
    first, rest = octets[:3], octets[3:]
    return b"".join(reader.feed(piece) for piece in [first, *chunks(rest, sizes)] if piece) + reader.finish()


class TestContent:
    @pytest.mark.parametrize(
        ("octets", "unstuff", "expected"),
        [
            (b"a\nb", False, b"a\r\nb\r\n"),
            (b"a\r\nb\n\n", False, b"a\r\nb\r\n\r\n"),
            (b"\xef\xbb\xbfFrom: a\n", False, b"From: a\r\n"),
            (b"..a\n.b\n...\nc.d", False, b"..a\r\n.b\r\n...\r\nc.d\r\n"),
            (b"..a\n..b\n...\nc..d", True, b".a\r\n.b\r\n..\r\nc..d\r\n"),
            (b"\xef\xbb\xbf..a\n", True, b".a\r\n"),
        ],
    )
    def test_each_cut(self, octets: bytes, unstuff: bool, expected: bytes) -> None:
        for size in range(1, len(octets) + 1):
            assert content(octets, [size], unstuff=unstuff) == expected

    @given(clean, cuts)
    def test_what_is_clean_passes(self, octets: bytes, sizes: list[int]) -> None:
        whole = octets if not octets or octets.endswith(b"\r\n") else octets + b"\r\n"
        assert content(octets, sizes) == whole

    @pytest.mark.parametrize(
        ("octets", "why"),
        [
            (b"a\0b\r\n", "NUL"),
            (b"a\rb\r\n", "bare CR"),
            (b"a\r", "bare CR"),
            ("From: a\r\n".encode("utf-16"), "UTF-16"),
            (b"\xfe\xff\0F", "UTF-16"),
        ],
    )
    def test_refused(self, octets: bytes, why: str) -> None:
        with pytest.raises(Refused, match=why):
            content(octets, [100])
