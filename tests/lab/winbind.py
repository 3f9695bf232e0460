"""Runs programs where a lab's controller is this host's winbind."""

from __future__ import annotations

from pathlib import Path

from tests.lab.directory import DirectoryLab

__all__ = ["among"]

#: Where libwbclient looks for winbindd, whatever smb.conf says.
SOCKETS = "/run/samba/winbindd"
SMB_CONF = "/etc/samba/smb.conf"


def among(lab: DirectoryLab, *command: str | Path) -> list[str]:
    """The command line that runs *command* in a mount namespace of its own, where ntlm_auth finds the lab's winbindd.

    It takes root.
    """
    script = (
        f'mkdir -p {SOCKETS} && mount --bind "$1/winbindd" {SOCKETS} '
        f'&& mount --bind "$1/smb.conf" {SMB_CONF} && shift && exec "$@"'
    )
    return ["unshare", "-m", "sh", "-c", script, "sh", str(lab.directory), *(str(word) for word in command)]
