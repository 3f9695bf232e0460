"""Sources: what vouches for accounts, as the settings and the host have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from relayd.auth import Sources
from relayd.auth import sources as module
from relayd.events import Events
from relayd.settings import Console, Server, Settings

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
