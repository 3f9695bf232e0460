"""relayd.toml in the forms that the end-to-end tests need."""

from __future__ import annotations

from pathlib import Path

from tests.lab.ca import Leaf

HEAD = """\
[server]
hostname = "relay.example"
state = "state"

[accounts]
file = "accounts.json"

[log]
format = "json"

[limits]
connections_per_client = 1000
"""


def listener(
    name: str = "smtp", *, address: str = "127.0.0.1", tls: str = "starttls", leaf: Leaf | None = None, more: str = ""
) -> str:
    certificate = f'certificate = "{leaf.chain}"\nkey = "{leaf.key}"\n' if leaf else ""
    return f'[[listener]]\nname = "{name}"\naddress = "{address}"\nport = 0\ntls = "{tls}"\n{certificate}{more}\n'


def relaying(
    smart_host: int, *, leaf: Leaf | None = None, allow: str = '["127.0.0.1"]', more: str = "", delivery: str = ""
) -> str:
    """Relays for *allow* and for whoever authenticates, to a smart host on this port; drops for local.example."""
    return (
        HEAD
        + listener(leaf=leaf)
        + listener("smtps", tls="implicit", leaf=leaf)
        + f'[relay]\nlist = {allow}\n[[domain]]\nname = "local.example"\n'
        + f'[delivery]\nsmart_host = ["127.0.0.1:{smart_host}"]\nretry = ["1s"]\n{delivery}\n'
        + more
    )


def password_file(directory: Path, password: str) -> Path:
    file = directory / "password"
    file.write_text(password + "\n")
    file.chmod(0o600)
    return file


def picking_up(smart_host: int, folder: Path, more: str = "") -> str:
    """As :func:`relaying`, with a pickup folder."""
    return relaying(smart_host, more=f'[pickup]\ndirectory = "{folder}"\n{more}')
