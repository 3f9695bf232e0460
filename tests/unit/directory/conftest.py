"""A fake directory, and a client of it whose threads and connections must be gone at the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import Deferred

from relayd import settings
from relayd.directory import Directory
from relayd.events import Event, Events
from relayd.model import Fault, IPAddress, Reply
from tests.lab.ca import LabCA, Leaf
from tests.lab.net import wait_for
from tests.unit.directory.server import SEARCHER, SEARCHER_PASSWORD, FakeDirectory
from tests.unit.test_resolver import ThreadedClock

T = TypeVar("T")

Srv = tuple[tuple[int, int, str, int], ...]


class FakeDns:
    """Every name is this machine, unless it is told otherwise."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[IPAddress, ...]] = {}
        self.records: dict[str, Srv] = {}
        self.broken = False

    async def addresses(self, host: str) -> tuple[IPAddress, ...]:
        self._insist()
        return self.known.get(host, (IPv4Address("127.0.0.1"),))

    async def srv(self, name: str) -> Srv:
        self._insist()
        return self.records.get(name, ())

    def _insist(self) -> None:
        if self.broken:
            raise Fault(Reply.of(451, "4.4.3", "DNS did not answer"))


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> LabCA:
    return LabCA(tmp_path_factory.mktemp("directory-ca"))


@pytest.fixture(scope="session")
def leaf(ca: LabCA) -> Leaf:
    return ca.leaf("localhost", "dc1.corp.example")


@pytest.fixture
def server(leaf: Leaf) -> Iterator[FakeDirectory]:
    with FakeDirectory(leaf) as running:
        yield running


@pytest.fixture
def clock() -> ThreadedClock:
    return ThreadedClock()


@pytest.fixture
def dns() -> FakeDns:
    return FakeDns()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_bytes(SEARCHER_PASSWORD + b"\n")
    return file


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


async def fired(deferred: Deferred[T]) -> T:
    """What *deferred* fires with."""
    return await deferred


MakeDirectory = Callable[..., Directory]


@pytest.fixture
def make(
    clock: ThreadedClock, dns: FakeDns, events: list[Event], ca: LabCA, password_file: Path
) -> Iterator[MakeDirectory]:
    """Makes clients; each must leave no thread behind."""
    made: list[Directory] = []

    def make_one(*servers: str, threads: int = 4, waiting: int = 8, **more: Any) -> Directory:
        told = Events()
        told.subscribe(lambda at, event: events.append(event))
        defaults = {"ca": ca.path, "bind_user": SEARCHER, "bind_password_file": password_file}
        values = settings.Directory(servers=servers, **{**defaults, **more})
        made.append(Directory(values, dns, clock, told, clock=clock.seconds, threads=threads, waiting=waiting))
        return made[-1]

    yield make_one
    for directory in made:
        clock.result(fired(directory.close()), timeout=30)
    wait_for(lambda: not any("directory" in thread.name for thread in threading.enumerate()), "the threads ended")


@pytest.fixture
def directory(make: MakeDirectory, server: FakeDirectory) -> Directory:
    return make(server.url)
