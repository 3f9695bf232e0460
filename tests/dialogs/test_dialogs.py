"""Every dialog, over memory; and those that need no hand on the server, over a socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.events import InternalFault
from tests.dialogs.dialog import BadDialog, Dialog, Player, all_dialogs, octets, parse
from tests.dialogs.memory import MemoryChannel
from tests.dialogs.socket_channel import Server, SocketChannel, playable, serving

DIALOGS = all_dialogs()


@pytest.mark.parametrize("dialog", DIALOGS, ids=lambda dialog: dialog.name)
def test_dialog(dialog: Dialog) -> None:
    channel = MemoryChannel(dialog)
    Player(dialog, channel).play()
    assert not [event for event in channel.talk.seen if isinstance(event, InternalFault)]


@pytest.mark.parametrize(
    "dialog", [one for one in DIALOGS if "segment" not in one.title], ids=lambda dialog: dialog.name
)
def test_dialog_octet_by_octet(dialog: Dialog) -> None:
    """How the octets are cut into segments changes nothing, except where the segment is what the dialog is about."""
    channel = MemoryChannel(dialog)
    send = channel.send

    def one_by_one(octets: bytes) -> None:
        for at in range(len(octets)):
            send(octets[at : at + 1])

    channel.send = one_by_one  # type: ignore[method-assign]
    Player(dialog, channel).play()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("tls")) as running:
        yield running


@pytest.mark.parametrize("dialog", [one for one in DIALOGS if playable(one)], ids=lambda dialog: dialog.name)
def test_dialog_over_a_socket(dialog: Dialog, server: Server) -> None:
    Player(dialog, SocketChannel(server, dialog)).play()


def test_there_are_enough() -> None:
    assert len(DIALOGS) >= 25


class TestPlayer:
    def play(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "x.dialog"
        file.write_text(text)
        dialog = parse(file)
        Player(dialog, MemoryChannel(dialog)).play()

    def test_wrong_reply(self, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match=r"x.dialog:2: .*the server said '220 relay.example ESMTP"):
            self.play(tmp_path, "# x\nS 220 other.example ESMTP\n")

    def test_reply_too_many(self, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match=r"also said b'250 2\.0\.0 OK"):
            self.play(tmp_path, "# x\nS~ 220 .*\nC NOOP\nC NOOP\nS 250 2.0.0 OK\n")

    def test_reply_missing(self, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match="nothing more"):
            self.play(tmp_path, "# x\nS~ 220 .*\nS 250 2.0.0 OK\n")

    def test_closed_unexpectedly(self, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match="ended the session"):
            self.play(tmp_path, "# x\nS~ 220 .*\nC QUIT\nS 221 2.0.0 Bye\n")

    def test_unknown_verb(self, tmp_path: Path) -> None:
        with pytest.raises(BadDialog, match=r"x\.dialog:2"):
            self.play(tmp_path, "# x\nX what\n")

    def test_escapes(self) -> None:
        assert octets(r"a\r\n\0\t\x80\\n") == b"a\r\n\0\t\x80\\n"
