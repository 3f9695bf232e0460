"""Asking a next hop what it offers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError as Refused

from relayd.delivery.fault import Stage
from relayd.delivery.probe import probe
from relayd.delivery.target import Target
from relayd.model import Path, Recipient
from relayd.settings import Credential, OutboundTls
from tests.unit.delivery.peer import BOB, TARGET, TLS, Net, Result, ehlo, greet, in_thread


class Probing(Net):
    def probe(self, target: Target = TARGET, recipient: Recipient = BOB, seconds: float = 15.0) -> Result:
        work = probe(
            self.reactor,
            target,
            recipient,
            hostname="relay.corp.example",
            tls=TLS,
            in_thread=in_thread,
            seconds=seconds,
        )
        return Result(Deferred.fromCoroutine(work))


@pytest.fixture
def net() -> Probing:
    return Probing()


def test_what_it_offers_and_the_leave(net: Probing) -> None:
    asked = net.probe()
    peer = net.accept()
    assert greet(peer, b"PIPELINING", b"SIZE 1000", b"STARTTLS", b"AUTH PLAIN NTLM") == b"QUIT\r\n"
    peer.say(b"221 bye")
    found = asked.value
    assert (found.fault, found.refused, found.broken, found.tls) == (None, None, None, "")
    assert found.greeting.text == "mx.example ESMTP"
    assert found.starttls
    assert (found.offer.size, found.offer.mechanisms) == (1000, ("PLAIN", "NTLM"))


def test_nobody_signs_in(net: Probing) -> None:
    """Not even where it may: the level is what the credential asks for, and the mechanism is looked for."""
    credential = Credential("provider", user="relay", allow_insecure=True)
    for mechanisms, why in (
        (b"LOGIN", ""),
        (b"GSSAPI", "451 4.7.0 Neither AUTH PLAIN nor AUTH LOGIN is offered (AUTH)"),
    ):
        asked = net.probe(replace(TARGET, credential=credential))
        peer = net.accept()
        assert greet(peer, b"AUTH " + mechanisms) == b"QUIT\r\n"
        peer.say(b"221 bye")
        fault = asked.value.fault
        assert (str(fault.reply) if fault is not None else "") == why


def test_a_credential_asks_for_tls(net: Probing) -> None:
    asked = net.probe(replace(TARGET, credential=Credential("provider", user="relay")))
    greet(net.accept(), b"AUTH PLAIN")
    found = asked.value
    assert (found.fault.stage, found.fault.reply.enhanced) == (Stage.STARTTLS, "4.7.4")
    assert not found.starttls
    assert found.offer.mechanisms == ("PLAIN",)


def test_tls_that_breaks_under_may(net: Probing) -> None:
    asked = net.probe(replace(TARGET, tls=OutboundTls.MAY))
    first = net.accept()
    greet(first, b"STARTTLS")
    first.say(b"220 go")
    first.drop()
    second = net.accept()
    assert greet(second, b"SIZE", b"STARTTLS") == b"QUIT\r\n"
    second.say(b"221 bye")
    found = asked.value
    assert found.fault is None
    assert found.broken.stage is Stage.TLS
    assert found.starttls


@pytest.mark.parametrize(("said", "stage"), [((), Stage.GREETING), ((b"220 mx",), Stage.EHLO)])
def test_all_of_it_has_one_limit(net: Probing, said: tuple[bytes, ...], stage: Stage) -> None:
    asked = net.probe(seconds=15.0)
    peer = net.accept()
    net.reactor.advance(14.0)
    if said:
        peer.say(*said)
    net.reactor.advance(1.0)
    fault = asked.value.fault
    assert str(fault.reply) == f"451 4.4.2 No answer within 15 s ({stage.value})"
    assert fault.stage is stage
    assert peer.ended


def test_nobody_there(net: Probing) -> None:
    asked = net.probe()
    net.refuse(Refused())
    assert asked.value.fault.stage is Stage.CONNECT
    assert asked.value.greeting is None


def test_it_refuses_at_the_greeting(net: Probing) -> None:
    asked = net.probe()
    net.accept().say(b"554 go away")
    found = asked.value
    assert (found.greeting.code, found.fault.stage, found.fault.reply.code) == (554, Stage.GREETING, 451)


@pytest.mark.parametrize(
    ("local", "domain", "offers", "enhanced"),
    [
        ("josé", "partner.example", b"SIZE", "5.6.7"),
        ("josé", "partner.example", b"SMTPUTF8", ""),
        ("jose", "bücher.example", b"SIZE", ""),  # it goes as A-labels
    ],
)
def test_a_recipient_that_it_cannot_take(net: Probing, local: str, domain: str, offers: bytes, enhanced: str) -> None:
    asked = net.probe(recipient=Recipient(Path(local, domain)))
    peer = net.accept()
    greet(peer, offers)
    peer.say(b"221 bye")
    refused: Any = asked.value.refused
    assert (refused.enhanced if refused is not None else "") == enhanced
    assert asked.value.fault is None


def test_lmtp(net: Probing) -> None:
    asked = net.probe(replace(TARGET, lmtp=True))
    peer = net.accept()
    assert peer.say(b"220 store") == b"LHLO relay.corp.example\r\n"
    assert peer.say(*ehlo(b"PIPELINING")) == b"QUIT\r\n"
    peer.say(b"221 bye")
    assert asked.value.fault is None
