"""MTA-STS: which policy holds for a domain, and what it makes of the domain's mail exchangers."""

from __future__ import annotations

import stat
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path as File
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from relayd.delivery import TlsPolicy
from relayd.delivery.destination import Health
from relayd.delivery.https import Answer, HttpsFault
from relayd.delivery.mx import Hop
from relayd.delivery.route import Route, RouteKind
from relayd.delivery.sts import Sts
from relayd.delivery.sts_folder import Kept, PolicyFolder, is_domain
from relayd.delivery.sts_policy import Mode, Policy
from relayd.events import Event, Events
from relayd.model import Fault, Reply
from relayd.resolver import NoSuchDomain
from relayd.settings import OutboundTls
from tests.unit.delivery.peer import Result
from tests.unit.test_resolver import ThreadedClock

ROUTE = Route(RouteKind.MX, "mx dest.example", "dest.example", tls=OutboundTls.STS)
MX1 = Hop("mx1.dest.example", ip_address("192.0.2.1"), 25)
MX2 = Hop("mx2.dest.example", ip_address("192.0.2.2"), 25)
SILENT = Fault(Reply.of(451, "4.4.3", "DNS did not answer"))
DAY, WEEK = 86400, 604800


def policy(mode: str = "enforce", *exchangers: str, max_age: int = WEEK) -> bytes:
    lines = ["version: STSv1", f"mode: {mode}", f"max_age: {max_age}"]
    return "\r\n".join([*lines, *(f"mx: {name}" for name in exchangers or ("mx1.dest.example",))]).encode()


class World:
    """DNS and the policies' hosts. *contents* says what a host answers; a domain that is not there is asked by hand."""

    def __init__(self) -> None:
        self.records: dict[str, Any] = {}
        self.contents: dict[str, Any] = {}
        self.fetches: list[str] = []
        self.open: dict[str, Deferred[Answer]] = {}

    def announce(self, version: str, domain: str = "dest.example") -> None:
        self.records[f"_mta-sts.{domain}"] = (f"v=STSv1; id={version};".encode(),)

    async def txt(self, name: str) -> tuple[bytes, ...]:
        found = self.records.get(name, ())
        if isinstance(found, Fault):
            raise found
        return found  # type: ignore[no-any-return]

    async def fetch(self, method: str, url: str, *, limit: int = 0, seconds: float = 0.0) -> Answer:
        assert (method, limit, seconds) == ("GET", 65536, 60.0)
        domain = url.removeprefix("https://mta-sts.").removesuffix("/.well-known/mta-sts.txt")
        self.fetches.append(domain)
        content = self.contents.get(domain)
        if content is None:
            self.open[domain] = Deferred()
            return await self.open[domain]
        if isinstance(content, Exception):
            raise content
        return content if isinstance(content, Answer) else Answer(200, "text/plain", content)


class Setting:
    def __init__(self, folder: File) -> None:
        self.folder = folder
        self.clock = ThreadedClock()
        self.clock.advance(1_000_000)
        self.world = World()
        self.events: list[Event] = []
        self.sts = self.started()

    def started(self) -> Sts:
        """As after a restart."""
        events = Events(self.clock.seconds)
        events.subscribe(lambda at, event: self.events.append(event))
        sts = Sts(self.world, self.world, PolicyFolder(self.folder), events, self.clock)
        self.clock.result(sts.open())
        return sts

    def restart(self) -> None:
        self.stop()
        self.sts = self.started()

    def stop(self) -> None:
        async def closing() -> None:
            await self.sts.close()

        self.clock.result(closing())

    def secured(self, *hops: Hop, route: Route = ROUTE) -> Result:
        return Result(Deferred.fromCoroutine(self.sts.secured(route, hops or (MX1, MX2))))

    def levels(self, *hops: Hop, route: Route = ROUTE) -> dict[str, str]:
        found = self.secured(*hops, route=route).value
        return {hop.host: hop.tls.value for hop in found}

    def said(self, name: str) -> list[dict[str, object]]:
        return [dict(event.items()) for event in self.events if event.name == name]


@pytest.fixture
def setting(tmp_path: File) -> Any:
    setting = Setting(tmp_path / "sts")
    yield setting
    setting.stop()


NO_POLICY = {"mx1.dest.example": "may", "mx2.dest.example": "may"}
ENFORCED = {"mx1.dest.example": "verify"}


class TestNoPolicy:
    @pytest.mark.parametrize("found", [(), (b"v=spf1 -all",), SILENT, NoSuchDomain("dest.example")])
    def test_dns_announces_none(self, setting: Setting, found: Any) -> None:
        setting.world.records["_mta-sts.dest.example"] = found
        assert setting.levels() == NO_POLICY
        assert setting.world.fetches == []

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (HttpsFault("mta-sts.dest.example: certificate verify failed"), "certificate verify failed"),
            (Answer(404, "text/plain", policy()), "answers 404"),
            (Answer(301, "text/plain", policy()), "answers 301"),
            (Answer(203, "text/plain", policy()), "answers 203"),
            (Answer(200, "text/html", policy()), "text/html, not text/plain"),
            (Answer(200, "", policy()), "no type, not text/plain"),
            (b"", "version"),
            (b"hello", "line 1 is no field"),
        ],
    )
    def test_the_one_announced_cannot_be_had(self, setting: Setting, content: Any, why: str) -> None:
        setting.world.announce("1")
        setting.world.contents["dest.example"] = content
        assert setting.levels() == NO_POLICY
        (event,) = setting.said("policy-unfetched")
        assert why in str(event["reason"])
        assert "kept_until" not in event
        # RFC 8461 3.3: five minutes at least, for this version.
        setting.clock.advance(299)
        setting.levels()
        assert len(setting.world.fetches) == 1
        setting.clock.advance(2)
        setting.levels()
        assert len(setting.world.fetches) == 2

    def test_another_version_is_tried_at_once(self, setting: Setting) -> None:
        setting.world.announce("1")
        setting.world.contents["dest.example"] = HttpsFault("no")
        assert setting.levels() == NO_POLICY
        setting.world.announce("2")
        setting.world.contents["dest.example"] = policy()
        assert setting.levels() == ENFORCED

    def test_one_that_asks_for_nothing(self, setting: Setting) -> None:
        setting.world.announce("1")
        setting.world.contents["dest.example"] = policy("none")
        assert setting.levels() == NO_POLICY
        assert setting.levels() == NO_POLICY
        assert len(setting.world.fetches) == 1

    def test_an_address_literal_has_none(self, setting: Setting) -> None:
        literal = Hop("192.0.2.1", ip_address("192.0.2.1"), 25)
        route = Route(RouteKind.HOPS, "address [192.0.2.1]", tls=OutboundTls.STS)
        assert setting.levels(literal, route=route) == {"192.0.2.1": "may"}

    @pytest.mark.parametrize("domain", ["a b", "x/y", "dest.example@evil.example", "ü.example", "a" * 250, "", "-a"])
    def test_what_is_no_domain_asks_nobody(self, setting: Setting, domain: str) -> None:
        assert setting.levels(route=replace(ROUTE, domain=domain)) == NO_POLICY
        assert setting.world.fetches == []

    def test_a_shortage_of_our_own_is_no_absence(self, setting: Setting) -> None:
        setting.world.records["_mta-sts.dest.example"] = Fault(Reply.of(451, "4.3.2", "busy"))
        assert setting.secured().fault(Fault).reply.enhanced == "4.3.2"


class TestEnforce:
    @pytest.fixture(autouse=True)
    def _published(self, setting: Setting) -> None:
        setting.world.announce("1")
        setting.world.contents["dest.example"] = policy()

    def test_the_named_ones_must_hold_and_the_others_are_left_out(self, setting: Setting) -> None:
        assert setting.levels() == ENFORCED
        (report,) = setting.said("tls-report")
        assert report == {
            "domain": "dest.example",
            "host": "mx2.dest.example",
            "mode": "enforce",
            "reason": "it is no mail exchanger by the domain's policy",
        }
        assert setting.levels() == ENFORCED
        assert len(setting.said("tls-report")) == 1  # not for each message

    def test_none_left_waits(self, setting: Setting) -> None:
        fault = setting.secured(MX2).fault(Fault)
        assert str(fault.reply) == "451 4.7.5 No mail exchanger of dest.example is named by its MTA-STS policy"
        assert fault.detail == "DNS names mx2.dest.example; the policy names mx1.dest.example"

    @pytest.mark.parametrize("found", [(), SILENT, (b"v=STSv1; id=1", b"v=STSv1; id=2")])
    def test_it_holds_though_dns_announces_it_no_more(self, setting: Setting, found: Any) -> None:
        setting.levels()
        setting.world.records["_mta-sts.dest.example"] = found
        assert setting.levels() == ENFORCED

    def test_it_holds_though_the_next_one_cannot_be_had(self, setting: Setting) -> None:
        setting.levels()
        setting.world.announce("2")
        setting.world.contents["dest.example"] = HttpsFault("no answer")
        assert setting.levels() == ENFORCED
        (event,) = setting.said("policy-unfetched")
        assert event["kept_until"] == 1_000_000 + WEEK

    def test_the_next_one_counts_at_once(self, setting: Setting) -> None:
        setting.levels()
        setting.world.announce("2")
        setting.world.contents["dest.example"] = policy("enforce", "*.dest.example")
        assert setting.levels() == {"mx1.dest.example": "verify", "mx2.dest.example": "verify"}
        assert len(setting.world.fetches) == 2

    def test_it_ends_when_it_said_so(self, setting: Setting) -> None:
        setting.levels()
        setting.world.records.clear()
        setting.clock.advance(WEEK - 1)
        assert setting.levels() == ENFORCED
        setting.clock.advance(1)
        assert setting.levels() == NO_POLICY

    def test_one_of_no_duration_does_not_cost_a_fetch_a_message(self, setting: Setting) -> None:
        setting.world.contents["dest.example"] = policy(max_age=0)
        assert setting.levels() == ENFORCED
        assert setting.levels() == ENFORCED
        assert len(setting.world.fetches) == 1

    def test_a_host_that_fails_it_is_there_for_others(self, setting: Setting) -> None:
        """Who names somebody else's hosts in a policy must not stop the mail of others to them."""
        (enforced,) = setting.secured(MX1).value
        health = Health()
        assert health.failed(enforced, 1000.0)
        assert health.resting(enforced, 1000.0)
        assert not health.resting(MX1, 1000.0)

    def test_where_nobody_knows_policies_nothing_is_sent(self) -> None:
        asked = Result(Deferred.fromCoroutine(TlsPolicy().secured(ROUTE, (MX1,))))
        assert asked.fault(Fault).reply.enhanced == "4.7.5"


class TestTesting:
    @pytest.fixture(autouse=True)
    def _published(self, setting: Setting) -> None:
        setting.world.announce("1")
        setting.world.contents["dest.example"] = policy("testing")

    def test_mail_goes_everywhere_and_strangers_are_reported(self, setting: Setting) -> None:
        assert setting.levels() == NO_POLICY
        (report,) = setting.said("tls-report")
        assert (report["host"], report["mode"]) == ("mx2.dest.example", "testing")

    @pytest.mark.parametrize(
        ("tls", "reason"),
        [
            ("TLSv1.3 TLS_AES_256_GCM_SHA384 verified", None),
            ("TLSv1.3 TLS_AES_256_GCM_SHA384", "its certificate does not hold"),
            ("", "it was sent to without TLS"),
        ],
    )
    def test_what_enforcing_would_refuse_is_reported(self, setting: Setting, tls: str, reason: str | None) -> None:
        (hop,) = setting.secured(MX1).value
        hop.came_to(tls)
        hop.came_to(tls)
        assert [report["reason"] for report in setting.said("tls-report")] == ([reason] if reason else [])
        setting.clock.advance(3600)
        hop.came_to(tls)
        assert len(setting.said("tls-report")) == (2 if reason else 0)


class TestFetching:
    def test_all_mail_of_a_domain_waits_for_one_fetch(self, setting: Setting) -> None:
        setting.world.announce("1")
        waiting = [setting.secured(MX1) for _ in range(5)]
        assert all(each.waiting for each in waiting)
        setting.world.open["dest.example"].callback(Answer(200, "text/plain", policy()))
        assert [each.value[0].tls for each in waiting] == [OutboundTls.VERIFY] * 5
        assert setting.world.fetches == ["dest.example"]

    def test_nobody_else_waits(self, setting: Setting) -> None:
        setting.world.announce("1")
        setting.world.announce("1", "other.example")
        setting.world.contents["other.example"] = policy("enforce", "mx1.dest.example")
        first = setting.secured()
        assert setting.levels(MX1, route=replace(ROUTE, domain="other.example")) == ENFORCED
        assert first.waiting
        setting.world.open["dest.example"].errback(HttpsFault("no"))
        assert [hop.tls for hop in first.value] == [OutboundTls.MAY] * 2

    def test_who_gives_up_leaves_the_others_their_fetch(self, setting: Setting) -> None:
        setting.world.announce("1")
        work = Deferred.fromCoroutine(setting.sts.secured(ROUTE, (MX1,)))
        other = setting.secured(MX1)
        work.addErrback(lambda _: None)
        work.cancel()
        setting.world.open["dest.example"].callback(Answer(200, "text/plain", policy()))
        assert other.value[0].tls is OutboundTls.VERIFY
        assert not setting.said("fault")


class TestRefresh:
    @pytest.fixture(autouse=True)
    def _published(self, setting: Setting) -> None:
        setting.world.announce("1")
        setting.world.contents["dest.example"] = policy()
        setting.levels()

    def forward(self, setting: Setting, seconds: float) -> None:
        setting.clock.pump([600.0] * int(seconds / 600))

    def test_daily(self, setting: Setting) -> None:
        self.forward(setting, DAY - 600)
        assert len(setting.world.fetches) == 1
        self.forward(setting, 600)
        assert len(setting.world.fetches) == 2
        setting.world.records.clear()
        self.forward(setting, WEEK - 600)  # from the second fetch
        assert setting.levels() == ENFORCED
        self.forward(setting, 1200)
        assert setting.levels() == NO_POLICY

    def test_what_cannot_be_had_anew_is_told_and_tried_hourly(self, setting: Setting) -> None:
        setting.world.contents["dest.example"] = HttpsFault("no answer")
        self.forward(setting, DAY + 3600 * 2)
        assert [event["reason"] for event in setting.said("policy-unfetched")] == ["no answer"] * 3
        assert setting.levels() == ENFORCED

    def test_what_dns_announces_no_more_is_told(self, setting: Setting) -> None:
        setting.world.records.clear()
        self.forward(setting, DAY)
        (event,) = setting.said("policy-unfetched")
        assert event["reason"] == "DNS does not announce it any more"
        assert len(setting.world.fetches) == 1

    def test_nobody_hears_of_one_that_asks_for_nothing(self, setting: Setting) -> None:
        setting.world.announce("2")
        setting.world.contents["dest.example"] = policy("none")
        setting.levels()
        setting.world.contents["dest.example"] = HttpsFault("no answer")
        self.forward(setting, DAY)
        assert not setting.said("policy-unfetched")

    def test_before_it_ends(self, setting: Setting) -> None:
        setting.world.announce("2")
        setting.world.contents["dest.example"] = policy(max_age=DAY)
        setting.levels()
        self.forward(setting, 5 * DAY)
        assert len(setting.world.fetches) == 2 + 10
        setting.world.records.clear()
        assert setting.levels() == ENFORCED

    def test_not_where_no_mail_goes_any_more(self, setting: Setting) -> None:
        self.forward(setting, 30 * DAY)
        before = len(setting.world.fetches)
        self.forward(setting, 3 * DAY)
        assert len(setting.world.fetches) == before
        self.forward(setting, 5 * DAY)
        setting.restart()
        assert not list(setting.folder.iterdir())


class TestRestart:
    def test_it_is_kept(self, setting: Setting) -> None:
        setting.world.announce("1")
        setting.world.contents["dest.example"] = policy()
        setting.levels()
        setting.restart()
        assert setting.levels() == ENFORCED
        assert len(setting.world.fetches) == 1
        setting.world.records["_mta-sts.dest.example"] = SILENT
        setting.restart()
        assert setting.levels() == ENFORCED
        (file,) = setting.folder.iterdir()
        assert (file.name, stat.S_IMODE(file.stat().st_mode) & 0o027) == ("dest.example", 0)

    def test_no_longer_than_it_lasts(self, setting: Setting) -> None:
        setting.world.announce("1")
        setting.world.contents["dest.example"] = policy()
        setting.levels()
        setting.world.records.clear()
        setting.clock.advance(WEEK)
        setting.restart()
        assert setting.levels() == NO_POLICY
        assert not list(setting.folder.iterdir())

    def test_the_state_of_a_crash_and_what_is_not_ours(self, setting: Setting) -> None:
        setting.world.announce("1")
        setting.world.contents["dest.example"] = policy()
        setting.levels()
        setting.stop()
        good = (setting.folder / "dest.example").read_bytes()
        (setting.folder / ".dest.example.part").write_bytes(good[:20])
        (setting.folder / "other.example").write_bytes(good)
        (setting.folder / "torn.example").write_bytes(b"domain: torn.example\nid: 1\n")
        (setting.folder / "empty.example").write_bytes(b"")
        (setting.folder / "binary.example").write_bytes(b"\xff\0")
        (setting.folder / "folder.example").mkdir()
        setting.sts = setting.started()
        assert setting.levels() == ENFORCED
        faults = [str(event["detail"]) for event in setting.said("fault")]
        assert [fault.partition(": ")[0].rpartition("/")[2] for fault in faults] == [
            "binary.example",
            "empty.example",
            "folder.example",
            "other.example",
            "torn.example",
        ]
        assert not (setting.folder / ".dest.example.part").exists()

    def test_a_clock_set_back_does_not_make_it_last_longer(self, setting: Setting) -> None:
        folder = PolicyFolder(setting.folder)
        folder.keep(Kept("dest.example", "1", Policy(Mode.ENFORCE, ("mx1.dest.example",), 100), 5000.0, 5000.0))
        ((kept,), _) = folder.load(1000.0)
        assert kept.fetched == 1000.0

    def test_a_disk_that_does_not_take_it(self, setting: Setting) -> None:
        setting.folder.write_bytes(b"a file where the folder should be")
        setting.world.announce("1")
        setting.world.contents["dest.example"] = policy()
        assert setting.levels() == ENFORCED
        setting.stop()
        assert len(setting.said("fault")) == 1
        setting.sts = setting.started()
        assert setting.levels() == ENFORCED

    def test_no_more_than_so_many(self, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("relayd.delivery.sts.MOST", 3)
        for number in range(5):
            domain = f"d{number}.example"
            setting.world.announce("1", domain)
            setting.world.contents[domain] = policy()
            setting.levels(route=replace(ROUTE, domain=domain))
            setting.levels(route=replace(ROUTE, domain="d0.example"))  # in use all the time
        setting.restart()
        assert sorted(file.name for file in setting.folder.iterdir()) == ["d0.example", "d3.example", "d4.example"]

    @pytest.mark.parametrize("domain", ["a" * 63 + "." + "b" * 63 + "." + "c" * 63 + ".example", "_x.example", "a"])
    def test_any_domain_has_a_file(self, setting: Setting, domain: str) -> None:
        assert is_domain(domain)
        kept = Kept(domain, "1", Policy(Mode.TESTING, ("*.a.example", "b"), 100), 1000.0, 1000.0)
        PolicyFolder(setting.folder).keep(kept)
        assert PolicyFolder(setting.folder).load(1000.0) == ([kept], [])
        PolicyFolder(setting.folder).remove(domain)
        assert not list(setting.folder.iterdir())
