"""Which way mail goes."""

from __future__ import annotations

import pytest

from relayd.delivery.route import RouteKind
from relayd.model import NULL_PATH, Path, Sender
from relayd.settings import Credential, OutboundTls, Rate
from tests.unit.delivery.values import hop, local, path, remote, router, settings

SMART = (hop("smart.example:587"),)


def test_a_local_domain_is_dropped() -> None:
    route, _ = router(settings(local("corp.example"), smart_host=SMART)).route(path("a@CORP.example"))
    assert (route.kind, route.domain) == (RouteKind.DROP, "corp.example")


def test_an_alias_is_dropped_as_its_domain() -> None:
    chosen = router(settings(local("corp.example", aliases=("old.example",))))
    assert chosen.route(path("a@old.example"))[0].key == chosen.route(path("a@corp.example"))[0].key


def test_the_route_of_a_domain_beats_the_smart_host() -> None:
    table = remote("*.partner.example", route=(hop("gate.partner.example"),), tls=OutboundTls.VERIFY, connections=3)
    route, _ = router(settings(table, smart_host=SMART)).route(path("a@x.partner.example"))
    assert route.kind is RouteKind.HOPS
    assert [h.host for h in route.hops] == ["gate.partner.example"]
    assert (route.tls, route.connections, route.reason) == (OutboundTls.VERIFY, 3, "domain[0].route")


def test_the_smart_host_takes_all_else() -> None:
    made = settings(
        local("corp.example"),
        remote("partner.example", relay=True),
        smart_host=SMART,
        smart_host_auth="m365",
        smart_host_tls=OutboundTls.REQUIRE,
        credentials=(Credential("m365"),),
    )
    chosen = router(made)
    first, second = chosen.route(path("a@one.example"))[0], chosen.route(path("a@partner.example"))[0]
    assert first.key == second.key
    assert (first.kind, first.tls) == (RouteKind.HOPS, OutboundTls.REQUIRE)
    assert first.credential == Credential("m365")
    assert first.reason == "delivery.smart_host"


def test_without_a_smart_host_it_is_mx() -> None:
    route, _ = router(settings()).route(path("a@Bücher.Example"))
    assert (route.kind, route.domain) == (RouteKind.MX, "xn--bcher-kva.example")


def test_a_wish_for_tls_holds_through_the_smart_host() -> None:
    chosen = router(settings(remote("bank.example", tls=OutboundTls.VERIFY), smart_host=SMART))
    bank, other = chosen.route(path("a@bank.example"))[0], chosen.route(path("a@other.example"))[0]
    assert (bank.tls, other.tls) == (OutboundTls.VERIFY, OutboundTls.MAY)
    assert bank.key != other.key


@pytest.mark.parametrize(
    ("domain", "host"),
    [("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:DB8::1]", "2001:db8::1"), ("[ipv6:::1]", "::1")],
)
def test_an_address_literal_is_its_own_hop(domain: str, host: str) -> None:
    route, _ = router(settings()).route(Path("a", domain))
    assert route.kind is RouteKind.HOPS
    assert [h.host for h in route.hops] == [host]


class TestPostmaster:
    def test_goes_to_the_written_address(self) -> None:
        chosen = router(settings(local("corp.example"), postmaster=path("it@admin.example")))
        route, address = chosen.route(Path("Postmaster"))
        assert (route.kind, str(address)) == (RouteKind.MX, "it@admin.example")

    def test_goes_to_the_first_local_domain(self) -> None:
        route, address = router(settings(remote("x.example"), local("corp.example"))).route(Path("postmaster"))
        assert (route.kind, str(address)) == (RouteKind.DROP, "postmaster@corp.example")

    def test_is_kept_when_there_is_nowhere_to_send_it(self) -> None:
        chosen = router(settings(smart_host=SMART))
        route, address = chosen.route(Path("postmaster"))
        assert (route.kind, str(address)) == (RouteKind.DROP, "postmaster@relay.corp.example")
        assert chosen.route(path("a@relay.corp.example"))[0].kind is RouteKind.HOPS


class TestMasquerade:
    made = settings(local("corp.example"), masquerade_domain="example.com")

    @pytest.mark.parametrize(
        ("sender", "seen"), [("a@corp.example", "a@example.com"), ("a@other.example", "a@other.example")]
    )
    def test_replaces_local_domains_alone(self, sender: str, seen: str) -> None:
        chosen = router(self.made)
        route, _ = chosen.route(path("b@else.example"))
        assert str(chosen.outbound(Sender(path(sender)), route).path) == seen

    def test_leaves_the_null_sender(self) -> None:
        chosen = router(self.made)
        route, _ = chosen.route(path("b@else.example"))
        assert chosen.outbound(Sender(NULL_PATH), route).path.null

    def test_leaves_what_is_dropped(self) -> None:
        chosen = router(self.made)
        route, _ = chosen.route(path("b@corp.example"))
        assert str(chosen.outbound(Sender(path("a@corp.example")), route).path) == "a@corp.example"


class TestDirectFirst:
    def test_mx_then_the_smart_host(self) -> None:
        made = settings(
            smart_host=SMART,
            smart_host_tls=OutboundTls.VERIFY,
            smart_host_auth="m365",
            direct_first=True,
            credentials=(Credential("m365"),),
        )
        route, _ = router(made).route(path("a@partner.example"))
        assert (route.kind, route.domain, route.tls, route.credential) == (
            RouteKind.MX,
            "partner.example",
            OutboundTls.MAY,
            None,
        )
        assert route.fallback is not None
        assert [h.host for h in route.fallback.hops] == ["smart.example"]
        assert (route.fallback.tls, route.fallback.credential) == (OutboundTls.VERIFY, Credential("m365"))
        assert route.reason == "delivery.direct_first"

    def test_not_where_a_domain_has_its_own_route(self) -> None:
        table = remote("partner.example", route=(hop("gate.partner.example"),))
        route, _ = router(settings(table, smart_host=SMART, direct_first=True)).route(path("a@partner.example"))
        assert (route.kind, route.fallback) == (RouteKind.HOPS, None)


class TestSenders:
    @pytest.mark.parametrize(
        ("rewrite", "sender", "expected"),
        [
            ("relay@corp.example", "printer@printer.local", "relay@corp.example"),
            ("*@corp.example", "printer@printer.local", "printer@corp.example"),
            ("*@corp.example", '"a@b"@printer.local', '"a@b"@corp.example'),
            ("relay@corp.example", "", ""),
            ("", "alice@corp.example", "alice@masked.example"),
            ("", "alice@elsewhere.example", "alice@elsewhere.example"),
        ],
    )
    def test_a_route_has_its_own(self, rewrite: str, sender: str, expected: str) -> None:
        table = remote("partner.example", rewrite_sender=rewrite)
        chosen = router(settings(local("corp.example"), table, masquerade_domain="masked.example"))
        route, _ = chosen.route(path("a@partner.example"))
        assert chosen.outbound(Sender(path(sender)), route).path == (path(expected) if expected else NULL_PATH)

    def test_two_senders_share_no_transaction(self) -> None:
        one = remote("one.example", route=(hop("gate.example"),), rewrite_sender="one@corp.example")
        two = remote("two.example", route=(hop("gate.example"),), rewrite_sender="two@corp.example")
        chosen = router(settings(one, two))
        assert chosen.route(path("a@one.example"))[0].key != chosen.route(path("a@two.example"))[0].key


def test_domains_under_one_wildcard_keep_one_rate() -> None:
    chosen = router(settings(remote("*.partner.example", rate=Rate(30, 60.0))))
    one, two = chosen.route(path("a@x.partner.example"))[0], chosen.route(path("a@y.partner.example"))[0]
    assert one.key != two.key
    assert (one.rate, one.paced_by) == (two.rate, two.paced_by) == (Rate(30, 60.0), "domain[0]")


def test_what_said_so() -> None:
    """The keys that settled a route, for whoever explains it."""
    gate = remote(
        "partner.example",
        route=(hop("gate.example"),),
        tls=OutboundTls.VERIFY,
        auth="own",
        connections=3,
        rate=Rate(1, 1.0),
        rewrite_sender="*@corp.example",
        origin="domain[4]",
    )
    credentials = (Credential("own"), Credential("m365"))
    chosen = router(settings(gate, smart_host=SMART, smart_host_auth="m365", credentials=credentials))
    route = chosen.route(path("a@partner.example"))[0]
    assert (route.tls_reason, route.auth_reason, route.connections_reason, route.paced_by) == (
        "domain[4].tls",
        "domain[4].auth",
        "domain[4].connections",
        "domain[4]",
    )
    assert chosen.rewriting(route) == ("*@corp.example", "domain[4].rewrite_sender")
    route = chosen.route(path("a@other.example"))[0]
    assert (route.tls_reason, route.auth_reason, route.connections_reason) == (
        "delivery.tls",
        "delivery.smart_host_auth",
        "delivery.connections_per_hop",
    )
    assert chosen.rewriting(route) == ("", "")


def test_masquerading_is_not_for_what_stays() -> None:
    chosen = router(settings(local("corp.example"), masquerade_domain="site.example"))
    assert chosen.rewriting(chosen.route(path("a@corp.example"))[0]) == ("", "")
    there = chosen.route(path("a@other.example"))[0]
    assert chosen.rewriting(there) == ("*@site.example", "delivery.masquerade_domain")
