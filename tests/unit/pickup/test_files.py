"""The pickup folder on the disk: what is complete, what is taken, what is left."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from relayd.pickup import Files, Look
from relayd.pickup.folder import EMPTY, QUIET, UNCLOSED, UNSURE
from relayd.pickup.lease import open_for_writing

ID = "1M89KMF8V0000"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files(tmp_path)
    files.prepare()
    return files


def write(files: Files, name: str, octets: bytes = b"x", at: float = 0) -> Path:
    path = files.folder / name
    path.write_bytes(octets)
    os.utime(path, (at, at))
    return path


def test_a_file_is_ready_once_it_has_been_quiet(files: Files) -> None:
    write(files, "a.eml")
    assert files.look(100.0, ()) == Look((), True)
    assert files.look(100.0 + QUIET, ()) == Look(("a.eml",), False)


def test_each_change_begins_the_wait_anew(files: Files) -> None:
    write(files, "a.eml", b"x")
    files.look(100.0, ())
    write(files, "a.eml", b"xy")
    assert files.look(100.0 + QUIET, ()).ready == ()
    write(files, "a.eml", b"xy", at=5)
    assert files.look(100.0 + 2 * QUIET, ()).ready == ()
    assert files.look(100.0 + 3 * QUIET, ()).ready == ("a.eml",)


def test_another_file_of_the_same_name_is_another_file(files: Files) -> None:
    write(files, "a.eml")
    files.look(100.0, ())
    write(files, "new").rename(files.folder / "a.eml")
    assert files.look(100.0 + QUIET, ()).ready == ()


def test_a_file_that_is_still_open_is_waited_for(files: Files) -> None:
    with write(files, "a.eml").open("ab"):
        files.look(100.0, ())
        assert files.look(100.0 + 10 * QUIET, ()) == Look((), True)
        long = files.look(100.0 + UNCLOSED, ())
        assert long.ready == ()
        assert [name for name, _ in long.stuck] == ["a.eml"]
    assert files.look(101.0 + UNCLOSED, ()).ready == ("a.eml",)


def test_where_the_kernel_does_not_say_who_writes_the_wait_is_longer(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.pickup.folder.open_for_writing", lambda path: None)
    write(files, "a.eml")
    files.look(100.0, ())
    assert files.look(100.0 + QUIET, ()) == Look((), True)
    assert files.look(100.0 + UNSURE, {"a.eml"}) == Look((), True)  # seen to be written to, and not to be closed
    assert files.look(100.0 + UNSURE, ()).ready == ("a.eml",)
    assert files.look(100.0 + UNCLOSED, {"a.eml"}).ready == ("a.eml",)  # that it was closed went unseen


def test_a_clock_that_is_set_back_begins_the_wait_anew(files: Files) -> None:
    write(files, "a.eml")
    files.look(1_000_000.0, ())
    assert files.look(100.0, ()).ready == ()
    assert files.look(100.0 + QUIET, ()).ready == ("a.eml",)


class TestTheKernel:
    def test_says_who_writes(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        with path.open("wb"):
            assert open_for_writing(path) is True
        assert open_for_writing(path) is False
        with path.open("rb"):
            assert open_for_writing(path) is False

    def test_a_writer_that_comes_in_that_moment_ends_nobody(self, tmp_path: Path) -> None:
        """Breaking a lease sends a signal; its usual one would end the process."""
        path = tmp_path / "a"
        path.write_bytes(b"x")
        ended = threading.Event()

        def writer() -> None:
            while not ended.is_set():
                with path.open("ab"):
                    pass

        thread = threading.Thread(target=writer)
        thread.start()
        said = {open_for_writing(path) for _ in range(2000)}
        ended.set()
        thread.join()
        assert said <= {True, False}

    def test_is_not_asked_about_links(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "a")
        with pytest.raises(OSError, match="symbolic"):
            open_for_writing(tmp_path / "link")


class TestTheLock:
    def test_one_relayd_picks_up(self, files: Files) -> None:
        assert files.hold()
        assert not files.hold()
        other = Files(files.folder)
        with pytest.raises(OSError, match="another relayd picks up here"):
            other.hold()
        files.release()
        assert other.hold()
        other.release()

    def test_a_folder_that_was_made_anew_is_held_anew(self, files: Files) -> None:
        files.hold()
        shutil.rmtree(files.folder)
        with pytest.raises(FileNotFoundError):
            files.hold()
        files.folder.mkdir()
        assert files.hold()
        write(files, "a.eml")
        assert isinstance(files.take([("a.eml", ID)])[0], Path)
        files.release()

    def test_it_is_nothing_that_was_taken(self, files: Files) -> None:
        files.hold()
        (files.taken / "something else").write_text("")
        (files.taken / "notanid......x").write_text("")
        assert files.left() == []
        files.release()


def test_a_folder_that_is_closed_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="may not read it and write to it"):
        Files(tmp_path).prepare()


def test_an_empty_file_is_waited_for(files: Files) -> None:
    write(files, "a.eml", b"")
    files.look(100.0, ())
    assert files.look(100.0 + 10 * QUIET, ()).ready == ()
    assert files.look(100.0 + EMPTY, ()).ready == ("a.eml",)


def test_the_oldest_come_first(files: Files) -> None:
    for name, at in (("b", 2), ("c", 1), ("a", 3)):
        write(files, name, at=at)
    files.look(100.0, ())
    assert files.look(101.0, ()).ready == ("c", "b", "a")


def test_what_is_no_file_is_left_alone(files: Files, tmp_path: Path) -> None:
    secret = write(files, ".hidden")
    (files.folder / "link").symlink_to(secret)
    (files.folder / "folder").mkdir()
    os.mkfifo(files.folder / "pipe")
    files.look(100.0, ())
    assert files.look(200.0, ()) == Look()


def test_taken_and_let_go(files: Files) -> None:
    write(files, "a.eml", b"From: a\n")
    moved = files.take([("a.eml", ID), ("gone.eml", "2M89KMF8V0000")])
    assert moved == [files.taken / f"{ID}.a.eml", ""]
    assert files.look(1.0, ()) == Look()
    path = moved[0]
    assert isinstance(path, Path)
    assert files.left() == [(path, ID)]
    opened = files.open(path)
    assert (b"".join(opened.blocks()), opened.name) == (b"From: a\n", "a.eml")
    opened.file.close()
    again = files.take_again(path, "3M89KMF8V0000")
    assert files.left() == [(again, "3M89KMF8V0000")]
    assert again.name == "3M89KMF8V0000.a.eml"
    files.let_go([again])
    files.let_go([again])
    assert files.left() == []


def test_the_longest_name(files: Files) -> None:
    name = "ü" * 127
    write(files, name)
    (moved,) = files.take([(name, ID)])
    assert isinstance(moved, Path)
    assert files.left() == [(moved, ID)]


def test_a_name_that_cannot_be_moved(files: Files) -> None:
    write(files, "a.eml")
    files.taken.rmdir()
    files.taken.write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        files.take([("a.eml", ID)])
    assert (files.folder / "a.eml").exists()


@pytest.mark.parametrize(
    ("how", "octets", "expected", "unstuff"),
    [
        ("auto", b"a\r\n..b\r\n", b"a\r\n..b\r\n", True),
        ("auto", b"a\r\n.b\r\n", b"a\r\n.b\r\n", False),
        ("auto", b"a\r\n.\r\n", b"a\r\n", False),
        ("auto", b"a\r\n..b\r\n.\r\n", b"a\r\n..b\r\n", True),
        ("auto", b"a\r\n.b\r\n.\r\n", b"a\r\n.b\r\n.\r\n", False),
        ("auto", b".", b"", False),
        ("auto", b"X-Sender: a@b\r\nX-Receiver: c@d\r\nReceived: x\r\n\r\n..b\r\n.\r\n", None, False),
        ("auto", b"x-receiver: c@d\nx-sender: a@b\n\te\nreceived: x\n\n..b\n", None, False),
        ("auto", b"Received: x\r\n\r\n..b\r\n", None, True),
        ("auto", b"X-Sender: a@b\r\nFrom: a@b\r\nReceived: x\r\n\r\n..b\r\n", None, True),
        ("yes", b"a\r\n.b\r\n.\r\n", b"a\r\n.b\r\n", True),
        ("no", b"a\r\n..b\r\n.\r\n", b"a\r\n..b\r\n.\r\n", False),
    ],
)
def test_how_it_is_written(files: Files, how: str, octets: bytes, expected: bytes | None, unstuff: bool) -> None:
    """*expected*: None: all of it. Messages from a drop folder are as they are."""
    files.dot_stuffed = how
    write(files, "a", octets)
    (moved,) = files.take([("a", ID)])
    assert isinstance(moved, Path)
    opened = files.open(moved)
    assert (b"".join(opened.blocks()), opened.unstuff) == (octets if expected is None else expected, unstuff)
    opened.file.close()


def test_a_writer_that_goes_on_is_noticed(files: Files) -> None:
    path = write(files, "a")
    with path.open("ab") as writer:
        (moved,) = files.take([("a", ID)])
        assert isinstance(moved, Path)
        opened = files.open(moved)
        assert not opened.changed
        writer.write(b"more")
        writer.flush()
        assert opened.changed
        opened.file.close()
