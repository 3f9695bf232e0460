"""A message while it arrives: in memory while it is small, in a file from there on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, fail

from relayd.model import Envelope, Fault
from relayd.queue import ids
from relayd.queue.body import FileBody, SmallBody
from relayd.queue.faults import trouble
from relayd.queue.spool import BodyFile
from relayd.queue.store import SMALL_BODY, Claim

if TYPE_CHECKING:
    from relayd.queue.sqlite import SqliteStore


class SqliteDraft:
    """See :class:`relayd.queue.store.Draft`."""

    def __init__(self, store: SqliteStore, number: int) -> None:
        self._store = store
        self._number = number
        self.message_id = ids.encode(number)
        self.size = 0
        self._blocks: list[bytes] = []
        self._file: BodyFile | None = None
        self._ended = False

    def write(self, octets: bytes) -> Deferred[None] | None:
        if self._ended:
            return None
        self.size += len(octets)
        if self._file is not None:
            return self._file.write(octets)
        self._blocks.append(octets)
        if self.size <= SMALL_BODY:
            return None
        self._file = self._store.body_file(self.message_id)
        blocks, self._blocks = self._blocks, []
        return self._file.write(b"".join(blocks))

    def commit(self, envelope: Envelope, *, claimed: bool) -> Deferred[Claim | None]:
        if self._ended:
            return fail(trouble(f"message {self.message_id} was committed or abandoned before"))
        self._ended = True
        if self._file is not None:
            return Deferred.fromCoroutine(self._commit_file(self._file, envelope, claimed))
        blocks, self._blocks = self._blocks, []
        octets = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        return self._store.insert(self._number, envelope, SmallBody(octets), claimed)

    async def _commit_file(self, file: BodyFile, envelope: Envelope, claimed: bool) -> Claim | None:
        with self._store.in_flight():
            await file.finish()
            try:
                return await self._store.insert(self._number, envelope, FileBody(file.path, self.size), claimed)
            except Fault:  # not when it was cancelled: then the row may be there
                await file.abandon()
                raise

    def abandon(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._blocks.clear()
        if self._file is not None:
            Deferred.fromCoroutine(self._discard(self._file))

    async def _discard(self, file: BodyFile) -> None:
        with self._store.in_flight():
            await file.abandon()
