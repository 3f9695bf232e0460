"""Guesses at passwords by all mechanisms, against a real Active Directory: relayd locks nobody, there or here.

The lab's threshold is 3: strangers have one failure of an account, and the clients that are known for it another.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.directory.conftest import StartLab
from tests.directory.relays import Answer, integrated, running
from tests.directory.sessions import BY_PASSWORD, Session
from tests.lab import domain
from tests.lab.ca import LabCA
from tests.lab.directory import DirectoryLab
from tests.lab.relay import Relay

SETTINGS = """\
[authentication]
max_failures = 100
"""

REFUSED = Answer(535, "5.7.8 Authentication credentials invalid")
STOPPED = Answer(454, "4.7.0 Temporary authentication failure")

MECHANISMS = pytest.mark.parametrize("mechanism", BY_PASSWORD)
#: Of the accounts that tests make for themselves.
PASSWORD = "Lab-guessed-9"


@pytest.fixture(scope="module")
def relay(spoilt: DirectoryLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with running(tmp_path_factory.mktemp("relay"), integrated(spoilt, SETTINGS, 'cache = "0s"')) as relay:
        yield relay


_numbers = itertools.count()


@pytest.fixture
def name(spoilt: DirectoryLab) -> str:
    """An account that nobody failed with."""
    name = f"guessed{next(_numbers)}"
    attributes = {
        "objectClass": "user",
        "sAMAccountName": name,
        "userPrincipalName": f"{name}@{domain.ALTERNATE_SUFFIX}",
        "unicodePwd": f'"{PASSWORD}"'.encode("utf-16-le"),
        "userAccountControl": 0x200,
    }
    spoilt.administrator().add(f"CN={name},CN=Users,{spoilt.base_dn}", attributes=attributes)
    return name


def tried(lab: DirectoryLab, relay: Relay, mechanism: str, name: str, password: str, source: int) -> Answer:
    """What relayd answers to a client at 127.0.0.`source`."""
    with Session(lab, relay, f"127.0.0.{source}") as session:
        return BY_PASSWORD[mechanism](session, name, password)


def locked(lab: DirectoryLab, name: str) -> bool:
    return any(int(value) for value in lab.attributes(name, "lockoutTime")["lockoutTime"])


def wrong(relay: Relay, name: str) -> int:
    """How many passwords of an account the directory found wrong."""
    events = list(relay.find("authentication-failed"))
    return sum(name in event["user"] and event["reason"].startswith(("52e", "c000006a")) for event in events)


class TestOneCount:
    @MECHANISMS
    def test_a_failure_by_one_counts_for_all(
        self, spoilt: DirectoryLab, relay: Relay, name: str, mechanism: str
    ) -> None:
        assert tried(spoilt, relay, mechanism, f"LAB\\{name}", "a guess", 3) == REFUSED
        for number, other in enumerate(BY_PASSWORD):
            for password in ("another guess", PASSWORD):
                assert tried(spoilt, relay, other, f"LAB\\{name}", password, 4 + number) == STOPPED
        assert spoilt.bad_password_count(name) == 1
        relay.wait_for("authentication-failed", 1 + 2 * len(BY_PASSWORD), user=f"LAB\\{name}")
        _, *stopped = relay.find("authentication-failed", user=f"LAB\\{name}")
        why = f"too many failures of {name}, 1 failures from clients that are not known for this account"
        assert {event["reason"].partition(": ")[0] for event in stopped} == {why}

    @MECHANISMS
    def test_who_is_known_by_one_is_known_for_all(
        self, spoilt: DirectoryLab, relay: Relay, name: str, mechanism: str
    ) -> None:
        assert tried(spoilt, relay, mechanism, f"LAB\\{name}", PASSWORD, 2).code == 235
        assert tried(spoilt, relay, "NTLM", f"LAB\\{name}", "a guess", 3) == REFUSED
        for other in BY_PASSWORD:
            assert tried(spoilt, relay, other, f"LAB\\{name}", PASSWORD, 4) == STOPPED
            assert tried(spoilt, relay, other, f"LAB\\{name}", PASSWORD, 2).code == 235
        # Strangers win nothing by that, though the directory's count began anew.
        assert spoilt.bad_password_count(name) == 0
        assert tried(spoilt, relay, mechanism, f"LAB\\{name}", "a guess", 3) == STOPPED
        # The known may fail too, and less often than the directory would lock them for.
        assert tried(spoilt, relay, mechanism, f"LAB\\{name}", "a guess", 2) == REFUSED
        for other in BY_PASSWORD:
            assert tried(spoilt, relay, other, f"LAB\\{name}", PASSWORD, 2) == STOPPED
        assert spoilt.bad_password_count(name) == 1

    @MECHANISMS
    def test_a_user_principal_name(self, spoilt: DirectoryLab, relay: Relay, name: str, mechanism: str) -> None:
        """By NTLM, Samba's controller has a status of its own for it, and counts nothing; relayd does."""
        user = f"{name}@{domain.ALTERNATE_SUFFIX}"
        assert tried(spoilt, relay, mechanism, user, PASSWORD, 2).code == 235
        assert tried(spoilt, relay, mechanism, user, "a guess", 3) == REFUSED
        assert tried(spoilt, relay, mechanism, user, "another guess", 3) == STOPPED
        assert tried(spoilt, relay, "PLAIN", f"LAB\\{name}", "another guess", 4) == STOPPED
        assert tried(spoilt, relay, mechanism, user, PASSWORD, 2).code == 235

    def test_tickets_and_certificates_go_on(
        self, spoilt: DirectoryLab, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are nobody's guess."""
        ca = LabCA(tmp_path / "clients", "Lab Client CA")
        leaf = ca.leaf(name, client=True, upn=f"{name}@{domain.ALTERNATE_SUFFIX}")
        config = integrated(spoilt, SETTINGS)
        config = config.replace("[tls]\n", f'[tls]\nclient_ca = "{ca.path}"\nclient_map = "upn"\n', 1)
        tickets = spoilt.kinit(name, PASSWORD)
        monkeypatch.setenv("KRB5_CONFIG", str(spoilt.krb5_conf))
        (tmp_path / "relay").mkdir()
        with running(tmp_path / "relay", config) as relay:
            assert tried(spoilt, relay, "PLAIN", name, "a guess", 3) == REFUSED
            assert tried(spoilt, relay, "PLAIN", name, PASSWORD, 3) == STOPPED
            with Session(spoilt, relay, "127.0.0.3") as session:
                assert session.gssapi(tickets).code == 235
            with Session(spoilt, relay, "127.0.0.3", leaf) as session:
                assert session.external().code == 235

    def test_as_the_administrator_wrote(self, spoilt: DirectoryLab, tmp_path: Path, name: str) -> None:
        config = integrated(spoilt, f'{SETTINGS}lockout = "2 in 15m"\n', 'cache = "0s"')
        with running(tmp_path, config) as relay:
            answers = [
                tried(spoilt, relay, mechanism, f"LAB\\{name}", f"guess {number}", 3)
                for number, mechanism in enumerate(("NTLM", "PLAIN", "GSSAPI/NTLM", "LOGIN"))
            ]
        assert answers == [REFUSED, REFUSED, STOPPED, STOPPED]


#: As a client may write one account. Some are of no domain that is known: a controller may take them for its own.
SPELLINGS = ("LAB\\{}", "lab.example\\{}", "{}@lab.example", "{}", "LAB\\{}@lab.example", "ELSEWHERE\\{}", ".\\{}")


class TestBarrage:
    """Guesses by all mechanisms, in all spellings, from many addresses, at once."""

    def barrage(self, lab: DirectoryLab, relay: Relay, names: list[str], sources: list[int]) -> Counter[int]:
        dice = random.Random(2025)
        tries = [
            (mechanism, spelling.format(name), f"guess {number}", dice.choice(sources))
            for number, (mechanism, spelling, name) in enumerate(
                (mechanism, spelling, name) for mechanism in BY_PASSWORD for spelling in SPELLINGS for name in names
            )
        ]
        dice.shuffle(tries)
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda each: tried(lab, relay, *each), tries))
        assert {answer.text for answer in answers} <= {REFUSED.text, STOPPED.text}
        return Counter(answer.code for answer in answers)

    @pytest.mark.parametrize("threshold", [3, 10])
    def test_locks_nobody(self, start_lab: StartLab, tmp_path: Path, threshold: int) -> None:
        lab = start_lab()
        policy = {"lockoutThreshold": [("MODIFY_REPLACE", [str(threshold)])]}
        lab.administrator().modify(lab.base_dn, policy)
        with running(tmp_path, integrated(lab, SETTINGS, 'cache = "0s"')) as relay:
            # Two known clients; they guess too.
            for name in ("victim", "alice"):
                assert tried(lab, relay, "PLAIN", name, lab.users[name], 2).code == 235
                assert tried(lab, relay, "NTLM", f"LAB\\{name}", lab.users[name], 3).code == 235
            codes = self.barrage(lab, relay, ["victim", "alice", "patient"], list(range(2, 12)))
            relay.wait_for("authentication-failed", codes.total())
            for name in ("victim", "alice", "patient"):
                assert not locked(lab, name)
                # What it was asked, and no more.
                assert lab.bad_password_count(name) == wrong(relay, name) < threshold
                lab.connect(name).unbind()
            assert wrong(relay, "") > 0
            assert codes[454] > codes.total() // 3

    def test_does_not_stop_a_service(self, start_lab: StartLab, tmp_path: Path) -> None:
        """It signs in all the while, from a host of its own, and the directory's count begins anew each time."""
        lab = start_lab()
        with running(tmp_path, integrated(lab, SETTINGS, 'cache = "0s"')) as relay:
            right = lab.users["victim"]
            assert tried(lab, relay, "PLAIN", "victim", right, 2).code == 235
            with ThreadPoolExecutor(1) as side:
                guesses = side.submit(self.barrage, lab, relay, ["victim"], list(range(3, 12)))
                services: list[int] = []
                for mechanism in itertools.cycle(BY_PASSWORD):
                    services.append(tried(lab, relay, mechanism, "LAB\\victim", right, 2).code)
                    if guesses.done() and len(services) >= len(BY_PASSWORD):
                        break
            assert set(services) == {235}
            assert not locked(lab, "victim")
