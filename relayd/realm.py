"""The cred realm: who authenticated gets an avatar that asks the policy and fills the queue.

The avatar is an ``IMessageDelivery`` as Twisted's mail framework knows it. :class:`IRelayDelivery` is what a session of
relayd asks of it beyond that: the whole of MAIL and RCPT, and one message for all recipients, in bulk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

from twisted.cred.checkers import ANONYMOUS
from twisted.cred.portal import IRealm
from twisted.internet.defer import Deferred, fail
from twisted.mail.interfaces import IMessageDelivery
from twisted.mail.smtp import Address, IMessage, User
from zope.interface import Interface, implementer

from relayd.events import Events, MessageAccepted
from relayd.model import Client, Envelope, Fault, Path, Principal, Recipient, Reply, Rule, Sender, Verdict
from relayd.policy import Policy, Rewritten, is_postmaster, plain_local
from relayd.queue import Claim, Draft, Onward, Store, hand_on
from relayd.settings import Domain, DomainKind, Settings
from relayd.wire import Header, count_received, missing_fields, parse_address, received_header, sent_from

#: A header longer than this is passed on, but no longer looked into.
HEADER_LOOKED_INTO = 256 * 1024

_MakeMessage = Callable[[], "RelayMessage"]

_TOO_MANY_HOPS = Reply.of(554, "5.4.6", "Too many hops: this message is going in circles")


class Session(Protocol):
    """An inbound session, as the avatar sees it: cred's *mind*."""

    id: str
    helo: str
    esmtp: bool

    @property
    def client(self) -> Client:
        """The other end, as of now."""


class IBulkMessage(IMessage):
    """A message for all its recipients at once, that takes octets in bulk."""

    def write(octets: bytes) -> Deferred[None] | None:
        """Takes content (strict CRLF, not dot-stuffed). A Deferred means: give no more until it has fired."""

    def finish() -> Deferred[str]:
        """Fires with the queue id once the message is safe; fails with a Fault when it is not taken."""

    def abandon() -> None:
        """The message will not be finished."""


class IRelayDelivery(IMessageDelivery):
    """An avatar that knows all of MAIL and RCPT. Each method answers at once or with a Deferred; a Fault refuses."""

    def mail(sender: Sender) -> Sender | Deferred[Sender]:
        """The policy's answer to MAIL; the sender comes back completed."""

    def rcpt(sender: Sender, recipient: Recipient) -> Recipient | Deferred[Recipient]:
        """The policy's answer to RCPT; the recipient comes back completed."""

    def message(sender: Sender, recipients: tuple[Recipient, ...]) -> IBulkMessage:
        """A message to be filled."""


class Recipients(Protocol):
    """Who knows all recipients of the local domains. ``relayd.directory.Directory`` is one."""

    async def has_recipient(self, *addresses: str) -> bool: ...


@implementer(IRealm)
class RelayRealm:
    """Makes the avatars of all sessions.

    :param policy: a callable, since a reload swaps the policy under sessions that live on.
    :param recipients: asked for each recipient of a local domain; None: all of them are good.
    """

    def __init__(
        self,
        settings: Settings,
        policy: Callable[[], Policy],
        store: Store,
        onward: Onward,
        events: Events,
        clock: Callable[[], float] = time.time,
        recipients: Recipients | None = None,
    ) -> None:
        self.settings = settings
        self.recipients = recipients
        self.policy = policy
        self.store = store
        self.onward = onward
        self.events = events
        self.clock = clock

    def requestAvatar(
        self, avatarId: object, mind: Any, *interfaces: type[Interface]
    ) -> tuple[type[Interface], Any, Callable[[], None]]:
        if IMessageDelivery not in interfaces:
            raise NotImplementedError(f"relayd has no avatar for {interfaces}")
        principal = None if avatarId is ANONYMOUS else avatarId
        assert principal is None or isinstance(principal, Principal)
        return IMessageDelivery, RelayDelivery(self, mind, principal), _logout


def _logout() -> None:
    """An avatar holds nothing that must be given back."""


@implementer(IRelayDelivery)
class RelayDelivery:
    """The avatar of one session: asks the policy, fills the queue."""

    def __init__(self, realm: RelayRealm, session: Session, principal: Principal | None) -> None:
        self.realm = realm
        self.session = session
        self.principal = principal
        self.rule = ""

    def mail(self, sender: Sender) -> Sender:
        policy = self.realm.policy()
        _insist(policy.mail(self.session.client, sender))
        path = policy.complete(sender.path, sender=True)
        if policy.rewriting.undecided(self.session.client):
            why = f"The name of {self.session.client.peer} cannot be looked up for now"
            raise Fault(Reply.of(451, "4.4.3", why), "a [[rewrite]] table may mean this client")
        return sender if path is sender.path else replace(sender, path=path)

    def rcpt(self, sender: Sender, recipient: Recipient) -> Recipient | Deferred[Recipient]:
        policy = self.realm.policy()
        verdict = policy.rcpt(self.session.client, sender, recipient)
        _insist(verdict)
        path = policy.complete(recipient.path)
        accepted = recipient if path is recipient.path else replace(recipient, path=path)
        recipients = self.realm.recipients
        if recipients is not None and not is_postmaster(path):
            domain = policy.domains.find(path.domain)
            if domain is not None and domain.kind is DomainKind.LOCAL:
                return Deferred.fromCoroutine(self._known(recipients, domain, accepted, verdict))
        self.rule = str(verdict.rule)
        return accepted

    async def _known(self, recipients: Recipients, domain: Domain, recipient: Recipient, verdict: Verdict) -> Recipient:
        """*recipient*, when the directory has it: by its own address, or, at an alias of *domain*, by that of the
        domain."""
        path = recipient.path
        names = [path.domain] if domain.wildcard else [path.domain, domain.name]
        local = plain_local(path.local)
        if not await recipients.has_recipient(*dict.fromkeys(f"{local}@{name}".lower() for name in names)):
            key = "directory.verify_recipients"
            rule = Rule(key, self.realm.settings.lines.get(key, 0))
            raise Fault(Reply.of(550, "5.1.1", f"<{path}> is not a recipient here"), rule=rule)
        self.rule = str(verdict.rule)
        return recipient

    def message(self, sender: Sender, recipients: tuple[Recipient, ...]) -> RelayMessage:
        rewritten = self.realm.policy().rewriting.of(self.session.client, sender.path)
        return RelayMessage(self, sender, recipients, rewritten)

    @cached_property
    def may_relay(self) -> bool:
        """Whether its mail is this relay's to vouch for; asked where something is signed alone."""
        return bool(self.realm.settings.dkim) and self.realm.policy().may_relay(self.session.client)

    # What stock twisted.mail asks.

    def validateFrom(self, helo: tuple[bytes, bytes], origin: Address) -> Address:
        self.mail(Sender(_path(origin)))
        return origin

    def validateTo(self, user: User) -> _MakeMessage | Deferred[_MakeMessage]:
        sender = Sender(_path(user.orig))

        def accepted(recipient: Recipient) -> _MakeMessage:
            return lambda: self.message(sender, (recipient,))

        recipient = self.rcpt(sender, Recipient(_path(user.dest)))
        return recipient.addCallback(accepted) if isinstance(recipient, Deferred) else accepted(recipient)

    def receivedHeader(self, helo: tuple[bytes, bytes], origin: Address, recipients: list[User]) -> bytes:
        # The message puts it on top itself: it alone knows the queue id.
        return b""


def _insist(verdict: Verdict) -> None:
    if not verdict.accepted:
        raise Fault(verdict.reply, rule=verdict.rule)


def _path(address: Address) -> Path:
    text = bytes(address).decode("utf-8", "replace")
    return parse_address(text) if text else Path("")


@implementer(IBulkMessage)
class RelayMessage:
    """A message on its way into the queue: Received goes on top, hops are counted, the rest passes through.

    Only the header is held back, until its end is known.
    """

    def __init__(
        self,
        avatar: RelayDelivery,
        sender: Sender,
        recipients: tuple[Recipient, ...],
        rewritten: Rewritten | None = None,
    ) -> None:
        self._avatar = avatar
        self._sender = sender if rewritten is None else replace(sender, path=rewritten.path)
        self._written = "" if rewritten is None else str(sender.path)
        self._new_from = str(rewritten.path) if rewritten is not None and rewritten.header else ""
        self._recipients = recipients
        self._draft: Draft = avatar.realm.store.draft()
        self._header: bytearray | None = bytearray()
        self._received_at = avatar.realm.clock()
        self._fault: Fault | None = None

    def write(self, octets: bytes) -> Deferred[None] | None:
        header = self._header
        if header is None:
            return self._draft.write(octets)
        searched = max(len(header) - 3, 0)
        header += octets
        if header.find(b"\r\n\r\n", searched) < 0 and header[:2] != b"\r\n" and len(header) < HEADER_LOOKED_INTO:
            return None
        return self._release()

    def finish(self) -> Deferred[str]:
        if self._header is not None:
            self._release()  # a Deferred may be ignored here: commit waits for all that was written
        if self._fault is not None:
            self.abandon()
            return fail(self._fault)
        realm = self._avatar.realm
        envelope = self._envelope()
        safe = self._draft.commit(envelope, claimed=realm.onward.room > 0)
        return safe.addCallback(self._accepted, envelope)

    def abandon(self) -> None:
        self._draft.abandon()

    def _accepted(self, claim: Claim | None, envelope: Envelope) -> str:
        realm = self._avatar.realm
        message_id = self._draft.message_id
        realm.events.emit(
            MessageAccepted(
                session=envelope.session,
                queue_id=message_id,
                client=envelope.client,
                sender=str(envelope.sender.path),
                recipients=len(envelope.recipients),
                size=self._draft.size,
                user=envelope.principal,
                rule=envelope.rule,
                rewritten=envelope.rewritten,
            )
        )
        hand_on(realm.onward, claim)
        return message_id

    def _release(self) -> Deferred[None] | None:
        """Writes Received, what the header lacks, and what was held back."""
        held, self._header = bytes(self._header or b""), None
        end = held.find(b"\r\n\r\n")
        header = b"" if held[:2] == b"\r\n" else held if end < 0 else held[: end + 2]
        settings = self._avatar.realm.settings
        if count_received(header) >= settings.delivery.max_hops:
            self._fault = Fault(_TOO_MANY_HOPS, f"{settings.delivery.max_hops} or more Received headers")
        completed = b""
        if settings.delivery.complete_headers:
            hostname = settings.server.hostname
            completed = missing_fields(header, hostname, self._draft.message_id, self._received_at)
        if self._new_from:
            held = sent_from(Header.parse(header), self._new_from) + held[len(header) :]
        return self._draft.write(self._received() + completed + held)

    def _received(self) -> bytes:
        session = self._avatar.session
        client = session.client
        return received_header(
            helo=session.helo,
            client=str(client.peer),
            names=client.names.confirmed,
            by=self._avatar.realm.settings.server.hostname,
            with_=self._protocol(),
            message_id=self._draft.message_id,
            tls=f"{client.tls.version} {client.tls.cipher}" if client.tls else "",
            principal="",  # the next hops need no names of accounts; the history has them
            recipient=str(self._recipients[0].path) if len(self._recipients) == 1 else None,
            at=self._received_at,
        )

    def _protocol(self) -> str:
        """The WITH keyword: RFC 3848, and RFC 6531 4.3."""
        session = self._avatar.session
        if not session.esmtp:
            return "SMTP"
        kind = "UTF8SMTP" if self._sender.smtputf8 else "ESMTP"
        return kind + ("S" if session.client.tls else "") + ("A" if self._avatar.principal else "")

    def _envelope(self) -> Envelope:
        session, client = self._avatar.session, self._avatar.session.client
        principal = self._avatar.principal
        return Envelope(
            sender=self._sender,
            recipients=self._recipients,
            session=session.id,
            client=str(client.peer),
            helo=session.helo,
            principal=str(principal) if principal else "",
            listener=client.listener,
            tls=f"{client.tls.version} {client.tls.cipher}" if client.tls else "",
            rule=self._avatar.rule,
            may_relay=self._avatar.may_relay,
            rewritten=self._written,
        )

    # What stock twisted.mail asks.

    def lineReceived(self, line: bytes) -> None:
        self.write(line + b"\r\n")

    def eomReceived(self) -> Deferred[str]:
        return self.finish()

    def connectionLost(self) -> None:
        self.abandon()
