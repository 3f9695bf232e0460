"""Public suffixes: names below which anybody may own a host, such as ``com``, ``co.uk`` or ``dyndns.org``."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from publicsuffixlist import PublicSuffixList

from relayd.policy.domains import fold

# Names that stay private: RFC 2606, 6761, 6762 (appendix G), 8375 and 9476, ICANN's "internal", and the three that
# ICANN will not delegate (corp, home, mail). Active Directory forests are often named after them.
_PRIVATE: Final = frozenset(
    {
        *("alt", "corp", "example", "home", "home.arpa", "internal", "intranet", "invalid", "lan", "local"),
        *("localhost", "mail", "onion", "private", "test"),
    }
)


@lru_cache(maxsize=1)
def _listed() -> PublicSuffixList:
    return PublicSuffixList(accept_unknown=False)  # reading it takes a tenth of a second: only when a name asks for it


def is_public_suffix(name: str, *, wildcard: bool) -> bool:
    """Whether *name*, in a list of those who may, lets in hosts of strangers.

    :param wildcard: the entry is ``*.name``. A top-level name that the list of suffixes lacks may be newer than the
        list, and counts as public; as the name of one host it is a bare host name of the local network.
    """
    name = fold(name)
    if not name:
        return wildcard
    if name in _PRIVATE:
        return False
    return _listed().is_public(name) or (wildcard and "." not in name)
