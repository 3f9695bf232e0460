"""Typed values of what was written -> :class:`Settings`, with defaults, and with what listeners inherit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path as File
from types import MappingProxyType
from typing import Any, Final

from relayd import settings as s
from relayd.config.reading import Reading, Values
from relayd.config.schema import FIELDS, INHERITED

DEFAULT_STATE: Final = File("/var/lib/relayd")


def build(reading: Reading, hostname: Callable[[], str]) -> s.Settings:
    """The whole configuration. Where a value was refused, its default stands.

    :param hostname: gives this machine's name; asked only when the file gives none.
    """
    tables = {name: dict(values) for name, values in reading.tables.items()}
    for name in ("access", "relay", "authentication", "tls", "limits"):
        tables.setdefault(name, {})
    server = _server(tables.get("server", {}), hostname)
    lines = dict(reading.lines)
    listeners = tuple(
        _listener(index, values, tables, lines) for index, values in enumerate(reading.arrays.get("listener") or [{}])
    )
    return s.Settings(
        file=reading.file,
        server=server,
        console=_console(tables.get("console", {}), server),
        listeners=listeners,
        dns=s.Dns(**tables.get("dns", {})),
        tls=s.TlsSettings(**tables["tls"]),
        access=s.Access(**tables["access"]),
        authentication=s.Authentication(**tables["authentication"]),
        relay=s.Relay(**tables["relay"]),
        directory=s.Directory(**tables.get("directory", {})),
        kerberos=s.Kerberos(**tables.get("kerberos", {})),
        ntlm=s.Ntlm(**tables.get("ntlm", {})),
        accounts=s.Accounts(**tables.get("accounts", {})),
        domains=tuple(
            _domain(index, values) for index, values in enumerate(reading.arrays.get("domain", [])) if "name" in values
        ),
        delivery=s.Delivery(**tables.get("delivery", {})),
        credentials=_entries(reading, "credential", s.Credential, "name"),
        dkim=_entries(reading, "dkim", s.Dkim, "domain", "selector", "key_file"),
        rewrites=_entries(reading, "rewrite", s.Rewrite, "match", "from"),
        limits=s.Limits(**tables["limits"]),
        pickup=s.Pickup(**tables.get("pickup", {})),
        log=s.Log(**tables.get("log", {})),
        lines=MappingProxyType(lines),
    )


def _server(values: Values, hostname: Callable[[], str]) -> s.Server:
    values = {"state": DEFAULT_STATE, **values}
    values["hostname"] = values.get("hostname") or hostname()
    values["name"] = values.get("name") or values["hostname"]
    return s.Server(**values)


def _console(values: Values, server: s.Server) -> s.Console:
    return s.Console(**{**values, "socket": values.get("socket") or server.state / "control.sock"})


def _listener(index: int, values: Values, tables: Mapping[str, Values], lines: dict[str, int]) -> s.Listener:
    """One listener: its own keys, over those of the tables that it inherits from."""
    origin = f"listener[{index}]"
    inherited = {table: {key: values[key] for key in keys if key in values} for table, keys in INHERITED.items()}
    taken = {"access", "relay", *(key for keys in INHERITED.values() for key in keys)}

    def table(name: str) -> Values:
        """A table inside the listener, named after it when it holds anything."""
        own = values.get(name, {})
        if own:
            _alias(lines, name, f"{origin}.{name}", own)
        return {**tables[name], **own, "origin": f"{origin}.{name}" if own else name}

    own = inherited["authentication"]
    return s.Listener(
        authentication=s.Authentication(
            **{**tables["authentication"], **own, "origin": origin if own else "authentication"}
        ),
        access=s.Access(**table("access")),
        relay=s.Relay(**table("relay")),
        tls_settings=s.TlsSettings(**{**tables["tls"], **inherited["tls"]}),
        limits=s.Limits(**{**tables["limits"], **inherited["limits"]}),
        origin=origin,
        **{key: value for key, value in values.items() if key not in taken},
    )


def _alias(lines: dict[str, int], table: str, rule: str, own: Values) -> None:
    """A listener's own table gives its name to the rules in it that are inherited: they keep their lines."""
    for key, line in list(lines.items()):
        name = key.removeprefix(f"{table}.")
        if name != key and name.partition(".")[0].partition("[")[0] not in own:
            lines.setdefault(f"{rule}.{name}", line)


def _domain(index: int, values: Values) -> s.Domain:
    name, wildcard = values["name"]
    return s.Domain(**{**values, "name": name, "wildcard": wildcard, "origin": f"domain[{index}]"})


def _entries(reading: Reading, name: str, kind: Callable[..., Any], *required: str) -> tuple[Any, ...]:
    """The entries of an array of tables that hold all they must."""
    return tuple(
        kind(**{FIELDS.get(key, key): value for key, value in values.items()})
        for values in reading.arrays.get(name, [])
        if all(key in values for key in required)
    )
