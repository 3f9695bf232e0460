"""Single values: what each kind of key takes and refuses."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from relayd.config import readers as r
from relayd.config.faults import Wrong
from relayd.model import Path
from relayd.settings import HostEntry, Lockout, NextHop, Rate, TlsMode


@pytest.mark.parametrize(
    ("reader", "written", "value"),
    [
        (r.duration(), "0s", 0.0),
        (r.duration(), "90s", 90.0),
        (r.duration(), "15m", 900.0),
        (r.duration(), "12h", 43200.0),
        (r.duration(), "2d", 172800.0),
        (r.size("1K", "10G"), "64K", 65536),
        (r.size("1K", "10G"), "25M", 26214400),
        (r.size("1K", "10G"), "1G", 1073741824),
        (r.size("1K", "10G"), "1024", 1024),
        (r.rate, "30/1m", Rate(30, 60.0)),
        (r.lockout, "auto", Lockout()),
        (r.lockout, "4 in 15m", Lockout(auto=False, failures=4, seconds=900.0)),
        (r.member(TlsMode), "implicit", TlsMode.IMPLICIT),
        (r.domain_name, "Corp.Example.", "corp.example"),
        (r.domain_name, "bücher.example", "xn--bcher-kva.example"),
        (r.domain_name, "xn--bcher-kva.example", "xn--bcher-kva.example"),
        (r.domain_name, "localhost", "localhost"),
        (r.mail_domain, "*", ("", True)),
        (r.mail_domain, "*.Partner.example", ("partner.example", True)),
        (r.mail_address, "alice@corp.example", Path("alice", "corp.example")),
        (r.mail_address, "müller@bücher.example", Path("müller", "bücher.example")),
        (r.mail_address, '"a b"@[192.0.2.1]', Path('"a b"', "[192.0.2.1]")),
        (r.sender_pattern, "*@Apps.corp.example", "*@apps.corp.example"),
        (r.sender_pattern, "app-*@*.corp.example", "app-*@*.corp.example"),
        (r.sender_pattern, "*", "*"),
        (r.sender_rewrite, "*@corp.example", "*@corp.example"),
        (r.address_literal, "2001:DB8::0", "2001:db8::"),
        (r.dns_server, "192.0.2.53", "192.0.2.53"),
        (r.dns_server, "[2001:db8::53]:5353", "[2001:db8::53]:5353"),
        (r.deliver, "drop", None),
        (r.deliver, "lmtp://[::1]:24", NextHop("lmtp://[::1]:24", "::1", 24)),
        (r.deliver, "lmtp+unix:///run/lmtp", NextHop("lmtp+unix:///run/lmtp", "", None, "/run/lmtp")),
        (r.literal_port, "[::1]:8025", "[::1]:8025"),
        (r.listed(r.boolean), [True, False], (True, False)),
        (r.optional(r.rate), "", None),
    ],
)
def test_takes(reader: r.Reader[Any], written: object, value: object) -> None:
    assert reader(written) == value


@pytest.mark.parametrize(
    ("reader", "written"),
    [
        (r.duration(), "5"),
        (r.duration(), "\N{ARABIC-INDIC DIGIT FIVE}s"),
        (r.duration(), "1.5h"),
        (r.duration(), 5),
        (r.duration("1s"), "0s"),
        (r.size("1K", "10G"), "25m"),
        (r.size("1K", "10G"), "20G"),
        (r.rate, "0/1m"),
        (r.rate, "30/0s"),
        (r.rate, "30/"),
        (r.lockout, "0 in 15m"),
        (r.lockout, "4 in 0s"),
        (r.integer(0, 1), True),
        (r.integer(0, 1), 10**100),
        (r.boolean, 1),
        (r.domain_name, "a" * 64 + ".example"),
        (r.domain_name, "-a.example"),
        (r.domain_name, "corp.example:25"),
        (r.domain_name, "corp.123"),
        (r.domain_name, "\N{FULLWIDTH COMMERCIAL AT}.example"),
        (r.mail_domain, "**"),
        (r.mail_domain, "*."),
        (r.mail_address, "alice"),
        (r.mail_address, "<alice@corp.example>"),
        (r.mail_address, "alice@corp.example>\r\nRCPT TO:<x"),
        (r.mail_address, "a b@corp.example"),
        (r.sender_pattern, "corp.example"),
        (r.sender_pattern, "*@*.*.example"),
        (r.sender_pattern, "@corp.example"),
        (r.sender_rewrite, "a*@corp.example"),
        (r.sender_rewrite, "*@"),
        (r.address_literal, "192.0.2.1:25"),
        (r.dns_server, "dns.example:53"),
        (r.deliver, "lmtp://mail.example"),
        (r.deliver, "lmtp+unix://"),
        (r.deliver, "lmtp+unix:///" + "x" * 107),
        (r.deliver, "DROP"),
        (r.literal_port, "127.0.0.1"),
        (r.literal_port, "localhost:8025"),
        (r.url("ldaps"), "http://x"),
        (r.url("ldaps"), "ldaps://"),
        (r.text, "a\x85b"),
        (r.text, "a\u2028b"),
    ],
)
def test_refuses_and_says_what_would_be_right(reader: r.Reader[Any], written: object) -> None:
    with pytest.raises(Wrong) as raised:
        reader(written)
    for _, text in raised.value.parts:
        assert text.isprintable()
        assert any(word in text for word in ("write", "right", "is a number and", "is a count and"))


@pytest.mark.parametrize(
    ("written", "entry"),
    [
        ("192.0.2.7", HostEntry("192.0.2.7", ip_network("192.0.2.7/32"))),
        ("198.51.100.0/24", HostEntry("198.51.100.0/24", ip_network("198.51.100.0/24"))),
        ("198.51.100.0/255.255.255.0", HostEntry("198.51.100.0/255.255.255.0", ip_network("198.51.100.0/24"))),
        ("2001:db8::/32", HostEntry("2001:db8::/32", ip_network("2001:db8::/32"))),
        ("::1", HostEntry("::1", ip_network("::1/128"))),
        ("0.0.0.0/0", HostEntry("0.0.0.0/0", ip_network("0.0.0.0/0"))),
        # IPv4-mapped clients count as IPv4, so must the entries.
        ("::ffff:192.0.2.7", HostEntry("::ffff:192.0.2.7", ip_network("192.0.2.7/32"))),
        ("::ffff:192.0.2.0/120", HostEntry("::ffff:192.0.2.0/120", ip_network("192.0.2.0/24"))),
        ("::ffff:0:0/96", HostEntry("::ffff:0:0/96", ip_network("0.0.0.0/0"))),
        ("::/0", HostEntry("::/0", ip_network("::/0"))),
        ("Printer.Corp.Example", HostEntry("Printer.Corp.Example", name="printer.corp.example")),
        ("*.Corp.Example", HostEntry("*.Corp.Example", name="corp.example", wildcard=True)),
        ("*.bücher.example", HostEntry("*.bücher.example", name="xn--bcher-kva.example", wildcard=True)),
    ],
)
def test_host_entries(written: str, entry: HostEntry) -> None:
    assert r.host_entry(written) == entry


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [
        ("Mail.Example", "mail.example", None),
        ("mail.example:587", "mail.example", 587),
        ("mail.example.:587", "mail.example", 587),
        ("192.0.2.1", "192.0.2.1", None),
        ("192.0.2.1:2525", "192.0.2.1", 2525),
        ("[192.0.2.1]", "192.0.2.1", None),
        ("[192.0.2.1]:25", "192.0.2.1", 25),
        ("[2001:db8::1]:25", "2001:db8::1", 25),
        ("[IPv6:2001:db8::1]:25", "2001:db8::1", 25),
        ("bücher.example", "xn--bcher-kva.example", None),
    ],
)
def test_next_hops(written: str, host: str, port: int | None) -> None:
    assert r.next_hop(written) == NextHop(written, host, port)


@pytest.mark.parametrize(
    "written",
    ["", ":25", "[]:25", "[mail.example]", "mail.example:", "[::1", "::1", "a b", "mail.example:65536", "1.2"],
)
def test_bad_next_hops(written: str) -> None:
    with pytest.raises(Wrong):
        r.next_hop(written)


def test_each_wrong_entry_of_a_list_is_told() -> None:
    with pytest.raises(Wrong) as raised:
        r.mapped(r.listed(r.boolean))({"a": [True, 1], "b c": [2], "d": 3})
    assert [suffix for suffix, _ in raised.value.parts] == [".a[1]", '."b c"[0]', ".d"]
