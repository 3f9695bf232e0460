"""What the service manager is told (sd_notify(3)): one datagram; nothing where there is no manager."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Sends *state* (``READY=1``) to ``$NOTIFY_SOCKET``. A manager that does not listen is its own affair."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.sendto(state.encode(), path.replace("@", "\0", 1) if path[0] == "@" else path)
    except OSError:
        return
