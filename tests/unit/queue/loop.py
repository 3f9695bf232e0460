"""The reactor's side of a store, for tests: its threads are real, its thread is the test's."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from relayd.model import Envelope, Fault, Path, Recipient, Reply, Sender
from relayd.queue import Attempt, Claim, MessageState, QueuedRecipient, Settlement, SqliteStore

T = TypeVar("T")

PATIENCE = 60.0


class Loop:
    """Runs what threads hand over, while somebody waits for a Deferred."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], Any]] = SimpleQueue()

    def callFromThread(self, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._calls.put(lambda: callable(*args, **kwargs))

    def wait(self, awaited: Deferred[T] | Coroutine[Any, Any, T]) -> T:
        """The result of *awaited*, or what it failed with."""
        deferred = awaited if isinstance(awaited, Deferred) else Deferred.fromCoroutine(awaited)
        results: list[T | Failure] = []
        deferred.addBoth(results.append)
        self.until(lambda: bool(results))
        (result,) = results
        if isinstance(result, Failure):
            result.raiseException()
        return result

    def fault(self, awaited: Deferred[Any] | Coroutine[Any, Any, Any]) -> Fault:
        """The Fault that *awaited* fails with."""
        try:
            result = self.wait(awaited)
        except Fault as fault:
            return fault
        raise AssertionError(f"no fault, but {result!r}")

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true():
            try:
                self._calls.get(timeout=max(deadline - time.monotonic(), 0.0))()
            except Empty:
                raise AssertionError(f"nothing happened for {PATIENCE} s") from None

    def poll(self, true: Callable[[], bool]) -> None:
        """Like *until*, for what no call announces."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, f"not within {PATIENCE} s"
            with suppress(Empty):
                self._calls.get(timeout=0.01)()


class Now:
    """A clock that stands still until it is moved. It starts later than any lease or history is long."""

    def __init__(self, at: float = 1_800_000_000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def envelope(*recipients: str, sender: str = "app@corp.example", **more: str) -> Envelope:
    def path(text: str) -> Path:
        local, _, domain = text.rpartition("@")
        return Path(local, domain)

    paths = recipients or ("alice@example.org",)
    return Envelope(
        Sender(path(sender) if sender else Path("")), tuple(Recipient(path(recipient)) for recipient in paths), **more
    )


def put(store: SqliteStore, octets: bytes = b"Subject: x\r\n\r\nx\r\n", what: Envelope | None = None) -> Deferred[str]:
    """A message that nobody has claimed; its id."""
    draft = store.draft()
    draft.write(octets)
    committed = draft.commit(what or envelope(), claimed=False)
    return committed.addCallback(lambda _: draft.message_id)


def put_claimed(store: SqliteStore, octets: bytes = b"x\r\n", what: Envelope | None = None) -> Deferred[Claim]:
    draft = store.draft()
    draft.write(octets)
    return draft.commit(what or envelope(), claimed=True)  # type: ignore[return-value]


async def put_large(store: SqliteStore, octets: bytes, *, claimed: bool = False) -> tuple[str, Claim | None]:
    """A message in blocks of 64 KiB, with the patience that the store asks for."""
    draft = store.draft()
    for start in range(0, len(octets), 65536):
        room = draft.write(octets[start : start + 65536])
        if room is not None:
            await room
    return draft.message_id, await draft.commit(envelope(), claimed=claimed)


def attempt(
    recipient: QueuedRecipient,
    state: MessageState = MessageState.DELIVERED,
    reply: Reply | None = None,
    **more: Any,
) -> Attempt:
    default = {
        MessageState.DELIVERED: Reply.of(250, "2.0.0", "Ok"),
        MessageState.QUEUED: Reply.of(450, "4.2.0", "Greylisted"),
    }.get(state, Reply.of(550, "5.1.1", "No such user"))
    return Attempt(recipient.id, state, reply or default, "mx.example.org[192.0.2.1]:25", **more)


def delivered(claim: Claim) -> Settlement:
    return Settlement(claim, tuple(attempt(recipient) for recipient in claim.recipients))


def deferred(claim: Claim, at: float) -> Settlement:
    attempts = (attempt(recipient, MessageState.QUEUED, next_at=at) for recipient in claim.recipients)
    return Settlement(claim, tuple(attempts))
