"""What a client offers to prove who it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from twisted.cred.credentials import ICredentials, IUsernamePassword
from zope.interface import Attribute, implementer

from relayd.auth.pac import Pac
from relayd.model import Client

if TYPE_CHECKING:
    from relayd.auth.ntlm import NtlmExchange


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


class IKerberosIdentity(ICredentials):
    """Who a Kerberos ticket names; the security context that proved it is established."""


@implementer(IKerberosIdentity)
@dataclass(frozen=True, slots=True)
class KerberosIdentity:
    """An initiator that Kerberos authenticated (RFC 4121).

    :ivar principal: ``alice@CORP.EXAMPLE``.
    :ivar pac: what the ticket says of the account, under the KDC's signature; None: it has no PAC.
    :ivar mechanism: the SASL mechanism: GSSAPI or GSS-SPNEGO.
    """

    principal: str
    pac: Pac | None
    mechanism: str
    client: Client


class INtlmResponse(ICredentials):
    """An answer to an NTLM challenge."""


@implementer(INtlmResponse)
@dataclass(frozen=True, slots=True)
class NtlmResponse:
    """An NTLM AUTHENTICATE message (MS-NLMP 2.2.1.3), and the exchange that it ends.

    :ivar mechanism: the SASL mechanism: NTLM, GSSAPI or GSS-SPNEGO.
    :ivar mech_list: in SPNEGO, the DER of the client's mechanism list, which *mech_list_mic* signs (RFC 4178 5);
        both empty outside of SPNEGO, or where the client sent no MIC.
    :ivar list_in_doubt: NTLM was not the first on that list, so it takes the MIC to know that nobody struck a better
        mechanism off it; else the MIC is an extra (RFC 4178 5).
    """

    exchange: NtlmExchange
    authenticate: bytes = field(repr=False)  # passwords can be guessed by it
    mechanism: str
    client: Client
    mech_list: bytes = b""
    mech_list_mic: bytes = b""
    list_in_doubt: bool = True


class IClientCertificate(ICredentials):
    """A client certificate that TLS verified."""


@implementer(IClientCertificate)
@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """AUTH EXTERNAL (RFC 4422 appendix A): the certificate in ``client.tls.certificate`` says who it is.

    :ivar authorise: the authorisation identity that the client asks for; empty: the certificate's own.
    """

    authorise: str
    client: Client
