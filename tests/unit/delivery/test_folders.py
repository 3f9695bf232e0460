"""The drop folder and badmail: real files, in real threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path as File

import pytest
from twisted.internet.defer import Deferred

from relayd.delivery import durable
from relayd.delivery.badmail import BadmailFolder
from relayd.delivery.drop import DropFolder, envelope_lines
from relayd.model import Fault, Path, Sender
from tests.unit.delivery.values import MESSAGE, Octets, claim, path
from tests.unit.test_resolver import ThreadedClock


async def wait(deferred: Deferred[str]) -> str:
    return await deferred


@pytest.fixture
def clock() -> ThreadedClock:
    return ThreadedClock()


@pytest.fixture
def folder(tmp_path: File) -> File:
    return tmp_path / "state" / "drop"


@pytest.fixture
def drop(folder: File, clock: ThreadedClock) -> Iterator[DropFolder]:
    made = DropFolder(folder, clock)
    yield made
    made.stop()


@pytest.fixture
def badmail(tmp_path: File, clock: ThreadedClock) -> Iterator[BadmailFolder]:
    made = BadmailFolder(tmp_path / "badmail", clock)
    yield made
    made.stop()


class TestDrop:
    def test_envelope_on_top_and_the_message_as_it_was(
        self, folder: File, drop: DropFolder, clock: ThreadedClock
    ) -> None:
        name = clock.result(
            wait(drop.deliver("M1", 7, path("a@x.example"), [path("b@corp.example"), path("c@corp.example")], BODY))
        )
        assert name == "M1-7.eml"
        assert (folder / name).read_bytes() == (
            b"X-Sender: a@x.example\r\nX-Receiver: b@corp.example\r\nX-Receiver: c@corp.example\r\n" + MESSAGE
        )
        assert os.listdir(folder) == [name]

    def test_a_folder_that_had_to_be_made_is_made_safe(
        self, folder: File, drop: DropFolder, clock: ThreadedClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        safe: list[File] = []
        really = durable.sync_folder
        monkeypatch.setattr(durable, "sync_folder", lambda f: (really(f), safe.append(f)))
        clock.result(wait(drop.deliver("M1", 7, path("a@x.example"), [path("b@corp.example")], BODY)))
        assert safe == [folder.parent.parent, folder.parent, folder]

    def test_a_large_message_is_copied(self, folder: File, drop: DropFolder, clock: ThreadedClock) -> None:
        body = Octets(b"Subject: x\r\n\r\n" + b"y" * 3_000_000 + b"\r\n", filed=True)
        clock.result(wait(drop.deliver("M1", 1, path("a@x"), [path("b@y")], body)))
        assert (folder / "M1-1.eml").read_bytes().endswith(body.text)

    def test_the_same_delivery_again_is_the_same_file(
        self, folder: File, drop: DropFolder, clock: ThreadedClock
    ) -> None:
        for _ in range(2):
            clock.result(wait(drop.deliver("M1", 1, path("a@x"), [path("b@y")], BODY)))
        assert len(os.listdir(folder)) == 1

    def test_what_a_dead_process_left_is_no_hindrance(
        self, folder: File, drop: DropFolder, clock: ThreadedClock
    ) -> None:
        folder.mkdir(parents=True)
        (folder / ".M1-1.eml.part").write_bytes(b"half")
        clock.result(wait(drop.deliver("M1", 1, path("a@x"), [path("b@y")], BODY)))
        assert os.listdir(folder) == ["M1-1.eml"]

    def test_deliveries_that_coincide_share_a_directory_fsync(
        self, folder: File, drop: DropFolder, clock: ThreadedClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder.mkdir(parents=True)
        synced: list[int] = []
        original = durable.sync_folder

        def counted(where: File) -> None:
            synced.append(len([name for name in os.listdir(where) if name.endswith(".eml")]))
            original(where)

        monkeypatch.setattr(durable, "sync_folder", counted)
        deliveries = [drop.deliver(f"M{n}", 1, path("a@x"), [path("b@y")], BODY) for n in range(20)]

        async def all_of_them() -> list[str]:
            return [await delivery for delivery in deliveries]

        assert len(set(clock.result(all_of_them()))) == 20
        assert synced == [1, 20]

    @pytest.mark.parametrize("message_id", ["../../etc/passwd", "/etc/passwd", ".hidden", "-rf", "a\0b", "", "a/b.eml"])
    def test_no_name_leaves_the_folder(
        self, folder: File, drop: DropFolder, clock: ThreadedClock, message_id: str
    ) -> None:
        name = clock.result(wait(drop.deliver(message_id, 1, path("a@x"), [path("b@y")], BODY)))
        assert os.listdir(folder) == [name]
        assert name[0] not in ".-"

    def test_a_symbolic_link_in_the_way_is_not_followed(
        self, folder: File, drop: DropFolder, clock: ThreadedClock, tmp_path: File
    ) -> None:
        folder.mkdir(parents=True)
        victim = tmp_path / "victim"
        victim.write_bytes(b"precious")
        (folder / "M1-1.eml").symlink_to(victim)
        (folder / ".M1-1.eml.part").symlink_to(victim)
        clock.result(wait(drop.deliver("M1", 1, path("a@x"), [path("b@y")], BODY)))
        assert victim.read_bytes() == b"precious"
        assert not (folder / "M1-1.eml").is_symlink()

    def test_a_full_disk_is_insufficient_storage(
        self, folder: File, drop: DropFolder, clock: ThreadedClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        folder.mkdir(parents=True)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(Fault) as caught:
            clock.result(wait(drop.deliver("M1", 1, path("a@x"), [path("b@y")], BODY)))
        assert (caught.value.reply.code, caught.value.reply.enhanced) == (452, "4.3.1")
        assert os.listdir(folder) == []

    def test_a_folder_that_cannot_be_is_a_fault(self, folder: File, drop: DropFolder, clock: ThreadedClock) -> None:
        folder.parent.mkdir(parents=True)
        folder.write_bytes(b"a file")
        with pytest.raises(Fault) as caught:
            clock.result(wait(drop.deliver("M1", 1, path("a@x"), [path("b@y")], BODY)))
        assert caught.value.reply.code == 451

    def test_one_that_fails_does_not_spoil_the_others(
        self, folder: File, drop: DropFolder, clock: ThreadedClock
    ) -> None:
        folder.mkdir(parents=True)
        (folder / "M1-1.eml").mkdir()
        bad = drop.deliver("M1", 1, path("a@x"), [path("b@y")], BODY)
        good = drop.deliver("M2", 1, path("a@x"), [path("b@y")], BODY)
        with pytest.raises(Fault):
            clock.result(wait(bad))
        assert clock.result(wait(good)) == "M2-1.eml"


def test_envelope_lines_hold_one_address_each() -> None:
    lines = envelope_lines(Path("a\r\nX-Receiver: evil@x", "y"), [Path("b\n\nc", "d"), Path("bøb", "d")])
    assert lines.count(b"\n") == 3
    assert lines.count(b"\r\nX-Receiver: ") == 2
    assert "X-Receiver: bøb@d\r\n".encode() in lines


def test_the_null_sender_is_written_as_such() -> None:
    assert envelope_lines(Path(""), []) == b"X-Sender: <>\r\n"


class TestBadmail:
    def test_the_message_and_the_reason(self, badmail: BadmailFolder, tmp_path: File, clock: ThreadedClock) -> None:
        failed = claim("a@x.example", "b@x.example", sender=Sender(Path("")))
        file = clock.result(wait(badmail.keep(failed, 2, [("b@x.example", "550 5.1.1 no\r\nsuch user")], 10.0)))
        assert File(file).read_bytes() == b"X-Sender: <>\r\nX-Receiver: b@x.example\r\n" + MESSAGE
        reason = File(file).with_suffix(".reason").read_text()
        assert "To: <b@x.example>\nReason: 550 5.1.1 no??such user\n" in reason
        assert sorted(os.listdir(tmp_path / "badmail")) == ["M1-2.eml", "M1-2.reason"]

    def test_a_full_disk_is_a_fault(self, badmail: BadmailFolder, tmp_path: File, clock: ThreadedClock) -> None:
        (tmp_path / "badmail").write_bytes(b"")
        with pytest.raises(Fault):
            clock.result(wait(badmail.keep(claim("a@x.example"), 1, [("a@x.example", "no")], 10.0)))


BODY = Octets(MESSAGE)
