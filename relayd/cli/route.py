"""``relayctl route``: the way that a recipient's mail would take, and why."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import click
from twisted.internet.defer import Deferred, gatherResults

from relayd.cli.context import COLOURS, Context, octets, pass_context, shown
from relayd.cli.parameters import MailAddress
from relayd.cli.resolving import resolved
from relayd.cli.way_document import Document, document
from relayd.delivery import ClientTls, RouteKind, Router
from relayd.delivery.probe import Probe, probe
from relayd.delivery.way import Way, chosen, found
from relayd.model import Path, Recipient
from relayd.policy import Policy
from relayd.resolver import Resolver
from relayd.settings import Settings
from relayd.threads import BoundedPool

NO, AWAY = 1, 2
#: Seconds for the probe of one hop; all are asked at once.
PATIENCE: Final = 15.0


@click.command(short_help="Says which way a recipient's mail would take.")
@click.argument("address", type=MailAddress())
@click.option("--probe", "probing", is_flag=True, help="Connect to each next hop, and show what it offers.")
@pass_context
def route(context: Context, address: Path, probing: bool) -> int:
    """Says which way mail for ADDRESS would take, hop by hop, and why; from the configuration and DNS. No relayd need
    run.

    With --probe each next hop is greeted as delivery would do it, TLS included. No mail is sent, and no credential is
    shown.

    Exit code: 0 there is a way, 1 there is none, 2 nobody can tell for now, or no next hop passes --probe.
    """
    if address.null:
        raise click.UsageError("mail is never sent to the null address")
    settings = context.settings
    policy = Policy(settings)
    router = Router(policy.domains, settings)
    way = chosen(policy, router, address)
    probes: tuple[Probe, ...] = ()
    if way.route is not None and way.route.kind is not RouteKind.DROP:
        way, probes = resolved(settings, partial(_asked, settings, way, probing))
    made = document(settings, policy.domains, router, way, probes)
    if context.as_json:
        context.document(made)
    else:
        _show(context, made)
    if not made["ok"]:
        return AWAY if made["code"] < 500 else NO
    return 0 if _passes(made) else AWAY


async def _asked(
    settings: Settings, way: Way, probing: bool, resolver: Resolver, reactor: Any
) -> tuple[Way, tuple[Probe, ...]]:
    way = await found(settings, way, resolver, reactor)
    if not (probing and way.hops):
        return way, ()
    tls = ClientTls.of(settings.delivery)
    threads = BoundedPool("probe", reactor, threads=1, waiting=len(way.hops))
    probes = [
        probe(
            reactor,
            target,
            Recipient(way.path),
            hostname=settings.server.hostname,
            tls=tls,
            in_thread=threads.run,
            seconds=PATIENCE,
        )
        for _, target in way.hops
    ]
    try:
        return way, tuple(await gatherResults([Deferred.fromCoroutine(one) for one in probes]))
    finally:
        threads.stop()


def _passes(made: Document) -> bool:
    """Whether a next hop can be sent to, as far as anybody has asked."""
    probes = [hop["probe"] for hop in made["hops"] if "probe" in hop]
    return not probes or any(probe["ok"] for probe in probes)


# ---- for people -----------------------------------------------------------------------------------------------------


def _show(context: Context, made: Document) -> None:
    columns = ("", "", "RULE", "LINE")
    rows = [(what, value, by.get("rule", ""), by.get("line") or "") for what, value, by in _settled(made)]
    context.table(columns, rows)
    if made["hops"]:
        context.console.print()
        rows_of_hops = [(hop, _where(hop), hop["tls"], _why(hop, hop["reason"], hop["why"])) for hop in made["hops"]]
        _show_hosts(context, ("TRIED", "TLS", "WHY"), rows_of_hops)
    if made["cut"]:
        context.console.print()
        cut = zip(made["left_out"], made["cut"], strict=True)
        _show_hosts(context, ("NOT TRIED", "WHY"), [(one, where, _why(one, one["why"])) for where, one in cut])
    if any("probe" in hop for hop in made["hops"]):
        context.console.print()
        context.table(("PROBE", "", ""), [row for hop in made["hops"] for row in _probe_rows(hop)])
    context.console.print()
    for note in made["notes"]:
        context.console.print(shown(f"note: {note}"), markup=False)
    if made["ok"]:
        text, colour = ("there is a way", "accept")
        if not _passes(made):
            text, colour = ("there is a way, and no next hop passes", "defer")
    else:
        temporary = made["code"] < 500
        what, colour = ("nobody can tell for now", "defer") if temporary else ("there is no way", "refuse")
        detail = f" ({made['detail']})" if made["detail"] else ""
        text = f"{what}: {made['code']} {made['enhanced']} {made['text']}{detail}"
    context.console.print(shown(text), style=f"bold {COLOURS[colour]}", markup=False)


def _settled(made: Document) -> list[tuple[str, str, Document]]:
    """What is settled before a hop is looked at, with the rules."""
    address, given = made["address"], made["given"]
    rows: list[tuple[str, str, Document]] = [
        ("address", address if address == given else f"{address}, for {given}", {})
    ]
    if kind := made["kind"]:
        domain = made["domain"]
        if kind == "local" and domain != address.rpartition("@")[2].lower():
            kind = f"local, as {domain}"
        elif not made["rule"]:
            kind = f"{kind}, not listed"
        rows.append(("domain", kind, made))
    if (way := made["way"]) is not None:
        rows.append(("way", way["name"], way))
    rows.extend(_spoken(made))
    if (sender := made["sender"]) is not None:
        rows.append(("sender", f"{sender['example']} becomes {sender['becomes']}", sender))
    if made["connections"]:
        rows.append(("connections", f"{made['connections']} at most", made["connections_by"]))
    if made["rate"]:
        rows.append(("rate", made["rate"], made["rate_by"]))
    if (fallback := made["fallback"]) is not None:
        rows.append(("then", fallback["name"], {}))
        rows.extend((f"  {what}", value, by) for what, value, by in _spoken(fallback))
    return rows


def _spoken(made: Document) -> list[tuple[str, str, Document]]:
    rows = []
    if (tls := made["tls"]) is not None:
        raised = f", raised from {tls['written']} for the credential" if tls["level"] != tls["written"] else ""
        rows.append(("TLS", f"{tls['level']}{raised}", tls))
    if (credential := made["credential"]) is not None:
        rows.append(("credential", f"{credential['name']} ({credential['kind']})", credential))
    return rows


def _show_hosts(context: Context, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    """A table of hosts, each row with its document in front; preferences are the second column where there are any."""
    if not any(one["preference"] is not None for one, *_ in rows):
        context.table(columns, [row for _, *row in rows])
        return
    first, *others = columns
    preferences = ["" if one["preference"] is None else one["preference"] for one, *_ in rows]
    with_them = [(where, mx, *cells) for mx, (_, where, *cells) in zip(preferences, rows, strict=True)]
    context.table((first, "MX", *others), with_them)


def _why(one: Document, *why: str) -> str:
    return "; ".join(part for part in (*why, "when the others fail" if one["way"] else "") if part)


def _where(hop: Document) -> str:
    return hop["socket"] or f"{hop['host']}[{hop['address']}]:{hop['port']}"


def _probe_rows(hop: Document) -> list[tuple[str, str, str]]:
    found = hop["probe"]
    agreed = found["tls"]
    if agreed and found["distrust"]:
        agreed += f", not verified: {found['distrust']}"
    elif found["ok"] and not agreed:
        agreed = f"none: {found['broken']}" if found["broken"] else "none"
    rows = [
        ("greeting", found["greeting"]),
        ("STARTTLS", ("offered" if found["starttls"] else "not offered") if found["greeting"] else ""),
        ("TLS", agreed),
        ("offers", " ".join(name for name in found["extensions"] if name not in ("AUTH", "SIZE", "STARTTLS"))),
        ("SIZE", octets(found["size"]) if found["size"] else ""),
        ("AUTH", " ".join(found["mechanisms"])),
        ("recipient", found["refused"]),
    ]
    return [
        (_where(hop), "passes" if found["ok"] else "fails", found["reply"]),
        *(("", what, value) for what, value in rows if value),
    ]
