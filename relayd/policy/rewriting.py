"""``[[rewrite]]``: another sender for devices that send from what the next hop refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from relayd.model import Client, Path, Principal, Rule
from relayd.policy.hosts import HostMatcher
from relayd.policy.lines import Lines
from relayd.settings import HostEntry, Rewrite


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What becomes of a sender.

    :ivar path: the new envelope sender.
    :ivar header: From: gets it, too.
    """

    path: Path
    header: bool
    rule: Rule


class _Entry:
    def __init__(self, rewrite: Rewrite, rule: Rule) -> None:
        self.rewrite = rewrite
        self.rule = rule
        self.users = frozenset(_user(text) for text in rewrite.match if not _is_network(text))
        self.hosts = HostMatcher(tuple(entry for text in rewrite.match if (entry := _host(text)) is not None))

    def holds(self, client: Client) -> bool:
        if client.principal is not None and not self.users.isdisjoint(_names(client.principal)):
            return True
        return self.hosts.match(client.peer.address, client.names, denying=False) is not None


class Rewriting:
    """All ``[[rewrite]]`` tables; the first that matches counts."""

    def __init__(self, rewrites: Sequence[Rewrite], lines: Lines) -> None:
        self._entries = [_Entry(rewrite, lines.rule(f"rewrite[{i}]")) for i, rewrite in enumerate(rewrites)]
        self.wants_names = any(entry.hosts.has_names for entry in self._entries)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def undecided(self, client: Client) -> bool:
        """Whether a name that could not be looked up for now might change the sender."""
        return client.names.failed and self.wants_names and self.of(client, Path("x", "x")) is None

    def of(self, client: Client, sender: Path) -> Rewritten | None:
        """The sender that stands in for *sender*; None: it stays. The null reverse-path always does."""
        if sender.null:
            return None
        for entry in self._entries:
            if entry.holds(client):
                local, _, domain = entry.rewrite.from_.rpartition("@")
                return Rewritten(
                    Path(sender.local if local == "*" else local, domain), entry.rewrite.header, entry.rule
                )
        return None


def _names(principal: Principal) -> set[str]:
    """All that an administrator may call somebody; *CORP\\alice* by what stands behind the domain."""
    name = principal.name.casefold()
    names = {name, principal.upn.casefold(), *principal.addresses} - {""}
    return names if principal.source == "accounts" else names | {f"\\{name}"}


def _user(text: str) -> str:
    _, backslash, name = text.casefold().rpartition("\\")
    return backslash + name


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _host(text: str) -> HostEntry | None:
    """*text* as an entry of a host list, where it may be one. A name without a dot is a user's."""
    if _is_network(text):
        return HostEntry(text, ip_network(text, strict=False))
    if "@" in text or "\\" in text or "." not in text:
        return None
    return HostEntry(text, name=text.lower().removeprefix("*."), wildcard=text.startswith("*."))
