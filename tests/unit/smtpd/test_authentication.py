"""AUTH: the mechanisms as state machines, the exchange, what the portal says, and the avatar that comes of it."""

from __future__ import annotations

from base64 import b64encode
from ipaddress import ip_address
from typing import Any

import pytest
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred
from twisted.mail.smtp import LOGINCredentials

from relayd.events import Authenticated, AuthenticationFailed
from relayd.model import Client, Fault, Peer, Reply
from relayd.smtpd import Challenge, Done
from relayd.smtpd.classic import ChallengeResponse
from relayd.smtpd.sasl import Exchange, Login, Mechanism, Plain
from relayd.smtpd.serial import MOST_ERRORS
from tests.unit.smtpd.fakes import FakeChecker, FakePolicy, FakeRealm
from tests.unit.smtpd.talk import Talk

CLIENT = Client(Peer(ip_address("192.0.2.7")), "test")
GOOD = "AUTH PLAIN AGFsaWNlAHNlY3JldA=="
WRONG = "AUTH PLAIN AGFsaWNlAHdyb25n"


def run(mechanism: Mechanism, *responses: bytes | None) -> Any:
    step: Any = None
    for response in responses:
        step = mechanism.step(response)
    return step


def password(step: Any) -> tuple[bytes, bytes, str]:
    assert isinstance(step, Done)
    credentials: Any = step.credentials
    return credentials.username, credentials.password, credentials.mechanism


class TestMechanisms:
    def test_plain(self) -> None:
        assert run(Plain(CLIENT), None) == Challenge(b"")
        assert password(run(Plain(CLIENT), b"\0alice\0secret")) == (b"alice", b"secret", "PLAIN")
        assert password(run(Plain(CLIENT), None, b"alice\0alice\0secret")) == (b"alice", b"secret", "PLAIN")

    def test_login(self) -> None:
        assert run(Login(CLIENT), None) == Challenge(b"Username:")
        assert run(Login(CLIENT), b"alice") == Challenge(b"Password:")
        assert password(run(Login(CLIENT), None, b"alice", b"secret")) == (b"alice", b"secret", "LOGIN")

    @pytest.mark.parametrize(
        ("mechanism", "responses", "code"),
        [
            (Plain, [b"\0alice\0"], 535),
            (Plain, [b"\0\0secret"], 535),
            (Plain, [b"bob\0alice\0secret"], 535),
            (Plain, [b"alice\0secret"], 501),
            (Plain, [b"\0alice\0secret\0"], 501),
            (Plain, [b""], 501),
            (Login, [b"alice", b""], 535),
            (Login, [b"", b"secret"], 535),
            (Login, [b"al\0ice", b"secret"], 501),
            (Login, [b"alice", b"sec\0ret"], 501),
        ],
    )
    def test_refused_before_the_portal_is_asked(
        self, mechanism: type[Plain | Login], responses: list[bytes], code: int
    ) -> None:
        with pytest.raises(Fault) as refused:
            run(mechanism(CLIENT), *responses)
        assert refused.value.reply.code == code

    def test_the_user_is_known_for_the_log(self) -> None:
        plain, login = Plain(CLIENT), Login(CLIENT)
        plain.step("\0jürgen\0x".encode())
        login.step(b"\xff")
        assert (plain.user, login.user) == ("jürgen", "\N{REPLACEMENT CHARACTER}")

    def test_stocks_challengers(self) -> None:
        factory = ChallengeResponse.mechanism(LOGINCredentials)
        assert run(factory(CLIENT), None) == Challenge(b"Username:")
        assert run(factory(CLIENT), b"alice") == Challenge(b"Password:")
        step = run(factory(CLIENT), None, b"alice", b"secret")
        assert (step.credentials.username, step.credentials.password) == (b"alice", b"secret")


class TestExchange:
    @pytest.mark.parametrize("line", [b"!", b"YWJ", b"Y WJj", b"YWJj\t", b"\xc3\xa4"])
    def test_not_base64(self, line: bytes) -> None:
        with pytest.raises(Fault) as refused:
            Exchange("LOGIN", Login(CLIENT)).respond(line)
        assert refused.value.reply.code == 501
        assert refused.value.reply.enhanced == "5.5.2"

    def test_an_empty_initial_response(self) -> None:
        assert Exchange("LOGIN", Login(CLIENT)).begin(b"=") == Challenge(b"Password:")

    def test_none(self) -> None:
        assert Exchange("LOGIN", Login(CLIENT)).begin(b"") == Challenge(b"Username:")


class TestPortal:
    def test_success(self) -> None:
        talk = Talk()
        talk.hello()
        assert talk.line(GOOD) == "235 2.7.0 Authentication successful"
        assert talk.event("authenticated") == Authenticated(
            session=talk.session.id, client="192.0.2.7", user="alice", mechanism="PLAIN", source="accounts"
        )
        assert str(talk.session.client.principal) == "alice"
        talk.mail()
        assert len(talk.realm.logins) == 1

    def test_a_wrong_password_is_told_to_the_administrator(self) -> None:
        talk = Talk()
        talk.hello()
        assert talk.line(WRONG) == "535 5.7.8 Authentication credentials invalid"
        assert talk.event("authentication-failed") == AuthenticationFailed(
            session=talk.session.id,
            client="192.0.2.7",
            user="alice",
            mechanism="PLAIN",
            reason="wrong password",
            reply="535 5.7.8 Authentication credentials invalid",
        )

    @pytest.mark.parametrize("command", ["AUTH PLAIN AGFsaWNlAA==", "AUTH LOGIN YWxpY2U="])
    def test_an_empty_password_does_not_reach_it(self, command: str) -> None:
        talk = Talk()
        talk.hello()
        answer = talk.line(command)
        if answer.startswith("334"):
            answer = talk.line("")
        assert answer.startswith("535 5.7.8")
        assert talk.checker.seen == []
        assert talk.event("authentication-failed").reason == "empty password"

    def test_a_sick_directory_is_no_refusal(self) -> None:
        talk = Talk()
        talk.hello()
        talk.checker.fault = Fault(Reply.of(454, "4.7.0", "Temporary authentication failure"), "dc1 is down")
        answers = [talk.line(GOOD) for _ in range(5)]
        assert answers == ["454 4.7.0 Temporary authentication failure"] * 5
        assert not talk.closed, "not counted as failures"
        assert talk.event("authentication-failed").reason == "dc1 is down"

    def test_nobody_tries_for_ever_what_is_deferred(self) -> None:
        talk = Talk()
        talk.hello()
        talk.checker.fault = Fault(Reply.of(454, "4.7.0", "Temporary authentication failure"), "too many failures")
        for _ in range(MOST_ERRORS - 1):
            assert talk.line(GOOD).startswith("454")
        assert talk.line(GOOD).splitlines() == [
            "454 4.7.0 Temporary authentication failure",
            "421 4.7.0 Too many bad commands",
        ]
        assert talk.closed

    def test_a_fault_of_ours_is_no_refusal(self) -> None:
        talk = Talk()
        talk.hello()
        talk.checker.fault = ZeroDivisionError()
        assert talk.line(GOOD) == "454 4.7.0 Temporary authentication failure"
        assert "fault" in talk.names()

    def test_a_slow_one(self) -> None:
        talk = Talk()
        talk.hello()
        talk.checker.waiting = []
        assert talk.send(f"{GOOD}\r\nMAIL FROM:<a@b.example>\r\n".encode()) == b""
        talk.checker.waiting[0].callback(None)
        assert talk.read() == b"235 2.7.0 Authentication successful\r\n250 2.1.0 Sender OK\r\n"

    def test_a_client_that_does_not_wait(self) -> None:
        talk = Talk()
        talk.hello()
        talk.checker.waiting = []
        talk.line(GOOD)
        talk.hang_up()
        talk.checker.waiting[0].callback(None)
        assert talk.realm.logouts == 1
        assert talk.names() == ["session-opened", "session-closed"]

    def test_refused_in_the_clear(self) -> None:
        talk = Talk(policy=FakePolicy(auth_in_the_clear=False))
        talk.hello()
        assert talk.line(GOOD).startswith("538 5.7.11")
        assert talk.checker.seen == []
        assert talk.event("authentication-failed").reason == "refused by test.rule (line 7)"

    def test_no_secret_in_events(self) -> None:
        talk = Talk()
        talk.hello()
        for line in (WRONG, "AUTH PLAIN !AGFsaWNlAHdyb25n", "AUTH LOGIN YWxpY2U=", "d3Jvbmc=", GOOD, "c2VjcmV0"):
            talk.line(line)
        talk.hang_up()
        for secret in ("wrong\0", "secret", "AGFsaWNlAHdyb25n", "d3Jvbmc", "c2VjcmV0", "AGFsaWNlAHNlY3JldA"):
            assert secret not in repr(talk.seen)

    def test_not_without_a_portal(self) -> None:
        talk = Talk()
        talk.session.portal = None
        assert "AUTH" not in talk.hello()
        assert talk.line(GOOD).startswith("504")
        assert talk.line("MAIL FROM:<>").startswith("550")

    def test_a_realm_that_wants_everybody_to_authenticate(self) -> None:
        talk = Talk()
        talk.session.portal = Portal(FakeRealm(), [FakeChecker()])
        talk.hello()
        assert talk.line("MAIL FROM:<>").startswith("530 5.7.0")
        assert talk.line(GOOD).startswith("235")
        assert talk.line("MAIL FROM:<>").startswith("250")

    def test_the_anonymous_avatar_is_given_back(self) -> None:
        talk = Talk()
        talk.hello()
        talk.mail()
        talk.line("RSET")
        talk.line(GOOD)
        assert talk.realm.logouts == 1
        talk.mail()
        talk.hang_up()
        assert talk.realm.logouts == 2

    def test_steps_that_fail_later(self) -> None:
        class Failing:
            user = "someone"

            def step(self, response: bytes | None) -> Deferred[Any]:
                answer: Deferred[Any] = Deferred()
                steps.append(answer)
                return answer

        steps: list[Deferred[Any]] = []
        talk = Talk(policy=FakePolicy(offered=("X",)))
        talk.server.mechanisms = {"X": lambda client: Failing()}
        talk.hello()
        talk.line("AUTH X " + b64encode(b"token").decode())
        steps[0].errback(Fault(Reply.of(535, "5.7.8", "No"), "expired"))
        assert talk.read() == b"535 5.7.8 No\r\n"
        assert talk.event("authentication-failed").reason == "expired"
        assert talk.line("NOOP").startswith("250")
