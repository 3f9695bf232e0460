"""MTA-STS: the TXT record and the policy file as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.delivery.sts_policy import LONGEST_AGE, Mode, Policy, parsed, published

GOOD = b"version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\nmax_age: 604800\r\n"


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ([b"v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        ([b"v=STSv1;id=1"], "1"),
        ([b"v=STSv1; id=1 ; "], "1"),
        ([b"v=STSv1; other.one=a/b,c; id=1; id=2"], "1"),
        ([b"v=spf1 -all", b"v=STSv1; id=1"], "1"),
        ([b"v=STSv2; id=2", b"v=STSv1; id=1"], "1"),
        # Anything else is no record, and two are none.
        ([], ""),
        ([b"v=STSv1; id=1", b"v=STSv1; id=1"], ""),
        ([b"v=STSv1"], ""),
        ([b"v=STSv1;"], ""),
        ([b"v=stsv1; id=1"], ""),
        ([b" v=STSv1; id=1"], ""),
        ([b"v=STSv1; ID=1"], ""),
        ([b"v=STSv1; id="], ""),
        ([b"v=STSv1; id=a-b"], ""),
        ([b"v=STSv1; id=" + b"1" * 33], ""),
        ([b"v=STSv1; id=1 2"], ""),
        ([b"v=STSv1; id=1; nothing"], ""),
        ([b"v=STSv1; id=1;; x=y"], ""),
        ([b"v=STSv1; id=\xff"], ""),
        ([b"v=STSv1; id=1\n"], ""),
    ],
)
def test_the_record(records: list[bytes], found: str) -> None:
    assert published(records) == found


def test_the_policy() -> None:
    assert parsed(GOOD) == Policy(Mode.ENFORCE, ("mail.example.com", "*.example.net"), 604800)


@pytest.mark.parametrize(
    ("octets", "policy"),
    [
        (GOOD.replace(b"\r", b""), parsed(GOOD)),
        (GOOD.removesuffix(b"\r\n"), parsed(GOOD)),
        (b"\n" + GOOD + b"\r\n \r\n", parsed(GOOD)),
        (GOOD.replace(b"\r\n", b" \t\r\n").replace(b": ", b":"), parsed(GOOD)),
        (GOOD.replace(b"mail.e", b"MAIL.E"), parsed(GOOD)),
        (GOOD + b"x_y.z-1: what: ever \xc3\xa9\n", parsed(GOOD)),
        (GOOD + b"mode: none\nmax_age: 1\nversion: STSv2\nmx: mail.example.com\n", parsed(GOOD)),
        (b"version:STSv1\nmode:none\nmax_age:0", Policy(Mode.NONE, (), 0)),
        (b"max_age: 9999999999\nmx: a\nmode: testing\nversion: STSv1", Policy(Mode.TESTING, ("a",), LONGEST_AGE)),
    ],
)
def test_what_reads_the_same(octets: bytes, policy: Policy) -> None:
    assert parsed(octets) == policy


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"", "version"),
        (b"<html>", "line 1 is no field"),
        (GOOD.replace(b"STSv1", b"STSv2"), "version"),
        (GOOD.replace(b"version", b"Version"), "version"),
        (GOOD.replace(b"enforce", b"Enforce"), "mode"),
        (GOOD.replace(b"mode: enforce\r\n", b""), "mode"),
        (GOOD.replace(b"604800", b"1e9"), "max_age"),
        (GOOD.replace(b"604800", b"-1"), "max_age"),
        (GOOD.replace(b"604800", b"12345678901"), "max_age"),
        (GOOD.replace(b"max_age: 604800", b"max_age:"), "max_age"),
        (GOOD.replace(b"604800", "٣".encode()), "max_age"),
        (GOOD.replace(b"*.example.net", b"*"), "mx"),
        (GOOD.replace(b"*.example.net", b"a.*.example.net"), "mx"),
        (GOOD.replace(b"*.example.net", b"*a.example.net"), "mx"),
        (GOOD.replace(b"*.example.net", b"[192.0.2.1]"), "mx"),
        (GOOD.replace(b"*.example.net", b""), "mx"),
        (GOOD.replace(b"*.example.net", b"a..b"), "mx"),
        (GOOD.replace(b"mx:", b"m:"), "no mx"),
        (GOOD.replace(b"mode:", b"mode :"), "line 2"),
        (GOOD.replace(b"\r\n", b"\r"), "version"),
        (GOOD + b"\xff: 1", "UTF-8"),
    ],
)
def test_what_is_no_policy(octets: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parsed(octets)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("mail.example.com", True),
        ("MAIL.example.com.", True),
        ("a.example.net", True),
        ("example.net", False),
        ("a.b.example.net", False),
        ("a.mail.example.com", False),
        ("mail.example.com.evil.example", False),
        ("*.example.net", False),
        ("net", False),
        ("", False),
    ],
)
def test_which_hosts_it_allows(host: str, allowed: bool) -> None:
    assert parsed(GOOD).allows(host) is allowed


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: GOOD + text.encode()))
def test_any_octets_are_a_policy_or_none(octets: bytes) -> None:
    try:
        policy = parsed(octets)
    except ValueError:
        return
    assert parsed(str(policy).encode()) == policy


@given(st.lists(st.binary(max_size=60).map(lambda octets: b"v=STSv1; id=" + octets), max_size=2))
def test_any_record_has_an_id_or_none(records: list[bytes]) -> None:
    found = published(records)
    assert found == "" or (found.isalnum() and len(found) <= 32)
