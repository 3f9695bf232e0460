"""The lab's domain is what the other directory tests take it for."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
import sys
import tomllib
from pathlib import Path

import dns.resolver
import ldap3
import pytest
from ldap3.core.exceptions import LDAPException, LDAPInvalidCredentialsResult, LDAPStrongerAuthRequiredResult

from tests.directory.conftest import StartLab
from tests.lab import domain
from tests.lab.controller import PORTS
from tests.lab.directory import DirectoryLab, KerberosRefused
from tests.lab.net import wait_for

ROOT = Path(__file__).resolve().parents[2]

# RFC 4511: a search of the rootDSE (base, present objectClass), as one message.
ROOT_DSE = bytes.fromhex("3025 020101 6320 0400 0a0100 0a0100 020100 020100 010100 870b") + b"objectClass0\0"

GOOD = ("alice", "bob", "carol", "jörg", "victim", "patient", "svc-search", domain.SERVICE, domain.COMPUTER)
SUB_CODES = {
    "disabled": "533",
    "expired": "701",
    "lapsed": "532",
    "locked": "775",
    "mustchange": "773",
    "nights": "530",
}


def refusal(lab: DirectoryLab, name: str, password: str | None = None) -> str:
    """The sub-code of a bind that must be refused."""
    with pytest.raises(LDAPInvalidCredentialsResult) as refused:
        lab.connect(name, password)
    found = re.search(r", data (\w+),", str(refused.value))
    assert found, refused.value
    return found[1]


class TestLdap:
    @pytest.mark.parametrize("name", [domain.HOST, "dc2.lab.example"])
    def test_ldaps_verifies_by_name(self, lab: DirectoryLab, name: str) -> None:
        context = ssl.create_default_context(cafile=str(lab.ca))
        with socket.create_connection((lab.address, 636), 10) as plain:
            context.wrap_socket(plain, server_hostname=name).close()

    @pytest.mark.parametrize("name", ["relay.lab.example", "127.0.0.10"])
    def test_ldaps_does_not_verify_by_another(self, lab: DirectoryLab, name: str) -> None:
        context = ssl.create_default_context(cafile=str(lab.ca))
        with (
            socket.create_connection((lab.address, 636), 10) as plain,
            pytest.raises(ssl.SSLCertVerificationError, match="mismatch"),
        ):
            context.wrap_socket(plain, server_hostname=name)

    def test_a_bind_without_tls_is_refused(self, lab: DirectoryLab) -> None:
        server = ldap3.Server(lab.address, connect_timeout=10, get_info=ldap3.NONE)
        connection = ldap3.Connection(
            server, "alice@lab.example", lab.users["alice"], receive_timeout=10, raise_exceptions=True
        )
        with pytest.raises(LDAPStrongerAuthRequiredResult):
            connection.bind()
        connection.strategy.close()

    def test_starttls(self, lab: DirectoryLab) -> None:
        tls = ldap3.Tls(validate=ssl.CERT_REQUIRED, ca_certs_file=str(lab.ca), valid_names=[lab.host])
        server = ldap3.Server(lab.address, tls=tls, connect_timeout=10, get_info=ldap3.NONE)
        connection = ldap3.Connection(server, "alice@lab.example", lab.users["alice"], receive_timeout=10)
        assert connection.start_tls()
        assert connection.bind()
        connection.unbind()

    def test_nested_groups(self, lab: DirectoryLab) -> None:
        # [MS-ADTS] 3.1.1.3.4.4.3, LDAP_MATCHING_RULE_TRANSITIVE_EVAL
        members = f"(memberOf:1.2.840.113556.1.4.1941:={lab.dn('Relay Users')})"
        administrator = lab.administrator()
        administrator.search(lab.base_dn, f"(&(objectClass=user){members})", attributes=["sAMAccountName"])
        found = [entry["raw_attributes"]["sAMAccountName"] for entry in administrator.response if "dn" in entry]
        assert sorted(names[0].decode() for names in found) == ["alice", "carol", "jörg"]

    def test_addresses(self, lab: DirectoryLab) -> None:
        alice = lab.attributes("alice", "mail", "proxyAddresses", "telephoneNumber")
        assert alice["mail"] == [b"alice@lab.example"]
        assert b"smtp:alice.liddell@lab.example" in alice["proxyAddresses"]
        assert alice["telephoneNumber"] == []


class TestAccounts:
    @pytest.mark.parametrize("name", GOOD)
    def test_the_good_ones_bind(self, lab: DirectoryLab, name: str) -> None:
        with lab.connect(name) as connection:
            assert connection.bound

    @pytest.mark.parametrize(("name", "code"), SUB_CODES.items())
    def test_each_state_has_its_sub_code(self, lab: DirectoryLab, name: str, code: str) -> None:
        assert refusal(lab, name) == code

    def test_a_wrong_password_is_told_whatever_the_account(self, spoilt: DirectoryLab) -> None:
        assert refusal(spoilt, "bob", "wrong") == "52e"
        assert refusal(spoilt, "nobody-of-that-name", "wrong") == "52e"
        assert refusal(spoilt, "disabled", "wrong") == "52e"

    def test_lockout(self, spoilt: DirectoryLab) -> None:
        counts = []
        for _ in range(domain.LOCKOUT_THRESHOLD):
            assert refusal(spoilt, "victim", "wrong") == "52e"
            counts.append(spoilt.bad_password_count("victim"))
        assert counts == [1, 2, 3]
        assert refusal(spoilt, "victim") == "775"
        spoilt.modify("victim", lockoutTime="0")
        spoilt.connect("victim").unbind()
        assert spoilt.bad_password_count("victim") == 0

    def test_the_fine_grained_policy_allows_more(self, spoilt: DirectoryLab) -> None:
        for _ in range(domain.FINE_THRESHOLD - 1):
            refusal(spoilt, "patient", "wrong")
        spoilt.connect("patient").unbind()
        for _ in range(domain.FINE_THRESHOLD):
            refusal(spoilt, "patient", "wrong")
        assert refusal(spoilt, "patient") == "775"


class TestKerberos:
    @pytest.mark.parametrize("name", ["alice", "jörg", "carol@corp.example", domain.COMPUTER])
    def test_kinit(self, lab: DirectoryLab, name: str) -> None:
        password = lab.users[name.partition("@")[0]]
        cache = lab.kinit(name, password)
        listed = subprocess.run(
            ["klist", "-s", f"FILE:{cache}"], env=lab.environment, capture_output=True, timeout=30, check=False
        )
        assert listed.returncode == 0, listed

    def test_kinit_with_a_wrong_password(self, spoilt: DirectoryLab) -> None:
        with pytest.raises(KerberosRefused, match="incorrect"):
            spoilt.kinit("carol", "wrong")
        assert spoilt.bad_password_count("carol") == 1

    @pytest.mark.parametrize("name", ["disabled", "expired", "locked"])
    def test_no_ticket_for_the_bad_ones(self, lab: DirectoryLab, name: str) -> None:
        with pytest.raises(KerberosRefused, match=r"revoked|expired"):
            lab.kinit(name)

    @pytest.mark.parametrize("principal", domain.SPNS)
    def test_the_keytab_opens_tickets_for_each_name(self, lab: DirectoryLab, principal: str) -> None:
        listed = subprocess.run(["klist", "-k", lab.keytab], capture_output=True, text=True, timeout=30, check=True)
        assert f" {principal}@{lab.realm}\n" in listed.stdout
        environment = lab.environment | {"KRB5CCNAME": f"FILE:{lab.kinit('alice')}"}
        # kvno -k: get a ticket, and open it with the key.
        opened = subprocess.run(
            ["kvno", "-k", lab.keytab, principal],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert opened.returncode == 0, opened
        assert "keytab entry valid" in opened.stdout


class TestNames:
    def test_its_dns_names_its_services_and_itself(self, lab: DirectoryLab) -> None:
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers = [lab.address]
        for service in ("_ldap._tcp.lab.example", "_ldap._tcp.dc._msdcs.lab.example", "_kerberos._tcp.lab.example"):
            (found,) = resolver.resolve(service, "SRV", lifetime=10)
            assert found.target.to_text(omit_final_dot=True) == lab.host
        assert [address.to_text() for address in resolver.resolve(lab.host, "A", lifetime=10)] == [lab.address]

    def test_programs_can_be_run_where_its_hosts_have_names(self, lab: DirectoryLab) -> None:
        before = Path("/etc/hosts").read_text()
        command = lab.named("getent", "ahostsv4", lab.host)
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        assert found.stdout.startswith(f"{lab.address} ")
        assert Path("/etc/hosts").read_text() == before


class TestLife:
    def test_copies_are_independent(self, lab: DirectoryLab, own_lab: DirectoryLab, start_lab: StartLab) -> None:
        third = start_lab()
        assert len({each.address for each in (lab, own_lab, third)}) == 3
        refusal(own_lab, "victim", "wrong")
        own_lab.modify("bob", description="changed")
        counts = [each.bad_password_count("victim") for each in (lab, own_lab, third)]
        assert counts == [0, 1, 0]
        assert third.attributes("bob", "description")["description"] == []

    def test_stop_leaves_no_process_and_start_brings_all_back(self, own_lab: DirectoryLab) -> None:
        refusal(own_lab, "victim", "wrong")
        session, address = own_lab.controller.pid, own_lab.address
        own_lab.stop()
        assert _living(session) == []
        for port in PORTS:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), 10)
        own_lab.start()
        assert own_lab.address == address
        assert own_lab.bad_password_count("victim") == 1

    def test_kill_in_mid_session(self, own_lab: DirectoryLab) -> None:
        connection = own_lab.connect("alice")
        session = own_lab.controller.pid
        own_lab.kill()
        assert _living(session) == []
        with pytest.raises(LDAPException):
            connection.search(own_lab.base_dn, "(sAMAccountName=bob)")
        connection.strategy.close()
        own_lab.start()
        own_lab.connect("alice").unbind()

    def test_pause(self, own_lab: DirectoryLab) -> None:
        own_lab.pause()
        with socket.create_connection((own_lab.address, 389), 10) as connection:
            connection.sendall(ROOT_DSE)
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            own_lab.resume()
            connection.settimeout(30)
            assert connection.recv(1) == b"0"
        own_lab.pause()
        own_lab.stop()
        assert not own_lab.controller.running

    def test_it_does_not_outlive_whoever_started_it(self, lab: DirectoryLab) -> None:
        program = (
            "import sys; from tests.lab.directory import DirectoryLab; lab = DirectoryLab(); lab.start();"
            "print(lab.controller.pid, lab.directory, flush=True); sys.stdin.read()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None
            session, _, directory = process.stdout.readline().strip().partition(" ")
            assert _living(int(session))
            process.send_signal(signal.SIGKILL)
        wait_for(lambda: not _living(int(session)), "the end of the orphaned controller", 30)
        subprocess.run(["rm", "-r", directory], check=True, timeout=30)


def test_make_lab_keeps_it_up_until_it_is_interrupted() -> None:
    command = [sys.executable, "-m", "tests.lab"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = []
        while (line := process.stdout.readline()) != "Ctrl-C ends it.\n":
            assert line, said
            said.append(line)
        assert "\n[directory]\n" in "".join(said)
        (config,) = re.findall(r"relayd --config (\S+)", "".join(said))
        assert domain.DOMAIN in tomllib.loads(Path(config).read_text())["directory"].values()
        (address,) = re.findall(r"is served at (\S+) by", "".join(said))
        socket.create_connection((address, 636), 10).close()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, 636), 10)


def _living(session: int) -> list[str]:
    """The lines of ps about the living processes of a session."""
    listed = subprocess.run(
        ["ps", "-o", "stat=,pid=,args=", "-s", str(session)], capture_output=True, text=True, timeout=30, check=False
    )
    return [line for line in listed.stdout.splitlines() if not line.startswith("Z")]
