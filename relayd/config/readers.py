"""Readers: each turns one TOML value into the typed value of a key, or raises :class:`Wrong`.

The fault says what is wrong and what would be right. A reader knows neither its key nor its file; whether a
file exists, or a name is defined elsewhere, is checked later.
"""

from __future__ import annotations

import difflib
import enum
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path as File
from types import MappingProxyType
from typing import Any, Final, TypeVar

import idna

from relayd.config.document import key_name
from relayd.config.faults import Wrong, shown
from relayd.model import NULL_PATH, Path
from relayd.settings import HostEntry, Lockout, NextHop, Rate
from relayd.wire import parse_address

T = TypeVar("T")
E = TypeVar("E", bound=enum.Enum)

#: Octets of a unix socket's path that every Unix takes (unix(7): 108 with the final NUL).
LONGEST_SOCKET = 107
Reader = Callable[[object], T]

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_OCTETS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_DURATION: Final = re.compile(r"([0-9]{1,9})([smhd])")
_SIZE: Final = re.compile(r"([0-9]{1,12})([KMG]?)")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_HOST_FORM: Final = 'write an address "192.0.2.7", a network "198.51.100.0/24", or a name "*.example"'
_HOP_FORM: Final = 'write "mail.example", "mail.example:587", "[192.0.2.1]:25" or "[2001:db8::1]:25"'
_SENDER_FORM: Final = 'write an address "relay@corp.example", or "*@corp.example" for its domain alone'
_DURATION_FORM: Final = 'a duration is a number and s, m, h or d in quotes, such as "90s", "15m", "12h", "2d"'


def _form(value: object, form: str) -> Wrong:
    return Wrong(f"{shown(value)} is not right; {form}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """`` did you mean …?`` when one of *known* is close to *name*, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


# ---- plain values ------------------------------------------------------------------------------------------


def boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _form(value, "write true or false, without quotes")


def integer(least: int, most: int) -> Reader[int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _form(value, f"write a whole number from {least} to {most}, without quotes")
        if not least <= value <= most:
            raise Wrong(f"{shown(value)} is out of range; from {least} to {most} is right")
        return value

    return read


def text(value: object) -> str:
    """One line of text without controls; it may be empty."""
    if not isinstance(value, str):
        raise _form(value, "write a text in double quotes")
    if not all(c.isprintable() for c in value):
        raise Wrong(f"{shown(value)} holds control characters; write one line of plain text")
    return value


def filled(value: object) -> str:
    if not (read := text(value)).strip():
        raise Wrong("is empty; write a text in double quotes")
    return read


def choice(*choices: str) -> Reader[str]:
    def read(value: object) -> str:
        if isinstance(value, str) and value in choices:
            return value
        close = suggestion(value, choices) if isinstance(value, str) else ""
        raise _form(value, f"one of {', '.join(map(shown, choices))} is{close}")

    return read


def member(kind: type[E]) -> Reader[E]:
    """One of the values of an enumeration."""
    read = choice(*(str(one.value) for one in kind))
    return lambda value: kind(read(value))


def optional(reader: Reader[T], empty: Any = None) -> Reader[Any]:
    """As *reader*, but ``""`` means that the key is not given: *empty*."""
    return lambda value: empty if value == "" else reader(value)


def listed(reader: Reader[T]) -> Reader[tuple[T, ...]]:
    """A list of what *reader* reads; each wrong entry is reported."""

    def read(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise _form(value, "write a list in square brackets")
        read, wrong = [], []
        for index, entry in enumerate(value):
            try:
                read.append(reader(entry))
            except Wrong as error:
                wrong += [(f"[{index}]{suffix}", text) for suffix, text in error.parts]
        if wrong:
            raise Wrong(parts=tuple(wrong))
        return tuple(read)

    return read


def at_least_one(reader: Reader[tuple[T, ...]]) -> Reader[tuple[T, ...]]:
    def read(value: object) -> tuple[T, ...]:
        if not (entries := reader(value)):
            raise Wrong("is empty; write one entry at least")
        return entries

    return read


def mapped(reader: Reader[T]) -> Reader[Mapping[str, T]]:
    """A table of names that the administrator chooses, each with what *reader* reads."""

    def read(value: object) -> Mapping[str, T]:
        if not isinstance(value, dict):
            raise _form(value, 'write a table such as {"Name" = [...]}')
        read, wrong = {}, []
        for name, entry in value.items():
            try:
                read[filled(name)] = reader(entry)
            except Wrong as error:
                wrong += [(f".{key_name(name)}{suffix}", text) for suffix, text in error.parts]
        if wrong:
            raise Wrong(parts=tuple(wrong))
        return MappingProxyType(read)

    return read


def path(value: object) -> File:
    """A file's name. It is made absolute later, from the folder of relayd.toml."""
    return File(filled(value))


# ---- quantities --------------------------------------------------------------------------------------------


def _seconds(written: str) -> float | None:
    match = _DURATION.fullmatch(written)
    return float(int(match[1]) * _SECONDS[match[2]]) if match else None


def duration(least: str = "0s", most: str = "365d") -> Reader[float]:
    """Seconds, between two durations."""

    def read(value: object) -> float:
        seconds = _seconds(value) if isinstance(value, str) else None
        if seconds is None:
            raise _form(value, _DURATION_FORM)
        if not (_seconds(least) or 0.0) <= seconds <= (_seconds(most) or 0.0):
            raise Wrong(f"{shown(value)} is out of range; from {shown(least)} to {shown(most)} is right")
        return seconds

    return read


def _octets(written: str) -> int | None:
    match = _SIZE.fullmatch(written)
    return int(match[1]) * _OCTETS[match[2]] if match else None


def size(least: str, most: str) -> Reader[int]:
    """Octets, between two sizes."""

    def read(value: object) -> int:
        octets = _octets(value) if isinstance(value, str) else None
        if octets is None:
            raise _form(value, 'a size is a number and K, M or G in quotes, such as "64K", "25M", "1G"')
        if not (_octets(least) or 0) <= octets <= (_octets(most) or 0):
            raise Wrong(f"{shown(value)} is out of range; from {shown(least)} to {shown(most)} is right")
        return octets

    return read


def rate(value: object) -> Rate:
    """``30/1m``."""
    count, slash, period = value.partition("/") if isinstance(value, str) else ("", "", "")
    seconds = _seconds(period)
    if not slash or not re.fullmatch("[0-9]{1,9}", count) or not int(count) or not seconds:
        raise _form(value, 'a rate is a count and a duration, such as "30/1m"')
    return Rate(int(count), seconds)


def lockout(value: object) -> Lockout:
    """``auto`` or ``4 in 15m``."""
    if value == "auto":
        return Lockout()
    match = re.fullmatch("([0-9]{1,6}) in ([0-9]+[smhd])", value) if isinstance(value, str) else None
    seconds = _seconds(match[2]) if match else None
    if match is None or not int(match[1]) or not seconds:
        raise _form(value, 'write "auto", or failures and a duration such as "4 in 15m"')
    return Lockout(auto=False, failures=int(match[1]), seconds=seconds)


# ---- names and addresses -----------------------------------------------------------------------------------


def _a_label(name: str) -> str | None:
    """*name* as a lower-case domain name of A-labels, or None when it is none."""
    bare = name.removesuffix(".").lower()
    if not bare.isascii():
        try:
            # UTS 46 folds what people type (capitals, full-width dots); RFC 5891 makes A-labels of it.
            bare = idna.encode(bare, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            return None
    labels = bare.split(".")
    # A name that ends in a number would be read as an IPv4 address (RFC 1123 2.1).
    if len(bare) > 253 or labels[-1].isdigit() or not all(map(_LABEL.fullmatch, labels)):
        return None
    return bare


def domain_name(value: object) -> str:
    """A domain or host name, in lower case and A-labels."""
    name = _a_label(filled(value))
    if name is None:
        raise _form(value, 'write a domain name such as "corp.example"')
    return name


def mail_domain(value: object) -> tuple[str, bool]:
    """The name of a ``[[domain]]``, and whether it is a wildcard: ``*.corp.example``, ``*`` with no name."""
    written = filled(value)
    if written == "*":
        return "", True
    name = _a_label(written.removeprefix("*."))
    if name is None:
        raise _form(value, 'write a name such as "corp.example", "*.corp.example", or "*" for all others')
    return name, written.startswith("*.")


def address_literal(value: object) -> str:
    """An IP address, in its usual form."""
    written = filled(value)
    try:
        return str(ipaddress.ip_address(written))
    except ValueError:
        raise _form(value, 'write an IP address such as "192.0.2.1" or "2001:db8::1"') from None


def dns_server(value: object) -> str:
    """An IP address, with or without a port."""
    written = filled(value)
    try:
        return str(ipaddress.ip_address(written))
    except ValueError:
        hop = next_hop(value)
        try:
            ipaddress.ip_address(hop.host)
        except ValueError:
            raise _form(value, 'write an IP address such as "192.0.2.53" or "[2001:db8::53]:53"') from None
        return written


def _network(written: str) -> HostEntry:
    try:
        network = ipaddress.ip_network(written)
    except ValueError:
        try:
            loose = ipaddress.ip_network(written, strict=False)
        except ValueError:
            raise _form(written, _HOST_FORM) from None
        host = written.partition("/")[0]
        raise Wrong(
            f"{shown(written)} has host bits set; write {shown(str(loose))} for the network or {shown(host)}"
            " for the one host"
        ) from None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:  # clients with such an address count as IPv4
            network = ipaddress.ip_network((mapped, network.prefixlen - 96))
    return HostEntry(written, network=network)


def host_entry(value: object) -> HostEntry:
    """An address, a network or a host name."""
    written = filled(value)
    if "%" in written:
        raise Wrong(f"{shown(value)} names a zone; write the address without % and what follows")
    if re.fullmatch(r"[0-9./]+", written) or ":" in written or "/" in written:
        return _network(written)
    name = _a_label(written.removeprefix("*."))
    if name is None:
        everyone = written in ("*", "any", "all")
        raise _form(value, 'for every host write "0.0.0.0/0" and "::/0"' if everyone else _HOST_FORM)
    return HostEntry(written, name=name, wildcard=written.startswith("*."))


def next_hop(value: object) -> NextHop:
    """``host``, ``host:port``, ``[192.0.2.1]:25``, ``[2001:db8::1]:25``."""
    written = filled(value)
    match = re.fullmatch(r"(?:\[([^\]]*)\]|([^\[\]:]*))(?::([0-9]{1,5}))?", written)
    if match is None:
        raise _form(value, _HOP_FORM)
    literal, name, port = match.groups()
    if port is not None and not 1 <= int(port) <= 65535:
        raise Wrong(f"{shown(value)} has port {port}; from 1 to 65535 is right")
    if literal is None and not re.fullmatch("[0-9.]+", name):
        host = _a_label(name)
    else:
        try:
            bare = literal if literal is not None else name
            host = str(ipaddress.ip_address(re.sub("^ipv6:", "", bare, flags=re.IGNORECASE)))
        except ValueError:
            host = None
    if host is None:
        raise _form(value, _HOP_FORM)
    return NextHop(written, host, int(port) if port else None)


def mail_address(value: object) -> Path:
    """``local@domain``."""
    written = filled(value)
    try:
        read = parse_address(written)
    except ValueError:
        read = NULL_PATH
    if not read.domain:
        raise _form(value, 'write a mail address such as "postmaster@corp.example"')
    return read


def sender_pattern(value: object) -> str:
    """A mail address in which ``*`` may stand in the local part and as ``*.`` or all of the domain; lower case."""
    written = filled(value).lower()
    local, at, domain = written.rpartition("@")
    plain = "example" if domain == "*" else domain.removeprefix("*.")
    try:
        # What is right without its wildcards is right; a * may stand where any atom may (RFC 5321 4.1.2).
        good = written == "*" or (bool(at) and parse_address(f"{local}@{plain}").domain == plain)
    except ValueError:
        good = False
    if not good:
        raise _form(value, 'write an address "app@corp.example", or "*@corp.example" for all of a domain')
    return written


def url(*schemes: str) -> Reader[str]:
    """An URL of one of *schemes*; its host is not looked at closer."""

    def read(value: object) -> str:
        written = filled(value)
        scheme, separator, rest = written.partition("://")
        if not separator or scheme not in schemes or not rest or " " in written:
            raise _form(value, "write " + " or ".join(f'"{scheme}://…"' for scheme in schemes))
        return written

    return read


def directory_server(value: object) -> str:
    """``ldaps://host``, ``ldap://host:port``."""
    written = filled(value)
    scheme, separator, rest = written.partition("://")
    try:
        if not separator or scheme not in ("ldaps", "ldap"):
            raise Wrong
        next_hop(rest.removesuffix("/"))
    except Wrong:
        raise _form(value, 'write "ldaps://dc1.corp.example", or "ldap://…" for STARTTLS') from None
    return written


def deliver(value: object) -> NextHop | None:
    """How mail for a local domain is delivered: ``drop`` (None), ``lmtp://host:port``, ``lmtp+unix:///path``."""
    written = filled(value)
    scheme, _, rest = written.partition("://")
    wrong = _form(value, 'write "drop", "lmtp://host:port" or "lmtp+unix:///path"')
    if written == "drop":
        return None
    if scheme == "lmtp+unix" and rest.startswith("/") and rest != "/":
        if len(rest.encode()) > LONGEST_SOCKET:
            raise Wrong(f"write a path of {LONGEST_SOCKET} octets at most, as a unix socket has")
        return NextHop(written, "", None, rest)
    if scheme != "lmtp":
        raise wrong
    try:
        hop = next_hop(rest)
    except Wrong:
        raise wrong from None
    if hop.port is None:
        raise wrong
    return NextHop(written, hop.host, hop.port)


def literal_port(value: object) -> str:
    """``127.0.0.1:8025``, ``[::1]:8025``."""
    written = filled(value)
    try:
        hop = next_hop(value)
        ipaddress.ip_address(hop.host)
    except ValueError:
        hop = None
    if hop is None or hop.port is None:
        raise _form(value, 'write an address and a port such as "127.0.0.1:8025" or "[::1]:8025"')
    return written


def sender_rewrite(value: object) -> str:
    """A mail address, or ``*@domain``: the sender's own local part at that domain."""
    written = filled(value)
    local, _, domain = written.rpartition("@")
    if local == "*" and _a_label(domain):
        return written
    try:
        if "*" not in written:
            return str(mail_address(value))
    except Wrong:
        pass
    raise _form(value, _SENDER_FORM)
