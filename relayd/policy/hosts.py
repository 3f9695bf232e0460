"""Host lists: is a client on one, and at which entry?

An address is looked up once per prefix length that the list uses, a name once per label: the length of the list does
not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from relayd.model import NO_NAMES, IPAddress, Names, Outcome, Rule
from relayd.policy.domains import fold
from relayd.policy.lines import Lines
from relayd.policy.space import plain_address, plain_network
from relayd.settings import AllowMode, HostList

UNKNOWN_NAMES: Final = Names(failed=True)


class HostMatcher:
    """A host list, compiled.

    Addresses match by network, IPv4-mapped ones as IPv4. Names match what reverse DNS gave: ``host.example`` that very
    name, ``*.example`` any name below it.
    """

    def __init__(self, entries: HostList) -> None:
        self._networks: dict[int, list[tuple[int, dict[int, int]]]] = {4: [], 6: []}
        self._exact: dict[str, int] = {}
        self._below: dict[str, int] = {}
        self.first_name: int | None = None
        by_shift: dict[tuple[int, int], dict[int, int]] = {}
        for index, entry in enumerate(entries):
            if entry.network is not None:
                network = plain_network(entry.network)
                shift = network.max_prefixlen - network.prefixlen
                table = by_shift.setdefault((network.version, shift), {})
                table.setdefault(int(network.network_address) >> shift, index)
                continue
            (self._below if entry.wildcard else self._exact).setdefault(fold(entry.name), index)
            if self.first_name is None:
                self.first_name = index
        for (version, shift), table in by_shift.items():
            self._networks[version].append((shift, table))

    @property
    def has_names(self) -> bool:
        """Whether an entry is a name, so that reverse DNS may matter."""
        return self.first_name is not None

    def match(self, address: IPAddress, names: Names = NO_NAMES, *, denying: bool) -> int | None:
        """The index of the first entry that holds the client, or None.

        None is no answer when *names* has failed and the list :attr:`has_names`: the caller must defer.

        :param denying: the list says who may not: names that the client only claims count too, as it owns its own PTR.
        """
        found: list[int] = []
        address = plain_address(address)
        number = int(address)
        for shift, table in self._networks[address.version]:
            index = table.get(number >> shift)
            if index is not None:
                found.append(index)
        if self.first_name is not None:
            for name in names.confirmed + names.claimed if denying else names.confirmed:
                found.extend(self._named(fold(name)))
        return min(found, default=None)

    def _named(self, name: str) -> Iterator[int]:
        index = self._exact.get(name)
        if index is not None:
            yield index
        while name:
            name = name.partition(".")[2]
            index = self._below.get(name)
            if index is not None:
                yield index


class HostRule:
    """A host list with its radio button (``allow`` and ``list``): may this client, and by which rule?

    :param origin: what its keys are named after: ``relay``, ``listener[1].access``.
    """

    def __init__(self, allow: AllowMode, entries: HostList, origin: str, lines: Lines) -> None:
        self.matcher = HostMatcher(entries)
        self.rule = lines.rule(f"{origin}.allow")
        self.entry_rules = tuple(lines.rule(f"{origin}.list[{i}]") for i in range(len(entries)))
        self._denying = allow is AllowMode.ALL_EXCEPT

    def test(self, address: IPAddress, names: Names) -> tuple[Outcome, Rule]:
        """The outcome and what made it. DEFER: a name that could not be looked up for now would decide."""
        index = self.matcher.match(address, names, denying=self._denying)
        if index is not None:
            return (Outcome.REFUSE if self._denying else Outcome.ACCEPT), self.entry_rules[index]
        if names.failed and self.matcher.first_name is not None:
            return Outcome.DEFER, self.entry_rules[self.matcher.first_name]
        return (Outcome.ACCEPT if self._denying else Outcome.REFUSE), self.rule
