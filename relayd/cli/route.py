"""``relayctl route``: the way that a recipient's mail would take, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import click
from twisted.internet.defer import Deferred, gatherResults

from relayd.cli.context import COLOURS, Context, octets, pass_context, shown
from relayd.cli.parameters import MailAddress
from relayd.cli.resolving import resolved
from relayd.delivery import (
    ClientTls,
    Dane,
    Hop,
    Https,
    NextHops,
    PathFault,
    PolicyFolder,
    Roots,
    Route,
    RouteKind,
    Router,
    Sts,
    Target,
    Timeouts,
    TlsPolicy,
    connect,
    target_of,
)
from relayd.events import Events
from relayd.model import Fault, Path, Rule, Sender
from relayd.policy import Policy
from relayd.policy.lines import Lines
from relayd.resolver import Resolver
from relayd.settings import DomainKind, OutboundTls, Settings
from relayd.threads import BoundedPool

NO, AWAY = 1, 2
#: Seconds for each step of a probe.
PATIENCE: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Way:
    """What was found.

    :ivar hops: with what a probe of each brought, where one was wanted.
    :ivar fault: why there is no way.
    """

    path: Path
    route: Route | None = None
    hops: tuple[tuple[Hop, Target, dict[str, Any] | None], ...] = ()
    fault: Fault | None = None


@click.command(short_help="Says which way a recipient's mail would take.")
@click.argument("address", type=MailAddress())
@click.option("--probe", is_flag=True, help="Connect to each next hop, and show what it offers. No mail is sent.")
@pass_context
def route(context: Context, address: Path, probe: bool) -> int:
    """Says which way mail for ADDRESS would take, hop by hop, and why; from the configuration and DNS.

    Exit code: 0 there is a way, 1 there is none, 2 nobody can tell for now, or no next hop passes --probe.
    """
    if address.null:
        raise click.UsageError("mail is never sent to the null address")
    settings = context.settings
    policy = Policy(settings)
    way = _way(settings, policy, address, probe=probe)
    document = _document(settings, policy, way)
    if context.as_json:
        context.document(document)
    else:
        _show(context, document)
    if way.fault is not None:
        return AWAY if way.fault.temporary else NO
    probes = [result for _, _, result in way.hops if result is not None]
    return AWAY if probes and not any(result["ok"] for result in probes) else 0


# ---- finding it -----------------------------------------------------------------------------------------------------


def _way(settings: Settings, policy: Policy, address: Path, *, probe: bool) -> _Way:
    try:
        path = policy.complete(address)
    except Fault as fault:
        return _Way(address, fault=fault)
    found, path = Router(policy.domains, settings).route(path)
    if found.kind is RouteKind.DROP:
        return _Way(path, found)
    return resolved(settings, lambda resolver, reactor: _hops(settings, _Way(path, found), probe, resolver, reactor))


async def _hops(settings: Settings, way: _Way, probe: bool, resolver: Resolver, reactor: Any) -> _Way:
    route = way.route
    assert route is not None
    delivery = settings.delivery
    policies = _policies(settings, route, resolver, reactor)
    try:
        if policies is not None:
            await policies.open()
        next_hops = NextHops(
            resolver,
            TlsPolicy(policies, Dane(resolver)),
            settings.server.hostname,
            settings.listeners,
            delivery.port,
        )
        hops = await next_hops.of(route)
    except Fault as fault:
        return replace(way, fault=fault)
    finally:
        if policies is not None:
            await policies.close()
    targets = [target_of(route, hop, delivery.source_address) for hop in hops]
    results: Sequence[dict[str, Any] | None] = [None] * len(hops)
    if probe:
        results = await _probed(settings, targets, reactor)
    return replace(way, hops=tuple(zip(hops, targets, results, strict=True)))


def _policies(settings: Settings, route: Route, resolver: Resolver, reactor: Any) -> Sts | None:
    """What MTA-STS says, with the policies that relayd keeps."""
    if OutboundTls.STS not in (route.tls, route.fallback and route.fallback.tls):
        return None
    folder = PolicyFolder(settings.server.state / "sts", read_only=True)  # relayd may run, as another user
    https = Https(reactor, resolver, Roots(settings.delivery.ca))
    return Sts(resolver, https, folder, Events(), reactor)


async def _probed(settings: Settings, targets: Sequence[Target], reactor: Any) -> list[dict[str, Any]]:
    """What each of *targets* offers; all are asked at once."""
    tls = ClientTls.of(settings.delivery)
    threads = BoundedPool("probe", reactor, threads=1, waiting=len(targets))

    async def one(target: Target) -> dict[str, Any]:
        try:
            connection = await connect(
                reactor,
                # TLS as for mail, but nobody signs in.
                replace(target, credential=None, tls=target.level, haste=PATIENCE),
                hostname=settings.server.hostname,
                tls=tls,
                in_thread=threads.run,
                timeouts=Timeouts(PATIENCE, PATIENCE, PATIENCE),
            )
        except PathFault as fault:
            return {"ok": False, "reply": str(fault.reply), "detail": fault.detail}
        offer, agreed = connection.offer, connection.tls
        await connection.quit()
        return {
            "ok": True,
            "tls": agreed,
            "extensions": sorted(offer.extensions),
            "size": offer.size,
            "mechanisms": list(offer.mechanisms),
        }

    try:
        return await gatherResults([Deferred.fromCoroutine(one(target)) for target in targets])
    finally:
        threads.stop()


# ---- telling it -----------------------------------------------------------------------------------------------------


def _document(settings: Settings, policy: Policy, way: _Way) -> dict[str, Any]:
    """What ``--json`` prints: these fields, whatever was found."""
    rules = Lines(settings.lines)
    located = policy.domains.locate(way.path.domain)
    rule = rules.rule(located[1]) if located is not None else Rule("")
    local = located is not None and located[0].kind is DomainKind.LOCAL
    fault = way.fault
    document: dict[str, Any] = {
        "address": str(way.path),
        "kind": "local" if local else "remote",
        "domain": located[0].name if located is not None and local else way.path.domain,
        **_ruled(rule),
        "way": None,
        "tls": None,
        "credential": None,
        "sender": None,
        "connections": 0,
        "rate": "",
        "hops": [],
        "left_out": [],
        "ok": fault is None,
        "code": fault.reply.code if fault is not None else 250,
        "enhanced": fault.reply.enhanced if fault is not None else "2.1.5",
        "text": fault.reply.text if fault is not None else "",
        "detail": fault.detail if fault is not None else "",
    }
    route = way.route
    if route is not None:
        document |= _told(settings, policy, way.path, route, rules)
        document["hops"] = [_hop(hop, target, result) for hop, target, result in way.hops]
        tried = {hop.host for hop, _, _ in way.hops}
        document["left_out"] = [hop.text for hop in route.hops if hop.host and hop.host not in tried]
    return document


def _told(settings: Settings, policy: Policy, path: Path, route: Route, rules: Lines) -> dict[str, Any]:
    """What the configuration says of a route."""
    drop = route.kind is RouteKind.DROP
    name = str(settings.server.state / "drop") if drop else route.key.partition(" (")[0]
    level = Target("", None, tls=route.tls, credential=route.credential).level
    credential = route.credential
    return {
        "way": {"kind": route.kind.value, "name": name, **_ruled(_named(rules, route.reason))},
        "tls": None
        if drop
        else {"level": level.value, "written": route.tls.value, **_ruled(_named(rules, route.tls_reason))},
        "credential": None if credential is None else {"name": credential.name, "kind": credential.kind},
        "sender": _sender(settings, policy, path, route, rules),
        "connections": route.connections,
        "rate": "" if route.rate is None else f"{route.rate.count} in {route.rate.seconds:g} s",
    }


def _sender(settings: Settings, policy: Policy, path: Path, route: Route, rules: Lines) -> dict[str, Any] | None:
    """What becomes of a sender of this site; None: it stays."""
    first = settings.first_local
    sender = Sender(Path("user", first.name if first is not None else settings.server.hostname))
    outbound = Router(policy.domains, settings).outbound(sender, route)
    if outbound is sender:
        return None
    table = policy.domains.find(path.domain)
    key = f"{table.origin}.rewrite_sender" if route.rewrite and table is not None else "delivery.masquerade_domain"
    return {"example": str(sender.path), "becomes": str(outbound.path), **_ruled(rules.rule(key))}


def _named(rules: Lines, key: str) -> Rule:
    return rules.rule(key) if key else Rule("")


def _ruled(rule: Rule) -> dict[str, Any]:
    return {"rule": rule.key, "line": rule.line}


def _hop(hop: Hop, target: Target, probe: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "host": hop.host,
        "address": str(hop.address) if hop.address is not None else "",
        "port": hop.port,
        "socket": hop.socket,
        "preference": hop.preference,
        "tls": target.level.value,
        "why": hop.why,
        "way": hop.via.key.partition(" (")[0] if hop.via is not None else "",
        **({"probe": probe} if probe is not None else {}),
    }


def _show(context: Context, document: dict[str, Any]) -> None:
    rows: list[tuple[str, str, dict[str, Any]]] = [("address", document["address"], {})]
    kind = document["kind"]
    if kind == "local" and document["domain"] != document["address"].rpartition("@")[2].lower():
        kind = f"local, as {document['domain']}"
    rows.append(("domain", kind, document))
    if (way := document["way"]) is not None:
        rows.append(("way", way["name"], way))
    if (tls := document["tls"]) is not None:
        raised = f", raised from {tls['written']} for the credential" if tls["level"] != tls["written"] else ""
        rows.append(("TLS", f"{tls['level']}{raised}", tls))
    if (credential := document["credential"]) is not None:
        rows.append(("credential", f"{credential['name']} ({credential['kind']})", {}))
    if (sender := document["sender"]) is not None:
        rows.append(("sender", f"{sender['example']} becomes {sender['becomes']}", sender))
    if document["connections"] and document["hops"]:
        rows.append(("connections", f"{document['connections']} at most", {}))
    if document["rate"]:
        rows.append(("rate", document["rate"], {}))
    context.table(
        ("", "", "RULE", "LINE"), [(what, value, by.get("rule", ""), by.get("line") or "") for what, value, by in rows]
    )
    if document["hops"]:
        context.console.print()
        _show_hops(context, document["hops"])
    if document["hops"] and document["left_out"]:
        left_out = ", ".join(document["left_out"])
        context.console.print(shown(f"Left out: {left_out}: without an address, or this relay itself."), markup=False)
    context.console.print()
    if document["ok"]:
        probes = [hop["probe"] for hop in document["hops"] if "probe" in hop]
        passes = not probes or any(probe["ok"] for probe in probes)
        text, colour = ("there is a way", "accept") if passes else ("there is a way, and no next hop passes", "defer")
        context.console.print(text, style=f"bold {COLOURS[colour]}", markup=False)
        return
    temporary = document["code"] < 500
    what = "nobody can tell for now" if temporary else "there is no way"
    reply = f"{document['code']} {document['enhanced']} {document['text']}"
    detail = f" ({document['detail']})" if document["detail"] else ""
    colour = COLOURS["defer" if temporary else "refuse"]
    context.console.print(shown(f"{what}: {reply}{detail}"), style=f"bold {colour}", markup=False)


def _show_hops(context: Context, hops: Sequence[dict[str, Any]]) -> None:
    probed = any("probe" in hop for hop in hops)
    with_mx = any(hop["preference"] is not None for hop in hops)
    columns = ["TRIED", *(["MX"] if with_mx else []), "TLS", "WHY", *(["PROBE"] if probed else [])]
    rows = []
    for hop in hops:
        where = hop["socket"] or f"{hop['host']}[{hop['address']}]:{hop['port']}"
        why = "; ".join(part for part in (hop["why"], f"then: {hop['way']}" if hop["way"] else "") if part)
        preference = [hop["preference"] if hop["preference"] is not None else ""] if with_mx else []
        rows.append([where, *preference, hop["tls"], why, *([_probe_text(hop["probe"])] if probed else [])])
    context.table(columns, rows)
    if len({(hop["preference"], hop["host"]) for hop in hops}) > len({hop["preference"] for hop in hops}) and with_mx:
        context.console.print("Hosts of equal preference are tried in random order.", markup=False)


def _probe_text(probe: dict[str, Any]) -> str:
    if not probe["ok"]:
        return f"{probe['reply']}"
    size = [f"{octets(probe['size'])} at most"] if probe["size"] else []
    signs_in = [f"AUTH {' '.join(probe['mechanisms'])}"] if probe["mechanisms"] else []
    offers = [name for name in probe["extensions"] if name not in ("AUTH", "SIZE")]
    return "; ".join([probe["tls"] or "no TLS", *size, *signs_in, " ".join(offers)])
