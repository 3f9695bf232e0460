"""What goes wrong on the way to a next hop, as opposed to what a next hop says of a message."""

from __future__ import annotations

import enum

from relayd.model import Fault, Reply


class Stage(enum.Enum):
    """Where a connection stood. The values are for people."""

    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "EHLO"
    STARTTLS = "STARTTLS"
    TLS = "TLS handshake"
    AUTH = "AUTH"
    IDLE = "idle"
    RSET = "RSET"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    BODY = "message"
    END = "end of data"
    QUIT = "QUIT"


class PathFault(Fault):
    """The path to a next hop is at fault, not the message: always temporary (design, promise 5).

    No recipient has got an answer of its own, so another host may be tried at once.

    :ivar stage: where it happened.
    :ivar peer: ``host[address]:port``.
    :ivar said: the peer's reply that caused it, where one did.
    :ivar cleartext: TLS was tried because it was offered, and broke: once more without it is allowed (RFC 7435).
    :ivar stale: the connection was found dead before the peer answered anything in this transaction, so a fresh
        connection may take the message at no risk of a second copy.
    """

    def __init__(
        self,
        stage: Stage,
        reply: Reply,
        detail: str = "",
        *,
        peer: str = "",
        said: Reply | None = None,
        cleartext: bool = False,
        stale: bool = False,
    ) -> None:
        super().__init__(reply, detail or f"{peer} ({stage.value}): {said or reply}")
        self.stage = stage
        self.peer = peer
        self.said = said
        self.cleartext = cleartext
        self.stale = stale


def softened(reply: Reply) -> Reply:
    """*reply* as a temporary one, with its text and the subject of its enhanced code kept.

    >>> softened(Reply.of(554, "5.7.1", "go away"))
    Reply(code=451, enhanced='4.7.1', lines=('go away',))
    """
    if reply.temporary:
        return reply
    enhanced = f"4{reply.enhanced[1:]}" if reply.enhanced else "4.0.0"
    return Reply(451, enhanced, reply.lines)
