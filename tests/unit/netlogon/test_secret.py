"""The machine account's secret: read anew, and not hammered with."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.task import Clock

from relayd.netlogon.faults import MachineFault
from relayd.netlogon.secret import FIRST_REST, LONGEST_REST, Secret


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "secret"
    made.write_bytes(b"first\n")
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def secret(file: Path, clock: Clock) -> Secret:
    return Secret(file, clock.seconds)


def test_it_is_read_each_time(secret: Secret, file: Path) -> None:
    assert secret.read() == b"first"
    file.write_text("zwölf\r\n")
    assert secret.read() == "zwölf".encode()


@pytest.mark.parametrize(("octets", "why"), [(b"", "empty"), (b"\n", "empty"), (b"\xff\xfe", "not UTF-8")])
def test_no_secret(secret: Secret, file: Path, octets: bytes, why: str) -> None:
    file.write_bytes(octets)
    with pytest.raises(MachineFault, match=why):
        secret.read()


def test_no_file(secret: Secret, file: Path) -> None:
    file.unlink()
    with pytest.raises(MachineFault, match="No such file"):
        secret.read()


def test_a_refused_one_rests_for_longer_each_time(secret: Secret, clock: Clock) -> None:
    rest = FIRST_REST
    for _ in range(12):
        secret.refused(secret.read(), "access denied")
        with pytest.raises(MachineFault, match="access denied; not tried again yet"):
            secret.read()
        clock.advance(rest - 0.1)
        with pytest.raises(MachineFault):
            secret.read()
        clock.advance(0.2)
        rest = min(rest * 2, LONGEST_REST)
    assert secret.read() == b"first"


def test_another_one_is_tried_at_once(secret: Secret, file: Path) -> None:
    secret.refused(secret.read(), "access denied")
    file.write_bytes(b"second")
    assert secret.read() == b"second"


def test_what_worked_starts_anew(secret: Secret, clock: Clock) -> None:
    for _ in range(5):
        secret.refused(b"first", "access denied")
    secret.worked()
    secret.refused(b"first", "access denied")
    clock.advance(FIRST_REST)
    assert secret.read() == b"first"
