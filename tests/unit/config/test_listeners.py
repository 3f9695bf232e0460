"""What listeners inherit and override, and the names of the rules that come of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as File

from relayd.config import Loaded
from relayd.settings import AllowMode, TlsMode

Load = Callable[..., Loaded]

TEXT = """\
[authentication]
anonymous = false
max_failures = 5

[access]
list = ["192.0.2.0/24"]

[relay]
list = ["198.51.100.7"]
groups = ["Staff"]

[tls]
minimum = "1.3"

[limits]
recipients = 7

[[listener]]
name = "smtp"

[[listener]]
name = "printers"
address = "0.0.0.0"
port = 2525
tls = "none"
anonymous = true
minimum = "1.0"
recipients = 3
[listener.access]
allow = "only"
[listener.relay]
groups = []
"""


def test_without_a_listener_there_is_the_default_one(config: Load) -> None:
    (listener,) = config('[relay]\nlist = ["192.0.2.1"]\n').settings.listeners
    assert (listener.name, listener.address, listener.port, listener.tls) == ("smtp", "::", 25, TlsMode.STARTTLS)
    assert [entry.text for entry in listener.relay.list] == ["192.0.2.1"]
    assert listener.relay.origin == "relay"


def test_what_is_absent_is_inherited(config: Load) -> None:
    settings = config(TEXT).settings
    listener = settings.listeners[0]
    assert listener.authentication == settings.authentication
    assert listener.access == settings.access
    assert listener.relay == settings.relay
    assert listener.tls_settings == settings.tls
    assert listener.limits == settings.limits
    assert (listener.authentication.anonymous, listener.limits.recipients) == (False, 7)
    assert (listener.authentication.origin, listener.access.origin, listener.relay.origin) == (
        "authentication",
        "access",
        "relay",
    )


def test_each_key_may_be_overridden_alone(config: Load) -> None:
    listener = config(TEXT).settings.listeners[1]
    assert (listener.authentication.anonymous, listener.authentication.max_failures) == (True, 5)
    assert (listener.limits.recipients, listener.tls_settings.minimum) == (3, "1.0")
    assert listener.access.allow is AllowMode.ONLY
    assert [entry.text for entry in listener.access.list] == ["192.0.2.0/24"]
    assert listener.relay.groups == ()
    assert [entry.text for entry in listener.relay.list] == ["198.51.100.7"]


def test_rules_carry_the_name_of_the_listener_that_overrides(config: Load) -> None:
    settings = config(TEXT).settings
    listener = settings.listeners[1]
    assert listener.origin == "listener[1]"
    assert listener.authentication.origin == "listener[1]"
    assert listener.access.origin == "listener[1].access"
    assert listener.relay.origin == "listener[1].relay"
    assert settings.lines["listener[1].access.allow"] == 30
    # What the listener's own table inherits is found under its name, where it was written.
    assert settings.lines["listener[1].access.list[0]"] == 6
    assert settings.lines["listener[1].relay.list[0]"] == 9
    assert "listener[1].relay.groups[0]" not in settings.lines


def test_only_what_was_written_has_a_line(config: Load) -> None:
    lines = config("[relay]\nauthenticated = false\n").settings.lines
    assert dict(lines) == {"relay": 1, "relay.authenticated": 2}


def test_paths_start_from_the_folder_of_the_file(config: Load, tmp_path: File) -> None:
    settings = config('[server]\nstate = "../var"\n[log]\nfile = "relayd.log"\n').settings
    assert settings.server.state == tmp_path.parent / "var"
    assert settings.log.file == tmp_path / "relayd.log"


def test_overrides_stand_in_place_of_what_is_written(config: Load, tmp_path: File) -> None:
    overrides = {"server.state": str(tmp_path / "a"), "delivery.port": 2525}
    settings = config('[server]\nstate = "b"\n', overrides=overrides).settings
    assert settings.server.state == tmp_path / "a"
    assert settings.delivery.port == 2525


def test_a_wildcard_completes_no_address(config: Load) -> None:
    settings = config('[[domain]]\nname = "*.corp.example"\n[[domain]]\nname = "corp.example"\n').settings
    assert settings.first_local is settings.domains[1]
