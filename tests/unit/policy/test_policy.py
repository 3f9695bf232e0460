"""What the golden table does not show: texts of replies, names that are wanted, lines of rules, what never happens."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.model import (
    NO_NAMES,
    NULL_PATH,
    Client,
    Fault,
    IPAddress,
    Names,
    Outcome,
    Path,
    Peer,
    Principal,
    Recipient,
    Sender,
    Tls,
)
from relayd.policy import Policy
from relayd.settings import AllowMode, DomainKind, HostList, Settings, TlsMode

from .configurations import CORP, DOMAINS, all_except, hosts, listener, local, only, remote, settings
from .strategies import addresses, choices, host_names, names
from .test_hosts import naive_holds

ALICE = Principal("alice", "PLAIN", "accounts", groups=frozenset({"Staff"}), addresses=("alice@corp.example",))
IN_TLS = Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384")
SENDER = Sender(Path("app", "x.example"))
ELSEWHERE = Recipient(Path("bob", "elsewhere.example"))


def client(
    address: str = "203.0.113.5", *, tls: bool = False, who: Principal | None = None, told: Names = NO_NAMES
) -> Client:
    return Client(Peer(ip_address(address)), "smtp", told, IN_TLS if tls else None, who)


# ---- replies ---------------------------------------------------------------------------------------------------------


def test_replies_in_words() -> None:
    policy = Policy(
        settings(
            listener(access=all_except("192.0.2.1", "*.bad.example"), relay=only("*.good.example"), message_size=1000)
        )
    )
    failing = client(told=Names(failed=True))
    assert str(policy.greet(client("192.0.2.1")).reply) == "554 5.7.1 Access denied to 192.0.2.1"
    assert str(policy.greet(failing).reply).startswith("421 4.4.3 relay.corp.example ")
    assert str(policy.rcpt(failing, SENDER, ELSEWHERE).reply).startswith("451 4.4.3 ")
    assert str(policy.rcpt(client(), SENDER, ELSEWHERE).reply) == "550 5.7.1 Unable to relay for bob@elsewhere.example"
    big = policy.mail(client(), replace(SENDER, size=1001)).reply
    assert str(big) == "552 5.3.4 Message size exceeds the limit of 1000 octets"


def test_no_limit_of_size() -> None:
    policy = Policy(settings(listener(message_size=0)))
    assert policy.mail(client(), replace(SENDER, size=10**12)).accepted


def test_a_refused_sender_learns_who_he_is_taken_for() -> None:
    policy = Policy(settings(listener(send_as="own", anonymous_send_as=["a@x.example"]), domains=[CORP]))
    known, unknown = policy.mail(client(tls=True, who=ALICE), SENDER), policy.mail(client(), SENDER)
    assert str(known.reply) == "550 5.7.1 <app@x.example> is not a sender for alice"
    assert str(unknown.reply) == "550 5.7.1 <app@x.example> is not a sender for clients that have not authenticated"


# ---- the session -----------------------------------------------------------------------------------------------------


def test_mechanisms() -> None:
    integrated, basic = ("GSSAPI", "GSS-SPNEGO", "NTLM"), ("PLAIN", "LOGIN")
    for entry, in_the_clear, under_tls in (
        (listener(), integrated, integrated + basic),
        (listener(basic_requires_tls=False), integrated + basic, integrated + basic),
        (listener(basic=False), integrated, integrated),
        (listener(basic=False, ntlm=False), integrated[:-1], integrated[:-1]),
        (listener(integrated=False), (), basic),
        (listener(channel_binding="require"), (), integrated + basic),
        (listener(integrated=False, basic=False), (), ()),
    ):
        policy = Policy(settings(entry))
        assert policy.mechanisms(client()) == in_the_clear
        assert policy.mechanisms(client(tls=True)) == under_tls


def test_external_is_for_who_showed_a_certificate_that_is_good_or_may_be() -> None:
    policy = Policy(settings(listener(integrated=False, basic=False)))
    shown = replace(client(), tls=Tls("TLSv1.3", "", certificate=b"DER"))
    assert policy.mechanisms(shown) == ("EXTERNAL",)
    assert policy.auth(shown, "external").accepted
    doubted = replace(client(), tls=Tls("TLSv1.3", "", undecided="the list has expired"))
    assert policy.auth(doubted, "external").accepted, "for 454, which is no refusal"
    assert not policy.auth(client(tls=True), "EXTERNAL").accepted


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "plain", "GSSAPI", "EXTERNAL", "XOAUTH2", "", "ANONYMOUS"])
@pytest.mark.parametrize("tls", [False, True])
def test_auth_accepts_what_is_offered_and_nothing_else(mechanism: str, tls: bool) -> None:
    policy = Policy(settings(listener()))
    offered = policy.mechanisms(client(tls=tls))
    assert policy.auth(client(tls=tls), mechanism).accepted == (mechanism.upper() in offered)


def test_auth_after_success_is_503_and_the_session_stays_authenticated() -> None:
    policy = Policy(settings(listener()))
    session = client(tls=True, who=ALICE)
    for mechanism in ("PLAIN", "GSSAPI"):
        verdict = policy.auth(session, mechanism)
        assert (verdict.reply.code, verdict.reply.enhanced) == (503, "5.5.1")
    assert policy.rcpt(session, SENDER, ELSEWHERE).accepted


def test_tls_required() -> None:
    policy = Policy(settings(listener(require_tls=True)))
    verdict = policy.tls_required(client())
    assert verdict is not None
    assert (verdict.outcome, verdict.reply.code) == (Outcome.REFUSE, 530)
    assert policy.tls_required(client(tls=True)) is None
    assert Policy(settings(listener())).tls_required(client()) is None


def test_mail_and_rcpt_hold_by_themselves() -> None:
    """Whoever forgets to ask for TLS or authentication first is answered all the same."""
    tls_first = Policy(settings(listener(require_tls=True, relay=all_except()), domains=[CORP]))
    authenticate_first = Policy(settings(listener(anonymous=False, relay=all_except()), domains=[CORP]))
    for policy in (tls_first, authenticate_first):
        assert policy.mail(client(), SENDER).reply.code == 530
        assert policy.rcpt(client(), SENDER, ELSEWHERE).reply.code == 530
        assert policy.rcpt(client(), SENDER, Recipient(Path("postmaster"))).reply.code == 530
    assert tls_first.auth(client(), "PLAIN").reply.code == 530


def test_legacy_clients() -> None:
    policy = Policy(settings(listener(legacy_clients=hosts("198.51.100.0/24", "*.devices.example"))))
    assert policy.legacy(client("198.51.100.9"))
    assert policy.legacy(client(told=Names(("p1.devices.example",))))
    assert not policy.legacy(client(told=Names(claimed=("p1.devices.example",))))
    assert not policy.legacy(client(told=Names(failed=True)))
    assert not policy.legacy(client())


def test_an_unknown_listener_is_a_lookup_error() -> None:
    policy = Policy(settings())
    with pytest.raises(LookupError):
        policy.listener("nowhere")
    with pytest.raises(LookupError):
        policy.greet(replace(client(), listener="nowhere"))


@pytest.mark.parametrize(
    ("configuration", "address", "wanted"),
    [
        (listener(), "203.0.113.5", False),
        (listener(relay=only("10.0.0.0/8", "*.example")), "203.0.113.5", True),
        (listener(relay=only("10.0.0.0/8", "*.example")), "10.0.0.1", False),
        (listener(relay=all_except("10.0.0.0/8", "*.example")), "10.0.0.1", False),
        (listener(relay=all_except("10.0.0.0/8", "*.example")), "203.0.113.5", True),
        (listener(access=only("10.0.0.0/8", "*.example")), "10.0.0.1", False),
        (listener(access=only("10.0.0.0/8", "*.example")), "203.0.113.5", True),
        (listener(access=all_except("10.0.0.0/8"), relay=only("*.example")), "10.0.0.1", False),
        (listener(legacy_clients=hosts("*.example")), "203.0.113.5", True),
        (listener(legacy_clients=hosts("*.example", "203.0.113.5")), "203.0.113.5", False),
        # Nobody gets as far as the list: all who authenticate relay, and the others may not send at all.
        (listener(anonymous=False, relay=only("*.example")), "203.0.113.5", False),
        (listener(anonymous=False, authenticated=False, relay=only("*.example")), "203.0.113.5", True),
        (listener(anonymous=False, groups=["Staff"], relay=only("*.example")), "203.0.113.5", True),
        (listener(anonymous=False, basic=False, integrated=False, relay=only("*.example")), "203.0.113.5", False),
    ],
)
def test_names_are_wanted_where_they_matter(configuration: object, address: str, wanted: bool) -> None:
    policy = Policy(settings(configuration))  # type: ignore[arg-type]
    assert policy.wants_names("smtp", ip_address(address)) is wanted


# ---- completing ------------------------------------------------------------------------------------------------------


def test_complete() -> None:
    policy = Policy(settings(domains=[remote("partner.example", relay=True), local("*.sites.example"), CORP]))
    assert policy.complete(Path("alice")) == Path("alice", "corp.example")
    assert policy.complete(NULL_PATH) == NULL_PATH
    assert policy.complete(Path("alice", "x.example")) == Path("alice", "x.example")
    assert policy.complete(Path("Postmaster")) == Path("Postmaster")
    assert policy.complete(Path("postmaster"), sender=True) == Path("postmaster", "corp.example")


def test_complete_without_a_local_domain() -> None:
    policy = Policy(settings(domains=[remote("partner.example", relay=True)]))
    with pytest.raises(Fault) as caught:
        policy.complete(Path("alice"))
    assert (caught.value.reply.code, caught.value.reply.enhanced) == (553, "5.1.3")
    assert policy.complete(Path("postmaster")) == Path("postmaster")


def test_postmaster_at_our_own_address_is_postmaster() -> None:
    policy = Policy(settings(listener(address="2001:db8::25"), listener("v4", address="192.0.2.1"), domains=[CORP]))
    assert policy.complete(Path("postmaster", "[192.0.2.1]")) == Path("postmaster")
    assert policy.complete(Path("postmaster", "[IPv6:2001:DB8:0::25]")) == Path("postmaster")
    assert policy.complete(Path("postmaster", "[192.0.2.2]")) == Path("postmaster", "[192.0.2.2]")
    assert policy.complete(Path("alice", "[192.0.2.1]")) == Path("alice", "[192.0.2.1]")
    assert policy.complete(Path("postmaster", "[192.0.2.1]"), sender=True) == Path("postmaster", "[192.0.2.1]")


# ---- rules -----------------------------------------------------------------------------------------------------------


def test_rules_carry_the_lines_they_were_written_on() -> None:
    lines = {
        "access.list[0]": 3,
        "relay.allow": 7,
        "relay.list": 8,
        "listener": 9,
        "listener[0]": 9,
        "domain[0].name": 11,
        "domain[1]": 13,
        "domain[1].relay": 15,
        "authentication.anonymous": 20,
    }
    policy = Policy(
        settings(
            listener(access=all_except("192.0.2.1"), relay=only("192.0.2.2")),
            domains=[CORP, remote("partner.example", relay=True)],
            lines=lines,
        )
    )

    def line(address: str, recipient: str) -> tuple[str, int]:
        verdict = policy.rcpt(client(address), SENDER, Recipient(Path("user", recipient)))
        return verdict.rule.key, verdict.rule.line

    assert policy.greet(client("192.0.2.1")).rule.line == 3
    assert policy.greet(client()).rule.line == 0
    assert policy.mail(client(), replace(SENDER, size=10**9)).rule.line == 0
    assert policy.mail(client(), SENDER).rule.line == 20
    assert line("192.0.2.3", "elsewhere.example") == ("relay.allow", 7)
    assert line("192.0.2.2", "elsewhere.example") == ("relay.list[0]", 8)
    assert line("192.0.2.3", "corp.example") == ("domain[0]", 11)
    assert line("192.0.2.3", "partner.example") == ("domain[1].relay", 15)


def test_a_listeners_key_is_named_where_it_was_written() -> None:
    own = listener(anonymous=False)
    own = replace(own, authentication=replace(own.authentication, origin="listener[0]"))

    def rule(lines: dict[str, int]) -> str:
        return str(Policy(settings(own, lines=lines)).mail(client(), SENDER).rule)

    assert rule({"listener[0].anonymous": 5, "authentication.anonymous": 9}) == "listener[0].anonymous (line 5)"
    assert rule({"listener[0].basic": 5, "authentication.anonymous": 9}) == "authentication.anonymous (line 9)"
    assert rule({"listener[0].basic": 5}) == "authentication.anonymous"


def test_rules_of_senders() -> None:
    policy = Policy(
        settings(
            listener(
                send_as="own",
                send_as_groups={"App Senders": ("x@a.example", "*@b.example"), "staff": ("*@c.example",)},
                anonymous_send_as=["a@x.example", "*@y.example"],
            )
        )
    )

    def rule(who: Principal | None, domain: str) -> str:
        return policy.mail(client(tls=True, who=who), Sender(Path("z", domain))).rule.key

    app = replace(ALICE, groups=frozenset({"APP SENDERS"}))
    assert rule(app, "b.example") == 'relay.send_as_groups."App Senders"[1]'
    assert rule(ALICE, "c.example") == "relay.send_as_groups.staff[0]"
    assert rule(ALICE, "b.example") == "relay.send_as"
    assert rule(None, "y.example") == "relay.anonymous_send_as[1]"


# ---- what never happens ----------------------------------------------------------------------------------------------


def may_relay_naively(choice: tuple[AllowMode, HostList], address: IPAddress, told: Names) -> bool | None:
    """The list's plain meaning; None when only failing DNS could tell."""
    allow, entries = choice
    denying = allow is AllowMode.ALL_EXCEPT
    counted = told.confirmed + told.claimed if denying else told.confirmed
    if any(naive_holds(entry, address, counted) for entry in entries):
        return not denying
    if told.failed and any(entry.network is None for entry in entries):
        return None
    return denying


@given(choices, choices, addresses, names, st.booleans(), st.booleans(), host_names)
def test_an_anonymous_client_never_relays_outside_the_lists(
    access: tuple[AllowMode, HostList],
    relay: tuple[AllowMode, HostList],
    address: IPAddress,
    told: Names,
    authenticated: bool,
    anonymous: bool,
    domain: str,
) -> None:
    policy = Policy(
        settings(
            listener(access=access, relay=relay, authenticated=authenticated, anonymous=anonymous), domains=DOMAINS
        )
    )
    session = Client(Peer(address), "smtp", told)
    recipient = Recipient(Path("user", f"{domain}.elsewhere.test"))
    connected, relayed = policy.greet(session), policy.rcpt(session, SENDER, recipient)
    expected = {True: Outcome.ACCEPT, False: Outcome.REFUSE, None: Outcome.DEFER}
    assert connected.outcome is expected[may_relay_naively(access, address, told)]
    if anonymous:
        assert relayed.outcome is expected[may_relay_naively(relay, address, told)]
    else:
        assert (relayed.outcome, relayed.reply.code) == (Outcome.REFUSE, 530)


@given(addresses, names, choices, st.sampled_from(["%", "!", "@"]), st.booleans())
def test_no_route_in_a_local_part_is_ever_relayed(
    address: IPAddress, told: Names, relay: tuple[AllowMode, HostList], character: str, known: bool
) -> None:
    policy = Policy(settings(listener(relay=relay), domains=DOMAINS))
    session = Client(Peer(address), "smtp", told, IN_TLS, ALICE if known else None)
    for domain in ("partner.example", "elsewhere.example", "[192.0.2.1]"):
        for local_part in (f"a{character}corp.example", f'"a{character}corp.example"', f'"a\\{character}b"'):
            verdict = policy.rcpt(session, SENDER, Recipient(Path(local_part, domain)))
            assert (verdict.reply.code, verdict.reply.enhanced) == (550, "5.7.1")


def every_kind_of_settings() -> st.SearchStrategy[Settings]:
    return st.builds(
        lambda relay, anonymous, basic, integrated, tls, required: settings(
            listener(
                relay=relay, anonymous=anonymous, basic=basic, integrated=integrated, tls=tls, require_tls=required
            ),
            domains=DOMAINS,
        ),
        choices,
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.sampled_from(TlsMode),
        st.booleans(),
    )


@given(
    every_kind_of_settings(),
    addresses,
    names,
    st.booleans(),
    st.booleans(),
    st.sampled_from(
        ["user@corp.example", "user", "postmaster", "user@elsewhere.example", "user@partner.example", "a%b@c.example"]
    ),
)
def test_every_verdict_has_a_reply_of_its_kind_and_a_rule(
    configuration: Settings, address: IPAddress, told: Names, tls: bool, known: bool, recipient: str
) -> None:
    policy = Policy(configuration)
    session = Client(Peer(address), "smtp", told, IN_TLS if tls else None, ALICE if known else None)
    local_part, _, domain = recipient.partition("@")
    for verdict in (
        policy.greet(session),
        policy.auth(session, "PLAIN"),
        policy.mail(session, SENDER),
        policy.rcpt(session, SENDER, Recipient(Path(local_part, domain))),
    ):
        assert verdict.rule.key
        assert verdict.reply.positive is (verdict.outcome is Outcome.ACCEPT)
        assert verdict.reply.temporary is (verdict.outcome is Outcome.DEFER)
        assert verdict.reply.permanent is (verdict.outcome is Outcome.REFUSE)
    if verdict.accepted and policy.domains.find(domain) is None and domain:
        assert known or may_relay_naively(
            (configuration.listeners[0].relay.allow, configuration.listeners[0].relay.list), address, told
        )


def test_without_basic_and_integrated_the_box_is_void() -> None:
    policy = Policy(settings(listener(basic=False, integrated=False)))
    assert not policy.rcpt(client(tls=True, who=ALICE), SENDER, ELSEWHERE).accepted


def test_who_came_in_by_kerberos_relays_as_others_do() -> None:
    policy = Policy(settings(listener(anonymous=False, basic=False)))
    kerberos = replace(ALICE, mechanism="GSSAPI", source="kerberos")
    assert policy.rcpt(client(who=kerberos), SENDER, ELSEWHERE).rule.key == "relay.authenticated"


def test_domains_are_those_of_the_settings() -> None:
    policy = Policy(settings(domains=DOMAINS))
    found = policy.domains.find("corp.example")
    assert found is not None
    assert found.kind is DomainKind.LOCAL
