"""Commands as a client writes them: what the server does not know is left out, what would inject is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.model import NULL_PATH, Body, Path, Recipient, Sender
from relayd.wire import encode_mail, encode_rcpt, parse_mail, parse_rcpt

A = Path("a", "b")
ALL = frozenset({"SIZE", "8BITMIME", "SMTPUTF8", "DSN", "AUTH", "PIPELINING"})
FULL = Sender(A, 7, Body.EIGHT_BIT, True, "HDRS", "x+=y z", "c+d@e")


@pytest.mark.parametrize(
    ("sender", "size", "extensions", "line"),
    [
        (Sender(NULL_PATH), None, ALL, "MAIL FROM:<>"),
        (Sender(A), None, ALL, "MAIL FROM:<a@b>"),
        (Sender(A, size=9), 10, ALL, "MAIL FROM:<a@b> SIZE=10"),
        (FULL, 10, frozenset(), "MAIL FROM:<a@b>"),
        (
            FULL,
            10,
            ALL,
            "MAIL FROM:<a@b> SIZE=10 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=x+2B+3Dy+20z AUTH=c+2Bd@e",
        ),
        (Sender(A, auth=""), None, ALL, "MAIL FROM:<a@b> AUTH=<>"),
        (Sender(Path("ä", "b")), None, ALL, "MAIL FROM:<ä@b> SMTPUTF8"),
        (Sender(Path('"a b"', "[IPv6:::1]")), None, ALL, 'MAIL FROM:<"a b"@[IPv6:::1]>'),
    ],
)
def test_mail(sender: Sender, size: int | None, extensions: frozenset[str], line: str) -> None:
    assert encode_mail(sender, size=size, extensions=extensions) == f"{line}\r\n".encode()


@pytest.mark.parametrize(
    ("recipient", "extensions", "line"),
    [
        (Recipient(A), ALL, "RCPT TO:<a@b>"),
        (Recipient(Path("postmaster")), ALL, "RCPT TO:<postmaster>"),
        (Recipient(A, frozenset({"NEVER"}), "rfc822;x"), frozenset(), "RCPT TO:<a@b>"),
        (
            Recipient(A, frozenset({"DELAY", "SUCCESS"}), "rfc822;x+y@z"),
            ALL,
            "RCPT TO:<a@b> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x+2By@z",
        ),
        (Recipient(A, orcpt="utf-8;ä@z"), ALL, "RCPT TO:<a@b> ORCPT=utf-8;ä@z"),
        (Recipient(A, orcpt="utf-8;ä@z"), ALL - {"SMTPUTF8"}, "RCPT TO:<a@b> ORCPT=utf-8;\\x{E4}@z"),
    ],
)
def test_rcpt(recipient: Recipient, extensions: frozenset[str], line: str) -> None:
    assert encode_rcpt(recipient, extensions=extensions) == f"{line}\r\n".encode()


@pytest.mark.parametrize(
    "path",
    [
        Path("a\r\nRCPT TO:<x", "y"),
        Path("a> SIZE=1 <c", "b"),
        Path("a", "b> ORCPT=x"),
        Path("a", "b\r\n"),
        Path('"a\nb"', "c"),
        Path("a\0", "b"),
        Path("@x:a", "b"),
        Path("", "b"),
        Path("a@b", "c"),
        Path("a", "b@c"),
        Path("a b", "c"),
    ],
)
def test_no_address_injects(path: Path) -> None:
    with pytest.raises(ValueError, match=r".+"):
        encode_mail(Sender(path), size=None, extensions=ALL)
    with pytest.raises(ValueError, match=r".+"):
        encode_rcpt(Recipient(path), extensions=ALL)


@pytest.mark.parametrize(
    "sender",
    [
        Sender(A, ret="FULL\r\nDATA"),
        Sender(A, ret="x"),
        Sender(A, envid="a\r\nb"),
        Sender(A, envid="ä"),
        Sender(A, auth="a\r\nb"),
    ],
)
def test_no_parameter_of_mail_injects(sender: Sender) -> None:
    with pytest.raises(ValueError, match=r".+"):
        encode_mail(sender, size=None, extensions=ALL)


@pytest.mark.parametrize(
    "recipient",
    [
        Recipient(A, frozenset({"NEVER\r\nDATA"})),
        Recipient(A, orcpt="rfc822;a\r\nb"),
        Recipient(A, orcpt="rfc822;ä"),
        Recipient(A, orcpt="rfc 822;a"),
        Recipient(A, orcpt="a"),
        Recipient(A, orcpt="utf-8;a\nb"),
        Recipient(NULL_PATH),
    ],
)
def test_no_parameter_of_rcpt_injects(recipient: Recipient) -> None:
    with pytest.raises(ValueError, match=r".+"):
        encode_rcpt(recipient, extensions=ALL)


def test_utf8_goes_only_where_it_is_known() -> None:
    with pytest.raises(ValueError, match="SMTPUTF8"):
        encode_mail(Sender(Path("ä", "b"), smtputf8=True), size=None, extensions=ALL - {"SMTPUTF8"})
    with pytest.raises(ValueError, match="SMTPUTF8"):
        encode_rcpt(Recipient(Path("a", "ä")), extensions=ALL - {"SMTPUTF8"})


_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
_utf8 = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=20)


@given(
    st.sampled_from((A, NULL_PATH, Path('"a b"', "c"), Path("ä", "b"))),
    st.none() | st.integers(0, 2**60),
    st.sampled_from(Body),
    st.sampled_from(("", "FULL", "HDRS")),
    _text,
    st.sampled_from((None, "", "c+d=e@f", '"a\\"b"@c', "ä@b")),
)
def test_mail_that_is_written_is_read(
    path: Path, size: int | None, body: Body, ret: str, envid: str, auth: str | None
) -> None:
    sender = Sender(path, size or 0, body, True, ret, envid, auth)
    line = encode_mail(sender, size=size, extensions=ALL)
    assert parse_mail(line[len("MAIL ") : -2]) == sender


@given(
    st.sampled_from((frozenset(), frozenset({"NEVER"}), frozenset({"DELAY", "FAILURE"}))), _text, _utf8, st.booleans()
)
def test_rcpt_that_is_written_is_read(notify: frozenset[str], ascii_text: str, text: str, utf8: bool) -> None:
    extensions = ALL if utf8 else ALL - {"SMTPUTF8"}
    for orcpt in ("", f"rfc822;x{ascii_text}", f"utf-8;{text}"):
        recipient = Recipient(A, notify, orcpt)
        line = encode_rcpt(recipient, extensions=extensions)
        assert parse_rcpt(line[len("RCPT ") : -2], smtputf8_ok=utf8) == recipient
