"""The systemd unit and the AppArmor profile: well formed, and little is left to whoever breaks in."""

from __future__ import annotations

import subprocess
from pathlib import Path

UNIT = Path(__file__).parents[2] / "etc" / "relayd.service"


def test_it_is_well_formed(tmp_path: Path) -> None:
    copy = tmp_path / "relayd.service"
    copy.write_text(UNIT.read_text().replace("/opt/relayd/bin/twistd", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "relayd" in line]) == (0, [])


def test_its_exposure(tmp_path: Path) -> None:
    """2.0 of 10 at most, by systemd's own count."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", UNIT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_the_apparmor_profile_is_well_formed() -> None:
    profile = UNIT.parent / "apparmor" / "opt.relayd"
    command = ["apparmor_parser", "--skip-kernel-load", "--skip-cache", profile]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
