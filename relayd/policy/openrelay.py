"""Is this configuration an open relay? Computed from it exactly, without probing.

Open means that strangers may have mail relayed to a domain that is not listed: on some listener, the anonymous clients
that pass its access list and its relay restrictions hold public address space wider than a /8 (IPv4) or a /19 (IPv6).
A public suffix as a name stands for all addresses, as any stranger may own a host below it; a name below one stands for
none, as its owner is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as File
from typing import Final

from relayd.model import Rule
from relayd.policy.lines import Lines
from relayd.policy.space import EVERYWHERE, NOWHERE, PUBLIC, AddressSpace
from relayd.policy.suffixes import is_public_suffix
from relayd.settings import AllowMode, Domain, DomainKind, HostEntry, HostList, Listener, Settings

WIDEST4: Final = 1 << 32 - 8
WIDEST6: Final = 1 << 128 - 19


@dataclass(frozen=True, slots=True)
class OpenRelay:
    """One way in for strangers.

    :ivar file: the configuration file.
    :ivar listener: the name of the listener that lets them in.
    :ivar rule: what the administrator should change.
    :ivar why: one sentence.
    :ivar space: the public addresses that may relay.
    """

    file: File
    listener: str
    rule: Rule
    why: str
    space: AddressSpace

    @property
    def how_much(self) -> str:
        """*space* for people."""
        parts = []
        if self.space.size4:
            parts.append(f"{self.space.size4:,} public IPv4 addresses")
        if self.space.size6:
            parts.append(f"public IPv6 space of a /{129 - self.space.size6.bit_length()} or more")
        return " and ".join(parts)

    def __str__(self) -> str:
        """In the form of a configuration fault: ``FILE:LINE: KEY: what is wrong, and what would be right``."""
        return (
            f"{self.file}:{self.rule.line or 1}: {self.rule.key}: open relay on listener {self.listener}: {self.why} "
            f"({self.how_much}); allow only your own networks, or start with --allow-open-relay"
        )

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "listener": self.listener,
            "rule": self.rule.key,
            "line": self.rule.line,
            "why": self.why,
            "how_much": self.how_much,
            "ipv4_addresses": self.space.size4,
            "ipv6_addresses": self.space.size6,
            "networks": [str(network) for network in self.space.networks()],
        }


def open_relay(settings: Settings) -> tuple[OpenRelay, ...]:
    """All ways in which *settings* is an open relay; empty when it is none.

    A listener where everyone must authenticate is not one.
    """
    lines = Lines(settings.lines)
    return tuple(
        found
        for listener in settings.listeners
        if listener.authentication.anonymous
        for found in _on_listener(settings, listener, lines)
    )


def anonymous_space(listener: Listener) -> AddressSpace:
    """The addresses from which anonymous clients may relay to domains that are not listed."""
    return _passing(listener.access.allow, listener.access.list) & _passing(listener.relay.allow, listener.relay.list)


def _on_listener(settings: Settings, listener: Listener, lines: Lines) -> Iterator[OpenRelay]:
    def found(rule: Rule, why: str, space: AddressSpace) -> OpenRelay:
        return OpenRelay(settings.file, listener.name, rule, why, space)

    relay = listener.relay
    space = anonymous_space(listener) & PUBLIC
    if _too_wide(space):
        if relay.allow is AllowMode.ALL_EXCEPT:
            why = "all computers except the list may relay without authentication"
            yield found(lines.rule(f"{relay.origin}.allow"), why, space)
        else:
            key, why = _culprit(
                relay.list, f"{relay.origin}.list", _passing(listener.access.allow, listener.access.list)
            )
            yield found(lines.rule(key), f"{why} may relay without authentication", space)
    space = _passing(listener.access.allow, listener.access.list) & PUBLIC
    if _too_wide(space):
        for domain in settings.domains:
            if _is_everything(domain):
                name = f"*.{domain.name}".removesuffix(".")
                why = f"everyone may send to {name} without authentication"
                yield found(lines.rule(f"{domain.origin}.relay"), why, space)
    space = _passing(AllowMode.ONLY, listener.proxy_protocol) & PUBLIC
    if _too_wide(space):
        key, why = _culprit(listener.proxy_protocol, f"{listener.origin}.proxy_protocol", EVERYWHERE)
        yield found(lines.rule(key), f"{why} may claim any client address in a PROXY header", space)


def _passing(allow: AllowMode, entries: HostList) -> AddressSpace:
    """The addresses that a list with its radio button lets pass; names that deny are no hindrance to a stranger."""
    networks = AddressSpace.of(entry.network for entry in entries if entry.network is not None)
    if allow is AllowMode.ALL_EXCEPT:
        return ~networks
    return EVERYWHERE if any(map(_is_strangers_name, entries)) else networks


def _is_strangers_name(entry: HostEntry) -> bool:
    return entry.network is None and is_public_suffix(entry.name, wildcard=entry.wildcard)


def _is_everything(domain: Domain) -> bool:
    """A remote domain with ``relay`` that is the catch-all, or all of a public suffix."""
    whole = domain.wildcard and is_public_suffix(domain.name, wildcard=True)
    return domain.kind is DomainKind.REMOTE and domain.relay and whole


def _too_wide(space: AddressSpace) -> bool:
    return space.size4 > WIDEST4 or space.size6 > WIDEST6


def _culprit(entries: HostList, key: str, among: AddressSpace) -> tuple[str, str]:
    """The entry that opens the list: (key, what it lets in); the whole list when it takes several."""
    widest, share = "", NOWHERE
    for index, entry in enumerate(entries):
        if entry.network is None:
            if _is_strangers_name(entry):
                return f"{key}[{index}]", f"{entry.text} is a public suffix: hosts of strangers"
            continue
        space = AddressSpace.of([entry.network]) & among & PUBLIC
        if (space.size4 / WIDEST4, space.size6) > (share.size4 / WIDEST4, share.size6):
            widest, share = f"{key}[{index}]", space
    return (widest, "all of this network") if _too_wide(share) else (key, "these networks together")
