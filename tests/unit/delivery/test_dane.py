"""DANE: what DNS says of next hops, and what becomes of them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from relayd.delivery.dane import Dane
from relayd.delivery.mx import Hop, LeftOut
from relayd.delivery.route import Route, RouteKind
from relayd.model import Fault, Reply, Tlsa
from relayd.settings import OutboundTls
from tests.unit.delivery.peer import Result

MX = Route(RouteKind.MX, "mx dest.example", "dest.example", tls=OutboundTls.DANE)
WRITTEN = Route(RouteKind.HOPS, "route mx1.dest.example", tls=OutboundTls.DANE)
ONE = Hop("mx1.dest.example", ip_address("192.0.2.1"), 25)
SIX = Hop("mx1.dest.example", ip_address("2001:db8::1"), 25)
TWO = Hop("mx2.dest.example", ip_address("192.0.2.2"), 25)
GOOD, PKIX = Tlsa(3, 1, 1, b"x" * 32), Tlsa(1, 1, 1, b"x" * 32)
SILENT = Fault(Reply.of(451, "4.4.3", "DNS did not answer"), "SERVFAIL")


class Zone:
    """Everything is secure, and has no TLSA records, unless the test says otherwise."""

    def __init__(self) -> None:
        self.mx: Any = True
        self.names: dict[str, Any] = {}
        self.records: dict[str, Any] = {}
        self.asked: list[str] = []

    async def secure_mx(self, domain: str) -> bool:
        return self._said(self.mx)  # type: ignore[no-any-return]

    async def secure_names(self, host: str) -> tuple[str, ...]:
        return self._said(self.names.get(host, (host,)))  # type: ignore[no-any-return]

    async def tlsa(self, host: str, port: int) -> tuple[Tlsa, ...]:
        self.asked.append(f"_{port}._tcp.{host}")
        return self._said(self.records.get(host, ()))  # type: ignore[no-any-return]

    def _said(self, answer: Any) -> Any:
        if isinstance(answer, Fault):
            raise answer
        return answer


@pytest.fixture
def zone() -> Zone:
    return Zone()


def secured(zone: Zone, *hops: Hop, route: Route = MX) -> Result:
    return Result(Deferred.fromCoroutine(Dane(zone).secured(route, hops)))


def levels(zone: Zone, *hops: Hop, route: Route = MX) -> list[tuple[str, OutboundTls | None]]:
    return [(hop.host, hop.tls) for hop in secured(zone, *hops, route=route).value]


def test_published(zone: Zone) -> None:
    zone.records["mx1.dest.example"] = (GOOD, PKIX)
    one, six = secured(zone, ONE, SIX).value
    assert (one.tls, one.tlsa, one.name, one.also) == (OutboundTls.DANE, (GOOD,), "mx1.dest.example", "dest.example")
    assert six.tls is OutboundTls.DANE
    assert one.why == "DANE: 1 TLSA record"
    assert zone.asked == ["_25._tcp.mx1.dest.example"]  # once a host


def test_nothing_published(zone: Zone) -> None:
    assert levels(zone, ONE) == [("mx1.dest.example", OutboundTls.MAY)]


def test_nothing_usable(zone: Zone) -> None:
    zone.records["mx1.dest.example"] = (PKIX,)
    assert levels(zone, ONE) == [("mx1.dest.example", OutboundTls.REQUIRE)]


def test_insecure_mx_records_prove_nothing(zone: Zone) -> None:
    zone.mx = False
    zone.records["mx1.dest.example"] = (GOOD,)
    assert levels(zone, ONE) == [("mx1.dest.example", OutboundTls.MAY)]
    assert zone.asked == []


def test_insecure_addresses(zone: Zone) -> None:
    """RFC 7672 2.2.2: name servers of such zones may choke on TLSA."""
    zone.names["mx1.dest.example"] = ()
    assert levels(zone, ONE) == [("mx1.dest.example", OutboundTls.MAY)]
    assert zone.asked == []


def test_what_an_alias_leads_to_comes_first(zone: Zone) -> None:
    zone.names["mx1.dest.example"] = ("real.provider.example", "mx1.dest.example")
    zone.records["mx1.dest.example"] = (Tlsa(3, 1, 1, b"y" * 32),)
    assert secured(zone, ONE).value[0].name == "mx1.dest.example"
    zone.records["real.provider.example"] = (GOOD,)
    (hop,) = secured(zone, ONE).value
    assert (hop.name, hop.tlsa) == ("real.provider.example", (GOOD,))


@pytest.mark.parametrize("what", ["names", "records"])
def test_what_cannot_be_looked_up_is_passed_over(zone: Zone, what: str) -> None:
    getattr(zone, what)["mx1.dest.example"] = SILENT
    assert levels(zone, ONE, TWO) == [("mx2.dest.example", OutboundTls.MAY)]
    fault = secured(zone, ONE, SIX).fault(Fault)
    assert (fault.reply.code, fault.reply.enhanced, fault.detail) == (451, "4.7.5", "SERVFAIL")
    left_out: list[LeftOut] = []
    Deferred.fromCoroutine(Dane(zone).secured(MX, (ONE, TWO), left_out.append))
    assert [(one.host, one.address, one.why) for one in left_out] == [
        (ONE.host, ONE.address, "what certificate it must have cannot be looked up: SERVFAIL")
    ]


def test_mx_records_that_cannot_be_looked_up(zone: Zone) -> None:
    zone.mx = SILENT
    assert secured(zone, ONE).fault(Fault).reply.code == 451


def test_written_hops_need_no_mx(zone: Zone) -> None:
    zone.mx = False
    zone.records["mx1.dest.example"] = (GOOD,)
    (hop,) = secured(zone, ONE, route=WRITTEN).value
    assert (hop.tls, hop.also) == (OutboundTls.DANE, "")
