"""From a route to the addresses that are tried."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from relayd.delivery.mx import Hears, Hop, LeftOut, Ourselves, hops, is_here, unheard
from relayd.delivery.route import Route
from relayd.model import Fault, IPAddress, Path, Reply
from relayd.resolver import NoSuchDomain, NullMx
from relayd.settings import Listener, Settings
from tests.unit.delivery.values import hop, router, settings

BUSY = Fault(Reply.of(451, "4.4.3", "DNS did not answer"))
Records = Sequence[tuple[int, str]]


class Lookups:
    def __init__(self, mx: Records | Fault = (), addresses: dict[str, str | Fault] | None = None) -> None:
        self._mx = mx
        self._addresses = addresses or {}

    async def mx(self, domain: str) -> tuple[tuple[int, str], ...]:
        if isinstance(self._mx, Fault):
            raise self._mx
        return tuple(self._mx)

    async def addresses(self, host: str) -> tuple[IPAddress, ...]:
        found = self._addresses.get(host, NoSuchDomain(host))
        if isinstance(found, Fault):
            raise found
        return tuple(ip_address(text) for text in found.split())


def found(
    lookups: Lookups,
    made: Settings | None = None,
    *,
    domain: str = "example.org",
    port: int = 25,
    left_out: Hears = unheard,
) -> tuple[Hop, ...]:
    made = made or settings()
    route: Route = router(made).route(Path("a", domain))[0]
    ourselves = Ourselves("relay.corp.example", (Listener(address="192.0.2.25", port=25),))
    results: list[tuple[Hop, ...] | Failure] = []
    Deferred.fromCoroutine(hops(route, lookups, ourselves, port, list.sort, left_out)).addBoth(results.append)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    return result


def texts(result: tuple[Hop, ...]) -> list[str]:
    return [str(each) for each in result]


class TestExchangers:
    def test_best_first_and_all_addresses(self) -> None:
        lookups = Lookups(
            [(10, "b.example"), (10, "a.example"), (20, "c.example")],
            {
                "a.example": "198.51.100.1 198.51.100.2 2001:db8::1",
                "b.example": "198.51.100.3",
                "c.example": "::5",
            },
        )
        assert texts(found(lookups)) == [
            "a.example[2001:db8::1]:25",
            "a.example[198.51.100.1]:25",
            "a.example[198.51.100.2]:25",
            "b.example[198.51.100.3]:25",
            "c.example[::5]:25",
        ]

    def test_equals_are_shuffled(self) -> None:
        lookups = Lookups([(10, "a.example"), (10, "b.example")], {"a.example": "::1", "b.example": "::2"})
        route = router(settings()).route(Path("a", "example.org"))[0]
        ourselves = Ourselves("relay.corp.example", ())
        results: list[tuple[Hop, ...]] = []
        Deferred.fromCoroutine(hops(route, lookups, ourselves, 25, shuffle=list.reverse)).addCallback(results.append)
        assert [each.host for each in results[0]] == ["b.example", "a.example"]

    def test_without_a_record_the_domain_itself(self) -> None:
        assert texts(found(Lookups((), {"example.org": "198.51.100.1"}))) == ["example.org[198.51.100.1]:25"]

    def test_the_written_port(self) -> None:
        assert found(Lookups((), {"example.org": "198.51.100.1"}), port=2525)[0].port == 2525

    def test_what_is_as_good_as_ourselves_is_cut(self) -> None:
        records = [(5, "a.example"), (10, "RELAY.corp.example"), (10, "b.example"), (20, "c.example")]
        addresses: dict[str, str | Fault] = {name: f"198.51.100.{n}" for n, (_, name) in enumerate(records)}
        assert [each.host for each in found(Lookups(records, addresses))] == ["a.example"]

    def test_our_address_is_ours_under_any_name(self) -> None:
        lookups = Lookups([(10, "a.example"), (20, "b.example")], {"a.example": "::1", "b.example": "192.0.2.25"})
        assert [each.host for each in found(lookups)] == ["a.example"]

    @pytest.mark.parametrize(
        "lookups",
        [
            Lookups([(10, "x.example"), (20, "b.example")], {"x.example": "192.0.2.25", "b.example": "::1"}),
            Lookups((), {"example.org": "192.0.2.25"}),
        ],
    )
    def test_only_ourselves_is_a_loop(self, lookups: Lookups) -> None:
        with pytest.raises(Fault) as caught:
            found(lookups)
        assert (caught.value.reply.code, caught.value.reply.enhanced) == (554, "5.4.6")

    @pytest.mark.parametrize("fault", [NullMx("example.org"), NoSuchDomain("example.org"), BUSY])
    def test_what_dns_says_of_the_domain_stands(self, fault: Fault) -> None:
        with pytest.raises(Fault) as caught:
            found(Lookups(fault))
        assert caught.value is fault

    def test_a_dead_name_does_not_hide_a_good_one(self) -> None:
        lookups = Lookups([(10, "gone.example"), (20, "b.example")], {"b.example": "198.51.100.1"})
        assert [each.host for each in found(lookups)] == ["b.example"]

    def test_a_failing_name_does_not_hide_a_good_one(self) -> None:
        lookups = Lookups([(10, "a.example"), (20, "b.example")], {"a.example": BUSY, "b.example": "198.51.100.1"})
        assert [each.host for each in found(lookups)] == ["b.example"]

    def test_no_exchanger_has_an_address(self) -> None:
        with pytest.raises(Fault) as caught:
            found(Lookups([(10, "gone.example"), (20, "empty.example")], {"empty.example": ""}))
        assert (caught.value.reply.code, caught.value.reply.enhanced) == (550, "5.4.4")

    def test_one_may_come_back(self) -> None:
        with pytest.raises(Fault) as caught:
            found(Lookups([(10, "a.example"), (20, "gone.example")], {"a.example": BUSY}))
        assert caught.value is BUSY

    def test_domain_without_any_address(self) -> None:
        with pytest.raises(Fault) as caught:
            found(Lookups((), {"example.org": ""}))
        assert caught.value.reply.permanent

    def test_how_many_are_tried_is_bounded(self) -> None:
        records = [(n, f"m{n}.example") for n in range(100)]
        addresses: dict[str, str | Fault] = {
            name: " ".join(f"198.51.{n}.{i}" for i in range(100)) for n, name in records
        }
        assert len(found(Lookups(records, addresses))) == 16


class TestWrittenHops:
    made = settings(smart_host=(hop("one.example:587"), hop("two.example")))

    def test_in_order(self) -> None:
        lookups = Lookups((), {"one.example": "198.51.100.1", "two.example": "198.51.100.2"})
        assert texts(found(lookups, self.made)) == [
            "one.example[198.51.100.1]:587",
            "two.example[198.51.100.2]:25",
        ]

    def test_one_that_fails_is_left_out(self) -> None:
        assert [each.host for each in found(Lookups((), {"two.example": "::1"}), self.made)] == ["two.example"]

    @pytest.mark.parametrize("addresses", [{}, {"one.example": "", "two.example": BUSY}, {"two.example": "192.0.2.25"}])
    def test_a_fault_of_the_configuration_is_never_final(self, addresses: dict[str, str | Fault]) -> None:
        with pytest.raises(Fault) as caught:
            found(Lookups((), addresses), self.made)
        assert caught.value.temporary


class TestWhatIsLeftOut:
    def told(self, lookups: Lookups, made: Settings | None = None) -> list[tuple[str, str, int | None, str]]:
        """Host, address, preference and reason of each."""
        left_out: list[LeftOut] = []
        with suppress(Fault):
            found(lookups, made, left_out=left_out.append)
        return [(one.host, str(one.address or ""), one.preference, one.why) for one in left_out]

    def test_nothing(self) -> None:
        assert self.told(Lookups([(10, "a.example")], {"a.example": "::1"})) == []

    def test_exchangers_that_nobody_finds(self) -> None:
        records = [(10, "gone.example"), (20, "busy.example"), (30, "empty.example")]
        assert self.told(Lookups(records, {"busy.example": BUSY, "empty.example": ""})) == [
            ("gone.example", "", 10, "The domain gone.example does not exist"),
            ("busy.example", "", 20, "DNS did not answer"),
            ("empty.example", "", 30, "it has no address"),
        ]

    def test_loops(self) -> None:
        records = [(5, "a.example"), (10, "b.example"), (10, "empty.example"), (20, "c.example")]
        addresses: dict[str, str | Fault] = {
            "a.example": "::1",
            "b.example": "192.0.2.25",
            "empty.example": "",
            "c.example": "::2",
        }
        why = "this relay itself is an exchanger, of preference 10: mail would loop"
        assert self.told(Lookups(records, addresses)) == [
            ("empty.example", "", 10, "it has no address"),
            ("b.example", "", 10, why),
            ("c.example", "", 20, why),
        ]

    def test_what_is_too_much(self) -> None:
        records = [(n, f"m{n}.example") for n in range(12)]
        addresses: dict[str, str | Fault] = {
            name: f"198.51.{n}.1 198.51.{n}.2" if n < 9 else "::1" for n, (_, name) in enumerate(records)
        }
        assert self.told(Lookups(records, addresses)) == [
            ("m10.example", "", 10, "only 10 exchangers are looked at"),
            ("m11.example", "", 11, "only 10 exchangers are looked at"),
            ("m8.example", "198.51.8.1", 8, "only 16 addresses are tried"),
            ("m8.example", "198.51.8.2", 8, "only 16 addresses are tried"),
            ("m9.example", "::1", 9, "only 16 addresses are tried"),
        ]

    def test_hops_that_are_written(self) -> None:
        lookups = Lookups((), {"one.example": "192.0.2.25 ::1", "two.example": ""})
        assert self.told(lookups, settings(smart_host=(hop("one.example"), hop("two.example")))) == [
            ("one.example", "192.0.2.25", None, "it is this relay itself"),
            ("two.example", "", None, "two.example has no address"),
        ]


class TestOurselves:
    def test_a_wildcard_listener_is_every_address_of_this_machine(self) -> None:
        here = ip_address("198.51.100.1")
        ourselves = Ourselves("x", (Listener(address="::", port=2525),), here=lambda address: address == here)
        assert ourselves.listens(here, 2525)
        assert not ourselves.listens(here, 25)
        assert not ourselves.listens(ip_address("198.51.100.2"), 2525)

    def test_loopback_is_here_and_a_documentation_address_is_not(self) -> None:
        assert is_here(ip_address("127.0.0.1"))
        assert not is_here(ip_address("203.0.113.9"))
