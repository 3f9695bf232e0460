"""The servers whose authentication is compared, joined to a lab's domain, and the accounts that sign in.

Postfix leaves authentication to Dovecot: the two together are what an administrator of Linux would take.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from relayd.auth import AccountsFile
from relayd.control import ControlClient
from relayd.directory.entries import sid_text
from tests.bench.machine import session_members
from tests.bench.servers import RelaydServer
from tests.lab.ca import LabCA, Leaf
from tests.lab.directory import DirectoryLab
from tests.lab.net import wait_for
from tests.lab.postfix import Postfix

__all__ = ["SESSIONS", "Domain", "Dovecot", "Person", "RelaydAcceptor"]

#: Sessions at a time at most, each with an account of its own: relayd asks about one account in turn.
SESSIONS = 20
#: Local accounts with one password.
LOCAL = 1000


@dataclass(frozen=True, slots=True)
class Person:
    """An account of the domain.

    :ivar nt: the NT hash of the password, in hexadecimal.
    :ivar tickets: a cache with its ticket-granting ticket.
    """

    name: str
    password: str
    nt: str
    tickets: Path
    leaf: Leaf


class Domain:
    """A lab's domain with people in nested groups; use as a context manager.

    :ivar local: the name of the n-th account of the file :attr:`accounts`, all of one password.
    """

    password = "Lab-bench-9"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lab = DirectoryLab()
        self.people: list[Person] = []
        self.accounts = directory / "accounts.json"

    def __enter__(self) -> Self:
        self.lab.start()
        self.ca = LabCA(self.directory / "clients-ca", "Lab clients CA")
        self.people = [self._person(f"bench{number:02d}") for number in range(SESSIONS)]
        self._local_accounts()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lab.close()

    def local(self, number: int) -> str:
        return f"local{number % LOCAL:04d}"

    def _person(self, name: str) -> Person:
        from impacket.ntlm import compute_nthash

        lab = self.lab
        dn = f"CN={name},CN=Users,{lab.base_dn}"
        attributes = {
            "objectClass": "user",
            "sAMAccountName": name,
            "userPrincipalName": f"{name}@{lab.domain}",
            "mail": f"{name}@{lab.domain}",
            "unicodePwd": f'"{self.password}"'.encode("utf-16-le"),
            "userAccountControl": 0x200,
        }
        administrator = lab.administrator()
        administrator.add(dn, attributes=attributes)
        administrator.modify(lab.dn("Engineers"), {"member": [("MODIFY_ADD", [dn])]})
        (sid,) = lab.attributes(name, "objectSid")["objectSid"]
        leaf = self.ca.leaf(name, filename=name, client=True, sid=sid_text(sid))
        return Person(name, self.password, compute_nthash(self.password).hex(), lab.kinit(name, self.password), leaf)

    def _local_accounts(self) -> None:
        accounts = AccountsFile(self.accounts)
        accounts.add(self.local(0), self.password, (), ("Senders",), nt=True)
        (entry,) = json.loads(self.accounts.read_text())["accounts"].values()
        # One hash for all: to make a thousand takes minutes, and to check one as long as any.
        entries = {self.local(number): entry for number in range(LOCAL)}
        self.accounts.write_text(json.dumps({"accounts": entries}))


CONFIG = """\
[server]
hostname = "relay.lab.example"
state = "state"

[[listener]]
name = "smtp"
address = "127.0.0.1"
port = 0

[tls]
certificate = "{lab.directory}/ca/relay-chain.pem"
key = "{lab.directory}/ca/relay.key"
{tls}

[authentication]
basic_requires_tls = false

[limits]
connections_per_client = 1000

[log]
format = "json"
file = "log"
{more}
"""


class RelaydAcceptor(RelaydServer):
    """``twistd relayd`` in *domain*.

    :param kind: ``cached``; ``cold``, the directory is asked anew each time; ``winbind``; ``local``, without a
        directory.
    """

    def __init__(self, domain: Domain, kind: str, command: tuple[str, ...] = ()) -> None:
        lab = domain.lab
        directory, heading, integrated = lab.toml().partition("[kerberos]")
        if kind == "cold":
            directory = directory.replace("[directory]\n", '[directory]\ncache = "0s"\n')
        if kind == "winbind":
            integrated = integrated.partition("[ntlm]")[0] + '[ntlm]\nbackend = "winbind"\n'
            command = (*lab.with_winbind(), *command)
        more, tls = directory + heading + integrated, f'client_ca = "{domain.ca.path}"'
        if kind == "local":
            more, tls = f'[accounts]\nfile = "{domain.accounts}"\n[ntlm]\nbackend = "accounts"\n', ""
        config = CONFIG.format(lab=lab, more=more, tls=tls)
        # Nowhere: no mail is sent.
        super().__init__(("127.0.0.1", 9), domain.directory, command, config=config, environment=_kerberos(lab))

    def totals(self) -> dict[str, int]:
        """What `relayctl status` has."""
        totals: dict[str, int] = ControlClient(self.directory / "state" / "control.sock").status()["totals"]
        return totals

    def complaints(self) -> list[str]:
        """Why it refused somebody, and what was wrong with a controller."""
        events = map(json.loads, (self.directory / "log").read_text().splitlines())
        return [f"{event['event']}: {event['reason']}" for event in events if event.get("reason")]


MAIN = """\
base_dir = {place}/run
state_dir = {place}/state
log_path = {place}/log
auth_verbose = no
import_environment = KRB5_CONFIG
protocols =
ssl = no
disable_plaintext_auth = no
auth_mechanisms = {mechanisms}
auth_username_format = %Ln
auth_cache_size = {cache}
auth_cache_ttl = 60 s
auth_gssapi_hostname = relay.lab.example
auth_krb5_keytab = {lab.keytab}
auth_use_winbind = {winbind}
auth_winbind_helper_path = /usr/bin/ntlm_auth
service auth {{
  user = root
  unix_listener {place}/auth {{
    mode = 0666
  }}
}}
service anvil {{
  chroot =
}}
passdb {{
  {passdb}
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home=/nonexistent
}}
"""

LDAP = """\
uris = ldaps://{lab.host}
dn = svc-search@{lab.domain}
dnpass = {password}
tls_ca_cert_file = {lab.ca}
tls_require_cert = hard
auth_bind = yes
base = CN=Users,{lab.base_dn}
pass_filter = (&(objectClass=user)(|(sAMAccountName=%n)(userPrincipalName=%u)))
pass_attrs = sAMAccountName=user
"""


class Dovecot:
    """Postfix with Dovecot's authentication, in *domain*: LDAP by bind, Kerberos by MIT, NTLM by winbind.

    :param kind: as `RelaydAcceptor`'s; the cache is Dovecot's own.
    """

    def __init__(self, domain: Domain, kind: str) -> None:
        lab = domain.lab
        self.place = Path(tempfile.mkdtemp(prefix="dovecot-", dir=domain.directory))
        self.place.chmod(0o755)
        ldap = self.place / "ldap.conf"
        ldap.write_text(LDAP.format(lab=lab, password=lab.users["svc-search"]))
        passdb = f"driver = ldap\n  args = {ldap}"
        if kind == "local":
            users = self.place / "users"
            entries: dict[str, dict[str, Any]] = json.loads(domain.accounts.read_text())["accounts"]
            users.write_text("".join(f"{name}:{{ARGON2ID}}{entry['password']}\n" for name, entry in entries.items()))
            passdb = f"driver = passwd-file\n  args = scheme=ARGON2ID username_format=%n {users}"
        config = self.place / "dovecot.conf"
        config.write_text(
            MAIN.format(
                place=self.place,
                lab=lab,
                cache="0" if kind == "cold" else "10M",
                mechanisms="plain ntlm" if kind == "winbind" else "plain gssapi gss-spnego",
                winbind="yes" if kind == "winbind" else "no",
                passdb=passdb,
            )
        )
        command = ["dovecot", "-F", "-c", str(config)]
        with (self.place / "output").open("wb") as output:
            self._process = subprocess.Popen(
                lab.named(*(lab.with_winbind(*command) if kind == "winbind" else command)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_kerberos(lab) | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                start_new_session=True,
            )
        settings = {
            "smtpd_sasl_auth_enable": "yes",
            "smtpd_sasl_type": "dovecot",
            "smtpd_sasl_path": str(self.place / "auth"),
        }
        self._postfix = Postfix(("127.0.0.1", 9), settings, directory=domain.directory)
        try:
            wait_for((self.place / "auth").exists, f"Dovecot to serve; see {self.place}", 10)
            self._postfix.start()
        except BaseException:
            self.stop()
            raise
        self.port = self._postfix.port

    def pids(self) -> list[int]:
        return session_members(self._process.pid) + self._postfix.pids()

    def complaints(self) -> list[str]:
        """What Dovecot logged."""
        return (self.place / "log").read_text(errors="replace").splitlines()

    def stop(self) -> None:
        self._postfix.stop()
        self._process.terminate()
        self._process.wait(10)

    def discard(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)


def _kerberos(lab: DirectoryLab) -> dict[str, str]:
    return {"KRB5_CONFIG": str(lab.krb5_conf)}
