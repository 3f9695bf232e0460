"""Runs programs where a lab's controller is this host's winbind."""

from __future__ import annotations

from pathlib import Path

from tests.lab.directory import DirectoryLab

__all__ = ["among"]

#: Where libwbclient looks for winbindd, whatever smb.conf says.
SOCKETS = "/run/samba/winbindd"
SMB_CONF = "/etc/samba/smb.conf"


def among(lab: DirectoryLab, *command: str | Path, sockets: Path | None = None) -> list[str]:
    """The command line that runs *command* in a mount namespace of its own, where ntlm_auth finds the lab's winbindd.

    It takes root.

    :param sockets: the directory where winbindd's socket is looked for, in place of the lab's.
    """
    script = (
        f'mkdir -p {SOCKETS} && mount --bind "$1" {SOCKETS} && mount --bind "$2" {SMB_CONF} && shift 2 && exec "$@"'
    )
    places = (sockets or lab.directory / "winbindd", lab.directory / "smb.conf")
    return ["unshare", "-m", "sh", "-c", script, "sh", *(str(word) for word in (*places, *command))]
