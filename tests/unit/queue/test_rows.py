from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from relayd.model import Body, Envelope, Path, Recipient, Sender
from relayd.queue.rows import decode_envelope, decode_recipient, encode_envelope, message_rows

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
paths = st.builds(Path, text, text)
senders = st.builds(
    Sender,
    paths,
    size=st.integers(0, 2**40),
    body=st.sampled_from(Body),
    smtputf8=st.booleans(),
    ret=st.sampled_from(["", "FULL", "HDRS"]),
    envid=text,
    auth=st.none() | text,
)
recipients = st.builds(
    Recipient, paths, notify=st.frozensets(st.sampled_from(["NEVER", "SUCCESS", "FAILURE", "DELAY"])), orcpt=text
)
envelopes = st.builds(
    Envelope,
    senders,
    st.lists(recipients, min_size=1, max_size=3).map(tuple),
    session=text,
    client=text,
    helo=text,
    principal=text,
    listener=text,
    tls=text,
    rule=text,
)


@given(envelopes)
def test_an_envelope_comes_back_as_it_was(envelope: Envelope) -> None:
    assert decode_envelope(encode_envelope(envelope)) == replace(envelope, recipients=())


@given(envelopes)
def test_recipients_come_back_as_they_were(envelope: Envelope) -> None:
    rows = message_rows(1, envelope, 0.0, 1, b"", 0.0, False)
    assert tuple(decode_recipient(*row[9:12]) for row in rows) == envelope.recipients
    assert [row[2] for row in rows] == list(range(len(envelope.recipients)))
