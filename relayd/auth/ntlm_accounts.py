"""NTLM against the accounts file: for hosts without a domain."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable

from spnego._ntlm_raw.crypto import hmac_md5, ntowfv2

from relayd.auth.accounts import AccountsFile, AccountsFileError
from relayd.auth.ntlm import AskedExchange, NtlmAccount, NtlmExchange, NtlmRefused
from relayd.auth.ntlm_messages import Authenticate, Target, make_challenge, server_challenge
from relayd.model import AUTH_UNAVAILABLE, Fault

__all__ = ["AccountsBackend"]

#: The longest NetBIOS name of a computer (MS-NBTE 2.2.1).
_NETBIOS = 15


class AccountsBackend:
    """Judges answers by the NT hashes in the accounts file (MS-NLMP 3.3.2).

    Any domain will do: local accounts belong to none, and clients put in what they please.

    :param hostname: who asks: ``relay.example``.
    :param clock: seconds since the epoch; clients put it into their answers.
    """

    name = "accounts"

    def __init__(self, accounts: AccountsFile, hostname: str, clock: Callable[[], float]) -> None:
        self._accounts = accounts
        self._target = Target(computer=hostname.partition(".")[0].upper()[:_NETBIOS], dns_computer=hostname)
        self._clock = clock
        # Asked in place of an account that does not exist.
        self._nobody = os.urandom(16)

    async def begin(self, negotiate: bytes) -> NtlmExchange:
        challenge = make_challenge(negotiate, self._target, self._clock())

        async def judge(message: Authenticate) -> NtlmAccount:
            return self._judge(message, server_challenge(challenge))

        return AskedExchange(negotiate, challenge, judge)

    def _judge(self, message: Authenticate, asked: bytes) -> NtlmAccount:
        try:
            account = self._accounts.find(message.user)
        except AccountsFileError as error:
            raise Fault(AUTH_UNAVAILABLE, str(error)) from None
        if account is not None and not account.nt:
            raise NtlmRefused(
                f"{account.name} has no NT hash: `relayctl account add` writes one for the backend accounts"
            )
        hashed = bytes.fromhex(account.nt) if account is not None else self._nobody
        proof, answered = message.nt[:16], message.nt[16:]
        # Some clients leave the domain out of what they compute (MS-NLMP 3.2.5.1.2).
        for domain in dict.fromkeys((message.domain, "")):
            key = ntowfv2(message.user, hashed, domain)
            if hmac.compare_digest(proof, hmac_md5(key, asked + answered)) and account is not None:
                return NtlmAccount(
                    name=account.name,
                    domain="",
                    group_sids=frozenset(account.groups),
                    addresses=account.addresses,
                    session_key=hmac_md5(key, proof),
                )
        raise NtlmRefused("unknown account or wrong password", wrong_password=True)
