"""NTLM by winbind, with the real ntlm_auth and a real domain."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.directory.relays import integrated
from tests.lab import clients, domain
from tests.lab.directory import DirectoryLab
from tests.lab.net import wait_for
from tests.lab.relay import Relay
from tests.lab.winbind import among

ROOT = Path(__file__).resolve().parents[2]


class Judge:
    """`tests.directory.winbind_judge`, among a lab's winbindd."""

    def __init__(self, lab: DirectoryLab, *, alone: bool = False) -> None:
        program = [sys.executable, "-m", "tests.directory.winbind_judge", str(lab.directory), lab.address]
        command = program if alone else among(lab, *program)
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        helpers = self.helpers()
        try:
            self._process.communicate(timeout=60)
        except BaseException:
            self._process.kill()
            raise
        assert self._process.returncode == 0
        assert not [helper for helper in helpers if Path(f"/proc/{helper}").exists()], "a helper was left behind"

    def helpers(self) -> list[int]:
        """The ntlm_auth processes that run."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                status = dict(
                    line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line
                )
                if status["Name"] == "ntlm_auth" and int(status["PPid"]) == self._process.pid:
                    found.append(int(process.name))
        return sorted(found)

    def __call__(self, user: str, password: str | None = None, client: str = "spnego", **more: Any) -> dict[str, Any]:
        """The verdict on an answer of *user*, by the right password unless another is given."""
        name = user.rpartition("\\")[2].partition("@")[0]
        case = {"client": client, "user": user, "password": password or domain.USERS[name], **more}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(case).encode() + b"\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer

    def let_in(self, user: str, password: str | None = None, client: str = "spnego", **more: Any) -> dict[str, Any]:
        answer = self(user, password, client, **more)
        assert "principal" in answer, answer
        return answer["principal"]  # type: ignore[no-any-return]

    def refused(self, user: str, password: str | None = None, client: str = "spnego", **more: Any) -> str:
        answer = self(user, password, client, **more)
        assert "refused" in answer, answer
        return str(answer["refused"])

    def deferred(self, user: str, **more: Any) -> str:
        answer = self(user, **more)
        assert answer.get("reply", "").startswith("454 4.7.0"), answer
        return str(answer["detail"])


@pytest.fixture(scope="module")
def judge(spoilt: DirectoryLab) -> Iterator[Judge]:
    with Judge(spoilt) as running:
        yield running


class TestWho:
    @pytest.mark.parametrize(
        ("user", "client"),
        [
            ("LAB\\alice", "spnego"),
            ("lab.example\\Alice", "spnego"),
            ("alice", "spnego"),
            ("alice@lab.example", "spnego"),
            ("alice", "plain"),
        ],
    )
    def test_a_user_with_groups_and_addresses(self, judge: Judge, user: str, client: str) -> None:
        principal = judge.let_in(user, domain.USERS["alice"], client)
        assert (principal["name"], principal["upn"], principal["source"]) == ("alice", "alice@lab.example", "ntlm")
        assert "alice.liddell@lab.example" in principal["addresses"]
        assert {"Engineers", "Staff", "Relay Users"} <= set(principal["groups"])
        assert principal["sid"].startswith("S-1-5-21-")

    def test_a_name_beyond_ascii(self, judge: Judge) -> None:
        assert judge.let_in("LAB\\jörg")["name"] == "jörg"

    def test_another_upn_suffix(self, judge: Judge) -> None:
        assert judge.let_in("carol@corp.example")["name"] == "carol"

    def test_a_wrong_password_of_a_user_principal_name(self, judge: Judge) -> None:
        """Samba's controller has a status of its own for it."""
        assert judge("carol@corp.example", "wrong")["counted"] is True

    def test_a_computer(self, judge: Judge) -> None:
        principal = judge.let_in(f"LAB\\{domain.COMPUTER}")
        assert principal["name"] == domain.COMPUTER
        assert "Relay Hosts" in principal["groups"]

    def test_a_name_that_nobody_has(self, judge: Judge) -> None:
        assert judge.refused("LAB\\nobody", "wrong") == "unknown account"

    def test_a_domain_that_nobody_knows(self, judge: Judge) -> None:
        assert judge("ANY\\nobody", "wrong") == {"refused": "NT_STATUS_LOGON_FAILURE", "counted": True}


class TestAccountStates:
    @pytest.mark.parametrize(
        ("name", "password", "reason", "counted"),
        [
            ("bob", "wrong", "NT_STATUS_LOGON_FAILURE", 1),
            ("disabled", None, "NT_STATUS_ACCOUNT_DISABLED", 0),
            ("expired", None, "NT_STATUS_ACCOUNT_EXPIRED", 0),
            ("lapsed", None, "NT_STATUS_PASSWORD_EXPIRED", 0),
            ("mustchange", None, "NT_STATUS_PASSWORD_MUST_CHANGE", 0),
            ("nights", None, "NT_STATUS_INVALID_LOGON_HOURS", 0),
            ("locked", None, "NT_STATUS_ACCOUNT_LOCKED_OUT", 0),
        ],
    )
    def test_each_state(
        self, spoilt: DirectoryLab, judge: Judge, name: str, password: str | None, reason: str, counted: int
    ) -> None:
        before = spoilt.bad_password_count(name)
        assert judge(f"LAB\\{name}", password) == {"refused": reason, "counted": bool(counted)}
        assert spoilt.bad_password_count(name) == before + counted


class TestSignatures:
    def test_a_mic_that_was_changed(self, judge: Judge) -> None:
        assert "wrong MIC" in judge.refused("LAB\\alice", tamper=True)

    def test_a_mechanism_list(self, judge: Judge) -> None:
        assert judge.let_in("LAB\\alice", list="")["name"] == "alice"

    def test_a_mechanism_list_that_was_changed(self, judge: Judge) -> None:
        assert "mechListMIC" in judge.refused("LAB\\alice", list="more")

    def test_ntlmv1_reaches_no_helper(self, judge: Judge) -> None:
        assert judge.refused("LAB\\alice", client="ntlmv1").startswith("NTLMv1 response")


class TestFaults:
    def test_a_helper_that_was_killed_is_replaced(self, judge: Judge) -> None:
        judge.let_in("LAB\\alice")
        for helper in judge.helpers():
            os.kill(helper, signal.SIGKILL)
        assert judge.let_in("LAB\\alice")["name"] == "alice"

    def test_helpers_are_used_again(self, judge: Judge) -> None:
        judge.let_in("LAB\\alice")
        before = judge.helpers()
        assert before
        for _ in range(3):
            judge.let_in("LAB\\alice")
            judge.refused("LAB\\disabled")
        assert judge.helpers() == before

    def test_a_controller_that_is_away_is_no_refusal(self, own_lab: DirectoryLab) -> None:
        with Judge(own_lab) as judge:
            assert judge.let_in("LAB\\alice")["name"] == "alice"
            own_lab.kill()
            assert judge.deferred("LAB\\alice", directory=False)
            own_lab.start()
            # LDAP answers before winbindd is done.
            wait_for(lambda: "principal" in judge("LAB\\alice", directory=False), "winbind", 30, interval=0.2)
            assert judge.let_in("LAB\\alice", directory=False)["name"] == "LAB\\alice"

    def test_no_winbind_at_all(self, lab: DirectoryLab) -> None:
        with Judge(lab, alone=True) as judge:
            assert "winbind: " in judge.deferred("LAB\\alice", directory=False)


class TestRelay:
    def test_curl(self, lab: DirectoryLab, tmp_path: Path) -> None:
        relay = Relay(tmp_path, integrated(lab, own='[ntlm]\nbackend = "winbind"\n'))
        try:
            relay.start(prefix=among(lab))
            where = ("127.0.0.1", relay.port())
            clients.curl(*where, auth=("LAB\\alice", domain.USERS["alice"]), mechanism="NTLM").require()
            found = relay.wait_for("authenticated", mechanism="NTLM")
            assert (found["user"], found["source"]) == ("alice@lab.example", "ntlm")
            assert clients.curl(*where, auth=("LAB\\alice", "wrong"), mechanism="NTLM").code == 67
            assert relay.wait_for("authentication-failed")["reason"] == "NT_STATUS_LOGON_FAILURE"
            assert relay.stop() == -signal.SIGTERM
            relay.assert_clean()
        finally:
            relay.kill()
