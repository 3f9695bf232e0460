"""What a next hop says it can do: its reply to EHLO (RFC 5321 4.1.1.1)."""

from __future__ import annotations

from dataclasses import dataclass

from relayd.model import Reply


@dataclass(frozen=True, slots=True)
class Offer:
    """A next hop's service extensions.

    :ivar extensions: their keywords in upper case; none after HELO.
    :ivar size: the largest message it takes, in octets (RFC 1870); 0 = no limit was named.
    :ivar mechanisms: of AUTH (RFC 4954), upper case.
    """

    extensions: frozenset[str] = frozenset()
    size: int = 0
    mechanisms: tuple[str, ...] = ()

    @classmethod
    def of(cls, reply: Reply) -> Offer:
        extensions = set()
        mechanisms: tuple[str, ...] = ()
        size = 0
        for line in reply.lines[1:]:  # the first line names the host
            # "AUTH=LOGIN" was the form before RFC 2554; some devices know no other.
            keyword, *values = line.upper().replace("AUTH=", "AUTH ", 1).split() or [""]
            extensions.add(keyword)
            if keyword == "AUTH":
                mechanisms += tuple(values)
            elif keyword == "SIZE" and values and values[0].isascii() and values[0].isdigit():
                size = int(values[0][:20])
        return cls(frozenset(extensions - {""}), size, mechanisms)


NO_OFFER = Offer()
