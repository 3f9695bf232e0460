"""Stores in a directory of the test, closed at its end."""

from __future__ import annotations

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
