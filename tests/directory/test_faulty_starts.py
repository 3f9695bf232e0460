"""Starts with keys, secrets or winbind missing: one clear line where it cannot go on, and 454 where it can.

What is found out at the start, and what only once somebody signs in, is decided by whether relayd could recover.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.directory.exchanges import Exchange, ntlm
from tests.directory.joined import MORE_THREADS
from tests.directory.relays import Log, integrated, running
from tests.lab import domain
from tests.lab.directory import DirectoryLab
from tests.lab.footprint import Footprint
from tests.lab.net import wait_for
from tests.lab.raw import Raw
from tests.lab.relay import DEADLINE, Relay
from tests.lab.spoil import empty, fill_with_garbage, put_a_directory
from tests.lab.winbind import among

OWN = """\
[kerberos]
keytab = "{place}/relay.keytab"

[ntlm]
computer = "RELAY01$"
secret_file = "{place}/relay01.secret"
"""

#: What a controller may have counted counts as a failure; not here.
LENIENT = '[authentication]\nlockout = "1000 in 1m"\n'
#: relayd runs so many helpers at most.
HELPERS = 32

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(lab: DirectoryLab) -> Iterator[Path]:
    """A directory that other users may enter, unlike pytest's, with the keys and secrets of a relay that is well."""
    with tempfile.TemporaryDirectory(prefix="relayd-test-") as name:
        place = Path(name)
        place.chmod(0o755)
        for file in ("relay.keytab", "relay01.secret", "svc-search.secret"):
            shutil.copyfile(lab.directory / file, place / file)
            (place / file).chmod(0o600)
        yield place


def config(lab: DirectoryLab, place: Path, own: str = OWN) -> str:
    """For a relay that runs as nobody, to whom all its files belong."""
    nobody = pwd.getpwnam("nobody")
    for file in place.iterdir():
        os.chown(file, nobody.pw_uid, nobody.pw_gid)
    written = integrated(lab, inside='cache = "0s"\ntimeout = "3s"', own=own.format(place=place))
    written = written.replace(f"{lab.directory}/svc-search.secret", f"{place}/svc-search.secret")
    return written.replace("[server]\n", '[server]\nuser = "nobody"\n')


def refusal(relay: Relay) -> str:
    """What it says instead of a start: one line."""
    relay.start(ready=False)
    try:
        assert relay.process is not None
        assert relay.process.wait(DEADLINE) == 1
    finally:
        relay.kill()
    said = [str(event["detail"]) for event in relay.find("fault")] + relay.other_lines
    assert len(said) == 1, (relay.events, relay.other_lines)
    assert "Traceback" not in said[0]
    assert said[0].count("\n") <= 1
    return said[0]


def _hide(file: Path) -> None:
    os.chown(file, 0, 0)


class TestNoStart:
    @pytest.mark.parametrize(
        ("name", "spoil", "why"),
        [
            ("relay.keytab", Path.unlink, "there is no file"),
            ("relay.keytab", empty, "keytab"),
            ("relay.keytab", fill_with_garbage, "keytab"),
            ("relay.keytab", put_a_directory, "is not a file"),
            ("relay.keytab", _hide, "cannot be read by the user that relayd runs as"),
            ("relay01.secret", Path.unlink, "there is no file"),
            ("relay01.secret", empty, "empty"),
            ("relay01.secret", put_a_directory, "is not a file"),
            ("relay01.secret", _hide, "cannot be read by the user that relayd runs as"),
        ],
    )
    def test_files(self, lab: DirectoryLab, place: Path, name: str, spoil: Callable[[Path], None], why: str) -> None:
        relay = Relay(place, config(lab, place))
        spoil(place / name)
        said = refusal(relay)
        assert str(place / name) in said
        assert why in said

    def test_winbind_without_ntlm_auth(self, lab: DirectoryLab, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(place))
        relay = Relay(place, config(lab, place, '[ntlm]\nbackend = "winbind"\n'))
        relay.start(ready=False, environment={"PATH": str(place)})
        try:
            assert relay.process is not None
            assert relay.process.wait(DEADLINE) == 1
        finally:
            relay.kill()
        (said,) = relay.other_lines
        assert "ntlm.backend: needs ntlm_auth, which is not installed; apt-get install winbind" in said


def code(relay: Relay, exchange: Exchange) -> int:
    """What signing in without TLS ends with."""
    with Raw(relay.port()) as raw:
        raw.say(b"EHLO client.example")
        return exchange.on(raw).code


class TestStart:
    @pytest.mark.parametrize(
        ("secret", "why"), [(b"wrong", f"{DirectoryLab.host} refuses {domain.COMPUTER}"), (b"\xff\xfe", "not UTF-8")]
    )
    def test_a_wrong_secret(self, lab: DirectoryLab, place: Path, secret: bytes, why: str) -> None:
        """The right one may come later, so it starts."""
        file = place / "relay01.secret"
        file.write_bytes(secret)
        bob = ntlm("LAB\\bob", lab.users["bob"])
        with running(place, integrated(lab, own=OWN.format(place=place))) as relay:
            log = Log(relay)
            assert code(relay, bob) == 454
            reason = log.one("authentication-failed")["reason"]
            assert why in reason
            assert repr(secret)[2:-1] not in reason
            file.write_text(lab.users[domain.COMPUTER])
            assert code(relay, bob) == 235

    def test_a_library_that_only_root_reads(self, lab: DirectoryLab, place: Path) -> None:
        """What is loaded later fails then, and somebody should know why."""
        hidden = place / "hidden"
        hidden.mkdir(mode=0o700)
        for name in ("relayd", "plugins"):
            shutil.copytree(ROOT / name, hidden / name)
        relay = Relay(place, config(lab, place))
        path = {"PYTHONPATH": f"{hidden}:{hidden}/plugins"}
        os.chown(hidden, 0, 0)
        relay.start(environment=path, prefix=["env", "-C", str(hidden)])  # twistd looks where it is started, too
        try:
            notices = [event["text"] for event in relay.find("notice", key="server.user")]
        finally:
            relay.stop()
        assert [text for text in notices if text.startswith(f"{hidden}/relayd/") and " is closed to nobody" in text]


class TestWinbind:
    """relayd among winbind's sockets: what is in their directory changes while it runs."""

    def test_it_comes_and_goes(self, own_lab: DirectoryLab, tmp_path: Path) -> None:
        sockets = tmp_path / "sockets"
        sockets.mkdir(mode=0o755)
        pipe = own_lab.directory / "winbindd" / "pipe"
        bob = ntlm("LAB\\bob", own_lab.users["bob"])
        (tmp_path / "relay").mkdir()
        written = integrated(own_lab, LENIENT, 'cache = "0s"', '[ntlm]\nbackend = "winbind"\n')
        with running(tmp_path / "relay", written, prefix=among(own_lab, sockets=sockets)) as relay:
            assert relay.process is not None
            footprint = Footprint(relay.process.pid, own_lab.address, {636: 16})
            self.away(relay, bob)
            relay.ctl_json("status")  # the queue has all its files open from then on
            before = footprint.holds()
            before["thread"] += MORE_THREADS
            for _ in range(HELPERS + 8):  # more than there may be helpers
                self.away(relay, bob)
            footprint.settled(before, "a winbind that is not there")
            os.link(pipe, sockets / "pipe")
            wait_for(lambda: code(relay, bob) == 235, "winbind", interval=0.2)
            self.abandoned(relay, bob)
            self.killed(relay, bob, footprint)
            helpers = footprint.children()
            assert 0 < len(helpers) <= HELPERS
        assert not [pid for pid in helpers if Path(f"/proc/{pid}").exists()]

    def away(self, relay: Relay, bob: Exchange) -> None:
        log = Log(relay)
        assert code(relay, bob) == 454
        assert log.one("authentication-failed")["reason"].startswith("directory: winbind: ")

    def abandoned(self, relay: Relay, bob: Exchange) -> None:
        """Clients that ask for a challenge and leave, in all ways, keep nobody out."""
        for number in range(3 * HELPERS):
            with Raw(relay.port()) as raw:
                raw.say(b"EHLO client.example")
                begun = bob.on(raw, number % 2)
                begun.send(begun.next())
                raw.abort()
        wait_for(lambda: code(relay, bob) == 235, "a helper", interval=0.2)

    def killed(self, relay: Relay, bob: Exchange, footprint: Footprint) -> None:
        """Helpers that die between challenge and answer."""
        log = Log(relay)
        with Raw(relay.port()) as raw:
            raw.say(b"EHLO client.example")
            begun = bob.on(raw, 1)
            for pid in footprint.children():
                os.kill(pid, signal.SIGKILL)
            assert begun.answer().startswith(b"454 4.7.0 ")
            # What was said of those who left may come late.
            relay.wait_until(
                lambda: any("ntlm_auth" in event["reason"] for event in log.all("authentication-failed")),
                "a helper that died, in the log",
            )
            assert bob.on(raw).code == 235
