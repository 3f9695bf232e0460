"""Badmail: messages that failed and whose sender cannot be told, kept as files for the administrator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path as File

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads

from relayd.delivery import durable
from relayd.delivery.drop import envelope_lines
from relayd.queue.store import Claim
from relayd.threads import BoundedPool


class BadmailFolder:
    """Keeps messages in *folder*: ``ID-PART.eml`` as in the drop folder, and why in ``ID-PART.reason`` beside it."""

    def __init__(self, folder: File, reactor: IReactorFromThreads) -> None:
        self._folder = folder
        self._pool = BoundedPool("badmail", reactor, threads=1, waiting=1000)

    def keep(self, claim: Claim, part: int, failed: Sequence[tuple[str, str]], now: float) -> Deferred[str]:
        """Keeps the message of *claim*.

        :param part: tells apart what is kept of one message at different times.
        :param failed: recipients, and what was said of each.
        :returns: fires with the path of the message's file once both would survive a power cut; fails with a Fault.
        """
        name = f"{durable.safe_name(claim.message_id)}-{part}"
        lines = [
            f"Message: {claim.message_id}",
            f"From: <{claim.sender.path}>",
            f"Received: {_iso(claim.received_at)}",
            f"Given up: {_iso(now)}",
        ]
        for recipient, reply in failed:
            lines += [f"To: <{recipient}>", f"Reason: {reply}"]
        receivers = [q.recipient.path for q in claim.recipients if str(q.recipient.path) in {r for r, _ in failed}]
        top = envelope_lines(claim.sender.path, receivers)
        return self._pool.run(self._write, name, lambda: chain([top], durable.chunks(claim.body)), _text(lines))

    def keep_file(self, message_id: str, file: File, called: str, why: str, now: float) -> Deferred[str]:
        """Keeps *file*, which is no message that can be sent, as it is.

        :param called: its name, for people.
        :returns: as :meth:`keep`.
        """
        name = durable.safe_name(message_id)
        lines = [f"File: {called}", f"Given up: {_iso(now)}", f"Reason: {why}"]
        return self._pool.run(self._write, name, lambda: _blocks(file), _text(lines))

    def stop(self) -> None:
        """Waits for what is being written."""
        self._pool.stop()

    def _write(self, name: str, content: Callable[[], Iterable[bytes]], reason: bytes) -> str:
        folder = self._folder
        try:
            durable.make_folder(folder)
            durable.write(folder, f"{name}.reason", [reason])
            durable.write(folder, f"{name}.eml", content())
            durable.sync_folder(folder)
        except OSError as error:
            raise durable.disk_fault(error, str(folder / name)) from None
        return str(folder / f"{name}.eml")


def _text(lines: Iterable[str]) -> bytes:
    return b"".join(
        "".join(c if c.isprintable() else "?" for c in line).encode("utf-8", "replace") + b"\n" for line in lines
    )


def _blocks(path: File) -> Iterable[bytes]:
    with path.open("rb") as file:
        while block := file.read(durable.CHUNK):
            yield block


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
