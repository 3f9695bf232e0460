"""Stores in a directory of the test, closed at its end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relayd.events import Event, Events
from relayd.queue import SqliteStore
from tests.unit.queue.loop import Loop, Now

MakeStore = Callable[..., SqliteStore]


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def seen() -> list[Event]:
    """The events that stores of the test emitted."""
    return []


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "queue"


@pytest.fixture
def make_store(loop: Loop, now: Now, directory: Path, seen: list[Event]) -> Iterator[MakeStore]:
    """Makes and opens a store of *directory*, with what else its constructor takes."""
    made: list[SqliteStore] = []

    def make(where: Path = directory, **more: Any) -> SqliteStore:
        events = Events(now)
        events.subscribe(lambda _, event: seen.append(event))
        store = SqliteStore(where, **{"reactor": loop, "clock": now, "events": events, **more})
        made.append(store)
        loop.wait(store.open())
        return store

    yield make
    for store in made:
        loop.wait(store.close())


@pytest.fixture
def store(make_store: MakeStore) -> SqliteStore:
    return make_store()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory of the size that is given; it is gone after the test."""
    place = tmp_path / "mounted"

    def mounted(size: str) -> Path:
        if os.geteuid() != 0:
            pytest.skip("mounts a file system: for root")
        place.mkdir()
        if os.system(f"mount -t tmpfs -o size={size} tmpfs {place} 2>/dev/null"):
            pytest.skip("may not mount")
        return place

    yield mounted
    if os.path.ismount(place):
        os.system(f"umount -l {place}")
