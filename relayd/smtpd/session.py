"""An inbound session: the commands of ESMTP, from the greeting to QUIT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from twisted.cred.credentials import Anonymous
from twisted.cred.error import LoginFailed
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHandshakeListener, ITLSTransport
from twisted.mail.interfaces import IMessageDelivery, IMessageDeliveryFactory
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from relayd import events
from relayd.model import NO_NAMES, Client, Fault, Names, Path, Peer, Principal, Recipient, Reply, Sender, Tls, Verdict
from relayd.realm import IRelayDelivery
from relayd.settings import TlsMode
from relayd.smtpd import replies
from relayd.smtpd.classic import ClassicDelivery
from relayd.smtpd.sasl import AUTH_LINE, Challenge, Exchange, Step, encoded
from relayd.smtpd.serial import COMMAND_LINE, Answer, SerialESMTP
from relayd.smtpd.transaction import Discard, Transaction
from relayd.smtpd.virtual_server import VirtualServer, session_id
from relayd.wire import (
    BdatReader,
    DataReader,
    encode_reply,
    parse_bdat,
    parse_command,
    parse_hello,
    parse_mail,
    parse_rcpt,
)

# What IIS let pass before TLS where it is required, and RFC 3207 4.
_BEFORE_TLS: Final = frozenset({"EHLO", "HELO", "STARTTLS", "NOOP", "RSET", "QUIT"})
# A browser that was made to talk to this port says one of these; what it sends next are not commands of anybody here.
_HTTP: Final = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_OF_MAIL: Final = frozenset({"MAIL", "RCPT", "DATA", "BDAT"})
_OF_MESSAGE: Final = frozenset({"DATA", "BDAT"})
#: Octets of messages already refused that a session may still send, where the limits are lower.
MOST_DISCARDED: Final = 64 * 1024**2

_Avatar = tuple[type[Interface], Any, Callable[[], object]]


@implementer(IHandshakeListener)
class RelayESMTP(SerialESMTP):
    """One client's session. It is cred's *mind* too: the avatar reads *id*, *helo*, *esmtp* and *client* from it.

    It speaks to whatever ``IMessageDelivery`` the portal hands out, or *delivery* or *deliveryFactory* as stock has
    them; an ``IRelayDelivery`` is asked directly, any other through :class:`ClassicDelivery`.

    :ivar id: the session's id in logs, unique for ever.
    :ivar helo: what the client called itself; empty before it did.
    :ivar client: the other end, as of now.
    :ivar opened_at: when, in seconds of the reactor's clock.
    :ivar messages: how many were accepted.
    """

    def __init__(self, server: VirtualServer, peer: Peer) -> None:
        super().__init__(server.reactor, server.listener.limits.command_timeout)
        self.server = server
        self.portal: Portal | None = server.portal  # type: ignore[assignment]  # stock knows its default alone
        self.host = server.hostname
        self.id = session_id()
        self.helo = ""
        self.esmtp = False
        self.client = Client(peer, server.listener.name)
        self.opened_at = server.reactor.seconds()
        self.messages = 0
        self._octets = 0
        self._discarded = 0
        self._authentication_failures = 0
        self._verb = ""
        self._argument = b""
        self._welcomed = False
        self._refused = False
        self._said_hello = False
        self._handshaking = False
        self._relay: IRelayDelivery | None = None
        self._transaction: Transaction | None = None
        self._reader: DataReader | BdatReader | Discard | None = None
        self._last = False
        self._exchange: Exchange | None = None
        self._logout: Callable[[], object] | None = None

    # The greeting.

    def connectionMade(self) -> None:
        self.server.opened(self)
        self.start_clock()
        if self.server.listener.tls is TlsMode.IMPLICIT and self.server.tls is not None:
            self._handshaking = True
        else:
            self._welcome()

    def handshakeCompleted(self) -> None:
        """TLS is up (``IHandshakeListener``)."""
        self._handshaking = False
        connection: Any = self.wire.getHandle()
        tls = Tls(connection.get_protocol_version_name(), connection.get_cipher_name() or "")
        self.client = replace(self.client, tls=tls)
        self.startedTLS = True
        self._emit(events.TlsStarted(session=self.id, version=tls.version, cipher=tls.cipher))
        if not self._welcomed:
            self._welcome()

    def _welcome(self) -> None:
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
        _insist(self.server.policy.greet(client))
        self._welcomed = True
        self._legacy = self.server.policy.legacy(client)
        self._emit(
            events.SessionOpened(
                session=self.id, client=str(client.peer), listener=client.listener, names=client.names.confirmed
            )
        )
        return encode_reply(Reply.of(220, "", self.greeting().decode()))

    def greeting(self) -> bytes:
        return f"{self.server.hostname} ESMTP relayd".encode()

    def _turned_away(self, fault: Fault) -> Reply:
        """After a 5yz greeting the client may still say QUIT (RFC 5321 3.1)."""
        self._refused = True
        self.hurry()
        self._emit(
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
        if self._exchange is not None:
            return self._respond(self._exchange, line)
        self._verb, self._argument = "", b""
        self._verb, self._argument = verb, argument = parse_command(line)
        if len(line) > COMMAND_LINE and verb != "AUTH":
            return replies.LINE_TOO_LONG
        if refused := self._out_of_the_question(verb):
            return self._chunk(argument, refused) if verb == "BDAT" else refused
        method = self.lookupMethod(verb)
        if method is not None:
            return method(argument)
        return replies.NOT_HTTP if verb in _HTTP else replies.UNKNOWN_COMMAND

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
        self._verb, self._argument = "", b""
        self._exchange_over()

    def refusal(self, failure: Failure) -> Reply:
        fault = self._fault(failure)
        if not (self._welcomed or self._refused):
            return self._turned_away(fault)
        self._report(fault)
        if self._verb == "RCPT" and self._transaction is not None:
            self._transaction.refused += 1
        elif self._verb in _OF_MESSAGE:
            self._drop_transaction()
        return fault.reply

    def _fault(self, failure: Failure) -> Fault:
        if isinstance(failure.value, Fault):
            return failure.value
        self._internal(failure)
        return Fault(replies.INTERNAL_FAULT if self._welcomed else replies.INTERNAL_FAULT_AT_GREETING)

    def _internal(self, failure: Failure) -> None:
        where = f"smtpd {self._verb}".strip()
        self._emit(events.InternalFault(where=where, detail=failure.getTraceback(), session=self.id))

    def _report(self, fault: Fault) -> None:
        """Of a refusal that is about mail, an administrator wants to read."""
        verb = self._verb
        if verb not in _OF_MAIL:
            return
        given = self._argument.decode("utf-8", "replace")
        transaction = self._transaction
        sender = str(transaction.sender.path) or "<>" if transaction else given if verb == "MAIL" else ""
        self._emit(
            events.CommandRefused(
                session=self.id,
                client=str(self.client.peer),
                command=verb,
                reply=str(fault.reply),
                rule=str(fault.rule or ""),
                sender=sender,
                recipient=given if verb == "RCPT" else "",
                user=str(self.client.principal or ""),
                detail=fault.detail,
            )
        )

    def _emit(self, event: events.Event) -> None:
        self.server.events.emit(event)

    # Hello, and what is offered.

    def do_HELO(self, rest: bytes) -> Answer:
        self._hello(parse_hello(rest), esmtp=False)
        return Reply.of(250, "", self.server.hostname)

    def do_EHLO(self, rest: bytes) -> Answer:
        self._hello(parse_hello(rest), esmtp=True)
        extensions = self.extensions()
        lines = [b" ".join((name, *(words or ()))).decode() for name, words in extensions.items()]
        if self._legacy and extensions.get(b"AUTH"):
            lines.append("AUTH=" + lines[-1].removeprefix("AUTH "))
        return Reply(250, "", (self.server.hostname, *lines))

    def _hello(self, helo: str, *, esmtp: bool) -> None:
        self._drop_transaction()
        self.helo = helo
        self.esmtp = esmtp
        self._said_hello = True

    def extensions(self) -> dict[bytes, list[bytes] | None]:
        """The service extensions offered now, AUTH last."""
        limits = self.server.listener.limits
        offered: dict[bytes, list[bytes] | None] = {
            b"PIPELINING": None,
            b"SIZE": [b"%d" % limits.message_size],
            b"8BITMIME": None,
            b"SMTPUTF8": None,
            b"DSN": None,
            b"ENHANCEDSTATUSCODES": None,
            b"CHUNKING": None,
            b"LIMITS": [b"RCPTMAX=%d" % limits.recipients],  # RFC 9422
        }
        if self._may_start_tls():
            offered[b"STARTTLS"] = None
        mechanisms = [name.encode() for name in self._mechanisms()]
        # A Kerberos ticket may come with the command itself.
        self._lines.limit = AUTH_LINE if mechanisms else COMMAND_LINE
        if mechanisms:
            offered[b"AUTH"] = mechanisms
        return offered

    def _mechanisms(self) -> tuple[str, ...]:
        if self.authenticated or self.portal is None:
            return ()
        served = self.server.mechanisms
        return tuple(name for name in self.server.policy.mechanisms(self.client) if name in served)

    # Commands that do little.

    def do_NOOP(self, rest: bytes) -> Answer:
        return replies.NOOP

    def do_RSET(self, rest: bytes) -> Answer:
        if rest:
            return replies.NO_ARGUMENT
        self._drop_transaction()
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

    # TLS.

    def _may_start_tls(self) -> bool:
        server = self.server
        return (
            self.client.tls is None
            and server.tls is not None
            and server.listener.tls is TlsMode.STARTTLS
            and ITLSTransport.providedBy(self.transport)
        )

    def ext_STARTTLS(self, rest: bytes) -> Answer:
        if rest:
            return replies.NO_ARGUMENT
        if self.client.tls is not None:
            return replies.TLS_ACTIVE
        if not self._may_start_tls():
            return replies.NO_TLS
        if not self._lines.empty:
            return replies.BEHIND_STARTTLS
        self._forget()
        self._out.append(replies.READY_FOR_TLS)
        self._flush()
        self._handshaking = True
        self.wire.startTLS(self.server.tls)
        return None

    def _forget(self) -> None:
        """What the client said in the clear holds no longer (RFC 3207 4.2)."""
        self._drop_transaction()
        self._exchange_over()
        self.helo = ""
        self.esmtp = self._said_hello = self.authenticated = False
        self.client = replace(self.client, principal=None)
        if self._logout is not None:
            self._log_out()
            self._relay = self.delivery = self.deliveryFactory = None

    def timeoutConnection(self) -> None:
        if self._handshaking:
            self.why = "timed out in the TLS handshake"
            self.wire.abortConnection()
        else:
            super().timeoutConnection()

    # AUTH (RFC 4954).

    def ext_AUTH(self, rest: bytes) -> Answer:
        name, _, initial = rest.partition(b" ")
        if not name:
            return replies.MECHANISM_WANTED
        if not (self._said_hello or self._legacy):
            return replies.HELLO_FIRST
        if self._transaction is not None:
            return replies.AUTH_IN_MAIL
        mechanism = name.decode("ascii", "replace").upper()
        _insist(self.server.policy.auth(self.client, mechanism))
        if mechanism not in self._mechanisms():
            return replies.NO_MECHANISM
        self._exchange = exchange = Exchange(mechanism, self.server.mechanisms[mechanism](self.client))
        self._lines.limit = AUTH_LINE
        return self._respond(exchange, initial.strip(), first=True)

    def _respond(self, exchange: Exchange, line: bytes, *, first: bool = False) -> Answer:
        self._argument = b""  # holds a secret
        try:
            step = exchange.begin(line) if first else exchange.respond(line)
            if not isinstance(step, Deferred):
                return self._stepped(step)
        except Exception:
            return self._not_authenticated(Failure(), exchange)
        return step.addCallback(self._stepped).addErrback(self._not_authenticated, exchange)

    def _stepped(self, step: Step) -> Answer:
        if isinstance(step, Challenge):
            return encoded(step)
        exchange = self._exchange
        assert exchange is not None
        assert self.portal is not None
        login = self.portal.login(step.credentials, self, IMessageDelivery, IMessageDeliveryFactory)
        return login.addCallback(self._logged_in, exchange).addErrback(self._not_authenticated, exchange)

    def _logged_in(self, avatar: _Avatar, exchange: Exchange) -> Reply | None:
        self._exchange_over()
        if not self._take(avatar):
            return None
        principal = getattr(avatar[1], "principal", None)
        if not isinstance(principal, Principal):  # another project's realm
            principal = Principal(exchange.user, exchange.name, "portal")
        self.authenticated = True
        self.client = replace(self.client, principal=principal)
        self._lines.limit = COMMAND_LINE
        self._emit(
            events.Authenticated(
                session=self.id,
                client=str(self.client.peer),
                user=str(principal),
                mechanism=principal.mechanism,
                source=principal.source,
            )
        )
        return replies.AUTHENTICATED

    def _not_authenticated(self, failure: Failure, exchange: Exchange) -> Answer:
        self._exchange_over()
        error = failure.value
        if isinstance(error, Fault):
            fault = error
        elif isinstance(error, LoginFailed):
            fault = Fault(replies.REFUSED_CREDENTIALS, str(error))
        else:
            self._internal(failure)
            fault = Fault(replies.AUTH_UNAVAILABLE, failure.getErrorMessage())
        reply = fault.reply
        if reply.code != 501:  # cancelled, or no token at all: nobody's credentials were refused
            self._emit(
                events.AuthenticationFailed(
                    session=self.id,
                    client=str(self.client.peer),
                    user=exchange.user,
                    mechanism=exchange.name,
                    reason=fault.detail,
                    reply=str(reply),
                )
            )
        if reply.permanent and reply.code != 501:
            self._authentication_failures += 1
            if self._authentication_failures >= self.server.listener.authentication.max_failures:
                self._out.append(encode_reply(reply))
                return replies.TOO_MANY_FAILURES
        return reply

    def _exchange_over(self) -> None:
        self._exchange = None

    # The avatar.

    def _take(self, avatar: _Avatar) -> bool:
        """The session is served by *avatar* from now on; not so when the client has gone meanwhile."""
        interface, delivery, logout = avatar
        if self._lost:
            logout()
            return False
        self._log_out()
        self._logout = logout
        self._relay = None
        if issubclass(interface, IMessageDeliveryFactory):
            self.delivery, self.deliveryFactory = None, delivery
        else:
            self.delivery, self.deliveryFactory = delivery, None
        return True

    def _log_out(self) -> None:
        logout, self._logout = self._logout, None
        if logout is not None:
            try:
                logout()
            except Exception:
                self._internal(Failure())

    def _anonymous(self) -> Deferred[bool]:
        assert self.portal is not None

        def refused(failure: Failure) -> bool:
            failure.trap(LoginFailed)
            raise Fault(replies.AUTHENTICATION_WANTED, failure.getErrorMessage())

        login = self.portal.login(Anonymous(), self, IMessageDelivery, IMessageDeliveryFactory)
        return login.addCallbacks(self._take, refused)

    def _delivery(self) -> IRelayDelivery:
        if self._relay is None:
            if self.deliveryFactory is not None or not IRelayDelivery.providedBy(self.delivery):
                return ClassicDelivery(self)  # one a transaction
            self._relay = self.delivery
        return self._relay

    @property
    def classic_helo(self) -> tuple[bytes, bytes]:
        """What stock calls *helo*: what the client called itself, and its address."""
        return self.helo.encode(), str(self.client.peer).encode()

    def complete(self, path: Path) -> Path:
        """*path* with the domain that it may lack."""
        return self.server.policy.complete(path)

    # Mail.

    def do_MAIL(self, rest: bytes) -> Answer:
        if self._transaction is not None:
            return replies.NESTED_MAIL
        if not (self._said_hello or self._legacy):
            return replies.HELLO_FIRST
        limits = self.server.listener.limits
        if limits.session_size and self._octets >= limits.session_size:
            raise Fault(replies.TOO_MUCH_MAIL, f"{self._octets} octets in this session")
        sender = parse_mail(rest, legacy=self._legacy)
        if limits.message_size and sender.size > limits.message_size:
            raise Fault(replies.TOO_BIG, f"{sender.size} octets announced")
        if self.delivery is not None or self.deliveryFactory is not None:
            return self._mail(sender)
        if self.portal is None:
            raise Fault(replies.NO_DELIVERY)
        return self._anonymous().addCallback(lambda here: self._mail(sender) if here else None)

    def _mail(self, sender: Sender) -> Answer:
        delivery = self._delivery()
        answer = delivery.mail(sender)
        if isinstance(answer, Deferred):
            return answer.addCallback(self._mail_from, delivery)
        return self._mail_from(answer, delivery)

    def _mail_from(self, sender: Sender, delivery: IRelayDelivery) -> bytes:
        self._transaction = Transaction(delivery, sender, self.server.listener.limits.message_size)
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
        recipient = parse_rcpt(rest, legacy=self._legacy, smtputf8_ok=sender.smtputf8)
        answer = transaction.delivery.rcpt(sender, recipient)
        if isinstance(answer, Deferred):
            return answer.addCallback(self._rcpt_to, transaction)
        return self._rcpt_to(answer, transaction)

    def _rcpt_to(self, recipient: Recipient, transaction: Transaction) -> bytes:
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
        return self._ended() if wait is None else wait.addCallback(lambda _: self._ended())

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
        return self._finish(transaction) if wait is None else wait.addCallback(lambda _: self._finish(transaction))

    def _finish(self, transaction: Transaction) -> Deferred[Reply]:
        self._octets += transaction.size
        return transaction.finish().addCallback(self._accepted)

    def _accepted(self, queue_id: str) -> Reply:
        self._transaction = None
        self.messages += 1
        self.errors = 0
        return Reply.of(250, "2.0.0", f"OK: queued as {queue_id}" if queue_id else "OK")

    def _drop_transaction(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            try:
                transaction.abandon()
            except Exception:
                self._internal(Failure())

    # The end.

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        super().connectionLost(reason)
        self._drop_transaction()
        self._log_out()
        self.server.closed(self)
        if not self.why:
            how = "" if reason.check(ConnectionDone) else f": {reason.getErrorMessage()}"
            self.why = ("TLS handshake failed" if self._handshaking else "connection lost") + how
        self._emit(
            events.SessionClosed(
                session=self.id,
                client=str(self.client.peer),
                messages=self.messages,
                commands=self.commands,
                seconds=round(self.server.reactor.seconds() - self.opened_at, 3),
                why=self.why,
            )
        )


def _insist(verdict: Verdict) -> None:
    if not verdict.accepted:
        raise Fault(verdict.reply, rule=verdict.rule)


def _no_recipients(transaction: Transaction) -> Reply:
    return replies.NO_RECIPIENTS if transaction.refused else replies.RCPT_FIRST
