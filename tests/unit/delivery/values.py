"""Values that the tests of delivery share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any, BinaryIO

from relayd.delivery.route import Router
from relayd.model import Envelope, Path, Recipient, Sender
from relayd.policy import DomainTable
from relayd.queue.store import Claim, QueuedRecipient
from relayd.settings import Console, Delivery, Domain, DomainKind, NextHop, Server, Settings


def path(text: str) -> Path:
    local, _, domain = text.rpartition("@") if "@" in text else (text, "", "")
    return Path(local, domain)


def hop(text: str, host: str = "", port: int | None = None) -> NextHop:
    name, _, written = text.partition(":")
    return NextHop(text, host or name, port or (int(written) if written else None))


def local(name: str, **more: Any) -> Domain:
    return Domain(name, kind=DomainKind.LOCAL, **more)


def remote(name: str, **more: Any) -> Domain:
    return Domain(name.removeprefix("*."), wildcard=name.startswith("*."), kind=DomainKind.REMOTE, **more)


def settings(
    *domains: Domain, hostname: str = "relay.corp.example", state: str = "/nonexistent", **delivery: Any
) -> Settings:
    more = {key: delivery.pop(key) for key in ("credentials", "listeners") if key in delivery}
    postmaster = delivery.pop("postmaster", None)
    return Settings(
        File("/etc/relayd.toml"),
        Server(hostname, File(state), postmaster=postmaster),
        Console(File("/run/control.sock")),
        domains=domains,
        delivery=Delivery(**delivery),
        **more,
    )


def router(made: Settings) -> Router:
    return Router(DomainTable(made.domains), made)


@dataclass(frozen=True)
class Octets:
    """A message body in memory, or, with *filed*, one that has to be opened."""

    text: bytes
    filed: bool = False

    @property
    def size(self) -> int:
        return len(self.text)

    @property
    def octets(self) -> bytes | None:
        return None if self.filed else self.text

    def open(self) -> BinaryIO:
        return io.BytesIO(self.text)


MESSAGE = b"From: alice@corp.example\r\nSubject: =?utf-8?q?caf=C3=A9?=\r\nMessage-ID: <1@x>\r\n\r\nHello\r\n"


def recipient(text: str, *notify: str, orcpt: str = "") -> Recipient:
    return Recipient(path(text), frozenset(notify), orcpt)


def claim(
    *recipients: str | Recipient,
    sender: str | Sender = "alice@corp.example",
    message_id: str = "M1",
    received_at: float = 0.0,
    attempts: int = 0,
    delay_notified: bool = False,
    body: Octets | None = None,
    first_id: int = 1,
) -> Claim:
    wanted: Sequence[Recipient] = [r if isinstance(r, Recipient) else recipient(r) for r in recipients]
    origin = sender if isinstance(sender, Sender) else Sender(path(sender))
    return Claim(
        message_id,
        origin,
        Envelope(origin, ()),
        received_at,
        tuple(QueuedRecipient(first_id + i, r, attempts, delay_notified) for i, r in enumerate(wanted)),
        body or Octets(MESSAGE),
        60.0,
    )
