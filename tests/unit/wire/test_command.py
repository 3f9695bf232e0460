"""Commands and their parameters, as tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.model import Body, Fault, Path, Recipient, Sender
from relayd.wire import parse_bdat, parse_command, parse_hello, parse_mail, parse_rcpt

A = Path("a", "b")


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"NOOP", ("NOOP", b"")),
        (b"noop", ("NOOP", b"")),
        (b"EHLO host", ("EHLO", b"host")),
        (b"  EHLO \t host \t", ("EHLO", b"host")),
        (b"EHLO\thost", ("EHLO", b"host")),
        (b"MAIL FROM:<a@b> SIZE=1", ("MAIL", b"FROM:<a@b> SIZE=1")),
        (b"AUTH PLAIN \xff", ("AUTH", b"PLAIN \xff")),
        (b"RSET;", ("RSET;", b"")),
        (b"HELP a\tb c", ("HELP", b"a\tb c")),
    ],
)
def test_command(line: bytes, command: tuple[str, bytes]) -> None:
    assert parse_command(line) == command


@pytest.mark.parametrize(
    "line", [b"", b" ", b"\t", b"EHL\xc3\x96 x", b"\xff", b"NO\x01OP", b"\x16\x03\x01 x", b"NOOP\x7f"]
)
def test_no_command(line: bytes) -> None:
    with pytest.raises(Fault) as raised:
        parse_command(line)
    assert (raised.value.reply.code, raised.value.reply.enhanced) == (500, "5.5.2")


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        (b"", ""),
        (b"host.example", "host.example"),
        (b"[192.0.2.1]", "[192.0.2.1]"),
        (b"PRINTER_3 (2nd floor)", "PRINTER_3 (2nd floor)"),
        ("büro".encode(), "büro"),
        (b"b\xfcro", "b\ufffdro"),
        (b"x" * 255, "x" * 255),
    ],
)
def test_hello(argument: bytes, name: str) -> None:
    assert parse_hello(argument) == name


@pytest.mark.parametrize(
    "argument", [b"a\tb", b"a\x00", b"a\r\nb", b"a\x1b[1m", b"a\x7f", "a\x85b".encode(), b"x" * 256]
)
def test_bad_hello(argument: bytes) -> None:
    with pytest.raises(Fault) as raised:
        parse_hello(argument)
    assert (raised.value.reply.code, raised.value.reply.enhanced) == (501, "5.5.4")


@pytest.mark.parametrize(
    ("argument", "sender"),
    [
        ("FROM:<a@b>", Sender(A)),
        ("from:<a@b>", Sender(A)),
        ("FROM: <a@b>", Sender(A)),
        ("FROM:\t <a@b> SIZE=0", Sender(A)),
        ("FROM:<a@b> SIZE=0", Sender(A)),
        ("FROM:<a@b> size=12345678901234567890", Sender(A, size=12345678901234567890)),
        ("FROM:<a@b>  SIZE=1   BODY=7BIT ", Sender(A, size=1)),
        ("FROM:<a@b> BODY=8bitmime", Sender(A, body=Body.EIGHT_BIT)),
        ("FROM:<a@b> SMTPUTF8", Sender(A, smtputf8=True)),
        ("FROM:<a@b> RET=hdrs ENVID=QQ+2B+3D1", Sender(A, ret="HDRS", envid="QQ+=1")),
        ("FROM:<a@b> RET=FULL", Sender(A, ret="FULL")),
        ("FROM:<a@b> AUTH=<>", Sender(A, auth="")),
        ("FROM:<a@b> AUTH=+3C+3E", Sender(A, auth="")),
        ("FROM:<a@b> AUTH=e+3Dmc2@example.com", Sender(A, auth="e=mc2@example.com")),
        ("FROM:<a@b> AUTH=c+2Bd@e", Sender(A, auth="c+d@e")),
        (
            "FROM:<a@b> SIZE=1 BODY=8BITMIME SMTPUTF8 RET=FULL ENVID=x AUTH=c@d",
            Sender(A, 1, Body.EIGHT_BIT, True, "FULL", "x", "c@d"),
        ),
        ("FROM:<a@b> ENVID=" + "x" * 100, Sender(A, envid="x" * 100)),
    ],
)
def test_mail(argument: str, sender: Sender) -> None:
    assert parse_mail(argument.encode()) == sender
    assert parse_mail(argument.encode(), legacy=True) == sender


@pytest.mark.parametrize(
    ("argument", "reply"),
    [
        ("", "501 5.5.4"),
        ("FROM", "501 5.5.4"),
        ("<a@b>", "501 5.5.4"),
        ("TO:<a@b>", "501 5.5.4"),
        ("FROM <a@b>", "501 5.5.4"),
        ("XFROM:<a@b>", "501 5.5.4"),
        ("FROM :<a@b>", "501 5.5.4"),
        ("FROM:a@b", "501 5.1.7"),
        ("FROM:", "501 5.1.7"),
        ("FROM:<a@b", "501 5.1.7"),
        ("FROM:<a@b>>", "501 5.5.4"),
        ("FROM:<a@b>SIZE=1", "501 5.5.4"),
        ("FROM:<a@b>\tSIZE=1", "501 5.5.4"),
        ("FROM:<a@b> SIZE", "501 5.5.4"),
        ("FROM:<a@b> SIZE=", "501 5.5.4"),
        ("FROM:<a@b> SIZE=-1", "501 5.5.4"),
        ("FROM:<a@b> SIZE=1k", "501 5.5.4"),
        ("FROM:<a@b> SMTPUTF8 SIZE=\u0661", "501 5.5.4"),
        ("FROM:<a@b> SIZE=123456789012345678901", "501 5.5.4"),
        ("FROM:<a@b> SIZE=1 size=1", "501 5.5.4"),
        ("FROM:<a@b> SIZE=1=2", "501 5.5.4"),
        ("FROM:<a@b> BODY=BINARYMIME", "501 5.5.4"),
        ("FROM:<a@b> BODY=9BIT", "501 5.5.4"),
        ("FROM:<a@b> BODY", "501 5.5.4"),
        ("FROM:<a@b> SMTPUTF8=1", "501 5.5.4"),
        ("FROM:<a@b> SMTPUTF8 SMTPUTF8", "501 5.5.4"),
        ("FROM:<a@b> RET=ALL", "501 5.5.4"),
        ("FROM:<a@b> ENVID=a+0D+0Ab", "501 5.5.4"),
        ("FROM:<a@b> ENVID=a+2b", "501 5.5.4"),
        ("FROM:<a@b> ENVID=a+", "501 5.5.4"),
        ("FROM:<a@b> ENVID=a+FF", "501 5.5.4"),
        ("FROM:<a@b> ENVID=" + "x" * 101, "501 5.5.4"),
        ("FROM:<a@b> AUTH=a+00@b", "501 5.5.4"),
        ("FROM:<a@b> AUTH=a..b@c", "501 5.5.4"),
        ("FROM:<a@b> AUTH", "501 5.5.4"),
        ("FROM:<a@b> -X=1", "501 5.5.4"),
        ("FROM:<a@b> X=\x01", "501 5.5.4"),
        ("FROM:<a@b> X=1", "555 5.5.4"),
        ("FROM:<a@b> NOTIFY=NEVER", "555 5.5.4"),
        ("FROM:<a@b> MT-PRIORITY=3", "555 5.5.4"),
        ("FROM:<ä@b>", "553 5.6.7"),
        ("FROM:<a@b> ENVID=ä", "553 5.6.7"),
        ("FROM:<ä@b> SMTPUTF8 ENVID=ä", "501 5.5.4"),
    ],
)
def test_bad_mail(argument: str, reply: str) -> None:
    with pytest.raises(Fault) as raised:
        parse_mail(argument.encode())
    assert f"{raised.value.reply.code} {raised.value.reply.enhanced}" == reply


@pytest.mark.parametrize("parameter", ["SMTPUTF8", "SIZE=1", "RET=FULL", "ENVID=x"])
def test_what_is_not_offered_is_not_known(parameter: str) -> None:
    with pytest.raises(Fault) as raised:
        parse_mail(f"FROM:<a@b> {parameter}".encode(), smtputf8=False, size=False, dsn=False)
    assert (raised.value.reply.code, raised.value.reply.enhanced) == (555, "5.5.4")


@pytest.mark.parametrize(
    ("argument", "recipient"),
    [
        ("TO:<a@b>", Recipient(A)),
        ("to:<a@b>", Recipient(A)),
        ("TO:<Postmaster>", Recipient(Path("Postmaster"))),
        ("TO:<a@b> NOTIFY=NEVER", Recipient(A, frozenset({"NEVER"}))),
        ("TO:<a@b> NOTIFY=success,Delay", Recipient(A, frozenset({"SUCCESS", "DELAY"}))),
        ("TO:<a@b> ORCPT=rfc822;Bob+2B1@c", Recipient(A, orcpt="rfc822;Bob+1@c")),
        ("TO:<a@b> ORCPT=x400;/G=a+20b", Recipient(A, orcpt="x400;/G=a b")),
        ("TO:<a@b> ORCPT=utf-8;j\\x{FC}rgen@c", Recipient(A, orcpt="utf-8;jürgen@c")),
    ],
)
def test_rcpt(argument: str, recipient: Recipient) -> None:
    if "/G=" in argument:
        argument = argument.replace("/G=", "/G+3D")
    assert parse_rcpt(argument.encode(), smtputf8_ok=False) == recipient
    assert parse_rcpt(argument.encode(), smtputf8_ok=False, legacy=True) == recipient


@pytest.mark.parametrize(
    ("argument", "reply"),
    [
        ("", "501 5.5.4"),
        ("FROM:<a@b>", "501 5.5.4"),
        ("TO:a@b", "501 5.1.3"),
        ("TO:<a@b> SIZE=1", "555 5.5.4"),
        ("TO:<a@b> NOTIFY", "501 5.5.4"),
        ("TO:<a@b> NOTIFY=", "501 5.5.4"),
        ("TO:<a@b> NOTIFY=NEVER,DELAY", "501 5.5.4"),
        ("TO:<a@b> NOTIFY=DELAY,DELAY", "501 5.5.4"),
        ("TO:<a@b> NOTIFY=DELAY,", "501 5.5.4"),
        ("TO:<a@b> NOTIFY=ALWAYS", "501 5.5.4"),
        ("TO:<a@b> NOTIFY=DELAY NOTIFY=DELAY", "501 5.5.4"),
        ("TO:<a@b> ORCPT=a@b", "501 5.5.4"),
        ("TO:<a@b> ORCPT=rfc822;", "501 5.5.4"),
        ("TO:<a@b> ORCPT=;a", "501 5.5.4"),
        ("TO:<a@b> ORCPT=rfc822;a+0Ab", "501 5.5.4"),
        ("TO:<a@b> ORCPT=rfc822;a+C3+A4", "501 5.5.4"),
        ("TO:<a@b> ORCPT=utf-8;a\\x{0A}", "501 5.5.4"),
        ("TO:<a@b> ORCPT=utf-8;a\\x{D800}", "501 5.5.4"),
        ("TO:<a@b> ORCPT=utf-8;a\\x{FFFFFF}", "501 5.5.4"),
        ("TO:<a@b> ORCPT=utf-8;a\\b", "501 5.5.4"),
        ("TO:<a@b> ORCPT=rfc822;" + "x" * 500, "501 5.5.4"),
        ("TO:<a@b> ORCPT=utf-8;ä@c", "553 5.6.7"),
        ("TO:<@x:ä@b>", "553 5.6.7"),
    ],
)
def test_bad_rcpt(argument: str, reply: str) -> None:
    with pytest.raises(Fault) as raised:
        parse_rcpt(argument.encode(), smtputf8_ok=False)
    assert f"{raised.value.reply.code} {raised.value.reply.enhanced}" == reply


def test_rcpt_without_dsn() -> None:
    with pytest.raises(Fault) as raised:
        parse_rcpt(b"TO:<a@b> NOTIFY=NEVER", smtputf8_ok=False, dsn=False)
    assert raised.value.reply.code == 555


def test_orcpt_in_utf8() -> None:
    argument = "TO:<a@b> ORCPT=utf-8;ä+2B@c".encode()
    assert parse_rcpt(argument, smtputf8_ok=True).orcpt == "utf-8;ä+@c"


@pytest.mark.parametrize("form", [":<a@b>", ": <a@b>", " : <a@b>", ":\t<a@b>", ":a@b", ": a@b", ":  a@b"])
def test_legacy_forms(form: str) -> None:
    assert parse_mail(f"FROM{form} SIZE=3".encode(), legacy=True) == Sender(A, size=3)
    assert parse_rcpt(f"TO{form} NOTIFY=NEVER".encode(), legacy=True, smtputf8_ok=False).path == A


@pytest.mark.parametrize("argument", ["FROM:", "FROM: ", "FROM:a b@c", "FROM:<a@b", "FROM:a@b>"])
def test_legacy_is_not_lawless(argument: str) -> None:
    with pytest.raises(Fault):
        parse_mail(argument.encode(), legacy=True)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (b"0", (0, False)),
        (b"1000", (1000, False)),
        (b"1000 LAST", (1000, True)),
        (b"0  last", (0, True)),
        (b"99999999999999999999", (99999999999999999999, False)),
    ],
)
def test_bdat(argument: bytes, expected: tuple[int, bool]) -> None:
    assert parse_bdat(argument) == expected


@pytest.mark.parametrize(
    "argument",
    [b"", b"LAST", b"-1", b"+1", b"1k", b"1 FIRST", b"1LAST", b"1 LAST x", b"1\n", b"0x1", b"9" * 21],
)
def test_bad_bdat(argument: bytes) -> None:
    with pytest.raises(Fault) as raised:
        parse_bdat(argument)
    assert (raised.value.reply.code, raised.value.reply.enhanced) == (501, "5.5.4")


_WORDS = (
    *'<>@."\\[]:,%!=+;ab  \0\x7f\x85ä',
    *("FROM:", "TO:", "SIZE=1", "BODY=7BIT", "SMTPUTF8", "RET=FULL", "ENVID=x", "AUTH=<>"),
    *("NOTIFY=NEVER", "ORCPT=utf-8;\\x{E4}"),
)


@given(st.lists(st.sampled_from(_WORDS)).map("".join), st.booleans())
def test_anything_is_parsed_or_refused_with_a_fault(argument: str, legacy: bool) -> None:
    octets = argument.encode()
    replies = []
    for parse in (
        lambda: parse_mail(octets, legacy=legacy),
        lambda: parse_rcpt(octets, legacy=legacy, smtputf8_ok=True),
        lambda: parse_command(octets),
        lambda: parse_hello(octets),
        lambda: parse_bdat(octets),
    ):
        try:
            parse()
        except Fault as fault:
            replies.append(fault.reply)
    for reply in replies:
        assert reply.permanent
        assert reply.text.isprintable()
        assert reply.text.isascii()
