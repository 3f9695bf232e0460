"""The loop under a session: one command after the other, each answered before the next is looked at."""

from __future__ import annotations

from typing import Any, Final, Protocol, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, IPushProducer, IReactorTime
from twisted.mail.smtp import ESMTP
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.model import Fault, Reply
from relayd.smtpd import replies
from relayd.wire import LineReader, encode_reply

#: The longest command line, CRLF included. RFC 5321 4.5.3.1.4 asks for 512, the extensions offered for some 1500 more.
COMMAND_LINE: Final = 4096
#: Bad commands in one session before it is closed.
MOST_ERRORS: Final = 10
#: How long a closed session may take to read its last reply, in seconds.
LAST_WORDS: Final = 30.0

_BAD_COMMAND: Final = frozenset({500, 501, 502, 503, 504, 530, 538, 555})
#: Replies that wait for the end of what came in, at most.
_MOST_UNSENT: Final = 128
_MEGABYTE: Final = 1 << 20

#: What a command returns: its reply (encoded, where that is done once for all), a Deferred of it, or None when it has
#: none, or has given it by :meth:`SerialESMTP.sendCode`. A Fault raised is a reply too.
Answer = Reply | bytes | Deferred[Any] | None


class Transport(Protocol):
    """What a session uses of Twisted's TCP and TLS transports."""

    def write(self, octets: bytes) -> None: ...

    def loseConnection(self) -> None: ...

    def abortConnection(self) -> None: ...

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...

    def registerProducer(self, producer: object, streaming: bool) -> None: ...

    def unregisterProducer(self) -> None: ...

    def startTLS(self, context: object) -> None: ...

    def getHandle(self) -> Any: ...


@implementer(IPushProducer, IHalfCloseableProtocol)
class SerialESMTP(ESMTP):
    """An ESMTP whose commands take effect, and are answered, in the order they came in.

    Stock ``ESMTP`` starts each line that it finds, and whatever answers first is sent first. Here a command that waits
    holds what is behind it. Replies to commands that came together leave in one write. What Twisted calls line and raw
    mode is one buffer, so that input can be dropped where its trust changes.

    :param clock: the reactor.
    :param timeout: seconds that a client may take for a command, or for a megabyte of a message.
    :ivar verb: the command at work.
    :ivar why: why the session ended; empty as long as it did not, or when the client just went.
    """

    def __init__(self, clock: IReactorTime, timeout: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.commands = 0
        self.errors = 0
        self.verb = ""
        self.why = ""
        self.in_body = False
        self._clock = clock
        self._patience = timeout
        self._lines = LineReader(COMMAND_LINE)
        self._legacy = False
        self._out: list[bytes] = []
        self._busy = False
        self._running = False
        self._paused = False
        self._clogged = False
        self._closing = False
        self._stopping = False
        self._heard_all = False
        self._lost = False
        self._mourners: list[Deferred[None]] = []
        self._timer: IDelayedCall | None = None
        self._deadline = 0.0
        self._body_started = 0.0
        self._body_octets = 0

    # What a session does.

    def line(self, line: bytes) -> Answer:
        """A line came in."""
        raise NotImplementedError

    def bad_line(self) -> None:
        """A line came in that is none; its reply is on its way."""

    def body(self, octets: bytes) -> Answer:
        """Octets came in while *in_body* is set."""
        raise NotImplementedError

    def refusal(self, failure: Failure) -> Reply:
        """The reply for what a command, or its Deferred, failed with."""
        raise NotImplementedError

    @property
    def wire(self) -> Transport:
        """The transport."""
        return cast(Transport, self.transport)

    @property
    def busy(self) -> bool:
        """Whether the client waits for an answer."""
        return self._busy

    # Input.

    def dataReceived(self, data: bytes) -> None:
        if self._closing:
            return
        if self._busy or self._running or self._clogged:
            self._lines.feed(data)
            self._pause()
        elif self.in_body and self._lines.empty:
            self._run(data)
        else:
            self._lines.feed(data)
            self._run()

    def _run(self, octets: bytes = b"") -> None:
        """Works through what came in, until there is no more or something must be waited for."""
        self._running = True
        try:
            while not (self._busy or self._closing or self._clogged):
                try:
                    if self.in_body:
                        octets = octets or self._lines.take()
                        if not octets:
                            break
                        self._progress(len(octets))
                        answer = self.body(octets)
                        octets = b""
                    else:
                        line = self._next()
                        if line is None:
                            break
                        answer = self.line(line)
                except Exception:
                    answer = self.refusal(Failure())
                self._answer(answer)
        finally:
            self._running = False
            self._flush()
            if self._heard_all:
                self._close_when_answered()

    def readConnectionLost(self) -> None:
        """The client says no more; it may still read the answers to what it said (``IHalfCloseableProtocol``)."""
        self._heard_all = True
        if not self._running:
            self._close_when_answered()

    def writeConnectionLost(self) -> None:
        """Never: relayd does not close one direction alone."""

    def _close_when_answered(self) -> None:
        if not (self._busy or self._clogged or self._closing):
            self.close("")

    def _next(self) -> bytes | None:
        try:
            line = self._lines.next(legacy=self._legacy)
        except Fault:
            self.bad_line()
            self._touch()
            raise
        if line is not None:
            self.commands += 1
            self._touch()
        return line

    def _pause(self) -> None:
        # Not before more comes in than can be worked on: a client that waits for its reply costs no system call.
        if not self._paused:
            self._paused = True
            self.wire.pauseProducing()

    def _resume(self) -> None:
        if self._paused and not (self._busy or self._closing or self._clogged):
            self._paused = False
            self.wire.resumeProducing()

    # Output.

    def _answer(self, answer: Answer) -> None:
        if isinstance(answer, Deferred):
            self._hold(answer)
        elif isinstance(answer, Reply):
            self._reply(answer)
        elif answer is not None:
            self._out.append(answer)
        if len(self._out) >= _MOST_UNSENT:
            self._flush()  # which may say that the client does not read
        if self._stopping and not (self._busy or self.in_body or self._closing):
            self._reply(replies.SHUTTING_DOWN)

    def _hold(self, answer: Deferred[Any]) -> None:
        # `called` says nothing: a Deferred that waits for another one is called. So: busy, unless it fires at once.
        self._busy = True
        held_at = self._clock.seconds()
        answer.addBoth(self._settled, held_at)
        if self._busy:
            self._flush()
            if self.in_body:
                self._pause()

    def _settled(self, result: Any, held_at: float) -> None:
        self._busy = False
        if self._lost:
            if isinstance(result, Failure):
                self.refusal(result)
            return
        now = self._clock.seconds()
        self._body_started += now - held_at
        self._deadline = now + self._patience
        self._answer(self.refusal(result) if isinstance(result, Failure) else result)
        if not (self._running or self._busy):
            self._run()
            self._resume()

    def _reply(self, reply: Reply) -> None:
        self._out.append(encode_reply(reply))
        if reply.code == 421:  # RFC 5321 3.8: the connection closes behind it, whatever it was the reply to
            self.close(reply.text)
        elif reply.code in _BAD_COMMAND:
            self.errors += 1
            if self.errors >= MOST_ERRORS:
                self._reply(replies.TOO_MANY_ERRORS)

    def _flush(self) -> None:
        out = self._out
        if out:
            self.wire.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    # The session is a producer of replies: it takes no more commands from a client that does not read.

    def pauseProducing(self) -> None:
        self._clogged = True

    def resumeProducing(self) -> None:
        self._clogged = False
        if not (self._running or self._busy or self._closing):
            self._run()
            self._resume()

    def stopProducing(self) -> None:
        """The connection is gone, and connectionLost will say so."""

    def sendCode(self, code: int, message: bytes = b"") -> None:
        """As stock; for commands that a subclass brings in stock's manner."""
        lines = tuple(line.decode("utf-8", "replace") for line in message.splitlines())
        self._out.append(encode_reply(Reply(code, "", lines or ("",))))
        if not self._running:
            self._flush()

    def sendLine(self, line: bytes) -> None:
        self._out.append(line + b"\r\n")
        if not self._running:
            self._flush()

    # The end.

    def close(self, why: str) -> None:
        """Ends the session once all replies have left. What else comes in is dropped.

        A reply with code 421 does this by itself.
        """
        if self._closing:
            return
        self._closing = True
        self.why = why
        self._lines.clear()
        self._flush()
        self._deadline = self._clock.seconds() + LAST_WORDS
        if self._timer is not None:
            self._timer.reset(LAST_WORDS)
        self.wire.unregisterProducer()
        self.wire.loseConnection()
        if self._paused:
            # TLS ends by what the client answers to the end, and that must be read.
            self._paused = False
            self.wire.resumeProducing()

    def shutdown(self, grace: float) -> Deferred[None]:
        """Ends the session with 421 4.3.2: at once when it is idle, else once what it is about is answered.

        :param grace: seconds after which the connection is cut all the same.
        :returns: fires when the connection is gone.
        """
        gone: Deferred[None] = Deferred()
        if self._lost:
            gone.callback(None)
            return gone
        self._mourners.append(gone)
        self._stopping = True
        if not (self._busy or self.in_body or self._closing):
            self._reply(replies.SHUTTING_DOWN)
        cut = self._clock.callLater(grace, self.wire.abortConnection)
        gone.addCallback(lambda _: cut.cancel() if cut.active() else None)
        return gone

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._lost = self._closing = True
        self._lines.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def gone(self) -> None:
        """All that there was to tidy up after the connection is done."""
        mourners, self._mourners = self._mourners, []
        for mourner in mourners:
            mourner.callback(None)

    # Time. One delayed call a session looks at the deadline now and then; moving it costs an addition.

    def start(self) -> None:
        """The connection is up: the client's time runs from now on."""
        self.wire.registerProducer(self, True)
        self._start_clock()

    def _start_clock(self) -> None:
        self._touch()
        self._timer = self._clock.callLater(self._patience, self._look)

    def start_body(self) -> None:
        """What comes in from now on is a message."""
        self.in_body = True
        self._body_started = self._clock.seconds()
        self._body_octets = 0

    def _touch(self) -> None:
        self._deadline = self._clock.seconds() + self._patience

    def _progress(self, octets: int) -> None:
        self._body_octets += octets
        latest = self._body_started + self._patience * (1 + self._body_octets / _MEGABYTE)
        self._deadline = min(self._clock.seconds() + self._patience, latest)

    def _look(self) -> None:
        self._timer = None
        left = self._patience if self._busy else self._deadline - self._clock.seconds()
        if left > 0:
            self._timer = self._clock.callLater(left, self._look)
        elif self._closing:
            self.wire.abortConnection()
        else:
            self.timeoutConnection()
            self._timer = self._clock.callLater(LAST_WORDS, self._look)

    def hurry(self) -> None:
        """The client has only :data:`LAST_WORDS` seconds more for each command."""
        self._patience = LAST_WORDS
        if self._timer is not None:
            self._timer.cancel()
            self._start_clock()

    def timeoutConnection(self) -> None:
        self._reply(replies.TIMED_OUT)
