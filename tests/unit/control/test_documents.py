"""What an API request may ask for, and the documents that answer."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.control import filter_from, queue_document
from relayd.control.documents import history_document, restricts
from relayd.model import Envelope, Path, Recipient, Sender
from relayd.queue import Filter, HistoryEntry, MessageState, QueueEntry, RecipientEntry

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ({}, Filter()),
        ({"ids": ["1m87y48gx0000"], "limit": 5}, Filter(ids=("1M87Y48GX0000",), limit=5)),
        ({"state": "held", "older": 60}, Filter(state=MessageState.HELD, older=60.0)),
        ({"state": "", "sender": "a@*", "error": "451"}, Filter(sender="a@*", error="451")),
        ({"state": None, "older": None, "ids": None}, Filter()),
    ],
)
def test_filters(document: dict[str, Any], wanted: Filter) -> None:
    assert filter_from(document) == wanted


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"sendr": "x"}, "sendr: not a filter"),
        ({"ids": "ABC"}, "ids: a list is wanted"),
        ({"state": "lost"}, "lost"),
        ({"sender": 5}, "sender: a text is wanted"),
        ({"older": "soon"}, "soon"),
        ({"older": []}, "older: "),
        ({"limit": 0}, "limit: 1 to 100000"),
        ({"limit": []}, "limit: "),
    ],
)
def test_what_is_no_filter_is_named(document: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        filter_from(document)


@given(st.dictionaries(st.sampled_from(sorted(Filter.__dataclass_fields__)) | st.text(), JSON, max_size=4))
def test_any_document_is_a_filter_or_a_value_error(document: dict[str, Any]) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(filter_from(document), Filter)


def test_a_limit_alone_does_not_restrict() -> None:
    assert not restricts(Filter(limit=7))
    assert restricts(Filter(domain="x.example"))
    assert restricts(Filter(ids=("A",)))


def test_a_message_as_a_document() -> None:
    envelope = Envelope(Sender(Path("")), (Recipient(Path("b", "x.example")),), client="192.0.2.7", principal="alice")
    recipients = (
        RecipientEntry(
            Path("b", "x.example"), MessageState.QUEUED, 2, 1_700_000_000.0, "451 4.3.0 no", "mx[192.0.2.1]:25"
        ),
        RecipientEntry(Path("c", "x.example"), MessageState.DELIVERED, 1, 0.0, "250 ok", ""),
    )
    document = queue_document(QueueEntry("ID", envelope, 1_699_999_000.0, 812, recipients), 1_699_999_060.4)
    assert (document["id"], document["sender"], document["age"], document["user"]) == ("ID", "", 60, "alice")
    assert document["received_at"] == "2023-11-14T21:56:40Z"
    first, second = document["recipients"]
    assert (first["state"], first["next_at"], first["attempts"]) == ("queued", "2023-11-14T22:13:20Z", 2)
    assert (second["state"], second["next_at"]) == ("delivered", None)


def test_history_as_a_document() -> None:
    document = history_document(HistoryEntry(0.0, "deferred", "b@x.example", "451 no", "mx", "", "why"))
    assert document == {
        "at": "1970-01-01T00:00:00Z",
        "what": "deferred",
        "recipient": "b@x.example",
        "reply": "451 no",
        "host": "mx",
        "tls": "",
        "detail": "why",
    }
