"""NTLM against the accounts file: who is let in by an NT hash, and what else a right answer must hold."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spnego._ntlm_raw.messages import AvFlags, AvId, NegotiateFlags
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from relayd.auth import AccountsFile, FailureCount
from relayd.auth.credentials import NtlmResponse
from relayd.auth.ntlm import NtlmExchange
from relayd.auth.ntlm_accounts import AccountsBackend
from relayd.auth.ntlm_checker import LocalNtlmChecker
from relayd.auth.ntlm_messages import parse_authenticate
from relayd.model import Client, Fault, Peer, Principal, Tls, client_address
from tests.unit.auth.ntlm_client import FLAGS, PlainClient, Spnego, rebuilt
from tests.unit.auth.test_accounts import CHEAP
from tests.unit.auth.test_checkers import WhoRealm

BINDING = b"tls-server-end-point:0123456789abcdef0123456789abcdef"
MIC = slice(72, 88)


def result(deferred: Deferred[Any]) -> Any:
    """What *deferred* has fired with."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    (fired,) = results
    if isinstance(fired, Failure):
        fired.raiseException()
    return fired


class Setting:
    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self.accounts = AccountsFile(directory / "accounts.json", CHEAP)
        self.accounts.add("alice", "secret", ("alice@corp.example",), ("App Senders",), nt=True)
        self.failures = FailureCount(3, 60.0, self.clock.seconds)
        self.rules = {"smtp": "accept", "old": "ignore", "strict": "require"}
        checker = LocalNtlmChecker(self.failures, self.rules.__getitem__)
        self.portal = Portal(WhoRealm(), [checker])
        self.backend = AccountsBackend(self.accounts, "relay01.corp.example", lambda: 1_700_000_000.0)

    def begin(self, negotiate: bytes) -> NtlmExchange:
        return result(Deferred.fromCoroutine(self.backend.begin(negotiate)))  # type: ignore[no-any-return]

    def judge(
        self,
        exchange: NtlmExchange,
        answer: bytes,
        *,
        listener: str = "smtp",
        binding: bytes | None = None,
        address: str = "192.0.2.7",
        **more: Any,
    ) -> Principal:
        tls = None if binding is None else Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384", binding=binding)
        client = Client(Peer(client_address(address)), listener, tls=tls)
        credentials = NtlmResponse(exchange, answer, "NTLM", client, **more)
        return result(self.portal.login(credentials, None, WhoRealm))[1]  # type: ignore[no-any-return]

    def login(self, client: Spnego | PlainClient, **more: Any) -> Principal:
        exchange = self.begin(client.negotiate)
        return self.judge(exchange, client.answer(exchange.challenge), **more)

    def refused(self, client: Spnego | PlainClient, **more: Any) -> str:
        with pytest.raises(UnauthorizedLogin) as caught:
            self.login(client, **more)
        return str(caught.value)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def with_mic(user: str = "alice", password: str = "secret", **more: bytes) -> Spnego:
    return Spnego(user, password, **more)


class TestWho:
    def test_a_right_answer_makes_a_principal(self, setting: Setting) -> None:
        assert setting.login(with_mic()) == Principal(
            name="alice",
            mechanism="NTLM",
            source="accounts",
            groups=frozenset({"App Senders"}),
            addresses=("alice@corp.example",),
        )

    @pytest.mark.parametrize("user", ["ALICE", "CORP\\Alice", ".\\alice", "RELAY01\\alice"])
    def test_any_domain_and_any_case_will_do(self, setting: Setting, user: str) -> None:
        assert setting.login(with_mic(user)).name == "alice"

    def test_a_client_without_a_mic(self, setting: Setting) -> None:
        assert setting.login(PlainClient("alice", "secret")).name == "alice"

    def test_a_client_that_leaves_the_domain_out_of_what_it_computes(self, setting: Setting) -> None:
        client = PlainClient("alice", "secret", "CORP")
        client.hashed_domain = ""
        assert setting.login(client).name == "alice"

    def test_characters_beyond_ascii(self, setting: Setting) -> None:
        setting.accounts.add("jörg", "пароль🔑", (), (), nt=True)
        assert setting.login(with_mic("CORP\\jörg", "пароль🔑")).name == "jörg"

    def test_a_password_that_looks_like_hashes_is_a_password(self, setting: Setting) -> None:
        text = "0" * 32 + ":" + "1" * 32
        setting.accounts.add("bob", text, (), (), nt=True)
        assert setting.accounts.find("bob").nt != "1" * 32  # type: ignore[union-attr]

    @pytest.mark.parametrize("password", ["Secret", "", "secret "])
    def test_a_wrong_password(self, setting: Setting, password: str) -> None:
        assert setting.refused(with_mic("alice", password)) == "unknown account or wrong password"

    def test_an_unknown_account(self, setting: Setting) -> None:
        assert setting.refused(with_mic("nobody")) == "unknown account or wrong password"

    def test_an_account_without_an_nt_hash(self, setting: Setting) -> None:
        setting.accounts.add("bob", "secret", (), ())
        assert "no NT hash" in setting.refused(with_mic("bob"))

    def test_an_answer_to_another_challenge(self, setting: Setting) -> None:
        client = with_mic()
        answer = client.answer(setting.begin(client.negotiate).challenge)
        with pytest.raises(UnauthorizedLogin):
            setting.judge(setting.begin(client.negotiate), answer)

    def test_a_file_that_cannot_be_read_is_no_refusal(self, setting: Setting) -> None:
        client = with_mic()
        exchange = setting.begin(client.negotiate)
        setting.accounts.file.write_text("{")
        with pytest.raises(Fault) as caught:
            setting.judge(exchange, client.answer(exchange.challenge))
        assert str(caught.value.reply).startswith("454 4.7.0")

    @pytest.mark.parametrize("nt", ["00", "x" * 32, 5, ["0" * 32]])
    def test_an_nt_hash_that_is_none_spoils_the_file(self, setting: Setting, nt: object) -> None:
        client = with_mic()
        exchange = setting.begin(client.negotiate)
        document = json.loads(setting.accounts.file.read_text())
        document["accounts"]["alice"]["nt"] = nt
        setting.accounts.file.write_text(json.dumps(document))
        with pytest.raises(Fault) as caught:
            setting.judge(exchange, client.answer(exchange.challenge))
        assert "xx" not in caught.value.detail


class TestTheFile:
    def test_it_has_an_nt_hash_where_it_was_asked_for_alone(self, setting: Setting) -> None:
        setting.accounts.add("bob", "secret", (), ())
        document = json.loads(setting.accounts.file.read_text())["accounts"]
        # MS-NLMP 4.2.2.1.2 has "Password".
        assert "nt" not in document["bob"]
        setting.accounts.add("vector", "Password", (), (), nt=True)
        vector = json.loads(setting.accounts.file.read_text())["accounts"]["vector"]
        assert vector["nt"] == "a4f49c406510bdcab6824ee7c30fd852"

    def test_replacing_an_account_without_it_takes_it_away(self, setting: Setting) -> None:
        setting.accounts.add("alice", "secret", (), ())
        assert "nt" not in json.loads(setting.accounts.file.read_text())["accounts"]["alice"]

    def test_a_reader_keeps_it_and_no_repr_shows_it(self, setting: Setting) -> None:
        setting.accounts.add("bob", "secret", (), ())
        alice = AccountsFile(setting.accounts.file, CHEAP).find("alice")
        assert alice is not None
        assert len(alice.nt) == 32
        assert alice.nt not in repr(alice)


class TestRefusals:
    def test_weak_answers_are_refused_before_anybody_looks(
        self, setting: Setting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        setting.accounts.file.write_text("{")  # a look would be a fault
        monkeypatch.setenv("LM_COMPAT_LEVEL", "2")
        assert "NTLMv1 response with NTLM2 session" in setting.refused(with_mic())
        monkeypatch.setenv("LM_COMPAT_LEVEL", "0")
        assert setting.refused(with_mic()).startswith("NTLMv1 response;")

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"nt": b"", "lm": b"\0", "user": b"", "domain": b"", "key": b""}, "anonymous"),
            ({"nt": b"", "lm": b""}, "anonymous"),
            ({"user": b""}, "anonymous"),
            ({"flags": FLAGS | NegotiateFlags.anonymous}, "anonymous"),
            ({"nt": b"", "lm": b"l" * 24}, "LM response"),
            ({"user": "a".encode("utf-16-le") * 256}, "no name"),
            ({"domain": "a".encode("utf-16-le") * 256}, "no name"),
            ({"workstation": "a".encode("utf-16-le") * 256}, "no name"),
            ({"user": "alice\r\n".encode("utf-16-le")}, "no name"),
            ({"user": "alice\0".encode("utf-16-le")}, "no name"),
        ],
    )
    def test_what_can_be_no_answer(self, setting: Setting, changes: dict[str, Any], reason: str) -> None:
        client = PlainClient("alice", "secret")
        exchange = setting.begin(client.negotiate)
        with pytest.raises(UnauthorizedLogin, match=reason):
            setting.judge(exchange, rebuilt(client.answer(exchange.challenge), **changes))

    def test_failures_block_before_the_answer_is_looked_at(self, setting: Setting) -> None:
        for _ in range(3):
            setting.refused(with_mic("alice", "wrong"))
        with pytest.raises(Fault, match="too many failures of alice"):
            setting.login(with_mic())
        assert setting.login(with_mic(), address="192.0.2.8").name == "alice"
        setting.clock.advance(61)
        assert setting.login(with_mic()).name == "alice"

    def test_a_success_forgets_failures(self, setting: Setting) -> None:
        for _ in range(4):
            setting.refused(with_mic("alice", "wrong"))
            setting.refused(with_mic("ALICE", "wrong"))
            setting.login(with_mic())


class TestMic:
    def test_one_that_was_changed(self, setting: Setting) -> None:
        client = with_mic()
        exchange = setting.begin(client.negotiate)
        answer = bytearray(client.answer(exchange.challenge))
        assert parse_authenticate(bytes(answer)).has_mic
        at = answer.index(parse_authenticate(bytes(answer)).mic)
        answer[at] ^= 1
        with pytest.raises(UnauthorizedLogin, match="wrong MIC"):
            setting.judge(exchange, bytes(answer))

    def test_one_of_zeros(self, setting: Setting) -> None:
        client = with_mic()
        exchange = setting.begin(client.negotiate)
        answer = client.answer(exchange.challenge)
        answer = answer.replace(parse_authenticate(answer).mic, bytes(16))
        with pytest.raises(UnauthorizedLogin, match="wrong MIC"):
            setting.judge(exchange, answer)

    def test_one_that_was_taken_out(self, setting: Setting) -> None:
        client = with_mic()
        exchange = setting.begin(client.negotiate)
        answer = rebuilt(client.answer(exchange.challenge))
        assert not parse_authenticate(answer).mic
        with pytest.raises(UnauthorizedLogin, match="and has none"):
            setting.judge(exchange, answer)

    def test_the_bit_that_says_so_is_under_the_proof(self, setting: Setting) -> None:
        client = with_mic()
        exchange = setting.begin(client.negotiate)
        answer = client.answer(exchange.challenge)
        nt = parse_authenticate(answer).nt
        without = nt.replace(b"\x06\0\x04\0\x02\0\0\0", b"\x06\0\x04\0\0\0\0\0")
        assert without != nt
        with pytest.raises(UnauthorizedLogin, match="wrong password"):
            setting.judge(exchange, rebuilt(answer, nt=without))

    def test_an_altered_negotiate_message(self, setting: Setting) -> None:
        client = with_mic()
        altered = bytearray(client.negotiate)
        altered[12:16] = (int.from_bytes(altered[12:16], "little") & ~NegotiateFlags.seal).to_bytes(4, "little")
        exchange = setting.begin(bytes(altered))
        with pytest.raises(UnauthorizedLogin, match="wrong MIC"):
            setting.judge(exchange, client.answer(exchange.challenge))

    def test_an_altered_flag_of_the_answer(self, setting: Setting) -> None:
        client = with_mic()
        exchange = setting.begin(client.negotiate)
        answer = bytearray(client.answer(exchange.challenge))
        answer[60] ^= NegotiateFlags.seal
        with pytest.raises(UnauthorizedLogin, match="wrong MIC"):
            setting.judge(exchange, bytes(answer))


class TestTargetInfo:
    @pytest.mark.parametrize(
        "pairs",
        [
            {AvId.nb_computer_name: "OTHER"},
            {AvId.nb_domain_name: "OTHER"},
            {AvId.dns_computer_name: "other.corp.example"},
            {AvId.dns_domain_name: "other.example"},
            {AvId.nb_computer_name: None},
            dict.fromkeys((AvId.nb_computer_name, AvId.nb_domain_name, AvId.dns_computer_name, AvId.timestamp)),
        ],
    )
    def test_names_that_were_altered_on_their_way(self, setting: Setting, pairs: dict[AvId, Any]) -> None:
        client = PlainClient("alice", "secret")
        client.pairs = pairs
        assert "target info" in setting.refused(client)

    def test_other_pairs_are_the_clients_own_business(self, setting: Setting) -> None:
        client = PlainClient("alice", "secret")
        client.pairs = {AvId.target_name: "smtp/relay", AvId.dns_tree_name: "x", AvId.flags: AvFlags.constrained}
        assert setting.login(client).name == "alice"


class TestService:
    """Whoever makes a browser or a host sign in to him cannot pass that on to relayd."""

    @pytest.mark.parametrize("target", ["HTTP/intranet", "cifs/relay01.corp.example", "ldap/dc1", "HTTP/a/b"])
    def test_an_answer_for_another_kind_of_service(self, setting: Setting, target: str) -> None:
        client = PlainClient("alice", "secret")
        client.pairs = {AvId.target_name: target}
        for listener in ("smtp", "strict"):
            assert f"an answer for {target}" in setting.refused(client, listener=listener, binding=BINDING)
        assert setting.login(client, listener="old").name == "alice"

    @pytest.mark.parametrize("target", ["SMTPSVC/mail", "smtp/an.alias.example", "HOST/relay01", "relay01", "", None])
    def test_one_for_this_kind_or_for_none_that_is_known(self, setting: Setting, target: str | None) -> None:
        client = PlainClient("alice", "secret")
        client.pairs = {AvId.target_name: target}
        assert setting.login(client).name == "alice"


class TestChannelBinding:
    @pytest.mark.parametrize(
        ("listener", "bound", "channel", "good"),
        [
            ("old", b"", None, True),
            ("old", BINDING, None, True),
            ("old", b"tls-server-end-point:other", BINDING, True),
            ("smtp", b"", None, True),
            ("smtp", b"", BINDING, True),
            ("smtp", BINDING, BINDING, True),
            ("smtp", b"tls-server-end-point:other", BINDING, False),
            ("smtp", BINDING, None, False),  # relayed from TLS to the clear
            ("smtp", BINDING, b"", False),
            ("strict", b"", BINDING, False),
            ("strict", b"", None, False),
            ("strict", BINDING, None, False),
            ("strict", b"tls-server-end-point:other", BINDING, False),
            ("strict", BINDING, BINDING, True),
        ],
    )
    @pytest.mark.parametrize("mic", [True, False])
    def test_rules(
        self, setting: Setting, listener: str, bound: bytes, channel: bytes | None, good: bool, mic: bool
    ) -> None:
        client: Spnego | PlainClient
        if mic:
            client = with_mic(binding=bound)
        else:
            client = PlainClient("alice", "secret")
            full = Spnego("x", "x", binding=bound)
            pairs = parse_authenticate(full.answer(setting.begin(full.negotiate).challenge)).pairs
            client.pairs = {AvId.channel_bindings: pairs.get(AvId.channel_bindings)}
        if good:
            assert setting.login(client, listener=listener, binding=channel).name == "alice"
        else:
            reason = "no channel binding" if not bound else "another channel"
            assert reason in setting.refused(client, listener=listener, binding=channel)

    def test_zeros_are_no_binding(self, setting: Setting) -> None:
        client = PlainClient("alice", "secret")
        client.pairs = {AvId.channel_bindings: bytes(16)}
        assert setting.login(client, binding=BINDING).name == "alice"
        assert "no channel binding" in setting.refused(client, binding=BINDING, listener="strict")

    @pytest.mark.parametrize("value", [b"", b"x", b"x" * 15, b"x" * 17])
    def test_a_hash_of_another_length(self, setting: Setting, value: bytes) -> None:
        client = PlainClient("alice", "secret")
        client.pairs = {AvId.channel_bindings: value}
        if value:
            assert "another channel" in setting.refused(client, binding=BINDING)
        else:
            assert setting.login(client, binding=BINDING).name == "alice"


class TestMechListMic:
    LIST = bytes.fromhex("300c060a2b06010401823702020a")

    def test_a_right_one(self, setting: Setting) -> None:
        client = with_mic()
        exchange = setting.begin(client.negotiate)
        answer = client.answer(exchange.challenge)
        signed = client.signature(self.LIST)
        assert setting.judge(exchange, answer, mech_list=self.LIST, mech_list_mic=signed).name == "alice"

    @pytest.mark.parametrize("wrong", [b"x", bytes(16), b"\x01" + bytes(15)])
    def test_a_wrong_one(self, setting: Setting, wrong: bytes) -> None:
        client = with_mic()
        exchange = setting.begin(client.negotiate)
        answer = client.answer(exchange.challenge)
        with pytest.raises(UnauthorizedLogin, match="mechListMIC"):
            setting.judge(exchange, answer, mech_list=self.LIST, mech_list_mic=wrong)

    def test_of_another_list(self, setting: Setting) -> None:
        client = with_mic()
        exchange = setting.begin(client.negotiate)
        answer = client.answer(exchange.challenge)
        signed = client.signature(self.LIST + b"more")
        with pytest.raises(UnauthorizedLogin, match="mechListMIC"):
            setting.judge(exchange, answer, mech_list=self.LIST, mech_list_mic=signed)


class TestAnythingElse:
    @settings(deadline=None)
    @given(
        changes=st.lists(st.tuples(st.integers(0, 500), st.integers(1, 255)), min_size=1, max_size=5), data=st.data()
    )
    def test_an_answer_with_octets_changed_is_refused_or_still_alices(
        self, tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], data: st.DataObject
    ) -> None:
        setting = Setting(tmp_path_factory.getbasetemp())
        client = with_mic() if data.draw(st.booleans()) else PlainClient("alice", "secret")
        exchange = setting.begin(client.negotiate)
        octets = bytearray(client.answer(exchange.challenge))
        for at, value in changes:
            octets[at % len(octets)] ^= value
        signature = data.draw(st.one_of(st.just(b""), st.binary(max_size=20)))
        with contextlib.suppress(UnauthorizedLogin, Fault):
            principal = setting.judge(exchange, bytes(octets), mech_list=b"list", mech_list_mic=signature)
            assert principal.name == "alice"

    @settings(deadline=None)
    @given(octets=st.binary(max_size=120))
    def test_garbage_is_refused(self, tmp_path_factory: pytest.TempPathFactory, octets: bytes) -> None:
        setting = Setting(tmp_path_factory.getbasetemp())
        exchange = setting.begin(PlainClient("alice", "secret").negotiate)
        with pytest.raises((UnauthorizedLogin, Fault)):
            setting.judge(exchange, b"NTLMSSP\0\x03\0\0\0" + octets)
