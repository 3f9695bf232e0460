"""Integrated authentication is on by default, and off, with one line that says why, where it cannot be served."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path as File

import pytest

from relayd.config import Loaded, integrated

Load = Callable[..., Loaded]
Faults = Callable[[str], dict[str, str]]

DIRECTORY = "[directory]\ndomain = 'corp.example'\nbind_user = 's'\nbind_password_file = 'secret'\n"
NETLOGON = "[ntlm]\ncomputer = 'RELAY01$'\nsecret_file = 'secret'\n" + DIRECTORY
KEYTAB = "[kerberos]\nkeytab = 'keytab'\n"


class Host:
    """What is installed on the host that the configuration is read on."""

    def __init__(self, folder: File, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self.modules = {"gssapi", "impacket"}
        self.programs: set[str] = set()
        for name in ("secret", "keytab"):
            (folder / name).write_text("x")
            (folder / name).chmod(0o600)
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name: (
                (object() if name in self.modules else None) if name in ("gssapi", "impacket") else found(name)
            ),
        )
        monkeypatch.setattr(shutil, "which", lambda name: name if name in self.programs else None)
        monkeypatch.setattr(integrated, "SYSTEM_KEYTAB", folder / "system.keytab")
        monkeypatch.setattr(integrated, "WINBIND_PIPES", (folder / "pipe",))

    def has(self, *names: str) -> None:
        for name in names:
            (self._folder / name).write_text("")


@pytest.fixture
def host(tmp_path: File, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def told(loaded: Loaded) -> list[tuple[int, str]]:
    return [(warning.line, warning.key) for warning in loaded.warnings]


def served(loaded: Loaded) -> tuple[bool, bool, str]:
    """Integrated, NTLM, and by whom; the same on each listener."""
    settings = loaded.settings
    for listener in settings.listeners:
        assert listener.authentication.integrated == settings.authentication.integrated
        assert listener.authentication.ntlm == settings.authentication.ntlm
    return settings.authentication.integrated, settings.authentication.ntlm, settings.ntlm.backend


class TestWhatIsThere:
    def test_nothing(self, config: Load, host: Host) -> None:
        loaded = config("[server]\n[authentication]\nanonymous = false\n")
        assert served(loaded) == (False, False, "")
        assert told(loaded) == [(2, "authentication.integrated")]
        assert "no keytab" in loaded.warnings[0].text

    def test_nothing_and_nothing_wanted(self, config: Load, host: Host) -> None:
        assert config("[authentication]\nintegrated = false\n").warnings == ()

    def test_nothing_where_it_is_written(self, config: Load, host: Host) -> None:
        loaded = config("[authentication]\nintegrated = true\n[[listener]]\nintegrated = true\nntlm = true\n")
        assert served(loaded) == (False, False, "")
        assert told(loaded) == [(2, "authentication.integrated"), (4, "listener[0].integrated")]

    def test_a_keytab(self, config: Load, host: Host) -> None:
        loaded = config(KEYTAB)
        assert served(loaded) == (True, False, "")
        assert [(warning.key, "[ntlm]" in warning.text) for warning in loaded.warnings] == [
            ("authentication.ntlm", True)
        ]

    def test_a_keytab_and_no_ntlm_wanted(self, config: Load, host: Host) -> None:
        assert config(KEYTAB + "[authentication]\nntlm = false\n").warnings == ()

    def test_the_systems_keytab(self, config: Load, host: Host) -> None:
        host.has("system.keytab")
        assert served(config("[authentication]\nntlm = false\n")) == (True, False, "")

    def test_the_systems_keytab_without_the_extra(self, config: Load, host: Host) -> None:
        host.has("system.keytab")
        host.modules.clear()
        loaded = config("")
        assert served(loaded) == (False, False, "")
        assert "relayd[kerberos]" in loaded.warnings[0].text

    def test_a_computer(self, config: Load, host: Host) -> None:
        loaded = config(KEYTAB + NETLOGON)
        assert served(loaded) == (True, True, "netlogon")
        assert loaded.warnings == ()

    def test_a_computer_and_no_keytab(self, config: Load, host: Host) -> None:
        loaded = config(NETLOGON)
        assert served(loaded) == (True, True, "netlogon")
        assert [warning.key for warning in loaded.warnings] == ["authentication.integrated"]

    def test_winbind_that_runs(self, config: Load, host: Host) -> None:
        host.programs.add("ntlm_auth")
        assert served(config(KEYTAB)) == (True, False, "")
        host.has("pipe")
        assert served(config(KEYTAB)) == (True, True, "winbind")

    def test_accounts_are_asked_when_it_is_written_alone(self, config: Load, host: Host) -> None:
        assert served(config(KEYTAB + "[accounts]\nfile = 'accounts.json'\n")) == (True, False, "")
        written = KEYTAB + "[accounts]\nfile = 'accounts.json'\n[ntlm]\nbackend = 'accounts'\n"
        assert served(config(written)) == (True, True, "accounts")


class TestWhatIsMissing:
    def test_parts_of_netlogon(self, faults: Faults, host: Host) -> None:
        found = faults("[ntlm]\nbackend = 'netlogon'\n")
        assert set(found) == {"ntlm.computer", "ntlm.secret_file", "ntlm.backend"}
        assert set(faults("[ntlm]\ncomputer = 'RELAY01$'\n" + DIRECTORY)) == {"ntlm.secret_file"}

    def test_the_extra(self, faults: Faults, host: Host) -> None:
        host.modules.clear()
        assert "relayd[netlogon]" in faults(NETLOGON)["ntlm.computer"]
        assert "relayd[kerberos]" in faults(KEYTAB)["kerberos.keytab"]

    def test_winbind(self, faults: Faults, host: Host) -> None:
        assert "apt-get install winbind" in faults("[ntlm]\nbackend = 'winbind'\n")["ntlm.backend"]

    def test_accounts(self, faults: Faults, host: Host) -> None:
        assert "[accounts] file" in faults("[ntlm]\nbackend = 'accounts'\n")["ntlm.backend"]
