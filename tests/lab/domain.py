"""The Active Directory domain that the lab's controllers serve: who is in it, and how it is made.

`template` provisions it once, on a running controller, by LDAP where LDAP can, and leaves it stopped in a directory of
var/lab. `tests.lab.directory` copies that (some 40 MB) for each controller it starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ldap3
from ldap3.core.exceptions import LDAPInvalidCredentialsResult

from tests.lab.ca import LabCA
from tests.lab.controller import Controller, environment, take_address
from tests.lab.packages import CACHE

__all__ = [
    "ACCOUNTS",
    "ADMINISTRATOR",
    "ALTERNATE_SUFFIX",
    "BASE_DN",
    "COMPUTER",
    "DOMAIN",
    "FINE_THRESHOLD",
    "HOST",
    "LOCKOUT_THRESHOLD",
    "NETBIOS",
    "REALM",
    "RELAY",
    "SERVICE",
    "SPNS",
    "USERS",
    "Account",
    "age_password",
    "configure",
    "connect",
    "ignore_sockets",
    "name_address",
    "template",
    "tool",
]

DOMAIN = "lab.example"
REALM = DOMAIN.upper()
NETBIOS = "LAB"
BASE_DN = "DC=lab,DC=example"
HOST = f"dc1.{DOMAIN}"
"""The controller's name; its certificate also has dc2, for a copy that plays the second controller."""
RELAY = f"relay.{DOMAIN}"
"""The host whose service principals are in the keytab."""
ALTERNATE_SUFFIX = "corp.example"
LOCKOUT_THRESHOLD = 3
FINE_THRESHOLD = 5
"""The lockout threshold of the fine-grained policy, which holds for the user patient alone."""
SPNS = (f"smtp/{RELAY}", f"SMTP/{RELAY}", f"SMTPSVC/{RELAY}")
"""What is in the keytab. In the directory the first two are one: it compares principals without case."""

ADMINISTRATOR = "Administrator"
SERVICE = "svc-relay"
"""The account that has the service principals."""
COMPUTER = "RELAY01$"

PASSWORD = "Lab-{name}-9"
# [MS-ADTS] 2.2.16, userAccountControl
NORMAL, DISABLED, NO_EXPIRY, WORKSTATION = 0x200, 0x2, 0x10000, 0x1000
# [MS-ADTS] 2.2.12, groupType: security groups
GLOBAL, DOMAIN_LOCAL = -0x7FFFFFFE, -0x7FFFFFFC
AES = "24"  # msDS-SupportedEncryptionTypes: AES128 and AES256


@dataclass(frozen=True, slots=True)
class Account:
    """A user or computer of the domain.

    :ivar name: sAMAccountName.
    :ivar note: what it is there for.
    :ivar attributes: further attributes; they replace those that every account gets.
    """

    name: str
    note: str
    attributes: Mapping[str, object] = field(default_factory=dict)

    @property
    def password(self) -> str:
        return PASSWORD.format(name=self.name)

    @property
    def dn(self) -> str:
        return f"CN={self.name.rstrip('$')},CN={'Computers' if self.name.endswith('$') else 'Users'},{BASE_DN}"


ACCOUNTS = (
    Account(
        "alice",
        "in nested groups, with three addresses",
        {
            "displayName": "Alice Liddell",
            "mail": f"alice@{DOMAIN}",
            "proxyAddresses": [
                f"SMTP:alice@{DOMAIN}",
                f"smtp:alice.liddell@{DOMAIN}",
                f"smtp:sales@{ALTERNATE_SUFFIX}",
                "X500:/o=Lab/cn=alice",
            ],
        },
    ),
    Account("bob", "in no group that may relay", {"mail": f"bob@{DOMAIN}"}),
    Account("carol", "with an alternate UPN suffix", {"userPrincipalName": f"carol@{ALTERNATE_SUFFIX}"}),
    Account("jörg", "a name that is not ASCII", {"mail": f"joerg@{DOMAIN}"}),
    Account("victim", "to be locked by tests"),
    Account("patient", f"to be locked, after {FINE_THRESHOLD} failures by a fine-grained policy"),
    Account("disabled", "disabled", {"userAccountControl": NORMAL | DISABLED}),
    Account("expired", "expired in 2000", {"accountExpires": "125911584000000000"}),
    Account("lapsed", "with a password older than the domain allows"),
    Account("mustchange", "must change the password at the next logon", {"pwdLastSet": "0"}),
    Account("locked", "locked, until an administrator unlocks it"),
    Account("nights", "may log on at no hour of the week", {"logonHours": bytes(21)}),
    Account("svc-search", "searches for relayd"),
    Account(
        SERVICE,
        "has the service principals",
        {
            "servicePrincipalName": [SPNS[0], SPNS[2]],
            "msDS-SupportedEncryptionTypes": AES,
            "userAccountControl": NORMAL | NO_EXPIRY,
        },
    ),
    Account(
        COMPUTER,
        "asks the controller about NTLM",
        {
            "objectClass": "computer",
            "userAccountControl": WORKSTATION,
            "dNSHostName": f"relay01.{DOMAIN}",
            "servicePrincipalName": [f"HOST/relay01.{DOMAIN}", "HOST/RELAY01"],
            "msDS-SupportedEncryptionTypes": AES,
        },
    ),
)

GROUPS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("Engineers", GLOBAL, ("alice", "jörg")),
    ("Staff", GLOBAL, ("Engineers", "carol")),
    ("Relay Users", DOMAIN_LOCAL, ("Staff",)),
    ("Relay Hosts", DOMAIN_LOCAL, (COMPUTER,)),
    ("Send As Anyone", GLOBAL, ("bob",)),
)

USERS: dict[str, str] = {account.name: account.password for account in ACCOUNTS} | {
    ADMINISTRATOR: PASSWORD.format(name=ADMINISTRATOR)
}
"""Passwords by sAMAccountName."""

# SASL without a layer of its own inside TLS, as Active Directory takes it; Samba's default would refuse it there.
SMB_CONF = """\
[global]
netbios name = DC1
realm = {realm}
workgroup = {netbios}
server role = active directory domain controller
interfaces = {address}/8
bind interfaces only = yes
server services = rpc, ldap, cldap, kdc, winbindd, dns
prefork children = 2
private dir = {directory}/private
lock directory = {directory}/lock
state directory = {directory}/state
cache directory = {directory}/cache
pid directory = {directory}/run
ncalrpc dir = {directory}/ncalrpc
binddns dir = {directory}/binddns
winbindd socket directory = {directory}/winbindd
ntp signd socket directory = {directory}/ntp
log file = {directory}/log.%m
tls enabled = yes
ldap server require strong auth = allow_sasl_over_tls
idmap_ldb:use rfc2307 = yes
[sysvol]
path = {directory}/state/sysvol
read only = no
[netlogon]
path = {directory}/state/sysvol/{domain}/scripts
read only = no
"""

# rdns and canonicalisation off: no resolver of this machine has a say in which service is asked for.
KRB5_CONF = """\
[libdefaults]
default_realm = {realm}
dns_lookup_kdc = false
dns_lookup_realm = false
dns_canonicalize_hostname = false
rdns = false
udp_preference_limit = 1
[realms]
{realm} = {{
    kdc = {address}
    kpasswd_server = {address}
}}
[domain_realm]
{domain} = {realm}
.{domain} = {realm}
"""


def configure(directory: Path, address: str) -> None:
    """Write the smb.conf and krb5.conf of a controller in `directory`, which answers at `address`."""
    values = {"directory": directory, "address": address, "realm": REALM, "netbios": NETBIOS, "domain": DOMAIN}
    (directory / "smb.conf").write_text(SMB_CONF.format(**values))
    (directory / "krb5.conf").write_text(KRB5_CONF.format(**values))


def tool(directory: Path, *command: str, feed: str = "") -> str:
    """Run one of Samba's programs with the configuration of the controller in `directory`, and return what it printed.

    :raises RuntimeError: it failed; the text has what it said.
    """
    done = subprocess.run(
        [*command, f"--configfile={directory / 'smb.conf'}"],
        env=environment(directory),
        input=feed,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def connect(address: str, ca: Path, name: str = ADMINISTRATOR, password: str | None = None) -> ldap3.Connection:
    """Bind over LDAPS, with the certificate verified by name; errors of later operations are raised.

    :param name: sAMAccountName.
    :param password: what to try in place of the right one.
    :raises ldap3.core.exceptions.LDAPException: no connection, or refused.
    """
    tls = ldap3.Tls(validate=ssl.CERT_REQUIRED, ca_certs_file=str(ca), valid_names=[HOST])
    server = ldap3.Server(address, port=636, use_ssl=True, tls=tls, connect_timeout=10, get_info=ldap3.NONE)
    # As octets: ldap3 would put a str through SASLprep.
    secret = (USERS[name] if password is None else password).encode()
    connection = ldap3.Connection(
        server, f"{NETBIOS}\\{name}", secret, receive_timeout=20, raise_exceptions=True, auto_referrals=False
    )
    connection.open()
    # ldap3 leaves Nagle's algorithm on: 40 ms a bind.
    connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.bind()
    return connection


def template() -> Path:
    """The domain in a stopped controller's directory, made when there is none yet or it was made otherwise.

    It holds ca/ca.pem, ca/relay-chain.pem and ca/relay.key (for RELAY and 127.0.0.1), relay.keytab,
    svc-search.secret and relay01.secret (passwords), and what Samba needs.

    :raises RuntimeError: a program failed; the text says which, and what it said.
    """
    templates = CACHE / "directory"
    templates.mkdir(parents=True, exist_ok=True)
    wanted = templates / _fingerprint()
    with (templates / "lock").open("w") as lock:
        # Test workers in parallel: one makes it, the others wait.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.exists():
            for old in templates.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            # Samba has sockets in there, whose paths may have 108 octets at most: not below var/lab.
            with tempfile.TemporaryDirectory(prefix="lab-provision-") as temporary:
                made = Path(temporary)
                _provision(made)
                unfinished = templates / "unfinished"
                shutil.copytree(made, unfinished, ignore=ignore_sockets)
            unfinished.rename(wanted)
    return wanted


def name_address(administrator: ldap3.Connection, address: str) -> None:
    """Make the domain's own DNS name `address` as the controller's, in a copy that answers elsewhere than the original.

    :param administrator: bound to that copy.
    """
    for zones in ("DomainDnsZones", "ForestDnsZones"):
        base = f"CN=MicrosoftDNS,DC={zones},{BASE_DN}"
        administrator.search(base, "(dnsRecord=*)", attributes=["dnsRecord"])
        for entry in list(administrator.response):
            old = entry["raw_attributes"]["dnsRecord"]
            new = [_with_address(record, socket.inet_aton(address)) for record in old]
            if new != old:
                administrator.modify(entry["dn"], {"dnsRecord": [(ldap3.MODIFY_REPLACE, new)]})


def _with_address(record: bytes, address: bytes) -> bytes:
    # [MS-DNSP] 2.3.2.2: the type is octets 2 and 3, little-endian; the data begin at octet 24. Type 1 is A. The root
    # servers' addresses are in there too, and stay.
    if int.from_bytes(record[2:4], "little") == 1 and record[24:25] == b"\x7f":
        return record[:24] + address
    return record


def ignore_sockets(directory: str, names: list[str]) -> list[str]:
    """For shutil.copytree: what a stopped controller left behind that is no file."""
    return [name for name in names if (Path(directory) / name).is_socket()]


def _fingerprint() -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(subprocess.run(["samba", "--version"], capture_output=True, check=True).stdout)
    return digest.hexdigest()[:16]


def _provision(directory: Path) -> None:
    address, keep = take_address()
    with keep:
        for name in ("lock", "state", "cache", "run", "ncalrpc", "binddns", "winbindd", "ntp", "private/tls"):
            (directory / name).mkdir(parents=True)
        configure(directory, address)
        password = f"--adminpass={USERS[ADMINISTRATOR]}"
        zone = ["--dns-backend=SAMBA_INTERNAL", f"--host-ip={address}", "--host-name=DC1"]
        names = [f"--realm={REALM}", f"--domain={NETBIOS}", "--server-role=dc", "--use-rfc2307"]
        # Without --targetdir, which would merge what the machine's own smb.conf says.
        tool(directory, "samba-tool", "domain", "provision", password, *zone, *names)
        _certificate(directory)
        controller = Controller(directory, address)
        controller.start()
        try:
            with connect(address, directory / "ca" / "ca.pem") as administrator:
                _policies(administrator)
                _accounts(administrator)
                for _ in range(LOCKOUT_THRESHOLD):
                    with contextlib.suppress(LDAPInvalidCredentialsResult):
                        connect(address, directory / "ca" / "ca.pem", "locked", "wrong")
            # Without it the controller has no ldap/ principal.
            tool(directory, "samba_spnupdate")
        finally:
            controller.stop()
        age_password(directory, "lapsed")
        for name, file in (("svc-search", "svc-search.secret"), (COMPUTER, "relay01.secret")):
            (directory / file).touch(mode=0o600)
            (directory / file).write_text(USERS[name])
        for principal in SPNS:
            keytab = str(directory / "relay.keytab")
            tool(directory, "samba-tool", "domain", "exportkeytab", keytab, f"--principal={principal}")
        (directory / "output").unlink()


def _certificate(directory: Path) -> None:
    authority = LabCA(directory / "ca", "Lab domain CA")
    leaf = authority.leaf(HOST, f"dc2.{DOMAIN}", DOMAIN, filename="controller", days=3000)
    authority.leaf(RELAY, "localhost", "127.0.0.1", filename="relay", days=3000)
    tls = directory / "private" / "tls"
    for source, name in ((authority.path, "ca.pem"), (leaf.chain, "cert.pem"), (leaf.key, "key.pem")):
        shutil.copy(source, tls / name)  # with its mode: Samba wants 0600 for the key


def _policies(administrator: ldap3.Connection) -> None:
    # [MS-ADTS]: intervals are negative, in units of 100 ns.
    day = -24 * 3600 * 10_000_000
    domain = {
        "lockoutThreshold": LOCKOUT_THRESHOLD,
        "lockoutDuration": 10_000 * day,
        "lockOutObservationWindow": day,
        "maxPwdAge": 3000 * day,
        "minPwdAge": 0,
    }
    replaced = {name: [(ldap3.MODIFY_REPLACE, [str(value)])] for name, value in domain.items()}
    administrator.modify(BASE_DN, replaced)
    partitions = f"CN=Partitions,CN=Configuration,{BASE_DN}"
    administrator.modify(partitions, {"uPNSuffixes": [(ldap3.MODIFY_ADD, [ALTERNATE_SUFFIX])]})


def _accounts(administrator: ldap3.Connection) -> None:
    for account in ACCOUNTS:
        attributes = {
            "objectClass": "user",
            "sAMAccountName": account.name,
            "userPrincipalName": f"{account.name}@{DOMAIN}",
            "unicodePwd": f'"{account.password}"'.encode("utf-16-le"),
            "userAccountControl": NORMAL,
        }
        if account.name.endswith("$"):
            del attributes["userPrincipalName"]
        administrator.add(account.dn, attributes=attributes | account.attributes)
    dns = {account.name: account.dn for account in ACCOUNTS}
    for name, kind, members in GROUPS:
        dns[name] = f"CN={name},CN=Users,{BASE_DN}"
        attributes = {"objectClass": "group", "sAMAccountName": name, "groupType": kind}
        administrator.add(dns[name], attributes=attributes | {"member": [dns[member] for member in members]})
    day = -24 * 3600 * 10_000_000
    policy = {
        "objectClass": "msDS-PasswordSettings",
        "msDS-PasswordSettingsPrecedence": 10,
        "msDS-LockoutThreshold": FINE_THRESHOLD,
        "msDS-LockoutDuration": 10_000 * day,
        "msDS-LockoutObservationWindow": day,
        "msDS-MaximumPasswordAge": 3000 * day,
        "msDS-MinimumPasswordAge": 0,
        "msDS-MinimumPasswordLength": 7,
        "msDS-PasswordHistoryLength": 0,
        "msDS-PasswordComplexityEnabled": "TRUE",
        "msDS-PasswordReversibleEncryptionEnabled": "FALSE",
        "msDS-PSOAppliesTo": [dns["patient"]],
    }
    container = f"CN=Password Settings Container,CN=System,{BASE_DN}"
    administrator.add(f"CN=Patience,{container}", attributes=policy)


def age_password(directory: Path, name: str) -> None:
    """Make the password of `name` one of 2000, in a controller that runs or not."""
    (dn,) = (account.dn for account in ACCOUNTS if account.name == name)
    change = f"dn: {dn}\nchangetype: modify\nreplace: pwdLastSet\npwdLastSet: 125911584000000000\n"
    bypass = "--controls=local_oid:1.3.6.1.4.1.7165.4.3.12:0"
    tool(directory, "ldbmodify", "-H", str(directory / "private" / "sam.ldb"), bypass, feed=change)
