"""Whoever sits on the wire to a controller can keep it from answering, and nothing more."""

from __future__ import annotations

import contextlib
import random
import struct
import time
from collections.abc import Callable, Iterable, Iterator

import pytest
import spnego
from impacket.dcerpc.v5 import nrpc
from impacket.ntlm import compute_nthash

from relayd.auth.ntlm_messages import Target, make_challenge, parse_authenticate, server_challenge
from relayd.netlogon.channel import Machine, SecureChannel, weak
from relayd.netlogon.faults import ChannelFault, MachineFault
from relayd.netlogon.logon import NetworkLogon
from relayd.netlogon.sealing import NotGenuine, seal, unseal
from relayd.netlogon.statuses import LogonRefused
from tests.directory.rpc_proxy import (
    BODY,
    FAULT,
    REQUEST,
    RESPONSE,
    TOKEN,
    RpcProxy,
    kind,
    operation,
    passes,
    sealed,
    stub_end,
)
from tests.lab import domain as contents
from tests.lab.directory import DirectoryLab

#: Seconds for one call, and for one that nobody answers.
TIMEOUT, SHORT = 20.0, 0.5

MACHINE = Machine.of(contents.COMPUTER, contents.NETBIOS, contents.USERS[contents.COMPUTER].encode())

#: Operations (MS-NRPC 3.5.4).
CHALLENGE, AUTHENTICATE, CAPABILITIES, LOGON = 4, 26, 21, 39

Patch = Callable[[bytearray], None]


def asked(user: str, password: str) -> NetworkLogon:
    client = spnego.client(f"LAB\\{user}", password, protocol="ntlm")
    challenge = make_challenge(client.step() or b"", Target("RELAY01", "LAB"), time.time())
    message = parse_authenticate(client.step(challenge) or b"")
    nonce = server_challenge(challenge)
    return NetworkLogon(message.user, message.domain, message.workstation, nonce, message.nt, message.lm)


ALICE = asked("alice", contents.USERS["alice"])
STRANGER = asked("nobody", "wrong")


@pytest.fixture
def proxy(lab: DirectoryLab) -> Iterator[RpcProxy]:
    with RpcProxy(lab.address) as running:
        yield running


@pytest.fixture
def opened() -> Iterator[list[SecureChannel]]:
    channels: list[SecureChannel] = []
    yield channels
    for channel in channels:
        channel.close()


@pytest.fixture
def open_channel(proxy: RpcProxy, opened: list[SecureChannel]) -> Callable[[], SecureChannel]:
    def open_one() -> SecureChannel:
        opened.append(SecureChannel("dc1", proxy.address, MACHINE, time.monotonic() + TIMEOUT))
        return opened[-1]

    return open_one


@pytest.fixture
def channel(open_channel: Callable[[], SecureChannel]) -> SecureChannel:
    return open_channel()


def until() -> float:
    return time.monotonic() + TIMEOUT


def not_believed(
    channel: SecureChannel, why: str = "dc1: ", logon: NetworkLogon = ALICE, seconds: float = TIMEOUT
) -> None:
    with pytest.raises(ChannelFault, match=why) as caught:
        channel.logon(logon, time.monotonic() + seconds)
    assert caught.value.asked == 1
    assert channel.stale  # and of no more use
    with pytest.raises(ChannelFault):
        channel.logon(ALICE, until())


def changed(patch: Patch) -> Callable[[bytes], Iterable[bytes]]:
    """Applies *patch* to sealed PDUs."""

    def change(pdu: bytes) -> Iterable[bytes]:
        octets = bytearray(pdu)
        if sealed(pdu):
            patch(octets)
        return (bytes(octets),)

    return change


def flip(at: Callable[[bytearray], int]) -> Patch:
    def patch(pdu: bytearray) -> None:
        pdu[at(pdu)] ^= 0x01

    return patch


#: One bit each, in the sealed octets and in what counts of the token.
BITS = {
    "first octet": lambda pdu: BODY,
    "in the middle": lambda pdu: (BODY + stub_end(pdu)) // 2,
    "status": lambda pdu: stub_end(pdu) - 1,
    "checksum algorithm": lambda pdu: len(pdu) - TOKEN,
    "seal algorithm": lambda pdu: len(pdu) - TOKEN + 2,
    "flags": lambda pdu: len(pdu) - TOKEN + 6,
    "sequence number": lambda pdu: len(pdu) - TOKEN + 8,
    "checksum": lambda pdu: len(pdu) - TOKEN + 16,
    "confounder": lambda pdu: len(pdu) - TOKEN + 24,
}


class TestAnswers:
    def test_unchanged_they_are_believed(self, proxy: RpcProxy, channel: SecureChannel) -> None:
        proxy.answers = passes
        assert channel.logon(ALICE, until()).name == "alice"

    @pytest.mark.parametrize("logon", [ALICE, STRANGER], ids=["yes", "no"])
    @pytest.mark.parametrize("where", BITS)
    def test_a_bit_is_flipped(self, proxy: RpcProxy, channel: SecureChannel, where: str, logon: NetworkLogon) -> None:
        proxy.answers = changed(flip(BITS[where]))
        not_believed(channel, "not sealed by AES|checksum|sequence", logon)

    def test_an_earlier_yes_comes_again(self, proxy: RpcProxy, channel: SecureChannel) -> None:
        kept: list[bytes] = []

        def keep(pdu: bytes) -> Iterable[bytes]:
            if sealed(pdu):
                kept.append(pdu)
            return (pdu,)

        def replay(pdu: bytes) -> Iterable[bytes]:
            # The number of the call is not sealed: it is put right.
            return (kept[0][:12] + pdu[12:16] + kept[0][16:],) if sealed(pdu) else (pdu,)

        proxy.answers = keep
        assert channel.logon(ALICE, until()).name == "alice"
        # impacket alone would read a good status in it, whatever was asked.
        key = channel._rpc.key
        opened, _ = nrpc.UNSEAL(kept[0][BODY : stub_end(kept[0])], kept[0][-TOKEN:], key, True)
        assert nrpc.NetrLogonSamLogonExResponse(opened)["ErrorCode"] == 0
        proxy.answers = replay
        not_believed(channel, "sequence number of the answer is wrong", STRANGER)

    def test_our_own_request_comes_back(self, proxy: RpcProxy, channel: SecureChannel) -> None:
        sent: list[bytes] = []

        def keep(pdu: bytes) -> Iterable[bytes]:
            sent.append(pdu)
            return (pdu,)

        def reflect(pdu: bytes) -> Iterable[bytes]:
            octets = bytearray(sent[-1])
            octets[2] = RESPONSE
            return (bytes(octets),)

        proxy.requests, proxy.answers = keep, reflect
        not_believed(channel, "sequence number of the answer is wrong")

    def test_a_yes_that_is_not_sealed(self, proxy: RpcProxy, channel: SecureChannel) -> None:
        def forge(pdu: bytes) -> Iterable[bytes]:
            stub = bytes(_yes())
            header = pdu[:8] + struct.pack("<HH", BODY + len(stub), 0) + pdu[12:16]
            return (header + struct.pack("<IHH", len(stub), 0, 0) + stub,)

        proxy.answers = forge
        not_believed(channel, "not sealed", STRANGER)

    @pytest.mark.parametrize("level", [1, 2, 5], ids=["none", "connect", "integrity"])
    def test_a_lower_level_of_protection(self, proxy: RpcProxy, channel: SecureChannel, level: int) -> None:
        def lower(pdu: bytearray) -> None:
            pdu[stub_end(pdu) + 1] = level

        proxy.answers = changed(lower)
        not_believed(channel, "not sealed by this channel")

    @pytest.mark.parametrize("more", [4, 8, 12, 60])
    def test_the_end_of_a_no_is_hidden(self, proxy: RpcProxy, channel: SecureChannel, more: int) -> None:
        # How much is padding is said outside of the seal.
        def longer(pdu: bytearray) -> None:
            pdu[stub_end(pdu) + 2] += more

        proxy.answers = changed(longer)
        with pytest.raises(LogonRefused, match="c0000064"):
            channel.logon(STRANGER, until())
        assert channel.logon(ALICE, until()).name == "alice"

    def test_it_is_called_one_fragment_of_several(self, proxy: RpcProxy, channel: SecureChannel) -> None:
        def first_of_several(pdu: bytearray) -> None:
            pdu[3] &= ~0x02

        proxy.answers = changed(first_of_several)
        not_believed(channel, "timed out", seconds=SHORT)

    def test_it_is_called_a_later_fragment(self, proxy: RpcProxy, channel: SecureChannel) -> None:
        def later(pdu: bytearray) -> None:
            pdu[3] &= ~0x01

        proxy.answers = changed(later)
        not_believed(channel, "a fragment of the answer is missing")

    def test_the_answer_to_another_call(self, proxy: RpcProxy, channel: SecureChannel) -> None:
        proxy.answers = changed(flip(lambda pdu: 12))
        not_believed(channel, "not an answer to this call")

    @pytest.mark.parametrize("status", [0x00000005, 0xC000006A, 0xC0000234, 0x1C010003])
    def test_a_fault_refuses_nobody(self, proxy: RpcProxy, channel: SecureChannel, status: int) -> None:
        def fault(pdu: bytes) -> Iterable[bytes]:
            body = struct.pack("<IHHII", 0, 0, 0, status, 0)
            header = bytearray(pdu[:16])
            header[2] = FAULT
            header[8:12] = struct.pack("<HH", 16 + len(body), 0)
            return (bytes(header) + body,)

        proxy.answers = fault
        not_believed(channel, f"RPC fault {status:08x}")

    @pytest.mark.parametrize("octets", [b"\0" * 64, b"HTTP/1.1 400 Bad Request\r\n\r\n" * 40, b"\x05\0\x02\x03" * 16])
    def test_nonsense(self, proxy: RpcProxy, channel: SecureChannel, octets: bytes) -> None:
        proxy.answers = lambda pdu: (octets,)
        not_believed(channel, seconds=SHORT)

    def test_an_endless_answer(self, proxy: RpcProxy, channel: SecureChannel) -> None:
        header = struct.pack("<BBBBIHHI", 5, 0, RESPONSE, 1, 0x10, 0xFFFF, TOKEN, 3)
        proxy.answers = lambda pdu: (header,)
        not_believed(channel, seconds=SHORT)


class TestRequests:
    @pytest.mark.parametrize("where", ["first octet", "in the middle", "sequence number", "checksum", "confounder"])
    def test_a_bit_is_flipped(self, proxy: RpcProxy, channel: SecureChannel, where: str) -> None:
        proxy.requests = changed(flip(BITS[where]))
        not_believed(channel, "RPC fault|ended")

    def test_another_operation_is_called(self, proxy: RpcProxy, channel: SecureChannel) -> None:
        # Which one is said outside of the seal.
        def other(pdu: bytearray) -> None:
            pdu[22:24] = struct.pack("<H", CAPABILITIES)

        proxy.requests = changed(other)
        not_believed(channel)

    def test_no_octet_of_the_answer_goes_in_the_clear(self, proxy: RpcProxy, channel: SecureChannel) -> None:
        seen: list[bytes] = []

        def keep(pdu: bytes) -> Iterable[bytes]:
            seen.append(pdu)
            return (pdu,)

        proxy.requests = proxy.answers = keep
        assert channel.logon(ALICE, until()).name == "alice"
        assert {kind(pdu) for pdu in seen} == {REQUEST, RESPONSE}
        assert all(sealed(pdu) for pdu in seen)
        everything = b"".join(seen)
        assert "alice".encode("utf-16-le") not in everything
        assert ALICE.nt not in everything


class TestOpening:
    """What is agreed on in the clear."""

    def answers_to(self, proxy: RpcProxy, wanted: int, patch: Patch) -> None:
        """Applies *patch* to answers to the operation *wanted* that are not sealed."""
        last: list[int] = [-1]

        def note(pdu: bytes) -> Iterable[bytes]:
            last.append(operation(pdu))
            return (pdu,)

        def change(pdu: bytes) -> Iterable[bytes]:
            octets = bytearray(pdu)
            if kind(pdu) == RESPONSE and not sealed(pdu) and last[-1] == wanted and len(last) > 1:
                patch(octets)
            return (bytes(octets),)

        proxy.requests, proxy.answers = note, change

    def refuses(self, open_channel: Callable[[], SecureChannel], why: str) -> None:
        with pytest.raises(ChannelFault, match=why):
            open_channel()

    def test_we_offer_no_aes(self, proxy: RpcProxy, open_channel: Callable[[], SecureChannel]) -> None:
        def strip(pdu: bytes) -> Iterable[bytes]:
            if operation(pdu) == AUTHENTICATE:
                assert pdu[-4:] == struct.pack("<I", 0x612FFFFF)
                return (pdu[:-4] + struct.pack("<I", 0x602FFFFF),)
            return (pdu,)

        proxy.requests = strip
        # This controller insists as well, by a status that also says that it does not know us.
        with pytest.raises((ChannelFault, MachineFault)):
            open_channel()

    @pytest.mark.parametrize("bit", [0x01000000, 0x40000000], ids=["AES", "sealed RPC"])
    def test_the_controller_offers_none(
        self, proxy: RpcProxy, open_channel: Callable[[], SecureChannel], bit: int
    ) -> None:
        self.answers_to(proxy, AUTHENTICATE, _clear_flag(bit))
        self.refuses(open_channel, "offers no AES")

    def test_weaker_flags(self, proxy: RpcProxy, open_channel: Callable[[], SecureChannel]) -> None:
        self.answers_to(proxy, AUTHENTICATE, _clear_flag(0x00000004))
        self.refuses(open_channel, "somebody wants weaker ones")

    def test_a_controller_without_the_secret(self, proxy: RpcProxy, open_channel: Callable[[], SecureChannel]) -> None:
        self.answers_to(proxy, AUTHENTICATE, flip(lambda pdu: BODY))
        self.refuses(open_channel, "does not prove")

    @pytest.mark.parametrize("octet", [0x00, 0x41])
    def test_a_challenge_of_one_octet(
        self, proxy: RpcProxy, open_channel: Callable[[], SecureChannel], octet: int
    ) -> None:
        def same(pdu: bytearray) -> None:
            pdu[BODY : BODY + 8] = bytes([octet]) * 8

        self.answers_to(proxy, CHALLENGE, same)
        self.refuses(open_channel, "no random number")

    @pytest.mark.parametrize("status", [0xC0000022, 0xC000006A, 0xC0000072, 0xC0000234, 0xC000005E, 0xC0FFEE00])
    def test_a_status_refuses_nobody(
        self, proxy: RpcProxy, open_channel: Callable[[], SecureChannel], status: int
    ) -> None:
        def refuse(pdu: bytearray) -> None:
            pdu[-4:] = struct.pack("<I", status)

        self.answers_to(proxy, AUTHENTICATE, refuse)
        with pytest.raises((ChannelFault, MachineFault), match=f"{status:08x}"):
            open_channel()

    def test_another_key(self, proxy: RpcProxy) -> None:
        with pytest.raises(MachineFault, match="c0000022"):
            SecureChannel("dc1", proxy.address, Machine(contents.COMPUTER, "LAB", bytes(16)), until())

    def test_the_confirmation_is_changed(self, proxy: RpcProxy, open_channel: Callable[[], SecureChannel]) -> None:
        proxy.answers = changed(flip(BITS["in the middle"]))
        self.refuses(open_channel, "checksum")

    def test_nobody_answers(self, proxy: RpcProxy) -> None:
        proxy.answers = lambda pdu: ()
        with pytest.raises(ChannelFault) as caught:
            SecureChannel("dc1", proxy.address, MACHINE, time.monotonic() + SHORT)
        assert caught.value.timed_out
        assert caught.value.asked == 0

    def test_an_answer_drips(self, proxy: RpcProxy) -> None:
        # Each octet comes in time, and all of them do not.
        def drip(pdu: bytes) -> Iterable[bytes]:
            for octet in pdu:
                yield bytes([octet])
                time.sleep(SHORT / 10)

        proxy.answers = drip
        with pytest.raises(ChannelFault) as caught:
            SecureChannel("dc1", proxy.address, MACHINE, time.monotonic() + SHORT)
        assert caught.value.timed_out


@pytest.mark.parametrize("seed", range(40))
def test_answers_at_random(proxy: RpcProxy, seed: int) -> None:
    """One answer of the whole conversation is spoilt: the verdict is the right one, or there is none."""
    chosen = random.Random(seed)
    spoilt = chosen.randrange(7)  # endpoint mapper and its bind, bind, two calls, sealed bind, confirmation
    answers: list[bytes] = []

    def spoil(pdu: bytes) -> Iterable[bytes]:
        answers.append(pdu)
        octets = bytearray(pdu)
        if len(answers) - 1 == spoilt:
            for _ in range(chosen.choice((1, 2, 4, 30))):
                at = chosen.randrange(len(octets) - 4)
                octets[at : at + 4] = chosen.choice(
                    (
                        bytes(4),
                        b"\xff" * 4,
                        b"\xff\xff\xff\x7f",
                        bytes([chosen.randrange(256)]) + octets[at + 1 : at + 4],
                    )
                )
        return (bytes(octets),)

    proxy.answers = spoil
    try:
        channel = SecureChannel("dc1", proxy.address, MACHINE, time.monotonic() + SHORT)
    except (ChannelFault, MachineFault):
        return
    with contextlib.closing(channel), contextlib.suppress(ChannelFault):
        assert channel.logon(ALICE, time.monotonic() + SHORT).name == "alice"


class TestToken:
    KEY = bytes(range(16))

    def from_server(self, message: bytes, sequence: int) -> tuple[bytes, bytes]:
        """As a controller seals it: without the bit of the direction (MS-NRPC 3.3.4.2.1)."""
        number = struct.pack(">II", sequence & 0xFFFFFFFF, sequence >> 32)
        derive, nrpc.deriveSequenceNumber = nrpc.deriveSequenceNumber, lambda _: number
        try:
            return seal(message, sequence, self.KEY)
        finally:
            nrpc.deriveSequenceNumber = derive

    @pytest.mark.parametrize("sequence", [0, 1, 2**31, 2**32, 2**32 + 5])
    def test_opens(self, sequence: int) -> None:
        sealed_octets, token = self.from_server(b"message", sequence)
        assert unseal(sealed_octets, token, sequence, self.KEY) == b"message"

    def test_not_twice_the_same(self) -> None:
        assert self.from_server(b"message", 1) != self.from_server(b"message", 1)

    @pytest.mark.parametrize(("sequence", "key"), [(1, bytes(16)), (0, KEY), (2, KEY), (2**32 + 1, KEY)])
    def test_by_another_key_or_at_another_time(self, sequence: int, key: bytes) -> None:
        with pytest.raises(NotGenuine):
            unseal(*self.from_server(b"message", 1), sequence, key)

    def test_in_the_other_direction(self) -> None:
        with pytest.raises(NotGenuine, match="sequence"):
            unseal(*seal(b"message", 1, self.KEY), 1, self.KEY)

    @pytest.mark.parametrize("length", [0, 8, 24, 31])
    def test_too_short(self, length: int) -> None:
        sealed_octets, token = self.from_server(b"message", 1)
        with pytest.raises(NotGenuine):
            unseal(sealed_octets, token[:length], 1, self.KEY)

    def test_signed_alone(self) -> None:
        token = nrpc.SIGN(b"message", b"", 1, self.KEY, True).getData()
        with pytest.raises(NotGenuine, match="not sealed by AES"):
            unseal(b"message", token, 1, self.KEY)


def test_challenges_that_are_no_random_number() -> None:
    assert weak(bytes(8))
    assert weak(b"\x07" * 5 + b"abc")
    assert not weak(b"\x07" * 4 + b"abcd")


def test_the_secret_is_not_shown() -> None:
    assert compute_nthash(contents.USERS[contents.COMPUTER]).hex() not in repr(MACHINE)
    assert "secret" not in repr(MACHINE)


def _clear_flag(bit: int) -> Patch:
    def clear(pdu: bytearray) -> None:
        # ServerCredential, NegotiateFlags, AccountRid, ErrorCode
        at = BODY + 8
        (flags,) = struct.unpack_from("<I", pdu, at)
        struct.pack_into("<I", pdu, at, flags & ~bit)

    return clear


def _yes() -> bytes:
    """An answer that lets somebody in, as whoever has no key can make it."""
    answer = nrpc.NetrLogonSamLogonExResponse()
    answer["ValidationInformation"]["tag"] = 6
    answer["Authoritative"] = 1
    answer["ExtraFlags"] = 0
    answer["ErrorCode"] = 0
    info = answer["ValidationInformation"]["ValidationSam4"]
    info["EffectiveName"] = "Administrator"
    info["UserId"] = 500
    info["LogonDomainId"].fromCanonical("S-1-5-21-1-2-3")
    return bytes(answer.getData())
