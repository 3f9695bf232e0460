"""relayctl directory test and explain --ask-directory against a real controller, well and sick."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.directory.conftest import StartLab
from tests.directory.relays import joined
from tests.lab import domain
from tests.lab.ca import LabCA
from tests.lab.directory import DirectoryLab
from tests.lab.relay import ENVIRONMENT, program

LDAPS = f"ldaps://{domain.HOST}"
FIELDS = {"controller", "ok", "address", "certificate_expires", "connect", "bind", "search", "fault"}


class Host:
    """A host with a relayd.toml, where relayctl runs."""

    def __init__(self, lab: DirectoryLab, folder: Path) -> None:
        self.lab = lab
        self.config = folder / "relayd.toml"
        self.keytab = folder / "own.keytab"
        self.configure()

    def configure(self, more: str = "", inside: str = "", **keys: str) -> None:
        """Writes relayd.toml.

        :param inside: further keys of ``[directory]``.
        :param keys: replace keys of it; an empty value takes one out.
        """
        text = joined(self.lab, more, inside)
        for key, value in keys.items():
            text = re.sub(rf"^{key} = .*\n", f"{key} = {value}\n" if value else "", text, flags=re.MULTILINE)
        self.config.write_text(text)

    def search_by_keytab(self, **keys: str) -> None:
        domain.tool(
            self.lab.directory,
            *("samba-tool", "domain", "exportkeytab", str(self.keytab), f"--principal={domain.COMPUTER}"),
        )
        self.configure(f'[kerberos]\nkeytab = "{self.keytab}"', bind_user="", bind_password_file="", **keys)

    def ctl(
        self, *arguments: str, prefix: Sequence[str] = (), environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*prefix, program("relayctl"), "--config", str(self.config), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env=ENVIRONMENT | {"KRB5_CONFIG": str(self.lab.krb5_conf)} | (environment or {}),
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def tested(self, code: int, **how: Any) -> list[dict[str, Any]]:
        """What directory test says of each controller, and ends with."""
        done = self.ctl("--json", "directory", "test", **how)
        assert done.returncode == code, done
        documents = [json.loads(line) for line in done.stdout.splitlines()]
        assert all(set(document) == FIELDS for document in documents)
        return documents

    def explained(self, code: int, *arguments: str) -> dict[str, Any]:
        done = self.explain("--json", *arguments)
        assert done.returncode == code, done
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def explain(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        before = [argument for argument in arguments if argument == "--json"]
        after = [argument for argument in arguments if argument != "--json"]
        mail = ("--client", "192.0.2.1", "--tls", "--from", "alice@lab.example", "--to", "x@other.example")
        return self.ctl(*before, "explain", *mail, *after, "--ask-directory")


@pytest.fixture
def host(lab: DirectoryLab, tmp_path: Path) -> Host:
    return Host(lab, tmp_path)


@pytest.fixture
def own(start_lab: StartLab, tmp_path: Path) -> Host:
    return Host(start_lab(), tmp_path)


class TestWell:
    def test_for_people(self, host: Host) -> None:
        done = host.ctl("directory", "test")
        assert done.returncode == 0, done
        assert "domain lab.example (LAB), searched below DC=lab,DC=example by bind_user svc-search@lab.example" in (
            done.stdout
        )
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"{LDAPS}:636")]
        assert host.lab.address in line
        assert "until 20" in line
        assert line.rstrip().endswith("works")
        assert line.count(" ms") == 3

    def test_for_programs(self, host: Host) -> None:
        (tested,) = host.tested(0)
        assert tested["controller"] == f"{LDAPS}:636"
        assert tested["address"] == host.lab.address
        assert datetime.fromisoformat(tested["certificate_expires"]) > datetime.now(UTC)
        assert min(tested["connect"], tested["bind"], tested["search"]) > 0
        assert (tested["ok"], tested["fault"]) == (True, "")

    def test_by_keytab(self, host: Host) -> None:
        host.search_by_keytab()
        done = host.ctl("directory", "test")
        assert done.returncode == 0, done
        assert f"by {domain.COMPUTER}@{domain.REALM}" in done.stdout

    @pytest.mark.parametrize("server", [f"{LDAPS}:3269", f"ldap://{domain.HOST}", f"ldap://{domain.HOST}:3268"])
    def test_other_ways(self, host: Host, server: str) -> None:
        host.configure(inside=f'servers = ["{server}"]')
        (tested,) = host.tested(0)
        assert tested["controller"].startswith(server)

    def test_without_a_directory(self, host: Host) -> None:
        host.config.write_text(host.config.read_text().partition("[directory]")[0])
        done = host.ctl("directory", "test")
        assert done.returncode == 1
        assert "[directory]" in done.stderr

    def test_kerberos_by_dns_alone(self, host: Host, tmp_path: Path) -> None:
        """A fresh host has no krb5.conf: the realm is the keytab's, and DNS knows its controllers."""
        host.search_by_keytab()
        resolv = tmp_path / "resolv.conf"
        resolv.write_text(f"nameserver {host.lab.address}\n")
        # `named` shows the machine the lab's hosts file; this shows it the lab's DNS as well.
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        inside = ["unshare", "-m", "sh", "-c", script, str(resolv)]
        (tested,) = host.tested(0, prefix=inside, environment={"KRB5_CONFIG": str(tmp_path / "none")})
        assert tested["ok"]


class TestSick:
    def test_one_of_two(self, host: Host) -> None:
        host.configure(inside=f'servers = ["{LDAPS}:1", "{LDAPS}"]')
        sick, well = host.tested(1)
        assert "refused" in sick["fault"]
        assert well["ok"]

    def test_wrong_ca(self, host: Host, tmp_path: Path) -> None:
        host.configure(ca=f'"{LabCA(tmp_path / "other").path}"')
        (tested,) = host.tested(2)
        assert "certificate verify failed" in tested["fault"]
        assert "('" not in tested["fault"]

    def test_wrong_name(self, host: Host) -> None:
        host.configure(inside=f'servers = ["ldaps://{host.lab.address}"]')
        (tested,) = host.tested(2)
        assert "certificate" in tested["fault"]
        assert "not valid for" in tested["fault"]

    def test_wrong_password(self, host: Host, tmp_path: Path) -> None:
        (tmp_path / "wrong").write_text("wrong")
        (tmp_path / "wrong").chmod(0o600)
        # Not the account that other tests search with: this one is spoilt by nothing.
        host.configure(bind_user='"nobody@lab.example"', bind_password_file=f'"{tmp_path / "wrong"}"')
        (tested,) = host.tested(2)
        assert tested["connect"] > 0
        assert "52e" in tested["fault"]

    def test_keytab_without_the_own_principal(self, host: Host) -> None:
        keytab = f'[kerberos]\nkeytab = "{host.lab.keytab}"'
        host.configure(keytab, bind_user="", bind_password_file="")
        (tested,) = host.tested(2)
        assert "no key of an account's own" in tested["fault"]

    def test_an_expired_certificate(self, own: Host, tmp_path: Path) -> None:
        leaf = LabCA(tmp_path / "ca").leaf(domain.HOST, days=-1)
        own.configure(ca=f'"{tmp_path / "ca" / "ca.pem"}"')
        own.lab.stop()
        tls = own.lab.directory / "private" / "tls"
        for source, name in ((leaf.chain, "cert.pem"), (leaf.key, "key.pem"), (tmp_path / "ca" / "ca.pem", "ca.pem")):
            shutil.copy(source, tls / name)
        own.lab.controller.start()
        (tested,) = own.tested(2)
        assert "certificate has expired" in tested["fault"]
        assert tested["certificate_expires"] == ""

    def test_killed(self, own: Host) -> None:
        own.configure(inside=f'servers = ["{LDAPS}"]\ntimeout = "1s"')
        own.lab.kill()  # and its DNS
        (tested,) = own.tested(2)
        assert tested["fault"]
        done = own.ctl("directory", "test")
        assert done.returncode == 2
        assert "domain" not in done.stdout

    def test_no_dns(self, own: Host) -> None:
        own.configure(inside='timeout = "1s"')
        own.lab.kill()
        done = own.ctl("directory", "test")
        assert done.returncode == 2
        assert done.stderr.startswith("relayctl: directory: _ldap._tcp.dc._msdcs.lab.example: ")
        assert done.stderr.count("\n") == 1
        assert own.explain("--user", "alice").returncode == 2

    def test_slow(self, own: Host) -> None:
        # Its DNS hangs with it, so the name is looked up where it does not.
        hosts = own.lab.named()
        own.configure(inside=f'servers = ["{LDAPS}"]\ntimeout = "1s"')
        own.lab.pause()
        (tested,) = own.tested(2, prefix=hosts)
        assert "timed out" in tested["fault"]
        own.lab.resume()
        assert own.tested(0)[0]["ok"]


class TestSkew:
    """This host's clock is wrong, by more than the five minutes of Kerberos."""

    @pytest.mark.parametrize("skew", ["+20m", "-20m"])
    def test_search(self, host: Host, skew: str) -> None:
        host.search_by_keytab()
        faked = {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        # libkrb5 takes the controller's time where its own is off.
        (tested,) = host.tested(0, prefix=["faketime", "-f", skew], environment=faked)
        assert tested["ok"]


class TestExplain:
    RELAY = '[relay]\ngroups = ["Relay Users"]\nsend_as = "own"'

    @pytest.fixture(autouse=True)
    def configured(self, host: Host) -> None:
        host.configure(self.RELAY)

    def test_groups_and_addresses_come_from_the_directory(self, host: Host) -> None:
        told = host.explained(0, "--user", "alice")
        assert (told["verdict"], told["rule"]) == ("accept", "relay.groups[0]")
        user = told["user"]
        assert (user["name"], user["upn"], user["state"]) == ("alice", "alice@lab.example", "good")
        assert user["sid"].startswith("S-1-5-21-")
        assert user["addresses"] == ["alice@lab.example", "alice.liddell@lab.example", "sales@corp.example"]
        assert {"LAB\\Relay Users", "Staff"} <= set(user["groups"])

    def test_for_people(self, host: Host) -> None:
        done = host.explain("--user", "LAB\\alice")
        assert done.returncode == 0
        for shown in ("S-1-5-21-", "LAB\\Relay Users", "sales@corp.example", "relay.groups[0]"):
            assert shown in done.stdout

    def test_somebody_else(self, host: Host) -> None:
        told = host.explained(1, "--user", "bob")
        assert told["rule"] == "relay.send_as"

    def test_nobody(self, host: Host) -> None:
        done = host.explain("--user", "nobody")
        assert done.returncode == 1
        assert "no such account" in done.stderr

    def test_who_cannot_sign_in(self, host: Host) -> None:
        done = host.explain("--json", "--user", "disabled")
        assert "disabled cannot authenticate for now: disabled" in done.stderr
        assert json.loads(done.stdout)["user"]["state"] == "disabled"

    def test_what_was_given_counts_as_well(self, host: Host) -> None:
        mail = ("--group", "Relay Users", "--from", "carol@corp.example")
        told = host.explained(1, "--user", "bob", *mail)
        assert told["rule"] == "relay.send_as"

    def test_no_user(self, host: Host) -> None:
        done = host.explain()
        assert done.returncode == 1
        assert "--user" in done.stderr

    def test_no_directory(self, host: Host) -> None:
        host.config.write_text(host.config.read_text().partition("[directory]")[0])
        assert host.explain("--user", "alice").returncode == 1
