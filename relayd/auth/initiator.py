"""The other side of AUTH: a client that has a name and a password, for ``relayctl auth test``."""

from __future__ import annotations

from typing import Any, Final

from twisted.cred.error import UnauthorizedLogin

from relayd.directory import Directory
from relayd.model import AUTH_UNAVAILABLE, Fault

__all__ = ["PasswordInitiator", "account_of"]

#: What pyspnego calls the protocol that a SASL mechanism speaks here.
_PROTOCOLS: Final = {"GSSAPI": "kerberos", "GSS-SPNEGO": "negotiate", "NTLM": "ntlm"}


#: MIT's error table of Kerberos: a code is this and a number of RFC 4120 7.5.9.
_KRB5_TABLE: Final = -1765328384
#: KDC_ERR_NAME_EXP, C_PRINCIPAL_UNKNOWN, CLIENT_REVOKED, KEY_EXPIRED, PREAUTH_FAILED: what a KDC says of the account.
_REFUSALS: Final = frozenset({1, 6, 18, 23, 24})
_SERVICE_UNKNOWN: Final = 7


async def account_of(directory: Directory | None, user: str, mechanism: str, default_domain: str = "") -> str:
    """*user* as a Windows client would name it: ``alice@CORP.EXAMPLE`` to Kerberos, ``CORP\\alice`` to NTLM.

    A name that is not in the directory, or cannot be looked up, stays as it was typed.
    """
    if directory is None or mechanism not in _PROTOCOLS:
        return user
    try:
        found = await directory.find(user, default_domain)
        domain = await directory.domain()
    except Fault:
        return user
    if found is None or not found.name:
        return user
    return f"{domain.netbios}\\{found.name}" if mechanism == "NTLM" else f"{found.name}@{domain.dns.upper()}"


class PasswordInitiator:
    """Answers the challenges of one exchange, in a thread: Kerberos asks a KDC.

    :param hostname: whose service ``smtp/`` is asked for.
    :param binding: the channel to bind to; empty: to none.
    """

    def __init__(self, mechanism: str, user: str, password: str, hostname: str, binding: bytes = b"") -> None:
        self._mechanism = mechanism
        self._user = user
        self._password = password
        self._hostname = hostname
        self._binding = binding
        self._context: Any = None
        self._named = False

    def step(self, challenge: bytes) -> bytes:
        """The response to *challenge*, which is empty at first.

        :raises UnauthorizedLogin: the KDC refuses the account or its password; no client comes as far as AUTH then.
        :raises Fault: 454: no response can be made: the KDC is away, for one.
        """
        if self._mechanism == "PLAIN":
            return f"\0{self._user}\0{self._password}".encode()
        if self._mechanism == "LOGIN":
            named, self._named = self._named, True
            return (self._password if named else self._user).encode()
        try:
            return self._integrated(challenge)
        except Exception as error:  # of pyspnego, gssapi or krb5: each has its own
            number, reason = _kerberos_error(error)
            if number in _REFUSALS:
                raise UnauthorizedLogin(f"the client gets no ticket: {reason}") from None
            if number == _SERVICE_UNKNOWN:
                reason += (
                    f": neither smtp/{self._hostname} nor, unless krb5.conf has rdns = false, what reverse DNS calls it"
                )
            raise Fault(AUTH_UNAVAILABLE, f"the client's side of {self._mechanism}: {reason}") from None

    def _integrated(self, challenge: bytes) -> bytes:
        if self._context is None:
            self._context = self._client()
        context = self._context
        if not context.complete:
            return bytes(context.step(challenge or None) or b"")
        offer = context.unwrap(challenge).data
        if len(offer) != 4 or not offer[0] & 1:
            raise ValueError("no security layer to go without")
        return bytes(context.wrap(b"\1\0\0\0", encrypt=False).data)  # RFC 4752 3.1

    def _client(self) -> Any:
        import spnego
        from spnego.channel_bindings import GssChannelBindings

        wanted = spnego.ContextReq.mutual_auth
        # Integrity is to wrap the answer of RFC 4752. In GSS-SPNEGO it would ask for a layer, and MIT asks by itself.
        wanted |= spnego.ContextReq.integrity if self._mechanism == "GSSAPI" else spnego.ContextReq.no_integrity
        return spnego.client(
            self._user,
            self._password,
            hostname=self._hostname,
            service="smtp",
            channel_bindings=GssChannelBindings(application_data=self._binding) if self._binding else None,
            protocol=_PROTOCOLS[self._mechanism],
            context_req=wanted,
        )


def _kerberos_error(error: Exception) -> tuple[int, str]:
    """The number in RFC 4120 7.5.9 (0: it is none of those), and the text for the log."""
    code, text = getattr(error, "err_code", 0), str(error)
    base = getattr(error, "base_error", None)  # what pyspnego wraps
    if (minor := getattr(base, "min_code", 0)) and base is not None:
        code = minor - (1 << 32) if minor >> 31 else minor
        text = "; ".join(base.get_all_statuses(minor, False)) or text
    number = code - _KRB5_TABLE if isinstance(code, int) and 0 < code - _KRB5_TABLE < 128 else 0
    return number, " ".join(text.removesuffix(f" {code}").split())[:500] or type(error).__name__
