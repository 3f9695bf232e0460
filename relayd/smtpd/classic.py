"""Any mail realm of Twisted under a RelayESMTP: its ``IMessageDelivery`` made to look like relayd's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.mail.smtp import Address, SMTPServerError, User
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.model import Fault, Path, Recipient, Reply, Sender
from relayd.realm import IBulkMessage, IRelayDelivery
from relayd.smtpd import replies
from relayd.smtpd.sasl import Challenge, Done, MechanismFactory, Step

_TOO_LATE = Reply.of(451, "4.3.0", "Could not store the message")


class ClassicSession(Protocol):
    """The overridable methods of ``twisted.mail.smtp.SMTP``, which ask the session's delivery."""

    def validateFrom(self, helo: tuple[bytes, bytes], origin: Address) -> Any: ...

    def validateTo(self, user: User) -> Any: ...

    def receivedHeader(self, helo: tuple[bytes, bytes], origin: Address, recipients: list[User]) -> Any: ...

    @property
    def classic_helo(self) -> tuple[bytes, bytes]: ...

    def complete(self, path: Path) -> Path: ...


@implementer(IRelayDelivery)
class ClassicDelivery:
    """One transaction by the three methods that stock realms know.

    Addresses get there as ``Address`` and ``User``, without stock's parser: it takes ``a..b@`` and refuses address
    literals. Parameters of MAIL and RCPT have no place in these interfaces, and stay behind.
    """

    def __init__(self, session: ClassicSession) -> None:
        self._session = session
        self._origin = Address(b"")
        self._makers: dict[Recipient, tuple[User, Callable[[], Any]]] = {}

    def mail(self, sender: Sender) -> Deferred[Sender]:
        path = sender.path if sender.path.null else self._session.complete(sender.path)
        origin = _address(path)

        def taken(answer: Any) -> Sender:
            self._origin = answer if isinstance(answer, Address) else origin
            return sender

        asked = maybeDeferred(self._session.validateFrom, self._session.classic_helo, origin)
        return asked.addCallbacks(taken, _fault)

    def rcpt(self, sender: Sender, recipient: Recipient) -> Deferred[Recipient]:
        path = self._session.complete(recipient.path)
        user = User(_address(path), self._session.classic_helo, self._session, self._origin)
        completed = Recipient(path, recipient.notify, recipient.orcpt)

        def taken(maker: Callable[[], Any]) -> Recipient:
            self._makers[completed] = (user, maker)
            return completed

        return maybeDeferred(self._session.validateTo, user).addCallbacks(taken, _fault)

    def message(self, sender: Sender, recipients: tuple[Recipient, ...]) -> ClassicMessage:
        messages: list[Any] = []
        try:
            for recipient in dict.fromkeys(recipients):
                user, maker = self._makers[recipient]
                message = maker()
                messages.append(message)
                received = self._session.receivedHeader(self._session.classic_helo, self._origin, [user])
                if received:
                    message.lineReceived(received)
        except SMTPServerError as error:
            ClassicMessage(messages).abandon()
            raise Fault(_reply(error)) from error
        except Exception:
            ClassicMessage(messages).abandon()
            raise
        return ClassicMessage(messages)

    # An avatar of relayd is an IMessageDelivery too.

    def validateFrom(self, helo: tuple[bytes, bytes], origin: Address) -> Any:
        return self._session.validateFrom(helo, origin)

    def validateTo(self, user: User) -> Any:
        return self._session.validateTo(user)

    def receivedHeader(self, helo: tuple[bytes, bytes], origin: Address, recipients: list[User]) -> Any:
        return self._session.receivedHeader(helo, origin, recipients)


class ChallengeResponse:
    """A SASL mechanism out of stock's ``challengers``, such as ``twisted.mail.smtp.LOGINCredentials``.

    :param credentials: what stock's portal is given at the end, too.
    """

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials
        self._asked = False

    @property
    def user(self) -> str:
        """Who the client claims to be, where stock's credentials say so by then."""
        return (getattr(self._credentials, "username", None) or b"").decode("utf-8", "replace")

    @classmethod
    def mechanism(cls, challenger: Callable[[], Any]) -> MechanismFactory:
        """For ``VirtualServer.mechanisms``."""
        return lambda client: cls(challenger())

    def step(self, response: bytes | None) -> Step:
        if response is not None:
            if not self._asked:
                self._credentials.getChallenge()  # an initial response: the client did not wait for it
            try:
                self._credentials.setResponse(response)
            except ValueError as error:
                raise Fault(replies.MALFORMED_RESPONSE, str(error)) from error
            if not self._credentials.moreChallenges():
                return Done(self._credentials)
        self._asked = True
        return Challenge(self._credentials.getChallenge())


@implementer(IBulkMessage)
class ClassicMessage:
    """One ``IMessage`` a recipient, each fed line by line: what stock realms expect."""

    def __init__(self, messages: list[Any]) -> None:
        self._messages = messages
        self._partial: list[bytes] = []
        self._begun = False

    def write(self, octets: bytes) -> Deferred[None] | None:
        # The readers of relayd.wire never part a CRLF.
        *lines, rest = octets.split(b"\r\n")
        if lines and self._partial:
            lines[0] = b"".join((*self._partial, lines[0]))
            self._partial.clear()
        if rest:
            self._partial.append(rest)
        try:
            for line in lines:
                self.lineReceived(line)
        except SMTPServerError as error:
            raise Fault(_reply(error)) from error
        return None

    def finish(self) -> Deferred[str]:
        if self._partial:
            self.write(b"\r\n")
        ends = [maybeDeferred(message.eomReceived) for message in self._messages]
        return DeferredList(ends, consumeErrors=True).addCallback(_outcome)

    def abandon(self) -> None:
        messages, self._messages = self._messages, []
        for message in messages:
            message.connectionLost()

    # A message of relayd is an IMessage too.

    def lineReceived(self, line: bytes) -> None:
        if not self._begun:
            self._begun = True
            if line and b":" not in line:
                # The message has no header of its own: what was put on top must not run into its text.
                for message in self._messages:
                    message.lineReceived(b"")
        for message in self._messages:
            message.lineReceived(line)

    def eomReceived(self) -> Deferred[str]:
        return self.finish()

    def connectionLost(self) -> None:
        self.abandon()


def _address(path: Path) -> Address:
    if not path.ascii:
        raise Fault(replies.ASCII_ONLY)
    address = Address(b"")
    address.local = path.local.encode()
    address.domain = path.domain.encode()
    address.addrstr = str(path).encode()
    return address


def _reply(error: SMTPServerError) -> Reply:
    text = error.resp.decode("utf-8", "replace") if isinstance(error.resp, bytes) else str(error.resp)
    return Reply.of(error.code, f"{error.code // 100}.0.0", *text.splitlines())


def _fault(failure: Failure) -> Any:
    if isinstance(failure.value, SMTPServerError):
        raise Fault(_reply(failure.value)) from failure.value
    return failure


def _outcome(results: list[tuple[bool, Any]]) -> str:
    """All stored, or not stored: there is one reply for all recipients."""
    for stored, result in results:
        if not stored:
            if isinstance(result.value, SMTPServerError):
                raise Fault(_reply(result.value)) from result.value
            raise Fault(_TOO_LATE, result.getErrorMessage()) from result.value
    return ""
