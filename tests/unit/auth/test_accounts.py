"""The accounts file: what is written, what is verified, what is refused."""

import json
import os
import stat
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from relayd.auth import AccountsFile, AccountsFileError

#: As cheap as argon2 allows: its cost is not what is tested.
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
def accounts(tmp_path: Path) -> AccountsFile:
    return AccountsFile(tmp_path / "accounts.json", CHEAP)


def test_no_file_is_no_accounts(accounts: AccountsFile) -> None:
    assert accounts.accounts() == {}
    assert accounts.verify("alice", "secret") is None


def test_an_added_account_is_verified_in_any_case_of_its_name(accounts: AccountsFile) -> None:
    accounts.add("Alice", "secret", ("Alice@Corp.example",), ("App Senders",))
    found = accounts.verify("aLICE", "secret")
    assert found is not None
    assert (found.name, found.addresses, found.groups) == ("Alice", ("alice@corp.example",), ("App Senders",))


@pytest.mark.parametrize("password", ["", "Secret", "secret ", "secret\0"])
def test_any_other_password_is_wrong(accounts: AccountsFile, password: str) -> None:
    accounts.add("alice", "secret", (), ())
    assert accounts.verify("alice", password) is None


def test_names_and_passwords_are_compared_by_saslprep(accounts: AccountsFile) -> None:
    accounts.add("jürgen", "pass\u00adwörd", (), ())  # a soft hyphen maps to nothing, RFC 4013 2.1
    assert accounts.verify("ju\u0308rgen", "passwo\u0308rd") is not None


def test_the_file_holds_no_password_and_is_the_owners_alone(accounts: AccountsFile) -> None:
    accounts.add("alice", "correct horse", (), ())
    assert "correct horse" not in accounts.file.read_text()
    assert "$argon2id$" in accounts.file.read_text()
    assert stat.S_IMODE(accounts.file.stat().st_mode) == 0o600
    assert os.listdir(accounts.file.parent) == [accounts.file.name]


def test_a_change_by_another_process_is_seen(accounts: AccountsFile) -> None:
    accounts.add("alice", "one", (), ())
    assert accounts.verify("alice", "one")
    AccountsFile(accounts.file, CHEAP).add("alice", "two", (), ())
    assert accounts.verify("alice", "one") is None
    assert accounts.verify("alice", "two")


def test_removing(accounts: AccountsFile) -> None:
    accounts.add("alice", "secret", (), ())
    assert accounts.remove("ALICE")
    assert not accounts.remove("alice")
    assert accounts.verify("alice", "secret") is None


@pytest.mark.parametrize("name", ["", "CORP\\alice", "a:b", "a/b", "bell\a", "x" * 256])
def test_names_that_cannot_be(accounts: AccountsFile, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        accounts.add(name, "secret", (), ())
    assert not accounts.file.exists()


@pytest.mark.parametrize("text", ["x" * 513, "a" + "\u0316\u0300" * 30000, "\ufdfa" * 100, "\ufdfa" * 20000])
def test_what_nobody_types_is_no_name_and_no_password(accounts: AccountsFile, text: str) -> None:
    accounts.add("alice", "x" * 512, (), ())
    assert accounts.verify("alice", "x" * 512)
    assert accounts.verify("alice", text) is None
    assert accounts.verify(text, "secret") is None
    with pytest.raises(ValueError, match="more than 512 characters"):
        accounts.add("alice", text, (), ())
    with pytest.raises(ValueError, match="more than 512 characters"):
        accounts.add(text, "secret", (), ())


def test_an_empty_password_is_no_password(accounts: AccountsFile) -> None:
    with pytest.raises(ValueError, match="empty"):
        accounts.add("alice", "", (), ())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"accounts": []}', '{"accounts": {"a": {}}}', '{"accounts": {"a": 1}}', "\0"]
)
def test_a_file_that_is_no_accounts_file_is_named(accounts: AccountsFile, text: str) -> None:
    accounts.file.write_text(text)
    with pytest.raises(AccountsFileError, match=r"accounts\.json: not an accounts file"):
        accounts.verify("alice", "secret")


def test_a_damaged_hash_lets_nobody_in(accounts: AccountsFile) -> None:
    accounts.add("alice", "secret", (), ())
    document = json.loads(accounts.file.read_text())
    document["accounts"]["alice"]["password"] = "$argon2id$broken"
    accounts.file.write_text(json.dumps(document))
    assert accounts.verify("alice", "secret") is None


def test_a_directory_in_the_files_place(accounts: AccountsFile) -> None:
    accounts.file.mkdir()
    with pytest.raises(AccountsFileError, match="directory"):
        accounts.accounts()
