"""The configuration that `make run` uses, and the next steps that it shows in comments."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path as File

from relayd.config import load
from relayd.settings import DomainKind

SAMPLE = File(__file__).parents[3] / "etc" / "relayd.toml"


def test_starts_without_root_or_directory() -> None:
    settings = load(SAMPLE).settings
    (listener,) = settings.listeners
    assert ip_address(listener.address).is_loopback
    assert listener.port == 2525
    assert settings.server.state == SAMPLE.parents[1] / "var"
    assert settings.accounts.file is not None
    assert settings.accounts.file.is_relative_to(settings.server.state)
    assert [(d.name, d.kind, d.deliver) for d in settings.domains] == [("relayd.example", DomainKind.LOCAL, None)]
    assert listener.relay.list == ()


def test_what_the_comments_show_is_right_but_for_the_files_that_are_to_be_made(
    faults: Callable[[str], dict[str, str]],
) -> None:
    shown = re.sub(r"^# (?=\[|\w+ = )", "", SAMPLE.read_text(), flags=re.MULTILINE)
    assert "\n[[credential]]" in shown
    found = faults(shown)
    assert found.keys() == {"tls.certificate", "tls.key", "credential[0].password_file"}
    assert all("there is no file" in text for text in found.values())
