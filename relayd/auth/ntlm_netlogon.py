"""NTLM judged by the domain's controllers, over the secure channel of the relay's machine account."""

from __future__ import annotations

from collections.abc import Callable

from relayd.auth.ntlm import AskedExchange, NtlmAccount, NtlmExchange, NtlmRefused
from relayd.auth.ntlm_messages import Authenticate, Target, make_challenge, server_challenge
from relayd.netlogon import LogonRefused, Netlogon

__all__ = ["NetlogonBackend"]


class NetlogonBackend:
    """Has answers judged by a domain controller (MS-NRPC 3.5.4.5.1).

    :param hostname: who asks: ``relay.corp.example``.
    :param clock: seconds since the epoch; clients put it into their answers.
    """

    name = "netlogon"

    def __init__(self, netlogon: Netlogon, hostname: str, clock: Callable[[], float]) -> None:
        self._netlogon = netlogon
        self._hostname = hostname
        self._clock = clock

    async def begin(self, negotiate: bytes) -> NtlmExchange:
        domain = await self._netlogon.domain()
        # A controller holds the computer in a client's answer against the account that passes it on (CVE-2015-0005).
        target = Target(
            computer=self._netlogon.account.removesuffix("$").upper(),
            domain=domain.netbios,
            dns_computer=self._hostname,
            dns_domain=domain.dns,
        )
        challenge = make_challenge(negotiate, target, self._clock())

        async def judge(message: Authenticate) -> NtlmAccount:
            return await self._judge(message, server_challenge(challenge))

        return AskedExchange(negotiate, challenge, judge)

    async def _judge(self, message: Authenticate, asked: bytes) -> NtlmAccount:
        try:
            logon = await self._netlogon.logon(
                message.user, message.domain, message.workstation, asked, message.nt, message.lm
            )
        except LogonRefused as refused:
            text, wrong = str(refused), refused.wrong_password
            raise NtlmRefused(text, wrong_password=wrong, unanswered=refused.unanswered) from None
        return NtlmAccount(
            name=logon.name,
            domain=logon.domain,
            sid=logon.sid,
            group_sids=logon.group_sids,
            session_key=logon.session_key,
        )
