"""The backend winbind: which helper is asked, what its lines mean, and what happens when it does not answer."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Coroutine
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from relayd.auth.ntlm import NtlmAccount, NtlmExchange, NtlmRefused
from relayd.auth.winbind import NTLM_AUTH, PATIENCE, TIMEOUT, WinbindBackend, winbind_missing
from relayd.directory import Unavailable
from relayd.model import Fault
from tests.unit.auth.ntlm_client import FLAGS, PlainClient

NEGOTIATE = PlainClient("alice", "secret", flags=FLAGS).negotiate
KEY = b"0123456789abcdef"


class Process:
    """An ntlm_auth for the backend to talk to; the test says what it answers."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.asked: list[bytes] = []
        self.gone = False

    def write(self, octets: bytes) -> None:
        assert octets.endswith(b"\n")
        self.asked.append(octets[:-1])

    def signalProcess(self, signal: str) -> None:
        assert signal == "KILL"
        if self.gone:
            raise ProcessExitedAlready
        self.end()

    def say(self, octets: bytes) -> None:
        self.protocol.outReceived(octets)

    def end(self, complaint: bytes = b"") -> None:
        if complaint:
            self.protocol.errReceived(complaint)
        self.gone = True
        self.protocol.processEnded(Failure(ProcessDone(0)))


class Processes(Clock):
    """A reactor that starts :class:`Process`."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[Process] = []
        self.error: OSError | None = None

    def spawnProcess(self, protocol: Any, program: str, arguments: Any, env: dict[str, str]) -> None:
        if self.error is not None:
            raise self.error
        assert (program, tuple(arguments)) == (NTLM_AUTH[0], NTLM_AUTH)
        assert set(env) == {"PATH"}
        process = Process(protocol)
        protocol.makeConnection(process)
        self.started.append(process)


class Outcome:
    """Of a coroutine that may still run."""

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self.deferred = Deferred.fromCoroutine(work)
        self._fired: list[Any] = []
        self.deferred.addBoth(self._fired.append)

    @property
    def open(self) -> bool:
        return not self._fired

    def get(self) -> Any:
        (fired,) = self._fired
        if isinstance(fired, Failure):
            fired.raiseException()
        return fired

    def deferral(self) -> str:
        with pytest.raises(Fault) as caught:
            self.get()
        assert str(caught.value.reply).startswith("454 4.7.0")
        return caught.value.detail


class Setting:
    def __init__(self) -> None:
        self.reactor = Processes()
        self.backend = WinbindBackend(self.reactor, helpers=2)

    @property
    def process(self) -> Process:
        return self.reactor.started[-1]

    def begin(self) -> Outcome:
        return Outcome(self.backend.begin(NEGOTIATE))

    def begun(self) -> NtlmExchange:
        begun = self.begin()
        self.process.say(b"TT " + b64encode(b"challenge") + b"\n")
        return begun.get()  # type: ignore[no-any-return]

    def verified(self, *lines: bytes) -> Outcome:
        verified = Outcome(self.begun().verify(b"an answer"))
        for line in lines:
            self.process.say(line + b"\n")
        return verified


@pytest.fixture
def setting() -> Setting:
    return Setting()


class TestExchange:
    def test_challenge_answer_and_key(self, setting: Setting) -> None:
        exchange = setting.begun()
        assert (exchange.negotiate, exchange.challenge) == (NEGOTIATE, b"challenge")
        verified = Outcome(exchange.verify(b"an answer"))
        setting.process.say(b"AF CORP\\j\xc3\xb6rg\n")
        setting.process.say(b"GK " + b64encode(KEY) + b"\n")
        assert verified.get() == NtlmAccount("jörg", "CORP", exported_key=KEY, checked=True)
        asked = [line.split(b" ") for line in setting.process.asked]
        assert [words[0] for words in asked] == [b"YR", b"KK", b"GK"]
        assert b64decode(asked[0][1]) == NEGOTIATE
        assert b64decode(asked[1][1]) == b"an answer"

    def test_a_name_without_the_default_domain(self, setting: Setting) -> None:
        account = setting.verified(b"AF alice", b"GK " + b64encode(KEY)).get()
        assert (account.name, account.domain) == ("alice", "")

    def test_a_samba_that_gives_no_key(self, setting: Setting) -> None:
        account = setting.verified(b"AF CORP\\alice", b"BH unknown").get()
        assert (account.exported_key, account.checked) == (b"", True)

    def test_lines_in_pieces(self, setting: Setting) -> None:
        begun = setting.begin()
        for octet in b"TT " + b64encode(b"challenge"):
            setting.process.say(bytes([octet]))
        assert begun.open
        setting.process.say(b"\n")
        assert begun.get().challenge == b"challenge"

    @pytest.mark.parametrize("negotiate", [b"", b"NTLMSSP\0", bytes(40)])
    def test_no_negotiate_message_needs_no_helper(self, setting: Setting, negotiate: bytes) -> None:
        with pytest.raises(Fault) as caught:
            Outcome(setting.backend.begin(negotiate)).get()
        assert caught.value.reply.code == 501
        assert not setting.reactor.started

    def test_a_negotiate_message_that_winbind_does_not_take(self, setting: Setting) -> None:
        begun = setting.begin()
        setting.process.say(b"NA NT_STATUS_INVALID_PARAMETER\n")
        with pytest.raises(Fault, match="NT_STATUS_INVALID_PARAMETER") as caught:
            begun.get()
        assert caught.value.reply.code == 501
        setting.begin()
        assert len(setting.reactor.started) == 1


class TestVerdicts:
    @pytest.mark.parametrize(
        ("status", "counted"),
        [
            ("NT_STATUS_LOGON_FAILURE", True),
            ("NT_STATUS_WRONG_PASSWORD", True),
            ("NT_STATUS_NO_SUCH_USER", True),
            ("NT_STATUS_NOT_FOUND", True),
            ("NT_STATUS_ACCOUNT_DISABLED", False),
            ("NT_STATUS_ACCOUNT_LOCKED_OUT", False),
            ("NT_STATUS_PASSWORD_MUST_CHANGE", False),
            ("NT_STATUS_INVALID_PARAMETER", False),
        ],
    )
    def test_refusals(self, setting: Setting, status: str, counted: bool) -> None:
        verified = setting.verified(f"NA {status}".encode())
        with pytest.raises(NtlmRefused, match=status) as caught:
            verified.get()
        assert caught.value.wrong_password is counted

    @pytest.mark.parametrize(
        "line",
        [
            b"NA NT_STATUS_NO_LOGON_SERVERS",
            b"NA NT_STATUS_TRUSTED_RELATIONSHIP_FAILURE",
            b"NA NT_STATUS_ACCESS_DENIED",
            b"NA NT_STATUS_SOMETHING_NEW",
            b"NA",
            b"NA ",
            b"BH NT_STATUS_UNSUCCESSFUL NT_STATUS_UNSUCCESSFUL",
            b"AF",
            b"AF ",
            b"",
            b"what?",
            b"\xff\xfe",
        ],
    )
    def test_whatever_does_not_speak_of_the_account_is_no_refusal(self, setting: Setting, line: bytes) -> None:
        assert setting.verified(line).deferral()

    def test_a_challenge_that_is_none(self, setting: Setting) -> None:
        for line in (b"TT !!!\n", b"TT\n", b"BH at a loss\n", b"OK\n"):
            begun = setting.begin()
            setting.process.say(line)
            assert begun.deferral()
            assert setting.process.gone


class TestHelpers:
    def test_one_is_used_again(self, setting: Setting) -> None:
        for _ in range(3):
            setting.verified(b"NA NT_STATUS_LOGON_FAILURE")
        assert len(setting.reactor.started) == 1

    def test_one_for_each_exchange_at_once_and_no_more(self, setting: Setting) -> None:
        first, second = setting.begun(), setting.begun()
        assert len(setting.reactor.started) == 2
        Outcome(first.verify(b"an answer"))
        waits = Outcome(second.verify(b"an answer"))
        assert "2 exchanges" in setting.begin().deferral()
        setting.process.say(b"NA NT_STATUS_LOGON_FAILURE\n")
        with pytest.raises(NtlmRefused):
            waits.get()
        second.abandon()
        assert setting.begin().open
        assert "2 exchanges" in setting.begin().deferral()

    def test_clients_that_never_answer_keep_nobody_out(self, setting: Setting) -> None:
        oldest, older = setting.begun(), setting.begun()
        newest = setting.begin()
        setting.reactor.started[0].say(b"TT " + b64encode(b"challenge") + b"\n")
        assert newest.get().challenge == b"challenge"
        assert len(setting.reactor.started) == 2
        assert "the longest" in Outcome(oldest.verify(b"an answer")).deferral()
        assert Outcome(older.verify(b"an answer")).open
        assert Outcome(newest.get().verify(b"an answer")).open
        assert [process.asked[-1][:2] for process in setting.reactor.started] == [b"KK", b"KK"]

    def test_a_helper_that_died_in_a_waiting_clients_hands_is_replaced(self, setting: Setting) -> None:
        setting.begun(), setting.begun()
        setting.reactor.started[0].end()
        assert setting.begun().challenge == b"challenge"
        assert len(setting.reactor.started) == 3

    def test_a_client_that_takes_its_time_loses_its_helper(self, setting: Setting) -> None:
        slow, _ = setting.begun(), setting.begun()
        setting.reactor.advance(PATIENCE)
        assert "took more" in Outcome(slow.verify(b"an answer")).deferral()
        assert setting.begun().challenge == b"challenge"
        assert len(setting.reactor.started) == 2

    def test_an_exchange_abandoned_in_judgement_keeps_the_helper_till_then(self, setting: Setting) -> None:
        exchange = setting.begun()
        verified = Outcome(exchange.verify(b"an answer"))
        exchange.abandon()
        setting.begun()
        assert len(setting.reactor.started) == 2
        setting.reactor.started[0].say(b"NA NT_STATUS_LOGON_FAILURE\n")
        with pytest.raises(NtlmRefused):
            verified.get()
        assert setting.begin().open

    def test_one_that_hangs_is_ended(self, setting: Setting) -> None:
        verified = setting.verified()
        setting.reactor.advance(TIMEOUT)
        assert "no answer" in verified.deferral()
        assert setting.process.gone
        setting.begin()
        assert len(setting.reactor.started) == 2

    def test_an_answer_that_was_lost_may_have_been_counted(self, setting: Setting) -> None:
        verified = setting.verified()
        setting.process.end(b"Segmentation fault")
        with pytest.raises(Unavailable, match="Segmentation fault") as caught:
            verified.get()
        assert caught.value.asked == 1

    def test_one_that_ended_while_it_was_idle_is_replaced(self, setting: Setting) -> None:
        setting.begun().abandon()
        setting.process.end()
        assert setting.begun().challenge == b"challenge"
        assert len(setting.reactor.started) == 2

    def test_one_that_ends_when_it_is_asked_again_is_replaced(self, setting: Setting) -> None:
        setting.begun().abandon()
        begun = setting.begin()
        setting.process.end()
        setting.process.say(b"TT " + b64encode(b"another") + b"\n")
        assert begun.get().challenge == b"another"

    def test_one_that_ends_at_once_is_not(self, setting: Setting) -> None:
        begun = setting.begin()
        setting.process.end(b"could not obtain\nwinbind domain name")
        assert "could not obtain winbind domain name" in begun.deferral()
        assert len(setting.reactor.started) == 1

    @pytest.mark.parametrize("said", [b"TT x\nTT y\n", b"x" * 70_000])
    def test_one_that_says_too_much_is_ended(self, setting: Setting, said: bytes) -> None:
        begun = setting.begin()
        setting.process.say(said)
        assert "nobody asked" in begun.deferral()
        assert setting.process.gone

    def test_one_that_speaks_unasked_is_ended(self, setting: Setting) -> None:
        setting.begun().abandon()
        setting.process.say(b"TT x\n")
        assert setting.process.gone
        assert setting.begun().challenge == b"challenge"

    def test_whoever_stops_waiting_takes_the_helper_with_him(self, setting: Setting) -> None:
        verified = setting.verified()
        verified.deferred.cancel()
        assert setting.process.gone

    def test_one_that_cannot_be_started(self, setting: Setting) -> None:
        setting.reactor.error = OSError(11, "Resource temporarily unavailable")
        assert "Resource temporarily unavailable" in setting.begin().deferral()

    def test_closing_ends_all(self, setting: Setting) -> None:
        setting.begun().abandon()
        verified = Outcome(setting.begun().verify(b"an answer"))
        setting.begun()
        closed: list[object] = []
        setting.backend.close().addBoth(closed.append)
        assert all(process.gone for process in setting.reactor.started)
        assert closed
        assert verified.deferral()
        assert "closed" in setting.begin().deferral()


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install winbind" in winbind_missing()
    (tmp_path / "ntlm_auth").touch(mode=0o755)
    assert winbind_missing() == ""
