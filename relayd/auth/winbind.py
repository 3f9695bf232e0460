"""NTLM judged by winbind: Samba on the relay's host is the domain's member, and ntlm_auth speaks for it.

A helper process (``ntlm_auth --helper-protocol=squid-2.5-ntlmssp``) has one exchange at a time, from NEGOTIATE to
AUTHENTICATE, by lines: ``YR`` and ``KK`` with a message in base64, answered by ``TT`` (the challenge), ``AF`` (whom the
answer is right for), ``NA`` (nobody, with a status) or ``BH`` (the helper is at a loss). ``GK`` then asks for the
session key. Samba checks the MIC itself; with the key relayd checks it too, and what SPNEGO signs.

The user that relayd runs as must be in the group winbindd_priv: winbind judges for nobody else. What it answers has no
SIDs: groups and addresses are those of the directory, which is asked for the account that winbind names.
"""

from __future__ import annotations

import binascii
import os
import shutil
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final, cast

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from relayd.auth.ntlm import NtlmAccount, NtlmExchange, NtlmRefused
from relayd.auth.ntlm_messages import insist_on_negotiate
from relayd.directory import Unavailable
from relayd.model import AUTH_BUSY, Fault, Reply

__all__ = ["NTLM_AUTH", "WinbindBackend", "winbind_missing"]

NTLM_AUTH: Final = ("ntlm_auth", "--helper-protocol=squid-2.5-ntlmssp")
#: Helpers at once, which is exchanges at once.
HELPERS: Final = 32
#: Seconds for one line of a helper: winbind itself waits for its controllers.
TIMEOUT: Final = 20.0
#: Seconds that a client has for its answer, before the helper is needed elsewhere.
PATIENCE: Final = 30.0
#: Octets of the longest line of a helper.
LINE: Final = 64 * 1024
#: Octets of what a helper complains about that are kept for the log.
COMPLAINT: Final = 400

_MALFORMED = Reply.of(501, "5.5.2", "Malformed response")

#: Statuses that speak of the account (MS-ERREF 2.3.1); True: of its password, which the directory counts. Any other
#: says that winbind or a controller cannot tell.
_REFUSALS: Final = MappingProxyType(
    {
        "NT_STATUS_LOGON_FAILURE": True,
        "NT_STATUS_WRONG_PASSWORD": True,
        "NT_STATUS_NO_SUCH_USER": True,
        "NT_STATUS_ACCOUNT_DISABLED": False,
        "NT_STATUS_ACCOUNT_EXPIRED": False,
        "NT_STATUS_ACCOUNT_LOCKED_OUT": False,
        "NT_STATUS_ACCOUNT_RESTRICTION": False,
        "NT_STATUS_AUTHENTICATION_FIREWALL_FAILED": False,
        "NT_STATUS_INVALID_ACCOUNT_NAME": False,
        "NT_STATUS_INVALID_LOGON_HOURS": False,
        "NT_STATUS_INVALID_WORKSTATION": False,
        "NT_STATUS_LOGON_NOT_GRANTED": False,
        "NT_STATUS_LOGON_TYPE_NOT_GRANTED": False,
        "NT_STATUS_NOT_FOUND": True,  # of Samba's controller (4.17): the name was a UPN, the password is wrong
        "NT_STATUS_NTLM_BLOCKED": False,
        "NT_STATUS_PASSWORD_EXPIRED": False,
        "NT_STATUS_PASSWORD_MUST_CHANGE": False,
        "NT_STATUS_PASSWORD_RESTRICTION": False,
    }
)


def winbind_missing() -> str:
    """What this host lacks for the backend winbind; empty: nothing."""
    return "" if shutil.which(NTLM_AUTH[0]) else "ntlm_auth is not installed: apt-get install winbind"


class _Ended(Exception):
    """The helper is gone; the text says why."""


class _Helper(ProcessProtocol):
    """One ntlm_auth: takes a line, answers with a line."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._buffer = b""
        self._complaint = b""
        self._answer: Deferred[bytes] | None = None
        self._timeout: IDelayedCall | None = None
        self.ended: Deferred[None] = Deferred()
        self.alive = True
        self.used = False

    def ask(self, line: bytes) -> Deferred[bytes]:
        """The line that answers *line*.

        The Deferred fails with :class:`_Ended` when the helper ends, or takes too long and is ended.
        """
        self.used = True
        answer: Deferred[bytes] = Deferred(lambda _: self.kill("nobody waits for it any more"))
        if not self.alive:
            answer.errback(_Ended("ntlm_auth had ended"))
            return answer
        self._answer = answer
        self._timeout = self._reactor.callLater(TIMEOUT, self.kill, f"no answer of ntlm_auth in {TIMEOUT:g} s")
        cast(Any, self.transport).write(line + b"\n")
        return answer

    def outReceived(self, data: bytes) -> None:
        self._buffer += data
        line, end, rest = self._buffer.partition(b"\n")
        if end and not rest and self._answer is not None:
            self._buffer = b""
            self._settle(line)
        elif end or len(self._buffer) > LINE:
            self.kill("ntlm_auth said what nobody asked")

    def errReceived(self, data: bytes) -> None:
        self._complaint = (self._complaint + data)[-COMPLAINT:]

    def processEnded(self, reason: Failure) -> None:
        why = " ".join(self._complaint.decode("utf-8", "replace").split())
        self._lose(f"ntlm_auth ended: {why or reason.getErrorMessage()}")
        self.ended.callback(None)

    def kill(self, why: str) -> None:
        """Ends it at once."""
        if self.alive:
            self._lose(why)
            with suppress(ProcessExitedAlready):
                cast(Any, self.transport).signalProcess("KILL")

    def _lose(self, why: str) -> None:
        self.alive = False
        self._settle(Failure(_Ended(why)))

    def _settle(self, result: bytes | Failure) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()
        answer.callback(result)


class WinbindBackend:
    """Judges answers by ntlm_auth helpers, which are started when they are needed, and used again.

    A helper is held from challenge to answer, for at most :data:`PATIENCE`. When all are held, the client that has kept
    its helper waiting the longest loses it: otherwise a few that never answer would keep out everybody. Only when all
    are asking winbind, 454 4.7.0.

    :param command: ntlm_auth and its arguments.
    :param helpers: at once.
    """

    name = "winbind"

    def __init__(self, reactor: Any, command: Sequence[str] = NTLM_AUTH, helpers: int = HELPERS) -> None:
        self._reactor = reactor
        self._command = command
        self._most = helpers
        self._idle: list[_Helper] = []
        self._all: set[_Helper] = set()
        self._unanswered: dict[_Exchange, None] = {}  # the oldest first
        self._closed = False

    async def begin(self, negotiate: bytes) -> NtlmExchange:
        insist_on_negotiate(negotiate)
        helper, answer = await self._asked(b"YR " + b64encode(negotiate))
        kind, _, text = answer.partition(b" ")
        if kind == b"TT" and (challenge := _decoded(text)):
            exchange = _Exchange(self, self._reactor, helper, negotiate, challenge)
            self._unanswered[exchange] = None
            return exchange
        if kind == b"NA":
            self.give_back(helper)
            raise Fault(_MALFORMED, f"winbind takes no such NEGOTIATE message: {_shown(text)}")
        helper.kill("at a loss")
        raise Unavailable(f"winbind: {_shown(answer)}")

    async def _asked(self, line: bytes) -> tuple[_Helper, bytes]:
        """A helper that is free, and its answer to *line*."""
        helper = self._take()
        waited = helper.used
        try:
            return helper, await helper.ask(line)
        except _Ended as ended:
            if not waited:
                raise Unavailable(f"winbind: {ended}") from None
        # One that had waited may be gone for no reason of its own; a new one may do.
        helper = self._start()
        try:
            return helper, await helper.ask(line)
        except _Ended as ended:
            raise Unavailable(f"winbind: {ended}") from None

    def close(self) -> Deferred[Any]:
        """Ends all helpers; fires when they have ended."""
        self._closed = True
        helpers = tuple(self._all)
        ended = [helper.ended for helper in helpers]
        for helper in helpers:
            helper.kill("relayd ends")
        return gatherResults(ended)

    def _take(self) -> _Helper:
        while True:
            while self._idle:
                helper = self._idle.pop()
                if helper.alive:
                    return helper
            if len(self._all) < self._most or not self._unanswered:
                return self._start()
            next(iter(self._unanswered)).evict()

    def _start(self) -> _Helper:
        if self._closed:
            raise Unavailable("winbind: closed")
        if len(self._all) >= self._most:
            raise Fault(AUTH_BUSY, f"winbind: {self._most} exchanges are under way")
        helper = _Helper(self._reactor)
        path = {"PATH": os.environ.get("PATH", os.defpath)}
        try:
            self._reactor.spawnProcess(helper, self._command[0], self._command, env=path)
        except OSError as error:
            raise Unavailable(f"winbind: ntlm_auth cannot be started: {error.strerror}") from None
        self._all.add(helper)
        helper.ended.addCallback(lambda _: self._all.discard(helper))
        return helper

    def answered(self, exchange: _Exchange) -> None:
        """The client of *exchange* keeps nobody waiting any more."""
        self._unanswered.pop(exchange, None)

    def give_back(self, helper: _Helper) -> None:
        """*helper* is free for another exchange."""
        if helper.alive and not self._closed:
            self._idle.append(helper)


class _Exchange:
    """One exchange, and the helper that it holds."""

    def __init__(
        self, backend: WinbindBackend, reactor: Any, helper: _Helper, negotiate: bytes, challenge: bytes
    ) -> None:
        self.negotiate = negotiate
        self.challenge = challenge
        self._backend = backend
        self._helper: _Helper | None = helper
        self._patience: IDelayedCall = reactor.callLater(PATIENCE, self.abandon)
        self._why = f"the client took more than {PATIENCE:g} s for its answer"
        self._asking = False

    async def verify(self, authenticate: bytes) -> NtlmAccount:
        helper = self._helper
        if helper is None:
            raise Unavailable(f"winbind: {self._why}")
        self._asking = True
        self._backend.answered(self)
        try:
            answer = await helper.ask(b"KK " + b64encode(authenticate))
            kind, _, text = answer.partition(b" ")
            if kind == b"AF" and text:
                return _account(text, await helper.ask(b"GK"))
            if kind == b"NA":
                raise _refusal(_shown(text))
            helper.kill("at a loss")
            # winbind that is away, and winbind that does not speak to this user, look the same from here.
            raise Unavailable(f"winbind: {_shown(answer)} (is it up, and relayd's user in the group winbindd_priv?)")
        except _Ended as ended:
            raise Unavailable(f"winbind: {ended}", asked=1) from None
        finally:
            self._asking = False
            self.abandon()

    def evict(self) -> None:
        """Its helper is needed for others."""
        self._why = "all helpers were held, and this client had kept its own waiting the longest"
        self.abandon()

    def abandon(self) -> None:
        if self._asking:  # its line is still to come; it is given back then
            return
        self._backend.answered(self)
        helper, self._helper = self._helper, None
        if helper is not None:
            if self._patience.active():
                self._patience.cancel()
            self._backend.give_back(helper)


def _account(text: bytes, key: bytes) -> NtlmAccount:
    """Whom ``AF`` names: ``CORP\\alice``, or ``alice`` where winbind leaves out its default domain."""
    domain, separator, name = text.decode("utf-8", "replace").partition("\\")
    kind, _, exported = key.partition(b" ")
    return NtlmAccount(
        name=name if separator else domain,
        domain=domain if separator else "",
        exported_key=_decoded(exported) if kind == b"GK" else b"",
        checked=True,
    )


def _refusal(status: str) -> Exception:
    """What ``NA`` with *status* means."""
    if status == "NT_STATUS_INVALID_PARAMETER":
        return NtlmRefused(f"{status}: no sound answer, or a wrong MIC")
    wrong_password = _REFUSALS.get(status)
    if wrong_password is None:
        return Unavailable(f"winbind: {status}")
    return NtlmRefused(status, wrong_password=wrong_password)


def _decoded(text: bytes) -> bytes:
    try:
        return binascii.a2b_base64(text.strip(), strict_mode=True)
    except binascii.Error:
        return b""


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "replace").strip()[:COMPLAINT]
