"""NTLM, the acceptor's side (MS-NLMP): who judges an answer, and what the judge is asked.

:mod:`relayd.auth.ntlm_messages` has the messages, ``ntlm_checker`` the cred checker that all backends stand behind.
A backend that makes the challenge itself (netlogon, accounts) answers ``begin`` with an :class:`AskedExchange`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from twisted.cred.error import UnauthorizedLogin

from relayd.auth.ntlm_messages import Authenticate, parse_authenticate

__all__ = ["AskedExchange", "NtlmAccount", "NtlmBackend", "NtlmExchange", "NtlmRefused"]


class NtlmRefused(UnauthorizedLogin):
    """The answer is not right. The text is for the log, with the status if there is one: ``c000006a wrong password``.

    :ivar wrong_password: the directory counted a wrong password, or may have: the lockout counts it too. Not so for
        the state of an account (disabled, expired, locked, logon hours), nor for what never reached the directory.
    :ivar failures: how many the directory counted, or may have.
    :param unanswered: how often the directory was asked before that, without an answer.
    """

    def __init__(self, reason: str, *, wrong_password: bool = False, unanswered: int = 0) -> None:
        super().__init__(reason)
        self.wrong_password = wrong_password
        self.failures = 1 + unanswered if wrong_password else 0


@dataclass(frozen=True, slots=True)
class NtlmAccount:
    """Whom a backend found an answer to be right for.

    :ivar domain: NetBIOS name; empty for a local account.
    :ivar group_sids: for a local account, the names of its groups.
    :ivar addresses: of a local account.
    :ivar session_key: the session base key (MS-NLMP 3.3.2), 16 octets; empty where the backend keeps it to itself.
    :ivar exported_key: the exported session key, where the backend made that of it.
    :ivar checked: the backend checked the MIC itself.
    """

    name: str
    domain: str
    sid: str = ""
    group_sids: frozenset[str] = frozenset()
    addresses: tuple[str, ...] = ()
    session_key: bytes = field(default=b"", repr=False)
    exported_key: bytes = field(default=b"", repr=False)
    checked: bool = False


class NtlmExchange(Protocol):
    """One exchange.

    :ivar negotiate: the client's NEGOTIATE message, as it came.
    :ivar challenge: the CHALLENGE message for the client (MS-NLMP 2.2.1.2).
    """

    @property
    def negotiate(self) -> bytes: ...

    @property
    def challenge(self) -> bytes: ...

    async def verify(self, authenticate: bytes) -> NtlmAccount:
        """Whom the AUTHENTICATE message is right for.

        The checker has refused what is anonymous or not NTLMv2 before it asks, and checks the MIC afterwards.

        :raises NtlmRefused: nobody; the text says why.
        :raises relayd.model.Fault: 501 5.5.2: it is no such message; 454 4.7.0: nobody can tell (an
            ``Unavailable`` says by its ``asked`` how many answers the directory may have counted as wrong).
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


@dataclass(frozen=True, slots=True)
class AskedExchange:
    """An exchange by a challenge of our own making.

    :ivar challenge: from :func:`relayd.auth.ntlm_messages.make_challenge`.
    :ivar judge: says whom an answer is right for, or raises, as :meth:`NtlmExchange.verify` does.
        ``server_challenge(challenge)`` are the 8 octets that *message.nt* answers.
    """

    negotiate: bytes
    challenge: bytes
    judge: Callable[[Authenticate], Awaitable[NtlmAccount]]

    async def verify(self, authenticate: bytes) -> NtlmAccount:
        return await self.judge(parse_authenticate(authenticate))

    def abandon(self) -> None:
        """Nothing is held."""
