"""``make bench BENCH_ARGS=crowd``: 1,000 destinations, of which each tenth hangs; how long the others wait.

Mail for all of them comes in mixed, as fast as it is taken. What is told is when the good part of it was at its next
hop, beside the same load without anybody who hangs, and beside Postfix. It takes root.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.far_side import NAME_SERVER, WELL, FarSide, domain, is_ill
from tests.bench.machine import cpu_seconds, facts
from tests.bench.servers import PostfixServer, RelaydServer, Server
from tests.bench.submission import submit
from tests.lab.clients import Place
from tests.lab.postfix import SmtpSink

__all__ = ["main"]

LENGTH = 4096
#: What every tenth destination is, and how the tables call it.
ILLS = {
    "none": "all are well",
    "hanging": "10 % take connections and say nothing",
    "mute": "10 % have name servers that do not answer",
}
#: Connections that smtp-sink takes at once; more would wait as at a host that hangs.
SESSIONS = 4000

CONFIG = f"""\
[server]
hostname = "relay.example"
state = "state"

[dns]
servers = ["{NAME_SERVER}"]

[[listener]]
name = "smtp"
address = "127.0.0.1"
port = 0
tls = "none"

[relay]
list = ["127.0.0.1"]

[delivery]
port = %d

[limits]
session_size = "100G"

[log]
format = "json"
file = "log"
"""


def _relayd(port: int, directory: Path) -> Server:
    return RelaydServer((WELL, port), directory, config=CONFIG % port)


def _postfix(settings: Mapping[str, str]) -> Callable[[int, Path], Server]:
    def start(port: int, directory: Path) -> Server:
        resolv_conf = directory / "resolv.conf"
        resolv_conf.write_text(f"nameserver {NAME_SERVER}\n")
        # Postfix knows the system's resolver alone: it gets a mount namespace with another one.
        script = f'mount --bind {resolv_conf} /etc/resolv.conf && exec "$@"'
        return PostfixServer(
            (WELL, port),
            directory,
            settings={"relayhost": "", "smtp_dns_support_level": "enabled", "smtp_tcp_port": str(port), **settings},
            place=Place(("unshare", "-m", "sh", "-c", script, "sh")),
        )

    return start


SERVERS: Mapping[str, Callable[[int, Path], Server]] = {
    "relayd": _relayd,
    "Postfix": _postfix({}),
    # So many processes that those which wait for silent hosts leave some for the others; the queue manager's own
    # limits are far above this load.
    "Postfix, 1000 processes": _postfix({"default_process_limit": "1000"}),
}


@dataclass(frozen=True, slots=True)
class Result:
    """One run. Times are in seconds from the first connection; infinite where it did not come to that.

    :ivar accepted: until the last message was taken; *half*, *most* (99 %) and *all* of the good ones delivered.
    :ivar delivered: how much of the good mail, when the run ended.
    :ivar cpu: milliseconds of processor time for each message taken.
    """

    accepted: float
    half: float
    most: float
    all: float
    delivered: float
    cpu: float


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    if os.geteuid() != 0:
        print("Postfix, and port 53 of the name server, take root", file=sys.stderr)
        return 1
    servers = options.server or list(SERVERS)
    ills = options.ill or list(ILLS)
    results: dict[tuple[str, str], list[Result]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as place:
        directory = Path(place)
        directory.chmod(0o755)  # Postfix's own user has to get through
        lines = [f"| {name} | {value} |" for name, value in facts(directory)]
        print("| | |", "|---|---|", *lines, sep="\n", flush=True)
        for turn in range(options.rounds):
            for ill in ills:
                for name in [*servers[turn % len(servers) :], *servers[: turn % len(servers)]]:
                    time.sleep(options.settle)
                    result = _measure(name, ill, options, directory)
                    results[ill, name].append(result)
                    told = f"round {turn + 1}: {ill}: {name}: {result}, load {os.getloadavg()[0]:.1f}"
                    print(told, file=sys.stderr, flush=True)
    print(
        "",
        f"{options.domains} destinations, {options.messages} messages of 4 KiB to each. Medians of {options.rounds} "
        f"rounds, [lowest-highest]. Load at the end: {os.getloadavg()[0]:.1f}.",
        "",
        *_table(ills, servers, results, options.limit),
        sep="\n",
    )
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench crowd", description=__doc__)
    parser.add_argument("--rounds", "-n", type=int, default=3, help="each so many times (3)")
    parser.add_argument("--domains", type=int, default=1000, help="destinations (1000)")
    parser.add_argument("--messages", type=int, default=5, help="to each destination (5)")
    parser.add_argument("--ill", action="append", choices=list(ILLS), help="what is wrong with every tenth")
    parser.add_argument("--server", action="append", choices=list(SERVERS), help="this server alone")
    parser.add_argument("--limit", type=float, default=120.0, metavar="S", help="a run's longest time (120)")
    parser.add_argument("--settle", type=float, default=2.0, metavar="S", help="seconds of rest before each (2)")
    parser.add_argument(
        "--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure (%(default)s)"
    )
    return parser.parse_args(arguments)


def _measure(name: str, ill: str, options: argparse.Namespace, directory: Path) -> Result:
    sink = SmtpSink("-m", str(SESSIONS), dump=False, host=WELL)
    with sink, FarSide(options.domains, ill, sink.port):
        server = SERVERS[name](sink.port, directory)
        try:
            return _run(server, sink, ill, options)
        finally:
            server.stop()
            server.discard()


def _run(server: Server, sink: SmtpSink, ill: str, options: argparse.Namespace) -> Result:
    messages = options.domains * options.messages
    good = sum(ill == "none" or not is_ill(number) for number in range(options.domains)) * options.messages
    os.sync()  # what others left in the page cache is not this server's to write
    before = cpu_seconds(server.pids())
    start = time.perf_counter()
    accepted: list[float] = []

    def load() -> None:
        submit(server.port, lambda number: f"bob@{domain(number % options.domains)}", messages, LENGTH)
        accepted.append(time.perf_counter() - start)

    client = threading.Thread(target=load)
    client.start()
    marks = dict.fromkeys((good // 2, good * 99 // 100, good), float("inf"))
    count = 0
    while count < good and (passed := time.perf_counter() - start) < options.limit:
        count = sink.count()
        for mark, at in marks.items():
            if count >= mark and at == float("inf"):
                marks[mark] = passed
        time.sleep(0.02)
    client.join()
    used = cpu_seconds(server.pids()) - before
    half, most, last = marks.values()
    return Result(accepted[0] if accepted else float("inf"), half, most, last, count / good, used / messages * 1000)


def _table(
    ills: Sequence[str],
    servers: Sequence[str],
    results: Mapping[tuple[str, str], Sequence[Result]],
    limit: float,
) -> list[str]:
    head = ["s until the good mail is delivered", "server", "taken", "half", "99 %", "all", "processor, ms a message"]
    lines = [_row(head), _row(["---", "---", *["---:"] * (len(head) - 2)])]
    for ill in ills:
        for name in servers:
            found = results[ill, name]
            cells = [_spread([getattr(r, what) for r in found]) for what in ("accepted", "half", "most", "all")]
            if any(r.delivered < 1 for r in found):
                cells[-1] = f"{min(r.delivered for r in found):.0%} after {limit:.0f} s"
            lines.append(_row([ILLS[ill], name, *cells, f"{median(r.cpu for r in found):.2f}"]))
    return lines


def _spread(values: Sequence[float]) -> str:
    if max(values) == float("inf"):
        return "-"
    return f"{median(values):.1f} [{min(values):.1f}-{max(values):.1f}]"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
