"""Who the other end of a session is: what it calls itself, TLS, AUTH, and the avatar that serves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from twisted.cred.credentials import Anonymous
from twisted.cred.error import LoginFailed
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener, ITLSTransport
from twisted.mail.interfaces import IMessageDelivery, IMessageDeliveryFactory
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from relayd import events
from relayd.model import AUTH_UNAVAILABLE, Client, Fault, Path, Peer, Principal, Reply, Verdict
from relayd.realm import IRelayDelivery
from relayd.settings import TlsMode
from relayd.smtpd import replies
from relayd.smtpd.classic import ClassicDelivery
from relayd.smtpd.sasl import AUTH_LINE, Challenge, Exchange, Step, encoded
from relayd.smtpd.serial import COMMAND_LINE, MOST_ERRORS, Answer, SerialESMTP
from relayd.smtpd.tls import negotiated
from relayd.smtpd.virtual_server import VirtualServer, session_id
from relayd.wire import encode_reply, parse_hello

#: Mechanisms whose empty response .NET's SmtpClient sends as two lines.
_TWICE_EMPTY: Final = frozenset({"GSSAPI", "GSS-SPNEGO"})
#: Replies to a client whose credentials were not looked at: it cancelled, or sent no token.
_NO_CREDENTIALS: Final = frozenset({500, 501})

_Avatar = tuple[type[Interface], Any, Callable[[], object]]


def insist(verdict: Verdict) -> None:
    """Goes on only when the policy accepts.

    :raises Fault: the verdict's reply and rule.
    """
    if not verdict.accepted:
        raise Fault(verdict.reply, rule=verdict.rule)


@implementer(IHandshakeListener)
class IdentifiedESMTP(SerialESMTP):
    """An ESMTP that finds out who it speaks with. It is cred's *mind* too.

    It is served by whatever ``IMessageDelivery`` the portal hands out, or by *delivery* or *deliveryFactory* as stock
    has them; an ``IRelayDelivery`` is asked directly, any other through :class:`ClassicDelivery`.

    :ivar id: the session's id in logs, unique for ever.
    :ivar helo: what the client called itself; empty before it did.
    :ivar esmtp: whether it said EHLO.
    :ivar client: the other end, as of now.
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
        self._welcomed = False
        self._said_hello = False
        self._handshaking = False
        self._exchange: Exchange | None = None
        self._empty_again = False
        self._authentication_failures = 0
        self._relay: IRelayDelivery | None = None
        self._logout: Callable[[], object] | None = None

    def welcome(self) -> None:
        """It is time for the greeting."""
        raise NotImplementedError

    def drop_transaction(self) -> None:
        """Forgets the mail transaction, if there is one."""
        raise NotImplementedError

    @property
    def in_transaction(self) -> bool:
        """Whether MAIL was accepted, and the message not yet."""
        raise NotImplementedError

    # Hello, and what is offered.

    def do_HELO(self, rest: bytes) -> Answer:
        self._hello(parse_hello(rest), esmtp=False)
        return Reply.of(250, "", self.server.hostname)

    def do_EHLO(self, rest: bytes) -> Answer:
        self._hello(parse_hello(rest), esmtp=True)
        extensions = self.extensions()
        lines = [b" ".join((name, *(words or ()))).decode() for name, words in extensions.items()]
        if self._legacy and (mechanisms := extensions.get(b"AUTH")):
            lines.append("AUTH=" + b" ".join(mechanisms).decode())
        return Reply(250, "", (self.server.hostname, *lines))

    def _hello(self, helo: str, *, esmtp: bool) -> None:
        self.drop_transaction()
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
        try:
            self.wire.startTLS(self.server.tls)
        except Exception:
            self.internal_fault(Failure())
            self.wire.abortConnection()
        return None

    def _forget(self) -> None:
        """What the client said in the clear holds no longer (RFC 3207 4.2)."""
        self.drop_transaction()
        self.leave_exchange()
        self.helo = ""
        self.esmtp = self._said_hello = self.authenticated = False
        self.client = replace(self.client, principal=None)
        if self._logout is not None:
            self.log_out()
            self._relay = self.delivery = self.deliveryFactory = None

    def handshakeCompleted(self) -> None:
        """TLS is up (``IHandshakeListener``)."""
        self._handshaking = False
        tls = negotiated(self.wire.getHandle())
        self.client = replace(self.client, tls=tls)
        self.startedTLS = True
        distrust = tls.distrust or tls.undecided
        self.emit(events.TlsStarted(session=self.id, version=tls.version, cipher=tls.cipher, distrust=distrust))
        if not self._welcomed:
            self.welcome()

    def timeoutConnection(self) -> None:
        if self._handshaking:
            self.why = "timed out in the TLS handshake"
            self.wire.abortConnection()
        else:
            super().timeoutConnection()

    def shutdown(self, grace: float) -> Deferred[None]:
        gone = super().shutdown(grace)
        if self._handshaking:
            self.wire.abortConnection()  # there is nobody yet to be told, or to be waited for
        return gone

    # AUTH (RFC 4954).

    def ext_AUTH(self, rest: bytes) -> Answer:
        name, _, initial = rest.partition(b" ")
        if not name:
            return replies.MECHANISM_WANTED
        if not (self._said_hello or self._legacy):
            return replies.HELLO_FIRST
        if self.in_transaction:
            return replies.AUTH_IN_MAIL
        mechanism = name.decode("ascii", "replace").upper()
        verdict = self.server.policy.auth(self.client, mechanism)
        if not verdict.accepted:
            if self.client.principal is None:
                self._report_failure(mechanism, "", f"refused by {verdict.rule}", verdict.reply)
            return verdict.reply
        if mechanism not in self._mechanisms():
            return replies.NO_MECHANISM
        self._exchange = exchange = Exchange(mechanism, self.server.mechanisms[mechanism](self.client))
        self._lines.limit = AUTH_LINE
        return self.respond(exchange, initial.strip(), first=True)

    def respond(self, exchange: Exchange, line: bytes, *, first: bool = False) -> Answer:
        """The client's next line in an AUTH exchange."""
        self._empty_again = not (first or line) and exchange.name in _TWICE_EMPTY
        try:
            step = exchange.begin(line) if first else exchange.respond(line)
            if not isinstance(step, Deferred):
                return self._stepped(step, exchange)
        except Exception:
            return self._not_authenticated(Failure(), exchange)
        return step.addCallback(self._stepped, exchange).addErrback(self._not_authenticated, exchange)

    def is_second_empty(self, line: bytes) -> bool:
        """Whether *line* is the second of the two empty lines by which .NET gives one empty response.

        It comes with the first, whatever the answer to that is, and waits for none itself.
        """
        expected, self._empty_again = self._empty_again, False
        return expected and not line

    def _stepped(self, step: Step, exchange: Exchange) -> Answer:
        if self._lost:
            self.leave_exchange()
            return None
        if isinstance(step, Challenge):
            return encoded(step)
        assert self.portal is not None
        login = self.portal.login(step.credentials, self, IMessageDelivery, IMessageDeliveryFactory)
        return login.addCallback(self._logged_in, exchange).addErrback(self._not_authenticated, exchange)

    def _logged_in(self, avatar: _Avatar, exchange: Exchange) -> Reply | None:
        self.leave_exchange()
        if not self._take(avatar):
            return None
        principal = getattr(avatar[1], "principal", None)
        if not isinstance(principal, Principal):  # another project's realm
            principal = Principal(exchange.user, exchange.name, "portal")
        self.authenticated = True
        self.client = replace(self.client, principal=principal)
        self._lines.limit = COMMAND_LINE
        self.emit(
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
        self.leave_exchange()
        error = failure.value
        if isinstance(error, Fault):
            fault = error
        elif isinstance(error, LoginFailed):
            fault = Fault(replies.REFUSED_CREDENTIALS, str(error))
        else:
            self.internal_fault(failure)
            fault = Fault(AUTH_UNAVAILABLE, failure.getErrorMessage())
        reply = fault.reply
        if reply.code not in _NO_CREDENTIALS:
            self._report_failure(exchange.name, exchange.user, fault.detail, reply)
        if reply.permanent and reply.code not in _NO_CREDENTIALS:
            self._authentication_failures += 1
            if self._authentication_failures >= self.server.listener.authentication.max_failures:
                self._out.append(encode_reply(reply))
                return replies.TOO_MANY_FAILURES
        if reply.temporary:
            # No failure of the client's. But forged tickets and guesses past the lockout have this answer too, and
            # nobody shall go on with them in one session for ever.
            self.errors += 1
            if self.errors >= MOST_ERRORS:
                self._out.append(encode_reply(reply))
                return replies.TOO_MANY_ERRORS
        return reply

    def _report_failure(self, mechanism: str, user: str, reason: str, reply: Reply) -> None:
        self.emit(
            events.AuthenticationFailed(
                session=self.id,
                client=str(self.client.peer),
                user=user[:255],  # a token has room for a novel
                mechanism=mechanism,
                reason=reason,
                reply=str(reply),
            )
        )

    def leave_exchange(self) -> None:
        """AUTH is over: lines are commands again."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()

    # The avatar.

    def _take(self, avatar: _Avatar) -> bool:
        """The session is served by *avatar* from now on; not so when the client has gone meanwhile."""
        interface, delivery, logout = avatar
        if self._lost:
            logout()
            return False
        self.log_out()
        self._logout = logout
        self._relay = None
        if issubclass(interface, IMessageDeliveryFactory):
            self.delivery, self.deliveryFactory = None, delivery
        else:
            self.delivery, self.deliveryFactory = delivery, None
        return True

    def log_out(self) -> None:
        """Gives the avatar back to cred."""
        logout, self._logout = self._logout, None
        if logout is not None:
            try:
                logout()
            except Exception:
                self.internal_fault(Failure())

    def log_in_anonymously(self) -> Deferred[bool]:
        """The portal's avatar for a session that did not authenticate; fires with whether the client is still here."""
        assert self.portal is not None

        def refused(failure: Failure) -> bool:
            failure.trap(LoginFailed)
            raise Fault(replies.AUTHENTICATION_WANTED, failure.getErrorMessage())

        login = self.portal.login(Anonymous(), self, IMessageDelivery, IMessageDeliveryFactory)
        return login.addCallbacks(self._take, refused)

    def serving(self) -> IRelayDelivery:
        """Who answers for the next transaction."""
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

    def internal_fault(self, failure: Failure) -> None:
        """A fault of relayd itself: the client reads no more of it than that there was one."""
        where = f"smtpd {self.verb}".strip()
        self.emit(events.InternalFault(where=where, detail=failure.getTraceback(), session=self.id))

    def emit(self, event: events.Event) -> None:
        """Something happened in this session."""
        self.server.events.emit(event)
