"""Postfix's own programs as peers: smtp-sink, and a private Postfix that relays all it gets to one next hop.

(`clients.smtp_source` is the third of them.) Everything is on loopback; nothing of the machine's own Postfix is read or
changed.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.clients import HERE_AND_NOW, Place
from tests.lab.net import free_port, listener_pids, wait_for

__all__ = ["Postfix", "SinkMail", "SmtpSink"]

DAEMONS = Path("/usr/lib/postfix/sbin")


@dataclass(frozen=True, slots=True)
class SinkMail:
    """One message as smtp-sink dumped it.

    :ivar content: the message without the Received field that smtp-sink adds. Lines end in LF: smtp-sink drops every
        CR, so this is for counting and reading; `sink.RecordingSink` is for octets.
    """

    helo: str
    sender: str
    to: tuple[str, ...]
    content: bytes


class SmtpSink:
    """Postfix's smtp-sink on a free port: takes any message and throws it away, or dumps it.

    Use as a context manager.

    :param dump: keep each message in a file (`mails`); without it there is only `count`.
    :param options: further options, e.g. `["-q", "RCPT"]`; see smtp-sink(1).
    """

    def __init__(self, *options: str, dump: bool = True, host: str = "127.0.0.1", backlog: int = 1024) -> None:
        self.host = host
        self.port = 0
        self.options = options
        self.backlog = backlog
        self._directory = Path(tempfile.mkdtemp(prefix="lab-smtp-sink-"))
        self._dump = self._directory / "mails" if dump else None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id, for measuring."""
        assert self._process is not None
        return self._process.pid

    def start(self, port: int | None = None) -> None:
        """Start it; `port` starts it again where it was.

        :raises RuntimeError: when it cannot be started.
        """
        for _ in range(1 if port else 5):
            self.port = port or free_port(self.host)
            command = ["smtp-sink", "-c", *self.options]
            if os.geteuid() == 0:
                command += ["-u", getpass.getuser()]  # required of root
            if self._dump:
                self._dump.mkdir(exist_ok=True)
                command += ["-d", f"{self._dump}/m."]
            command += [f"inet:{self.host}:{self.port}", str(self.backlog)]
            with (self._directory / "counters").open("wb") as counters:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=counters,
                    stderr=subprocess.STDOUT,
                    env=_environment(),
                )
            if _listens(self._process, self.port):
                return
        said = (self._directory / "counters").read_text(errors="replace")
        raise RuntimeError(f"smtp-sink did not start: {said}")

    def stop(self, keep: bool = False) -> None:
        """End it, and remove its files unless told to `keep` them (for another `start`)."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None
        if not keep:
            shutil.rmtree(self._directory, ignore_errors=True)

    def count(self) -> int:
        """Messages taken since `start`."""
        with (self._directory / "counters").open("rb") as counters:
            counters.seek(max(0, counters.seek(0, os.SEEK_END) - 400))
            tail = counters.read()
        # "sess=1 quit=1 mesg=1" over and over, with CRs; what follows the last separator may be half written.
        complete = [line for line in tail.split(b"\r") if b"mesg=" in line]
        return int(complete[-1].rpartition(b"mesg=")[2].split()[0]) if complete else 0

    def mails(self) -> list[SinkMail]:
        """The complete messages dumped so far, in no order."""
        assert self._dump is not None, "started with dump=False"
        found = (_parse_dump(path.read_bytes()) for path in self._dump.iterdir())
        return [mail for mail in found if mail is not None]

    def wait(self, count: int, timeout: float = 30.0) -> None:
        """Wait until `count` messages were taken.

        :raises TimeoutError: when fewer were in `timeout` seconds.
        """
        wait_for(lambda: self.count() >= count, f"{count} messages at smtp-sink", timeout)


def _parse_dump(dump: bytes) -> SinkMail | None:
    """Read smtp-sink's dump format: X- pseudo-header fields, its own Received field, the message, an empty line."""
    if not dump.endswith(b"\n\n"):
        return None
    helo = sender = ""
    recipients: list[str] = []
    rest = dump[:-1]
    while rest.startswith(b"X-"):
        line, _, rest = rest.partition(b"\n")
        name, _, value = line.decode("utf-8", "surrogateescape").partition(": ")
        if name == "X-Helo-Args":
            helo = value
        elif name == "X-Mail-Args":
            sender = _path(value)
        elif name == "X-Rcpt-Args":
            recipients.append(_path(value))
        elif not name.startswith("X-Client-"):
            return None
    if not rest.startswith(b"Received: "):
        return None
    _, _, rest = rest.partition(b"\n")
    while rest.startswith(b"\t"):
        _, _, rest = rest.partition(b"\n")
    return SinkMail(helo, sender, tuple(recipients), rest)


def _path(argument: str) -> str:
    return argument.partition(">")[0].removeprefix("<")


class Postfix:
    """A private Postfix that relays everything it gets on its port to `next_hop`.

    Its settings are Debian's, which fsync each message before the 250, but for what makes it private. It needs root,
    as any Postfix. Use as a context manager.

    :param next_hop: host and port, usually an `SmtpSink`.
    :param settings: further main.cf settings, e.g. `{"default_process_limit": "200"}`.
    :param directory: where configuration, queue and log go; a new one under the system's temporary directory when None.
        Every directory above it must be open to the user `postfix` (pytest's tmp_path is not).
    :param log: write a log as Debian's does to syslog; `log_text` reads it.
    :param place: where it runs.
    """

    def __init__(
        self,
        next_hop: tuple[str, int],
        settings: dict[str, str] | None = None,
        *,
        host: str = "127.0.0.1",
        directory: Path | None = None,
        log: bool = True,
        place: Place = HERE_AND_NOW,
    ) -> None:
        self.host = host
        self.place = place
        self.port = 0
        self.next_hop = next_hop
        self.settings = settings or {}
        self.log = log
        self.directory = Path(tempfile.mkdtemp(prefix="lab-postfix-", dir=directory))
        self.directory.chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def configuration(self) -> Path:
        """The directory of its main.cf and master.cf, for `postqueue -c` and the like."""
        return self.directory / "etc"

    def start(self) -> None:
        """Start it and wait until it greets.

        :raises RuntimeError: when it does not; the text has its log.
        """
        for _ in range(5):
            self.port = free_port(self.host)
            self._configure()
            check = subprocess.run(
                ["postfix", "-c", self.configuration, "check"],
                env=_environment(),
                capture_output=True,
                check=False,
            )
            if check.returncode != 0:
                raise RuntimeError(f"postfix check: {check.stderr.decode(errors='replace')}")
            with (self.directory / "master.out").open("wb") as output:
                # -d keeps it in the foreground, so that its id is known and it can be waited for. A session of its own,
                # since it signals its whole process group when it ends.
                self._process = subprocess.Popen(
                    [*self.place.prefix, DAEMONS / "master", "-c", self.configuration, "-d"],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=_environment() | dict(self.place.env),
                    start_new_session=True,
                )
            if _listens(self._process, self.port):
                return
        said = (self.directory / "master.out").read_text(errors="replace")
        raise RuntimeError(f"Postfix did not start:\n{said}\n{self.log_text()}")

    def stop(self) -> None:
        """End master and all that it started, and remove the directory."""
        if self._process is not None:
            group = self._process.pid
            self._process.terminate()
            try:
                self._process.wait(10)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
                self._process = None
        shutil.rmtree(self.directory, ignore_errors=True)

    def pids(self) -> list[int]:
        """The ids of all its processes now, master first, for measuring CPU and memory."""
        assert self._process is not None
        session = self._process.pid
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                with contextlib.suppress(OSError):
                    # proc(5) stat: field 6 is the session; field 2, the name, may hold spaces and ")".
                    if int((process / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                        found.append(int(process.name))
        return sorted(found, key=lambda pid: (pid != session, pid))

    def queued(self) -> int:
        """How many messages are in its queue now."""
        queues = ("incoming", "active", "deferred", "maildrop", "hold")
        return sum(1 for queue in queues for path in (self.directory / "queue" / queue).rglob("*") if path.is_file())

    def log_text(self) -> str:
        """Its log so far."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _configure(self) -> None:
        self.configuration.mkdir(exist_ok=True)
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        shutil.chown(data, "postfix")
        (self.directory / "queue").mkdir(exist_ok=True)
        host, port = self.next_hop
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": str(self.directory / "queue"),
            "data_directory": str(data),
            "command_directory": "/usr/sbin",
            "daemon_directory": str(DAEMONS),
            "mail_owner": "postfix",
            "setgid_group": "postdrop",
            "myhostname": "postfix.lab.example",
            "mydestination": "",
            "local_recipient_maps": "",
            "alias_maps": "",
            "alias_database": "",
            "mynetworks": "127.0.0.0/8 [::1]/128",
            "inet_interfaces": self.host,
            "inet_protocols": "ipv4",
            "relayhost": f"[{host}]:{port}",
            # No resolver: a lossy one would stall it for seconds, and the benchmark would measure that.
            "smtp_dns_support_level": "disabled",
            "smtpd_peername_lookup": "no",
            "message_size_limit": str(64 * 1024 * 1024),
            "mailbox_size_limit": "0",
            "biff": "no",
        }
        if self.log:
            settings |= {
                "maillog_file": str(self.directory / "log"),
                "maillog_file_prefixes": str(self.directory),
            }
        settings |= self.settings
        main = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.configuration / "main.cf").write_text(main)
        (self.configuration / "master.cf").write_text(MASTER.format(address=f"{self.host}:{self.port}"))


# Debian's master.cf, less what delivers elsewhere. Chroot is off (its jail is not set up here), which changes no system
# call per message.
MASTER = """\
{address} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until `process` holds the listener at `port`; False when it ended instead, or somebody else holds it."""

    def state() -> str:
        if process.poll() is not None:
            return "ended"
        return "listens" if process.pid in listener_pids(port) else ""

    try:
        return wait_for(state, f"{process.args!r} to listen", 10) == "listens"
    except TimeoutError:
        process.kill()
        process.wait(10)
        return False
