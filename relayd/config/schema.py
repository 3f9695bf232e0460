"""Every key of relayd.toml: which table holds it, how it is read, whether it names a file that must be there.

Defaults are those of :mod:`relayd.settings`; a key's name there is its name here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Final

from relayd import settings
from relayd.config import readers as r
from relayd.config.readers import Reader


@dataclass(frozen=True, slots=True)
class Table:
    """One kind of table.

    :ivar kind: the class of :mod:`relayd.settings` that holds its values.
    :ivar keys: the reader of each key.
    :ivar required: keys that have no default.
    :ivar files: keys that name a file that must be there.
    :ivar secrets: those of them that hold a secret.
    :ivar tables: tables inside this one.
    """

    kind: Callable[..., Any]
    keys: Mapping[str, Reader[Any]]
    required: tuple[str, ...] = ()
    files: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()
    tables: Mapping[str, Table] = field(default_factory=dict)

    def default(self, key: str) -> object:
        """The default of *key*, or ``MISSING``."""
        name = FIELDS.get(key, key)
        for one in fields(self.kind):  # type: ignore[arg-type]
            if one.name == name:
                return one.default_factory() if one.default_factory is not MISSING else one.default
        return MISSING


FIELDS: Final = {"from": "from_"}  # keys that are no Python names

_COUNT: Final = r.integer(1, 1_000_000)
_PORT: Final = r.integer(1, 65535)
_TEXTS: Final = r.listed(r.filled)
_HOSTS: Final = r.listed(r.host_entry)
_HOPS: Final = r.listed(r.next_hop)
_FILE: Final = r.optional(r.path)
_TEXT: Final = r.text
_TLS: Final = r.member(settings.OutboundTls)

_ACCESS: Final = Table(settings.Access, {"allow": r.member(settings.AllowMode), "list": _HOSTS})

_RELAY: Final = Table(
    settings.Relay,
    {
        "allow": r.member(settings.AllowMode),
        "list": _HOSTS,
        "authenticated": r.boolean,
        "groups": _TEXTS,
        "send_as": r.choice("any", "own"),
        "send_as_groups": r.mapped(r.listed(r.sender_pattern)),
        "send_as_header": r.boolean,
        "anonymous_send_as": r.listed(r.sender_pattern),
    },
)

_AUTHENTICATION: Final = Table(
    settings.Authentication,
    {
        "anonymous": r.boolean,
        "basic": r.boolean,
        "basic_requires_tls": r.boolean,
        "integrated": r.boolean,
        "ntlm": r.boolean,
        "default_domain": _TEXT,
        "channel_binding": r.choice("ignore", "accept", "require"),
        "max_failures": r.integer(1, 1000),
        "lockout": r.lockout,
    },
)

_TLS_TABLE: Final = Table(
    settings.TlsSettings,
    {
        "certificate": _FILE,
        "key": _FILE,
        "minimum": r.choice("1.0", "1.1", "1.2", "1.3"),
        "client_ca": _FILE,
        "client_crl": _FILE,
        "client_map": r.choice("sid", "upn"),
    },
    files=frozenset({"certificate", "key", "client_ca", "client_crl"}),
    secrets=frozenset({"key"}),
)

_LIMITS: Final = Table(
    settings.Limits,
    {
        "message_size": r.size("1K", "1000G"),
        "session_size": r.size("1K", "1000G"),
        "recipients": _COUNT,
        "connections": _COUNT,
        "connections_per_client": _COUNT,
        "messages_per_minute": r.integer(0, 1_000_000),
        "command_timeout": r.duration("1s", "1d"),
    },
)

#: What a ``[[listener]]`` may hold of other tables: table -> keys.
INHERITED: Final[Mapping[str, tuple[str, ...]]] = {
    "authentication": tuple(_AUTHENTICATION.keys),
    "tls": ("certificate", "key", "minimum"),
    "limits": tuple(_LIMITS.keys),
}

_LISTENER: Final = Table(
    settings.Listener,
    {
        "name": r.filled,
        "address": r.address_literal,
        "port": r.integer(0, 65535),
        "tls": r.member(settings.TlsMode),
        "require_tls": r.boolean,
        "legacy_clients": _HOSTS,
        "proxy_protocol": _HOSTS,
        **_AUTHENTICATION.keys,
        **{key: _TLS_TABLE.keys[key] for key in INHERITED["tls"]},
        **_LIMITS.keys,
    },
    tables={"access": _ACCESS, "relay": _RELAY},
)

_DELIVERY: Final = Table(
    settings.Delivery,
    {
        "smart_host": _HOPS,
        "smart_host_auth": _TEXT,
        "smart_host_tls": r.optional(_TLS),
        "direct_first": r.boolean,
        "port": _PORT,
        "source_address": r.optional(r.address_literal, ""),
        "tls": _TLS,
        "ca": _FILE,
        "client_certificate": _FILE,
        "client_key": _FILE,
        "retry": r.at_least_one(r.listed(r.duration("1s", "30d"))),
        "delay_notice": r.duration(),
        "expire": r.duration("1s"),
        "max_hops": r.integer(1, 1000),
        "connections": _COUNT,
        "connections_per_hop": _COUNT,
        "messages_per_connection": _COUNT,
        "timeout": r.duration("1s", "1d"),
        "masquerade_domain": r.optional(r.domain_name, ""),
        "complete_headers": r.boolean,
        "bounce_copy_to": r.optional(r.mail_address),
    },
    files=frozenset({"ca", "client_certificate", "client_key"}),
    secrets=frozenset({"client_key"}),
)

TABLES: Final[Mapping[str, Table]] = {
    "server": Table(
        settings.Server,
        {
            "hostname": r.optional(r.domain_name, ""),
            "state": r.path,
            "queue": r.optional(r.url("postgresql"), ""),
            "workers": r.integer(0, 1024),
            "user": _TEXT,
            "name": _TEXT,
            "postmaster": r.optional(r.mail_address),
        },
    ),
    "dns": Table(settings.Dns, {"servers": r.listed(r.dns_server), "trust_ad": r.boolean}),
    "tls": _TLS_TABLE,
    "access": _ACCESS,
    "authentication": _AUTHENTICATION,
    "relay": _RELAY,
    "directory": Table(
        settings.Directory,
        {
            "domain": r.optional(r.domain_name, ""),
            "netbios": _TEXT,
            "servers": r.listed(r.directory_server),
            "ca": _FILE,
            "base": _TEXT,
            "bind_user": _TEXT,
            "bind_password_file": _FILE,
            "timeout": r.duration("1s", "1h"),
            "cache": r.duration("0s", "1d"),
            "verify_recipients": r.boolean,
        },
        files=frozenset({"ca", "bind_password_file"}),
        secrets=frozenset({"bind_password_file"}),
    ),
    "kerberos": Table(settings.Kerberos, {"keytab": _FILE}, files=frozenset({"keytab"}), secrets=frozenset({"keytab"})),
    "ntlm": Table(
        settings.Ntlm,
        {
            "backend": r.choice("auto", "netlogon", "winbind", "accounts"),
            "computer": _TEXT,
            "secret_file": _FILE,
        },
        files=frozenset({"secret_file"}),
        secrets=frozenset({"secret_file"}),
    ),
    # The accounts file need not be there: `relayctl account add` makes it.
    "accounts": Table(settings.Accounts, {"file": _FILE}),
    "delivery": _DELIVERY,
    "limits": _LIMITS,
    "pickup": Table(settings.Pickup, {"directory": _FILE, "dot_stuffed": r.choice("auto", "yes", "no")}),
    "log": Table(settings.Log, {"format": r.choice("text", "json"), "file": _FILE}),
    "console": Table(
        settings.Console,
        {
            "socket": _FILE,
            "address": r.optional(r.literal_port, ""),
            "tls": r.boolean,
            "admin_groups": _TEXTS,
            "viewer_groups": _TEXTS,
            "metrics_list": _HOSTS,
        },
    ),
}

ARRAYS: Final[Mapping[str, Table]] = {
    "listener": _LISTENER,
    "domain": Table(
        settings.Domain,
        {
            "name": r.mail_domain,
            "kind": r.member(settings.DomainKind),
            "aliases": r.listed(r.domain_name),
            "deliver": r.deliver,
            "relay": r.boolean,
            "route": _HOPS,
            "tls": r.optional(_TLS),
            "auth": _TEXT,
            "rewrite_sender": r.optional(r.sender_rewrite, ""),
            "connections": r.integer(0, 1_000_000),
            "rate": r.optional(r.rate),
        },
        required=("name",),
    ),
    "credential": Table(
        settings.Credential,
        {
            "name": r.filled,
            "kind": r.choice("password", "gssapi", "oauth2"),
            "user": _TEXT,
            "password_file": _FILE,
            "token_url": r.optional(r.url("https"), ""),
            "client_id": _TEXT,
            "client_secret_file": _FILE,
            "scope": _TEXT,
            "allow_insecure": r.boolean,
        },
        required=("name",),
        files=frozenset({"password_file", "client_secret_file"}),
        secrets=frozenset({"password_file", "client_secret_file"}),
    ),
    "dkim": Table(
        settings.Dkim,
        {"domain": r.domain_name, "selector": r.filled, "key_file": r.path},
        required=("domain", "selector", "key_file"),
        files=frozenset({"key_file"}),
        secrets=frozenset({"key_file"}),
    ),
    "rewrite": Table(
        settings.Rewrite,
        {"match": r.at_least_one(_TEXTS), "from": r.sender_rewrite, "header": r.boolean},
        required=("match", "from"),
    ),
}


def home(key: str) -> str:
    """The key that gives *key* its meaning: without indexes, in the table that a listener inherits it from.

    ``listener[1].ntlm`` -> ``authentication.ntlm``, ``listener[0].relay.list`` -> ``relay.list``,
    ``domain[2].tls`` -> ``domain.tls``.
    """
    plain = re.sub(r"\[[0-9]+\]", "", key)
    table, _, name = plain.partition(".")
    if table != "listener":
        return plain
    if name.partition(".")[0] in _LISTENER.tables:
        return name
    return next((f"{home}.{name}" for home, keys in INHERITED.items() if name in keys), plain)


def default(key: str) -> object:
    """The default of a written key, or ``MISSING``."""
    return _table(key).default(home(key).partition(".")[2])


def is_file(key: str) -> bool:
    """Whether *key* names a file that must be there."""
    return home(key).partition(".")[2] in _table(key).files


def is_secret(key: str) -> bool:
    """Whether the file that *key* names holds a secret."""
    return home(key).partition(".")[2] in _table(key).secrets


def _table(key: str) -> Table:
    name = home(key).partition(".")[0]
    return TABLES.get(name) or ARRAYS[name]
