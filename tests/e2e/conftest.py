"""What the end-to-end tests share: a lab CA, a recording sink, and relays with one configuration each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import packages
from tests.lab.ca import LabCA, Leaf
from tests.lab.relay import Relay
from tests.lab.sink import RecordingSink

StartRelay = Callable[..., Relay]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("e2e")


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    packages.ensure()


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> LabCA:
    return LabCA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def leaf(ca: LabCA) -> Leaf:
    return ca.leaf("localhost", "127.0.0.1", "relay.example")


@pytest.fixture
def sink() -> Iterator[RecordingSink]:
    with RecordingSink() as running:
        yield running


@pytest.fixture
def start_relay(tmp_path: Path) -> Iterator[StartRelay]:
    """Starts relays; each ends with the test, and must have ended well."""
    started: list[Relay] = []

    def start(config: str, *arguments: str, ready: bool = True) -> Relay:
        directory = tmp_path / f"relay{len(started)}"
        directory.mkdir()
        relay = Relay(directory, config, arguments)
        started.append(relay)
        return relay.start(ready=ready)

    yield start
    for relay in started:
        if relay.process is not None and relay.process.poll() is None:
            relay.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pickup folder."""
    folder = tmp_path / "pickup"
    folder.mkdir()
    return folder
