"""Replies, as a server writes them and as a client reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.model import Fault, Reply
from relayd.wire import ReplyReader, encode_reply
from tests.unit.wire.octets import chunks, cuts

_texts = st.text(st.characters(categories=("L",)))
_replies = st.builds(
    Reply,
    st.integers(200, 599),
    st.just(""),
    st.lists(_texts, min_size=1, max_size=3).map(tuple),
)


class TestEncode:
    @pytest.mark.parametrize(
        ("reply", "octets"),
        [
            (Reply.of(250, "2.0.0", "OK"), b"250 2.0.0 OK\r\n"),
            (Reply.of(220, "", "mx ESMTP"), b"220 mx ESMTP\r\n"),
            (Reply.of(250, ""), b"250 \r\n"),
            (Reply(250, "", ()), b"250 \r\n"),
            (Reply.of(250, "", "mx", "SIZE 1", "AUTH PLAIN"), b"250-mx\r\n250-SIZE 1\r\n250 AUTH PLAIN\r\n"),
            (Reply.of(550, "5.7.1", "a", "b"), b"550-5.7.1 a\r\n550 5.7.1 b\r\n"),
            (Reply.of(553, "5.1.3", "käse"), b"553 5.1.3 k\xc3\xa4se\r\n"),
            (Reply.of(550, "", "a\r\n250 OK"), b"550 a??250 OK\r\n"),
            (Reply.of(550, "", "a\0\t\x7f\x85\u2028b"), b"550 a?????b\r\n"),
            (Reply.of(550, "", "\udcff"), b"550 ?\r\n"),
            (Reply.of(334, "", "x" * 70000), b"334 " + b"x" * 70000 + b"\r\n"),
        ],
    )
    def test_octets(self, reply: Reply, octets: bytes) -> None:
        assert encode_reply(reply) == octets

    @pytest.mark.parametrize(
        ("code", "enhanced"), [(0, ""), (199, ""), (600, ""), (250, "2"), (250, "2.0.0\r\n"), (250, "2.0.0 x")]
    )
    def test_refuses_what_is_no_code(self, code: int, enhanced: str) -> None:
        with pytest.raises(ValueError, match="no reply code"):
            encode_reply(Reply.of(code, enhanced, "x"))

    @given(st.integers(200, 599), st.sampled_from(("", "2.0.0", "5.123.456")), st.lists(st.text(), max_size=4))
    def test_nothing_can_be_injected(self, code: int, enhanced: str, lines: list[str]) -> None:
        *replies, last = encode_reply(Reply(code, enhanced, tuple(lines))).split(b"\r\n")
        assert last == b""
        start = b"%d" % code
        for number, line in enumerate(replies, 1):
            assert line.startswith(start + (b" " if number == len(replies) else b"-") + enhanced.encode())
            assert not {*line} & {*range(32), 127}
            line.decode()

    @given(st.text(alphabet="ab ä€😀", min_size=1, max_size=20), st.integers(1, 600))
    def test_long_text_goes_on_in_further_lines(self, word: str, count: int) -> None:
        text = word * count
        lines = encode_reply(Reply.of(550, "5.7.1", text)).split(b"\r\n")[:-1]
        assert len(lines) > 1 or len(text.encode()) <= 500
        assert all(len(line) + 2 <= 512 for line in lines)
        told = b"".join(line[len("550 5.7.1 ") :] for line in lines).decode()
        assert told.replace(" ", "") == text.replace(" ", "")


class TestRead:
    @pytest.mark.parametrize(
        ("octets", "replies"),
        [
            (b"250 OK\r\n", [Reply(250, "", ("OK",))]),
            (b"250\r\n", [Reply(250, "", ("",))]),
            (b"250 \r\n", [Reply(250, "", ("",))]),
            (b"250 OK\n", [Reply(250, "", ("OK",))]),
            (b"250-a\r\n250-b\n250 c\r\n", [Reply(250, "", ("a", "b", "c"))]),
            (b"250-\r\n250\r\n", [Reply(250, "", ("", ""))]),
            (b"250 2.1.0 OK\r\n", [Reply(250, "2.1.0", ("OK",))]),
            (b"250 2.1.0\r\n", [Reply(250, "2.1.0", ("",))]),
            (b"550-5.7.1 a\r\n550 5.7.1 b\r\n", [Reply(550, "5.7.1", ("a", "b"))]),
            (b"550-5.7.1 a\r\n550 b\r\n", [Reply(550, "5.7.1", ("a", "b"))]),
            (b"550-5.7.1 a\r\n550 5.7.2 b\r\n", [Reply(550, "5.7.1", ("a", "5.7.2 b"))]),
            (b"550 4.7.1 a\r\n", [Reply(550, "", ("4.7.1 a",))]),
            (b"550 5.7.1a\r\n", [Reply(550, "", ("5.7.1a",))]),
            (b"550 5.7.1.2 a\r\n", [Reply(550, "", ("5.7.1.2 a",))]),
            (b"550 5.7.1234 a\r\n", [Reply(550, "", ("5.7.1234 a",))]),
            (b"354 3.0.0 go\r\n", [Reply(354, "", ("3.0.0 go",))]),
            (b"571 5.7.1 no\r\n", [Reply(571, "5.7.1", ("no",))]),
            (b"550 k\xe4se \xc3\xa4\r\n", [Reply(550, "", ("k\ufffdse ä",))]),
            (b"550 a\rb\0c\r\n", [Reply(550, "", ("a?b?c",))]),
            (b"250 a\r\n550 b\r\n35", [Reply(250, "", ("a",)), Reply(550, "", ("b",))]),
        ],
    )
    def test_replies(self, octets: bytes, replies: list[Reply]) -> None:
        for size in range(1, len(octets) + 1):
            reader = ReplyReader(1000)
            seen = [reply for piece in chunks(octets, [size] * len(octets)) for reply in reader.feed(piece)]
            assert seen == replies

    @pytest.mark.parametrize(
        "octets",
        [
            b"\r\n",
            b"HTTP/1.1 400 Bad Request\r\n",
            b"25 OK\r\n",
            b"2500 OK\r\n",
            b"150 OK\r\n",
            b"650 OK\r\n",
            b" 250 OK\r\n",
            b"250:OK\r\n",
            b"250\tOK\r\n",
            b"250-a\r\n550 b\r\n",
            b"250-a\r\nb\r\n",
            b"250 " + b"x" * 1000 + b"\r\n",
            b"x" * 1001,
            b"250-" + b"x" * 90 + b"\r\n" + b"250-yyyyyyyyyyyyy\r\n" * 100,
        ],
    )
    def test_garbage_and_floods(self, octets: bytes) -> None:
        for size in (1, 7, len(octets)):
            reader = ReplyReader(1000)
            with pytest.raises(Fault) as raised:
                [reader.feed(piece) for piece in chunks(octets, [size] * (len(octets) // size))]
            assert raised.value.temporary
            assert raised.value.reply.enhanced == "4.5.0"

    def test_replies_before_garbage_are_not_lost(self) -> None:
        reader = ReplyReader(1000)
        assert reader.feed(b"250 stored\r\n!!\r\n250 never seen\r\n") == [Reply(250, "", ("stored",))]
        for _ in range(2):
            with pytest.raises(Fault, match="!!"):
                reader.feed(b"")

    def test_a_long_dialogue_is_no_long_reply(self) -> None:
        reader = ReplyReader(100)
        assert len(reader.feed(b"250 OK\r\n" * 1000)) == 1000

    def test_empty_tells_what_came_behind_a_reply(self) -> None:
        reader = ReplyReader(1000)
        assert reader.empty
        reader.feed(b"220 go\r\n")
        assert reader.empty
        reader.feed(b"220 go\r\n2")
        assert not reader.empty
        reader.feed(b"50-a\r\n")
        assert not reader.empty

    @given(st.lists(_replies), cuts)
    def test_what_is_written_is_read(self, replies: list[Reply], sizes: list[int]) -> None:
        reader = ReplyReader(10000)
        octets = b"".join(map(encode_reply, replies))
        assert [reply for piece in chunks(octets, sizes) for reply in reader.feed(piece)] == replies
