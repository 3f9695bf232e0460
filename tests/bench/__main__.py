"""``make bench``: measures, and prints the tables of docs/performance.md. A word in front measures something else:
``authentication``, ``crowd`` (many destinations, of which some hang), ``backlog`` (a long queue): see these modules.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from tests.bench import authentication, backlog, crowd
from tests.bench.machine import facts
from tests.bench.scenarios import SCENARIOS, Result, Scenario, measure
from tests.bench.servers import SERVERS, Server
from tests.lab.postfix import SmtpSink

Results = dict[tuple[str, str], list[Result]]

OTHERS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "authentication": authentication.main,
    "backlog": backlog.main,
    "crowd": crowd.main,
}


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in OTHERS:
        return OTHERS[arguments[0]](arguments[1:])
    options = _options(arguments)
    chosen = [scenario for scenario in SCENARIOS if options.only in scenario.name]
    servers = [name for name in SERVERS if name in (options.server or SERVERS)]
    if not chosen or not servers:
        print("no such scenario or server", file=sys.stderr)
        return 1
    if "Postfix" not in SERVERS:
        print("Postfix needs root, so it is left out, and there are no ratios", file=sys.stderr)
    options.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as place:
        directory = Path(place)
        directory.chmod(0o755)  # Postfix's own user has to get through
        lines = [f"| {name} | {value} |" for name, value in facts(directory)]
        print("| | |", "|---|---|", *lines, sep="\n", flush=True)
        results = _measure_all(chosen, servers, options.rounds, options.settle, directory)
    print()
    print(f"Medians of {options.rounds} rounds, [lowest-highest].", "", *_tables(chosen, servers, results), sep="\n")
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", "-n", type=int, default=3, help="each scenario so many times (3)")
    parser.add_argument("--only", default="", metavar="TEXT", help="scenarios whose name has TEXT in it")
    parser.add_argument("--server", action="append", choices=list(SERVERS), help="this server alone")
    parser.add_argument("--settle", type=float, default=2.0, metavar="S", help="seconds of rest before each (2)")
    parser.add_argument(
        "--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure (%(default)s)"
    )
    return parser.parse_args(arguments)


def _measure_all(
    scenarios: Sequence[Scenario], servers: Sequence[str], rounds: int, settle: float, directory: Path
) -> Results:
    results: Results = defaultdict(list)
    finished: list[Server] = []
    for turn in range(rounds):
        # Who comes second finds another disk and another cache than who came first, so they take turns.
        order = [*servers[turn % len(servers) :], *servers[: turn % len(servers)]]
        for scenario in scenarios:
            for name in order:
                time.sleep(settle)
                result, server = _measure_one(scenario, name, directory)
                finished.append(server)
                results[scenario.name, name].append(result)
                print(f"round {turn + 1}: {scenario.name}: {name}: {result}", file=sys.stderr, flush=True)
    for server in finished:
        server.discard()
    return results


def _measure_one(scenario: Scenario, name: str, directory: Path) -> tuple[Result, Server]:
    with SmtpSink(dump=False) as sink:
        server: Server = SERVERS[name]((sink.host, sink.port), directory)
        try:
            return measure(scenario, server, sink), server
        finally:
            server.stop()


Figure = Callable[[Result], float]


def _tables(scenarios: Sequence[Scenario], servers: Sequence[str], results: Results) -> list[str]:
    small = [scenario for scenario in scenarios if not scenario.latency and scenario.length < 2**20]
    large = [scenario for scenario in scenarios if not scenario.latency and scenario.length >= 2**20]
    timed = [scenario for scenario in scenarios if scenario.latency]
    lines: list[str] = []

    def table(title: str, rows: Sequence[Scenario], figure: Callable[[Scenario], Figure], form: str) -> None:
        if not rows:
            return
        ratio = len(servers) == 2
        head = [title, *servers, *(["ratio"] if ratio else [])]
        lines.extend((_row(head), _row(["---", *["---:"] * (len(head) - 1)])))
        for scenario in rows:
            values = [[figure(scenario)(result) for result in results[scenario.name, name]] for name in servers]
            cells = [f"{median(v):{form}} [{min(v):{form}}-{max(v):{form}}]" for v in values]
            if ratio:
                cells.append(f"{median(values[0]) / median(values[1]):.2f}")
            lines.append(_row([scenario.name, *cells]))
        lines.append("")

    def megabytes(of: Figure) -> Callable[[Scenario], Figure]:
        return lambda scenario: lambda result: of(result) * scenario.length / 1e6

    table("accepted, messages/s", small, lambda _: lambda result: result.accepted, ",.0f")
    table("end to end, messages/s", small, lambda _: lambda result: result.end_to_end, ",.0f")
    table("accepted, MB/s", [*small, *large], megabytes(lambda result: result.accepted), ".1f")
    table("end to end, MB/s", [*small, *large], megabytes(lambda result: result.end_to_end), ".1f")
    table("processor, ms a message", [*small, *large], lambda _: lambda result: result.cpu, ".2f")
    table("MAIL to 250, median ms", timed, lambda _: lambda result: result.p50, ".2f")
    table("MAIL to 250, 99th percentile ms", timed, lambda _: lambda result: result.p99, ".2f")
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
