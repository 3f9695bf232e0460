"""Sources: what vouches for accounts, as the settings and the host have it."""

from __future__ import annotations

import dataclasses
import threading
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.task import Clock

from relayd.auth import AccountsFile, Password, Sources
from relayd.auth import sources as module
from relayd.events import Events
from relayd.model import Client, Peer
from relayd.settings import Accounts, Console, Server, Settings
from tests.unit.directory.conftest import fired
from tests.unit.test_resolver import ThreadedClock

SETTINGS = Settings(Path("relayd.toml"), Server("relay.example", Path("state")), Console(Path("socket")))


class Acceptor:
    """Of keys that whoever asks may read."""

    keytab = "/etc/krb5.keytab"

    def __init__(self, keytab: Path | None) -> None:
        assert keytab is None


@pytest.mark.parametrize("may_read", [True, False])
def test_keys_of_the_system_count_when_who_relayd_becomes_may_read_them(
    monkeypatch: pytest.MonkeyPatch, may_read: bool
) -> None:
    """root reads them and makes the sources; what is offered is asked of another user."""
    monkeypatch.setattr(module, "KerberosAcceptor", Acceptor)
    monkeypatch.setattr(module, "system_keytab", lambda: True)
    monkeypatch.setattr(module, "kerberos_missing", lambda: "")
    events = Events()
    seen: list[Any] = []
    events.subscribe(lambda _, event: seen.append(event))
    sources = Sources(SETTINGS, None, Clock(), events)
    asked: list[Path] = []

    def asking(file: Path) -> bool:
        asked.append(file)
        return may_read

    sources.open(asking)
    assert asked == [Path("/etc/krb5.keytab")]
    assert (sources.kerberos is not None) == may_read
    assert [event.text for event in seen] == (
        [] if may_read else ["is off: keytab /etc/krb5.keytab cannot be read by the user that relayd runs as"]
    )


def test_who_guesses_at_passwords_keeps_no_ticket_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(SETTINGS, accounts=Accounts(tmp_path / "accounts.json"))
    go_on = threading.Event()
    monkeypatch.setattr(AccountsFile, "verify", lambda *_: go_on.wait(30) and None)
    clock = ThreadedClock()
    sources = Sources(settings, None, clock, Events())
    client = Client(Peer(ip_address("192.0.2.7")), "smtp")
    _, passwords = sources.checkers
    guesses = [passwords.requestAvatarId(Password(b"nobody%d" % number, b"x", "PLAIN", client)) for number in range(10)]
    try:
        assert clock.result(fired(sources.tickets.run(str, "opened"))) == "opened"
    finally:
        go_on.set()
    for guess in guesses:
        with pytest.raises(UnauthorizedLogin):
            clock.result(fired(guess))
    clock.result(fired(sources.close()))
