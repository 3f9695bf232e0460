"""A real Active Directory domain on loopback, for tests: Samba as its controller, in a private directory.

    with DirectoryLab() as lab:
        lab.kinit("alice")

Each `DirectoryLab` is a copy of one prepared domain (see `tests.lab.domain` for who is in it), and independent of the
others: a test that locks accounts, or kills its controller, starts its own, which takes a second or two.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import ldap3
from ldap3.utils.conv import escape_filter_chars

from tests.lab import domain as contents
from tests.lab.controller import Controller, environment, take_address

__all__ = ["DirectoryLab", "KerberosRefused"]

TOML = """\
[dns]
servers = ["{address}"]

[directory]
domain = "{domain}"
netbios = "{netbios}"
ca = "{ca}"
bind_user = "svc-search@{domain}"
bind_password_file = "{directory}/svc-search.secret"

[kerberos]
keytab = "{keytab}"

[ntlm]
computer = "{computer}"
secret_file = "{directory}/relay01.secret"
"""


class KerberosRefused(Exception):
    """kinit got no ticket; the text is what it said."""


class DirectoryLab:
    """One domain controller; use as a context manager, or `start` and `stop`.

    :ivar host: the controller's name, which its certificate has (and `dc2`, and the domain's; no address).
    :ivar address: where it listens: LDAPS 636, LDAP 389, Kerberos 88, kpasswd 464, RPC 135, DNS 53. Known after
        `start`, and kept over a later one.
    :ivar ca: PEM file of the CA that signed its certificate.
    :ivar users: passwords by sAMAccountName.
    :ivar keytab: the keys of `tests.lab.domain.SPNS`.
    :ivar krb5_conf: for KRB5_CONFIG.
    """

    domain = contents.DOMAIN
    realm = contents.REALM
    netbios = contents.NETBIOS
    base_dn = contents.BASE_DN
    host = contents.HOST
    users: Mapping[str, str] = contents.USERS

    def __init__(self) -> None:
        prepared = contents.template()
        # Short: there will be sockets in it, whose paths may have 108 octets at most.
        self.directory = Path(tempfile.mkdtemp(prefix="lab-dc-"))
        shutil.copytree(prepared, self.directory, ignore=contents.ignore_sockets, dirs_exist_ok=True)
        self.directory.chmod(0o755)  # afterwards: copytree copied the mode as well
        self.ca = self.directory / "ca" / "ca.pem"
        self.keytab = self.directory / "relay.keytab"
        self.krb5_conf = self.directory / "krb5.conf"
        self.address = ""
        self._keep: IO[str] | None = None
        self._controller: Controller | None = None
        self._administrator: ldap3.Connection | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the controller, and wait until it serves.

        :raises NoAddress: no address of the lab's is free, or this is not root.
        :raises RuntimeError: it ended at once; the text has its log.
        :raises TimeoutError: it was not ready in time.
        """
        if self._keep is None:
            self.address, self._keep = take_address()
            contents.configure(self.directory, self.address)
            self._controller = Controller(self.directory, self.address)
        self.controller.start()
        contents.name_address(self.administrator(), self.address)

    def stop(self) -> None:
        """End the controller in good order. What it knows stays, and so does its address, for another `start`."""
        self._forget_administrator()
        if self._controller is not None:
            self._controller.stop()

    def close(self) -> None:
        """Stop, remove the directory and give up the address."""
        try:
            self.stop()
        finally:
            if self._keep is not None:
                self._keep.close()
            shutil.rmtree(self.directory, ignore_errors=True)

    def kill(self) -> None:
        """End the controller as a power cut does; `start` brings it back."""
        self._forget_administrator()
        self.controller.kill()

    def pause(self) -> None:
        """Stop the controller from answering: the kernel still accepts connections, and they hang. See `resume`."""
        self.controller.pause()

    def resume(self) -> None:
        """Let a paused controller go on."""
        self.controller.resume()

    @property
    def controller(self) -> Controller:
        """Its processes, and its log."""
        assert self._controller is not None, "not started"
        return self._controller

    @property
    def environment(self) -> dict[str, str]:
        """For Kerberos programs: this realm, and no ticket cache but those of `kinit`."""
        return environment(self.directory) | {"KRB5CCNAME": f"FILE:{self.directory}/no-tickets"}

    def toml(self) -> str:
        """The tables of relayd.toml that join a relay to this domain."""
        return TOML.format(
            address=self.address,
            domain=self.domain,
            netbios=self.netbios,
            ca=self.ca,
            keytab=self.keytab,
            computer=contents.COMPUTER,
            directory=self.directory,
        )

    def named(self, *command: str | Path) -> list[str]:
        """The command line that runs `command` where this domain's hosts have their names, without /etc/hosts changed.

        It takes a mount namespace of its own, hence root. Without `command`, it is what stands before one.
        """
        hosts = self.directory / "hosts"
        # Lines of their own: Cyrus' clients ask for a ticket of the first name in the line.
        hosts.write_text(f"127.0.0.1 localhost\n127.0.0.1 {contents.RELAY}\n{self.address} {self.host}\n")
        return _mounted({hosts: Path("/etc/hosts")}, command)

    def with_winbind(self, *command: str | Path) -> list[str]:
        """The command line that runs `command` where ntlm_auth and wbinfo find this controller's winbind.

        They look for its sockets at fixed places, so that it takes a mount namespace, hence root.
        """
        places = {
            self.directory / "winbindd": Path("/run/samba/winbindd"),
            self.directory / "state" / "winbindd_privileged": Path("/var/lib/samba/winbindd_privileged"),
        }
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        return _mounted(places, command)

    def kinit(self, name: str, password: str | None = None) -> Path:
        """Get a ticket-granting ticket, into a cache of its own.

        :param name: sAMAccountName, or with an @ an enterprise name (a UPN).
        :param password: tried in place of the right one.
        :returns: the cache, for KRB5CCNAME.
        :raises KerberosRefused: no ticket.
        """
        secret = self.users[name] if password is None else password
        cache = Path(tempfile.mkdtemp(prefix="tickets-", dir=self.directory)) / "cache"
        enterprise = ["-E"] if "@" in name else []
        done = subprocess.run(
            ["kinit", "-c", f"FILE:{cache}", *enterprise, name],
            env=self.environment,
            input=f"{secret}\n",
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise KerberosRefused(done.stderr.strip())
        return cache

    def connect(self, name: str, password: str | None = None) -> ldap3.Connection:
        """Bind over LDAPS as `name` (see `domain.connect`)."""
        return contents.connect(self.address, self.ca, name, password)

    def administrator(self) -> ldap3.Connection:
        """A bound connection that may change everything; it raises what the controller refuses."""
        if self._administrator is None:
            self._administrator = self.connect(contents.ADMINISTRATOR)
        return self._administrator

    def attributes(self, name: str, *names: str) -> dict[str, list[bytes]]:
        """Values of attributes of the user, computer or group whose sAMAccountName is `name`; none is an empty list.

        Computed ones (tokenGroups) need `administrator().search` on the object itself: see `dn`.
        """
        connection = self.administrator()
        connection.search(self.base_dn, _account_filter(name), attributes=list(names))
        entry = _only(connection.response)
        return {wanted: list(entry["raw_attributes"].get(wanted, [])) for wanted in names}

    def dn(self, name: str) -> str:
        """The distinguished name of the user, computer or group whose sAMAccountName is `name`."""
        connection = self.administrator()
        connection.search(self.base_dn, _account_filter(name))
        return str(_only(connection.response)["dn"])

    def modify(self, name: str, **attributes: object) -> None:
        """Replace attributes of the account `name`; None removes one. An underscore stands for a hyphen."""
        changes = {
            attribute.replace("_", "-"): [(ldap3.MODIFY_REPLACE, [] if value is None else [value])]
            for attribute, value in attributes.items()
        }
        self.administrator().modify(self.dn(name), changes)

    def bad_password_count(self, name: str) -> int:
        """badPwdCount of the account: failures since the last success."""
        return sum(int(value) for value in self.attributes(name, "badPwdCount")["badPwdCount"])

    def _forget_administrator(self) -> None:
        if self._administrator is not None:
            connection, self._administrator = self._administrator, None
            connection.strategy.close()


def _mounted(places: Mapping[Path, Path], command: Sequence[str | Path]) -> list[str]:
    # In one namespace of mounts, so that nothing of it is seen outside: pairs of what is mounted and where, then "--".
    script = 'while [ "$1" != -- ]; do mount --bind "$1" "$2" && shift 2 || exit 1; done; shift; exec "$@"'
    pairs = [str(path) for pair in places.items() for path in pair]
    return ["unshare", "-m", "sh", "-c", script, "sh", *pairs, "--", *(str(word) for word in command)]


def _account_filter(name: str) -> str:
    return f"(sAMAccountName={escape_filter_chars(name)})"


def _only(response: list[dict[str, Any]]) -> dict[str, Any]:
    # A search at the domain's root also answers with referrals to its other partitions.
    (entry,) = (entry for entry in response if entry["type"] == "searchResEntry")
    return entry
