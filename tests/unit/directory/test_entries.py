"""Entries as values."""

import pytest

from relayd.directory.entries import AccountState, Entry, group, interval, sid_octets, sid_text, user

SID = "S-1-5-21-1-2-3-1001"
NOW = 1_700_000_000.0


def entry(**attributes: str | list[str]) -> Entry:
    values = {
        name.lower(): tuple(v.encode() for v in ([value] if isinstance(value, str) else value))
        for name, value in attributes.items()
    }
    return Entry("CN=alice,DC=corp,DC=example", values)


@pytest.mark.parametrize("text", [SID, "S-1-5-32-545", "S-1-1-0", "S-1-5", "S-1-281474976710655-4294967295"])
def test_sids_there_and_back(text: str) -> None:
    assert sid_text(sid_octets(text)) == text


@pytest.mark.parametrize("text", ["", "S-1", "S-2-5-32", "alice", "S-1-x", "S-1-5-4294967296", "S-1--5", "S-1-5-"])
def test_what_is_no_sid(text: str) -> None:
    with pytest.raises(ValueError, match="SID"):
        sid_octets(text)


@pytest.mark.parametrize("raw", [b"", b"\1", b"\1\1\0\0\0\0\0\5", b"\2\0\0\0\0\0\0\5", b"\1\0\0\0\0\0\0\5\0"])
def test_octets_that_are_no_sid(raw: bytes) -> None:
    assert sid_text(raw) == ""


def test_addresses_are_mail_and_smtp_proxies_once_in_lower_case() -> None:
    proxies = ["SMTP:Alice@Corp.example", "smtp:sales@corp.example", "X500:/o=corp/cn=a@b", "sip:alice@corp.example"]
    found = user(entry(mail="alice@corp.example", proxyAddresses=proxies), entry(), NOW)
    assert found.addresses == ("alice@corp.example", "sales@corp.example")


def test_the_primary_group_is_one_of_the_groups() -> None:
    one = Entry("CN=a", {"objectsid": (sid_octets(SID),), "primarygroupid": (b"513",)})
    own = Entry("CN=a", {"tokengroups": (sid_octets("S-1-5-32-545"), b"junk")})
    assert user(one, own, NOW).group_sids == ("S-1-5-32-545", "S-1-5-21-1-2-3-513")


@pytest.mark.parametrize(
    ("attributes", "computed", "state"),
    [
        ({}, "", AccountState()),
        ({"userAccountControl": "514"}, "", AccountState(disabled=True)),
        ({"accountExpires": "0"}, "", AccountState()),
        ({"accountExpires": "9223372036854775807"}, "", AccountState()),
        ({"accountExpires": "125911584000000000"}, "", AccountState(expired=True)),
        ({"accountExpires": "999999999999999999"}, "", AccountState()),
        ({"pwdLastSet": "0"}, "8388608", AccountState(must_change=True)),
        ({"pwdLastSet": "1"}, "8388608", AccountState(password_expired=True)),
        ({}, "16", AccountState(locked=True)),
    ],
)
def test_states(attributes: dict[str, str], computed: str, state: AccountState) -> None:
    own = Entry("CN=a", {"msds-user-account-control-computed": (computed.encode(),)} if computed else {})
    found = user(entry(**attributes), own, NOW)
    assert found.state == state
    assert found.state.good is (state == AccountState())


# NOW is Tuesday, 2023-11-14 22:13:20 UTC: hour 70 of the week.
@pytest.mark.parametrize(
    ("hours", "off"),
    [
        (b"", False),
        (bytes(21), True),
        (b"\xff" * 21, False),
        (bytes(8) + b"\x40" + bytes(12), False),
        (b"\xff" * 8 + b"\xbf" + b"\xff" * 12, True),
        (b"\0", False),  # not 168 bits
    ],
)
def test_logon_hours(hours: bytes, off: bool) -> None:
    one = Entry("CN=a", {"logonhours": (hours,)} if hours else {})
    assert user(one, entry(), NOW).state == AccountState(off_hours=off)


def test_a_state_that_may_not_be_read_is_not_known_to_be_good() -> None:
    seen = {"userAccountControl": "512", "accountExpires": "0"}
    own = entry(**{"msDS-User-Account-Control-Computed": "0"})
    assert user(entry(**seen), own, NOW).state_known
    for hidden in seen:
        assert not user(entry(**{name: value for name, value in seen.items() if name != hidden}), own, NOW).state_known
    assert not user(entry(**seen), entry(), NOW).state_known


@pytest.mark.parametrize("name", ["S-1-5-21-1-2-3-512", "s-1-5-32-544", "CN=Admins,DC=corp", "CORP\\Admins", "a=b"])
def test_a_group_cannot_pass_for_another_by_its_name(name: str) -> None:
    assert group(entry(sAMAccountName=name)).name == ""
    assert group(entry(sAMAccountName="App Senders")).name == "App Senders"


def test_intervals() -> None:
    assert interval(-18_000_000_000) == 1800.0
    assert interval(0) == interval(5) == 0.0
