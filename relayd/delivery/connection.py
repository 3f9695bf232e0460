"""One connection to a next hop: greeting, EHLO, TLS, AUTH, then one transaction after the other (RFC 5321 3).

twisted.mail's client is not used: see docs/twisted-mail.md.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IDelayedCall, IHandshakeListener, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.channel_binding import end_point_binding
from relayd.delivery.fault import PathFault, Stage, softened
from relayd.delivery.offer import NO_OFFER, Offer
from relayd.delivery.outflow import InThread, Outflow, eight_bit
from relayd.delivery.sasl import Authenticator
from relayd.delivery.target import Target, Timeouts
from relayd.delivery.tls import ClientTls, Handshake, Untrusted
from relayd.delivery.transaction import UNCLEAN, Transaction, plan
from relayd.model import Fault, Recipient, Reply, Sender
from relayd.queue.store import MessageBody
from relayd.settings import OutboundTls
from relayd.wire import BdatWriter, DataWriter, ReplyReader, UncleanMessage

#: Octets of the longest reply that is read.
REPLY_LIMIT = 64 * 1024


class _State(enum.Enum):
    OPENING = enum.auto()
    IDLE = enum.auto()
    BUSY = enum.auto()
    CLOSING = enum.auto()  # QUIT was said, or nothing more can be
    CLOSED = enum.auto()


@implementer(IHandshakeListener)
class Connection(Protocol):
    """A connection to a next hop. Made by :func:`connect`.

    :ivar target: where it leads.
    :ivar peer: ``host[address]:port``.
    :ivar tls: ``TLSv1.3 TLS_AES_256_GCM_SHA384 verified``, ``dane`` where TLSA records vouch for the certificate,
        without the last word where it does not hold; empty in the clear.
    :ivar distrust: why the certificate does not hold, where nothing depends on it.
    :ivar stage: where the dialogue stands.
    :ivar greeting: what the next hop said first; *starttls*: whether it has offered STARTTLS.
    :ivar offer: the service extensions of the next hop.
    :ivar messages: how many transactions it has carried.
    :ivar closed: called once when the connection has ended.
    """

    def __init__(
        self,
        reactor: Any,
        target: Target,
        hostname: str,
        timeouts: Timeouts,
        tls: ClientTls,
        in_thread: InThread,
        authenticator: Authenticator | None = None,
    ) -> None:
        self.target = target
        self.peer = str(target)
        self.tls = self.distrust = ""
        self.greeting: Reply | None = None
        self.starttls = False
        self.offer = NO_OFFER
        self.messages = 0
        self.closed: Callable[[Connection], None] = lambda connection: None
        self._reactor = reactor
        self._hostname = hostname
        self._timeouts = timeouts
        self._client_tls = tls
        self._in_thread = in_thread
        self._authenticator = authenticator or Authenticator(in_thread)
        self._state = _State.OPENING
        self.stage = Stage.GREETING
        self._reader = ReplyReader(REPLY_LIMIT)
        self._waiter: Deferred[Reply] | None = None
        self._handshake: Handshake | None = None
        self._shaken: Deferred[None] | None = None
        self._verified = False
        self._dirty = False
        self._transaction: Transaction | None = None
        self._body: MessageBody | None = None
        self._done: Deferred[tuple[Reply, ...]] | None = None
        self._outcome: tuple[Reply, ...] | PathFault | None = None
        self._wait = 0.0
        self._deadline: float | None = None
        self._timer: IDelayedCall | None = None

    # ---- for those who send -------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether :meth:`send` may be called now."""
        return self._state is _State.IDLE

    def send(self, sender: Sender, recipients: Sequence[Recipient], body: MessageBody) -> Deferred[tuple[Reply, ...]]:
        """Send one message. One at a time.

        :returns: fires with one final reply a recipient, in their order. Some may be relayd's own: for what the next
            hop cannot take, and for what a broken connection left open (temporary; :attr:`usable` is False then).
            Fails with :class:`PathFault` when no recipient got an answer, and with another :class:`Fault` when
            this machine is short of threads. Cancelling it ends the connection.
        """
        if self._state is not _State.IDLE:
            raise RuntimeError(f"{self.peer}: not free to send ({self._state.name.lower()})")
        if not recipients:
            raise ValueError("a message to nobody")
        self._state = _State.BUSY
        self._done = done = Deferred[tuple[Reply, ...]](self._cancelled)
        if body.octets is None and "8BITMIME" not in self.offer.extensions:
            self._in_thread(lambda: eight_bit(body)).addCallbacks(
                lambda found: self._begin(sender, recipients, body, found),
                lambda failure: self._unread(failure, len(recipients)),
            )
        else:
            self._begin(sender, recipients, body, None)
        return done

    def quit(self) -> Deferred[None]:
        """Take leave (RFC 5321 4.1.1.10). Fires when the other end has answered or had its time; never fails."""
        return Deferred.fromCoroutine(self._quit())

    def abort(self) -> None:
        """End the connection at once."""
        if self._state is not _State.CLOSED:
            self._state = _State.CLOSING
            self._transport.abortConnection()

    # ---- the dialogue before the first message --------------------------------------------------------------------

    async def open(self) -> None:
        """From the new connection to the point where it can send.

        :raises PathFault: it does not come to that; the connection has ended.
        """
        try:
            await self._open()
        except BaseException:
            self.abort()
            raise
        self._state = _State.IDLE

    async def _open(self) -> None:
        level = self.target.level
        if level is OutboundTls.IMPLICIT:
            await self._start_tls(level)
        greeting = self.greeting = await self._ask(Stage.GREETING, b"")
        if greeting.code != 220:
            raise self.path_fault(Stage.GREETING, greeting)
        await self._hello()
        if level not in (OutboundTls.NONE, OutboundTls.IMPLICIT):
            await self._try_tls(level)
        credential = self.target.credential
        if credential is not None:
            if not (self._verified or credential.allow_insecure):
                raise self._fault(Stage.AUTH, "4.7.5", "No credential over a connection that is not verified")
            await self._authenticator.authenticate(self, credential)

    async def _hello(self) -> None:
        name = self._hostname.encode("ascii", "replace")
        verb = b"LHLO" if self.target.lmtp else b"EHLO"  # RFC 2033 4.1
        reply = await self._ask(Stage.EHLO, b"%b %b\r\n" % (verb, name))
        if reply.code == 250:
            self.offer = Offer.of(reply)
            self.starttls = self.starttls or "STARTTLS" in self.offer.extensions
            return
        if reply.code in (500, 502) and not self.target.lmtp:  # RFC 5321 3.2: a server older than ESMTP
            reply = await self._ask(Stage.EHLO, b"HELO %b\r\n" % name)
            if reply.code == 250:
                self.offer = NO_OFFER
                return
        raise self.path_fault(Stage.EHLO, reply)

    async def _try_tls(self, level: OutboundTls) -> None:
        if "STARTTLS" not in self.offer.extensions:
            if level is not OutboundTls.MAY:
                raise self._fault(Stage.STARTTLS, "4.7.4", "TLS is required, and not offered")
            return
        reply = await self._ask(Stage.STARTTLS, b"STARTTLS\r\n")
        if reply.code == 220:
            await self._start_tls(level)
            await self._hello()  # RFC 3207 4.2: what was offered in the clear is void
        elif level is not OutboundTls.MAY or reply.code == 421:
            raise self.path_fault(Stage.STARTTLS, reply)

    async def _start_tls(self, level: OutboundTls) -> None:
        self.stage = Stage.TLS
        try:
            self._handshake = self._client_tls.handshake(self.target.name, level, self.target.tlsa, self.target.also)
        except ValueError as error:
            raise self._fault(Stage.TLS, "4.7.5", f"No TLS with a host of this name: {self.target.name}") from error
        # What stands unread was sent in the clear, and is never read as if it came through TLS.
        self._reader = ReplyReader(REPLY_LIMIT)
        self.offer = NO_OFFER
        self._shaken = Deferred()
        self._expect(self._timeouts.command)
        self._transport.startTLS(self._handshake)
        await self._shaken

    async def _quit(self) -> None:
        if self._state is not _State.IDLE:
            self.abort()
            return
        self._state = _State.CLOSING
        try:
            await self._ask(Stage.QUIT, b"QUIT\r\n", self._timeouts.quit)
        except PathFault:
            return
        self._transport.loseConnection()
        self._expect(self._timeouts.quit)

    # ---- what authentication needs --------------------------------------------------------------------------------

    @property
    def binding(self) -> bytes:
        """Channel binding data of the TLS in use; empty: there is none."""
        certificate = self._transport.getPeerCertificate() if self.tls else None
        return end_point_binding(certificate.to_cryptography()) if certificate is not None else b""

    def say(self, octets: bytes) -> Deferred[Reply]:
        """One step of AUTH; the reply to it."""
        return self._ask(Stage.AUTH, octets)

    def auth_refused(self, said: Reply) -> PathFault:
        """The fault for *said*, which ends the exchange."""
        return self.path_fault(Stage.AUTH, said)

    def auth_fault(self, text: str, detail: str = "") -> PathFault:
        """The fault for an exchange that does not come about."""
        return self._fault(Stage.AUTH, "4.7.0", text, detail)

    def _ask(self, stage: Stage, octets: bytes, seconds: float | None = None) -> Deferred[Reply]:
        """Write *octets*; the one reply that is to follow."""
        if self._state is _State.CLOSED:
            raise self._fault(stage, "4.4.2", "Connection lost")
        self.stage = stage
        self._waiter = waiter = Deferred[Reply]()
        self._expect(self._timeouts.command if seconds is None else seconds)
        if octets:
            self._transport.write(octets)
        return waiter

    # ---- a transaction's link -------------------------------------------------------------------------------------

    def _begin(
        self, sender: Sender, recipients: Sequence[Recipient], body: MessageBody, eight_bit: bool | None
    ) -> None:
        if self._done is None:  # cancelled, or lost, while the message was looked through
            return
        planned = plan(sender, recipients, body, self.offer, eight_bit=eight_bit)
        if not planned.wanted:
            self.concluded(tuple(r for r in planned.replies if r is not None), clean=not self._dirty)
            self._report()
            return
        self._body = body
        extensions = self.offer.extensions
        self._transaction = Transaction(
            self,
            planned,
            reset=self._dirty,
            pipelining="PIPELINING" in extensions,
            chunking="CHUNKING" in extensions,
            each=self.target.lmtp,
        )
        self.messages += 1
        self._dirty = True
        self._expect(self._timeouts.command)
        self._transaction.start()

    def write(self, octets: bytes) -> None:
        self._transport.write(octets)

    def stream(self) -> Callable[[], int]:
        transaction, body = self._transaction, self._body
        assert transaction is not None
        assert body is not None
        chunks = BdatWriter() if "CHUNKING" in self.offer.extensions else None
        outflow = Outflow(
            body,
            chunks or DataWriter(),
            cast(IConsumer, self.transport),
            self._in_thread,
            lambda: self._expect(self._timeouts.command),
        )

        def written(_: None) -> None:
            transaction.streamed()
            self._expect(self._timeouts.final)

        outflow.done.addCallbacks(written, self._cut)
        outflow.start()
        return lambda: chunks.chunks if chunks is not None else 0

    def lost(self, stage: Stage, said: Reply) -> PathFault:
        fault = self.path_fault(stage, said)
        self.abort()
        return fault

    def path_fault(self, stage: Stage, said: Reply) -> PathFault:
        stale = stage is Stage.RSET or (said.code == 421 and self._untouched)
        return PathFault(stage, softened(said), peer=self.peer, said=said, stale=stale)

    def concluded(self, outcome: tuple[Reply, ...] | PathFault, *, clean: bool) -> None:
        self._outcome = outcome
        self._dirty = not clean
        self._transaction = self._body = None
        self._deadline = None
        if self._state is _State.BUSY:
            self._state = _State.IDLE
            self.stage = Stage.IDLE

    def _report(self) -> None:
        """Tell the sender what came of the transaction, once nothing of this chunk is left to read."""
        outcome, done = self._outcome, self._done
        if outcome is None or done is None:
            return
        self._outcome = self._done = None
        if isinstance(outcome, PathFault):
            done.errback(outcome)
        else:
            done.callback(outcome)

    def _unread(self, failure: Failure, recipients: int) -> None:
        """The message cannot be read; nothing of it was sent."""
        if self._done is None:
            return
        if failure.check(Fault):  # no thread was free
            self._state = _State.IDLE
            done, self._done = self._done, None
            done.errback(failure)
        else:
            self.concluded((_unreadable(failure),) * recipients, clean=not self._dirty)
            self._report()

    def _cut(self, failure: Failure) -> None:
        """The message cannot be sent to its end. No end of data may follow what was sent of it."""
        self.abort()
        if self._transaction is not None:
            self._transaction.cut(UNCLEAN if failure.check(UncleanMessage) else _unreadable(failure))
            self._report()

    def _cancelled(self, done: Deferred[tuple[Reply, ...]]) -> None:
        self._done = self._transaction = self._body = None
        self.abort()

    # ---- what the transport calls ---------------------------------------------------------------------------------

    @property
    def _transport(self) -> Any:
        return self.transport

    @property
    def _untouched(self) -> bool:
        return self._transaction is not None and self._transaction.untouched

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self._transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        if self._state is _State.CLOSED or (self._state is _State.CLOSING and self._waiter is None):
            return
        try:
            replies = self._reader.feed(data)
        except Fault as fault:
            self._broken(f"Not understood: {fault.reply.text}", fault.detail)
            return
        if self._transaction is not None:
            self._transact(self._transaction, replies)
        elif self._waiter is not None:
            if replies:
                waiter, self._waiter = self._waiter, None
                self._deadline = None
                if len(replies) > 1 or not self._reader.empty:
                    # RFC 3207 4, and beyond: who answers before it was asked, or whoever speaks in its place, is not
                    # to be believed.
                    self._waiter = waiter
                    self._broken("More answers than questions")
                else:
                    waiter.callback(replies[0])
        else:
            self.abort()  # idle: 421, or noise

    def _transact(self, transaction: Transaction, replies: list[Reply]) -> None:
        for number, reply in enumerate(replies, 1):
            transaction.replied(reply)
            if transaction.over:
                if number < len(replies) or not self._reader.empty:
                    self.abort()
                self._report()
                return
        if replies:
            final = transaction.stage is Stage.END
            self._expect(self._timeouts.final if final else self._timeouts.command)

    def handshakeCompleted(self) -> None:
        handshake, shaken = self._handshake, self._shaken
        if handshake is None or shaken is None:
            return
        self._shaken = None
        self._deadline = None
        try:
            agreed = handshake.finished(self._transport.getHandle())
        except Untrusted as error:
            self.abort()
            shaken.errback(self._fault(Stage.TLS, "4.7.5", f"The certificate does not hold: {error}"))
            return
        self._verified = agreed.verified
        self.distrust = agreed.distrust
        held = " dane" if self.target.level is OutboundTls.DANE else " verified" if agreed.verified else ""
        self.tls = f"{agreed.version} {agreed.cipher}{held}"
        shaken.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._broken("Connection lost", _reason(reason, self._handshake))
        self._state = _State.CLOSED
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.closed(self)

    def _broken(self, text: str, detail: str = "") -> None:
        """Nothing more can be expected of the connection: whoever waits is told, and it is ended."""
        if self._state is not _State.CLOSED:
            self.abort()
        self._deadline = None
        if self._shaken is not None:
            shaken, self._shaken = self._shaken, None
            fault = self._fault(Stage.TLS, "4.7.5", f"TLS failed: {detail}" if detail else "TLS failed", detail)
            shaken.errback(fault)
        elif self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            waiter.errback(self._fault(self.stage, "4.4.2", text, detail))
        elif self._transaction is not None:
            stale = self._transaction.untouched
            self._transaction.failed(self._fault(self._transaction.stage, "4.4.2", text, detail, stale=stale))
            self._report()
        elif self._done is not None:  # a message is being looked through, nothing was sent
            done, self._done = self._done, None
            done.errback(self._fault(Stage.IDLE, "4.4.2", text, detail, stale=True))

    def _fault(self, stage: Stage, enhanced: str, text: str, detail: str = "", *, stale: bool = False) -> PathFault:
        return PathFault(
            stage,
            Reply.of(451, enhanced, f"{text} ({stage.value})"),
            f"{self.peer} ({stage.value}): {text}{f': {detail}' if detail and detail not in text else ''}",
            peer=self.peer,
            cleartext=stage is Stage.TLS and self.target.level is OutboundTls.MAY,
            stale=stale,
        )

    # ---- time -----------------------------------------------------------------------------------------------------

    def _expect(self, seconds: float) -> None:
        """Something is to come within *seconds*. One timer a connection; a later deadline costs it nothing."""
        self._wait = seconds
        self._deadline = deadline = self._reactor.seconds() + seconds
        if self._timer is None:
            self._timer = self._reactor.callLater(seconds, self._tick)
        elif self._timer.getTime() > deadline:
            self._timer.reset(seconds)

    def _tick(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        left = self._deadline - self._reactor.seconds()
        if left > 0:
            self._timer = self._reactor.callLater(left, self._tick)
        else:
            self._broken(f"No answer within {self._wait:g} s")


def _unreadable(failure: Failure) -> Reply:
    if isinstance(failure.value, Fault):  # no thread was free
        return failure.value.reply
    return Reply.of(451, "4.3.0", "The message cannot be read for now")


def _reason(reason: Failure, handshake: Handshake | None) -> str:
    """Why a connection was lost, for the log: the certificate's fault and OpenSSL's words come before TCP's."""
    if handshake is not None and handshake.fault and isinstance(reason.value, SSL.Error):
        return handshake.fault
    if isinstance(reason.value, SSL.Error):
        errors = reason.value.args[0] if reason.value.args else ()
        return "; ".join(str(entry[-1]) for entry in errors) or "TLS ended"
    return reason.getErrorMessage()
