"""``make bench BENCH_ARGS=million``: a queue of a million messages beside an empty one.

How long relayd takes to start and to deliver again, what it takes of memory, how long a claim takes, how fast new mail
is taken and delivered meanwhile, and how long an administrator waits for a look. The rows are written by the store's
own statements, in large batches without syncs: nobody waits for a million messages to come in.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from relayd.model import Envelope, Recipient, Sender
from relayd.model import Path as Address
from relayd.queue.database import Places, open_database
from relayd.queue.disk import Disk
from relayd.queue.ids import MessageIds
from relayd.queue.operations import DUE_SQL, claim
from relayd.queue.rows import message_rows
from relayd.queue.writer import insert_rows
from tests.bench.machine import facts
from tests.bench.scenarios import Scenario, measure
from tests.bench.servers import RelaydServer
from tests.lab.net import wait_for
from tests.lab.postfix import SmtpSink
from tests.lab.relay import program

__all__ = ["main"]

BODY = b"Subject: benchmark\r\n\r\n" + b"x" * 76 + b"\r\n" + (b"y" * 76 + b"\r\n") * 5
#: Messages that are due when relayd starts: a long queue is one that is being worked on.
DUE = 2000
LOAD = Scenario("4 KiB, 20 sessions, reused", 20, 4000, reuse=True)
#: The load is put on each so often.
ROUNDS = 3
CLAIMS = 50


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench million", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000, help="in the long queue (%(default)s)")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as place:
        directory = Path(place)
        print(
            "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts(directory)), sep="\n", flush=True
        )
        print("\n| | empty queue | long queue | ratio |\n| --- | ---: | ---: | ---: |")
        empty, long = (_measured(directory, count) for count in (0, options.messages))
        for name in empty:
            ratio = f"{long[name] / empty[name]:.2f}" if empty[name] else ""
            print(f"| {name} | {empty[name]:,.2f} | {long[name]:,.2f} | {ratio} |")
        print("\n| messages that are due | claim of 100, median ms | steps of the plan |\n| ---: | ---: | --- |")
        for count in sorted({1000, 100_000, options.messages}):
            milliseconds, plan = _claims(directory, count)
            print(f"| {count:,} | {milliseconds:.2f} | {plan} |", flush=True)
    return 0


def _measured(directory: Path, deferred: int) -> dict[str, float]:
    """Starts relayd on a queue with *deferred* messages that wait, and some that are due."""
    with SmtpSink(dump=False) as sink:
        server = _Filled((sink.host, sink.port), directory, deferred)
        try:
            wait_for(lambda: sink.count() >= 1, "the first delivery", 120, interval=0.002)
            first = time.perf_counter() - server.began
            wait_for(lambda: sink.count() >= DUE, "all that was due", 120, interval=0.002)
            drained = time.perf_counter() - server.began
            resident = _resident(server.process.pid)
            results = [measure(LOAD, server, _Later(sink, sink.count())) for _ in range(ROUNDS)]  # type: ignore[arg-type]
            found = {
                "start to ready, s": server.ready,
                "start to first delivery, s": first,
                f"start to the last of {DUE} that were due, s": drained,
                "resident after that, MiB": resident,
                "resident after the load, MiB": _resident(server.process.pid),
                f"{LOAD.name}: accepted/s": statistics.median(result.accepted for result in results),
                "the same, end to end/s": statistics.median(result.end_to_end for result in results),
                "the same, processor ms a message": statistics.median(result.cpu for result in results),
                "relayctl status, s": _timed(server, "status"),
                "relayctl queue list --limit 20, s": _timed(server, "queue", "list", "--limit", "20"),
                "relayctl queue list of one domain, s": _timed(server, "queue", "list", "--domain", "d7.example"),
            }
        finally:
            server.stop()
        server.discard()
    return found


class _Later:
    """A sink that has taken some already."""

    def __init__(self, sink: SmtpSink, before: int) -> None:
        self._sink = sink
        self._before = before

    def count(self) -> int:
        return self._sink.count() - self._before


class _Filled(RelaydServer):
    """relayd on a queue that is filled before it starts.

    :ivar began: when it was started; *ready*: seconds from there until it listened.
    """

    def __init__(self, next_hop: tuple[str, int], directory: Path, deferred: int) -> None:
        state = Path(tempfile.mkdtemp(prefix="state-", dir=directory))
        connection = _filled(state / "queue", due=DUE, deferred=deferred)
        connection.close()
        os.sync()
        config = self.CONFIG.replace('state = "state"', f'state = "{state}"') % next_hop
        self.began = time.perf_counter()
        super().__init__(next_hop, directory, config=config)
        self.ready = time.perf_counter() - self.began


def _filled(folder: Path, *, due: int, deferred: int) -> sqlite3.Connection:
    folder.mkdir(parents=True)
    now = time.time()
    places = Places(str(folder), 0)
    connection = open_database(places, now, Disk()).connection
    connection.execute("PRAGMA synchronous = OFF")
    numbers = MessageIds(clock=lambda: now)
    for start in range(0, due + deferred, 10_000):
        connection.execute("BEGIN")
        rows = []
        for number in range(start, min(start + 10_000, due + deferred)):
            domain = f"d{number % 1000}.example"
            what = Envelope(Sender(Address("alice", "lab.example")), (Recipient(Address("bob", domain)),), rule="x")
            at = now - 3600 if number < due else now + 3600 + number % 14_400
            rows += message_rows(numbers.next(), what, now - 7200, len(BODY), BODY, at, False)
        insert_rows(connection, rows)
        connection.execute("COMMIT")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return connection


def _claims(directory: Path, due: int) -> tuple[float, str]:
    """How long a claim takes where so many messages are due; and how SQLite finds them."""
    folder = Path(tempfile.mkdtemp(prefix="claims-", dir=directory)) / "queue"
    connection = _filled(folder, due=due, deferred=0)
    files = Places(str(folder), 0).bodies
    took = []
    now = time.time()
    for _ in range(min(CLAIMS, due // 100)):
        begin = time.perf_counter()
        claim(connection, 100, now, now + 60, files, lambda _: None)
        took.append(time.perf_counter() - begin)
    plan = "; ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {DUE_SQL}", (now, 100)))
    connection.close()
    return statistics.median(took) * 1000, plan


def _resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _timed(server: RelaydServer, *command: str) -> float:
    begin = time.perf_counter()
    done = subprocess.run(
        [program("relayctl"), "--config", str(server.directory / "relayd.toml"), "--json", *command],
        capture_output=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        print(done.stderr.decode(errors="replace"), file=sys.stderr)
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
