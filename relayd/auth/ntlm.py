"""NTLM, the acceptor's side (MS-NLMP): its messages, and who judges an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["NtlmAccount", "NtlmBackend", "NtlmExchange"]


@dataclass(frozen=True, slots=True)
class NtlmAccount:
    """Whom a backend found an answer to be right for.

    :ivar session_key: the session base key (MS-NLMP 3.4.5), 16 octets; empty where the backend keeps it to itself.
    :ivar checked: the backend checked the MIC itself.
    """

    name: str
    domain: str
    sid: str = ""
    group_sids: frozenset[str] = frozenset()
    session_key: bytes = b""
    checked: bool = False


class NtlmExchange(Protocol):
    """One exchange.

    :ivar challenge: the CHALLENGE message for the client (MS-NLMP 2.2.1.2).
    """

    @property
    def challenge(self) -> bytes: ...

    async def verify(self, authenticate: bytes) -> NtlmAccount:
        """Whom the AUTHENTICATE message is right for.

        :raises twisted.cred.error.UnauthorizedLogin: nobody; the text says why, with the status where there is one.
        :raises relayd.model.Fault: 454 4.7.0: nobody can tell.
        """

    def abandon(self) -> None:
        """There will be no answer; it may be called after :meth:`verify` too."""


class NtlmBackend(Protocol):
    """Who judges: the domain's controllers over Netlogon, winbind, or the accounts file.

    :ivar name: ``netlogon``, ``winbind`` or ``accounts``.
    """

    @property
    def name(self) -> str: ...

    async def begin(self, negotiate: bytes) -> NtlmExchange:
        """Starts an exchange by the client's NEGOTIATE message.

        :raises relayd.model.Fault: 501 5.5.2: it is none; 454 4.7.0: the backend is away.
        """
