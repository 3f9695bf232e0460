"""One mail transaction (RFC 5321 3.3): the envelope as it grows, then the message as it comes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from relayd.model import Fault, Recipient, Reply, Sender
from relayd.realm import IBulkMessage, IRelayDelivery
from relayd.smtpd import replies
from relayd.wire import BdatReader

_NOTHING: Final = b""


class Transaction:
    """From MAIL to the reply to end of data.

    :param limit: the most octets of a message; 0 = no limit.
    :param report: told of a fault that no reply will tell.
    :ivar failure: why the message will be refused once its end has come; the rest of it is read and dropped.
    :ivar refused: how many recipients were refused.
    :ivar size: octets of the message so far.
    :ivar chunks: the reader of BDAT, once the first chunk was announced.
    """

    __slots__ = (
        "_limit",
        "_message",
        "_report",
        "chunks",
        "delivery",
        "failure",
        "recipients",
        "refused",
        "sender",
        "size",
    )

    def __init__(self, delivery: IRelayDelivery, sender: Sender, limit: int, report: Callable[[Failure], None]) -> None:
        self.delivery = delivery
        self.sender = sender
        self.recipients: list[Recipient] = []
        self.refused = 0
        self.size = 0
        self.failure: Failure | None = None
        self.chunks: BdatReader | None = None
        self._limit = limit
        self._report = report
        self._message: IBulkMessage | None = None

    def open(self) -> None:
        """The message begins. Whatever is wrong with that is raised."""
        self._message = self.delivery.message(self.sender, tuple(self.recipients))

    def write(self, octets: bytes) -> Deferred[None] | None:
        """Takes content. A Deferred fires, never fails, once more may be given."""
        self.size += len(octets)
        if self._message is None:
            return None
        if self._limit and self.size > self._limit:
            self.refuse(Fault(replies.TOO_BIG, f"over {self._limit} octets"))
            return None
        try:
            wait = self._message.write(octets)
        except Exception:
            self._failed(Failure())
            return None
        return None if wait is None else wait.addErrback(self._failed)

    def finish(self) -> Deferred[str]:
        """Fires with the queue id once the message is safe; fails with why it is not taken."""
        message, self._message = self._message, None
        if self.failure is not None:
            return _failed(self.failure)
        assert message is not None
        try:
            return message.finish()
        except Exception:
            return _failed(Failure())

    def refuse(self, fault: Fault) -> None:
        """The message will be refused by *fault*, unless something else was wrong with it before."""
        self._failed(Failure(fault))

    def abandon(self) -> None:
        """The message will not be finished."""
        message, self._message = self._message, None
        if message is not None:
            try:
                message.abandon()
            except Exception:
                self._report(Failure())

    def _failed(self, failure: Failure) -> None:
        if self.failure is None:
            self.failure = failure
        self.abandon()


def _failed(failure: Failure) -> Deferred[str]:
    result: Deferred[str] = Deferred()
    result.errback(failure)
    return result


class Discard:
    """Reads the octets of a BDAT that was refused, to stay in step with the client, and keeps none.

    :ivar reply: what the client is told at the end.
    """

    __slots__ = ("_left", "reply")

    fault: Final = ""

    def __init__(self, size: int, reply: Reply) -> None:
        self._left = size
        self.reply = reply

    def feed(self, octets: bytes) -> tuple[bytes, bytes | None]:
        """As the readers of relayd.wire."""
        left = self._left
        self._left = max(left - len(octets), 0)
        return _NOTHING, octets[left:] if len(octets) >= left else None
