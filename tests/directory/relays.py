"""Relays that are joined to a lab's domain, and clients that sign in to them with a password."""

from __future__ import annotations

import contextlib
import signal
import smtplib
import ssl
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.directory import DirectoryLab
from tests.lab.relay import Event, Relay

__all__ = ["Answer", "Log", "integrated", "joined", "running", "sign_in", "signed_in"]

CONFIG = """\
[server]
hostname = "relay.lab.example"
state = "state"

[[listener]]
name = "smtp"
address = "127.0.0.1"
port = 0

[tls]
certificate = "{lab.directory}/ca/relay-chain.pem"
key = "{lab.directory}/ca/relay.key"

[log]
format = "json"

[[domain]]
name = "lab.example"
{more}
{directory}
{inside}
{integrated}
"""


def joined(lab: DirectoryLab, more: str = "", inside: str = "") -> str:
    """A relayd.toml, for passwords alone.

    :param more: tables.
    :param inside: further keys of ``[directory]``.
    """
    directory, _, _ = lab.toml().partition("[kerberos]")
    return CONFIG.format(lab=lab, more=more, directory=directory, inside=inside, integrated="")


def integrated(lab: DirectoryLab, more: str = "", inside: str = "", own: str | None = None) -> str:
    """A relayd.toml, for passwords, Kerberos, and NTLM.

    :param more: tables.
    :param inside: further keys of ``[directory]``.
    :param own: ``[kerberos]`` and ``[ntlm]``, in place of the lab's.
    """
    directory, heading, tables = lab.toml().partition("[kerberos]")
    tables = heading + tables if own is None else own
    return CONFIG.format(lab=lab, more=more, directory=directory, inside=inside, integrated=tables)


@contextlib.contextmanager
def running(
    directory: Path, config: str, prefix: list[str] | None = None, env: dict[str, str] | None = None
) -> Iterator[Relay]:
    relay = Relay(directory, config)
    relay.start(prefix=prefix or [], environment=env)
    try:
        yield relay
        assert relay.stop() == -signal.SIGTERM  # Twisted ends as it was told to
    finally:
        if relay.process is not None and relay.process.poll() is None:
            relay.kill()
    relay.assert_clean()


class Log:
    """The events of a relay from now on."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.seen = len(relay.events)

    def all(self, name: str) -> list[Event]:
        return [event for event in list(self.relay.events)[self.seen :] if event["event"] == name]

    def one(self, name: str) -> Event:
        """The only event of that name; waits for it."""
        self.relay.wait_until(lambda: bool(self.all(name)), f"{name} in the log")
        (event,) = self.all(name)
        return event

    def signed_in(self, mechanism: str, user: str, source: str) -> None:
        """The only one who signed in was `user`, and nobody was refused."""
        event = self.one("authenticated")
        assert (event["mechanism"], event["user"], event["source"]) == (mechanism, user, source)
        assert not self.all("authentication-failed")


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    text: str


def signed_in(lab: DirectoryLab, relay: Relay, name: str, password: str, source: str = "127.0.0.1") -> smtplib.SMTP:
    """A session that authenticated by PLAIN under TLS.

    :param source: the client's address.
    :raises smtplib.SMTPAuthenticationError: refused.
    """
    client = smtplib.SMTP("127.0.0.1", relay.port(), timeout=30, source_address=(source, 0))
    try:
        client.starttls(context=ssl.create_default_context(cafile=str(lab.ca)))
        client.ehlo()
        # smtplib's own login takes no name beyond ASCII.
        token = b64encode(f"\0{name}\0{password}".encode()).decode()
        code, text = client.docmd("AUTH", f"PLAIN {token}")
        if code != 235:
            raise smtplib.SMTPAuthenticationError(code, text)
    except BaseException:
        client.close()
        raise
    return client


def sign_in(lab: DirectoryLab, relay: Relay, name: str, password: str, source: str = "127.0.0.1") -> Answer:
    """What relayd answers to AUTH PLAIN."""
    try:
        signed_in(lab, relay, name, password, source).close()
    except smtplib.SMTPAuthenticationError as refused:
        text = refused.smtp_error
        return Answer(refused.smtp_code, text.decode() if isinstance(text, bytes) else text)
    return Answer(235, "")
