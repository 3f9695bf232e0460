"""What this version and this install can serve.

A written value that they cannot serve stops the start and says so; a default that they cannot serve is off,
with a warning. To serve a key, a later version deletes its line from :data:`NOT_BUILT`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from relayd.config import integrated
from relayd.config.reading import Reading
from relayd.config.schema import ARRAYS, default, home


@dataclass(frozen=True, slots=True)
class NotBuilt:
    """A key, or a whole table, that this version does not serve.

    :ivar what: the feature, as it reads before "not built yet in this version".
    :ivar values: the values that need it; empty: all but the default.
    """

    what: str
    values: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Extra:
    """What a key needs of the install: a Python *module*, from the *extra*; some need Debian *packages* first.

    :ivar values: the values that need it; empty: all but the default.
    """

    module: str
    extra: str
    packages: str = ""
    values: tuple[object, ...] = ()


_NOT_YET: Final = "not built yet in this version"
_CONSOLE: Final = NotBuilt("the web console")

NOT_BUILT: Final[Mapping[str, NotBuilt]] = {
    "server.queue": NotBuilt("a queue in PostgreSQL"),
    "server.workers": NotBuilt("serving with more than one worker"),
    "listener.proxy_protocol": NotBuilt("the PROXY protocol"),
    "relay.send_as_header": NotBuilt("send-as for the From header"),
    "limits.messages_per_minute": NotBuilt("a limit of messages a minute"),
    "console.address": _CONSOLE,
    "console.tls": _CONSOLE,
    "console.admin_groups": _CONSOLE,
    "console.viewer_groups": _CONSOLE,
    "console.metrics_list": _CONSOLE,
}

EXTRAS: Final[Mapping[str, Extra]] = {
    "server.queue": Extra("psycopg", "postgresql"),
    "kerberos.keytab": Extra("gssapi", "kerberos", "libkrb5-dev gcc python3-dev"),
    "credential.kind": Extra("gssapi", "kerberos", "libkrb5-dev gcc python3-dev", ("gssapi",)),
    "ntlm.computer": Extra("impacket", "netlogon"),
    "console.address": Extra("klein", "console"),
}


def check(reading: Reading) -> None:
    """Notes a fault for each written value that cannot be served, a warning for each default that is off."""
    reported: set[str] = set()
    for key, value in reading.written.items():
        rule = home(key)
        entry = NOT_BUILT.get(rule)
        if entry is None:
            table = rule.partition(".")[0]
            entry = NOT_BUILT.get(table)
            if entry is not None and table in ARRAYS:
                # An entry of an array stands for its feature whatever it holds: one fault an entry.
                key = re.sub(r"\..*", "", key)
                if key not in reported:
                    reading.fault(key, f"{entry.what} is {_NOT_YET}; take this table out")
                reported.add(key)
                continue
        if entry is not None:
            _not_built(reading, key, value, entry)
        elif (extra := EXTRAS.get(rule)) and (value in extra.values or (not extra.values and value != default(key))):
            _absent(reading, key, extra)
    integrated.settle(reading)


def _not_built(reading: Reading, key: str, value: object, entry: NotBuilt) -> None:
    if value in entry.values or (not entry.values and value != default(key)):
        reading.fault(key, f"{entry.what} is {_NOT_YET}; take this value out")


def _absent(reading: Reading, key: str, extra: Extra) -> None:
    if importlib.util.find_spec(extra.module) is None:
        name = f"relayd[{extra.extra}]"
        first = f"apt-get install {extra.packages}, then " if extra.packages else ""
        reading.fault(key, f"needs the extra {name}, which is not installed; {first}pip install '{name}'")
