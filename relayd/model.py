"""The frozen values that every part of relayd speaks in.

Nothing here does I/O, knows Twisted, or imports another module of relayd.
Times are seconds since the epoch (UTC), durations are seconds, sizes are octets.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

IPAddress = IPv4Address | IPv6Address


def client_address(text: str) -> IPAddress:
    """The address of a client, with an IPv4-mapped IPv6 address taken as IPv4.

    :raises ValueError: *text* is no IP address.
    """
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@dataclass(frozen=True, slots=True)
class Path:
    """A reverse-path or forward-path without its source route (RFC 5321 4.1.2).

    *local* is the local part as it was written (quotes included), *domain* the domain or address literal
    as it was written. The null reverse-path has both empty. A bare local part has no domain: the listener
    completes it with the first local domain, or refuses it; ``postmaster`` may stay bare.
    """

    local: str
    domain: str = ""

    @property
    def null(self) -> bool:
        """Whether this is ``<>``."""
        return not self.local and not self.domain

    @property
    def ascii(self) -> bool:
        """Whether the path needs no SMTPUTF8 (RFC 6531)."""
        return self.local.isascii() and self.domain.isascii()

    @property
    def folded(self) -> str:
        """The address in lower case, for comparisons by an administrator's rules."""
        return str(self).lower()

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}" if self.domain else self.local


NULL_PATH: Final = Path("")


@dataclass(frozen=True, slots=True)
class Reply:
    """An SMTP reply: *code*, *enhanced* status code (RFC 3463; empty where none is sent), text *lines*."""

    code: int
    enhanced: str
    lines: tuple[str, ...]

    @classmethod
    def of(cls, code: int, enhanced: str, *lines: str) -> Reply:
        """A reply of one or more text lines."""
        return cls(code, enhanced, lines or ("",))

    @property
    def text(self) -> str:
        """The text on one line."""
        return " ".join(self.lines)

    @property
    def positive(self) -> bool:
        return self.code < 400

    @property
    def temporary(self) -> bool:
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        return self.code >= 500

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.code), self.enhanced, self.text) if part)


#: The answers to AUTH that refuse nobody: what has to be asked is away, or too many ask at once (design, promise 5).
AUTH_UNAVAILABLE: Final = Reply.of(454, "4.7.0", "Temporary authentication failure")
AUTH_BUSY: Final = Reply.of(454, "4.7.0", "Too many authentications at once, please try again later")


class Fault(Exception):
    """An error that crosses a module: what the client is told, and what the log is told.

    :param reply: what the other end may read; its code says whether the fault is temporary.
    :param detail: what only the log and the history may hold.
    :param rule: the rule of the policy that decided, where one did.
    """

    def __init__(self, reply: Reply, detail: str = "", rule: Rule | None = None) -> None:
        super().__init__(detail or str(reply))
        self.reply = reply
        self.detail = detail
        self.rule = rule

    @property
    def temporary(self) -> bool:
        return not self.reply.permanent


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of an inbound connection."""

    address: IPAddress
    port: int = 0

    def __str__(self) -> str:
        return str(self.address)


@dataclass(frozen=True, slots=True)
class Names:
    """What reverse DNS says of a client.

    :ivar confirmed: PTR names that resolve back to the client's address, lower case, no final dot.
    :ivar claimed: PTR names that do not; they count in a list that denies, never in one that allows.
    :ivar failed: a look-up failed for now, so a name may be missing from both.
    """

    confirmed: tuple[str, ...] = ()
    claimed: tuple[str, ...] = ()
    failed: bool = False


NO_NAMES: Final = Names()


@dataclass(frozen=True, slots=True)
class Tls:
    """What TLS negotiated on a connection.

    :ivar peer_name: outbound: the name the peer's certificate was held to; *verified*: it did.
    :ivar binding: inbound: channel binding data, ``tls-server-end-point:`` and the certificate's hash (RFC 5929 4).
    :ivar certificate: inbound: the client's certificate (DER), once it was verified; empty: none, or not good.
    :ivar distrust: why a certificate that the other end showed is not good.
    :ivar undecided: inbound: why nobody can tell for now whether it is good; that is never the client's fault.
    """

    version: str
    cipher: str
    peer_name: str = ""
    verified: bool = False
    binding: bytes = b""
    certificate: bytes = b""
    distrust: str = ""
    undecided: str = ""

    @property
    def external(self) -> bool:
        """Whether AUTH EXTERNAL is worth a try: the client's certificate is good, or may be."""
        return bool(self.certificate or self.undecided)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who authenticated: the avatar id of relayd's cred portal.

    :ivar name: the account as the directory or the accounts file spells it.
    :ivar groups: SIDs (directory) or group names (local accounts), nested ones included.
    :ivar addresses: the mail addresses that are the account's own, lower case.
    :ivar mechanism: the SASL mechanism that was used.
    :ivar source: which checker vouches for it: ``accounts``, ``ldap``, ``kerberos``, ``ntlm``, ``certificate``.
    """

    name: str
    mechanism: str
    source: str
    upn: str = ""
    sid: str = ""
    groups: frozenset[str] = frozenset()
    addresses: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.upn or self.name


@dataclass(frozen=True, slots=True)
class Client:
    """All that the policy may know of the other end of a session.

    :ivar listener: the name of the ``[[listener]]`` that took the connection.
    :ivar principal: None for an anonymous session.
    """

    peer: Peer
    listener: str
    names: Names = NO_NAMES
    tls: Tls | None = None
    principal: Principal | None = None


@dataclass(frozen=True, slots=True)
class Tlsa:
    """A TLSA record (RFC 6698 2.1): certificate *usage*, *selector*, *matching* type, and what is matched."""

    usage: int
    selector: int
    matching: int
    data: bytes


class Outcome(enum.Enum):
    ACCEPT = "accept"
    REFUSE = "refuse"
    DEFER = "defer"


@dataclass(frozen=True, slots=True)
class Rule:
    """What decided: the configuration *key* (``relay.list[2]``) and its *line* (0: a default, not written)."""

    key: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.key} (line {self.line})" if self.line else self.key


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision of the policy, the reply that tells the client, and the rule that made it."""

    outcome: Outcome
    reply: Reply
    rule: Rule

    @property
    def accepted(self) -> bool:
        return self.outcome is Outcome.ACCEPT


class Body(enum.Enum):
    """The BODY parameter of MAIL (RFC 6152); BINARYMIME is not offered."""

    SEVEN_BIT = "7BIT"
    EIGHT_BIT = "8BITMIME"


@dataclass(frozen=True, slots=True)
class Sender:
    """What MAIL said: the reverse-path and its parameters."""

    path: Path
    size: int = 0  # RFC 1870; 0 = not declared
    body: Body = Body.SEVEN_BIT
    smtputf8: bool = False  # RFC 6531
    ret: str = ""  # RFC 3461: "FULL", "HDRS" or not given
    envid: str = ""  # RFC 3461, decoded from xtext
    auth: str | None = None  # RFC 4954 5: None = not given, "" = <>


@dataclass(frozen=True, slots=True)
class Recipient:
    """What RCPT said: the forward-path and its parameters (RFC 3461)."""

    path: Path
    notify: frozenset[str] = frozenset()  # of NEVER SUCCESS FAILURE DELAY; empty = not given
    orcpt: str = ""  # "rfc822;alice@example.org", xtext decoded


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message's envelope (RFC 5321 2.3.1), with what the trace and the history need of its origin."""

    sender: Sender
    recipients: tuple[Recipient, ...]
    session: str = ""  # session id, or the name of what made the message ("dsn", "pickup")
    client: str = ""  # the client's address
    helo: str = ""
    principal: str = ""  # who authenticated; empty = anonymous
    listener: str = ""
    tls: str = ""  # "TLSv1.3 TLS_AES_256_GCM_SHA384" or empty
    rule: str = ""  # the rule that let the last recipient pass
    may_relay: bool = False  # it comes from whoever may relay: this relay vouches for it (DKIM)
    rewritten: str = ""  # the sender that MAIL named, where [[rewrite]] put another in its place
