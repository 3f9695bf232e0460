"""What must go together before clients are asked for certificates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as File

import pytest

from relayd.config import Loaded
from tests.lab.ca import LabCA

Load = Callable[..., Loaded]
Faults = Callable[[str], dict[str, str]]

DIRECTORY = """
[directory]
domain = "corp.example"
bind_user = "relayd@corp.example"
bind_password_file = "secret"
"""


@pytest.fixture
def ca(tmp_path: File) -> LabCA:
    secret = tmp_path / "secret"
    secret.write_text("correct horse")
    secret.chmod(0o600)
    return LabCA(tmp_path, "clients")


def told(loaded: Loaded) -> list[tuple[int, str, str]]:
    keys = ("tls.client_ca", "tls.client_crl", "tls.client_map", "tls.minimum", "listener[0].minimum")
    return [(one.line, one.key, one.text) for one in loaded.warnings if one.key in keys]


def test_every_listener_has_them(config: Load, ca: LabCA) -> None:
    ca.crl()
    tls = '[tls]\nclient_ca = "ca.pem"\nclient_crl = "lab.crl"\nclient_map = "upn"\n'
    loaded = config(f"{tls}[[listener]]\nport = 587\n{DIRECTORY}")
    assert told(loaded) == []
    settings = loaded.settings.listeners[0].tls_settings
    assert (settings.client_ca, settings.client_crl) == (ca.path, ca.directory / "lab.crl")
    assert settings.client_map == "upn"


def test_a_listener_has_none_of_its_own(faults: Faults, ca: LabCA) -> None:
    assert faults('[[listener]]\nclient_ca = "ca.pem"\n').keys() == {"listener[0].client_ca"}


def test_without_a_directory(faults: Faults, ca: LabCA) -> None:
    found = faults('[tls]\nclient_ca = "ca.pem"\n')
    assert found.keys() == {"tls.client_ca"}
    assert "needs a directory" in found["tls.client_ca"]


def test_a_map_alone(config: Load) -> None:
    assert told(config('[tls]\nclient_map = "upn"\n')) == [(2, "tls.client_map", "has no effect without client_ca")]


def test_no_listener_that_could_ask(config: Load, ca: LabCA) -> None:
    text = f'[tls]\nclient_ca = "ca.pem"\n[[listener]]\ntls = "none"\n{DIRECTORY}'
    assert told(config(text)) == [(2, "tls.client_ca", "has no effect: no listener offers TLS")]


def test_a_global_catalog_knows_too_little(config: Load, ca: LabCA) -> None:
    text = f'[tls]\nclient_ca = "ca.pem"\n{DIRECTORY}servers = ["ldaps://dc1.corp.example:3269"]\n'
    ((line, key, said),) = told(config(text))
    assert (line, key) == (2, "tls.client_ca")
    assert "global catalog" in said


@pytest.mark.parametrize("where", ["tls", "listener"])
def test_old_tls(config: Load, ca: LabCA, where: str) -> None:
    old = 'minimum = "1.1"\n'
    text = f'[tls]\nclient_ca = "ca.pem"\n{old * (where == "tls")}[[listener]]\n{old * (where != "tls")}{DIRECTORY}'
    ((line, key, said),) = told(config(text))
    assert (line, key) == ((3, "tls.minimum") if where == "tls" else (4, "listener[0].minimum"))
    assert "client_ca needs a minimum of 1.2" in said


class TestLists:
    def told(self, config: Load, ca: LabCA) -> list[str]:
        text = f'[tls]\nclient_ca = "ca.pem"\nclient_crl = "lab.crl"\n{DIRECTORY}'
        found = told(config(text))
        assert {(line, key) for line, key, _ in found} <= {(3, "tls.client_crl")}
        return [said for _, _, said in found]

    def test_der(self, config: Load, ca: LabCA) -> None:
        ca.crl(der=True)
        assert self.told(config, ca) == []

    def test_expired(self, config: Load, ca: LabCA) -> None:
        ca.crl(days=-1)
        (said,) = self.told(config, ca)
        assert said.startswith('the list of "CN=clients" expired on 20')

    def test_of_another_ca(self, config: Load, ca: LabCA, tmp_path: File) -> None:
        (tmp_path / "lab.crl").write_bytes(LabCA(tmp_path / "other", "other").crl().read_bytes())
        (said,) = self.told(config, ca)
        assert 'lab.crl holds no list of "CN=clients"' in said

    def test_none(self, faults: Faults, ca: LabCA, tmp_path: File) -> None:
        (tmp_path / "lab.crl").write_bytes(ca.path.read_bytes())
        found = faults(f'[tls]\nclient_ca = "ca.pem"\nclient_crl = "lab.crl"\n{DIRECTORY}')
        assert found.keys() == {"tls.client_crl"}
        assert "holds no certificate revocation list" in found["tls.client_crl"]
