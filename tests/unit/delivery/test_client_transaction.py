"""Transactions: which answer is whose, and what each failing step comes to."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import fail

from relayd.delivery import PathFault, Stage, Target, connect
from relayd.model import Body as BodyType
from relayd.model import Fault, Path, Recipient, Reply, Sender
from relayd.settings import OutboundTls
from relayd.wire import DataReader
from tests.unit.delivery.peer import (
    ALICE,
    BOB,
    CAROL,
    HELLO,
    TARGET,
    TLS,
    Body,
    BrokenBody,
    Net,
    Peer,
    Result,
    codes,
    ehlo,
    greet,
)
from tests.unit.wire.octets import unframed

PIPELINING = b"PIPELINING"
MAIL = b"MAIL FROM:<alice@corp.example>\r\n"
RCPT_BOB = b"RCPT TO:<bob@partner.example>\r\n"
RCPT_CAROL = b"RCPT TO:<carol@partner.example>\r\n"


@pytest.fixture
def net() -> Net:
    return Net()


def sending(net: Net, *extensions: bytes, recipients=(BOB, CAROL), body=None, sender=ALICE):
    """A connection with a message under way: (peer, connection, result, what was written first)."""
    peer, connection = net.opened(*extensions)
    result = Result(connection.send(sender, recipients, body or Body(HELLO)))
    return peer, connection, result, peer.read()


class TestPipelined:
    def test_one_write_then_the_message_in_one_write(self, net: Net) -> None:
        peer, connection, result, first = sending(net, PIPELINING)
        assert first == MAIL + RCPT_BOB + RCPT_CAROL + b"DATA\r\n"
        assert peer.say(b"250 ok", b"250 ok", b"250 ok", b"354 go") == HELLO + b".\r\n"
        peer.say(b"250 2.0.0 queued as 1")
        assert [str(reply) for reply in result.value] == ["250 2.0.0 queued as 1"] * 2
        assert connection.usable

    def test_next_message_needs_no_rset(self, net: Net) -> None:
        peer, connection, _result, _ = sending(net, PIPELINING)
        peer.say(b"250 ok", b"250 ok", b"250 ok", b"354 go")
        peer.say(b"250 ok")
        Result(connection.send(ALICE, [BOB], Body(HELLO)))
        assert peer.read() == MAIL + RCPT_BOB + b"DATA\r\n"

    def test_each_recipient_has_its_own_answer(self, net: Net) -> None:
        peer, _connection, result, _ = sending(net, PIPELINING)
        assert peer.say(b"250 ok", b"550 5.1.1 who?", b"250 ok", b"354 go")
        peer.say(b"250 ok")
        assert codes(result.value) == [550, 250]

    def test_354_with_nobody_accepted_gets_the_lone_dot(self, net: Net) -> None:  # RFC 2920 3.1
        peer, connection, result, _ = sending(net, PIPELINING)
        assert peer.say(b"250 ok", b"550 no", b"450 later", b"354 go") == b".\r\n"
        assert result.waiting
        peer.say(b"554 no valid recipients")
        assert codes(result.value) == [550, 450]
        assert connection.usable

    def test_data_refused_with_nobody_accepted_means_nothing(self, net: Net) -> None:
        peer, _connection, result, _ = sending(net, PIPELINING)
        peer.say(b"250 ok", b"550 no", b"450 later", b"554 no valid recipients")
        assert codes(result.value) == [550, 450]

    def test_mail_refused_is_the_answer_for_all(self, net: Net) -> None:
        peer, connection, result, _ = sending(net, PIPELINING)
        peer.say(b"550 5.7.1 not from you", b"503 no", b"503 no", b"503 no")
        assert [str(reply) for reply in result.value] == ["550 5.7.1 not from you"] * 2
        assert connection.usable

    def test_a_failed_transaction_is_reset_in_the_next_write(self, net: Net) -> None:
        peer, connection, _result, _ = sending(net, PIPELINING)
        peer.say(b"450 4.2.0 later", b"503 no", b"503 no", b"503 no")
        again = Result(connection.send(ALICE, [BOB], Body(HELLO)))
        assert peer.read() == b"RSET\r\n" + MAIL + RCPT_BOB + b"DATA\r\n"
        assert peer.say(b"250 reset", b"250 ok", b"250 ok", b"354 go") == HELLO + b".\r\n"
        peer.say(b"250 ok")
        assert codes(again.value) == [250]

    def test_no_message_for_recipients_without_a_sender(self, net: Net) -> None:
        peer, _connection, result, _ = sending(net, PIPELINING)
        assert peer.say(b"550 no", b"250 ok", b"250 ok", b"354 go") == b""
        assert peer.ended
        peer.drop()
        assert codes(result.value) == [550, 550]

    @given(cuts=st.lists(st.integers(0, 200), max_size=20))
    def test_segments_of_the_replies_do_not_matter(self, cuts: list[int]) -> None:
        peer, _connection, result, _ = sending(Net(), PIPELINING)
        replies = b"250-ok\r\n250 ok\r\n550 5.1.1 who?\r\n250 ok\r\n354 go\r\n"
        edges = sorted({0, *(cut for cut in cuts if cut < len(replies)), len(replies)})
        for start, end in pairwise(edges):
            peer.protocol.dataReceived(replies[start:end])
        assert peer.read() == HELLO + b".\r\n"
        peer.say(b"250 ok")
        assert codes(result.value) == [550, 250]


class TestOneByOne:
    def test_each_command_waits_for_its_reply(self, net: Net) -> None:
        peer, _connection, result, first = sending(net)
        assert first == MAIL
        assert peer.say(b"250 ok") == RCPT_BOB
        assert peer.say(b"251 will forward") == RCPT_CAROL
        assert peer.say(b"550 no") == b"DATA\r\n"
        assert peer.say(b"354 go") == HELLO + b".\r\n"
        peer.say(b"250 ok")
        assert codes(result.value) == [250, 550]

    def test_no_data_when_nobody_was_accepted(self, net: Net) -> None:
        peer, connection, result, _ = sending(net)
        peer.say(b"250 ok")
        peer.say(b"550 no")
        assert peer.say(b"450 no") == b""
        assert codes(result.value) == [550, 450]
        Result(connection.send(ALICE, [BOB], Body(HELLO)))
        assert peer.read() == b"RSET\r\n"
        assert peer.say(b"250 ok") == MAIL

    def test_mail_refused_ends_it(self, net: Net) -> None:
        peer, _connection, result, _ = sending(net)
        assert peer.say(b"450 4.7.1 greylisted") == b""
        assert codes(result.value) == [450, 450]


#: How far a transaction of two recipients goes: the replies before the step that fails.
STEPS = {
    Stage.MAIL: [],
    Stage.RCPT: [b"250 ok"],
    Stage.DATA: [b"250 ok", b"250 ok", b"250 ok"],
    Stage.END: [b"250 ok", b"250 ok", b"250 ok", b"354 go"],
}


@pytest.fixture(params=[(), (PIPELINING,)], ids=["one by one", "pipelined"])
def extensions(request: pytest.FixtureRequest) -> tuple[bytes, ...]:
    return request.param


def at(net: Net, stage: Stage, extensions: tuple[bytes, ...]):
    peer, connection, result, _ = sending(net, *extensions)
    for line in STEPS[stage]:
        peer.say(line)
    return peer, connection, result


def finish(peer: Peer, result: Result) -> None:
    """Answer what is still open, as a server would."""
    for _ in range(4):
        if result.waiting and not peer.ended:
            peer.say(b"503 bad sequence")
    if peer.ended:
        peer.drop()


@pytest.mark.parametrize("stage", STEPS)
class TestEachStepFailing:
    def test_temporary(self, net: Net, stage: Stage, extensions) -> None:
        peer, connection, result = at(net, stage, extensions)
        peer.say(b"451 4.3.0 later")
        if stage is Stage.RCPT:
            assert result.waiting
            return
        finish(peer, result)
        assert [str(reply) for reply in result.value] == ["451 4.3.0 later"] * 2
        assert connection.usable

    def test_permanent(self, net: Net, stage: Stage, extensions) -> None:
        peer, connection, result = at(net, stage, extensions)
        peer.say(b"550 5.7.1 no")
        if stage is Stage.RCPT:
            assert result.waiting
            return
        finish(peer, result)
        if stage is Stage.DATA:  # design, promise 5: only MAIL, RCPT and end of data may refuse for good
            fault = result.fault(PathFault)
            assert fault.stage is Stage.DATA
            assert fault.temporary
        else:
            assert [str(reply) for reply in result.value] == ["550 5.7.1 no"] * 2
        assert connection.usable

    @pytest.mark.parametrize("code", [421, 530, 535, 538])
    def test_a_code_that_speaks_of_the_path(self, net: Net, stage: Stage, extensions, code: int) -> None:
        peer, connection, result = at(net, stage, extensions)
        peer.say(b"%d 4.7.0 no" % code if code == 421 else b"%d 5.7.0 no" % code)
        if stage is Stage.RCPT and code != 421:
            peer.say(b"%d 5.7.0 no" % code)
            if result.waiting:
                peer.say(b"554 no valid recipients")
        fault = result.fault(PathFault)
        assert fault.stage is stage
        assert fault.temporary
        assert fault.said.code == code
        assert fault.peer == "mx.example[192.0.2.1]:25"
        if code == 421:
            assert not connection.usable

    @pytest.mark.parametrize("noise", [b"hello", b"999 what", b"\x80\x81", b"200-x\r\n300 y", b"x" * 100_000])
    def test_garbage(self, net: Net, stage: Stage, extensions, noise: bytes) -> None:
        peer, connection, result = at(net, stage, extensions)
        peer.say(noise)
        assert peer.ended
        peer.drop()
        if stage is Stage.END:
            assert codes(result.value) == [451, 451]
        else:
            assert result.fault(PathFault).stage is stage
        assert not connection.usable

    @pytest.mark.parametrize("code", [b"334 go on", b"354 go"])
    def test_an_answer_to_another_question(self, net: Net, stage: Stage, extensions, code: bytes) -> None:
        if stage is Stage.DATA:
            code = b"250 ok"
        peer, _connection, result = at(net, stage, extensions)
        peer.say(code)
        assert peer.ended
        peer.drop()
        if stage is Stage.END:
            assert codes(result.value) == [451, 451]
        else:
            assert result.fault(PathFault).stage is stage

    def test_silence(self, net: Net, stage: Stage, extensions) -> None:
        peer, _connection, result = at(net, stage, extensions)
        patience = 600 if stage is Stage.END else 300
        net.reactor.advance(patience - 1)
        assert result.waiting
        net.reactor.advance(1)
        assert peer.ended
        if stage is Stage.END:
            assert [reply.enhanced for reply in result.value] == ["4.4.2"] * 2
        else:
            assert result.fault(PathFault).stage is stage
        peer.drop()
        assert not net.reactor.getDelayedCalls()

    def test_lost(self, net: Net, stage: Stage, extensions) -> None:
        peer, connection, result = at(net, stage, extensions)
        peer.drop()
        if stage is Stage.END:
            # Nobody knows whether the message was taken: again later, not at once elsewhere.
            assert [reply.enhanced for reply in result.value] == ["4.4.2"] * 2
        else:
            fault = result.fault(PathFault)
            assert fault.stage is stage
            assert fault.stale is (stage is Stage.MAIL)
        assert not connection.usable


class TestAnswersThatStand:
    def test_421_after_a_refusal_leaves_the_refusal(self, net: Net, extensions) -> None:
        peer, connection, result, _ = sending(net, *extensions)
        peer.say(b"250 ok")
        peer.say(b"550 5.1.1 who?")
        peer.say(b"421 4.3.2 closing")
        assert [str(reply) for reply in result.value] == ["550 5.1.1 who?", "421 4.3.2 closing"]
        assert not connection.usable

    def test_lost_after_a_refusal(self, net: Net, extensions) -> None:
        peer, _connection, result, _ = sending(net, *extensions)
        peer.say(b"250 ok")
        peer.say(b"550 5.1.1 who?")
        peer.say(b"250 ok")
        peer.drop()
        assert codes(result.value) == [550, 451]

    def test_lost_after_mail_was_refused(self, net: Net) -> None:
        peer, _connection, result, _ = sending(net, PIPELINING)
        peer.say(b"550 no")
        peer.drop()
        assert codes(result.value) == [550, 550]

    def test_noise_behind_the_last_reply(self, net: Net) -> None:
        peer, connection, result = at(net, Stage.END, (PIPELINING,))
        peer.say(b"250 ok", b"250 and more")
        assert codes(result.value) == [250, 250]
        assert not connection.usable

    def test_half_a_line_behind_the_last_reply(self, net: Net) -> None:
        peer, connection, result = at(net, Stage.END, (PIPELINING,))
        peer.protocol.dataReceived(b"250 ok\r\n42")
        assert codes(result.value) == [250, 250]
        assert not connection.usable

    def test_552_to_rcpt_is_too_many_recipients(self, net: Net) -> None:  # RFC 5321 4.5.3.1.10
        peer, _connection, result, _ = sending(net, PIPELINING)
        peer.say(b"250 ok", b"250 ok", b"552 5.5.3 too many", b"354 go")
        peer.say(b"250 ok")
        assert [str(reply) for reply in result.value] == ["250 ok", "452 4.5.3 too many"]

    def test_552_to_the_message_is_final(self, net: Net) -> None:
        peer, _connection, result = at(net, Stage.END, (PIPELINING,))
        peer.say(b"552 5.3.4 too large")
        assert codes(result.value) == [552, 552]

    def test_530_to_one_recipient_is_temporary_for_it_alone(self, net: Net, extensions) -> None:
        peer, _connection, result, _ = sending(net, *extensions)
        for line in (b"250 ok", b"530 5.7.1 authenticate first", b"250 ok", b"354 go", b"250 done"):
            peer.say(line)
        assert [str(reply) for reply in result.value] == ["451 4.7.1 authenticate first", "250 done"]

    def test_lost_inside_a_large_message_is_no_delivery(self, net: Net) -> None:
        body = Body(b"x\r\n" * 300_000, filed=True)
        peer, _connection, result, _ = sending(net, PIPELINING, b"8BITMIME", body=body)
        peer.wire.producerState = "paused"
        connection_writes_stop(peer)
        peer.say(b"250 ok", b"250 ok", b"250 ok", b"354 go")
        peer.drop()
        assert result.fault(PathFault).stage is Stage.BODY


def connection_writes_stop(peer: Peer) -> None:
    """From the first block of a message on, the peer takes no more."""
    register = peer.wire.registerProducer

    def registered(producer, streaming):
        register(producer, streaming)
        producer.pauseProducing()

    peer.wire.registerProducer = registered


class TestWhatTheNextHopCannotTake:
    def test_size_is_told(self, net: Net) -> None:
        _, _, _, first = sending(net, PIPELINING, b"SIZE 1000000")
        assert first.startswith(b"MAIL FROM:<alice@corp.example> SIZE=%d\r\n" % len(HELLO))

    def test_a_message_over_its_size_is_not_offered(self, net: Net) -> None:
        _peer, connection, result, first = sending(net, b"SIZE 10")
        assert first == b""
        assert [reply.enhanced for reply in result.value] == ["5.3.4"] * 2
        assert connection.usable

    def test_8_bit_is_declared_where_offered(self, net: Net) -> None:
        _, _, _, first = sending(net, b"8BITMIME", body=Body(b"\r\n\xe4\r\n"))
        assert first == b"MAIL FROM:<alice@corp.example> BODY=8BITMIME\r\n"

    @pytest.mark.parametrize("filed", [False, True])
    def test_8_bit_towards_a_7_bit_host_bounces(self, net: Net, filed: bool) -> None:
        _peer, connection, result, first = sending(net, PIPELINING, body=Body(b"\r\n\xe4\r\n", filed))
        assert first == b""
        assert [reply.enhanced for reply in result.value] == ["5.6.3"] * 2
        assert connection.usable

    @pytest.mark.parametrize("filed", [False, True])
    def test_declared_8_bit_that_is_none_goes(self, net: Net, filed: bool) -> None:
        sender = Sender(ALICE.path, body=BodyType.EIGHT_BIT)
        _, _, _, first = sending(net, PIPELINING, body=Body(HELLO, filed), sender=sender)
        assert first.startswith(MAIL)

    def test_international_recipient_towards_a_host_without_smtputf8(self, net: Net) -> None:
        jose = Recipient(Path("josé", "partner.example"))
        peer, _connection, result, first = sending(net, PIPELINING, recipients=(jose, BOB))
        assert first == MAIL + RCPT_BOB + b"DATA\r\n"
        peer.say(b"250 ok", b"250 ok", b"354 go")
        peer.say(b"250 ok")
        assert [(reply.code, reply.enhanced) for reply in result.value] == [(553, "5.6.7"), (250, "")]

    def test_international_sender_towards_a_host_without_smtputf8(self, net: Net) -> None:
        _peer, _connection, result, first = sending(net, sender=Sender(Path("é", "corp.example"), smtputf8=True))
        assert first == b""
        assert [reply.enhanced for reply in result.value] == ["5.6.7"] * 2

    def test_an_international_domain_is_enough_for_nobody_to_be_refused(self, net: Net) -> None:
        sender = Sender(Path("alice", "bücher.example"), smtputf8=True)
        bob = Recipient(Path("bob", "Straße.example"))
        _peer, _connection, _result, first = sending(net, PIPELINING, sender=sender, recipients=(bob,))
        assert first == (b"MAIL FROM:<alice@xn--bcher-kva.example>\r\nRCPT TO:<bob@xn--strae-oqa.example>\r\nDATA\r\n")

    def test_smtputf8_is_asked_for_an_international_recipient(self, net: Net) -> None:
        jose = Recipient(Path("josé", "partner.example"))
        _, _, _, first = sending(net, PIPELINING, b"SMTPUTF8", b"8BITMIME", recipients=(jose,))
        assert first == (
            b"MAIL FROM:<alice@corp.example> SMTPUTF8\r\nRCPT TO:<jos\xc3\xa9@partner.example>\r\nDATA\r\n"
        )

    def test_dsn_is_asked_where_offered(self, net: Net) -> None:
        bob = Recipient(BOB.path, frozenset({"NEVER"}), "rfc822;bob@partner.example")
        sender = Sender(ALICE.path, ret="HDRS", envid="x1")
        _, _, _, first = sending(net, PIPELINING, b"DSN", recipients=(bob,), sender=sender)
        assert b"RET=HDRS ENVID=x1" in first
        assert b"NOTIFY=NEVER ORCPT=rfc822;bob@partner.example" in first
        _, _, _, first = sending(Net(), PIPELINING, recipients=(bob,), sender=sender)
        assert first == MAIL + RCPT_BOB + b"DATA\r\n"

    def test_auth_parameter_is_told_nobody(self, net: Net) -> None:
        _, _, _, first = sending(net, b"AUTH PLAIN", sender=Sender(ALICE.path, auth="alice@corp.example"))
        assert first == MAIL

    @pytest.mark.parametrize("local", ["a\r\nRCPT TO:<x@y.example>", "a\nb", "a\0b", "a> SIZE=1", "a b"], ids=repr)
    def test_an_envelope_cannot_inject(self, net: Net, local: str) -> None:
        bad = Recipient(Path(local, "partner.example"))
        _, _, _, first = sending(net, PIPELINING, recipients=(bad, BOB))
        assert first == MAIL + RCPT_BOB + b"DATA\r\n"
        _peer, _connection, result, first = sending(Net(), sender=Sender(Path(local, "corp.example")))
        assert first == b""
        assert [reply.enhanced for reply in result.value] == ["5.1.7"] * 2


CHUNKING = b"CHUNKING"
LMTP = Target("mda.example", ip_address("192.0.2.1"), tls=OutboundTls.NONE, lmtp=True)


class TestChunks:
    """BDAT (RFC 3030) where the next hop offers it."""

    def test_the_message_follows_the_answers_in_one_write(self, net: Net) -> None:
        peer, connection, result, first = sending(net, PIPELINING, CHUNKING)
        assert first == MAIL + RCPT_BOB + RCPT_CAROL
        assert peer.say(b"250 ok", b"250 ok", b"250 ok") == b"BDAT %d LAST\r\n" % len(HELLO) + HELLO
        peer.say(b"250 2.0.0 queued as 1")
        assert [str(reply) for reply in result.value] == ["250 2.0.0 queued as 1"] * 2
        assert connection.usable

    def test_one_by_one(self, net: Net) -> None:
        peer, _connection, result, first = sending(net, CHUNKING)
        assert first == MAIL
        assert peer.say(b"250 ok") == RCPT_BOB
        assert peer.say(b"550 who?") == RCPT_CAROL
        assert peer.say(b"250 ok").startswith(b"BDAT ")
        peer.say(b"250 ok")
        assert codes(result.value) == [550, 250]

    @pytest.mark.parametrize(
        ("replies", "expected"),
        [
            ([b"250 ok", b"550 no", b"450 later"], [550, 450]),
            ([b"550 not from you", b"503 no", b"503 no"], [550, 550]),
            ([b"450 not from you", b"250 ok", b"250 ok"], [450, 450]),
        ],
    )
    def test_nothing_is_sent_to_nobody(self, net: Net, replies, expected, extensions) -> None:
        peer, connection, result, _ = sending(net, CHUNKING, *extensions)
        written = b""
        for reply in replies:
            if result.waiting:
                written = peer.say(reply)
        assert b"BDAT" not in written
        assert codes(result.value) == expected
        Result(connection.send(ALICE, [BOB], Body(HELLO)))
        assert peer.read().startswith(b"RSET\r\n")

    def test_a_large_message_goes_in_chunks_each_with_its_reply(self, net: Net) -> None:
        content = b"0123456789abcde\r\n" * 40_000
        peer, connection, result, _ = sending(net, CHUNKING, PIPELINING, b"8BITMIME", body=Body(content, filed=True))
        written = peer.say(b"250 ok", b"250 ok", b"250 ok")
        while peer.wire.producer is not None:
            written += peer.read()
        written += peer.read()
        parts, ended = unframed(written)
        assert ended
        assert b"".join(parts) == content
        assert len(parts) > 2
        for _ in parts[:-1]:
            peer.say(b"250 2.0.0 so far")
            assert result.waiting
        peer.say(b"250 2.0.0 queued")
        assert [str(reply) for reply in result.value] == ["250 2.0.0 queued"] * 2
        assert connection.usable

    @pytest.mark.parametrize("reply", [b"450 4.3.1 full", b"552 5.3.4 too large", b"334 what", b"503 5.5.1 order"])
    def test_a_chunk_in_the_middle_is_refused(self, net: Net, reply: bytes) -> None:
        body = Body(b"0123456789abcde\r\n" * 40_000, filed=True)
        peer, connection, result, _ = sending(net, CHUNKING, PIPELINING, b"8BITMIME", body=body)
        write = peer.wire.write

        def written(octets):
            write(octets)
            if peer.wire.producer is not None:
                peer.wire.producer.pauseProducing()

        peer.wire.write = written
        assert b"LAST" not in peer.say(b"250 ok", b"250 ok", b"250 ok")
        peer.say(reply)
        assert peer.ended
        peer.drop()
        if reply.startswith((b"4", b"552")):
            assert codes(result.value) == [int(reply[:3])] * 2
        else:
            assert result.fault(PathFault).temporary
        assert not connection.usable

    @pytest.mark.parametrize("code", [500, 501, 502, 503, 504])
    def test_who_offers_bdat_and_does_not_know_it_refuses_no_message(self, net: Net, code: int) -> None:
        peer, _connection, result, _ = sending(net, CHUNKING, PIPELINING)
        peer.say(b"250 ok", b"250 ok", b"250 ok")
        peer.say(b"%d 5.5.1 what?" % code)
        fault = result.fault(PathFault)
        assert fault.temporary
        assert fault.stage is Stage.END

    def test_lost_after_the_last_chunk(self, net: Net) -> None:
        peer, _connection, result, _ = sending(net, CHUNKING, PIPELINING)
        peer.say(b"250 ok", b"250 ok", b"250 ok")
        peer.drop()
        assert [reply.enhanced for reply in result.value] == ["4.4.2"] * 2

    def test_an_unclean_message_is_not_begun(self, net: Net) -> None:
        _peer, connection, result, first = sending(net, CHUNKING, body=Body(b"a\nb\r\n"))
        assert first == b""
        assert [reply.enhanced for reply in result.value] == ["5.6.0"] * 2
        assert connection.usable

    def test_an_unclean_message_from_a_file_gets_no_last_chunk(self, net: Net) -> None:
        body = Body(b"0123456789abcde\r\n" * 40_000 + b"a\nb\r\n", filed=True)
        peer, _connection, result, _ = sending(net, CHUNKING, PIPELINING, b"8BITMIME", body=body)
        written = peer.say(b"250 ok", b"250 ok", b"250 ok")
        while peer.wire.producer is not None and not peer.ended:
            written += peer.read()
        assert peer.ended
        assert b"LAST" not in written
        assert [reply.enhanced for reply in result.value] == ["5.6.0"] * 2


class TestLmtp:
    """RFC 2033: each recipient has its own answer to the message."""

    def sending(self, net: Net, *extensions: bytes, recipients=(BOB, CAROL)):
        hello = Result(net.connect(LMTP))
        peer = net.accept()
        assert peer.say(b"220 mda.example LMTP") == b"LHLO relay.corp.example\r\n"
        peer.say(*ehlo(*extensions))
        connection = hello.value
        return peer, connection, Result(connection.send(ALICE, recipients, Body(HELLO)))

    @pytest.mark.parametrize("more", [(), (CHUNKING,)], ids=["DATA", "BDAT"])
    def test_each_answer_is_its_recipients(self, net: Net, more) -> None:
        peer, connection, result = self.sending(net, PIPELINING, *more)
        peer.say(b"250 ok", b"250 ok", b"250 ok", *([] if more else [b"354 go"]))
        peer.say(b"250 2.0.0 delivered")
        assert result.waiting
        peer.say(b"552 5.2.2 mailbox full")
        assert [str(reply) for reply in result.value] == ["250 2.0.0 delivered", "552 5.2.2 mailbox full"]
        assert connection.usable

    def test_who_was_refused_before_gets_none(self, net: Net) -> None:
        peer, _connection, result = self.sending(net, PIPELINING)
        peer.say(b"250 ok", b"550 5.1.1 who?", b"250 ok", b"354 go")
        peer.say(b"250 delivered")
        assert codes(result.value) == [550, 250]

    def test_all_answers_in_one_segment(self, net: Net) -> None:
        peer, connection, result = self.sending(net, PIPELINING)
        peer.say(b"250 ok", b"250 ok", b"250 ok", b"354 go")
        peer.say(b"452 4.2.2 full", b"250 delivered")
        assert codes(result.value) == [452, 250]
        assert connection.usable

    @pytest.mark.parametrize("how", ["lost", "421", "noise", "334"])
    def test_broken_between_answers(self, net: Net, how: str) -> None:
        peer, connection, result = self.sending(net, PIPELINING)
        peer.say(b"250 ok", b"250 ok", b"250 ok", b"354 go")
        peer.say(b"250 delivered")
        if how == "lost":
            peer.drop()
        else:
            peer.say({"421": b"421 4.3.2 closing", "noise": b"hello", "334": b"334 what"}[how])
            peer.drop()
        assert [reply.code for reply in result.value] == [250, 421 if how == "421" else 451]
        assert not connection.usable

    def test_354_with_nobody_accepted_ends_it(self, net: Net) -> None:
        peer, _connection, result = self.sending(net, PIPELINING)
        peer.say(b"250 ok", b"550 no", b"550 no", b"354 go")
        assert peer.ended
        peer.drop()
        assert codes(result.value) == [550, 550]

    def test_no_helo_to_a_server_that_does_not_know_lhlo(self, net: Net) -> None:
        hello = Result(net.connect(LMTP))
        peer = net.accept()
        peer.say(b"220 mx.example ESMTP")
        peer.say(b"500 5.5.1 what?")
        assert hello.fault(PathFault).stage is Stage.EHLO


CLEAN = st.lists(st.one_of(st.binary(max_size=8), st.sampled_from([b".", b"..", b"\r\n", b"\r\n.", b"\r\n.\r\n"]))).map(
    lambda parts: b"".join(parts).replace(b"\0", b"").replace(b"\r\n", b"\0").replace(b"\r", b"").replace(b"\n", b"")
)
CLEAN_BODIES = CLEAN.map(lambda octets: octets.replace(b"\0", b"\r\n") + b"\r\n")
UNCLEAN = ["\n.\n", "\r.\r", "\r.\n", "\n.\r", "\n.\r\n", "\r\n.\n", "\r.\r\n", "\r\n.\r", "\r\n\0.\r\n",
           "\r\n.\0\r\n", "\r\n.\r\r\n", "\r\r\n.\r\r\n", "\n\n.\r\n"]  # fmt: skip


class TestTheMessage:
    @given(content=CLEAN_BODIES, filed=st.booleans())
    def test_exactly_one_message_leaves(self, content: bytes, filed: bool) -> None:
        peer, _connection, result, _ = sending(Net(), PIPELINING, b"8BITMIME", body=Body(content, filed))
        written = peer.say(b"250 ok", b"250 ok", b"250 ok", b"354 go")
        reader = DataReader()
        arrived, rest = reader.feed(written)
        assert (arrived, rest, reader.fault) == (content, b"", "")
        peer.say(b"250 ok")
        assert codes(result.value) == [250, 250]

    @pytest.mark.parametrize("vector", UNCLEAN, ids=repr)
    @pytest.mark.parametrize("filed", [False, True])
    def test_an_unclean_message_never_leaves(self, net: Net, vector: str, filed: bool) -> None:
        body = Body(b"x" + vector.encode() + b"y\r\n", filed)
        peer, connection, result, first = sending(net, PIPELINING, b"8BITMIME", body=body)
        if not filed:
            assert first == b""
            assert connection.usable
        else:
            written = peer.say(b"250 ok", b"250 ok", b"250 ok", b"354 go")
            assert DataReader().feed(written)[1] is None
            assert peer.ended
        assert [(reply.code, reply.enhanced) for reply in result.value] == [(554, "5.6.0")] * 2

    @given(content=st.binary(), filed=st.booleans(), where=st.integers(0), what=st.sampled_from([b"\r", b"\n", b"\0"]))
    def test_whatever_is_unclean_never_leaves(self, content: bytes, filed: bool, where: int, what: bytes) -> None:
        content = content.replace(b"\r", b"").replace(b"\n", b"")
        where %= len(content) + 1
        content = content[:where] + what + content[where:]
        peer, _connection, result, _first = sending(Net(), PIPELINING, b"8BITMIME", body=Body(content, filed))
        written = peer.say(b"250 ok", b"250 ok", b"250 ok", b"354 go") if filed else b""
        assert DataReader().feed(written)[1] is None
        assert codes(result.value) == [554, 554]

    def test_a_large_message_waits_for_its_reader(self, net: Net) -> None:
        content = b"0123456789\r\n" * 100_000
        peer, _connection, result, _ = sending(net, PIPELINING, b"8BITMIME", body=Body(content, filed=True))
        connection_writes_stop(peer)
        first = peer.say(b"250 ok", b"250 ok", b"250 ok", b"354 go")
        assert first == b""
        blocks = []
        while peer.wire.producer is not None:
            producer = peer.wire.producer
            real_write = peer.wire.write

            def write(octets: bytes, producer=producer, real_write=real_write) -> None:
                real_write(octets)
                producer.pauseProducing()

            peer.wire.write = write
            producer.resumeProducing()
            peer.wire.write = real_write
            blocks.append(peer.read())
        assert b"".join(blocks) == content + b".\r\n"
        assert max(map(len, blocks)) < 300_000
        peer.say(b"250 ok")
        assert codes(result.value) == [250, 250]

    def test_a_peer_that_takes_nothing_of_a_large_message(self, net: Net) -> None:
        body = Body(b"x\r\n" * 300_000, filed=True)
        peer, _connection, result, _ = sending(net, PIPELINING, b"8BITMIME", body=body)
        connection_writes_stop(peer)
        peer.say(b"250 ok", b"250 ok", b"250 ok", b"354 go")
        net.reactor.advance(300)
        assert peer.ended
        assert result.fault(PathFault).stage is Stage.BODY

    def test_an_answer_inside_a_large_message(self, net: Net) -> None:
        body = Body(b"x\r\n" * 300_000, filed=True)
        peer, _connection, result, _ = sending(net, PIPELINING, b"8BITMIME", body=body)
        connection_writes_stop(peer)
        peer.say(b"250 ok", b"250 ok", b"250 ok", b"354 go")
        peer.say(b"552 5.3.4 too large")
        assert peer.ended
        fault = result.fault(PathFault)
        assert fault.stage is Stage.BODY
        assert fault.temporary

    def test_a_message_that_cannot_be_read(self, net: Net) -> None:
        body = BrokenBody(HELLO, filed=True)
        peer, _connection, result, _ = sending(net, PIPELINING, b"8BITMIME", body=body)
        peer.say(b"250 ok", b"250 ok", b"250 ok", b"354 go")
        assert peer.ended
        assert [str(reply)[:9] for reply in result.value] == ["451 4.3.0"] * 2

    def test_a_message_that_cannot_be_looked_through(self, net: Net) -> None:
        _peer, connection, result, first = sending(net, PIPELINING, body=BrokenBody(HELLO, filed=True))
        assert first == b""
        assert [reply.enhanced for reply in result.value] == ["4.3.0"] * 2
        assert connection.usable


class TestUse:
    def test_one_message_at_a_time(self, net: Net) -> None:
        _, connection, _, _ = sending(net)
        assert not connection.usable
        with pytest.raises(RuntimeError):
            connection.send(ALICE, [BOB], Body(HELLO))

    def test_cancelling_ends_the_connection(self, net: Net) -> None:
        from twisted.internet.defer import CancelledError

        peer, connection = net.opened(PIPELINING)
        sent = connection.send(ALICE, [BOB], Body(HELLO))
        result = Result(sent)
        sent.cancel()
        result.fault(CancelledError)
        assert peer.ended
        peer.drop()
        assert not connection.usable
        assert not net.reactor.getDelayedCalls()

    def test_a_peer_that_refuses_rset(self, net: Net) -> None:
        peer, connection = net.opened()
        connection.send(ALICE, [BOB], Body(HELLO))
        peer.say(b"450 later")
        peer.read()
        result = Result(connection.send(ALICE, [BOB], Body(HELLO)))
        peer.say(b"500 what?")
        fault = result.fault(PathFault)
        assert (fault.stage, fault.stale) == (Stage.RSET, True)
        assert peer.ended

    def test_no_thread_is_no_answer(self, net: Net) -> None:
        """A shortage of this machine's own is told as such, and costs neither message nor connection."""
        busy = Fault(Reply.of(451, "4.3.2", "busy"))
        opening = Result(
            connect(net.reactor, TARGET, hostname="relay.example", tls=TLS, in_thread=lambda function: fail(busy))
        )
        greet(net.accept(), b"PIPELINING")
        connection = opening.value
        result = Result(connection.send(ALICE, [BOB], Body(HELLO, filed=True)))
        assert result.fault(Fault) is busy
        assert connection.usable


LINES = st.sampled_from(
    [b"250 ok", b"250 2.0.0 ok", b"354 go", b"550 5.1.1 no", b"450 4.2.0 no", b"552 no", b"530 no", b"221 bye",
     b"421 4.3.2 no", b"250-more", b"334 eh", b"noise", b"251 ok", b"554 no", b""]
)  # fmt: skip


@given(
    lines=st.builds(
        lambda count, lines: [b"250 ok", b"250 ok", b"250 ok", b"354 go"][:count] + lines,
        st.integers(0, 4),
        st.lists(LINES, max_size=8),
    ),
    cuts=st.lists(st.integers(0, 120), max_size=6),
    pipelining=st.booleans(),
    filed=st.booleans(),
    content=st.just(HELLO) | st.just(b"x\r\n" * 200_000),
)
def test_whatever_a_peer_says(
    lines: list[bytes], cuts: list[int], pipelining: bool, filed: bool, content: bytes
) -> None:
    """One outcome always; delivered only where a whole message was answered 2xx; nothing but one message is written."""
    net = Net()
    peer, connection = net.opened(*([PIPELINING, b"8BITMIME"] if pipelining else [b"8BITMIME"]))
    result = Result(connection.send(ALICE, [BOB, CAROL], Body(content, filed)))
    octets = b"".join(line + b"\r\n" for line in lines)
    edges = sorted({0, *(cut for cut in cuts if cut < len(octets)), len(octets)})
    for start, end in pairwise(edges):
        if not peer.ended:
            peer.protocol.dataReceived(octets[start:end])
    peer.drop()
    written = peer.read()
    assert len(result.outcomes) == 1
    commands, _, message = written.partition(b"DATA\r\n")
    assert commands.count(b"MAIL FROM") == 1
    assert message in (b"", b".\r\n") or message.startswith(content[:100])
    if isinstance(result.outcomes[0], tuple):
        replies = result.outcomes[0]
        assert len(replies) == 2
        if any(reply.positive for reply in replies):
            assert message == content + b".\r\n"
    else:
        assert result.fault(PathFault).temporary
    assert not net.reactor.getDelayedCalls()
