"""The pickup folder on the disk: what is complete, what is taken, what is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relayd.pickup import Files, Look
from relayd.pickup.folder import EMPTY, QUIET, UNCLOSED

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


def test_what_its_writer_has_open_is_waited_for(files: Files) -> None:
    write(files, "a.eml")
    files.look(100.0, {"a.eml"})
    assert files.look(100.0 + 10 * QUIET, {"a.eml"}) == Look((), True)
    assert files.look(100.0 + 11 * QUIET, ()).ready == ("a.eml",)
    write(files, "b.eml")
    files.look(1000.0, {"b.eml"})
    assert "b.eml" in files.look(1000.0 + UNCLOSED, {"b.eml"}).ready  # its writer hangs


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
        ("yes", b"a\r\n.b\r\n.\r\n", b"a\r\n.b\r\n", True),
        ("no", b"a\r\n..b\r\n.\r\n", b"a\r\n..b\r\n.\r\n", False),
    ],
)
def test_how_it_is_written(files: Files, how: str, octets: bytes, expected: bytes, unstuff: bool) -> None:
    files.dot_stuffed = how
    write(files, "a", octets)
    (moved,) = files.take([("a", ID)])
    assert isinstance(moved, Path)
    opened = files.open(moved)
    assert (b"".join(opened.blocks()), opened.unstuff) == (expected, unstuff)
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
