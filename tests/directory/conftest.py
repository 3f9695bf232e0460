"""What the directory tests share: a domain controller for the session, and fresh ones for tests that change a domain.

What they need is installed when the first of them is collected, not for other tests, and not within a test's time-out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import packages
from tests.lab.clients import Place
from tests.lab.directory import DirectoryLab
from tests.lab.integrated_clients import inside

StartLab = Callable[[], DirectoryLab]


@functools.cache
def _missing() -> packages.Missing | None:
    try:
        packages.ensure_directory()
        packages.ensure_extras()
    except packages.Missing as missing:
        return missing
    return None


def pytest_pycollect_makemodule(module_path: Path) -> None:
    # Before the import: test modules may import what it installs.
    _missing()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("e2e")
            # ldap3 2.9 verifies names by a function that Python 3.12 no longer has; it brings its own copy for then.
            item.add_marker(pytest.mark.filterwarnings("ignore:ssl.match_hostname:DeprecationWarning"))


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    if missing := _missing():
        raise missing


@pytest.fixture(scope="session")
def lab(_installed: None) -> Iterator[DirectoryLab]:
    """A domain controller that tests share: they look, and lock or change nothing. One to each test worker."""
    with DirectoryLab() as running:
        yield running


@pytest.fixture
def start_lab() -> Iterator[StartLab]:
    """Starts domain controllers that are the test's own; they end with it."""
    started: list[DirectoryLab] = []

    def start() -> DirectoryLab:
        started.append(DirectoryLab())
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def own_lab(start_lab: StartLab) -> DirectoryLab:
    """A domain controller that is the test's own: it may lock accounts, change them, or kill the controller."""
    return start_lab()


@pytest.fixture(scope="module")
def spoilt() -> Iterator[DirectoryLab]:
    """A domain whose accounts may be failed with."""
    with DirectoryLab() as running:
        yield running


@pytest.fixture(scope="module")
def tickets(lab: DirectoryLab) -> Path:
    return lab.kinit("alice")


@pytest.fixture(scope="module")
def alice(lab: DirectoryLab, tickets: Path) -> Place:
    """Where alice has her tickets."""
    return inside(lab, tickets)


@pytest.fixture(scope="module")
def nowhere(lab: DirectoryLab) -> Place:
    """Where nobody has tickets."""
    return inside(lab)


@pytest.fixture(scope="module")
def bob(lab: DirectoryLab) -> tuple[str, str]:
    return "bob", lab.users["bob"]
