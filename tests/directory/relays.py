"""Relays that are joined to a lab's domain by their password alone, and clients that sign in to them."""

from __future__ import annotations

import smtplib
import ssl
from base64 import b64encode
from dataclasses import dataclass

from tests.lab.directory import DirectoryLab
from tests.lab.relay import Relay

__all__ = ["Answer", "joined", "sign_in", "signed_in"]

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
"""


def joined(lab: DirectoryLab, more: str = "", inside: str = "") -> str:
    """A relayd.toml.

    :param more: tables.
    :param inside: further keys of ``[directory]``.
    """
    return CONFIG.format(lab=lab, more=more, directory=lab.toml().partition("[kerberos]")[0], inside=inside)


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
