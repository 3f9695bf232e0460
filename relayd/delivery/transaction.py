"""One mail transaction towards a next hop (RFC 5321 3.3), pipelined where it may be (RFC 2920).

It knows which reply belongs to which command and what each recipient's answer is; it neither reads, waits nor
knows a transport. A :class:`Link` carries what it writes and brings it replies and losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from relayd.delivery.fault import PathFault, Stage, softened
from relayd.delivery.offer import Offer
from relayd.model import Body, Path, Recipient, Reply, Sender
from relayd.policy.domains import fold
from relayd.queue.store import MessageBody
from relayd.wire import BdatWriter, DataWriter, UncleanMessage, encode_mail, encode_rcpt

#: Codes that speak of the path and not of the message, wherever they stand (design, promise 5).
PATH_CODES = frozenset({421, 530, 535, 538})

UNCLEAN = Reply.of(554, "5.6.0", "Message holds octets that must not be sent on")
NEEDS_UTF8 = Reply.of(553, "5.6.7", "The next hop does not take internationalized addresses")  # RFC 6531 3.5
NEEDS_8BIT = Reply.of(554, "5.6.3", "The next hop does not take 8-bit messages")  # RFC 6152 3
BAD_SENDER = Reply.of(553, "5.1.7", "The sender's address cannot be sent on")
BAD_RECIPIENT = Reply.of(553, "5.1.3", "The recipient's address cannot be sent on")


@dataclass(frozen=True, slots=True)
class Plan:
    """A message as it goes to one next hop.

    :ivar commands: MAIL, and a RCPT for each of *wanted*, the indices of those recipients that can be asked for.
    :ivar replies: per recipient, the answer where there is one before anything was sent, else None.
    :ivar octets: a small message, ready to write, its end of data (or its BDAT command) included; None = it must be
        streamed.
    """

    commands: tuple[bytes, ...]
    wanted: tuple[int, ...]
    replies: tuple[Reply | None, ...]
    octets: bytes | None


def plan(
    sender: Sender, recipients: Sequence[Recipient], body: MessageBody, offer: Offer, *, eight_bit: bool | None = None
) -> Plan:
    """Decides what can be asked of a next hop that offers *offer*.

    :param eight_bit: whether a message that is not in memory holds octets above 127; None = not known.
    """
    extensions = offer.extensions
    if offer.size and body.size > offer.size:  # RFC 1870 5
        too_large = Reply.of(552, "5.3.4", f"The next hop takes at most {offer.size} octets")
        return _refused(too_large, recipients)
    octets: bytes | None = None
    if body.octets is not None:
        eight_bit = not body.octets.isascii()
        writer = DataWriter()
        try:
            if "CHUNKING" in extensions:
                octets = BdatWriter().whole(body.octets)
            else:
                octets = writer.write(body.octets) + writer.finish()
        except UncleanMessage:
            return _refused(UNCLEAN, recipients)
    if "8BITMIME" in extensions:
        # Unknown counts as 8-bit: declared needlessly it does no harm.
        declared = Body.SEVEN_BIT if eight_bit is False else Body.EIGHT_BIT
    elif eight_bit:
        return _refused(NEEDS_8BIT, recipients)
    else:
        declared = Body.SEVEN_BIT
    utf8 = "SMTPUTF8" in extensions
    if not (utf8 or (sender.path.ascii and all(r.path.ascii for r in recipients))):
        sender = replace(sender, path=_in_ascii(sender.path))
        recipients = [replace(recipient, path=_in_ascii(recipient.path)) for recipient in recipients]
    if not (utf8 or sender.path.ascii):
        return _refused(NEEDS_UTF8, recipients)

    # RFC 4954 5: who wrote the message is told only to a trusted server; no next hop is.
    extensions = extensions - {"AUTH"}
    international = sender.smtputf8 or (utf8 and not all(r.path.ascii for r in recipients))
    if declared is not sender.body or international is not sender.smtputf8:
        sender = replace(sender, body=declared, smtputf8=international)
    try:
        commands = [encode_mail(sender, size=body.size, extensions=extensions)]
    except ValueError:
        return _refused(BAD_SENDER, recipients)
    wanted = []
    replies: list[Reply | None] = [None] * len(recipients)
    for index, recipient in enumerate(recipients):
        if not (utf8 or recipient.path.ascii):
            replies[index] = NEEDS_UTF8
            continue
        try:
            commands.append(encode_rcpt(recipient, extensions=extensions))
        except ValueError:
            replies[index] = BAD_RECIPIENT
            continue
        wanted.append(index)
    return Plan(tuple(commands), tuple(wanted), tuple(replies), octets)


def _in_ascii(path: Path) -> Path:
    """*path* with its domain as A-labels, where they are all that it lacks (RFC 5890 2.3.2.1)."""
    return Path(path.local, fold(path.domain)) if path.local.isascii() and not path.domain.isascii() else path


def _refused(reply: Reply, recipients: Sequence[Recipient]) -> Plan:
    return Plan((), (), (reply,) * len(recipients), None)


class Link(Protocol):
    """What a transaction needs of its connection."""

    def write(self, octets: bytes) -> None: ...

    def stream(self) -> Callable[[], int]:
        """Send the message block by block, then call :meth:`Transaction.streamed`.

        :returns: how many chunks were made so far (BDAT).
        """

    def lost(self, stage: Stage, said: Reply) -> PathFault:
        """End the connection because of *said*; the fault that describes it."""

    def path_fault(self, stage: Stage, said: Reply) -> PathFault:
        """The fault that describes *said*, an answer that the path is to blame for."""

    def concluded(self, outcome: tuple[Reply, ...] | PathFault, *, clean: bool) -> None:
        """The transaction is over. Not *clean*: RSET must come before the next one."""


class Transaction:
    """A transaction from its first command to its last reply.

    :param reset: begin with RSET.
    :param pipelining: write MAIL, all RCPT and DATA at once.
    :param chunking: send the message by BDAT (RFC 3030): there is no DATA, and each chunk has a reply.
    :param each: the message has a reply for each recipient (LMTP, RFC 2033 4.2).
    """

    __slots__ = (
        "_accepted",
        "_answered",
        "_blamed",
        "_chunking",
        "_chunks",
        "_commands",
        "_each",
        "_final",
        "_hollow",
        "_link",
        "_mail",
        "_octets",
        "_over",
        "_pending",
        "_pipelining",
        "_replies",
        "_stages",
        "_wanted",
    )

    def __init__(
        self,
        link: Link,
        plan: Plan,
        *,
        reset: bool,
        pipelining: bool,
        chunking: bool = False,
        each: bool = False,
    ) -> None:
        self._link = link
        self._chunking = chunking
        self._each = each
        self._pipelining = pipelining
        self._wanted = iter(plan.wanted)
        self._replies = list(plan.replies)
        self._octets = plan.octets
        end = [] if chunking else [b"DATA\r\n"]
        self._commands = [*([b"RSET\r\n"] if reset else []), *plan.commands, *end]
        self._stages = [
            *([Stage.RSET] if reset else []),
            Stage.MAIL,
            *([Stage.RCPT] * len(plan.wanted)),
            *([] if chunking else [Stage.DATA]),
        ]
        self._answered = 0
        self._chunks: Callable[[], int] = lambda: 1  # made so far, the last one included
        self._pending: list[int] = []  # recipients whose reply to the message is still to come
        self._accepted: list[int] = []
        self._mail: Reply | None = None  # the reply that refused MAIL
        self._blamed: list[tuple[int, PathFault]] = []  # recipients whose answer speaks of the path
        self._hollow = False  # 354 came though there is nobody to send to
        self._final = False  # the whole message was written
        self._over = False

    @property
    def stage(self) -> Stage:
        """What is being waited for."""
        if self._answered < len(self._stages):
            return self._stages[self._answered]
        return Stage.END if self._final else Stage.BODY

    def start(self) -> None:
        self._link.write(b"".join(self._commands) if self._pipelining else self._commands[0])

    @property
    def over(self) -> bool:
        return self._over

    @property
    def untouched(self) -> bool:
        """Whether the peer has not answered anything yet."""
        return self._answered == 0

    def replied(self, reply: Reply) -> None:
        """The next reply of the peer."""
        stage = self.stage
        if reply.code == 421:  # RFC 5321 3.8: may come at any time, and is the end
            self.failed(self._link.lost(stage, reply), answered=True)
            return
        self._answered += 1
        if stage is Stage.RCPT:
            self._rcpt(reply)
        elif stage is Stage.MAIL or stage is Stage.RSET:
            self._mail_or_rset(stage, reply)
        elif stage is Stage.DATA:
            self._data(reply)
        elif self._chunking and self._chunk_replied(reply):
            pass
        elif stage is Stage.END:
            self._end(reply)
        else:
            # An answer in the middle of the message answers nothing that was asked: the connection is out of step.
            self.failed(self._link.lost(stage, reply))

    def _mail_or_rset(self, stage: Stage, reply: Reply) -> None:
        if 200 <= reply.code < 300:
            self._proceed()
        elif stage is Stage.RSET or reply.code < 400 or reply.code in PATH_CODES:
            self.failed(self._link.lost(stage, reply))
        else:
            self._mail = reply
            self._proceed()

    def _rcpt(self, reply: Reply) -> None:
        index = next(self._wanted)
        if 200 <= reply.code < 300:
            self._accepted.append(index)
        elif reply.code < 400:
            self.failed(self._link.lost(Stage.RCPT, reply))
            return
        elif self._mail is None:
            self._refuse(index, Stage.RCPT, reply)
        self._proceed()

    def _refuse(self, index: int, stage: Stage, reply: Reply) -> None:
        if reply.code in PATH_CODES:
            self._blamed.append((index, self._link.path_fault(stage, reply)))
        elif reply.code == 552 and stage is Stage.RCPT:  # RFC 5321 4.5.3.1.10
            self._replies[index] = Reply(452, softened(reply).enhanced, reply.lines)
        else:
            self._replies[index] = reply

    def _chunk_replied(self, reply: Reply) -> bool:
        """Whether *reply* is that to a chunk which is not the last one."""
        chunk = self._answered - len(self._stages)  # from 1
        if self._pending or (self._final and chunk >= self._chunks()) or chunk > self._chunks():
            return False
        if 300 <= reply.code < 400:
            self.failed(self._link.lost(Stage.END, reply))
        elif reply.code >= 400:
            # What follows is refused as well, and the transaction is spoilt: this is the answer to the message.
            for index in self._accepted:
                self._answered_with(index, reply)
            self._link.lost(Stage.END, reply)
            self._conclude(clean=False)
        return True

    def _send(self) -> None:
        """All recipients have their answers: the message follows, where CHUNKING needs no leave for it."""
        if self._mail is not None or not self._accepted:
            self._conclude(clean=False)
        elif self._octets is None:
            self._chunks = self._link.stream()
        else:
            self._final = True
            self._link.write(self._octets)

    def _proceed(self) -> None:
        """After a reply to MAIL or RCPT: write the next command, unless all were written."""
        if self._chunking and self._answered == len(self._stages):
            self._send()
            return
        if self._pipelining:
            return
        nobody = self._mail is not None or not (self._accepted or self._stages[self._answered] is Stage.RCPT)
        if nobody and self._stages[self._answered] is not Stage.MAIL:
            self._conclude(clean=False)
        else:
            self._link.write(self._commands[self._answered])

    def _data(self, reply: Reply) -> None:
        if reply.code == 354:
            if self._mail is not None and self._accepted:
                # No sender, but recipients: a lone dot might send them an empty message.
                self.failed(self._link.lost(Stage.DATA, reply))
            elif not self._accepted and self._each:
                self.failed(self._link.lost(Stage.DATA, reply))  # RFC 2033 4.2: no reply would follow
            elif not self._accepted:
                self._hollow = self._final = True  # RFC 2920 3.1
                self._link.write(b".\r\n")
            elif self._octets is None:
                self._link.stream()
            else:
                self._final = True
                self._link.write(self._octets)
        elif reply.code < 400:
            self.failed(self._link.lost(Stage.DATA, reply))
        else:
            for index in self._accepted if self._mail is None else ():
                if reply.temporary:
                    self._replies[index] = reply
                else:  # only MAIL, RCPT and end of data may refuse for good
                    self._blamed.append((index, self._link.path_fault(Stage.DATA, reply)))
            self._conclude(clean=False)

    def streamed(self) -> None:
        """The message was written to its end."""
        self._final = True

    def cut(self, reply: Reply) -> None:
        """The connection was dropped inside the message, for what *reply* tells."""
        if not self._over:
            self._settle(reply)

    def _settle(self, reply: Reply) -> None:
        """*reply* for all who have no answer yet."""
        for index in self._accepted:
            self._replies[index] = self._replies[index] or reply
        self._conclude(clean=False)

    def _end(self, reply: Reply) -> None:
        if self._hollow:
            self._conclude(clean=True)
            return
        if 300 <= reply.code < 400:
            self.failed(self._link.lost(Stage.END, reply))
            return
        if self._each:
            self._pending = self._pending or list(self._accepted)
            self._answered_with(self._pending.pop(0), reply)
            if self._pending:
                return
        else:
            for index in self._accepted:
                self._answered_with(index, reply)
        positive = all((said := self._replies[index]) is not None and said.positive for index in self._accepted)
        self._conclude(clean=positive)

    def _answered_with(self, index: int, reply: Reply) -> None:
        """*reply* is what a recipient's message got."""
        # A next hop that offers BDAT and does not know it, or not here, says nothing of the message.
        if reply.code in PATH_CODES or (self._chunking and 500 <= reply.code <= 504):
            self._blamed.append((index, self._link.path_fault(Stage.END, reply)))
        else:
            self._replies[index] = reply

    def failed(self, fault: PathFault, *, answered: bool = False) -> None:
        """The connection ended.

        :param answered: the peer said so itself, so it did not take the message.
        """
        if self._over:
            return
        # After the final dot nobody knows whether the message was taken. It is tried again later rather than
        # at once with another host: twice rather than never (RFC 5321 4.5.3.2.6), but not twice for sure.
        doubtful = self._final and not self._hollow and not answered
        if doubtful:
            self._settle(fault.reply)
        elif self._mail is not None or any(self._replies):
            for index, reply in enumerate(self._replies):
                self._replies[index] = reply or self._mail or fault.reply
            self._conclude(clean=False)
        else:
            self._over = True
            self._link.concluded(fault, clean=False)

    def _conclude(self, *, clean: bool) -> None:
        self._over = True
        replies = self._replies
        if self._mail is not None:
            for index, reply in enumerate(replies):
                replies[index] = reply or self._mail
        if self._blamed:
            if not any(replies):
                self._link.concluded(self._blamed[0][1], clean=clean)
                return
            for index, fault in self._blamed:
                replies[index] = fault.reply
        self._link.concluded(tuple(reply for reply in replies if reply is not None), clean=clean)
