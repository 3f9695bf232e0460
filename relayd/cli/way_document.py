"""The way of a recipient's mail as one JSON document: what ``relayctl route --json`` prints.

Its fields are there whatever was found; each *rule* is the key that decides, with its *line* (0: a default).

- ``address``, and ``given`` as it was asked about; ``kind``: ``local``, ``remote``, or nothing: it is refused;
  ``domain``, with the rule that names it (none: it is not listed).
- ``way``: its ``kind`` (``drop``, ``lmtp``, ``hops``, ``mx``) and ``name``: the folder, or the hops. ``fallback``: the
  way for mail whose own hosts fail.
- ``tls``: the ``level`` that connections must have, as it is ``written``; ``credential``: its ``name`` and ``kind``;
  ``sender``: what envelope senders become, by an example; ``connections`` and ``rate``, and the rules of both.
- ``hops``, in the order in which they are tried; ``left_out`` and ``cut``: what is not tried, and why.
- ``ok``, and the reply that the sender's mail meets: ``code``, ``enhanced``, ``text``, ``detail`` (for administrators);
  ``notes``: what else one should know.
"""

from __future__ import annotations

from typing import Any

from relayd.delivery import Hop, Route, Router, Target
from relayd.delivery.mx import LeftOut
from relayd.delivery.probe import Probe
from relayd.delivery.route import RouteKind
from relayd.delivery.way import Way
from relayd.model import Path, Rule, Sender
from relayd.policy import DomainTable
from relayd.policy.lines import Lines
from relayd.settings import DomainKind, Settings

Document = dict[str, Any]


def document(settings: Settings, domains: DomainTable, router: Router, way: Way, probes: tuple[Probe, ...]) -> Document:
    """What was found.

    :param probes: of the way's hops, in their order; () where none was wanted.
    """
    rules = Lines(settings.lines)
    located = domains.locate(way.path.domain)
    local = located is not None and located[0].kind is DomainKind.LOCAL
    fault, route = way.fault, way.route
    made: Document = {
        "address": str(way.path),
        "given": str(way.given),
        "kind": "" if route is None else "local" if route.local else "remote",
        "domain": located[0].name if located is not None and local else way.path.domain,
        **_by(rules, located[1] if located is not None else ""),
        "way": None,
        "tls": None,
        "credential": None,
        "sender": None,
        "connections": 0,
        "connections_by": _by(rules, ""),
        "rate": "",
        "rate_by": _by(rules, ""),
        "fallback": None,
        "hops": [],
        "left_out": [_where(one) for one in way.left_out],
        "cut": [_left_out(one) for one in way.left_out],
        "ok": fault is None,
        "code": fault.reply.code if fault is not None else 250,
        "enhanced": fault.reply.enhanced if fault is not None else "2.1.5",
        "text": fault.reply.text if fault is not None else "",
        "detail": fault.detail if fault is not None else "",
        "notes": list(way.notes),
    }
    if route is not None:
        made |= _route(settings, rules, route)
        made["sender"] = _sender(settings, router, route, rules)
        if route.fallback is not None:
            made["fallback"] = _spoken(rules, route.fallback) | {"name": named(route.fallback)}
        made["hops"] = _hops(rules, way, route, probes)
    return made


def _route(settings: Settings, rules: Lines, route: Route) -> Document:
    drop = route.kind is RouteKind.DROP
    name = str(settings.server.state / "drop") if drop else named(route)
    made: Document = {"way": {"kind": route.kind.value, "name": name, **_by(rules, route.reason)}}
    if drop:
        return made
    rate = route.rate
    return {
        **made,
        **_spoken(rules, route),
        "connections": route.connections,
        "connections_by": _by(rules, route.connections_reason),
        "rate": "" if rate is None else f"{rate.count} in {rate.seconds:g} s",
        "rate_by": _by(rules, f"{route.paced_by}.rate" if rate is not None else ""),
    }


def _spoken(rules: Lines, route: Route) -> Document:
    """How the hops of *route* are spoken to."""
    credential = route.credential
    level = Target("", None, tls=route.tls, credential=credential).level
    return {
        "tls": {"level": level.value, "written": route.tls.value, **_by(rules, route.tls_reason)},
        "credential": None
        if credential is None
        else {"name": credential.name, "kind": credential.kind, **_by(rules, route.auth_reason)},
    }


def _sender(settings: Settings, router: Router, route: Route, rules: Lines) -> Document | None:
    """What becomes of a sender of this site; None: it stays."""
    _, key = router.rewriting(route)
    if not key:
        return None
    first = settings.first_local
    sender = Sender(Path("user", first.name if first is not None else ""))
    becomes = router.outbound(sender, route)
    return {"example": str(sender.path), "becomes": str(becomes.path), **_by(rules, key)}


def _hops(rules: Lines, way: Way, route: Route, probes: tuple[Probe, ...]) -> list[Document]:
    made: list[Document] = []
    ranks = [(hop.via is None, hop.preference) for hop, _ in way.hops]
    hosts = {(rank, hop.host) for rank, (hop, _) in zip(ranks, way.hops, strict=True)}
    for rank, (hop, target) in zip(ranks, way.hops, strict=True):
        equals = hop.preference is not None and sum(one == rank for one, _ in hosts) > 1
        reason = _reason(rules, hop, hop.via or route)
        made.append(
            {
                "host": hop.host,
                "address": str(hop.address) if hop.address is not None else "",
                "port": hop.port,
                "socket": hop.socket,
                "preference": hop.preference,
                "reason": f"{reason}, in random order among equals" if equals else reason,
                "tls": target.level.value,
                "why": hop.why,
                "way": named(hop.via) if hop.via is not None else "",
            }
        )
    for one, probe in zip(made, probes, strict=False):
        one["probe"] = _probe(probe)
    return made


def _reason(rules: Lines, hop: Hop, route: Route) -> str:
    if route.kind is RouteKind.MX:
        return f"{route.domain} has no MX record" if hop.preference is None else f"MX of {route.domain}"
    return str(rules.rule(route.reason)) if route.reason else "the address itself"


def _left_out(one: LeftOut) -> Document:
    return {
        "host": one.host,
        "address": str(one.address) if one.address is not None else "",
        "port": one.port,
        "preference": one.preference,
        "way": named(one.via) if one.via is not None else "",
        "why": one.why,
    }


def _where(one: LeftOut) -> str:
    address = f"[{one.address}]" if one.address is not None and str(one.address) != one.host else ""
    return f"{one.host}{address}:{one.port}" if one.port else one.host


def _probe(probe: Probe) -> Document:
    fault, refused = probe.fault, probe.refused
    return {
        "ok": fault is None,
        "reply": str(fault.reply) if fault is not None else "",
        "detail": fault.detail if fault is not None else "",
        "refused": str(refused) if refused is not None else "",
        "greeting": str(probe.greeting) if probe.greeting is not None else "",
        "starttls": probe.starttls,
        "tls": probe.tls,
        "distrust": probe.distrust,
        "broken": str(probe.broken.reply) if probe.broken is not None else "",
        "extensions": sorted(probe.offer.extensions),
        "size": probe.offer.size,
        "mechanisms": list(probe.offer.mechanisms),
    }


def named(route: Route) -> str:
    """What an administrator sees as the destination, without how it is spoken to."""
    return route.key.partition(" (")[0]


def _by(rules: Lines, key: str) -> Document:
    rule = rules.rule(key) if key else Rule("")
    return {"rule": rule.key, "line": rule.line}
