"""GSSAPI, GSS-SPNEGO and NTLM: the mechanisms over stand-ins, and a session that drives them.

What clients send is in tests/dialogs (auth-gssapi-*, auth-gss-spnego-*, auth-ntlm-*).
"""

from __future__ import annotations

import gc
import weakref
from base64 import b64encode
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spnego._context import GSSMech
from spnego._spnego import NegState, NegTokenInit, NegTokenResp, pack_mech_type_list
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, fail

from relayd.auth.credentials import KerberosIdentity, NtlmResponse
from relayd.events import InternalFault
from relayd.model import Client, Fault, Peer, Reply, Tls
from relayd.smtpd import Challenge, Done
from relayd.smtpd.integrated import integrated_mechanisms
from relayd.smtpd.sasl import TOKEN
from tests.unit.smtpd.fakes import FakePolicy
from tests.unit.smtpd.integrated_fakes import (
    AUTHENTICATE,
    CHALLENGE,
    INTEGRATED,
    NEGOTIATE,
    WRAPPED,
    FakeAcceptor,
    FakeBackend,
    IdentityChecker,
    at_once,
    integrated,
    raw,
)
from tests.unit.smtpd.talk import Talk

CLIENT = Client(Peer(ip_address("192.0.2.7")), "test")
KERBEROS, NTLM, NEGOEX = (mechanism.value for mechanism in (GSSMech.kerberos, GSSMech.ntlm, GSSMech.negoex))
NO_LAYER = WRAPPED + b"\1\0\0\0"
RIGHT = AUTHENTICATE + b"secret"


def offer(token: bytes, *mechanisms: str) -> bytes:
    return NegTokenInit(list(mechanisms), mech_token=token).pack()


def answer(token: bytes, mic: bytes | None = None) -> bytes:
    return NegTokenResp(None, None, token, mic).pack()


def told(step: Any) -> NegTokenResp:
    assert isinstance(step, Challenge)
    assert step.octets[0] == 0xA1
    return NegTokenResp.unpack(step.octets[2 if step.octets[1] < 0x80 else 2 + step.octets[1] - 0x80 :])


class Exchange:
    """A mechanism, and what it makes of responses."""

    def __init__(self, name: str, client: Client = CLIENT, ntlm: bool = True, channel_binding: str = "accept") -> None:
        self.acceptor, self.backend = FakeAcceptor(), FakeBackend()
        acceptor: Any = self.acceptor
        served = integrated_mechanisms(acceptor, self.backend if ntlm else None, at_once, channel_binding)
        self.mechanism: Any = served[name](client)

    def step(self, response: bytes | None) -> Any:
        """The step that follows.

        :raises Exception: what it failed with.
        """
        result = self.mechanism.step(response)
        if not isinstance(result, Deferred):
            return result
        caught: list[Any] = []
        result.addCallbacks(caught.append, lambda failure: caught.append(failure.value))
        (outcome,) = caught
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def steps(self, *responses: bytes | None) -> list[Any]:
        return [self.step(response) for response in responses]


def identity(step: Any) -> KerberosIdentity:
    assert isinstance(step, Done)
    assert isinstance(step.credentials, KerberosIdentity)
    return step.credentials


def ntlm_response(step: Any) -> NtlmResponse:
    assert isinstance(step, Done)
    assert isinstance(step.credentials, NtlmResponse)
    return step.credentials


class TestWhatIsServed:
    def test_both(self) -> None:
        acceptor: Any = FakeAcceptor()
        assert [*integrated_mechanisms(acceptor, FakeBackend(), at_once, "accept")] == ["GSSAPI", "GSS-SPNEGO", "NTLM"]

    def test_kerberos_alone(self) -> None:
        acceptor: Any = FakeAcceptor()
        assert [*integrated_mechanisms(acceptor, None, at_once, "accept")] == ["GSSAPI", "GSS-SPNEGO"]

    def test_ntlm_alone(self) -> None:
        assert [*integrated_mechanisms(None, FakeBackend(), at_once, "accept")] == ["NTLM"]

    def test_nothing(self) -> None:
        assert not integrated_mechanisms(None, None, at_once, "accept")


class TestKerberos:
    @pytest.mark.parametrize("token", [raw(b"AP-REQ"), offer(b"AP-REQ", KERBEROS, NTLM)])
    def test_gssapi(self, token: bytes) -> None:
        exchange = Exchange("GSSAPI")
        *_, offered, done = exchange.steps(None, token, b"", NO_LAYER)
        assert offered == Challenge(WRAPPED + b"\1\0\0\0")
        context = exchange.acceptor.contexts[0]
        assert identity(done) == KerberosIdentity("alice@LAB.EXAMPLE", context.pac, "GSSAPI", CLIENT)
        assert context.tokens == [token]
        assert exchange.mechanism.user == "alice@LAB.EXAMPLE"

    @pytest.mark.parametrize("token", [raw(b"AP-REQ"), offer(b"AP-REQ", KERBEROS), raw(b"quiet")])
    def test_gss_spnego_has_no_layers(self, token: bytes) -> None:
        exchange = Exchange("GSS-SPNEGO")
        taken, done = exchange.steps(token, b"")
        assert isinstance(taken, Challenge), "235 is success to .NET only behind a 334"
        assert identity(done).mechanism == "GSS-SPNEGO"

    def test_gss_spnego_with_a_layer(self) -> None:
        """Cyrus SASL would wrap whatever it sends after 235."""
        with pytest.raises(UnauthorizedLogin, match="with a security layer, which is not served"):
            Exchange("GSS-SPNEGO").step(offer(b"layer", KERBEROS))
        *_, done = Exchange("GSSAPI").steps(offer(b"layer", KERBEROS), b"", NO_LAYER)
        assert identity(done), "GSSAPI negotiates the layer afterwards"

    def test_the_channel(self) -> None:
        tls = Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384", binding=b"tls-server-end-point:hash")
        exchange = Exchange("GSSAPI", replace(CLIENT, tls=tls), channel_binding="require")
        exchange.step(raw(b"AP-REQ"))
        (context,) = exchange.acceptor.contexts
        assert (context.binding, context.channel_binding) == (b"tls-server-end-point:hash", "require")

    def test_no_channel(self) -> None:
        exchange = Exchange("GSSAPI")
        exchange.step(raw(b"AP-REQ"))
        assert exchange.acceptor.contexts[0].binding == b""

    @pytest.mark.parametrize("name", ["GSSAPI", "GSS-SPNEGO"])
    def test_refusals_and_faults_are_the_contexts(self, name: str) -> None:
        with pytest.raises(UnauthorizedLogin, match="ticket expired"):
            Exchange(name).step(raw(b"expired"))
        with pytest.raises(Fault, match="No such file") as fault:
            Exchange(name).step(raw(b"keytab"))
        assert fault.value.reply.code == 454

    @pytest.mark.parametrize(
        "authzid", ["", "alice", "ALICE", "alice@LAB.EXAMPLE", "alice@lab.example", "alice@corp.example", "lab\\Alice"]
    )
    def test_an_authorisation_identity_of_ones_own(self, authzid: str) -> None:
        *_, done = Exchange("GSSAPI").steps(raw(b"AP-REQ"), b"", NO_LAYER + authzid.encode())
        assert identity(done).principal == "alice@LAB.EXAMPLE"

    @pytest.mark.parametrize(
        "authzid", [b"bob", b"alice@OTHER.EXAMPLE", b"alic", b"alice ", b"\\", b"@LAB.EXAMPLE", b"\xff"]
    )
    def test_of_somebody_else(self, authzid: bytes) -> None:
        exchange = Exchange("GSSAPI")
        exchange.steps(raw(b"AP-REQ"), b"")
        with pytest.raises(UnauthorizedLogin, match="asks to act as another user"):
            exchange.step(NO_LAYER + authzid)

    @pytest.mark.parametrize("layer", [0, 2, 3, 4, 5, 7, 0x81, 0xFF])
    def test_a_layer_that_was_not_offered(self, layer: int) -> None:
        exchange = Exchange("GSSAPI")
        exchange.steps(raw(b"AP-REQ"), b"")
        with pytest.raises(UnauthorizedLogin, match=f"security layer {layer:#04x}, which was not offered"):
            exchange.step(WRAPPED + bytes([layer]) + b"\0\xff\xff")

    def test_the_length_in_front(self) -> None:
        *_, done = Exchange("GSSAPI").steps(raw(b"AP-REQ"), b"", len(NO_LAYER).to_bytes(4, "little") + NO_LAYER)
        assert identity(done)

    @pytest.mark.parametrize("front", [b"\6\0\0", b"\0\0\0\6", b"\7\0\0\0", b"\5\0\0\0"])
    def test_another_length_in_front(self, front: bytes) -> None:
        exchange = Exchange("GSSAPI")
        exchange.steps(raw(b"AP-REQ"), b"")
        with pytest.raises(UnauthorizedLogin, match="altered"):
            exchange.step(front + NO_LAYER)

    def test_the_context_is_dropped(self) -> None:
        exchange = Exchange("GSSAPI")
        exchange.step(raw(b"AP-REQ"))
        held = weakref.ref(exchange.acceptor.contexts.pop())
        exchange.mechanism.close()
        gc.collect()
        assert held() is None


class TestChoice:
    def test_a_negotiation_that_can_end_in_kerberos_is_its(self) -> None:
        exchange = Exchange("GSSAPI")
        token = offer(b"", NEGOEX, NTLM, KERBEROS)
        assert isinstance(exchange.step(token), Challenge)
        assert exchange.acceptor.contexts[0].tokens == [token]
        assert exchange.backend.exchanges == []

    def test_unless_the_client_likes_ntlm_better(self) -> None:
        exchange = Exchange("GSSAPI")
        assert told(exchange.step(offer(NEGOTIATE, NTLM, KERBEROS))).supported_mech == NTLM
        assert exchange.acceptor.contexts == []

    def test_and_it_is_served(self) -> None:
        exchange = Exchange("GSSAPI", ntlm=False)
        exchange.step(offer(NEGOTIATE, NTLM, KERBEROS))
        assert len(exchange.acceptor.contexts) == 1

    @pytest.mark.parametrize("token", [NEGOTIATE, offer(NEGOTIATE, NTLM), offer(b"", NEGOEX, NTLM)])
    def test_ntlm_that_is_not_served(self, token: bytes) -> None:
        with pytest.raises(UnauthorizedLogin, match="NTLM, which is not served"):
            Exchange("GSSAPI", ntlm=False).step(token)

    def test_neither(self) -> None:
        with pytest.raises(UnauthorizedLogin, match=f"neither Kerberos nor NTLM, but {NEGOEX}"):
            Exchange("GSS-SPNEGO").step(offer(b"", NEGOEX))

    def test_no_token(self) -> None:
        with pytest.raises(Fault) as refused:
            Exchange("GSSAPI").steps(None, b"")
        assert refused.value.reply.code == 501


class TestNtlm:
    def test_without_spnego(self) -> None:
        for name in INTEGRATED[:3]:
            exchange = Exchange(name)
            begun, challenge, done = exchange.steps(None, NEGOTIATE, RIGHT)
            assert (begun, challenge) == (Challenge(b""), Challenge(CHALLENGE + b"who are you"))
            response = ntlm_response(done)
            assert response.exchange is exchange.backend.exchanges[0]
            assert (response.authenticate, response.mechanism, response.client) == (RIGHT, name, CLIENT)
            assert (response.mech_list, response.mech_list_mic) == (b"", b"")

    def test_in_spnego(self) -> None:
        exchange = Exchange("GSSAPI")
        challenge = told(exchange.step(offer(NEGOTIATE, NTLM)))
        assert (challenge.neg_state, challenge.supported_mech) == (NegState.accept_incomplete, NTLM)
        assert challenge.response_token == CHALLENGE + b"who are you"
        response = ntlm_response(exchange.step(answer(RIGHT)))
        assert (response.authenticate, response.mech_list, response.mech_list_mic) == (RIGHT, b"", b"")
        assert exchange.backend.exchanges[0].negotiate == NEGOTIATE

    def test_the_proof_of_the_list(self) -> None:
        exchange = Exchange("GSSAPI")
        exchange.step(offer(NEGOTIATE, NTLM, NEGOEX))
        response = ntlm_response(exchange.step(answer(RIGHT, b"mic")))
        assert response.mech_list_mic == b"mic"
        assert response.mech_list == pack_mech_type_list([NTLM, NEGOEX])
        assert not response.list_in_doubt

    def test_as_second_choice(self) -> None:
        exchange = Exchange("GSS-SPNEGO")
        chosen = told(exchange.step(offer(b"of negoex", NEGOEX, NTLM)))
        assert (chosen.neg_state, chosen.supported_mech, chosen.response_token) == (NegState.request_mic, NTLM, None)
        assert told(exchange.step(answer(NEGOTIATE))).response_token == CHALLENGE + b"who are you"
        with pytest.raises(UnauthorizedLogin, match="no mechListMIC"):
            exchange.step(answer(RIGHT))

    def test_as_second_choice_proven(self) -> None:
        exchange = Exchange("GSS-SPNEGO")
        exchange.step(offer(b"of negoex", NEGOEX, NTLM))
        exchange.step(answer(NEGOTIATE))
        response = ntlm_response(exchange.step(answer(RIGHT, b"mic")))
        assert (response.mech_list_mic, response.list_in_doubt) == (b"mic", True)

    def test_without_a_token_in_hope(self) -> None:
        exchange = Exchange("GSS-SPNEGO")
        chosen = told(exchange.step(NegTokenInit([NTLM]).pack()))
        assert (chosen.neg_state, chosen.supported_mech) == (NegState.accept_incomplete, NTLM)
        assert told(exchange.step(answer(NEGOTIATE))).response_token == CHALLENGE + b"who are you"
        assert ntlm_response(exchange.step(answer(RIGHT)))

    @pytest.mark.parametrize("token", [b"", RIGHT, b"\xa1\x03\x30\x01", offer(RIGHT, NTLM)])
    def test_what_is_no_spnego_behind_spnego(self, token: bytes) -> None:
        exchange = Exchange("GSSAPI")
        exchange.step(offer(NEGOTIATE, NTLM))
        with pytest.raises(UnauthorizedLogin, match="SPNEGO"):
            exchange.step(token)

    @pytest.mark.parametrize("name", ["GSSAPI", "NTLM"])
    def test_malformed(self, name: str) -> None:
        with pytest.raises(Fault) as refused:
            Exchange(name).step(RIGHT)
        assert refused.value.reply.code == 501

    def test_abandoned(self) -> None:
        for name, token in (("NTLM", NEGOTIATE), ("GSSAPI", NEGOTIATE), ("GSS-SPNEGO", offer(NEGOTIATE, NTLM))):
            exchange = Exchange(name)
            exchange.step(token)
            exchange.mechanism.close()
            exchange.mechanism.close()
            assert [one.state for one in exchange.backend.exchanges] == ["abandoned"]

    def test_nothing_to_abandon(self) -> None:
        for name in INTEGRATED[:3]:
            exchange = Exchange(name)
            exchange.step(None)
            exchange.mechanism.close()


#: Pieces of exchanges, in any order: what a client that is out of step, or out of its mind, might send.
TOKENS = st.one_of(
    st.sampled_from(
        [
            None,
            b"",
            raw(b"AP-REQ"),
            raw(b"more"),
            raw(b"quiet"),
            raw(b"expired"),
            NO_LAYER,
            NO_LAYER + b"alice",
            NO_LAYER + b"bob",
            WRAPPED,
            WRAPPED + b"\4\0\0\0",
            NEGOTIATE,
            RIGHT,
            AUTHENTICATE,
            offer(NEGOTIATE, NTLM),
            offer(b"", NEGOEX, NTLM),
            offer(b"AP-REQ", KERBEROS, NTLM),
            NegTokenInit([NTLM]).pack(),
            answer(NEGOTIATE),
            answer(RIGHT),
            answer(RIGHT, b"mic"),
        ]
    ),
    st.binary(max_size=64),
    st.binary(max_size=32).map(lambda octets: b"\x60\x2a\x06\x06\x2b\x06\x01\x05\x05\x02" + octets),
)


class TestAnySequence:
    @given(st.sampled_from(INTEGRATED[:3]), st.booleans(), st.lists(TOKENS, max_size=8))
    def test_ends_well(self, name: str, ntlm: bool, tokens: list[bytes | None]) -> None:
        """A challenge, an end, a refusal or a fault; nobody is let in but by alice's ticket, or an answer to judge."""
        if name == "NTLM":
            ntlm = True
        exchange = Exchange(name, ntlm=ntlm)
        for at, token in enumerate(tokens):
            if token is None and at:
                continue  # an initial response is missing at the start alone
            try:
                step = exchange.step(token)
            except (UnauthorizedLogin, Fault):
                break
            if isinstance(step, Challenge):
                continue
            if isinstance(step.credentials, KerberosIdentity):
                assert exchange.acceptor.contexts[0].complete
                assert name != "GSSAPI" or NO_LAYER in (token or b"")
            else:
                assert exchange.backend.exchanges
            break
        exchange.mechanism.close()
        assert all(one.state == "abandoned" for one in exchange.backend.exchanges)


class Session(Talk):
    """A session that offers the mechanisms. *held* are calls that wait for a thread, when there are none."""

    def __init__(self, threads: bool = True, **options: Any) -> None:
        self.acceptor, self.backend, self.identities = FakeAcceptor(), FakeBackend(), IdentityChecker()
        self.held: list[tuple[Deferred[Any], Any, tuple[Any, ...]]] = []
        super().__init__(
            policy=FakePolicy(offered=INTEGRATED),
            mechanisms=integrated(self.backend, self.acceptor, at_once if threads else self.hold),
            checkers=(self.identities,),
            **options,
        )
        self.hello()

    def hold(self, call: Any, *arguments: Any) -> Deferred[Any]:
        later: Deferred[Any] = Deferred()
        self.held.append((later, call, arguments))
        return later

    def release(self) -> None:
        later, call, arguments = self.held.pop(0)
        later.callback(call(*arguments))

    def auth(self, name: str, token: bytes) -> str:
        return self.line(f"AUTH {name} {b64encode(token).decode()}")

    def respond(self, token: bytes) -> str:
        return self.line(b64encode(token).decode())


class TestSession:
    def test_it_waits_for_the_thread(self) -> None:
        talk = Session(threads=False)
        assert talk.auth("GSSAPI", raw(b"AP-REQ")) == ""
        assert not talk.paused, "a client that waits costs no system call"
        # Two empty lines, the layer's answer and a command, none of which may be looked at before its turn.
        assert talk.send(b"\r\n\r\n" + b64encode(NO_LAYER) + b"\r\nNOOP\r\n") == b""
        assert talk.paused
        talk.release()
        assert talk.read().startswith(b"334 ")
        assert talk.paused, "the answer is unwrapped in a thread too"
        talk.release()
        assert talk.read() == b"235 2.7.0 Authentication successful\r\n250 2.0.0 OK\r\n"
        assert not talk.paused

    def test_who_it_was(self) -> None:
        talk = Session()
        talk.auth("GSSAPI", raw(b"AP-REQ"))
        talk.line("")
        assert talk.respond(NO_LAYER).startswith("235")
        assert talk.event("authenticated").user == "alice@LAB.EXAMPLE"
        assert talk.event("authenticated").mechanism == "GSSAPI"
        assert talk.event("authenticated").source == "kerberos"

    def test_the_log_knows_who_failed(self) -> None:
        talk = Session()
        talk.auth("GSSAPI", raw(b"AP-REQ"))
        talk.line("")
        assert talk.respond(NO_LAYER + b"bob") == "535 5.7.8 Authentication credentials invalid"
        failed = talk.event("authentication-failed")
        assert (failed.user, failed.reason) == ("alice@LAB.EXAMPLE", "asks to act as another user: bob")

    def test_a_full_pool(self) -> None:
        talk = Session(threads=False)
        busy = Fault(Reply.of(454, "4.7.0", "Temporary authentication failure"), "thread pool kerberos is full")
        talk.hold = lambda *_: fail(busy)  # type: ignore[method-assign]
        talk.server.mechanisms = integrated(talk.backend, talk.acceptor, talk.hold)
        assert [talk.auth("GSSAPI", raw(b"AP-REQ"))[:3] for _ in range(5)] == ["454"] * 5
        assert talk.line("NOOP").startswith("250")

    @pytest.mark.parametrize("end", ["cancelled", "refused", "right", "gone", "bad line", "timed out"])
    def test_an_ntlm_exchange_is_given_back(self, end: str) -> None:
        talk = Session()
        assert talk.auth("NTLM", NEGOTIATE).startswith("334")
        (exchange,) = talk.backend.exchanges
        match end:
            case "cancelled":
                assert talk.line("*").startswith("501")
            case "refused":
                assert talk.respond(AUTHENTICATE).startswith("535")
            case "right":
                assert talk.respond(RIGHT).startswith("235")
            case "gone":
                talk.hang_up()
            case "bad line":
                assert talk.send(b"a\0b\r\n").startswith(b"500")
            case "timed out":
                talk.clock.advance(talk.server.listener.limits.command_timeout + 1)
                assert talk.read().startswith(b"421")
                talk.hang_up()
        assert exchange.state == "abandoned"

    def test_gone_while_the_backend_begins(self) -> None:
        talk = Session()
        talk.backend.waiting = []
        assert talk.auth("NTLM", NEGOTIATE) == ""
        talk.hang_up()
        talk.backend.waiting[0].callback(None)
        assert [one.state for one in talk.backend.exchanges] == ["abandoned"]
        assert talk.read() == b""

    @pytest.mark.parametrize("token", [raw(b"AP-REQ"), raw(b"quiet"), raw(b"more")])
    def test_gone_while_a_thread_is_at_it(self, token: bytes) -> None:
        talk = Session(threads=False)
        talk.auth("GSSAPI", token)
        talk.hang_up()
        talk.release()
        held = weakref.ref(talk.acceptor.contexts.pop())
        gc.collect()
        assert held() is None
        assert talk.read() == b""
        assert talk.identities.seen == []
        assert talk.names()[-1] == "session-closed"

    def test_gone_while_the_answer_is_unwrapped(self) -> None:
        talk = Session(threads=False)
        talk.auth("GSSAPI", raw(b"AP-REQ"))
        talk.release()
        talk.line("")
        talk.respond(NO_LAYER)
        talk.hang_up()
        talk.release()
        assert talk.identities.seen == [], "nobody is left to be let in"
        assert talk.realm.logins == []

    def test_the_second_empty_line_is_one(self) -> None:
        talk = Session()
        talk.auth("GSSAPI", raw(b"AP-REQ"))
        assert talk.send(b"\r\n\r\n").count(b"334") == 1
        assert talk.respond(NO_LAYER).startswith("235")
        assert talk.line("").startswith("500"), "an empty line is no command"

    def test_a_long_ticket(self) -> None:
        talk = Session()
        token = raw(b"AP-REQ").ljust(TOKEN, b"x")
        assert talk.auth("GSSAPI", token).startswith("334")
        assert talk.acceptor.contexts[0].tokens == [token]

    def test_a_token_too_long_is_nobodys_failure(self) -> None:
        talk = Session()
        for _ in range(5):
            assert talk.auth("GSSAPI", bytes(TOKEN + 1)) == "500 5.5.6 Authentication exchange line is too long"
        assert "authentication-failed" not in talk.names()
        assert talk.acceptor.contexts == []

    @given(st.lists(TOKENS, max_size=6), st.sampled_from(INTEGRATED[:3]))
    def test_any_sequence_is_answered_line_by_line(self, tokens: list[bytes | None], name: str) -> None:
        talk = Session(max_failures=100)
        said = talk.line(f"AUTH {name}")
        for token in tokens:
            if not said.startswith("334"):
                break
            said = talk.respond(token or b"")
        assert said == "" or said[:3] in ("334", "235", "501", "535"), said
        assert "\n" not in said, ".NET reads one line"
        talk.hang_up()
        assert all(one.state == "abandoned" for one in talk.backend.exchanges)
        assert not [event for event in talk.seen if isinstance(event, InternalFault)]
