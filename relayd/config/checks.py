"""What a single value cannot tell: names that repeat or do not exist, keys that contradict each other."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path as File
from typing import Final
from urllib.parse import urlsplit

from relayd.config import integrated
from relayd.config.faults import shown
from relayd.config.readers import LONGEST_SOCKET, next_hop, suggestion
from relayd.config.reading import Reading
from relayd.settings import Credential, Domain, DomainKind, Listener, OutboundTls, Settings, TlsMode

_UNVERIFIED: Final = (OutboundTls.NONE, OutboundTls.MAY, OutboundTls.REQUIRE)
_GLOBAL_CATALOG: Final = (3268, 3269)
_KEYS_OF_KIND: Final = {
    "password": ("user", "password_file"),
    "gssapi": (),
    "oauth2": ("user", "token_url", "client_id", "client_secret_file", "scope"),
}


def check(reading: Reading, settings: Settings) -> None:
    """Notes each contradiction. A value that was refused already is not spoken of again."""
    for one in _CHECKS:
        one(reading, settings)


def _server(reading: Reading, settings: Settings) -> None:
    state, user = settings.server.state, settings.server.user
    if os.path.exists(state) and not os.path.isdir(state):  # unlike pathlib's, these never raise
        reading.fault("server.state", f"{state} is not a folder; name one, or what can become one")
    if user and not _is_account(user):
        reading.fault("server.user", f"there is no user {shown(user)} on this machine; make one, or name another")
    sock = settings.console.socket
    if len(os.fsencode(sock)) > LONGEST_SOCKET:
        key = "console.socket" if "console.socket" in reading.written else "server.state"
        reading.fault(key, f"{sock} is too long a name for a socket; {LONGEST_SOCKET} octets are the most")
    file = settings.log.file
    if file is not None and not os.path.isdir(file.parent):
        reading.fault("log.file", f"there is no folder {file.parent}; make it first")


def _pickup(reading: Reading, settings: Settings) -> None:
    folder, state = settings.pickup.directory, settings.server.state
    key = "pickup.directory"
    if folder is None or not reading.good(key):
        return
    if not os.path.isdir(folder):
        reading.fault(key, f"there is no folder {folder}; make it first, for those who may send what they like")
        return
    inside, outside = os.path.realpath(folder), os.path.realpath(state)
    if os.path.commonpath((inside, outside)) in (inside, outside):
        # A dropped message would be picked up again, for ever.
        reading.fault(key, f"{folder} and server.state, {state}, lie in each other; name a folder apart")
        return
    for named in (reading.file, *(value for value in reading.written.values() if isinstance(value, File))):
        parent, name = os.path.split(os.path.realpath(named))
        if parent == inside:
            reading.fault(key, f"{folder} holds {name}, which would be taken for mail; name a folder for mail alone")
            return
    becomes_another = settings.server.user and os.geteuid() == 0
    if not becomes_another and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        reading.fault(key, f"{folder} cannot be read and written to; let the user that relayd runs as do both")


def _is_account(name: str) -> bool:
    try:
        import pwd  # POSIX alone
    except ImportError:
        return True
    try:
        pwd.getpwnam(name)
    except (KeyError, ValueError):
        return False
    return True


def _listener_names(reading: Reading, settings: Settings) -> None:
    seen: dict[str, Listener] = {}
    for listener in settings.listeners:
        key = f"{listener.origin}.name"
        first = seen.setdefault(listener.name, listener)
        if first is not listener and reading.good(key, f"{first.origin}.name"):
            reading.fault(key, f"{shown(listener.name)} is the name of {first.origin} too; give each its own")


def _listener_addresses(reading: Reading, settings: Settings) -> None:
    """A port that is taken by another listener, on the same address or on all of them."""
    taken: list[Listener] = []
    for listener in settings.listeners:
        if not reading.good(f"{listener.origin}.port", f"{listener.origin}.address") or listener.port == 0:
            continue
        other = next((one for one in taken if one.port == listener.port and _overlap(one, listener)), None)
        if other is not None:
            reading.fault(
                f"{listener.origin}.port",
                f"port {listener.port} on {listener.address} is taken by {other.origin} ({other.address});"
                " give each its own port or address",
            )
        taken.append(listener)


def _overlap(one: Listener, other: Listener) -> bool:
    a, b = ip_address(one.address), ip_address(other.address)
    for wide, narrow in ((a, b), (b, a)):
        # "::" listens on IPv4 as well.
        if wide.is_unspecified and (wide.version == 6 or narrow.version == 4):
            return True
    return a == b


def _listener_security(reading: Reading, settings: Settings) -> None:
    for listener in settings.listeners:
        origin, auth = listener.origin, listener.authentication
        if listener.require_tls and listener.tls is TlsMode.NONE and reading.good(f"{origin}.tls"):
            reading.fault(
                f"{origin}.require_tls", 'no TLS is to be had here with tls = "none"; write "starttls" or "implicit"'
            )
        reachable = auth.basic and (listener.tls is not TlsMode.NONE or not auth.basic_requires_tls)
        if not auth.anonymous and not reachable and not auth.integrated:
            key = f"{auth.origin}.anonymous"
            reading.warn(key, f"nobody can send through {origin}: anonymous is false and no AUTH is offered there")


def _sizes(reading: Reading, settings: Settings) -> None:
    for origin, limits in [("limits", settings.limits), *((one.origin, one.limits) for one in settings.listeners)]:
        keys = (f"{origin}.session_size", f"{origin}.message_size")
        written = [key for key in keys if key in reading.written]
        if written and limits.session_size < limits.message_size and reading.good(*keys):
            reading.fault(
                written[0], "message_size is more than session_size; a session must hold one message at least"
            )


def _domain_names(reading: Reading, settings: Settings) -> None:
    seen: dict[str, str] = {}
    for domain in settings.domains:
        for key, name in _names(domain):
            first = seen.setdefault(name, key)
            if first != key:
                reading.fault(key, f"{shown(name)} is {first} too; write each domain once")


def _names(domain: Domain) -> Iterator[tuple[str, str]]:
    name = f"*.{domain.name}" if domain.name else "*"
    yield f"{domain.origin}.name", name if domain.wildcard else domain.name
    for index, alias in enumerate(domain.aliases):
        yield f"{domain.origin}.aliases[{index}]", alias


def _domain_kinds(reading: Reading, settings: Settings) -> None:
    only_remote = ("relay", "route", "tls", "auth", "rewrite_sender", "connections", "rate")
    for domain in settings.domains:
        if not reading.good(f"{domain.origin}.kind"):
            continue
        local = domain.kind is DomainKind.LOCAL
        for key in only_remote if local else ("aliases", "deliver"):
            rule = f"{domain.origin}.{key}"
            if rule in reading.written and getattr(domain, key) != getattr(Domain(""), key):
                one, other = ("remote", "local") if local else ("local", "remote")
                reading.fault(rule, f'is for {one} domains; this one is {other}: take it out, or write kind = "{one}"')


def _credentials(reading: Reading, settings: Settings) -> None:
    seen: dict[str, str] = {}
    for index, values in enumerate(reading.arrays.get("credential", [])):
        origin = f"credential[{index}]"
        if (name := values.get("name")) is not None:
            first = seen.setdefault(name, origin)
            if first != origin:
                reading.fault(f"{origin}.name", f"{shown(name)} is the name of {first} too; give each its own")
        kind = values.get("kind", "password")
        if not reading.good(f"{origin}.kind"):
            continue
        for key in _KEYS_OF_KIND[kind]:
            if not values.get(key) and reading.good(f"{origin}.{key}"):
                reading.fault(f"{origin}.{key}", f'is missing; kind = "{kind}" needs it')
        for key in {key for keys in _KEYS_OF_KIND.values() for key in keys}.difference(_KEYS_OF_KIND[kind]):
            if values.get(key) and reading.good(f"{origin}.{key}"):
                reading.fault(f"{origin}.{key}", f'has no meaning with kind = "{kind}"; take it out')


def _next_hops(reading: Reading, settings: Settings) -> None:
    """Credentials that a route names, and how they are guarded (design, promise 4)."""
    delivery = settings.delivery
    hops = [("delivery.smart_host_auth", delivery.smart_host_auth, "delivery.smart_host_tls", delivery.smart_host_tls)]
    hops += [(f"{d.origin}.auth", d.auth, f"{d.origin}.tls", d.tls) for d in settings.domains]
    for auth_key, auth, tls_key, tls in hops:
        if auth:
            _guarded(reading, settings.credentials, auth_key, auth, tls_key, tls)
    if not delivery.smart_host and reading.good("delivery.smart_host"):
        for key in ("delivery.smart_host_auth", "delivery.smart_host_tls", "delivery.direct_first"):
            if reading.written.get(key):
                reading.warn(key, "has no effect without smart_host")


def _guarded(
    reading: Reading,
    credentials: tuple[Credential, ...],
    auth_key: str,
    auth: str,
    tls_key: str,
    tls: OutboundTls | None,
) -> None:
    credential = next((one for one in credentials if one.name == auth), None)
    if credential is None:
        close = suggestion(auth, [one.name for one in credentials])
        reading.fault(auth_key, f"there is no [[credential]] with name = {shown(auth)}{close or '; write one'}")
    elif tls in _UNVERIFIED and not credential.allow_insecure and reading.good(tls_key):
        reading.fault(
            tls_key,
            f"{shown(tls.value)} would show the credential {shown(auth)} to whoever answers; write"
            ' "verify" or "implicit", or allow_insecure = true in the credential',
        )


def _policies(reading: Reading, settings: Settings) -> None:
    """MTA-STS is about hosts that DNS names for a domain (RFC 8461 4.1); next hops that are written are not."""
    delivery = settings.delivery
    written = '"sts" is for hosts that DNS names, and {} is written here; write "verify"'
    if delivery.smart_host_tls is OutboundTls.STS:
        reading.fault("delivery.smart_host_tls", written.format("smart_host"))
    by_default = delivery.tls is OutboundTls.STS and reading.good("delivery.tls")
    if by_default and delivery.smart_host and delivery.smart_host_tls is None:
        reading.fault("delivery.tls", '"sts" does not hold for smart_host; write smart_host_tls = "verify" as well')
    for domain in settings.domains:
        if domain.tls is OutboundTls.STS and domain.route:
            reading.fault(f"{domain.origin}.tls", written.format("route"))
        elif domain.tls is OutboundTls.STS and delivery.smart_host and not delivery.direct_first:
            reading.fault(
                f"{domain.origin}.tls", '"sts" does not hold for smart_host, where this mail goes; write "verify"'
            )
        elif by_default and domain.route and domain.tls is None:
            reading.fault(
                f"{domain.origin}.route", 'delivery.tls = "sts" does not hold for it; write tls = "verify" here'
            )


def _dane(reading: Reading, settings: Settings) -> None:
    if settings.dns.trust_ad:
        return
    levels = {
        "delivery.tls": settings.delivery.tls,
        "delivery.smart_host_tls": settings.delivery.smart_host_tls,
        **{f"{domain.origin}.tls": domain.tls for domain in settings.domains},
    }
    for key, level in levels.items():
        if level is OutboundTls.DANE:
            text = '"dane" needs [dns] trust_ad = true, and a resolver that validates, on loopback or a protected path'
            reading.fault(key, text)


def _delivery(reading: Reading, settings: Settings) -> None:
    delivery = settings.delivery
    if "delivery.delay_notice" in reading.written and 0 < delivery.expire <= delivery.delay_notice:
        reading.warn("delivery.delay_notice", "is not less than expire, so no notice is ever sent")


def _console(reading: Reading, settings: Settings) -> None:
    console = settings.console
    if console.address and not console.tls and not ip_address(next_hop(console.address).host).is_loopback:
        reading.fault("console.tls", f"may be false on loopback alone, and address is {shown(console.address)}")


def _is_catalog(server: str) -> bool:
    return urlsplit(server).port in _GLOBAL_CATALOG


def _directory(reading: Reading, settings: Settings) -> None:
    directory = settings.directory
    if not directory.configured:
        if reading.good("directory.servers", "directory.domain"):
            for key in ("bind_user", "bind_password_file", "ca", "base", "netbios", "verify_recipients"):
                if reading.written.get(f"directory.{key}"):
                    reading.warn(f"directory.{key}", "has no effect without servers or domain")
        return
    if not directory.bind_user and reading.good("directory.bind_user"):
        _keytab_searches(reading, settings)
    elif directory.bind_password_file is None and reading.good("directory.bind_password_file"):
        reading.fault("directory.bind_password_file", "is missing; bind_user needs it")
    catalogs = [server for server in directory.servers if _is_catalog(server)]
    if 0 < len(catalogs) < len(directory.servers) and reading.good("directory.servers"):
        reading.fault(
            "directory.servers",
            f"{shown(catalogs[0])} is a global catalog and others are not, so answers would depend on who is asked;"
            " list one kind alone",
        )
    if directory.base and "=" not in directory.base:
        reading.fault("directory.base", f'{shown(directory.base)} is no DN; write one such as "DC=corp,DC=example"')


def _keytab_searches(reading: Reading, settings: Settings) -> None:
    """Nobody is named to search, so the keytab's own account does."""
    if reading.written.get("directory.bind_password_file"):
        reading.fault("directory.bind_user", "is missing; name the account that bind_password_file is for")
    elif settings.kerberos.keytab is None and reading.good("kerberos.keytab") and not integrated.SYSTEM_KEYTAB.exists():
        reading.fault(
            "directory.bind_user",
            "is missing; name the account that searches, or have a keytab whose own account does (`relayctl join` makes"
            " one)",
        )
    elif importlib.util.find_spec("gssapi") is None:
        reading.fault(
            "directory.bind_user",
            "is missing; that the keytab's own account searches needs the extra relayd[kerberos], which is not"
            " installed; name an account, or pip install 'relayd[kerberos]'",
        )
    for index, server in enumerate(settings.directory.servers):
        if not server.startswith("ldaps:") and reading.good(f"directory.servers[{index}]"):
            reading.fault(
                f"directory.servers[{index}]",
                f"{shown(server)}: the keytab's own account signs in on LDAPS alone; write ldaps://, or name a"
                " bind_user",
            )


def _client_certificates(reading: Reading, settings: Settings) -> None:
    tls = settings.tls
    if not reading.good("tls.client_ca"):
        return
    if tls.client_ca is None:
        if tls.client_crl is not None:
            reading.fault(
                "tls.client_crl", "has no meaning without client_ca; name the CA of client certificates as well"
            )
        if reading.written.get("tls.client_map", "sid") != "sid":
            reading.warn("tls.client_map", "has no effect without client_ca")
        return
    if not settings.directory.configured and reading.good("directory.servers", "directory.domain"):
        reading.fault(
            "tls.client_ca", "needs a directory, which knows whose a certificate is; write [directory] and its keys"
        )
    if any(map(_is_catalog, settings.directory.servers)):
        reading.warn(
            "tls.client_ca",
            "a global catalog does not hold whether an account has expired or is locked, and client certificates get "
            "454 while it is asked; list controllers without port 3268 or 3269 in directory.servers",
        )
    offering = [listener for listener in settings.listeners if listener.tls is not TlsMode.NONE]
    if not offering:
        reading.warn("tls.client_ca", "has no effect: no listener offers TLS")
    for listener in offering:
        if listener.tls_settings.minimum in ("1.0", "1.1"):
            own = f"{listener.origin}.minimum"
            key = own if own in reading.written else "tls.minimum"
            reading.warn(key, f"{listener.origin} asks no client for a certificate; client_ca needs a minimum of 1.2")


_CHECKS: Final[tuple[Callable[[Reading, Settings], None], ...]] = (
    _server,
    _pickup,
    _listener_names,
    _listener_addresses,
    _listener_security,
    _sizes,
    _domain_names,
    _domain_kinds,
    _credentials,
    _next_hops,
    _policies,
    _dane,
    _delivery,
    _directory,
    _client_certificates,
    _console,
)
