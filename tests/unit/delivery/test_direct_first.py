"""``direct_first``: MX, and the smart host for mail whose own hosts cannot be found or reached."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from relayd.delivery import NextHops, Stage, TlsPolicy
from relayd.delivery.mx import LeftOut
from relayd.model import Fault, Reply
from relayd.resolver import NoSuchDomain, NullMx
from relayd.settings import Credential, OutboundTls
from tests.unit.delivery.fakes import UNKNOWN, Rig
from tests.unit.delivery.values import claim, hop, path, router, settings

SILENT = Fault(Reply.of(451, "4.4.3", "DNS did not answer"))


MADE = settings(
    smart_host=(hop("smart.example:587"),),
    smart_host_tls=OutboundTls.VERIFY,
    smart_host_auth="m365",
    direct_first=True,
    credentials=(Credential("m365"),),
)


@pytest.fixture
def rig() -> Rig:
    return Rig(MADE)


def under_way(rig: Rig) -> list[tuple[str, int, str, str]]:
    return [
        (s.target.host, s.target.port, s.target.tls.value, s.target.credential.name if s.target.credential else "")
        for s in rig.pool.under_way
    ]


SMART = ("smart.example", 587, "verify", "m365")


def test_its_own_hosts_come_first(rig: Rig) -> None:
    rig.scheduler.take(claim("a@dest.example"))
    assert under_way(rig) == [("mx.dest.example", 25, "may", "")]
    rig.pool.under_way[0].answer()
    assert rig.store.states() == {1: "delivered"}


def test_then_the_smart_host(rig: Rig) -> None:
    rig.scheduler.take(claim("a@dest.example"))
    rig.pool.under_way[0].fault(Stage.CONNECT)
    assert under_way(rig) == [SMART]
    rig.pool.under_way[0].answer()
    assert rig.store.states() == {1: "delivered"}


@pytest.mark.parametrize("fault", [NoSuchDomain("dest.example"), SILENT])
def test_what_dns_does_not_know_goes_there_at_once(rig: Rig, fault: Any) -> None:
    rig.lookups.exchangers["dest.example"] = fault
    rig.scheduler.take(claim("a@dest.example"))
    assert under_way(rig) == [SMART]


def test_a_domain_that_takes_no_mail_is_final(rig: Rig) -> None:
    rig.lookups.exchangers["dest.example"] = NullMx("dest.example")
    rig.scheduler.take(claim("a@dest.example"))
    assert rig.store.states() == {1: "bounced"}


def test_a_refusal_is_final(rig: Rig) -> None:
    rig.scheduler.take(claim("a@dest.example"))
    rig.pool.under_way[0].answer(UNKNOWN)
    assert rig.store.states()[1] == "bounced"


def test_a_smart_host_that_is_unknown_leaves_the_direct_way(rig: Rig) -> None:
    rig.lookups.hosts["smart.example"] = ()
    rig.scheduler.take(claim("a@dest.example"))
    assert under_way(rig) == [("mx.dest.example", 25, "may", "")]


def test_both_unknown_waits(rig: Rig) -> None:
    rig.lookups.exchangers["dest.example"] = NoSuchDomain("dest.example")
    rig.lookups.hosts["smart.example"] = ()
    rig.scheduler.take(claim("a@dest.example"))
    assert rig.store.states() == {1: "queued"}


def test_a_dead_direct_host_is_not_tried_for_each_message(rig: Rig) -> None:
    rig.scheduler.take(claim("a@dest.example"))
    rig.pool.under_way[0].fault(Stage.CONNECT)
    rig.pool.under_way[0].answer()
    rig.scheduler.take(claim("a@dest.example", message_id="M2", first_id=2))
    assert under_way(rig) == [SMART]


def test_whoever_explains_hears_of_both_ways(rig: Rig) -> None:
    rig.lookups.exchangers["dest.example"] = SILENT
    rig.lookups.hosts["smart.example"] = (ip_address("192.0.2.1"),)
    other = replace(MADE, delivery=replace(MADE.delivery, smart_host=(hop("gone.example"), *MADE.delivery.smart_host)))
    route, _ = router(other).route(path("a@dest.example"))
    left_out: list[LeftOut] = []
    next_hops = NextHops(rig.lookups, TlsPolicy(), "relay.corp.example", (), 25)
    Deferred.fromCoroutine(next_hops.of(route, left_out.append))
    assert [(one.host, one.why, one.via) for one in left_out] == [
        ("dest.example", "DNS did not answer", None),
        ("gone.example", "The domain gone.example does not exist", route.fallback),
    ]
