"""An inbound session: the commands of ESMTP, from the greeting to QUIT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ITCPTransport
from twisted.python.failure import Failure

from relayd import events
from relayd.model import NO_NAMES, Fault, Names, Peer, Recipient, Reply, Sender
from relayd.realm import IRelayDelivery
from relayd.settings import TlsMode
from relayd.smtpd import replies
from relayd.smtpd.identity import IdentifiedESMTP, insist
from relayd.smtpd.serial import COMMAND_LINE, Answer
from relayd.smtpd.transaction import Discard, Transaction
from relayd.smtpd.virtual_server import VirtualServer
from relayd.wire import BdatReader, DataReader, encode_reply, parse_bdat, parse_command, parse_mail, parse_rcpt

# What IIS let pass before TLS where it is required, and RFC 3207 4.
_BEFORE_TLS: Final = frozenset({"EHLO", "HELO", "STARTTLS", "NOOP", "RSET", "QUIT"})
# A browser that was made to talk to this port says one of these; what it sends next are not commands of anybody here.
_HTTP: Final = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_OF_MAIL: Final = frozenset({"MAIL", "RCPT", "DATA", "BDAT"})
_OF_MESSAGE: Final = frozenset({"DATA", "BDAT"})
#: Octets of messages already refused that a session may still send, where the limits are lower.
MOST_DISCARDED: Final = 64 * 1024**2


class RelayESMTP(IdentifiedESMTP):
    """One client's session.

    :ivar opened_at: when, in seconds of the reactor's clock.
    :ivar messages: how many were accepted.
    """

    def __init__(self, server: VirtualServer, peer: Peer) -> None:
        super().__init__(server, peer)
        self.opened_at = server.reactor.seconds()
        self.messages = 0
        self._octets = 0
        self._discarded = 0
        self._given = ""
        self._refused = False
        self._transaction: Transaction | None = None
        self._reader: DataReader | BdatReader | Discard | None = None
        self._last = False

    # The greeting.

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            # A reply goes out at once, though the client has not acknowledged what is before it: TLS 1.3's tickets.
            self.transport.setTcpNoDelay(True)
        self.server.opened(self)
        self.start()
        if self.server.listener.tls is not TlsMode.IMPLICIT or self.server.tls is None:
            self.welcome()
            return
        self._handshaking = True
        try:
            # Whoever never begins the handshake takes up room too; there is no way to tell it why it is cut off.
            self.server.insist_on_room(self.client.peer.address)
        except Fault as fault:
            self.why = self._turned_away(fault).text
            self.wire.abortConnection()

    def welcome(self) -> None:
        """Greets, or refuses. Input waits until it is known which."""
        address = self.client.peer.address
        answer: Answer
        try:
            self.server.insist_on_room(address)
            names = self.server.names(address)
            answer = self._greet(NO_NAMES) if names is None else names.addCallback(self._greet)
        except Exception:
            answer = self.refusal(Failure())
        self._answer(answer)
        self._flush()

    def _greet(self, names: Names) -> bytes:
        if names is not NO_NAMES:
            self.client = replace(self.client, names=names)
        client = self.client
        insist(self.server.policy.greet(client))
        self._welcomed = True
        self._legacy = self.server.policy.legacy(client)
        self.emit(
            events.SessionOpened(
                session=self.id, client=str(client.peer), listener=client.listener, names=client.names.confirmed
            )
        )
        return encode_reply(Reply.of(220, "", self.greeting().decode()))

    def greeting(self) -> bytes:
        return f"{self.server.hostname} ESMTP relayd".encode()

    def _turned_away(self, fault: Fault) -> Reply:
        """Instead of a greeting. After a 5yz one the client may still say QUIT (RFC 5321 3.1)."""
        if fault.temporary and fault.reply.code != 421:
            fault = Fault(replace(fault.reply, code=421), fault.detail, fault.rule)
        self._refused = True
        self.hurry()
        self.emit(
            events.SessionRefused(
                session=self.id,
                client=str(self.client.peer),
                listener=self.client.listener,
                reply=str(fault.reply),
                rule=str(fault.rule or ""),
            )
        )
        return fault.reply

    # Lines.

    def line(self, line: bytes) -> Answer:
        if self.is_second_empty(line):
            return None
        if self._exchange is not None:
            return self.respond(self._exchange, line)
        self.verb = self._given = ""
        self.verb, argument = parse_command(line)
        verb = self.verb
        if len(line) > COMMAND_LINE and verb != "AUTH":
            return replies.LINE_TOO_LONG
        if verb in _HTTP:
            return replies.NOT_HTTP
        if refused := self._out_of_the_question(verb):
            return self._chunk(argument, refused) if verb == "BDAT" else refused
        method = self.lookupMethod(verb)
        return method(argument) if method is not None else replies.UNKNOWN_COMMAND

    def lookupMethod(self, command: str | bytes) -> Callable[[bytes], Answer] | None:
        if isinstance(command, bytes):
            command = command.decode("ascii", "replace").upper()
        return getattr(self, f"do_{command}", None) or getattr(self, f"ext_{command}", None)

    def _out_of_the_question(self, verb: str) -> Reply | None:
        """The reply to a command that the state of the session forbids, whatever it says."""
        if self._refused and verb != "QUIT":
            return replies.REFUSED_BEFORE
        if self.client.tls is None and verb not in _BEFORE_TLS:
            verdict = self.server.policy.tls_required(self.client)
            if verdict is not None:
                self._report(Fault(verdict.reply, rule=verdict.rule))
                return verdict.reply
        return None

    def bad_line(self) -> None:
        self.verb = self._given = ""
        self.leave_exchange()

    def refusal(self, failure: Failure) -> Reply:
        fault = self._fault(failure)
        if not (self._welcomed or self._refused):
            return self._turned_away(fault)
        self._report(fault)
        if self.verb == "RCPT" and self._transaction is not None:
            self._transaction.refused += 1
        elif self.verb in _OF_MESSAGE:
            self.drop_transaction()
        return fault.reply

    def _fault(self, failure: Failure) -> Fault:
        if isinstance(failure.value, Fault):
            return failure.value
        self.internal_fault(failure)
        return Fault(replies.INTERNAL_FAULT if self._welcomed else replies.INTERNAL_FAULT_AT_GREETING)

    def _report(self, fault: Fault) -> None:
        """Of a refusal that is about mail, an administrator wants to read."""
        verb = self.verb
        if verb not in _OF_MAIL:
            return
        transaction = self._transaction
        sender = str(transaction.sender.path) or "<>" if transaction else self._given if verb == "MAIL" else ""
        self.emit(
            events.CommandRefused(
                session=self.id,
                client=str(self.client.peer),
                command=verb,
                reply=str(fault.reply),
                rule=str(fault.rule or ""),
                sender=sender,
                recipient=self._given if verb == "RCPT" else "",
                user=str(self.client.principal or ""),
                detail=fault.detail,
            )
        )

    # Commands that do little.

    def do_UNKNOWN(self, rest: bytes) -> Answer:
        return replies.UNKNOWN_COMMAND

    def do_NOOP(self, rest: bytes) -> Answer:
        return replies.NOOP

    def do_RSET(self, rest: bytes) -> Answer:
        if rest:
            return replies.NO_ARGUMENT
        self.drop_transaction()
        return replies.RESET

    def do_HELP(self, rest: bytes) -> Answer:
        return replies.HELP

    def do_VRFY(self, rest: bytes) -> Answer:
        return replies.VRFY if rest else replies.ARGUMENT_WANTED

    def do_EXPN(self, rest: bytes) -> Answer:
        return replies.NOT_IMPLEMENTED

    def do_QUIT(self, rest: bytes) -> Answer:
        if rest:
            return replies.NO_ARGUMENT
        self._out.append(replies.BYE)
        self.close("quit")
        return None

    # Mail.

    def do_MAIL(self, rest: bytes) -> Answer:
        if self._transaction is not None:
            return replies.NESTED_MAIL
        if not (self._said_hello or self._legacy):
            return replies.HELLO_FIRST
        limits = self.server.listener.limits
        if limits.session_size and self._octets >= limits.session_size:
            raise Fault(replies.TOO_MUCH_MAIL, f"{self._octets} octets in this session")
        self._given = rest.decode("utf-8", "replace")
        sender = parse_mail(rest, legacy=self._legacy)
        self._given = str(sender.path) or "<>"
        if self.delivery is not None or self.deliveryFactory is not None:
            return self._mail(sender)
        if self.portal is None:
            raise Fault(replies.NO_DELIVERY)
        return self.log_in_anonymously().addCallback(lambda here: self._mail(sender) if here else None)

    def _mail(self, sender: Sender) -> Answer:
        delivery = self.serving()
        answer = delivery.mail(sender)
        if isinstance(answer, Deferred):
            return answer.addCallback(self._mail_from, delivery)
        return self._mail_from(answer, delivery)

    def _mail_from(self, sender: Sender, delivery: IRelayDelivery) -> bytes:
        limit = self.server.listener.limits.message_size
        if limit and sender.size > limit:  # where no policy has said so before, with its rule
            raise Fault(replies.TOO_BIG, f"{sender.size} octets announced")
        self._transaction = Transaction(delivery, sender, limit, self.internal_fault)
        return replies.SENDER_OK

    def do_RCPT(self, rest: bytes) -> Answer:
        transaction = self._transaction
        if transaction is None:
            return replies.MAIL_FIRST
        if transaction.chunks is not None:
            return replies.IN_CHUNKS
        if len(transaction.recipients) >= self.server.listener.limits.recipients:
            raise Fault(replies.TOO_MANY_RECIPIENTS)
        sender = transaction.sender
        self._given = rest.decode("utf-8", "replace")
        recipient = parse_rcpt(rest, legacy=self._legacy, smtputf8_ok=sender.smtputf8)
        self._given = str(recipient.path)
        answer = transaction.delivery.rcpt(sender, recipient)
        if isinstance(answer, Deferred):
            return answer.addCallback(self._rcpt_to, transaction)
        return self._rcpt_to(answer, transaction)

    def _rcpt_to(self, recipient: Recipient, transaction: Transaction) -> bytes:
        if recipient not in transaction.recipients:  # said twice is not sent twice
            transaction.recipients.append(recipient)
        return replies.RECIPIENT_OK

    def do_DATA(self, rest: bytes) -> Answer:
        if rest:
            return replies.NO_ARGUMENT
        transaction = self._transaction
        if transaction is None:
            return replies.MAIL_FIRST
        if transaction.chunks is not None:
            return replies.IN_CHUNKS
        if not transaction.recipients:
            return _no_recipients(transaction)
        transaction.open()
        self._reader = DataReader(legacy=self._legacy)
        self.start_body()
        return replies.GO_AHEAD

    def do_BDAT(self, rest: bytes) -> Answer:
        return self._chunk(rest, None)

    def _chunk(self, argument: bytes, refused: Reply | None) -> Answer:
        """BDAT (RFC 3030). The octets of one that is refused come all the same, and must not be taken for commands."""
        try:
            size, last = parse_bdat(argument)
        except Fault as fault:
            self._out.append(encode_reply(fault.reply))
            return replies.OUT_OF_STEP
        self._last = last
        transaction = self._transaction
        try:
            reader = self._chunks(transaction) if refused is None else refused
        except Exception:
            reader = self.refusal(Failure())
        if isinstance(reader, Reply):
            self._reader = Discard(size, reader)
        else:
            reader.start(size)
            self._reader = reader
        if not size:
            return self._ended()
        self.start_body()
        return None

    def _chunks(self, transaction: Transaction | None) -> BdatReader | Reply:
        if transaction is None:
            return replies.MAIL_FIRST
        if not transaction.recipients:
            return _no_recipients(transaction)
        if transaction.chunks is None:
            transaction.open()
            transaction.chunks = BdatReader(legacy=self._legacy)
        return transaction.chunks

    def body(self, octets: bytes) -> Answer:
        reader, transaction = self._reader, self._transaction
        assert reader is not None
        content, rest = reader.feed(octets)
        wait = transaction.write(content) if content and transaction is not None else None
        if rest is None:
            if transaction is None or transaction.failure is not None or reader.fault:
                self._discarded += len(octets)
                limits = self.server.listener.limits
                if self._discarded > max(limits.session_size, limits.message_size, MOST_DISCARDED):
                    return replies.TOO_MUCH_REFUSED
            return wait
        self.in_body = False
        if rest:
            self._lines.feed(rest)
        return self._ended() if wait is None else self._after(wait, self._ended)

    def _ended(self) -> Answer:
        """The end of DATA, or of one chunk."""
        reader, self._reader = self._reader, None
        if isinstance(reader, Discard):
            return reader.reply
        transaction = self._transaction
        assert reader is not None
        assert transaction is not None
        wait = None
        if isinstance(reader, BdatReader) and transaction.failure is None and not reader.fault:
            if not self._last:
                return Reply.of(250, "2.0.0", f"{transaction.size} octets received")
            rest = reader.finish()
            wait = transaction.write(rest) if rest else None
        if reader.fault:
            transaction.refuse(Fault(Reply.of(550, "5.6.0", f"Malformed message: {reader.fault}")))
        finish = partial(self._finish, transaction)
        return finish() if wait is None else self._after(wait, finish)

    def _after(self, wait: Deferred[None], then: Callable[[], Answer]) -> Deferred[Any]:
        """Goes on once the message takes more, unless the client has gone meanwhile."""
        return wait.addCallback(lambda _: None if self._lost else then())

    def _finish(self, transaction: Transaction) -> Deferred[Reply]:
        self._octets += transaction.size
        return transaction.finish().addCallback(self._accepted)

    def _accepted(self, queue_id: str) -> Reply:
        self._transaction = None
        self.messages += 1
        self.errors = 0
        return Reply.of(250, "2.0.0", f"OK: queued as {queue_id}" if queue_id else "OK")

    @property
    def in_transaction(self) -> bool:
        return self._transaction is not None

    def drop_transaction(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.abandon()

    # The end.

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        super().connectionLost(reason)
        self.drop_transaction()
        if not self._busy:  # else the exchange is left when what it waits for has come
            self.leave_exchange()
        self.log_out()
        self.server.closed(self)
        if not self.why:
            how = "" if reason.check(ConnectionDone) else f": {reason.getErrorMessage()}"
            self.why = ("TLS handshake failed" if self._handshaking else "connection lost") + how
        self.emit(
            events.SessionClosed(
                session=self.id,
                client=str(self.client.peer),
                messages=self.messages,
                commands=self.commands,
                seconds=round(self.server.reactor.seconds() - self.opened_at, 3),
                why=self.why,
            )
        )
        self.gone()


def _no_recipients(transaction: Transaction) -> Reply:
    return replies.NO_RECIPIENTS if transaction.refused else replies.RCPT_FIRST
