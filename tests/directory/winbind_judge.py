"""Has the backend winbind judge answers: a program, since ntlm_auth must find its winbindd where it always is.

It takes one JSON object a line, and answers each with one: ``{"client": "spnego", "user": …, "password": …}``
-> ``{"principal": {…}}``, ``{"refused": REASON, "counted": …}`` or ``{"reply": …, "detail": …}``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from twisted.cred.error import UnauthorizedLogin
from twisted.internet import reactor, stdio
from twisted.internet.defer import Deferred
from twisted.protocols.basic import LineOnlyReceiver

from relayd import settings
from relayd.auth import AccountLockout
from relayd.auth.credentials import NtlmResponse
from relayd.auth.ntlm_checker import NtlmChecker
from relayd.auth.ntlm_messages import parse_authenticate
from relayd.auth.winbind import WinbindBackend
from relayd.directory import Directory
from relayd.events import Events
from relayd.model import Client, Fault, Peer, client_address
from relayd.resolver import Resolver
from tests.lab import domain
from tests.unit.auth.ntlm_client import PlainClient, Spnego

LIST = bytes.fromhex("300c060a2b06010401823702020a")


class OldClient(Spnego):
    """Speaks NTLMv1."""

    def __init__(self, user: str, password: str) -> None:
        os.environ["LM_COMPAT_LEVEL"] = "2"
        try:
            super().__init__(user, password)
        finally:
            del os.environ["LM_COMPAT_LEVEL"]


CLIENTS = {
    "spnego": Spnego,
    "ntlmv1": OldClient,
    "plain": lambda user, password: PlainClient(user, password, domain.NETBIOS),
}


class Judge:
    """The backend, and the checker before it."""

    def __init__(self, files: Path, address: str) -> None:
        directory = settings.Directory(
            domain=domain.DOMAIN,
            netbios=domain.NETBIOS,
            ca=files / "ca" / "ca.pem",
            bind_user=f"svc-search@{domain.DOMAIN}",
            bind_password_file=files / "svc-search.secret",
            cache=0.0,
        )
        self.resolver = Resolver((address,), reactor=reactor)  # type: ignore[arg-type]
        self.directory = Directory(directory, self.resolver, reactor, Events())
        self.backend = WinbindBackend(reactor)
        lockout = AccountLockout(time.monotonic)
        own = settings.Lockout(auto=False, failures=1000, seconds=60.0)
        self.checker = NtlmChecker(self.directory, lockout, own, lambda _: "accept", self.directory.named_groups)
        self.alone = NtlmChecker(None, lockout, own, lambda _: "accept")

    async def close(self) -> None:
        await self.backend.close()
        await self.directory.close()
        await self.resolver.close()

    async def judge(self, case: dict[str, Any]) -> dict[str, Any]:
        try:
            principal = await self._login(case)
        except UnauthorizedLogin as refused:
            return {"refused": str(refused), "counted": getattr(refused, "wrong_password", False)}
        except Fault as fault:
            return {"reply": str(fault.reply), "detail": fault.detail}
        values = dataclasses.asdict(principal)
        return {"principal": values | {"groups": sorted(principal.groups)}}

    async def _login(self, case: dict[str, Any]) -> Any:
        client: Any = CLIENTS[case["client"]](case["user"], case["password"])
        exchange = await self.backend.begin(client.negotiate)
        answer = client.answer(exchange.challenge)
        if case.get("tamper"):
            mic = parse_authenticate(answer).mic
            answer = answer.replace(mic, bytes([mic[0] ^ 1]) + mic[1:])
        more = {}
        if (signed := case.get("list")) is not None:
            more = {"mech_list": LIST, "mech_list_mic": client.signature(LIST + signed.encode())}
        who = Client(Peer(client_address("192.0.2.7")), "smtp")
        checker = self.checker if case.get("directory", True) else self.alone
        return await checker.requestAvatarId(NtlmResponse(exchange, answer, "NTLM", who, **more))


class Lines(LineOnlyReceiver):
    """One case a line."""

    delimiter = b"\n"

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def lineReceived(self, line: bytes) -> None:
        judged = Deferred.fromCoroutine(self._judge.judge(json.loads(line)))
        judged.addErrback(lambda failure: {"error": failure.getTraceback()})
        judged.addCallback(lambda answer: self.sendLine(json.dumps(answer).encode()))

    def connectionLost(self, reason: Any = None) -> None:
        Deferred.fromCoroutine(self._judge.close()).addBoth(lambda _: reactor.stop())  # type: ignore[attr-defined]


if __name__ == "__main__":
    stdio.StandardIO(Lines(Judge(Path(sys.argv[1]), sys.argv[2])))
    reactor.run()  # type: ignore[attr-defined]
