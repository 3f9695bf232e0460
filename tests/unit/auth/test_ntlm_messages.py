"""NTLM messages: what a client is asked, what is read of its answer, and what is no message at all."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spnego._ntlm_raw.messages import Authenticate as Message
from spnego._ntlm_raw.messages import AvId, Challenge, Negotiate, NegotiateFlags

from relayd.auth.ntlm_messages import (
    Target,
    binding_hash,
    exported_session_key,
    make_challenge,
    mech_list_mic,
    message_mic,
    own_pairs,
    parse_authenticate,
    server_challenge,
)
from relayd.model import Fault
from tests.unit.auth.ntlm_client import FLAGS, PlainClient, Spnego, rebuilt

TARGET = Target("RELAY01", "CORP", "relay01.corp.example", "corp.example")
NOW = 1_700_000_000.0
NONCE = b"01234567"


def asked(negotiate: bytes, target: Target = TARGET) -> bytes:
    return make_challenge(negotiate, target, NOW, NONCE)


def malformed(octets: bytes) -> str:
    with pytest.raises(Fault) as caught:
        parse_authenticate(octets)
    assert str(caught.value.reply).startswith("501 5.5.2")
    return caught.value.detail


class TestChallenge:
    def test_it_names_who_asks_and_when(self) -> None:
        challenge = Challenge.unpack(asked(Negotiate(FLAGS).pack()))
        info = challenge.target_info
        assert challenge.server_challenge == NONCE
        assert challenge.target_name == "CORP"
        assert challenge.flags & NegotiateFlags.target_type_domain
        assert info is not None
        assert (info[AvId.nb_domain_name], info[AvId.nb_computer_name]) == ("CORP", "RELAY01")
        assert (info[AvId.dns_domain_name], info[AvId.dns_computer_name]) == ("corp.example", "relay01.corp.example")
        assert info[AvId.timestamp].year == 2023

    def test_a_host_without_a_domain_names_itself(self) -> None:
        challenge = Challenge.unpack(asked(Negotiate(FLAGS).pack(), Target("RELAY", dns_computer="relay.example")))
        assert challenge.target_name == "RELAY"
        assert challenge.flags & NegotiateFlags.target_type_server
        assert not challenge.flags & NegotiateFlags.target_type_domain

    def test_each_has_another_nonce(self) -> None:
        negotiate = Negotiate(FLAGS).pack()
        nonces = {server_challenge(make_challenge(negotiate, TARGET, NOW)) for _ in range(10)}
        assert len(nonces) == 10

    def test_oem_characters_only_where_the_client_knows_no_others(self) -> None:
        flags = FLAGS & ~NegotiateFlags.unicode
        challenge = Challenge.unpack(asked(Negotiate(flags).pack(), Target("RELAY", "KÖLN")))
        assert challenge.flags & NegotiateFlags.oem
        assert not challenge.flags & NegotiateFlags.unicode
        assert challenge.target_name == "K?LN"
        assert not Challenge.unpack(asked(Negotiate(FLAGS).pack())).flags & NegotiateFlags.oem

    def test_the_lm_key_is_never_negotiated(self) -> None:
        every = Challenge.unpack(asked(Negotiate(0xFFFFFFFF).pack()))
        assert not every.flags & (NegotiateFlags.lm_key | NegotiateFlags.datagram | NegotiateFlags.anonymous)

    def test_a_client_without_characters_is_refused(self) -> None:
        with pytest.raises(Fault, match="character set"):
            asked(Negotiate(NegotiateFlags.ntlm).pack())

    @pytest.mark.parametrize(
        "octets",
        [
            b"",
            b"NTLMSSP\0",
            b"NTLMSSP\0\x01\0\0\0",
            b"ntlmssp\0" + Negotiate(FLAGS).pack()[8:],
            Negotiate(FLAGS).pack()[:31],
            asked(Negotiate(FLAGS).pack()),
            Message(FLAGS).pack(),
        ],
    )
    def test_no_negotiate_message(self, octets: bytes) -> None:
        with pytest.raises(Fault) as caught:
            asked(octets)
        assert str(caught.value.reply).startswith("501 5.5.2")

    @given(st.binary(max_size=100))
    def test_garbage_behind_the_signature(self, octets: bytes) -> None:
        with contextlib.suppress(Fault):
            asked(b"NTLMSSP\0\x01\0\0\0" + octets)


class TestAnswer:
    def test_what_pyspnego_sends(self) -> None:
        client = Spnego("CORP\\alice", "secret")
        message = parse_authenticate(client.answer(asked(client.negotiate)))
        assert (message.user, message.domain) == ("alice", "CORP")
        assert not message.weakness
        assert not message.anonymous
        assert message.has_mic
        assert not message.binding
        assert message.pairs[AvId.target_name].decode("utf-16-le") == "smtp/relay01.corp.example"

    def test_names_beyond_ascii(self) -> None:
        client = PlainClient("jörg", "secret", "KÖLN")
        message = parse_authenticate(client.answer(asked(client.negotiate)))
        assert (message.user, message.domain) == ("jörg", "KÖLN")

    def test_oem_names(self) -> None:
        client = PlainClient("jörg", "secret", flags=FLAGS & ~NegotiateFlags.unicode)
        message = parse_authenticate(client.answer(asked(client.negotiate)))
        assert (message.user, message.domain) == ("jörg", "CORP")

    def test_a_channel_binding(self) -> None:
        client = Spnego("alice", "secret", binding=b"tls-server-end-point:hash")
        message = parse_authenticate(client.answer(asked(client.negotiate)))
        assert message.binding == binding_hash(b"tls-server-end-point:hash")

    def test_sixteen_zeros_bind_to_nothing(self) -> None:
        client = PlainClient("alice", "secret")
        client.pairs = {AvId.channel_bindings: bytes(16)}
        assert not parse_authenticate(client.answer(asked(client.negotiate))).binding

    def test_no_secret_in_its_repr(self) -> None:
        client = Spnego("CORP\\alice", "secret")
        answer = client.answer(asked(client.negotiate))
        message = parse_authenticate(answer)
        shown = repr(message)
        assert "alice" in shown
        for secret in (message.nt, message.mic, message.encrypted_session_key, answer):
            assert repr(secret) not in shown

    def test_signatures(self) -> None:
        client = Spnego("CORP\\alice", "secret")
        challenge = asked(client.negotiate)
        message = parse_authenticate(client.answer(challenge))
        key = client.context.session_key
        assert message_mic(key, client.negotiate, challenge, message) == message.mic
        assert mech_list_mic(key, message.flags, b"a list") == client.signature(b"a list")

    def test_the_exported_key_needs_key_exchange_and_something_to_sign(self) -> None:
        for extra in (0, NegotiateFlags.key_exch, NegotiateFlags.key_exch | NegotiateFlags.sign):
            client = PlainClient("alice", "secret", flags=FLAGS | extra)
            message = parse_authenticate(client.answer(asked(client.negotiate)))
            exchanged = bool(extra & NegotiateFlags.sign)
            assert bool(message.encrypted_session_key) == exchanged
            base = b"k" * 16
            assert (exported_session_key(base, message) != base) == exchanged


def answer_of(**changes: object) -> bytes:
    client = PlainClient("alice", "secret")
    return rebuilt(client.answer(asked(client.negotiate)), **changes)


class TestWeakness:
    def test_ntlmv1(self) -> None:
        flags = FLAGS & ~NegotiateFlags.extended_session_security
        assert parse_authenticate(answer_of(nt=b"n" * 24, lm=b"l" * 24, flags=flags)).weakness == "NTLMv1 response"

    def test_ntlm2_session(self) -> None:
        weakness = parse_authenticate(answer_of(nt=b"n" * 24, lm=b"c" * 8 + bytes(16))).weakness
        assert weakness == "NTLMv1 response with NTLM2 session security"

    def test_lm_alone(self) -> None:
        assert parse_authenticate(answer_of(nt=b"", lm=b"l" * 24)).weakness == "LM response alone"

    def test_another_version_of_the_response(self) -> None:
        nt = parse_authenticate(answer_of()).nt
        assert parse_authenticate(answer_of(nt=nt[:16] + b"\x02\x02" + nt[18:])).weakness

    @pytest.mark.parametrize(
        "changes",
        [
            {"user": b""},
            {"user": b"", "nt": b"", "lm": b"\0"},
            {"nt": b"", "lm": b""},
            {"nt": b"", "lm": b"\0"},
            {"flags": FLAGS | NegotiateFlags.anonymous},
        ],
    )
    def test_anonymous(self, changes: dict[str, object]) -> None:
        assert parse_authenticate(answer_of(**changes)).anonymous


class TestMalformed:
    @pytest.mark.parametrize("length", [0, 8, 12, 63])
    def test_cut_short(self, length: int) -> None:
        assert "AUTHENTICATE" in malformed(answer_of()[:length])

    @pytest.mark.parametrize("octets", [Negotiate(FLAGS).pack() + bytes(64), asked(Negotiate(FLAGS).pack())])
    def test_another_message(self, octets: bytes) -> None:
        assert "AUTHENTICATE" in malformed(octets)

    @pytest.mark.parametrize("field", range(12, 60, 8))
    @pytest.mark.parametrize("offset", [0, 12, 63, 5000, 0xFFFFFFFF])
    def test_a_field_outside_of_the_message(self, field: int, offset: int) -> None:
        octets = bytearray(answer_of(key=b"k" * 16))
        struct.pack_into("<HHI", octets, field, 16, 16, offset)
        assert "outside" in malformed(bytes(octets))

    @pytest.mark.parametrize("length", [1, 15, 17])
    def test_a_session_key_of_another_length(self, length: int) -> None:
        flags = FLAGS | NegotiateFlags.key_exch | NegotiateFlags.sign
        assert "session key" in malformed(answer_of(key=b"k" * length, flags=flags))

    def test_a_name_in_half_a_character(self) -> None:
        assert "character" in malformed(answer_of(user=b"a"))
        assert "character" in malformed(answer_of(user=b"\x00\xd8"))

    @pytest.mark.parametrize("pairs", [b"", b"\0", b"\x01\0\x04\0ab", b"\x01\0\xff\xff" + bytes(40)])
    def test_target_info_that_is_cut_short(self, pairs: bytes) -> None:
        nt = parse_authenticate(answer_of()).nt
        assert "target info" in malformed(answer_of(nt=nt[:44] + (pairs or b"\x01")))

    def test_target_info_that_says_something_twice(self) -> None:
        nt = parse_authenticate(answer_of()).nt
        twice = b"\x06\0\x04\0\x02\0\0\0" + b"\x06\0\x04\0\0\0\0\0" + bytes(8)
        assert "twice" in malformed(answer_of(nt=nt[:44] + twice))

    def test_target_info_without_end(self) -> None:
        nt = parse_authenticate(answer_of()).nt
        pairs = b"".join(number.to_bytes(2, "little") + bytes(2) for number in range(1, 16000))
        assert "too long" in malformed(answer_of(nt=nt[:44] + pairs + bytes(4)))

    def test_what_follows_the_end_of_the_target_info_is_not_read(self) -> None:
        nt = parse_authenticate(answer_of()).nt
        message = parse_authenticate(answer_of(nt=nt[:44] + bytes(4) + b"\x06\0\x04\0\x02\0\0\0"))
        assert not message.has_mic

    def test_own_pairs_are_those_of_the_challenge(self) -> None:
        pairs = own_pairs(asked(Negotiate(FLAGS).pack()))
        assert pairs[AvId.nb_domain_name].decode("utf-16-le") == "CORP"


@given(st.binary(max_size=200))
def test_garbage_behind_the_signature(octets: bytes) -> None:
    with contextlib.suppress(Fault):
        parse_authenticate(b"NTLMSSP\0\x03\0\0\0" + octets)


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_a_message_with_octets_changed(changes: list[tuple[int, int]], mic: bool) -> None:
    client = Spnego("CORP\\alice", "secret") if mic else PlainClient("alice", "secret")
    challenge = asked(client.negotiate)
    octets = bytearray(client.answer(challenge))
    for at, value in changes:
        octets[at % len(octets)] = value
    with contextlib.suppress(Fault):
        message = parse_authenticate(bytes(octets))
        assert isinstance(message.anonymous, bool)
        assert isinstance(message.weakness, str)
        key = exported_session_key(b"k" * 16, message)
        if message.mic:
            message_mic(key, client.negotiate, challenge, message)
        mech_list_mic(key, message.flags, b"list")
