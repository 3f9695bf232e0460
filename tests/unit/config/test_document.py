"""The lines of keys, tables and entries, however they are written."""

from __future__ import annotations

import pytest

from relayd.config.document import SyntaxFault, nearest, parse, rule_name

TEXT = b"""\
# comment
server.hostname = "relay.example"
server."odd key" = 1
[relay]
list = [  # why
    "192.0.2.1",

    # the second
    "192.0.2.2", "192.0.2.3",
]
send_as_groups = { Staff = ["a@b.example",
    "c@d.example"], 'App Senders' = [] }
text = \"\"\"
[not.a.table]
\"\"\"
[[listener]]
port = 25
[listener.relay]
list = ["192.0.2.4"]
[[listener]]
access.list = [
    "192.0.2.5" ]
  [ listener . relay ]
  allow = "only"
"""


def test_lines() -> None:
    assert parse(TEXT).lines == {
        "server": 2,
        "server.hostname": 2,
        'server."odd key"': 3,
        "relay": 4,
        "relay.list": 5,
        "relay.list[0]": 6,
        "relay.list[1]": 9,
        "relay.list[2]": 9,
        "relay.send_as_groups": 11,
        "relay.send_as_groups.Staff": 11,
        "relay.send_as_groups.Staff[0]": 11,
        "relay.send_as_groups.Staff[1]": 12,
        'relay.send_as_groups."App Senders"': 12,
        "relay.text": 13,
        "listener": 16,
        "listener[0]": 16,
        "listener[0].port": 17,
        "listener[0].relay": 18,
        "listener[0].relay.list": 19,
        "listener[0].relay.list[0]": 19,
        "listener[1]": 20,
        "listener[1].access": 21,
        "listener[1].access.list": 21,
        "listener[1].access.list[0]": 22,
        "listener[1].relay": 23,
        "listener[1].relay.allow": 24,
    }


def test_lines_are_the_same_with_windows_line_ends_and_a_byte_order_mark() -> None:
    windows = parse(b"\xef\xbb\xbf" + TEXT.replace(b"\n", b"\r\n"))
    assert windows.lines == parse(TEXT).lines


def test_arrays_of_inline_tables() -> None:
    lines = parse(b"listener = [\n{port = 1},\n{port = 2, relay.list = [\n1]}\n]\n").lines
    assert lines["listener[1].port"] == 3
    assert lines["listener[1].relay.list[0]"] == 4


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("relay.list[2]", 9),
        ("relay.list[7]", 5),
        ("relay.list[1].x", 9),
        ("relay.groups[0]", 4),
        ('relay.send_as_groups."other group"[3]', 11),
        ("listener[1].port", 20),
        ("nothing.at.all", 1),
        ('"odd', 1),
        ("", 1),
    ],
)
def test_nearest(key: str, line: int) -> None:
    assert nearest(parse(TEXT).lines, key) == line


def test_rule_names() -> None:
    assert rule_name(("relay", "list", 2)) == "relay.list[2]"
    assert rule_name(("relay", "send_as_groups", "App Senders")) == 'relay.send_as_groups."App Senders"'
    assert rule_name(('a"b\n', 0)) == '"a\\"b\\n"[0]'


@pytest.mark.parametrize(
    ("octets", "line"),
    [
        (b"a = 1\nb = ", 2),
        (b"a = 1\n\nb = yes\n", 3),
        (b"[a]\n[b]\n[a]\n", 3),
        (b"\xff\n", 1),
        (b"a = 1\n# \xc3\x28\n", 2),
        (b"a = " + b"[" * 5000, 1),
        (b"a = " + b"9" * 5000, 1),
        (b"a\x00b = 1", 1),
    ],
)
def test_syntax(octets: bytes, line: int) -> None:
    with pytest.raises(SyntaxFault) as raised:
        parse(octets)
    assert raised.value.line == line
    assert raised.value.text.isprintable()
