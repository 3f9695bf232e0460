"""Access tokens for next hops: OAuth 2.0 client credentials (RFC 6749 4.4), as Exchange Online wants them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlencode

from twisted.internet.defer import Deferred

from relayd.delivery.https import Answer, HttpsFault
from relayd.delivery.outflow import InThread
from relayd.events import Events, TokenRefused
from relayd.model import Fault
from relayd.settings import Credential

#: A token is renewed so many seconds before it ends; a short one, after so much of its time.
MARGIN, SHARE = 300.0, 0.8
#: What a token is thought to last that does not say so (RFC 6749 5.1 leaves it open), in seconds.
UNSAID: Final = 300.0
#: How long a token server that gave none is left alone, in seconds.
REST: Final = 15.0
#: Octets of a server's words that go to the log.
WORDS: Final = 300


class NoToken(Exception):
    """There is no token for now. The text says why."""


class Asks(Protocol):
    """What is needed of :class:`relayd.delivery.https.Https`."""

    async def fetch(self, method: str, url: str, *, headers: Any = ..., body: bytes = ...) -> Answer: ...


@dataclass(slots=True)
class _Kept:
    token: str = ""
    until: float = 0.0
    why_not: str = ""
    waiting: list[Deferred[str]] | None = None  # those who wait for the answer that is on its way


class Tokens:
    """The tokens of all credentials. Each is asked for once, and used until shortly before it ends.

    :param in_thread: where files are read.
    """

    def __init__(self, https: Asks, in_thread: InThread, events: Events, clock: Callable[[], float]) -> None:
        self._https = https
        self._in_thread = in_thread
        self._events = events
        self._clock = clock
        self._kept: dict[str, _Kept] = {}

    async def token(self, credential: Credential) -> str:
        """A token that holds.

        :raises NoToken: the token server does not answer, or refuses.
        """
        kept = self._kept.setdefault(credential.name, _Kept())
        if self._clock() < kept.until:
            if kept.why_not:
                raise NoToken(kept.why_not)
            return kept.token
        answer: Deferred[str] = Deferred()
        if kept.waiting is not None:
            kept.waiting.append(answer)
        else:
            kept.waiting = [answer]
            Deferred.fromCoroutine(self._renew(credential, kept))
        return await answer

    def refused(self, credential: Credential, token: str) -> None:
        """A next hop does not take *token*: the next one is a new one."""
        kept = self._kept.get(credential.name)
        if kept is not None and kept.token == token:
            kept.token, kept.until = "", 0.0

    async def _renew(self, credential: Credential, kept: _Kept) -> None:
        now = self._clock()
        try:
            token, seconds = await self._ask(credential)
        except Exception as error:
            text = str(error) if isinstance(error, NoToken) else f"token server: {type(error).__name__}"
            kept.token, kept.why_not, kept.until = "", text, now + REST
            self._events.emit(TokenRefused(credential=credential.name, reason=text))
        else:
            kept.token, kept.why_not = token, ""
            kept.until = now + max(seconds - MARGIN, seconds * SHARE)
        waiting, kept.waiting = kept.waiting or [], None
        for answer in waiting:
            if kept.why_not:
                answer.errback(NoToken(kept.why_not))
            else:
                answer.callback(kept.token)

    async def _ask(self, credential: Credential) -> tuple[str, float]:
        """A new token, and for how many seconds it holds."""
        file = credential.client_secret_file
        assert file is not None
        try:
            secret = (await self._in_thread(file.read_bytes)).decode().strip("\r\n")
        except (OSError, Fault, ValueError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise NoToken(f"{file} cannot be read: {why}") from None
        form = {
            "grant_type": "client_credentials",
            "client_id": credential.client_id,
            "client_secret": secret,
            "scope": credential.scope,
        }
        try:
            answer = await self._https.fetch(
                "POST",
                credential.token_url,
                headers={"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"},
                body=urlencode(form).encode(),
            )
        except HttpsFault as fault:
            raise NoToken(f"token server: {fault}") from None
        return _read(answer, secret)


def _read(answer: Answer, secret: str) -> tuple[str, float]:
    """RFC 6749 5.1 and 5.2."""
    try:
        found = json.loads(answer.octets)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise NoToken(f"token server: {answer.code} without JSON")
    if answer.code != 200 or "error" in found:
        words = " ".join(str(found.get(key, "")) for key in ("error", "error_description"))
        words = "".join(c if c.isprintable() else " " for c in words).replace(secret, "…").strip()
        raise NoToken(f"token server: {answer.code} {words[:WORDS]}".rstrip())
    token, kind = found.get("access_token"), found.get("token_type", "Bearer")
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable() or " " in token:
        raise NoToken("token server: 200 without a usable access_token")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise NoToken("token server: its token is no bearer token")
    try:
        seconds = float(found.get("expires_in", UNSAID))
    except (TypeError, ValueError):
        seconds = UNSAID
    return token, seconds if 0 < seconds < 1e9 else UNSAID
