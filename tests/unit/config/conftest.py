"""A configuration for a test is a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as File

import pytest

from relayd.config import ConfigFaults, Loaded, load

Load = Callable[..., Loaded]


@pytest.fixture
def config(tmp_path: File) -> Load:
    """Loads a text as ``relayd.toml`` in an empty folder."""

    def loaded(text: str, **keywords: object) -> Loaded:
        file = tmp_path / "relayd.toml"
        file.write_text(text)
        keywords.setdefault("hostname", lambda: "relay.example")
        return load(file, **keywords)  # type: ignore[arg-type]

    return loaded


@pytest.fixture
def faults(config: Load) -> Callable[[str], dict[str, str]]:
    """The faults of a text: key -> what is said."""

    def found(text: str) -> dict[str, str]:
        with pytest.raises(ConfigFaults) as raised:
            config(text)
        return {fault.key: fault.text for fault in raised.value.faults}

    return found
