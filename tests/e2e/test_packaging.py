"""What a newcomer types: ``pip install .`` or ``pip install -e .`` in a fresh virtual environment, then both commands.

The checkout is copied first, so that building leaves nothing behind in it; every command runs outside both.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Environment:
    """A virtual environment of its own, and a directory from which nothing can be imported by chance."""

    directory: Path
    elsewhere: Path

    def run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        return subprocess.run(
            [self.directory / "bin" / program, *arguments],
            cwd=self.elsewhere,
            env={name: value for name, value in os.environ.items() if name not in hidden},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def install(self, *arguments: str | Path) -> None:
        done = self.run("python", "-m", "pip", "--disable-pip-version-check", "install", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def copied_tree(target: Path) -> Path:
    """The files that git knows, as they are now; without git, all that is not written by running things."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        for name in filter(None, listed.stdout.split("\0")):
            source, copy = ROOT / name, target / name
            if source.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, copy)
    else:
        unwanted = shutil.ignore_patterns(".*", "var", "build", "dist", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, target, ignore=unwanted, dirs_exist_ok=True)
    return target


def fresh(directory: Path) -> Environment:
    elsewhere = directory / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True, timeout=120)
    return Environment(directory / "venv", elsewhere)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is installed into `plain`."""
    return copied_tree(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def editable_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `editable` points to: a copy of its own, since strict editable links lie in its build/."""
    return copied_tree(tmp_path_factory.mktemp("editable-source"))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Environment:
    environment = fresh(tmp_path_factory.mktemp("plain"))
    environment.install(source)
    return environment


@pytest.fixture(scope="session")
def editable(tmp_path_factory: pytest.TempPathFactory, editable_source: Path) -> Environment:
    environment = fresh(tmp_path_factory.mktemp("editable"))
    environment.install("-e", editable_source)
    return environment


@pytest.fixture(params=["plain", "editable"])
def environment(request: pytest.FixtureRequest) -> Environment:
    """Each way of installing in turn."""
    installed = request.getfixturevalue(request.param)
    assert isinstance(installed, Environment)
    return installed


def test_twistd_lists_relayd(environment: Environment) -> None:
    done = environment.run("twistd", "--help")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("    relayd ")] == ["relayd"]


def test_relayctl_says_its_version(environment: Environment) -> None:
    done = environment.run("relayctl", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    name, _, version = done.stdout.strip().rpartition(" ")
    assert name.startswith("relayctl")
    shown = environment.run("python", "-m", "pip", "show", "relayd").stdout
    assert f"Version: {version}" in shown.splitlines()


def test_twistd_relayd_says_its_options(environment: Environment) -> None:
    done = environment.run("twistd", "relayd", "--help")
    assert done.returncode == 0, done.stderr
    assert all(option in done.stdout for option in ("--config", "--check", "--allow-open-relay"))


def test_an_edit_is_live_where_it_is_editable(editable: Environment, editable_source: Path) -> None:
    module = editable_source / "relayd" / "__init__.py"
    before = module.read_text()
    try:
        module.write_text(before + "\nEDITED = 'yes'\n")
        done = editable.run("python", "-c", "import relayd; print(relayd.EDITED)")
    finally:
        module.write_text(before)
    assert done.stdout.strip() == "yes", done.stderr


def test_the_base_install_compiles_nothing(plain: Environment, source: Path) -> None:
    """Every dependency comes as a wheel."""
    report = plain.elsewhere / "report.json"
    # pip would take what is installed already, and prove nothing.
    plain.install("--dry-run", "--ignore-installed", "--only-binary=:all:", "--quiet", "--report", report, source)
    items = json.loads(report.read_text())["install"]
    urls = {item["metadata"]["name"].lower(): item["download_info"]["url"] for item in items}
    assert urls.pop("relayd").startswith("file:")
    assert {"twisted", "cryptography", "argon2-cffi-bindings", "tree-sitter-toml"} <= set(urls)
    assert [name for name, url in urls.items() if not url.endswith(".whl")] == []


def test_a_sound_configuration_is_0(plain: Environment, source: Path) -> None:
    done = plain.run("twistd", "relayd", "--check", "--config", source / "etc" / "relayd.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].endswith("relayd.toml: sound")


@pytest.mark.parametrize("check", [("--check",), ()], ids=["check", "start"])
def test_a_broken_configuration_is_1_with_a_line_for_each_fault(plain: Environment, check: tuple[str, ...]) -> None:
    # "start" too: a server that cannot read its configuration must not come up, nor fork, nor write twistd.log.
    config = plain.elsewhere / "broken.toml"
    config.write_text('[server]\nhostnam = "relay.example"\n\n[[listener]]\nport = "smtp"\n')
    done = plain.run("twistd", "relayd", "--config", config, *check)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert [line.removeprefix(str(plain.elsewhere) + "/").split(": ")[:2] for line in lines] == [
        ["broken.toml:2", "server.hostnam"],
        ["broken.toml:5", "listener[0].port"],
    ]
    assert not list(plain.elsewhere.glob("twistd.*"))


def test_a_missing_configuration_is_1_with_one_line(plain: Environment) -> None:
    done = plain.run("twistd", "relayd", "--check", "--config", "no-such.toml")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "no-such.toml" in done.stderr


def test_an_open_relay_is_1_unless_it_is_allowed(plain: Environment) -> None:
    config = plain.elsewhere / "open.toml"
    config.write_text(
        '[server]\nhostname = "relay.example"\nstate = "state"\n\n'
        '[[listener]]\naddress = "127.0.0.1"\nport = 0\n\n[relay]\nallow = "all-except"\n'
    )
    arguments = ("relayd", "--check", "--config", config)
    refused = plain.run("twistd", *arguments)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "open relay" in refused.stderr.lower()
    assert "Traceback" not in refused.stderr
    allowed = plain.run("twistd", *arguments, "--allow-open-relay")
    assert (allowed.returncode, allowed.stderr) == (0, "")
