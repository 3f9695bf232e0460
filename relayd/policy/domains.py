"""The ``[[domain]]`` tables: what is ours, and which table speaks for a domain."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address

import idna

from relayd.settings import Domain, DomainKind


def fold(domain: str) -> str:
    """*domain* in the one form in which domains are compared: lower case, A-labels, no final dot.

    Address literals (RFC 5321 4.1.3) get their shortest form: ``[IPv6:2001:DB8::0]`` becomes ``[2001:db8::]``.
    What is no domain at all comes back in lower case and matches nothing.
    """
    if domain.startswith("["):
        return _fold_literal(domain.lower())
    if not domain.isascii():
        return _fold_international(domain)
    return domain.lower().removesuffix(".")


def _fold_literal(literal: str) -> str:
    try:
        return f"[{ip_address(literal.strip('[]').removeprefix('ipv6:'))}]"
    except ValueError:
        return literal


@lru_cache(maxsize=4096)
def _fold_international(domain: str) -> str:
    try:
        return idna.encode(domain, uts46=True).decode("ascii").lower().removesuffix(".")
    except (idna.IDNAError, UnicodeError):
        return domain.lower()


class DomainTable:
    """Finds the table for a domain: exact beats wildcard, the longest wildcard wins, ``*`` comes last.

    An alias counts as a name of its domain. Where a name is written twice, the first one holds.
    """

    def __init__(self, domains: Sequence[Domain]) -> None:
        self._exact: dict[str, tuple[Domain, str]] = {}
        self._below: dict[str, tuple[Domain, str]] = {}
        for domain in domains:
            table = self._below if domain.wildcard else self._exact
            table.setdefault(fold(domain.name), (domain, domain.origin))
        for domain in domains:
            if domain.kind is DomainKind.LOCAL:
                for i, alias in enumerate(domain.aliases):
                    table = self._below if alias.startswith("*.") else self._exact
                    key = f"{domain.origin}.aliases[{i}]"
                    table.setdefault(fold(alias.removeprefix("*.")), (domain, key))

    def locate(self, domain: str) -> tuple[Domain, str] | None:
        """The table for *domain* and the key that names it there: ``domain[1]``, ``domain[0].aliases[2]``."""
        name = fold(domain)
        if not name:
            return None
        found = self._exact.get(name)
        while found is None and name:
            name = name.partition(".")[2]
            found = self._below.get(name)
        return found

    def find(self, domain: str) -> Domain | None:
        """The table for *domain*, which may be in any case, and in A-labels or U-labels alike."""
        found = self.locate(domain)
        return found and found[0]

    def is_local(self, domain: str) -> bool:
        """Whether mail for *domain* is delivered here."""
        found = self.find(domain)
        return found is not None and found.kind is DomainKind.LOCAL
