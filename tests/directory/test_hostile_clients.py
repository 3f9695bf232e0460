"""Clients that sign in as no client does: whatever they send, and wherever they stop, a joined relay goes on."""

from __future__ import annotations

import contextlib
import random
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.directory.exchanges import Begun, Exchange, gssapi_kerberos, negotiated_ntlm, ntlm, spoiled
from tests.directory.joined import BY_DIRECTORY, BY_TICKET, MORE_THREADS, RESOLVER, Joined, joined_relay
from tests.directory.relays import Log
from tests.lab.directory import DirectoryLab
from tests.lab.raw import Raw
from tests.lab.tickets import edited, edited_pac, with_groups

#: Tokens for each first step, which cost a client nothing, and for each later one.
FIRST, LATER = 400, 60
#: Sessions at once.
MANY = 200

#: How a client leaves.
LEAVES: dict[str, Callable[[Raw], None]] = {"closes": Raw.close, "resets": Raw.abort, "finishes": Raw.finish}


@pytest.fixture(scope="module")
def only(spoilt: DirectoryLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Joined]:
    with joined_relay(spoilt, tmp_path_factory.mktemp("relay")) as joined:
        yield joined


@pytest.fixture
def joined(only: Joined) -> Iterator[Joined]:
    """The relay, which must be as well after the test as it was before."""
    yield only
    only.well()


@pytest.fixture(scope="module")
def exchanges(only: Joined) -> dict[str, Exchange]:
    """As those of the relay; but who fails with a password is one whom nobody else needs."""
    password = only.lab.users["victim"]
    victims = {"NTLM": ntlm("LAB\\victim", password), "GSSAPI/NTLM": negotiated_ntlm("LAB\\victim", password)}
    return {**only.exchanges, **victims}


@pytest.fixture(scope="module")
def responses(only: Joined, exchanges: dict[str, Exchange]) -> dict[str, list[bytes]]:
    """What a client says in each exchange, as it said it once with success."""
    recorded = {}
    for name, exchange in exchanges.items():
        with only.session(exchange) as raw:
            begun, said = exchange.on(raw, 0), []
            while begun.code == 334:
                said.append(begun.next())
                begun.answer(said[-1])
            assert begun.code == 235, name
            recorded[name] = said
    return recorded


class Garbage:
    """Tokens that are none, made of those that are.

    :param seed: the same makes the same ones.
    """

    def __init__(self, responses: dict[str, list[bytes]], seed: str) -> None:
        self._dice = random.Random(seed)
        self._valid = [token for said in responses.values() for token in said]

    def token(self, like: bytes = b"") -> bytes:
        """One, often made of *like*."""
        dice = self._dice
        valid = like if like and dice.random() < 0.6 else dice.choice(self._valid)
        match dice.randrange(10):
            case 0:
                return dice.randbytes(dice.choice((1, 8, 64, 2000)))
            case 1:
                return valid + dice.randbytes(dice.choice((1, 4, 3000)))
            case 2:
                return valid[: dice.randrange(len(valid) + 1)]
            case 3:
                # The head of one, and the rest of nothing.
                head = valid[: dice.choice((8, 12, 20, 40))]
                return head + dice.randbytes(dice.choice((0, 50, 500)))
            case _:
                return spoiled(valid, dice)


class TestGarbage:
    """No token, at no step, has relayd fail, or let somebody in who is another."""

    @pytest.mark.parametrize("name", ["GSSAPI", "GSSAPI/NTLM", "GSS-SPNEGO", "NTLM", "EXTERNAL"])
    def test_at_every_step(
        self, joined: Joined, exchanges: dict[str, Exchange], responses: dict[str, list[bytes]], name: str
    ) -> None:
        exchange, valid = exchanges[name], responses[name]
        garbage = Garbage(responses, name)
        log = Log(joined.relay)
        codes = set()
        for step in range(len(valid) + 1):
            left = FIRST if step == 0 else LATER
            while left:
                with joined.session(exchange) as raw:
                    while left:
                        left -= 1
                        codes.add(code := self.ended(exchange.on(raw, step), garbage, valid[step : step + 1]))
                        # 421: ten of them were no fault of the client's, as far as relayd could tell.
                        if code in (235, 421):
                            break
        assert codes <= {235, 421, 454, 500, 501, 535}
        assert 535 in codes
        users = {event["user"] for event in log.all("authenticated")}
        assert users <= {"alice@lab.example", "victim@lab.example"}

    @staticmethod
    def ended(begun: Begun, garbage: Garbage, like: list[bytes]) -> int:
        """What an exchange ends with that goes on with garbage."""
        for _ in range(4):
            if begun.code != 334:
                return begun.code
            # Of two empty lines the second counts as .NET's, which has no reply of its own.
            begun.answer(garbage.token(*like) or b"\0")
        return int(begun.raw.say(b"*")[:3]) if begun.code == 334 else begun.code

    @pytest.mark.parametrize("name", ["GSSAPI", "GSS-SPNEGO", "NTLM"])
    def test_lines_that_are_no_base64(self, joined: Joined, name: str) -> None:
        command = b"AUTH " + joined.exchanges[name].mechanism
        with joined.session() as raw:
            assert raw.say(command, b"").startswith(b"501" if name != "NTLM" else b"5")
            for line in (b"====", b"YQ", b"Y Q=", b"\xff\xfe", b"*=", b"A" * 90_001):
                assert raw.say(command).startswith(b"334")
                assert raw.say(line)[:3] in (b"500", b"501"), line
            joined.send(raw)


class TestLeaving:
    @pytest.mark.parametrize("leave", LEAVES)
    def test_at_every_step(self, joined: Joined, responses: dict[str, list[bytes]], leave: str) -> None:
        for name, exchange in joined.exchanges.items():
            for step in range(len(responses[name])):
                for last in ("nothing", "half a line", "a response"):
                    with joined.session(exchange) as raw:
                        begun = exchange.on(raw, step)
                        if last == "a response":
                            begun.send(begun.next())
                        elif last == "half a line":
                            line = begun.line(begun.next())
                            raw.send(line[: len(line) // 2])
                        LEAVES[leave](raw)

    def test_silence_at_every_step(self, only: Joined, responses: dict[str, list[bytes]], tmp_path: Path) -> None:
        joined = only.twin(tmp_path)
        with joined.running(more='[limits]\ncommand_timeout = "1s"\n'), contextlib.ExitStack() as stack:
            joined.send()  # the queue has all its files open from then on
            before = joined.footprint.holds()
            before.update({"thread": MORE_THREADS, **RESOLVER})
            silent = []
            for name, exchange in joined.exchanges.items():
                for step in range(1, len(responses[name])):
                    silent.append(stack.enter_context(joined.session(exchange)))
                    assert exchange.on(silent[-1], step).code == 334
            for raw in silent:
                assert raw.reply().startswith(b"421 4.4.2 ")
                assert raw.rest() == b""
                raw.close()
            joined.footprint.settled(before, "clients that fell silent")


class TestManyAtOnce:
    def test_all_go_on(self, joined: Joined) -> None:
        names = list(joined.exchanges)
        with contextlib.ExitStack() as stack:
            waiting: list[tuple[Raw, Begun]] = []
            for number in range(MANY):
                name = names[number % len(names)]
                raw = stack.enter_context(joined.session(name, f"127.0.0.{2 + number % 5}"))
                waiting.append((raw, joined.exchanges[name].on(raw, 0 if name in BY_DIRECTORY else 1)))
            assert joined.code("GSSAPI") == joined.code("PLAIN") == joined.code("NTLM") == 235
            joined.send()
            for _, begun in waiting:
                if begun.code == 334:
                    begun.send(begun.next())
            for raw, begun in waiting:
                begun.reply = raw.reply()
            late = []
            for raw, begun in waiting:
                while begun.code == 334:
                    begun.answer()
                assert begun.code in (235, 454)
                if begun.code == 454:  # too many at once
                    late.append((raw, begun))
            assert len(late) < MANY / 2
            for raw, begun in late:
                assert begun.exchange.on(raw).code == 235

    def test_all_leave(self, joined: Joined) -> None:
        with contextlib.ExitStack() as stack:
            raws = []
            for number in range(MANY):
                name = ("NTLM", "GSSAPI", "GSS-SPNEGO", "GSSAPI/NTLM")[number % 4]
                raws.append(stack.enter_context(joined.session(name, f"127.0.0.{2 + number % 5}")))
                begun = joined.exchanges[name].on(raws[-1], number % 3 and 1)
                if number % 2:
                    begun.send(begun.next())
            for raw in raws:
                raw.abort()
            joined.send()


MAIL = b"MAIL FROM:<x@lab.example>\r\nRCPT TO:<bob@lab.example>\r\n"


class TestPipelining:
    """What comes behind a response waits for the end of the exchange."""

    def last(self, joined: Joined, name: str, raw: Raw) -> Begun:
        """An exchange of which one response is left."""
        steps = {"PLAIN": 0, "EXTERNAL": 0, "GSSAPI": 2}.get(name, 1)
        return joined.exchanges[name].on(raw, steps)

    @pytest.mark.parametrize("name", ["PLAIN", "LOGIN", "EXTERNAL", "NTLM", "GSSAPI/NTLM", "GSSAPI", "GSS-SPNEGO"])
    def test_commands_behind_the_last_response(self, joined: Joined, name: str) -> None:
        with joined.session(name) as raw:
            begun = self.last(joined, name, raw)
            begun.send(begun.next(), MAIL + b"AUTH PLAIN AA==\r\nRSET\r\n")
            assert raw.codes(5) == [235, 250, 250, 503, 250]
            joined.send(raw)

    @pytest.mark.parametrize("name", ["LOGIN", "NTLM", "GSSAPI/NTLM", "GSSAPI", "GSS-SPNEGO"])
    def test_commands_behind_the_first_one(self, joined: Joined, name: str) -> None:
        """The next line is a response, whatever it looks like."""
        with joined.session(name) as raw:
            begun = joined.exchanges[name].on(raw, 0)
            begun.send(begun.next(), MAIL + b"RSET\r\n")
            assert raw.codes(4) == [334, 501, 503, 250]
            joined.send(raw)
            assert joined.exchanges[name].on(raw).code == 235

    @pytest.mark.parametrize("name", ["NTLM", "GSSAPI", "GSS-SPNEGO", "EXTERNAL"])
    def test_commands_behind_a_bad_one(self, joined: Joined, name: str) -> None:
        with joined.session(name) as raw:
            begun = joined.exchanges[name].on(raw, 0)
            begun.send(b"\x60\x03abc", MAIL + b"RSET\r\n")
            assert raw.codes(4) in ([535, 250, 250, 250], [501, 250, 250, 250])
            assert joined.exchanges[name].on(raw).code == 235


class TestTls:
    def starttls(self, joined: Joined, raw: Raw) -> None:
        raw.starttls(ssl.create_default_context(cafile=str(joined.lab.ca)))
        raw.say(b"EHLO client.example")

    @pytest.mark.parametrize("name", ["NTLM", "GSSAPI/NTLM", "GSSAPI", "GSS-SPNEGO"])
    def test_starttls_in_the_middle(self, joined: Joined, name: str) -> None:
        """Within an exchange it is a response, and good base64; behind it, it is a command."""
        with joined.session() as raw:
            joined.exchanges[name].on(raw, 1)
            assert raw.say(b"STARTTLS")[:3] in (b"501", b"535")
            joined.exchanges[name].on(raw, 1)
            assert raw.say(b"*").startswith(b"501")
            self.starttls(joined, raw)
            assert joined.exchanges[name].on(raw).code == 235
            joined.send(raw)

    def test_starttls_behind_the_last_response(self, joined: Joined) -> None:
        """Who signed in without TLS did so for nothing."""
        with joined.session() as raw:
            begun = joined.exchanges["NTLM"].on(raw, 1)
            begun.send(begun.next(), b"STARTTLS\r\n")
            assert raw.codes(2) == [235, 220]
            context = ssl.create_default_context(cafile=str(joined.lab.ca))
            raw.socket = context.wrap_socket(raw.socket, server_hostname="127.0.0.1")
            assert b"AUTH " in raw.say(b"EHLO client.example")
            assert joined.exchanges["GSSAPI"].on(raw).code == 235

    def test_auth_behind_starttls(self, joined: Joined) -> None:
        with joined.session() as raw:
            begun = joined.exchanges["GSSAPI"].on(raw, 0)
            raw.send(b"STARTTLS\r\n" + begun.line(begun.next()) + b"\r\n")
            assert raw.codes(1) == [421]
            assert raw.rest() == b""

    @pytest.mark.parametrize("name", ["NTLM", "GSSAPI"])
    def test_a_handshake_in_the_middle(self, joined: Joined, name: str) -> None:
        said = ssl.MemoryBIO()
        tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), said, server_hostname="relay.lab.example")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        with joined.session() as raw:
            joined.exchanges[name].on(raw, 1)
            raw.send(said.read() + b"\r\n").finish()
            answers = raw.rest().splitlines()
            assert answers
            assert {line[:3] for line in answers} <= {b"500", b"501", b"421"}


@pytest.fixture(scope="module")
def big(only: Joined) -> Exchange:
    """A ticket of 48 KiB."""
    many = edited_pac(only.lab.keytab, with_groups(6100))
    return gssapi_kerberos(edited(only.lab.kinit("alice"), only.lab.keytab, many))


class TestBigTickets:
    @pytest.mark.parametrize("initial", [True, False])
    @pytest.mark.parametrize("segment", [1 << 20, 1000])
    def test_48_kib(self, joined: Joined, big: Exchange, initial: bool, segment: int) -> None:
        log = Log(joined.relay)
        with joined.session() as raw:
            begun = big.on(raw, 0)
            token = begun.next()
            assert 48 * 1024 < len(token) < 64 * 1024
            line = begun.line(token) + b"\r\n"
            if not initial:
                command, _, line = line.rpartition(b" ")
                assert raw.say(command).startswith(b"334")
            raw.send(*(line[at : at + segment] for at in range(0, len(line), segment)))
            begun.said, begun.reply = 1, raw.reply()
            while begun.code == 334:
                begun.answer()
            assert begun.code == 235
            joined.send(raw)
        assert log.one("authenticated")["user"] == "alice@lab.example"

    @pytest.mark.parametrize("name", [*BY_TICKET, "NTLM"])
    def test_too_long(self, joined: Joined, name: str) -> None:
        with joined.session() as raw:
            for size in (65537, 70000, 200_000):
                begun = joined.exchanges[name].on(raw, 0)
                assert begun.answer(bytes(size)).startswith(b"500 5.5.6 ")
                assert raw.say(b"AUTH " + joined.exchanges[name].mechanism).startswith(b"334")
                begun = joined.exchanges[name].on(raw, 0)
                begun.said = 1
                assert begun.answer(bytes(size)).startswith(b"500 5.5.6 ")
            joined.send(raw)
            assert joined.exchanges[name].on(raw).code == 235
