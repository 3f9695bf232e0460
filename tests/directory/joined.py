"""A relay that is joined to a lab's domain by all that there is, and what must hold of it after whatever went wrong."""

from __future__ import annotations

import contextlib
import shutil
import smtplib
import ssl
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pytest
from ldap3.protocol.formatters.formatters import format_sid

from tests.directory.exchanges import (
    Exchange,
    external,
    gss_spnego,
    gssapi_kerberos,
    login,
    negotiated_ntlm,
    ntlm,
    plain,
)
from tests.directory.relays import Log, integrated, running
from tests.lab import domain
from tests.lab.ca import LabCA
from tests.lab.directory import DirectoryLab
from tests.lab.footprint import DYNAMIC, Footprint
from tests.lab.net import wait_for
from tests.lab.raw import Raw

__all__ = ["BY_DIRECTORY", "BY_NETLOGON", "BY_TICKET", "Joined", "joined_relay"]

#: Nobody is stopped for what he does but by the fault itself; what is asked is asked anew, and given up soon.
MORE = """\
[authentication]
lockout = "100000 in 1m"
max_failures = 1000
"""
INSIDE = 'cache = "0s"\ntimeout = "3s"'
OWN = """\
[kerberos]
keytab = "{keytab}"

[ntlm]
computer = "{computer}"
secret_file = "{secret}"
"""

#: The exchanges by what they need: the directory's LDAP, its Netlogon, or the client's ticket and the relay's keytab.
BY_DIRECTORY = ("PLAIN", "LOGIN", "EXTERNAL")
BY_NETLOGON = ("NTLM", "GSSAPI/NTLM")
BY_TICKET = ("GSSAPI", "GSS-SPNEGO")

#: Idle connections to LDAPS that a relay keeps, and its one channel to Netlogon.
IDLE = {636: 16, DYNAMIC: 1}
#: Sessions at once that have most threads started that there may be, and how many more may be.
MANY, MORE_THREADS = 40, 8
#: What the thread of the resolver holds once DNS was asked: its epoll, and the pair of sockets that wakes it.
RESOLVER = {"anon_inode:": 1, "socket:": 2}
#: Seconds until everybody must sign in again: a controller that failed rests, twice as long each time.
RECOVERY = 60.0


class Joined:
    """See `joined_relay`.

    :ivar keytab: its own copy, like *secret*.
    :ivar exchanges: how alice signs in, by each mechanism and what is inside of it.
    """

    def __init__(self, lab: DirectoryLab, directory: Path, ca: LabCA) -> None:
        self.lab = lab
        self.keytab = directory / "relay.keytab"
        self.secret = directory / "relay01.secret"
        self.directory = directory
        self._ca = ca
        self.mend()
        (sid,) = lab.attributes("alice", "objectSid")["objectSid"]
        self._leaf = ca.leaf("alice", client=True, sid=format_sid(sid))
        self.tickets = lab.kinit("alice")
        password = lab.users["alice"]
        self.exchanges: dict[str, Exchange] = {
            "PLAIN": plain("alice", password),
            "LOGIN": login("alice", password),
            "EXTERNAL": external(),
            "NTLM": ntlm("LAB\\alice", password),
            "GSSAPI/NTLM": negotiated_ntlm("LAB\\alice", password),
            "GSSAPI": gssapi_kerberos(self.tickets),
            "GSS-SPNEGO": gss_spnego(self.tickets),
        }

    def mend(self) -> None:
        """Puts keytab and secret back."""
        for source, target in ((self.lab.keytab, self.keytab), (self.lab.directory / "relay01.secret", self.secret)):
            new = target.with_suffix(".new")
            shutil.copyfile(source, new)
            new.chmod(0o600)
            if target.is_dir():
                target.rmdir()
            new.replace(target)

    @contextlib.contextmanager
    def running(self, ca: Path | None = None, env: dict[str, str] | None = None, more: str = "") -> Iterator[None]:
        """Runs the relay.

        :param ca: who signed the controller's certificate, as it is told.
        :param more: tables of its configuration.
        """
        own = OWN.format(keytab=self.keytab, computer=domain.COMPUTER, secret=self.secret)
        config = integrated(self.lab, MORE + more, INSIDE, own).replace(
            "[tls]\n", f'[tls]\nclient_ca = "{self._ca.path}"\n'
        )
        if ca is not None:
            assert config.count(f'ca = "{self.lab.ca}"') == 1
            config = config.replace(f'ca = "{self.lab.ca}"', f'ca = "{ca}"')
        with running(self.directory, config, env=env) as self.relay:
            assert self.relay.process is not None
            self.footprint = Footprint(self.relay.process.pid, self.lab.address, IDLE)
            yield

    def twin(self, directory: Path) -> Joined:
        """Another relay of the same domain, for the same clients."""
        return Joined(self.lab, directory, self._ca)

    @cached_property
    def _client(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.lab.ca))
        context.load_cert_chain(self._leaf.chain, self._leaf.key)
        return context

    # ---- clients ----------------------------------------------------------------------------------------------

    def session(self, by: str | Exchange | None = None, source: str = "127.0.0.1") -> Raw:
        """A session that said EHLO, under TLS where it is to be used for an exchange that wants it."""
        exchange = self.exchanges[by] if isinstance(by, str) else by
        raw = Raw(self.relay.port(), source=source)
        raw.say(b"EHLO client.example")
        if exchange is not None and exchange.tls:
            raw.starttls(self._client)
            raw.say(b"EHLO client.example")
        return raw

    def code(self, name: str) -> int:
        """What signing in ends with."""
        with self.session(name) as raw:
            return self.exchanges[name].on(raw).code

    def burst(self) -> None:
        """Many sign in at once, so that most threads there may be are there."""
        for name in ("PLAIN", "GSSAPI"):
            with contextlib.ExitStack() as stack:
                raws = [stack.enter_context(self.session(name)) for _ in range(MANY)]
                begun = [self.exchanges[name].on(raw, 0) for raw in raws]
                for each in begun:
                    each.send(each.next())
                for raw in raws:
                    assert raw.reply()[:3] in (b"235", b"334")
        for name in self.exchanges:
            assert self.code(name) == 235, name
        self.send()
        self.before = self.footprint.holds()
        self.before["thread"] += MORE_THREADS

    def send(self, raw: Raw | None = None) -> None:
        """A message gets to where it should, in a session of its own or in *raw*."""
        before = len(self.relay.dropped())
        if raw is None:
            with contextlib.closing(smtplib.SMTP("127.0.0.1", self.relay.port(), timeout=30)) as client:
                client.sendmail("x@lab.example", "bob@lab.example", "Subject: hello\r\n\r\nIt works.\r\n")
        else:
            raw.ready(b"<bob@lab.example>", sender=b"<x@lab.example>")
            assert raw.say(b"Subject: hello\r\n\r\nIt works.\r\n.").startswith(b"250")
        self.relay.wait_until(lambda: len(self.relay.dropped()) > before, "the message in the drop directory")

    # ---- what must hold ---------------------------------------------------------------------------------------

    def deferred(self, by: str | Exchange, *words: str) -> None:
        """Nobody signs in so for now, which is no fault of the client's, and its session goes on.

        :param words: are all in the log's reason.
        """
        log = Log(self.relay)
        exchange = self.exchanges[by] if isinstance(by, str) else by
        with self.session(exchange) as raw:
            assert exchange.on(raw).reply.startswith(b"454 4.7.0 "), by
            assert raw.say(b"NOOP").startswith(b"250")
            self.send(raw)
        reason = log.one("authentication-failed")["reason"]
        missing = [word for word in words if word not in reason]
        assert not missing, f"{missing} not in {reason!r}"

    def well(self) -> None:
        """Everybody signs in, mail flows, nothing is left behind, and the log has no fault of relayd's own."""
        for name in self.exchanges:
            wait_for(lambda name=name: self.code(name) == 235, f"{name} well again", RECOVERY, interval=0.3)  # type: ignore[misc]
        self.send()
        self.footprint.settled(self.before, "what went wrong")
        self.relay.assert_clean()

    def mended(self) -> None:
        """As `well`, with keytab and secret put back, and the controller made to run."""
        self.mend()
        self.lab.resume()
        if not self.lab.controller.running:
            self.lab.start()
        self.well()


@contextlib.contextmanager
def joined_relay(lab: DirectoryLab, directory: Path) -> Iterator[Joined]:
    """A relay that asks *lab* by password, keytab and machine account, where alice has tickets and a certificate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KRB5_CONFIG", str(lab.krb5_conf))
        (directory / "ca").mkdir()
        joined = Joined(lab, directory, LabCA(directory / "ca"))
        with joined.running():
            joined.burst()
            yield joined
