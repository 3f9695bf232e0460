"""relayctl join and spn check against a real controller; what they write is then used as relayd and its clients do."""

from __future__ import annotations

import json
import os
import pwd
import ssl
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import gssapi
import pytest
from gssapi.raw.misc import GSSError

from relayd.auth import keytab, secret_file
from relayd.auth.joining import Administrator, JoinFailed, Joining, JoinRefused, Plan
from relayd.auth.kdc import Kdc, KdcFault
from relayd.auth.keytab import Key
from relayd.directory.computer import Changing, NotAllowed
from relayd.directory.connection import Controller
from relayd.directory.entries import sid_text
from relayd.directory.faults import ControllerFault
from relayd.directory.names import Domain
from relayd.netlogon.channel import Machine, SecureChannel
from tests.lab import domain
from tests.lab.directory import DirectoryLab, KerberosRefused
from tests.lab.relay import ENVIRONMENT, program

CONFIG = """\
[server]
hostname = "{hostname}"
state = "state"

[dns]
servers = ["{lab.address}"]

[[listener]]
name = "smtp"
address = "127.0.0.1"
port = 0

[directory]
domain = "lab.example"
ca = "{ca}"

[[domain]]
name = "lab.example"
"""

FILES = """
[kerberos]
keytab = "relayd.keytab"

[ntlm]
computer = "{computer}"
secret_file = "relayd.secret"
"""

NONE_LEFT = {"relayd.toml"}


class Host:
    """A host called NAME.lab.example, that is to be the computer NAME$."""

    def __init__(self, lab: DirectoryLab, folder: Path, name: str, *, more: str = "", ca: Path | None = None) -> None:
        self.lab = lab
        self.folder = folder
        self.name = name
        self.account = f"{name.upper()}$"
        self.hostname = f"{name}.lab.example"
        self.dn = f"CN={name.upper()},CN=Computers,{lab.base_dn}"
        self.keytab = folder / "relayd.keytab"
        self.secret = folder / "relayd.secret"
        self.config = folder / "relayd.toml"
        self.config.write_text(CONFIG.format(lab=lab, hostname=self.hostname, ca=ca or lab.ca) + more)

    def ctl(self, *arguments: str, password: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [program("relayctl"), "--config", str(self.config), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            input=f"{password}\n",
            env=ENVIRONMENT | {"KRB5_CONFIG": str(self.lab.krb5_conf)},
        )
        assert "Traceback" not in done.stderr, done.stderr
        if password:
            assert password not in done.stdout + done.stderr
        return done

    def join(
        self, *arguments: str, user: str = domain.ADMINISTRATOR, password: str = ""
    ) -> subprocess.CompletedProcess[str]:
        secret = password or self.lab.users[user]
        return self.ctl("join", "--user", user, "--password-file", "-", *arguments, password=secret)

    def joined(self, *arguments: str) -> dict[str, Any]:
        secret = self.lab.users[domain.ADMINISTRATOR]
        who = ("--user", domain.ADMINISTRATOR, "--password-file", "-")
        done = self.ctl("--json", "join", *who, *arguments, password=secret)
        assert done.returncode == 0, done
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def refused(self, code: int, *arguments: str, **who: str) -> str:
        """What an attempt to join says that must fail."""
        done = self.join(*arguments, **who)
        assert done.returncode == code, done
        assert done.stderr.startswith("relayctl: ")
        assert done.stderr.count("\n") == 1
        return done.stderr

    def configure(self) -> None:
        """Does what join asks for."""
        with self.config.open("a") as config:
            config.write(FILES.format(computer=self.account))

    def spn(self, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
        """What spn check finds, by the name."""
        done = self.ctl("--json", "spn", "check", *arguments)
        document = json.loads(done.stdout)
        assert document["ok"] is (done.returncode == 0)
        return done.returncode, {found["name"]: found for found in document["principals"]}

    @property
    def password(self) -> str:
        return self.secret.read_text().strip("\n")

    @property
    def files(self) -> set[str]:
        return set(os.listdir(self.folder))


@pytest.fixture(scope="module")
def changed() -> Iterator[DirectoryLab]:
    """A domain that these tests add computers to, each its own."""
    with DirectoryLab() as running:
        yield running


@pytest.fixture
def kerberos(changed: DirectoryLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a client of the lab's realm."""
    monkeypatch.setenv("KRB5_CONFIG", str(changed.krb5_conf))


def ticket(lab: DirectoryLab, service: str, user: str = "alice") -> bytes:
    """A token for *service*, of a user who has just signed in."""
    mech = gssapi.MechType.kerberos
    name = gssapi.Name(f"{user}@{lab.realm}", gssapi.NameType.kerberos_principal)
    mine = gssapi.Credentials(name=name, usage="initiate", mechs=[mech], store={"ccache": f"FILE:{lab.kinit(user)}"})
    target = gssapi.Name(f"{service}@{lab.realm}", gssapi.NameType.kerberos_principal)
    token = gssapi.SecurityContext(name=target, creds=mine, usage="initiate", mech=mech).step()
    assert token
    return token


def accepted(file: Path, token: bytes) -> str:
    """Who sent *token*, by the keys of a keytab."""
    store: Mapping[Any, Any] = {"keytab": f"FILE:{file}", "rcache": "none:"}
    server = gssapi.Credentials(usage="accept", mechs=[gssapi.MechType.kerberos], store=dict(store))
    return str(gssapi.Name(gssapi.raw.accept_sec_context(token, server).initiator_name))


def opens_netlogon(lab: DirectoryLab, account: str, password: str) -> None:
    machine = Machine.of(account, domain.NETBIOS, password.encode())
    SecureChannel("dc1", IPv4Address(lab.address), machine, time.monotonic() + 30).close()


class TestJoin:
    @pytest.mark.usefixtures("kerberos")
    def test_all_of_it_is_used(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "mail")
        document = host.joined()
        assert document["computer"] == "MAIL$"
        assert document["dn"] == host.dn
        assert document["created"] is True
        assert document["sid"].startswith("S-1-5-21-")
        assert document["domain"] == "lab.example"
        assert document["controller"] == "ldaps://dc1.lab.example:636"
        assert document["keytab"] == str(host.keytab)
        assert document["secret_file"] == str(host.secret)
        assert document["to_add"] == {
            "kerberos": {"keytab": "relayd.keytab"},
            "ntlm": {"computer": "MAIL$", "secret_file": "relayd.secret"},
        }
        services = {"smtp/mail.lab.example", "SMTPSVC/mail.lab.example", "smtp/mail", "SMTPSVC/mail"}
        assert set(document["service_principals"]) == services
        assert document["principals"][0] == "MAIL$@LAB.EXAMPLE"

        names = ("servicePrincipalName", "dNSHostName", "msDS-SupportedEncryptionTypes", "userAccountControl")
        found = changed.attributes("MAIL$", *names, "msDS-KeyVersionNumber")
        assert {name.decode() for name in found["servicePrincipalName"]} == services
        assert found["dNSHostName"] == [b"mail.lab.example"]
        assert found["msDS-SupportedEncryptionTypes"] == [b"24"]
        assert found["userAccountControl"] == [b"4096"]
        assert found["msDS-KeyVersionNumber"] == [str(document["kvno"]).encode()]

        assert host.files == NONE_LEFT | {"relayd.keytab", "relayd.secret"}
        for file in (host.keytab, host.secret):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        for service in ("smtp/mail.lab.example", "SMTP/mail.lab.example", "SMTPSVC/mail.lab.example", "smtp/mail"):
            assert accepted(host.keytab, ticket(changed, service)) == "alice@LAB.EXAMPLE"
        changed.connect("MAIL$", host.password).unbind()
        opens_netlogon(changed, "MAIL$", host.password)

    def test_it_tells_people_what_to_write(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "told", more="\n[console]\n")
        done = host.join("--spn-host", "Post.Lab.Example")
        assert done.returncode == 0, done
        assert "signed in as Administrator@lab.example" in done.stdout
        assert f"{host.dn}: made" in done.stdout
        assert 'keytab = "relayd.keytab"\n\n[ntlm]\ncomputer = "TOLD$"\nsecret_file = "relayd.secret"\n' in done.stdout
        assert host.password not in done.stdout
        principals = changed.attributes("TOLD$", "servicePrincipalName")["servicePrincipalName"]
        assert {b"smtp/post.lab.example", b"SMTPSVC/post"} < set(principals)
        # Written as it said, the configuration is sound, and the account searches.
        host.configure()
        checked = host.ctl("spn", "check", "--host", "post.lab.example")
        assert checked.returncode == 0, checked
        assert "nothing is wrong" in checked.stdout

    def test_the_files_that_the_configuration_names(self, changed: DirectoryLab, tmp_path: Path) -> None:
        (tmp_path / "keys").mkdir()
        more = '[kerberos]\nkeytab = "keys/mail.keytab"\n[ntlm]\ncomputer = "NODE7$"\nsecret_file = "keys/node7"\n'
        host = Host(changed, tmp_path, "named", more=more)
        document = host.joined()
        assert document["computer"] == "NODE7$"
        assert document["to_add"] == {}
        assert set(os.listdir(tmp_path / "keys")) == {"mail.keytab", "node7"}
        assert changed.attributes("NODE7$", "dNSHostName")["dNSHostName"] == [b"named.lab.example"]

    def test_files_of_root_are_the_servers(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "owned")
        host.config.write_text(host.config.read_text().replace("[server]", '[server]\nuser = "nobody"'))
        host.joined()
        assert {file.stat().st_uid for file in (host.keytab, host.secret)} == {pwd.getpwnam("nobody").pw_uid}

    def test_whoever_may_create_computers_in_one_place(self, changed: DirectoryLab, tmp_path: Path) -> None:
        place = f"OU=Relays,{changed.base_dn}"
        changed.administrator().add(place, "organizationalUnit")
        sid = sid_text(changed.attributes("bob", "objectSid")["objectSid"][0])
        sddl = f"(OA;;CC;bf967a86-0de6-11d0-a285-00aa003049e2;;{sid})"
        database = str(changed.directory / "private" / "sam.ldb")
        grant = (
            "samba-tool",
            "dsacl",
            "set",
            "-H",
            database,
            f"--objectdn={place}",
            f"--sddl={sddl}",
            "--action=allow",
        )
        domain.tool(changed.directory, *grant)
        host = Host(changed, tmp_path, "placed")
        done = host.join("--ou", place, user="bob")
        assert done.returncode == 0, done
        assert changed.dn("PLACED$") == f"CN=PLACED,{place}"


class TestRefusals:
    def test_an_account_that_exists(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "relay01")
        before = changed.attributes("RELAY01$", "msDS-KeyVersionNumber", "servicePrincipalName")
        said = host.refused(1)
        assert f"{changed.dn('RELAY01$')} exists already" in said
        assert "--reuse" in said
        assert changed.attributes("RELAY01$", *before) == before
        assert host.files == NONE_LEFT

    def test_a_name_that_another_account_has(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "claimed")
        said = host.refused(1, "--spn-host", domain.RELAY)
        assert f"{changed.dn(domain.SERVICE)} has smtp/relay.lab.example, SMTPSVC/relay.lab.example" in said
        assert not exists(changed, host.dn)
        assert host.files == NONE_LEFT

    def test_a_wrong_password(self, changed: DirectoryLab, tmp_path: Path) -> None:
        assert "52e unknown account or wrong password" in Host(changed, tmp_path, "wrong").refused(
            1, password="not-the-password"
        )

    def test_an_ordinary_user(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "ordinary")
        said = host.refused(1, user="alice")
        assert "insufficientAccessRights" in said
        assert "sign in as an administrator" in said
        assert not exists(changed, host.dn)
        assert host.files == NONE_LEFT

    def test_a_place_that_is_not_there(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "nowhere")
        assert "there is no OU=None" in host.refused(1, "--ou", f"OU=None,{changed.base_dn}")
        assert host.files == NONE_LEFT

    def test_what_is_no_ordinary_computer(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "dcs")
        assert "no ordinary computer" in host.refused(1, "--computer", "DC1", "--reuse")

    def test_a_disabled_account(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "off")
        host.joined()
        changed.modify("OFF$", userAccountControl="4098")
        assert "is disabled; enable it first" in host.refused(1, "--reuse")

    def test_a_folder_that_is_not_there(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "folder", more='[kerberos]\nkeytab = "no/such.keytab"\n')
        assert "such.keytab cannot be written: No such file or directory" in host.refused(1)
        assert not exists(changed, host.dn)

    def test_a_file_that_is_no_keytab(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "garbage")
        host.keytab.write_bytes(b"not a keytab")
        assert "relayd.keytab: " in host.refused(1)
        assert host.keytab.read_bytes() == b"not a keytab"
        assert not exists(changed, host.dn)

    def test_a_certificate_of_another_authority(self, changed: DirectoryLab, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        host = Host(changed, tmp_path, "distrust", ca=domain.LabCA(other, "another CA").path)
        assert "certificate verify failed" in host.refused(2)

    def test_no_controller(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "alone")
        host.config.write_text(host.config.read_text().replace('domain = "lab.example"', 'domain = "else.example"'))
        assert "_ldap._tcp.dc._msdcs.else.example" in host.refused(2)


class TestReuse:
    @pytest.mark.usefixtures("kerberos")
    def test_it_gets_new_keys_and_keeps_what_it_had(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "again")
        first = host.joined()
        old_password, old_ticket = host.password, ticket(changed, "smtp/again.lab.example")
        stranger = Key("HTTP/www.lab.example@LAB.EXAMPLE", 3, 18, bytes(32))
        keytab.write(host.keytab, (*keytab.read(host.keytab), stranger))
        host.configure()
        second = host.joined("--reuse", "--spn-host", "later.lab.example")
        assert second["created"] is False
        assert second["to_add"] == {}
        assert second["sid"] == first["sid"]
        assert second["kvno"] > first["kvno"]
        assert stranger in keytab.read(host.keytab)
        assert accepted(host.keytab, old_ticket) == "alice@LAB.EXAMPLE"
        for service in ("smtp/again.lab.example", "SMTPSVC/later.lab.example"):
            assert accepted(host.keytab, ticket(changed, service)) == "alice@LAB.EXAMPLE"
        changed.kinit("AGAIN$", host.password)
        # Simple binds take the password before for an hour, as Active Directory's do.
        with pytest.raises(KerberosRefused):
            changed.kinit("AGAIN$", old_password)

    @pytest.mark.usefixtures("kerberos")
    def test_an_account_that_was_made_beforehand(self, changed: DirectoryLab, tmp_path: Path) -> None:
        attributes = {"objectClass": "computer", "sAMAccountName": "PRESTAGED$", "userAccountControl": 0x1000 | 0x20}
        host = Host(changed, tmp_path, "prestaged")
        changed.administrator().add(host.dn, attributes=attributes)
        assert host.joined("--reuse")["created"] is False
        found = changed.attributes("PRESTAGED$", "userAccountControl", "msDS-SupportedEncryptionTypes", "dNSHostName")
        assert list(found.values()) == [[b"4096"], [b"24"], [b"prestaged.lab.example"]]
        assert accepted(host.keytab, ticket(changed, "smtp/prestaged.lab.example")) == "alice@LAB.EXAMPLE"

    def test_who_may_not_write_its_names_has_nothing_to_take_back(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "anothers")
        host.joined()
        keys, before = host.keytab.read_bytes(), changed.attributes("ANOTHERS$", "servicePrincipalName", "pwdLastSet")
        said = host.refused(1, "--reuse", "--spn-host", "never.lab.example", user="alice")
        assert f"cannot write servicePrincipalName of {host.dn}" in said
        assert "not taken back" not in said
        assert changed.attributes("ANOTHERS$", *before) == before
        assert host.keytab.read_bytes() == keys
        assert host.files == NONE_LEFT | {"relayd.keytab", "relayd.secret"}

    @pytest.mark.usefixtures("kerberos")
    def test_keys_of_an_account_that_is_gone_are_no_keys_of_the_new_one(
        self, changed: DirectoryLab, tmp_path: Path
    ) -> None:
        host = Host(changed, tmp_path, "renewed")
        host.joined()
        host.joined("--reuse")
        changed.administrator().delete(host.dn)
        document = host.joined()
        assert {key.kvno for key in keytab.read(host.keytab)} == {document["kvno"]}
        assert accepted(host.keytab, ticket(changed, "smtp/renewed.lab.example")) == "alice@LAB.EXAMPLE"


class TestRotate:
    @pytest.mark.usefixtures("kerberos")
    @pytest.mark.parametrize("who", ["itself", "administrator"])
    def test_old_tickets_and_new_ones(self, changed: DirectoryLab, tmp_path: Path, who: str) -> None:
        host = Host(changed, tmp_path, f"turn-{who[:5]}")
        first = host.joined()
        host.configure()
        old_password, old_ticket = host.password, ticket(changed, f"smtp/{host.hostname}")
        done = host.ctl("join", "--rotate") if who == "itself" else host.join("--rotate")
        assert done.returncode == 0, done
        assert "Write into" not in done.stdout
        assert {key.kvno for key in keytab.read(host.keytab)} == {first["kvno"], first["kvno"] + 1}
        assert accepted(host.keytab, old_ticket) == "alice@LAB.EXAMPLE"
        assert accepted(host.keytab, ticket(changed, f"smtp/{host.hostname}")) == "alice@LAB.EXAMPLE"
        assert host.password != old_password
        opens_netlogon(changed, host.account, host.password)
        assert host.files == NONE_LEFT | {"relayd.keytab", "relayd.secret"}
        assert host.spn()[0] == 0

    @pytest.mark.parametrize("known", [True, False], ids=["the directory has it", "the directory has it not"])
    def test_a_run_that_ended_before_it_was_done_loses_no_password(
        self, changed: DirectoryLab, tmp_path: Path, known: bool
    ) -> None:
        host = Host(changed, tmp_path, f"broken-{known}".lower())
        host.joined()
        pending = tmp_path / "relayd.secret.next"
        if known:
            old = host.secret.read_text()
            host.joined("--reuse")
            pending.write_text(host.secret.read_text())
            host.secret.write_text(old)
        else:
            pending.write_text("was never set\n")
        done = host.ctl("join", "--rotate")
        assert done.returncode == 0, done
        changed.kinit(host.account, host.password)
        assert host.files == NONE_LEFT | {"relayd.keytab", "relayd.secret"}

    def test_what_cannot_be_rotated(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "unturned")
        done = host.ctl("join", "--rotate")
        assert (done.returncode, "is not there" in done.stderr) == (1, True)
        assert "there is no account UNTURNED$" in host.refused(1, "--rotate")
        host.secret.write_text("no password of anybody\n")
        done = host.ctl("join", "--rotate")
        assert (done.returncode, "is refused" in done.stderr) == (1, True)
        assert host.secret.read_text() == "no password of anybody\n"


class BrokenKdc(Kdc):
    """Takes no new keys."""

    def check(self, keytab: Path, account: str, services: tuple[str, ...]) -> None:
        raise KdcFault("the KDC does not take the keys")


class Run:
    """Joins in this process, where steps can be made to fail."""

    def __init__(self, lab: DirectoryLab, folder: Path, name: str) -> None:
        self.lab = lab
        self.plan = Plan(
            computer=name.upper(),
            host=f"{name}.lab.example",
            services=(f"smtp/{name}.lab.example", f"SMTPSVC/{name}.lab.example"),
            keytab=folder / "relayd.keytab",
            secret=folder / "relayd.secret",
        )
        self.administrator = Administrator(
            Controller(lab.host, 636, True),
            IPv4Address(lab.address),
            ssl.create_default_context(cafile=str(lab.ca)),
            f"{domain.ADMINISTRATOR}@lab.example",
            lab.users[domain.ADMINISTRATOR],
        )
        self.dn = f"CN={name.upper()},CN=Computers,{lab.base_dn}"
        self.said: list[str] = []

    def run(self, kdc: type[Kdc] = Kdc, **plan: object) -> None:
        at = kdc("LAB.EXAMPLE", IPv4Address(self.lab.address))
        there = Domain(self.lab.base_dn, self.lab.base_dn, "lab.example")
        Joining(replace(self.plan, **plan), there, self.administrator, at, self.said.append).run()  # type: ignore[arg-type]


class TestTakenBack:
    """Whatever fails, what was made is gone again."""

    def test_a_new_account(self, changed: DirectoryLab, tmp_path: Path) -> None:
        run = Run(changed, tmp_path, "undone")
        with pytest.raises(JoinFailed, match=r"^the KDC does not take the keys$"):
            run.run(BrokenKdc)
        assert not exists(changed, run.dn)
        assert os.listdir(tmp_path) == []
        run.run()
        assert exists(changed, run.dn)

    def test_an_account_that_was_taken_over(self, changed: DirectoryLab, tmp_path: Path) -> None:
        run = Run(changed, tmp_path, "kept")
        changed.administrator().add(
            run.dn,
            attributes={
                "objectClass": "computer",
                "sAMAccountName": "KEPT$",
                "userAccountControl": 0x1000,
                "servicePrincipalName": "HOST/kept.lab.example",
                "msDS-SupportedEncryptionTypes": "28",
            },
        )
        run.plan.keytab.write_bytes(b"")
        names = ("servicePrincipalName", "dNSHostName", "msDS-SupportedEncryptionTypes", "userAccountControl")
        before = changed.attributes("KEPT$", *names)
        with pytest.raises(JoinFailed, match=f"not taken back: the password of {run.dn}: its old one is gone$"):
            run.run(BrokenKdc, reuse=True)
        assert changed.attributes("KEPT$", *names) == before
        assert os.listdir(tmp_path) == ["relayd.keytab"]

    def test_the_second_file_cannot_be_put_in_place(
        self, changed: DirectoryLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = Run(changed, tmp_path, "halfway")
        run.plan.keytab.write_bytes(b"")
        put = secret_file.put

        def fails(made: Path, file: Path, owner: object) -> None:
            if file == run.plan.secret:
                raise OSError(28, "No space left on device")
            put(made, file, None)

        monkeypatch.setattr(secret_file, "put", fails)
        with pytest.raises(JoinFailed, match="No space left"):
            run.run()
        assert not exists(changed, run.dn)
        assert os.listdir(tmp_path) == ["relayd.keytab"]
        assert run.plan.keytab.read_bytes() == b""

    def test_a_change_whose_answer_was_lost_is_known_to_be_done(
        self, changed: DirectoryLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = Run(changed, tmp_path, "unheard")
        add = Changing.add

        def lost(connection: Changing, dn: str, attributes: Mapping[str, Any]) -> None:
            add(connection, dn, attributes)
            connection.close()
            raise ControllerFault("the connection ended")

        monkeypatch.setattr(Changing, "add", lost)
        run.run()
        changed.connect("UNHEARD$", run.plan.secret.read_text().strip()).unbind()

    def test_a_rotation_that_the_directory_refuses(self, changed: DirectoryLab, tmp_path: Path) -> None:
        run = Run(changed, tmp_path, "unmoved")
        run.run()
        files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        run.administrator = replace(run.administrator, name="alice@lab.example", password=changed.users["alice"])
        with pytest.raises(JoinRefused, match="insufficientAccessRights"):
            run.run(rotate=True)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files

    def test_a_rotation_that_was_done_stays(self, changed: DirectoryLab, tmp_path: Path) -> None:
        run = Run(changed, tmp_path, "moved")
        run.run()
        with pytest.raises(JoinFailed, match="the KDC does not take the keys"):
            run.run(BrokenKdc, rotate=True)
        changed.kinit("MOVED$", run.plan.secret.read_text().strip())
        assert len({key.kvno for key in keytab.read(run.plan.keytab)}) == 2

    def test_a_rotation_that_nobody_knows_the_end_of_keeps_both_passwords(
        self, changed: DirectoryLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = Run(changed, tmp_path, "unsettled")
        run.run()
        old = run.plan.secret.read_text()
        change, connect = Changing.replace, Administrator.connect

        def unreachable(administrator: Administrator) -> Changing:
            raise ControllerFault("nobody answers")

        def lost(connection: Changing, dn: str, attributes: Mapping[str, Any]) -> None:
            change(connection, dn, attributes)
            monkeypatch.setattr(Administrator, "connect", unreachable)
            raise ControllerFault("the connection ended")

        monkeypatch.setattr(Changing, "replace", lost)
        with pytest.raises(JoinFailed, match="is not known; rotate again"):
            run.run(rotate=True)
        assert run.plan.secret.read_text() == old
        changed.kinit("UNSETTLED$", run.plan.next_secret.read_text().strip())
        assert len({key.kvno for key in keytab.read(run.plan.keytab)}) == 2
        monkeypatch.setattr(Changing, "replace", change)
        monkeypatch.setattr(Administrator, "connect", connect)
        run.run(rotate=True)
        changed.kinit("UNSETTLED$", run.plan.secret.read_text().strip())

    def test_by_a_global_catalog(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "catalog")
        host.config.write_text(
            host.config.read_text().replace("[directory]", f'[directory]\nservers = ["ldaps://{changed.host}:3269"]')
        )
        assert host.joined()["controller"] == "ldaps://dc1.lab.example:636"


class TestOrdinaryUsers:
    """Who makes an account by ms-DS-MachineAccountQuota may write few attributes. Samba has no such quota over LDAP, so
    the controller's refusals are played."""

    def test_encryption_types_are_left_to_others(
        self, changed: DirectoryLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        attribute = "msDS-SupportedEncryptionTypes"
        add, change = Changing.add, Changing.replace
        asked = []

        def refusing(allowed: Any) -> Any:
            def call(connection: Changing, dn: str, attributes: Mapping[str, Any]) -> None:
                asked.append(attribute in attributes)
                if attribute in attributes:
                    raise NotAllowed(f"cannot write {dn}", 50, "insufficientAccessRights", "00002098: SecErr")
                allowed(connection, dn, attributes)

            return call

        monkeypatch.setattr(Changing, "add", refusing(add))
        monkeypatch.setattr(Changing, "replace", refusing(change))
        run = Run(changed, tmp_path, "quota")
        # Without the attribute this domain's tickets come with RC4, which no keytab of relayd's opens.
        with pytest.raises(JoinRefused, match=r"rc4.*may not set msDS-SupportedEncryptionTypes to 24: sign in as"):
            run.run()
        # Twice at the creation; then as its maker, and as the computer itself.
        assert asked == [True, False, True, True]
        assert not exists(changed, run.dn)
        assert os.listdir(tmp_path) == []

    def test_an_account_that_may_not_be_removed_is_disabled(
        self, changed: DirectoryLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(connection: Changing, dn: str) -> None:
            raise NotAllowed(f"cannot remove {dn}", 50, "insufficientAccessRights", "00002098: SecErr")

        monkeypatch.setattr(Changing, "delete", refused)
        run = Run(changed, tmp_path, "lingers")
        with pytest.raises(JoinFailed, match=r"not taken back: .*it may not be removed, and was disabled"):
            run.run(BrokenKdc)
        assert changed.attributes("LINGERS$", "userAccountControl")["userAccountControl"] == [b"4098"]


class TestKdc:
    def test_it_does_not_take_other_keys(self, changed: DirectoryLab, tmp_path: Path) -> None:
        run = Run(changed, tmp_path, "checked")
        run.run()
        kdc = Kdc("LAB.EXAMPLE", IPv4Address(changed.address))
        salt = kdc.salt("CHECKED$@LAB.EXAMPLE")
        assert salt == b"LAB.EXAMPLEhostchecked.lab.example"  # MS-KILE 3.1.1.2
        service = ("smtp/checked.lab.example@LAB.EXAMPLE",)
        kdc.check(run.plan.keytab, "CHECKED$@LAB.EXAMPLE", service)
        with pytest.raises(KdcFault, match="gives no ticket for smtp/nobody"):
            kdc.check(run.plan.keytab, "CHECKED$@LAB.EXAMPLE", ("smtp/nobody.lab.example@LAB.EXAMPLE",))
        good = keytab.read(run.plan.keytab)
        for spoilt, enctype in (("aes256", 18), ("aes128", 17)):
            keys = [replace(k, secret=bytes(len(k.secret))) if k.enctype == enctype else k for k in good]
            keytab.write(tmp_path / spoilt, keys)
            with pytest.raises(KdcFault, match=f"does not take the {spoilt} key of CHECKED"):
                kdc.check(tmp_path / spoilt, "CHECKED$@LAB.EXAMPLE", service)

    def test_it_is_not_there(self) -> None:
        with pytest.raises(KdcFault, match="cannot be reached"):
            Kdc("LAB.EXAMPLE", IPv4Address("127.0.0.1"), 1).reach(5)

    def test_its_errors_leave_the_environment_alone(self, changed: DirectoryLab) -> None:
        before = dict(os.environ)
        with pytest.raises(KdcFault, match="NOBODY"):
            Kdc("LAB.EXAMPLE", IPv4Address(changed.address)).salt("NOBODY$@LAB.EXAMPLE")
        assert dict(os.environ) == before


class TestSpnCheck:
    def test_good_then_old_keys_then_missing(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "looked-at")
        kvno = host.joined()["kvno"]
        host.configure()
        code, found = host.spn()
        assert code == 0
        assert set(found) == {
            f"{service}/{name}" for service in ("smtp", "SMTPSVC") for name in ("looked-at.lab.example", "looked-at")
        }
        assert found["SMTPSVC/looked-at"]["accounts"] == [
            {"name": "LOOKED-AT$", "dn": host.dn, "kvno": kvno, "disabled": False}
        ]
        code, found = host.spn("--host", "unknown.lab.example", "--host", domain.RELAY)
        assert code == 1
        assert found["smtp/unknown.lab.example"]["faults"] == [
            "missing in the directory: no account has it",
            "missing in the keytab: SMTP/unknown.lab.example@LAB.EXAMPLE, smtp/unknown.lab.example@LAB.EXAMPLE",
        ]
        assert found["SMTPSVC/relay.lab.example"]["accounts"][0]["name"] == domain.SERVICE
        assert found["smtp/looked-at"]["faults"] == []
        # Somebody else takes the account over: the keytab's own account signs in no more, another one sees why.
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        Host(changed, elsewhere, "looked-at").joined("--reuse")
        search = f'bind_user = "svc-search@lab.example"\nbind_password_file = "{changed.directory}/svc-search.secret"'
        host.config.write_text(host.config.read_text().replace("[directory]", f"[directory]\n{search}"))
        code, found = host.spn()
        assert code == 1
        assert found["smtp/looked-at"]["faults"] == [
            f"old keys: the keytab has version {kvno}, LOOKED-AT$ has {kvno + 1}"
        ]
        shown = host.ctl("spn", "check")
        assert shown.returncode == 1
        assert "4 faults" in shown.stdout

    def test_the_directory_is_away(self, changed: DirectoryLab, tmp_path: Path) -> None:
        host = Host(changed, tmp_path, "away")
        host.joined()
        host.configure()
        config = host.config.read_text().replace("[directory]", '[directory]\nservers = ["ldaps://127.0.0.1:1"]')
        host.config.write_text(config)
        done = host.ctl("spn", "check")
        assert (done.returncode, done.stdout) == (2, "")
        assert "ldaps://127.0.0.1:1" in done.stderr


def test_a_ticket_that_no_key_opens_is_refused(changed: DirectoryLab, tmp_path: Path, kerberos: None) -> None:
    """The tests' own acceptor tells right keys from wrong ones."""
    host = Host(changed, tmp_path, "honest")
    host.joined()
    keys = [replace(key, secret=bytes(len(key.secret))) for key in keytab.read(host.keytab)]
    keytab.write(host.keytab, keys)
    with pytest.raises(GSSError):
        accepted(host.keytab, ticket(changed, "smtp/honest.lab.example"))


def exists(lab: DirectoryLab, dn: str) -> bool:
    connection = lab.administrator()
    name = dn.partition(",")[0].removeprefix("CN=")
    connection.search(lab.base_dn, f"(sAMAccountName={name}$)", attributes=["1.1"])
    return any(entry["type"] == "searchResEntry" for entry in connection.response)
