"""``relayctl directory``: does the directory answer?"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import click

from relayd.cli.asking import asked
from relayd.cli.context import Context, pass_context
from relayd.directory import Directory, Domain, Probe, Unavailable

NO, AWAY = 1, 2


@click.group()
def directory() -> None:
    """The directory."""


@directory.command()
@pass_context
def test(context: Context) -> int:
    """Tries each controller: can it be reached, does its certificate hold and until when, does the account that
    searches sign in, and how long does it all take.

    Exit code: 0 all do, 1 some do, 2 none does.
    """
    searcher, probes, domain = asked(context, _try_all)
    if context.as_json:
        context.documents(map(_document, probes))
    else:
        _show(context, searcher, probes, domain)
    if all(probe.fault for probe in probes):
        return AWAY
    return NO if any(probe.fault for probe in probes) else 0


async def _try_all(directory: Directory) -> tuple[str, tuple[Probe, ...], Domain | None]:
    probes = await directory.probe()
    domain = None
    if not all(probe.fault for probe in probes):
        with suppress(Unavailable):  # it answered just now; the probes tell more
            domain = await directory.domain()
    return directory.searcher, probes, domain


def _document(probe: Probe) -> dict[str, Any]:
    return {
        "controller": probe.controller,
        "ok": not probe.fault,
        "address": probe.address,
        "certificate_expires": _moment(probe.expires),
        "connect": round(probe.connect, 4),
        "bind": round(probe.bind, 4),
        "search": round(probe.search, 4),
        "fault": probe.fault,
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else ""


def _show(context: Context, searcher: str, probes: tuple[Probe, ...], domain: Domain | None) -> None:
    if domain is not None:
        called = f" ({domain.netbios})" if domain.netbios else ""
        where = f"below {domain.base}" if domain.base else "in all of the forest"
        context.console.print(f"domain {domain.dns}{called}, searched {where} by {searcher}", markup=False)
        context.console.print()
    columns = ("CONTROLLER", "ADDRESS", "CERTIFICATE", "CONNECT", "BIND", "SEARCH", "")
    context.table(
        columns,
        [
            (
                probe.controller,
                probe.address or "-",
                _validity(probe.expires),
                *map(_milliseconds, (probe.connect, probe.bind, probe.search)),
                probe.fault or "works",
            )
            for probe in probes
        ],
    )


def _validity(expires: float) -> str:
    if not expires:
        return "-"
    days = (expires - time.time()) / 86400
    return f"until {_moment(expires)[:10]} ({days:.0f} days)"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds else "-"
