"""What clients ask for, against directory and keytab: each thing that can be wrong has its own words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relayd.auth.keytab import Key, merge
from relayd.auth.service_names import Finding, compare, keytab_names, service_names, with_aliases
from relayd.directory.computer import Account

REALM = "CORP.EXAMPLE"
NAME = "smtp/relay.corp.example"
RELAY = Account("CN=RELAY,DC=corp,DC=example", "RELAY$", principals=(NAME,), encryption=24, kvno=3)
OTHER = replace(RELAY, dn="CN=OTHER,DC=corp,DC=example", name="OTHER$")


def keys(*names: str, kvno: int = 3, enctypes: tuple[int, ...] = (18, 17), realm: str = REALM) -> tuple[Key, ...]:
    spelled = names or keytab_names(NAME)
    return tuple(Key(f"{name}@{realm}", kvno, enctype, b"key") for name in spelled for enctype in enctypes)


def found(accounts: tuple[Account, ...] = (RELAY,), held: tuple[Key, ...] | None = None, name: str = NAME) -> Finding:
    (finding,) = compare([name], accounts, keys() if held is None else held, REALM)
    return finding


def test_names_of_a_host() -> None:
    assert service_names(["relay.corp.example"], web=False) == (
        "smtp/relay.corp.example",
        "SMTPSVC/relay.corp.example",
        "smtp/relay",
        "SMTPSVC/relay",
    )
    assert service_names(["relay.corp.example", "relay"], web=True)[2::3] == ("HTTP/relay.corp.example", "HTTP/relay")


def test_a_keytab_spells_smtp_in_two_ways() -> None:
    assert keytab_names(NAME) == (NAME, "SMTP/relay.corp.example")
    assert keytab_names("SMTPSVC/relay") == ("SMTPSVC/relay",)


def test_nothing_is_wrong() -> None:
    finding = found()
    assert finding.faults == ()
    assert finding.accounts == (RELAY,)
    assert {key.enctype for key in finding.keys} == {17, 18}


def test_the_directory_ignores_case() -> None:
    assert found((replace(RELAY, principals=("SMTP/Relay.corp.example",)),)).faults == ()


@pytest.mark.parametrize(
    ("accounts", "held", "fault"),
    [
        ((), keys(), "missing in the directory: no account has it"),
        (
            (RELAY, OTHER),
            keys(),
            "duplicate: CN=RELAY,DC=corp,DC=example and CN=OTHER,DC=corp,DC=example have it, so nobody gets a ticket",
        ),
        ((replace(RELAY, control=0x1002),), keys(), "RELAY$ is disabled"),
        (
            (RELAY,),
            (),
            "missing in the keytab: SMTP/relay.corp.example@CORP.EXAMPLE, smtp/relay.corp.example@CORP.EXAMPLE",
        ),
        (
            (RELAY,),
            keys(realm="ELSE.EXAMPLE"),
            "missing in the keytab: SMTP/relay.corp.example@CORP.EXAMPLE, smtp/relay.corp.example@CORP.EXAMPLE",
        ),
        (
            (RELAY,),
            keys("SMTP/relay.corp.example"),
            "wrong case: the keytab has SMTP/relay.corp.example@CORP.EXAMPLE, and not "
            "smtp/relay.corp.example@CORP.EXAMPLE",
        ),
        ((RELAY,), keys(kvno=2), "old keys: the keytab has version 2, RELAY$ has 3"),
        (
            (RELAY,),
            keys(kvno=7),
            "version 7 in the keytab, and RELAY$ has 3: the keys are another account's, or this controller does not "
            "know the new ones yet",
        ),
        (
            (RELAY,),
            keys(enctypes=(17,)),
            "tickets come with aes256, for which the keytab has no key; make the keytab anew",
        ),
        (
            (replace(RELAY, encryption=0),),
            keys(),
            "tickets come with rc4, for which the keytab has no key; set msDS-SupportedEncryptionTypes to 24",
        ),
    ],
)
def test_what_is_wrong(accounts: tuple[Account, ...], held: tuple[Key, ...], fault: str) -> None:
    assert found(accounts, held).faults == (fault,)


def test_the_newest_version_counts() -> None:
    finding = found(held=keys(kvno=2) + keys())
    assert finding.faults == ()
    assert {key.kvno for key in finding.keys} == {3}


def test_a_version_that_may_not_be_read_says_nothing() -> None:
    assert found((replace(RELAY, kvno=0),), keys(kvno=9)).faults == ()


def test_whoever_has_host_has_http() -> None:
    holder = replace(RELAY, principals=("HOST/relay.corp.example",))
    name = "HTTP/relay.corp.example"
    assert found((holder,), keys(name), name).faults == ()
    assert found((holder,)).faults == ("missing in the directory: no account has it",)
    own = replace(OTHER, principals=(name,))
    assert found((holder, own), keys(name), name).accounts == (own,)
    assert with_aliases([name, NAME]) == (name, "HOST/relay.corp.example", NAME)


def test_names_that_nobody_need_have() -> None:
    (finding,) = compare([NAME], (), (), REALM, optional=[NAME])
    assert finding.faults == ()
    assert finding.note == "no account has it: clients get no ticket for this name"
    (finding,) = compare([NAME], (RELAY,), keys(kvno=1), REALM, optional=[NAME])
    assert finding.faults


def test_a_certificate_that_names_another_relay_too() -> None:
    """Its account has that name, and this keytab need not; one that is this keytab's account must have the key."""
    others = replace(OTHER, principals=(NAME,))
    (finding,) = compare([NAME], (others,), keys(RELAY.name), REALM, optional=[NAME])
    assert finding.faults == ()
    assert finding.note.startswith(f"{OTHER.name} has it")
    (finding,) = compare([NAME], (RELAY,), keys(RELAY.name), REALM, optional=[NAME])
    assert finding.faults[0].startswith("missing in the keytab")


class TestMerge:
    """What a keytab holds after its account got new keys."""

    def test_a_new_password_keeps_the_old_versions_and_what_is_others(self) -> None:
        stranger = keys("HTTP/www.corp.example", kvno=3)
        old = keys(kvno=1) + keys(kvno=2) + stranger
        assert set(merge(old, keys())) == set(old + keys())

    def test_not_for_ever(self) -> None:
        old = tuple(key for kvno in range(1, 20) for key in keys(kvno=kvno))
        assert sorted({key.kvno for key in merge(old, keys(kvno=20))}) == [16, 17, 18, 19, 20]

    def test_a_key_is_replaced(self) -> None:
        stale = tuple(replace(key, secret=b"old") for key in keys())
        assert merge(stale, keys()) == keys()

    def test_a_new_account_has_no_old_keys(self) -> None:
        stranger = keys("HTTP/www.corp.example", kvno=3)
        assert merge(keys(kvno=2) + keys(kvno=9) + stranger, keys(), fresh=True) == stranger + keys()

    def test_keys_that_are_newer_than_the_accounts_are_anothers(self) -> None:
        assert merge(keys(kvno=9), keys()) == keys()

    def test_secrets_are_not_shown(self) -> None:
        assert "key'" not in repr(keys())
