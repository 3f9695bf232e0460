"""The configuration as frozen typed values: what an administrator wrote in relayd.toml, with the defaults filled in.

``relayd.config`` makes these values; all other parts take the ones they need. Durations are seconds, sizes octets.
Each key means what the contract (relayd.toml) says; the docstrings add only what the type cannot say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path as File
from types import MappingProxyType

from relayd.model import Path


@dataclass(frozen=True, slots=True)
class HostEntry:
    """One entry of a host list: a *network* (a single address is a /32 or /128), or a *name*.

    :ivar text: as it was written.
    :ivar name: lower case; for ``*.example`` the part behind ``*.``, with *wildcard* set: any depth below it.
    """

    text: str
    network: IPv4Network | IPv6Network | None = None
    name: str = ""
    wildcard: bool = False


HostList = tuple[HostEntry, ...]


@dataclass(frozen=True, slots=True)
class Rate:
    """*count* in *seconds*."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class NextHop:
    """A next hop as it is written in ``route``, ``smart_host`` and ``deliver``.

    :ivar host: a host name, or an address literal without brackets. Never looked up as MX. Empty: a unix socket.
    :ivar port: None = ``[delivery] port``.
    :ivar socket: the path of a unix socket (LMTP alone).
    """

    text: str
    host: str
    port: int | None = None
    socket: str = ""


@dataclass(frozen=True, slots=True)
class Server:
    hostname: str
    state: File
    queue: str = ""
    workers: int = 1
    user: str = ""
    name: str = ""
    postmaster: Path | None = None


@dataclass(frozen=True, slots=True)
class Dns:
    servers: tuple[str, ...] = ()
    trust_ad: bool = False


class AllowMode(Enum):
    """The two radio buttons of IIS: is the list what is allowed, or what is not?"""

    ONLY = "only"
    ALL_EXCEPT = "all-except"


@dataclass(frozen=True, slots=True)
class Access:
    """``[access]``. *origin* is where it was written, for the names of rules: ``access`` or ``listener[1].access``."""

    allow: AllowMode = AllowMode.ALL_EXCEPT
    list: HostList = ()
    origin: str = "access"


@dataclass(frozen=True, slots=True)
class Relay:
    """``[relay]``. *origin* as in :class:`Access`."""

    allow: AllowMode = AllowMode.ONLY
    list: HostList = ()
    authenticated: bool = True
    groups: tuple[str, ...] = ()
    send_as: str = "any"  # any | own
    send_as_groups: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    send_as_header: bool = False
    anonymous_send_as: tuple[str, ...] = ()
    origin: str = "relay"


@dataclass(frozen=True, slots=True)
class Lockout:
    """``lockout``: *auto*, or *failures* within *seconds*."""

    auto: bool = True
    failures: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Authentication:
    """``[authentication]``. *origin* is ``authentication``, or ``listener[1]`` where that listener overrides a key."""

    anonymous: bool = True
    basic: bool = True
    basic_requires_tls: bool = True
    integrated: bool = True
    ntlm: bool = True
    default_domain: str = ""
    channel_binding: str = "accept"  # ignore | accept | require
    max_failures: int = 3
    lockout: Lockout = Lockout()
    origin: str = "authentication"


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """``[tls]``, with what a listener overrides. Without *certificate* a self-signed one is made under state."""

    certificate: File | None = None
    key: File | None = None
    minimum: str = "1.2"  # 1.0 | 1.1 | 1.2 | 1.3
    client_ca: File | None = None
    client_crl: File | None = None
    client_map: str = "sid"  # sid | upn


@dataclass(frozen=True, slots=True)
class Limits:
    message_size: int = 25 * 1024**2
    session_size: int = 250 * 1024**2
    recipients: int = 100
    connections: int = 5000
    connections_per_client: int = 100
    messages_per_minute: int = 0
    command_timeout: float = 300.0


class TlsMode(Enum):
    NONE = "none"
    STARTTLS = "starttls"
    IMPLICIT = "implicit"


@dataclass(frozen=True, slots=True)
class Listener:
    """One ``[[listener]]`` with everything it inherits resolved."""

    name: str = "smtp"
    address: str = "::"
    port: int = 25
    tls: TlsMode = TlsMode.STARTTLS
    require_tls: bool = False
    legacy_clients: HostList = ()
    proxy_protocol: HostList = ()
    authentication: Authentication = Authentication()
    access: Access = Access()
    relay: Relay = Relay()
    tls_settings: TlsSettings = TlsSettings()
    limits: Limits = Limits()
    origin: str = "listener[0]"


@dataclass(frozen=True, slots=True)
class Directory:
    domain: str = ""
    netbios: str = ""
    servers: tuple[str, ...] = ()
    ca: File | None = None
    base: str = ""
    bind_user: str = ""
    bind_password_file: File | None = None
    timeout: float = 5.0
    cache: float = 60.0
    verify_recipients: bool = False

    @property
    def configured(self) -> bool:
        """Whether there is a directory to ask."""
        return bool(self.servers or self.domain)


@dataclass(frozen=True, slots=True)
class Kerberos:
    keytab: File | None = None


@dataclass(frozen=True, slots=True)
class Ntlm:
    """``[ntlm]``. In settings that were loaded, *backend* is whom ``auto`` means; empty: nobody, and NTLM is off."""

    backend: str = "auto"  # auto | netlogon | winbind | accounts
    computer: str = ""
    secret_file: File | None = None


@dataclass(frozen=True, slots=True)
class Accounts:
    file: File | None = None


class DomainKind(Enum):
    LOCAL = "local"
    REMOTE = "remote"


class OutboundTls(Enum):
    NONE = "none"
    MAY = "may"
    REQUIRE = "require"
    VERIFY = "verify"
    IMPLICIT = "implicit"
    DANE = "dane"
    STS = "sts"


@dataclass(frozen=True, slots=True)
class Domain:
    """One ``[[domain]]``. *name* is lower case and in A-label form; with *wildcard* it is what stands behind ``*.``.

    :ivar name: for the catch-all ``*`` it is empty and *wildcard* is set.
    :ivar deliver: the LMTP server of a local domain; None = the drop folder.
    :ivar tls: None = ``[delivery] tls``.
    """

    name: str
    wildcard: bool = False
    kind: DomainKind = DomainKind.LOCAL
    aliases: tuple[str, ...] = ()
    deliver: NextHop | None = None
    relay: bool = False
    route: tuple[NextHop, ...] = ()
    tls: OutboundTls | None = None
    auth: str = ""
    rewrite_sender: str = ""
    connections: int = 0
    rate: Rate | None = None
    origin: str = "domain[0]"


@dataclass(frozen=True, slots=True)
class Delivery:
    smart_host: tuple[NextHop, ...] = ()
    smart_host_auth: str = ""
    smart_host_tls: OutboundTls | None = None
    direct_first: bool = False
    port: int = 25
    source_address: str = ""
    tls: OutboundTls = OutboundTls.MAY
    ca: File | None = None
    client_certificate: File | None = None
    client_key: File | None = None
    retry: tuple[float, ...] = (900.0, 1800.0, 3600.0, 14400.0)
    delay_notice: float = 43200.0
    expire: float = 172800.0
    max_hops: int = 100
    connections: int = 1000
    connections_per_hop: int = 20
    messages_per_connection: int = 100
    timeout: float = 300.0
    masquerade_domain: str = ""
    complete_headers: bool = False
    bounce_copy_to: Path | None = None


@dataclass(frozen=True, slots=True)
class Credential:
    """One ``[[credential]]``. The secret stays in its file until it is used."""

    name: str
    kind: str = "password"  # password | gssapi | oauth2
    user: str = ""
    password_file: File | None = None
    token_url: str = ""
    client_id: str = ""
    client_secret_file: File | None = None
    scope: str = ""
    allow_insecure: bool = False


@dataclass(frozen=True, slots=True)
class Dkim:
    domain: str
    selector: str
    key_file: File


@dataclass(frozen=True, slots=True)
class Rewrite:
    match: tuple[str, ...]
    from_: str
    header: bool = False


@dataclass(frozen=True, slots=True)
class Pickup:
    directory: File | None = None
    dot_stuffed: str = "auto"  # auto | yes | no


@dataclass(frozen=True, slots=True)
class Log:
    format: str = "text"  # text | json
    file: File | None = None


@dataclass(frozen=True, slots=True)
class Console:
    """``[console]``. *socket* is resolved: its default lies under ``[server] state``."""

    socket: File
    address: str = ""
    tls: bool = True
    admin_groups: tuple[str, ...] = ()
    viewer_groups: tuple[str, ...] = ()
    metrics_list: HostList = (
        HostEntry("127.0.0.0/8", IPv4Network("127.0.0.0/8")),
        HostEntry("::1", IPv6Network("::1")),
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """One whole relayd.toml.

    :ivar file: the file it was read from.
    :ivar lines: the line of each key and list entry that was written, by the rule's name: ``relay.list[2]``,
        ``domain[0].relay``. What is not in it is a default.
    """

    file: File
    server: Server
    console: Console
    listeners: tuple[Listener, ...] = (Listener(),)
    dns: Dns = Dns()
    tls: TlsSettings = TlsSettings()
    access: Access = Access()
    authentication: Authentication = Authentication()
    relay: Relay = Relay()
    directory: Directory = Directory()
    kerberos: Kerberos = Kerberos()
    ntlm: Ntlm = Ntlm()
    accounts: Accounts = Accounts()
    domains: tuple[Domain, ...] = ()
    delivery: Delivery = Delivery()
    credentials: tuple[Credential, ...] = ()
    dkim: tuple[Dkim, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    limits: Limits = Limits()
    pickup: Pickup = Pickup()
    log: Log = Log()
    lines: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def first_local(self) -> Domain | None:
        """The domain that completes unqualified addresses: the first local one that is a name, not a wildcard."""
        return next((d for d in self.domains if d.kind is DomainKind.LOCAL and not d.wildcard), None)
