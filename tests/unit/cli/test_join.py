"""What relayctl join makes of a configuration and a command line, before it asks anybody."""

from __future__ import annotations

import string
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from relayd.auth.joining import PASSWORD_LENGTH, new_password
from relayd.auth.service_names import principals
from relayd.cli.join import planned
from relayd.cli.main import relayctl
from relayd.cli.names import host_name
from relayd.config import ConfigFaults, load
from relayd.directory.computer import Account, NotAllowed, password_octets
from relayd.settings import Console, Kerberos, Ntlm, Server, Settings

CONFIG = """\
[server]
hostname = "relay.corp.example"
state = "state"

[directory]
domain = "corp.example"
{more}
[[domain]]
name = "corp.example"
"""


def settings(hostname: str = "relay.corp.example", **tables: object) -> Settings:
    state = Path("/var/lib/relayd")
    made: dict[str, object] = {"console": Console(state / "control.sock"), **tables}
    return Settings(file=Path("/etc/relayd/relayd.toml"), server=Server(hostname, state), **made)  # type: ignore[arg-type]


class TestPlan:
    def test_by_default(self) -> None:
        plan = planned(settings(), "", ())
        assert (plan.computer, plan.account, plan.host) == ("RELAY", "RELAY$", "relay.corp.example")
        assert plan.services == (
            "smtp/relay.corp.example",
            "SMTPSVC/relay.corp.example",
            "smtp/relay",
            "SMTPSVC/relay",
        )
        assert plan.keytab == Path("/etc/relayd/relayd.keytab")
        assert plan.secret == Path("/etc/relayd/relayd.secret")
        assert plan.owner is None

    def test_as_configured(self) -> None:
        configured = settings(
            kerberos=Kerberos(Path("/srv/k")), ntlm=Ntlm(computer="NODE1$", secret_file=Path("/srv/s"))
        )
        plan = planned(configured, "", ())
        assert (plan.computer, plan.keytab, plan.secret) == ("NODE1", Path("/srv/k"), Path("/srv/s"))
        assert planned(configured, "node2$", ()).computer == "node2"

    def test_further_hosts_and_the_console(self) -> None:
        console = Console(Path("/s"), address="127.0.0.1:8025")
        plan = planned(settings(console=console), "", ("Mail.Corp.Example", "mail.corp.example"))
        assert plan.services[:3] == ("smtp/relay.corp.example", "SMTPSVC/relay.corp.example", "HTTP/relay.corp.example")
        assert plan.services.count("smtp/mail.corp.example") == 1
        assert "HTTP/mail" in plan.services

    @pytest.mark.parametrize(
        ("hostname", "computer", "text"),
        [
            ("localhost", "", "no full name"),
            ("a-very-long-host-name.corp.example", "", "A-VERY-LONG-HOST-NAME has more than 15 characters"),
            ("relay.corp.example", "SIXTEEN-LETTERS-", "cannot be a computer's name"),
            ("relay.corp.example", "SIXTEEN-LETTERS1", "more than 15"),
            ("relay.corp.example", "REL AY", "cannot be a computer's name"),
            ("relay.corp.example", "REL,CN=X", "cannot be a computer's name"),
            ("relay.corp.example", "12345", "cannot be a computer's name"),
        ],
    )
    def test_names_that_cannot_be(self, hostname: str, computer: str, text: str) -> None:
        with pytest.raises(click.ClickException, match=text):
            planned(settings(hostname), computer, ())

    @pytest.mark.parametrize(
        ("name", "text"), [("192.0.2.1", "is an address"), ("a b", "is not right"), ("", "is empty")]
    )
    def test_hosts_that_cannot_be(self, name: str, text: str) -> None:
        with pytest.raises(click.UsageError, match=f"--spn-host: .*{text}"):
            planned(settings(), "", (name,))

    def test_a_place_is_a_dn(self) -> None:
        with pytest.raises(click.UsageError, match="--ou: write a DN"):
            planned(settings(), "", (), ou="Servers")

    def test_host_names_are_folded(self) -> None:
        assert host_name("--host", "MÜHLE.example.") == "xn--mhle-0ra.example"


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ((), "name an administrator with --user"),
            (("--user", "a", "--rotate", "--reuse"), "--rotate changes the password alone"),
            (("--rotate", "--spn-host", "x.example"), "--rotate changes the password alone"),
            (("--user", "relay$"), "RELAY$ may not make itself"),
            (("--user", "admin", "--password-file", "-"), "an empty password is never tried"),
            (("--user", "admin"), "no terminal to ask for the password"),
            (("--user", "admin", "--password-file", "/nonexistent"), "/nonexistent"),
        ],
    )
    def test_what_cannot_be_meant(self, tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
        config = tmp_path / "relayd.toml"
        config.write_text(CONFIG.format(more=""))
        done = CliRunner().invoke(relayctl, ["--config", str(config), "join", *arguments], input="")
        assert done.exit_code in (1, 2)
        assert text in done.output
        assert {file.name for file in tmp_path.iterdir()} == {"relayd.toml"}

    def test_without_a_directory(self, tmp_path: Path) -> None:
        config = tmp_path / "relayd.toml"
        config.write_text(CONFIG.format(more="").replace('domain = "corp.example"', ""))
        done = CliRunner().invoke(relayctl, ["--config", str(config), "join", "--user", "a", "--password-file", "-"])
        assert "[directory] names neither domain nor servers" in done.output


class TestConfiguration:
    UNMADE = ("kerberos.keytab", "ntlm.computer", "ntlm.secret_file", "directory.bind_user")

    def test_what_is_yet_to_be_made_need_not_be_there(self, tmp_path: Path) -> None:
        config = tmp_path / "relayd.toml"
        files = '[kerberos]\nkeytab = "k"\n[ntlm]\ncomputer = "R$"\nsecret_file = "s"\n'
        config.write_text(CONFIG.format(more=files))
        with pytest.raises(ConfigFaults):
            load(config)
        loaded = load(config, unmade=self.UNMADE).settings
        assert loaded.kerberos.keytab == tmp_path / "k"
        assert loaded.ntlm.secret_file == tmp_path / "s"

    def test_other_faults_count(self, tmp_path: Path) -> None:
        config = tmp_path / "relayd.toml"
        config.write_text(CONFIG.format(more='ca = "no-such.pem"\n'))
        with pytest.raises(ConfigFaults, match=r"directory\.ca"):
            load(config, unmade=self.UNMADE)


def test_passwords() -> None:
    first, second = new_password(), new_password()
    assert first != second
    assert len(first) == PASSWORD_LENGTH
    for kind in (string.ascii_lowercase, string.ascii_uppercase, string.digits):
        assert set(first) & set(kind)
    assert first.isascii()
    assert first.isprintable()
    assert " " not in first
    assert '"' not in first
    assert password_octets("aé") == b'"\0a\0\xe9\0"\0'


def test_principals_of_an_account() -> None:
    account = Account("CN=R", "R$", principals=("smtp/r.example", "HTTP/r", "user@strange", "HTTP/r"))
    assert principals(account, "X") == ("R$@X", "smtp/r.example@X", "SMTP/r.example@X", "HTTP/r@X")


@pytest.mark.parametrize(
    ("code", "message", "text"),
    [
        (19, "000021C7: AtrErr: DSID-03200E6D, #1:\n\t0: 000021C7: DSID", "another account in the forest has one of"),
        (19, "000021C8: AtrErr: DSID", "user principal name"),
        (53, "0000216D: SvcErr: DSID-031A124C, problem 5003 (WILL_NOT_PERFORM), data 0\n\0", "MachineAccountQuota"),
        (19, "0000052D: AtrErr: DSID-033F1099", "password policy"),
        (10, "0000202B: RefErr: DSID", "takes no changes"),
        (80, "", "cannot add CN=R: other (80)"),
    ],
)
def test_what_active_directory_says_is_translated(code: int, message: str, text: str) -> None:
    refused = NotAllowed("cannot add CN=R", code, "other", message)
    assert text in str(refused)
    assert "\n" not in str(refused)
    assert "\0" not in str(refused)
    assert not refused.access
    assert NotAllowed("cannot add CN=R", 50, "insufficientAccessRights", "00000005: SecErr").access
