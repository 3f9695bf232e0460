"""What a client offers to prove who it is."""

from __future__ import annotations

from twisted.cred.credentials import IUsernamePassword
from zope.interface import Attribute, implementer

from relayd.model import Client


class IPassword(IUsernamePassword):
    """A name and a password, and where they came from.

    A checker of another project's making sees an ``IUsernamePassword``.
    """

    mechanism = Attribute("The SASL mechanism: PLAIN or LOGIN.")
    client = Attribute("The L{relayd.model.Client} that offers it.")


@implementer(IPassword)
class Password:
    """A name and a password by PLAIN (RFC 4616) or LOGIN (MS-XLOGIN), UTF-8 as the client sent them."""

    __slots__ = ("client", "mechanism", "password", "username")

    def __init__(self, username: bytes, password: bytes, mechanism: str, client: Client) -> None:
        self.username = username
        self.password = password
        self.mechanism = mechanism
        self.client = client

    def checkPassword(self, password: bytes) -> bool:
        return self.password == password

    def __repr__(self) -> str:  # never the password
        return f"<Password of {self.username!r} by {self.mechanism}>"
