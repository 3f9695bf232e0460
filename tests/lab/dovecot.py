"""A private Dovecot that takes mail by LMTP, over TCP and a unix socket, for the mailboxes it is told of."""

from __future__ import annotations

import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.ca import Leaf
from tests.lab.net import free_port, wait_for

__all__ = ["Dovecot"]


class Dovecot:
    """Nothing of the machine's own Dovecot is read or changed. It needs root. Use as a context manager.

    :param mailboxes: local parts that have one, each with a quota in KiB (0 = none). Others get 550 5.1.1.
    :param tls: with it STARTTLS is offered.
    :ivar socket: its unix socket.
    """

    def __init__(self, mailboxes: dict[str, int], *, tls: Leaf | None = None) -> None:
        self.mailboxes = mailboxes
        self.tls = tls
        self.host = "127.0.0.1"
        self.port = 0
        self.directory = Path(tempfile.mkdtemp(prefix="lab-dovecot-"))
        self.directory.chmod(0o755)
        self.socket = self.directory / "run" / "lmtp"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self) -> None:
        """Start it, and wait until it listens. A second start is where the first was.

        :raises RuntimeError: it does not; the text has its log.
        """
        self.port = self.port or free_port(self.host)
        configuration = self.directory / "dovecot.conf"
        configuration.write_text(self._configured())
        (self.directory / "mail").mkdir(exist_ok=True)
        shutil.chown(self.directory / "mail", "mail", "mail")
        with (self.directory / "out").open("ab") as output:
            self._process = subprocess.Popen(
                ["dovecot", "-F", "-c", configuration],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_for(lambda: "starting up" in self.log_text() and self.socket.exists(), "Dovecot", 20)
        except TimeoutError:
            raise RuntimeError((self.directory / "out").read_text(errors="replace") + self.log_text()) from None

    def stop(self) -> None:
        """End it; its mail stays until the context ends."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None
            (self.directory / "log").unlink(missing_ok=True)

    def log_text(self) -> str:
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def mails(self, mailbox: str) -> list[bytes]:
        """The messages in a mailbox, as Dovecot keeps them, in no order."""
        new = self.directory / "mail" / mailbox / "new"
        return [path.read_bytes() for path in new.iterdir()] if new.exists() else []

    def _configured(self) -> str:
        owner = pwd.getpwnam("mail")
        users = self.directory / "users"
        users.write_text(
            "".join(
                f"{name}:{{PLAIN}}x:{owner.pw_uid}:{owner.pw_gid}::{self.directory}/mail/{name}::"
                + (f"userdb_quota_rule=*:storage={quota}K" if quota else "")
                + "\n"
                for name, quota in self.mailboxes.items()
            )
        )
        ssl = "ssl = no"
        if self.tls is not None:
            ssl = f"ssl = yes\nssl_cert = <{self.tls.chain}\nssl_key = <{self.tls.key}"
        return f"""\
base_dir = {self.directory}/run
state_dir = {self.directory}/state
log_path = {self.directory}/log
protocols = lmtp
mail_location = maildir:{self.directory}/mail/%n
first_valid_uid = 1
mail_plugins = quota
plugin {{
  quota = maildir:User quota
  quota_grace = 0
}}
auth_username_format = %n
lmtp_save_to_detail_mailbox = no
passdb {{
  driver = passwd-file
  args = {users}
}}
userdb {{
  driver = passwd-file
  args = username_format=%n {users}
}}
service lmtp {{
  unix_listener lmtp {{
    mode = 0666
  }}
  inet_listener lmtp {{
    address = {self.host}
    port = {self.port}
  }}
}}
service stats {{
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
{ssl}
"""
