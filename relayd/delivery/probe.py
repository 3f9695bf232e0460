"""What a next hop offers: connects as delivery would, shows no credential, sends no mail, and takes its leave."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Final

from twisted.internet.defer import Deferred

from relayd.delivery.client import as_allowed, connect
from relayd.delivery.connection import Connection
from relayd.delivery.fault import PathFault, Stage
from relayd.delivery.offer import NO_OFFER, Offer
from relayd.delivery.outflow import InThread
from relayd.delivery.sasl import not_offered
from relayd.delivery.target import Target, Timeouts
from relayd.delivery.tls import ClientTls
from relayd.delivery.transaction import plan
from relayd.model import NULL_PATH, Recipient, Reply, Sender

#: Seconds that a probe takes leave in.
_LEAVE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of one.

    :ivar fault: what delivery would meet; None: the next hop can be sent to.
    :ivar refused: the answer that relayd itself would give for the recipient, since the next hop lacks what it takes.
    :ivar greeting: None: there was none; *starttls*: whether STARTTLS is offered.
    :ivar tls: as :attr:`Connection.tls`, and *distrust* too.
    :ivar broken: how TLS broke that nobody asked for; the mail would go in the clear.
    """

    fault: PathFault | None = None
    refused: Reply | None = None
    greeting: Reply | None = None
    starttls: bool = False
    tls: str = ""
    distrust: str = ""
    broken: PathFault | None = None
    offer: Offer = NO_OFFER


async def probe(
    reactor: Any,
    target: Target,
    recipient: Recipient,
    *,
    hostname: str,
    tls: ClientTls,
    in_thread: InThread,
    seconds: float,
) -> Probe:
    """Asks *target*. What it would be asked with a credential, it is asked without.

    :param recipient: whom the mail is for.
    :param hostname: relayd's own name, for EHLO.
    :param seconds: for all of it but the leave.
    """
    made: list[Connection] = []
    broken: list[PathFault] = []

    def opening(to: Target) -> Deferred[Connection]:
        timeouts = Timeouts(connect=seconds, command=seconds, quit=_LEAVE)
        return connect(
            reactor, to, hostname=hostname, tls=tls, in_thread=in_thread, timeouts=timeouts, made=made.append
        )

    def late(result: object, _: float) -> Connection:
        stage = made[-1].stage if made else Stage.CONNECT
        reply = Reply.of(451, "4.4.2", f"No answer within {seconds:g} s ({stage.value})")
        raise PathFault(stage, reply, peer=str(target))

    # Its level is what the credential makes of it.
    work = Deferred.fromCoroutine(
        as_allowed(replace(target, tls=target.level, credential=None), opening, broken.append)
    )
    work.addTimeout(seconds, reactor, late)
    fault: PathFault | None = None
    try:
        connection = await work
    except PathFault as caught:
        fault = caught
    else:
        if target.credential is not None and (why := not_offered(target.credential, connection.offer)):
            fault = connection.auth_fault(why)
        await connection.quit()
    if not made:
        return Probe(fault)
    seen = made[-1]
    return Probe(
        fault,
        None if fault is not None else _refused(recipient, seen.offer),
        seen.greeting,
        any(one.starttls for one in made),
        seen.tls,
        seen.distrust,
        broken[0] if broken else None,
        seen.offer,
    )


class _Nothing:
    """A message with nothing in it."""

    size = 0
    octets = b""

    def open(self) -> BinaryIO:
        raise NotImplementedError


def _refused(recipient: Recipient, offer: Offer) -> Reply | None:
    return plan(Sender(NULL_PATH), [recipient], _Nothing(), offer).replies[0]
