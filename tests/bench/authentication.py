"""``make bench BENCH_ARGS=authentication``: authentications a second, and what each costs relayd, its clients and the
domain's controller. It prints the tables of docs/performance.md, and takes root.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.machine import cpu_seconds, descendants, facts
from tests.lab import packages

if TYPE_CHECKING:
    from tests.bench.acceptors import Domain, Dovecot, RelaydAcceptor
    from tests.bench.initiators import Dialog

__all__ = ["main"]

Makes = Callable[[int, int], "Dialog"]

#: Debian's packages of what relayd is compared with, beside those of the tests.
DOVECOT = ("dovecot-core", "dovecot-gssapi", "dovecot-ldap")
SERVERS = ("relayd", "Postfix")
#: Local accounts that one load may use.
FRESH = 100


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to sign in.

    :ivar kind: of `tests.bench.acceptors.RelaydAcceptor`.
    :ivar dialog: the dialogs of the n-th load on one server.
    :ivar counts: dialogs in all, by sessions at a time; *postfix* the same for Postfix, where it can do it.
    """

    name: str
    kind: str
    dialog: Callable[[Domain, int], Makes]
    counts: Mapping[int, int]
    postfix: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """One load.

    :ivar rate: dialogs a second.
    :ivar server: milliseconds of processor time a dialog, of all the server's processes; *controller* of the domain
        controller's, *client* of the clients'.
    :ivar asked: what relayd asked for each dialog, by the names in `relayctl status`; Postfix does not count.
    """

    rate: float
    server: float
    controller: float
    client: float
    asked: Mapping[str, float]


Results = dict[tuple[str, str, int], list[Result]]


def _scenarios() -> tuple[Scenario, ...]:
    from tests.bench import initiators as by
    from tests.bench.initiators import Dialog

    many, some, few = {1: 200, 20: 1000}, {1: 100, 20: 400}, {1: 20, 20: 80}
    return (
        Scenario("no AUTH", "cached", lambda d, _: lambda s, n: Dialog(), many, many),
        Scenario(
            "PLAIN, nothing kept (cache = 0s)",
            "cold",
            lambda d, _: lambda s, n: by.plain(d.people[s].name, d.people[s].password),
            some,
            some,
        ),
        Scenario(
            "PLAIN",
            "cached",
            lambda d, _: lambda s, n: by.plain(d.people[s].name, d.people[s].password),
            many,
            many,
        ),
        Scenario(
            "GSSAPI, Kerberos",
            "cached",
            lambda d, _: lambda s, n: by.gssapi_kerberos(d.people[s].tickets),
            many,
            many,
        ),
        Scenario(
            "GSSAPI, SPNEGO",
            "cached",
            lambda d, _: lambda s, n: by.gssapi_spnego(d.people[s].tickets),
            many,
            many,
        ),
        Scenario("GSS-SPNEGO", "cached", lambda d, _: lambda s, n: by.gss_spnego(d.people[s].tickets), many),
        Scenario("NTLM, netlogon", "cached", lambda d, _: lambda s, n: _ntlm(d, s), some),
        # Dovecot has one ntlm_auth, which mixes up what several clients say at the same time.
        Scenario("NTLM, winbind", "winbind", lambda d, _: lambda s, n: _ntlm(d, s), some, {1: 20}),
        Scenario(
            "PLAIN, local account, argon2",
            "local",
            lambda d, turn: lambda s, n: by.plain(d.local(turn * FRESH + 4 * s + n), d.password),
            few,
            few,
        ),
        Scenario(
            "PLAIN, local account, kept",
            "local",
            lambda d, _: lambda s, n: by.plain(d.local(s), d.password),
            many,
            few,
        ),
        Scenario("NTLM, local account", "local", lambda d, _: lambda s, n: by.ntlm(d.local(s), d.people[0].nt), some),
        Scenario("TLS with a certificate, no AUTH", "cached", lambda d, _: lambda s, n: _external(d, s, False), some),
        Scenario("EXTERNAL", "cached", lambda d, _: lambda s, n: _external(d, s, True), some),
    )


def _ntlm(domain: Domain, session: int) -> Dialog:
    from tests.bench.initiators import ntlm

    person = domain.people[session]
    return ntlm(f"{domain.lab.netbios}\\{person.name}", person.nt)


def _external(domain: Domain, session: int, sign_in: bool) -> Dialog:
    from tests.bench.initiators import external

    leaf = domain.people[session].leaf
    return external(domain.lab.ca, leaf.chain, leaf.key, sign_in=sign_in)


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    if os.geteuid() != 0:
        print("a domain controller takes root", file=sys.stderr)
        return 1
    packages.ensure((*packages.DEBIAN, *packages.DIRECTORY, *DOVECOT))
    packages.ensure_extras()
    from tests.bench.acceptors import Domain

    chosen = [scenario for scenario in _scenarios() if options.only in scenario.name]
    servers = [name for name in SERVERS if name in (options.server or SERVERS)]
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        directory = Path(place)
        directory.chmod(0o755)  # Postfix's and Dovecot's own users have to get through
        lines = [f"| {name} | {value} |" for name, value in facts(directory) if "fsync" not in name]
        print("| | |", "|---|---|", *lines, sep="\n", flush=True)
        with Domain(directory) as domain:
            os.environ["KRB5_CONFIG"] = str(domain.lab.krb5_conf)
            results = _measure_all(domain, chosen, servers, options)
    load = f"Load at the end: {os.getloadavg()[0]:.1f}."
    print("", f"Medians of {options.rounds} rounds, [lowest-highest]. {load}", "", sep="\n")
    print(*_tables(chosen, servers, results), sep="\n")
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench authentication", description=__doc__)
    parser.add_argument("--rounds", "-n", type=int, default=3, help="each scenario so many times (3)")
    parser.add_argument("--only", default="", metavar="TEXT", help="scenarios whose name has TEXT in it")
    parser.add_argument("--server", action="append", choices=SERVERS, help="this server alone")
    parser.add_argument("--settle", type=float, default=1.0, metavar="S", help="seconds of rest before each (1)")
    return parser.parse_args(arguments)


def _measure_all(
    domain: Domain, scenarios: Sequence[Scenario], servers: Sequence[str], options: argparse.Namespace
) -> Results:
    results: Results = defaultdict(list)
    for turn in range(options.rounds):
        for kind in dict.fromkeys(scenario.kind for scenario in scenarios):
            of_kind = [scenario for scenario in scenarios if scenario.kind == kind]
            for name in servers[:: -1 if turn % 2 else 1]:
                if name != "relayd" and not any(scenario.postfix for scenario in of_kind):
                    continue
                with _running(domain, name, kind) as server:
                    loads = count()
                    for scenario in of_kind:
                        for sessions, dialogs in (scenario.counts if name == "relayd" else scenario.postfix).items():
                            time.sleep(options.settle)
                            result = _measure(domain, server, scenario, sessions, dialogs, loads)
                            results[scenario.name, name, sessions].append(result)
                            told = f"round {turn + 1}: {scenario.name}: {name}, {sessions}: {result.rate:.0f}/s"
                            print(told, file=sys.stderr, flush=True)
    return results


@contextmanager
def _running(domain: Domain, name: str, kind: str) -> Iterator[RelaydAcceptor | Dovecot]:
    from tests.bench.acceptors import Dovecot, RelaydAcceptor

    server = RelaydAcceptor(domain, kind) if name == "relayd" else Dovecot(domain, kind)
    try:
        yield server
    except RuntimeError as error:
        raise RuntimeError("\n".join([str(error), *server.complaints()[-10:]])) from None
    finally:
        server.stop()
        server.discard()


def _measure(
    domain: Domain,
    server: RelaydAcceptor | Dovecot,
    scenario: Scenario,
    sessions: int,
    dialogs: int,
    loads: Iterator[int],
) -> Result:
    from tests.bench.acceptors import RelaydAcceptor
    from tests.bench.initiators import load

    # Connections are opened, libraries loaded, tickets fetched, and what is kept is kept.
    load(server.port, sessions, sessions, scenario.dialog(domain, next(loads)))

    def used() -> tuple[float, float]:
        return cpu_seconds(server.pids()), cpu_seconds(descendants(domain.lab.controller.pid))

    def totals() -> dict[str, int]:
        return server.totals() if isinstance(server, RelaydAcceptor) else {}

    asked, before = totals(), used()
    done = load(server.port, sessions, dialogs, scenario.dialog(domain, next(loads)))
    after, asked_then = used(), totals()
    return Result(
        rate=done.rate,
        server=(after[0] - before[0]) / dialogs * 1000,
        controller=(after[1] - before[1]) / dialogs * 1000,
        client=done.client / dialogs * 1000,
        asked={name: (asked_then[name] - asked[name]) / dialogs for name in asked},
    )


def _tables(scenarios: Sequence[Scenario], servers: Sequence[str], results: Results) -> list[str]:
    return [*_rates(scenarios, servers, results), "", *_costs(scenarios, results)]


def _rates(scenarios: Sequence[Scenario], servers: Sequence[str], results: Results) -> list[str]:
    ratio = len(servers) == 2
    head, lines = ["authentications/s"], []
    for sessions in (1, 20):
        head += [f"{name}, {sessions}" for name in servers] + (["ratio"] if ratio else [])
    for scenario in scenarios:
        cells = [scenario.name]
        for sessions in (1, 20):
            rates = [[r.rate for r in results.get((scenario.name, name, sessions), [])] for name in servers]
            cells += [_spread(values, ".0f") for values in rates]
            if ratio:
                cells.append(f"{median(rates[0]) / median(rates[1]):.2f}" if all(rates) else "")
        lines.append(_row(cells))
    return [_row(head), _row(["---", *["---:"] * (len(head) - 1)]), *lines]


#: What `relayctl status` counts, as the columns are called.
_ASKED = {"binds": "directory_binds", "searches": "directory_searches", "logons": "netlogon_logons"}


def _costs(scenarios: Sequence[Scenario], results: Results) -> list[str]:
    head = ["one of 20 at a time", "relayd, ms", "Postfix, ms", "controller, ms", "client, ms", *_ASKED]
    lines = []
    for scenario in scenarios:
        ours = results.get((scenario.name, "relayd", 20), [])
        theirs = results.get((scenario.name, "Postfix", 20), [])
        cells = [scenario.name, _spread([r.server for r in ours], ".2f"), _spread([r.server for r in theirs], ".2f")]
        cells += [_middle([r.controller for r in ours]), _middle([r.client for r in ours])]
        cells += [_middle([r.asked[name] for r in ours]) for name in _ASKED.values()]
        lines.append(_row(cells))
    return [_row(head), _row(["---", *["---:"] * (len(head) - 1)]), *lines]


def _spread(values: Sequence[float], form: str) -> str:
    return f"{median(values):{form}} [{min(values):{form}}-{max(values):{form}}]" if values else ""


def _middle(values: Sequence[float]) -> str:
    return f"{median(values):.2f}" if values else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
