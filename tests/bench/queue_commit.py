"""How fast the queue makes messages safe: ``python -m tests.bench.queue_commit [--seconds S] [--directory D]``.

Prints, for 1, 20 and 100 concurrent committers of 4 KiB messages: messages a second, and the median and the 99th
percentile of the time from end of data to safe. Once as they come, once with each message settled as delivered, too
(what a relay does), and once while the reactor is busy with other things, as it is when it serves sessions: between
wake-ups it runs Python for half a millisecond with small system calls in between.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred, gatherResults

from relayd.model import Envelope, Path, Recipient, Reply, Sender
from relayd.queue import Attempt, MessageState, Settlement, SqliteStore

SIZE = 4096
LINE = b"x" * 62 + b"\r\n"
BODY = LINE * (SIZE // len(LINE))
ENVELOPE = Envelope(
    Sender(Path("sender", "application.example"), size=SIZE),
    (Recipient(Path("recipient", "elsewhere.example")),),
    session="9f3a6c1e",
    client="192.0.2.25",
    helo="printer.application.example",
    listener="smtp",
    tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
    rule="relay.list[2] (line 31)",
)
DELIVERED = Attempt(0, MessageState.DELIVERED, Reply.of(250, "2.0.0", "Ok: queued as 4XyZ"), "mx.example[192.0.2.1]:25")


async def commit_for(store: SqliteStore, end: float, settle: bool, took: list[float]) -> None:
    clock = time.perf_counter
    while (start := clock()) < end:
        draft = store.draft()
        draft.write(BODY)
        claim = await draft.commit(ENVELOPE, claimed=True)
        took.append(clock() - start)
        if settle:
            assert claim is not None
            await store.settle(Settlement(claim, (DELIVERED,)))


class Busy:
    """Keeps the reactor as busy as sessions do."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._read, self._write = os.pipe()
        self._call = reactor.callLater(0, self._work)

    def _work(self) -> None:
        for _ in range(10):
            sum(i * i for i in range(500))
            os.write(self._write, b"x")
            os.read(self._read, 1)
        self._call = self._reactor.callLater(0, self._work)

    def stop(self) -> None:
        self._call.cancel()
        os.close(self._read)
        os.close(self._write)


async def measure(reactor: Any, directory: str, committers: int, seconds: float, settle: bool, busy: bool) -> str:
    place = tempfile.mkdtemp(prefix="queue-", dir=directory)
    store = SqliteStore(place, reactor=reactor)
    await store.open()
    load = Busy(reactor) if busy else None
    took: list[float] = []
    start = time.perf_counter()
    await gatherResults(
        [Deferred.fromCoroutine(commit_for(store, start + seconds, settle, took)) for _ in range(committers)]
    )
    elapsed = time.perf_counter() - start
    if load is not None:
        load.stop()
    await store.close()
    shutil.rmtree(place)
    quantiles = statistics.quantiles(took, n=100) if len(took) > 1 else [0.0] * 99
    return f"{len(took) / elapsed:8.0f}/s   p50 {quantiles[49] * 1e3:7.2f} ms   p99 {quantiles[98] * 1e3:7.2f} ms"


async def run(reactor: Any, directory: str, seconds: float) -> None:
    for title, settle, busy in (
        ("commit", False, False),
        ("commit and settle", True, False),
        ("commit, busy reactor", False, True),
        ("commit and settle, busy reactor", True, True),
    ):
        for committers in (1, 20, 100):
            result = await measure(reactor, directory, committers, seconds, settle, busy)
            print(f"{title:32} {committers:4} committers {result}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measurement")
    parser.add_argument("--directory", default=".", help="on the disk to measure (default: here)")
    arguments = parser.parse_args(argv)
    task.react(lambda reactor: Deferred.fromCoroutine(run(reactor, arguments.directory, arguments.seconds)), ())


if __name__ == "__main__":
    main()
