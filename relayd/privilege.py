"""What a start needs of the machine while it may still be root: folders, secrets that can be read, who to become."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address
from pathlib import Path as File
from typing import Final

from relayd.config import ConfigFault
from relayd.delivery.durable import make_folder, sync_folder
from relayd.settings import Settings

#: Descriptors that relayd takes leave to have.
FILES: Final = 65_536


def secrets(settings: Settings) -> Iterator[tuple[str, File]]:
    """The files that ``server.user`` reads, by their keys; those that are read before root is given up are not."""
    for key, file in (
        ("directory.bind_password_file", settings.directory.bind_password_file),
        ("kerberos.keytab", settings.kerberos.keytab),
        ("ntlm.secret_file", settings.ntlm.secret_file),
        ("tls.client_crl", settings.tls.client_crl),
    ):
        if file is not None:
            yield key, file
    for number, credential in enumerate(settings.credentials):
        for name in ("password_file", "client_secret_file"):
            if (file := getattr(credential, name)) is not None:
                yield f"credential[{number}].{name}", file
    if settings.accounts.file is not None and settings.accounts.file.exists():
        yield "accounts.file", settings.accounts.file


def hidden(settings: Settings) -> list[ConfigFault]:
    """Secrets and folders closed to ``server.user``, when root asks; a start finds out once it is that user."""
    if os.geteuid() != 0 or not settings.server.user:
        return []
    user = pwd.getpwnam(settings.server.user)
    fault = partial(ConfigFault, settings.file)
    faults = [
        fault(settings.lines.get(key, 1), key, f"{file} cannot be read by {user.pw_name}")
        for key, file in secrets(settings)
        if not may_read(user, file)
    ]
    key, folder = "pickup.directory", settings.pickup.directory
    if folder is not None and not all(_may(user, folder, how) for how in "rwx"):
        text = f"{folder} cannot be read and written to by {user.pw_name}"
        faults.append(fault(settings.lines.get(key, 1), key, text))
    return faults


def may_read(user: pwd.struct_passwd | None, file: File) -> bool:
    """Whether *user* may, when root asks; None: root itself."""
    return user is None or _may(user, file, "r")


def _may(user: pwd.struct_passwd, file: File, how: str) -> bool:
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    command = ["test", f"-{how}", os.fspath(file)]
    return not subprocess.run(command, user=user.pw_uid, group=user.pw_gid, extra_groups=groups, check=False).returncode


def as_root(settings: Settings) -> list[ConfigFault]:
    """root may listen beyond loopback only when it hands over to ``server.user``."""
    line = settings.lines.get("server.user", settings.lines.get("server", 1))
    fault = partial(ConfigFault, settings.file, line, "server.user")
    if os.geteuid() != 0:
        return []
    if settings.server.user:
        try:
            pwd.getpwnam(settings.server.user)
        except KeyError:
            return [fault(f"{settings.server.user}: there is no such user on this machine")]
        return []
    exposed = [entry for entry in settings.listeners if not _loopback(entry.address)]
    return [
        fault(
            f"started as root, listener {entry.name} ({entry.address}) would speak to the network as root; "
            "name a user to run as, or listen on loopback"
        )
        for entry in exposed
    ]


def _loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def raise_file_limit() -> None:
    """As many descriptors as this process may have, within reason: a shell's 1,024, which are for select(2), are fewer
    than ``limits.connections`` and ``delivery.connections`` together."""
    try:
        import resource  # POSIX alone
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def insist_on_reading(secret: File) -> None:
    """A secret that the service's user cannot read would be missed at the first use only.

    :raises ValueError: it cannot be read.
    """
    if not os.access(secret, os.R_OK):
        raise ValueError(f"{secret} cannot be read by the user that relayd runs as; give it to that user")


def unreadable_libraries() -> list[File]:
    """Python and relayd, where they are installed for root alone. Parts of them are loaded when they are needed first,
    which is with the first client: codecs, gssapi, impacket."""
    files = [File(str(module.__file__)) for module in (os, sys.modules[__name__])]
    return [file for file in files if not os.access(file, os.R_OK)]


def prepare(settings: Settings, user: pwd.struct_passwd | None) -> None:
    """Makes the state directory and its parts, closed to others, for *user*."""
    state = settings.server.state
    for directory in (state, *(state / name for name in ("queue", "drop", "badmail", "tls", "sts"))):
        make_folder(directory, 0o700)
        if user is not None:
            os.chown(directory, user.pw_uid, user.pw_gid)
    sync_folder(state)  # a start that was cut short may have made them and come no further
