"""Integrated authentication on the wire of a real relayd: what no client sends on purpose, and what is bound to TLS."""

from __future__ import annotations

import base64
import hashlib
import random
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import spnego
from spnego.channel_bindings import GssChannelBindings

from tests.directory.exchanges import spoiled
from tests.directory.relays import Log, integrated, running
from tests.lab import clients
from tests.lab.clients import Place, Ran
from tests.lab.directory import DirectoryLab
from tests.lab.integrated_clients import RELAY, gsasl, inside, smtptest, windows
from tests.lab.raw import Raw
from tests.lab.relay import Relay
from tests.lab.tickets import edited, edited_pac, with_groups
from tests.lab.wiretap import Wiretap

SETTINGS = """\
[authentication]
anonymous = false
lockout = "1000 in 1m"
max_failures = 100

[[listener]]
name = "bound"
address = "127.0.0.1"
port = 0
channel_binding = "require"

[[listener]]
name = "loose"
address = "127.0.0.1"
port = 0
channel_binding = "ignore"
"""


@pytest.fixture(scope="module")
def relay(lab: DirectoryLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with running(tmp_path_factory.mktemp("relay"), integrated(lab, SETTINGS)) as relay:
        yield relay


@pytest.fixture
def log(relay: Relay) -> Log:
    return Log(relay)


def curl(port: int, place: Place) -> Ran:
    return clients.curl(RELAY, port, auth=("", ""), mechanism="GSSAPI", place=place)


def ntlm(port: int, place: Place, user: tuple[str, str]) -> Ran:
    name, password = user
    return clients.curl(RELAY, port, auth=(f"LAB\\{name}", password), mechanism="NTLM", place=place)


class Tokens:
    """Tokens of an exchange of each mechanism, as real clients sent them."""

    def __init__(self, relay: Relay, alice: Place, nowhere: Place, bob: tuple[str, str]) -> None:
        self.kerberos = self._first(relay, lambda port: curl(port, alice))
        self.spnego = self._first(relay, lambda port: smtptest(port, alice, mechanism="GSS-SPNEGO"))
        self.negotiate = self._first(relay, lambda port: ntlm(port, nowhere, bob))
        self.ntlm_in_spnego = self._first(relay, lambda port: windows(port, nowhere, auth=bob, domain="LAB"))

    @staticmethod
    def _first(relay: Relay, send: Callable[[int], Ran]) -> bytes:
        with Wiretap(relay.port()) as tap:
            send(tap.port).require()
        said = iter(tap.said())
        words = next(line for line in said if line.upper().startswith("AUTH ")).split()
        return base64.b64decode(words[2] if len(words) > 2 else next(said))


@pytest.fixture(scope="module")
def tokens(relay: Relay, alice: Place, nowhere: Place, bob: tuple[str, str]) -> Tokens:
    return Tokens(relay, alice, nowhere, bob)


class TestTokens:
    """What no client sends on purpose."""

    def test_a_replay(self, relay: Relay, tokens: Tokens, log: Log) -> None:
        with Raw(relay.port()) as client:
            client.say(b"EHLO client.example")
            assert client.say(b"AUTH GSSAPI " + base64.b64encode(tokens.kerberos)).startswith(b"535 5.7.8")
        assert log.one("authentication-failed")["reason"].startswith("replay (ticket for smtp/relay.lab.example@")

    def test_a_ticket_of_48_kib(
        self, lab: DirectoryLab, relay: Relay, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KRB5_CONFIG", str(lab.krb5_conf))
        many = edited_pac(lab.keytab, with_groups(6100))
        big = inside(lab, edited(lab.kinit("alice"), lab.keytab, many))
        with Wiretap(relay.port()) as tap:
            gsasl(tap.port, big).require()  # curl takes no token of that length
        token = base64.b64decode(max(tap.said(), key=len).split()[-1])
        assert 48 * 1024 < len(token) < 64 * 1024
        assert log.one("authenticated")["user"] == "alice@lab.example"

    @pytest.mark.parametrize("mechanism", [b"GSSAPI", b"GSS-SPNEGO", b"NTLM"])
    def test_spoiled_ones(self, relay: Relay, tokens: Tokens, mechanism: bytes) -> None:
        assert relay.process is not None
        open_files = Path(f"/proc/{relay.process.pid}/fd")
        dice = random.Random(mechanism)
        valid = (tokens.kerberos, tokens.spnego, tokens.negotiate, tokens.ntlm_in_spnego)

        def answers(count: int) -> set[bytes]:
            seen = set()
            with Raw(relay.port()) as client:
                client.say(b"EHLO client.example")
                for _ in range(count):
                    token = base64.b64encode(spoiled(dice.choice(valid), dice)) or b"="
                    reply = client.say(b"AUTH " + mechanism + b" " + token)
                    for _ in range(3):
                        if not reply.startswith(b"334"):
                            break
                        reply = client.say(base64.b64encode(spoiled(dice.choice(valid), dice)))
                    if reply.startswith(b"334"):
                        reply = client.say(b"*")
                    seen.add(reply)
            return seen

        answers(3)
        before = len(list(open_files.iterdir()))
        # 454: an octet of the name or the version of the key, or of what it encrypted, is for the keytab to answer for.
        assert {reply[:3] for _ in range(40) for reply in answers(5)} <= {b"535", b"501", b"454"}
        relay.wait_until(lambda: len(list(open_files.iterdir())) <= before, "the end of the sessions")
        relay.assert_clean()


class Bound:
    """A client under TLS, whose security context is bound to a channel.

    :param binding: of the channel, as RFC 5929 has it; None: the right one; empty: it binds to none.
    """

    def __init__(self, lab: DirectoryLab, port: int, binding: bytes | None = None) -> None:
        self.raw = Raw(port)
        self.raw.say(b"EHLO client.example")
        self.raw.starttls(ssl.create_default_context(cafile=str(lab.ca)))
        self.offer = self.raw.say(b"EHLO client.example")
        assert isinstance(self.raw.socket, ssl.SSLSocket)
        shown = self.raw.socket.getpeercert(binary_form=True)
        assert shown is not None
        right = b"tls-server-end-point:" + hashlib.sha256(shown).digest()
        binding = right if binding is None else binding
        self.bindings = GssChannelBindings(application_data=binding) if binding else None

    def __enter__(self) -> Bound:
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.close()

    def ntlm(self, user: tuple[str, str]) -> bytes:
        """What NTLM ends with."""
        name, password = user
        own = spnego.NegotiateOptions.use_ntlm
        context = spnego.client(f"LAB\\{name}", password, protocol="ntlm", options=own, channel_bindings=self.bindings)
        return self._exchange(b"NTLM", context)

    def gssapi(self) -> bytes:
        """What Kerberos with this process' tickets ends with."""
        context = spnego.client(hostname=RELAY, service="smtp", protocol="kerberos", channel_bindings=self.bindings)
        return self._exchange(b"GSSAPI", context)

    def _exchange(self, mechanism: bytes, context: Any) -> bytes:
        reply = self.raw.say(b"AUTH " + mechanism + b" " + base64.b64encode(context.step()))
        while reply.startswith(b"334"):
            challenge = base64.b64decode(reply[4:])
            if not context.complete:
                answer = context.step(challenge) or b""
            else:
                assert context.unwrap(challenge).data == b"\1\0\0\0"
                answer = context.wrap(b"\1\0\0\0", encrypt=False).data
            reply = self.raw.say(base64.b64encode(answer))
        return reply


OTHER = b"tls-server-end-point:" + bytes(32)

#: listener, what the client binds to -> the reply.
BINDINGS = [
    ("smtp", None, b"235"),
    ("smtp", b"", b"235"),
    ("smtp", OTHER, b"535"),
    ("bound", None, b"235"),
    ("bound", b"", b"535"),
    ("bound", OTHER, b"535"),
    ("loose", None, b"235"),
    ("loose", b"", b"235"),
    ("loose", OTHER, b"235"),
]


BINDING_NAMES = [
    f"{listener}-{what}" for listener in ("accept", "require", "ignore") for what in ("right", "none", "wrong")
]


class TestChannelBinding:
    @pytest.mark.parametrize(("listener", "binding", "code"), BINDINGS, ids=BINDING_NAMES)
    def test_ntlm(
        self,
        lab: DirectoryLab,
        relay: Relay,
        bob: tuple[str, str],
        listener: str,
        binding: bytes | None,
        code: bytes,
    ) -> None:
        with Bound(lab, relay.port(listener), binding) as client:
            assert client.ntlm(bob).startswith(code)

    @pytest.mark.parametrize(("listener", "binding", "code"), BINDINGS, ids=BINDING_NAMES)
    def test_kerberos(
        self,
        lab: DirectoryLab,
        relay: Relay,
        alice: Place,
        monkeypatch: pytest.MonkeyPatch,
        listener: str,
        binding: bytes | None,
        code: bytes,
    ) -> None:
        for name, value in alice.env.items():
            monkeypatch.setenv(name, value)
        with Bound(lab, relay.port(listener), binding) as client:
            assert client.gssapi().startswith(code)

    def test_what_must_be_bound_is_not_offered_without_tls(self, lab: DirectoryLab, relay: Relay) -> None:
        with Raw(relay.port("bound")) as client:
            assert b"GSSAPI" not in client.say(b"EHLO client.example")
            assert client.say(b"AUTH NTLM").startswith(b"538")
        with Bound(lab, relay.port("bound")) as bound:
            assert b"GSSAPI GSS-SPNEGO NTLM" in bound.offer
