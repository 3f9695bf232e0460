"""``make bench BENCH_ARGS=backlog``: what a queue of a million messages costs, beside shorter ones and an empty one.

How long a start takes until relayd is ready and until the first message is at the next hop, memory, what a claim
costs, how fast mail is taken beside a million that wait, and how long an administrator waits for an answer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from relayd.queue import reads
from relayd.queue.database import Places, open_database
from relayd.queue.disk import Disk
from relayd.queue.operations import DUE_SQL, claim
from tests.bench.machine import facts
from tests.bench.servers import RelaydServer
from tests.bench.stored import fill
from tests.lab.clients import smtp_source
from tests.lab.net import wait_for
from tests.lab.postfix import SmtpSink
from tests.lab.relay import ENVIRONMENT, program

__all__ = ["main"]

SIZES = (0, 1_000, 100_000, 1_000_000)
#: Messages delivered before memory is looked at again; claims of so many recipients each, as the scheduler has them.
DELIVERED, CLAIMS, CLAIMED = 5000, 50, 200
#: Messages handed in, for the rate; by so many sessions.
TAKEN, SESSIONS = 4000, 20
#: In one hour, and long ago.
LATER, DUE = 6 * 3600.0, -2 * 3600.0

Figures = dict[tuple[str, int], list[float]]

ASKED: Mapping[str, Sequence[str]] = {
    "relayctl status, s": ("status",),
    "relayctl queue list --limit 20, s": ("queue", "list", "--limit", "20"),
    "relayctl queue list --domain d7.crowd.example --limit 20, s": (
        *("queue", "list", "--domain", "d7.crowd.example", "--limit", "20"),
    ),
    "relayctl queue list --domain nowhere.example, s": ("queue", "list", "--domain", "nowhere.example"),
}


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    sizes = [size for size in SIZES if size <= options.most]
    figures: Figures = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as place:
        directory = Path(place)
        lines = [f"| {name} | {value} |" for name, value in facts(directory)]
        print("| | |", "|---|---|", *lines, sep="\n", flush=True)
        for size in sizes:
            for name, due_in in (("due", DUE), ("waits", LATER)):
                start = time.perf_counter()
                fill(directory / f"{name}-{size}" / "queue", size, due_in=due_in)
                _told(f"{size} messages written in {time.perf_counter() - start:.0f} s")
        for turn in range(options.rounds):
            # Who comes second finds another disk and another cache than who came first, so they take turns.
            for size in sizes[:: -1 if turn % 2 else 1]:
                _start(directory, size, figures)
                _beside(directory, size, figures)
        for size in sizes:
            _claims(directory / f"due-{size}" / "queue", size, figures)
    print(
        "",
        f"Medians of {options.rounds} rounds, [lowest-highest]. Load at the end: {os.getloadavg()[0]:.1f}.",
        "",
        *_table(sizes, figures),
        sep="\n",
    )
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench backlog", description=__doc__)
    parser.add_argument("--rounds", "-n", type=int, default=3, help="each so many times (3)")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="messages in the longest queue")
    parser.add_argument(
        "--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure (%(default)s)"
    )
    return parser.parse_args(arguments)


def _told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _running(directory: Path, name: str, size: int, sink: SmtpSink) -> Iterator[RelaydServer]:
    """relayd with a queue that was there before, and is not in memory."""
    state = directory / f"{name}-{size}"
    os.sync()
    for file in (state / "queue").glob("*.db*"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    config = RelaydServer.CONFIG.replace('state = "state"', f'state = "{state}"')
    server = RelaydServer((sink.host, sink.port), directory, config=config % (sink.host, sink.port))
    try:
        yield server
    finally:
        server.stop()
        server.discard()


def _start(directory: Path, size: int, figures: Figures) -> None:
    """A start with a queue that is due; its delivery."""
    with SmtpSink(dump=False) as sink:
        start = time.perf_counter()
        with _running(directory, "due", size, sink) as server:
            figures["process start to ready, s", size].append(time.perf_counter() - start)
            figures["memory when ready, MB", size].append(_memory(server))
            if size < DELIVERED:
                return
            wait_for(sink.count, "the first message at the sink", 60, interval=0.002)
            figures["process start to the first delivery, s", size].append(time.perf_counter() - start)
            begin, count = time.perf_counter(), sink.count()
            sink.wait(count + DELIVERED, 120)
            figures["delivered from the queue, messages/s", size].append(DELIVERED / (time.perf_counter() - begin))
            figures["memory while it delivers, MB", size].append(_memory(server))


def _beside(directory: Path, size: int, figures: Figures) -> None:
    """Mail is taken, and questions are asked, beside a queue that waits."""
    with SmtpSink(dump=False) as sink, _running(directory, "waits", size, sink) as server:
        for what, arguments in ASKED.items():
            start = time.perf_counter()
            command = [program("relayctl"), "--config", str(server.directory / "relayd.toml"), *arguments]
            subprocess.run(command, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL, timeout=300)
            figures[what, size].append(time.perf_counter() - start)
        start = time.perf_counter()
        smtp_source(
            *("127.0.0.1", server.port), sessions=SESSIONS, messages=TAKEN, length=4096, reuse=True, timeout=300
        ).require()
        figures["taken, messages/s", size].append(TAKEN / (time.perf_counter() - start))
        sink.wait(TAKEN, 300)
        figures["taken and delivered, messages/s", size].append(TAKEN / (time.perf_counter() - start))
        figures["memory after that, MB", size].append(_memory(server))


def _memory(server: RelaydServer) -> float:
    """Resident, of its own: pages of files that are mapped do not count."""
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    raise RuntimeError("no VmRSS")


def _claims(queue: Path, size: int, figures: Figures) -> None:
    """What it takes to claim a batch, with its commit, by the store's own statement."""
    places = Places(str(queue), 0)
    connection = open_database(places, time.time(), Disk()).connection
    if size >= CLAIMED:
        took = []
        for _ in range(min(CLAIMS, size // CLAIMED)):
            now, start = time.time(), time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            found = claim(connection, CLAIMED, now, now + 60, places.bodies, lambda _: None)
            connection.execute("COMMIT")
            if len(found) == CLAIMED:
                took.append((time.perf_counter() - start) * 1000)
        figures[f"a claim of {CLAIMED}, ms", size] += [statistics.median(took)] if took else []
    if size == SIZES[-1]:
        for title, sql, values in (("claim", DUE_SQL, (0.0, 200)), ("next due", reads.NEXT_DUE_SQL, ())):
            for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values):
                _told(f"plan of {title}: {row[3]}")
    connection.close()


def _table(sizes: Sequence[int], figures: Figures) -> list[str]:
    head = ["messages in the queue", *(f"{size:,}" for size in sizes)]
    lines = [_row(head), _row(["---", *["---:"] * len(sizes)])]
    for what in dict.fromkeys(name for name, _ in figures):
        lines.append(_row([what, *(_spread(figures.get((what, size), [])) for size in sizes)]))
    return lines


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    form = ",.0f" if median(values) >= 20 else ".2f"
    spread = f" [{min(values):{form}}-{max(values):{form}}]" if len(values) > 1 else ""
    return f"{median(values):{form}}{spread}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
