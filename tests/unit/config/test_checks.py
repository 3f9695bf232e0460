"""Values against each other and against the machine, beyond what the broken files of tests/bad_configs show."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Callable
from pathlib import Path as File

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from relayd.config import ConfigFaults, Loaded, load
from relayd.config.loading import machine_name
from relayd.settings import OutboundTls

Load = Callable[..., Loaded]
Faults = Callable[[str], dict[str, str]]

QUIET = "[authentication]\nintegrated = false\n"


def certificate(folder: File, name: str, *, days: int = 1, password: bytes = b"") -> ec.EllipticCurvePrivateKey:
    """Writes NAME.pem and NAME.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "relay.example")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=10))
        .not_valid_after(now + datetime.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    octets = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    (folder / f"{name}.key").write_bytes(octets)
    (folder / f"{name}.key").chmod(0o600)
    return key


def test_a_certificate_with_its_key(config: Load, tmp_path: File) -> None:
    certificate(tmp_path, "a")
    loaded = config(QUIET + '[tls]\ncertificate = "a.pem"\nkey = "a.key"\n')
    assert loaded.warnings == ()
    assert loaded.settings.listeners[0].tls_settings.certificate == tmp_path / "a.pem"


def test_a_certificate_with_the_key_of_another(faults: Faults, tmp_path: File) -> None:
    certificate(tmp_path, "a")
    certificate(tmp_path, "b")
    found = faults('[tls]\ncertificate = "a.pem"\nkey = "a.key"\n[[listener]]\ncertificate = "b.pem"\n')
    assert found.keys() == {"tls.key"}
    assert "is not the key of" in found["tls.key"]
    assert str(tmp_path / "b.pem") in found["tls.key"]


def test_a_key_with_a_passphrase(faults: Faults, tmp_path: File) -> None:
    certificate(tmp_path, "a", password=b"secret")
    assert "passphrase" in faults('[tls]\ncertificate = "a.pem"\nkey = "a.key"\n')["tls.key"]


def test_an_expired_certificate_is_a_warning(config: Load, tmp_path: File) -> None:
    certificate(tmp_path, "a", days=-1)
    (warning,) = config(QUIET + '[tls]\ncertificate = "a.pem"\nkey = "a.key"\n').warnings
    assert (warning.key, warning.line) == ("tls.certificate", 4)
    assert "expired" in warning.text


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o660, True)])
def test_the_mode_of_a_secret(config: Load, tmp_path: File, mode: int, warned: bool) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse")
    secret.chmod(mode)
    text = '[[credential]]\nname = "a"\nuser = "b"\npassword_file = "secret"\n'
    keys = [warning.key for warning in config(QUIET + text).warnings]
    assert keys == (["credential[0].password_file"] if warned else [])


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("::", "::", True),
        ("::", "0.0.0.0", True),
        ("::", "192.0.2.1", True),
        ("::", "2001:db8::1", True),
        ("0.0.0.0", "192.0.2.1", True),
        ("0.0.0.0", "2001:db8::1", False),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "127.0.0.1", True),
    ],
)
def test_listeners_on_one_port(config: Load, one: str, other: str, clash: bool) -> None:
    for first, second in ((one, other), (other, one)):
        text = f'[[listener]]\nname = "a"\naddress = "{first}"\n[[listener]]\nname = "b"\naddress = "{second}"\n'
        if not clash:
            assert config(text)
            continue
        with pytest.raises(ConfigFaults, match=r"listener\[1\]\.port: port 25 on"):
            config(text)


def test_the_kernel_may_choose_ports(config: Load) -> None:
    text = '[[listener]]\nname = "a"\nport = 0\n[[listener]]\nname = "b"\nport = 0\n'
    assert [listener.port for listener in config(text).settings.listeners] == [0, 0]


def test_a_listener_that_nobody_can_use_is_a_warning(config: Load) -> None:
    text = QUIET + 'anonymous = false\n[[listener]]\nname = "a"\n[[listener]]\nname = "b"\nport = 26\ntls = "none"\n'
    (warning,) = config(text).warnings
    assert warning.key == "authentication.anonymous"
    assert "listener[1]" in warning.text


CREDENTIAL = '[[credential]]\nname = "a"\nuser = "b"\npassword_file = "secret"\n'


@pytest.mark.parametrize("written", ["", "verify", "implicit"])
def test_a_guarded_credential(config: Load, tmp_path: File, written: str) -> None:
    (tmp_path / "secret").write_text("correct horse")
    text = '[delivery]\nsmart_host = ["mail.example"]\nsmart_host_auth = "a"\n'
    settings = config(f'{text}smart_host_tls = "{written}"\n{CREDENTIAL}').settings
    assert settings.delivery.smart_host_tls == (OutboundTls(written) if written else None)


@pytest.mark.parametrize("written", ["none", "may", "require"])
def test_an_unguarded_credential(config: Load, tmp_path: File, written: str) -> None:
    (tmp_path / "secret").write_text("correct horse")
    text = f'[[domain]]\nname = "a.example"\nkind = "remote"\nauth = "a"\ntls = "{written}"\n{CREDENTIAL}'
    with pytest.raises(ConfigFaults, match=r"domain\[0\]\.tls: .* would show the credential"):
        config(text)
    assert config(f"{text}allow_insecure = true\n")


def test_the_socket_must_have_a_name_that_fits(faults: Faults) -> None:
    assert "too long" in faults(f'[server]\nstate = "/{"s" * 100}"\n')["server.state"]
    assert "too long" in faults(f'[console]\nsocket = "/{"s" * 107}"\n')["console.socket"]


def test_a_refused_value_makes_no_second_fault(faults: Faults) -> None:
    assert faults('[[listener]]\nname = "a"\n[[listener]]\nname = "b"\nport = "x"\n').keys() == {"listener[1].port"}
    assert faults('[limits]\nmessage_size = "300M"\nsession_size = "x"\n').keys() == {"limits.session_size"}
    assert faults('[[domain]]\nname = "a"\nkind = "x"\nrelay = true\n').keys() == {"domain[0].kind"}


def test_faults_stand_in_the_order_of_the_file_and_name_it_as_given(
    tmp_path: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.toml").write_text('[relay]\nallow = "x"\n[access]\nallow = "y"\n[zzz]\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigFaults) as raised:
        load(File("r.toml"))
    starts = [line.split(": ")[:2] for line in str(raised.value).splitlines()]
    assert starts == [["r.toml:2", "relay.allow"], ["r.toml:4", "access.allow"], ["r.toml:5", "zzz"]]


def test_a_file_that_cannot_be_read(tmp_path: File) -> None:
    with pytest.raises(ConfigFaults, match=r"none.toml:1: file: cannot be read: No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigFaults, match=r":1: file: cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "taken"),
    [("Relay.Corp.Example", "relay.corp.example"), ("relay", "relay"), ("bad name", "localhost"), ("", "localhost")],
)
def test_the_name_of_the_machine(monkeypatch: pytest.MonkeyPatch, name: str, taken: str) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: name)
    assert machine_name() == taken
