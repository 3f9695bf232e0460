"""What relayd forwards is one message to every server that reads it, whatever was in it (design, promise 3)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from tests.e2e.configurations import HEAD, listener
from tests.e2e.conftest import StartRelay
from tests.lab.net import free_port, wait_for
from tests.lab.postfix import Postfix
from tests.lab.raw import Raw
from tests.lab.sink import RecordingSink

SEED, MESSAGES = 20261125, 300
#: What messages are made of. Each kind of end of data that some server takes for one is in it, and what could follow.
PIECES = (
    *(b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r\r\n.\r\r\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n"),
    *(b"\r\n", b"\n", b"\r", b".", b"..", b"\r\n..\r\n", b"\r\n. \r\n", b"\0", b"\x1a", b"\xff\xfe", b" ", b"\t"),
    *(b"MAIL FROM:<evil@evil.example>\r\n", b"RCPT TO:<victim@p.example>\r\n", b"DATA\r\n", b"RSET\r\n", b"QUIT\r\n"),
    *(b"BDAT 10 LAST\r\n", b"Subject: smuggled\r\n\r\n", b"x" * 80, b"Bcc: victim@p.example\r\n"),
)


END = b"\r\n.\r\n"


class Kept:
    """What aiosmtpd read: its handler."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, tuple[str, ...], bytes]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append((envelope.mail_from, tuple(envelope.rcpt_tos), envelope.original_content))
        return "250 kept"


@contextlib.contextmanager
def aiosmtpd() -> Iterator[tuple[Kept, int]]:
    kept = Kept()
    controller = Controller(kept, hostname="127.0.0.1", port=free_port(), data_size_limit=0)
    controller.start()
    try:
        yield kept, controller.port
    finally:
        controller.stop()


def contents() -> Iterator[bytes]:
    """Messages, each with the one true end of data."""
    random = Random(SEED)
    for number in range(MESSAGES):
        pieces = [random.choice(PIECES) for _ in range(random.randint(1, 12))]
        content = b"X-Number: %d\r\n\r\n" % number + b"".join(pieces)
        # What a client says behind a true end is its next commands, and no message's fault.
        yield (content + END).partition(END)[0] + END


@pytest.mark.timeout(300)
def test_each_accepted_message_is_one_message_everywhere(start_relay: StartRelay) -> None:
    with RecordingSink() as behind, Postfix(("127.0.0.1", behind.port)) as postfix, aiosmtpd() as (kept, port):
        relay = start_relay(
            HEAD
            + listener()
            + '[relay]\nlist = ["127.0.0.1"]\n'
            + "".join(
                f'[[domain]]\nname = "{name}.example"\nkind = "remote"\nroute = ["127.0.0.1:{hop}"]\n'
                for name, hop in (("p", postfix.port), ("a", port))
            )
        )
        taken = _submit_all(relay.port())
        assert 20 < len(taken) < MESSAGES  # of either kind, many
        wait_for(lambda: len(kept.mails) >= len(taken), "all at aiosmtpd", 60)
        behind.wait(len(taken), timeout=120)
        relay.wait_for("delivered", count=2 * len(taken))
        relay.assert_clean()
        for sender, to, content in kept.mails:
            assert (sender, to) == ("alice@partner.test", ("bob@a.example",))
            assert content.count(b"X-Number: ") == 1
        for mail in behind.mails:
            assert (mail.sender, mail.to) == ("alice@partner.test", ("bob@p.example",))
        read = [[_number(content) for content in those] for those in ([m[2] for m in kept.mails], _contents(behind))]
        assert [sorted(numbers) for numbers in read] == [taken, taken]


def _submit_all(port: int) -> list[int]:
    """The numbers of the messages that were accepted. Behind each, the session is in step."""
    taken = []
    for number, content in enumerate(contents()):
        with Raw(port) as client:
            client.ready(b"<bob@a.example>", b"<bob@p.example>", sender=b"<alice@partner.test> BODY=8BITMIME")
            client.send(content, b"NOOP\r\n")
            reply = client.reply()
            if reply.startswith(b"250 2.0.0 OK: queued"):
                taken.append(number)
            else:
                assert reply.startswith(b"550 5.6.0 "), reply
            assert client.reply() == b"250 2.0.0 OK\r\n"
    return taken


def _contents(sink: RecordingSink) -> list[bytes]:
    return [mail.content for mail in sink.mails]


def _number(content: bytes) -> int:
    return int(content.partition(b"X-Number: ")[2].partition(b"\r\n")[0])
