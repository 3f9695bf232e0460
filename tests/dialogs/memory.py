"""Dialogs over a transport in memory, with a clock that only they move."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail

from relayd.model import Fault, Names, Reply
from relayd.settings import TlsMode, TlsSettings
from relayd.smtpd import server_tls
from tests.dialogs.dialog import BadDialog, Dialog
from tests.unit.smtpd.fakes import FakePolicy, FakeRealm, refused
from tests.unit.smtpd.integrated_fakes import INTEGRATED, FakeBackend, IdentityChecker, integrated
from tests.unit.smtpd.talk import Talk


@functools.cache
def certificate() -> Any:
    """The server side of TLS, made once a run."""
    with tempfile.TemporaryDirectory() as directory:
        return server_tls(TlsSettings(), Path(directory), "relay.example")


class MemoryChannel:
    """A session as *dialog* wants it, and both ends of its connection."""

    def __init__(self, dialog: Dialog) -> None:
        self._held: list[tuple[Deferred[Any], Any]] = []
        self._names: Names | None = None
        self._gone = False
        self.policy, self.realm = FakePolicy(), FakeRealm()
        self.backend = FakeBackend()
        options: dict[str, Any] = {}
        for key, value in dialog.given:
            self._given(key, value, options)
        self.talk = Talk(policy=self.policy, realm=self.realm, **options)

    def _given(self, key: str, value: str, options: dict[str, Any]) -> None:
        policy, realm = self.policy, self.realm
        match key:
            case "legacy":
                policy.legacy_clients = True
            case "tls" | "implicit":
                options |= {
                    "tls": certificate(),
                    "mode": TlsMode.IMPLICIT if key == "implicit" else TlsMode.STARTTLS,
                }
            case "require-tls":
                policy.require_tls = True
            case "basic-under-tls":
                policy.auth_in_the_clear = False
            case "limit":
                name, _, number = value.partition("=")
                options[name] = int(number)
            case "failures":
                options["max_failures"] = int(value)
            case "greeting":
                policy.greeting = refused(*_reply(value))
            case "integrated":
                policy.offered = INTEGRATED
                ntlm = None if value == "kerberos" else self.backend
                options |= {"mechanisms": integrated(ntlm), "checkers": (IdentityChecker(),)}
            case "finish":
                code, enhanced, text = _reply(value)
                realm.on_finish = lambda message: fail(Fault(Reply.of(code, enhanced, text)))
            case "hold":
                self._hold(value)
            case "names" | "slow-names":
                policy.by_name = True
                self._names = Names(failed=key == "slow-names")
            case _:
                raise BadDialog(f"{key} {value}")

    def _hold(self, what: str) -> None:
        realm, name = self.realm, f"on_{what}"
        answer = getattr(realm, name)

        def held(*arguments: Any) -> Deferred[Any]:
            later: Deferred[Any] = Deferred()
            self._held.append((later, functools.partial(answer, *arguments)))
            return later

        setattr(realm, name, held)

    # Channel.

    def send(self, octets: bytes) -> None:
        self._said += self.talk.send(octets)

    _said = b""

    def quiet(self) -> bytes:
        said, self._said = self._said + self.talk.read(), b""
        return said

    read = quiet

    def start_tls(self) -> None:
        self.talk.start_tls()

    def closed(self, expected: bool) -> bool:
        return self.talk.closed

    def hang_up(self) -> None:
        self._gone = True
        self.talk.hang_up()

    def wait(self, seconds: float) -> None:
        self.talk.clock.advance(seconds)

    def release(self) -> None:
        if self._names is not None:
            self.talk.resolver.asked.pop(0).callback(self._names)
            return
        later, answer = self._held.pop(0)
        try:
            result = answer()
        except Fault as fault:
            later.errback(fault)
        else:
            if isinstance(result, Deferred):
                result.chainDeferred(later)
            else:
                later.callback(result)

    def stored(self) -> bytes | None:
        states = [message.state for message in self.realm.messages]
        assert "open" not in states, "a message is neither finished nor abandoned"
        finished = [message for message in self.realm.messages if message.state == "finished"]
        return finished[-1].content if finished else None


def _reply(text: str) -> tuple[int, str, str]:
    code, enhanced, rest = text.split(" ", 2)
    return int(code), enhanced, rest
