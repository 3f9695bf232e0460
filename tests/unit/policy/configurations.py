"""The configurations that decisions.golden speaks of, and a small builder of :class:`Settings` for the other tests.

Values are built here and not read from TOML, so that these tests hold the policy alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path as File
from types import MappingProxyType

from relayd.settings import (
    Access,
    AllowMode,
    Authentication,
    Console,
    Domain,
    DomainKind,
    HostEntry,
    HostList,
    Limits,
    Listener,
    Relay,
    Server,
    Settings,
    TlsMode,
)


def host(text: str) -> HostEntry:
    """One host entry, as relayd.toml writes it."""
    if text[0].isdigit() or ":" in text:
        return HostEntry(text, ip_network(text))
    return HostEntry(text, name=text.removeprefix("*.").lower(), wildcard=text.startswith("*."))


def hosts(*texts: str) -> HostList:
    return tuple(map(host, texts))


def local(name: str, *aliases: str) -> Domain:
    return _domain(name, kind=DomainKind.LOCAL, aliases=aliases)


def remote(name: str, *, relay: bool) -> Domain:
    return _domain(name, kind=DomainKind.REMOTE, relay=relay)


def _domain(name: str, kind: DomainKind, aliases: tuple[str, ...] = (), relay: bool = False) -> Domain:
    wildcard = name.startswith("*")
    return Domain(name.removeprefix("*").removeprefix(".") if wildcard else name, wildcard, kind, aliases, relay=relay)


def only(*entries: str) -> tuple[AllowMode, HostList]:
    """ "Only the list below"."""
    return AllowMode.ONLY, hosts(*entries)


def all_except(*entries: str) -> tuple[AllowMode, HostList]:
    """ "All except the list below"."""
    return AllowMode.ALL_EXCEPT, hosts(*entries)


Choice = tuple[AllowMode, HostList]


def listener(
    name: str = "smtp",
    *,
    access: Choice = (AllowMode.ALL_EXCEPT, ()),
    relay: Choice = (AllowMode.ONLY, ()),
    authenticated: bool = True,
    groups: Sequence[str] = (),
    send_as: str = "any",
    send_as_groups: Mapping[str, tuple[str, ...]] | None = None,
    anonymous_send_as: Sequence[str] = (),
    anonymous: bool = True,
    basic: bool = True,
    basic_requires_tls: bool = True,
    integrated: bool = True,
    ntlm: bool = True,
    channel_binding: str = "accept",
    tls: TlsMode = TlsMode.STARTTLS,
    require_tls: bool = False,
    message_size: int = 25 * 1024**2,
    address: str = "::",
    legacy_clients: HostList = (),
    proxy_protocol: HostList = (),
) -> Listener:
    """A listener whose keys come from the global tables."""
    return Listener(
        name,
        address,
        tls=tls,
        require_tls=require_tls,
        legacy_clients=legacy_clients,
        proxy_protocol=proxy_protocol,
        access=Access(*access),
        authentication=Authentication(
            anonymous, basic, basic_requires_tls, integrated, ntlm, channel_binding=channel_binding
        ),
        relay=Relay(
            *relay,
            authenticated,
            tuple(groups),
            send_as,
            MappingProxyType(dict(send_as_groups or {})),
            anonymous_send_as=tuple(anonymous_send_as),
        ),
        limits=Limits(message_size=message_size),
    )


def settings(*listeners: Listener, domains: Sequence[Domain] = (), lines: Mapping[str, int] | None = None) -> Settings:
    """A whole configuration; domains and listeners get their origins."""
    return Settings(
        file=File("relayd.toml"),
        server=Server("relay.corp.example", File("state")),
        console=Console(File("control.sock")),
        listeners=tuple(replace(each, origin=f"listener[{i}]") for i, each in enumerate(listeners or (listener(),))),
        domains=tuple(replace(each, origin=f"domain[{i}]") for i, each in enumerate(domains)),
        lines=MappingProxyType(dict(lines or {})),
    )


CORP = local("corp.example", "corp.test", "bücher.example")
DOMAINS = (
    CORP,  # domain[0]
    remote("partner.example", relay=True),
    remote("*.partner.example", relay=True),
    remote("secret.partner.example", relay=False),
    remote("*.closed.partner.example", relay=False),
    local("*.sites.example"),  # domain[5]
)

# KB 324281: a single computer, a group of computers by subnet address and mask, a domain by name.
COMPUTERS = ("192.0.2.7", "198.51.100.0/255.255.255.0", "app.corp.example", "*.devices.example", "2001:db8:1::/48")

CONFIGURATIONS: Mapping[str, Settings] = {
    # Access > Authentication: the three boxes.
    "boxes: anonymous": settings(listener(basic=False, integrated=False), domains=[CORP]),
    "boxes: basic": settings(listener(anonymous=False, integrated=False), domains=[CORP]),
    "boxes: integrated": settings(listener(anonymous=False, basic=False), domains=[CORP]),
    "boxes: anonymous, basic": settings(listener(integrated=False), domains=[CORP]),
    "boxes: anonymous, integrated": settings(listener(basic=False), domains=[CORP]),
    "boxes: basic, integrated": settings(listener(anonymous=False), domains=[CORP]),
    "boxes: anonymous, basic, integrated": settings(listener(), domains=[CORP]),
    "no ntlm": settings(listener(ntlm=False), domains=[CORP]),
    "channel binding": settings(listener(anonymous=False, channel_binding="require"), domains=[CORP]),
    "boxes: none": settings(listener(anonymous=False, basic=False, integrated=False), domains=[CORP]),
    "basic in the clear": settings(listener(basic_requires_tls=False), domains=[CORP]),
    # Access > Secure communication.
    "require TLS": settings(listener(require_tls=True, relay=only(*COMPUTERS)), domains=[CORP]),
    # Access > Connection control.
    "connect: all except": settings(
        listener(access=all_except(*COMPUTERS), relay=all_except("192.0.2.0/28")), domains=[CORP]
    ),
    "connect: only": settings(listener(access=only(*COMPUTERS), relay=only("198.51.100.9")), domains=[CORP]),
    "connect: only, empty": settings(listener(access=only()), domains=[CORP]),
    # Access > Relay.
    "relay: only": settings(listener(relay=only(*COMPUTERS)), domains=[CORP]),
    "relay: only, box off": settings(listener(relay=only(*COMPUTERS), authenticated=False), domains=[CORP]),
    "relay: all except": settings(listener(relay=all_except(*COMPUTERS)), domains=[CORP]),
    "relay: all except, box off": settings(listener(relay=all_except(*COMPUTERS), authenticated=False), domains=[CORP]),
    "relay: all except, empty": settings(listener(relay=all_except()), domains=[CORP]),
    "relay: void box": settings(
        listener(basic=False, integrated=False, relay=only("192.0.2.7"), authenticated=True), domains=[CORP]
    ),
    # Domains.
    "domains": settings(listener(), domains=DOMAINS),
    "domains: none": settings(listener(relay=only("192.0.2.7"))),
    "domains: catch-all": settings(
        listener(), domains=[CORP, remote("*", relay=True), remote("closed.example", relay=False)]
    ),
    # What IIS did not have.
    "groups": settings(listener(relay=only("192.0.2.7"), groups=["Mail Relay", "S-1-5-21-1-2-3-515"]), domains=[CORP]),
    "send as": settings(
        listener(
            send_as="own",
            send_as_groups={
                "App Senders": ("*@apps.corp.example", "noreply@corp.example"),
                "Anything": ("*@*.corp.example", "*"),
            },
            anonymous_send_as=["scanner@corp.example", "*@devices.corp.example"],
            relay=only("192.0.2.7"),
        ),
        domains=[CORP],
    ),
    "size": settings(listener(message_size=1024, relay=only("192.0.2.7")), domains=[CORP]),
    "listeners": settings(
        listener("smtp", relay=only("192.0.2.7")),
        replace(
            listener("submission", anonymous=False, require_tls=True),
            authentication=Authentication(anonymous=False, origin="listener[1]"),
        ),
        replace(
            listener("printers", address="192.0.2.1"),
            access=Access(*only("198.51.100.0/24"), origin="listener[2].access"),
            relay=Relay(*all_except("198.51.100.66"), authenticated=False, origin="listener[2].relay"),
        ),
        listener("smtps", tls=TlsMode.IMPLICIT, anonymous=False),
        domains=DOMAINS,
        lines={"listener[1].anonymous": 12, "listener[2].relay.allow": 20, "relay.list[0]": 30},
    ),
}
