"""DKIM signatures, as dkimpy verifies them."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from dkim.canonicalization import Relaxed
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from relayd.delivery.dkim import BodyHash, Key, Signer
from relayd.queue.store import MessageBody
from relayd.settings import Dkim
from tests.unit.delivery.peer import Result, in_thread
from tests.unit.delivery.values import Octets, claim

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ED25519 = ed25519.Ed25519PrivateKey.generate()

MESSAGE = (
    b"Received: from a by b\r\n"
    b"From: Alice  <alice@corp.example>\r\n"
    b"To: bob@partner.example,\r\n\tcarol@partner.example\r\n"
    b"Subject: =?utf-8?q?caf=C3=A9?=  and more\r\n"
    b"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\n"
    b"Message-ID: <1@corp.example>\r\n"
    b"MIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"\r\n"
    b"Hello \t world \r\n"
    b".\r\n"
    b"\r\n"
    b"\r\n"
)


def key(private: object = RSA, domain: str = "corp.example", selector: str = "s1") -> Key:
    return Key(domain, selector, private)  # type: ignore[arg-type]


def signed(message: bytes, *keys: Key, filed: bool = False, may_relay: bool = True) -> MessageBody:
    signer = Signer(keys or (key(),), in_thread, lambda: 1_700_000_000.0)
    given = claim("bob@partner.example", body=Octets(message, filed))
    given = replace(given, origin=replace(given.origin, may_relay=may_relay))
    found = Result(Deferred.fromCoroutine(signer.signed(given))).value
    assert isinstance(found.size, int)
    return found  # type: ignore[no-any-return]


def content(body: MessageBody) -> bytes:
    with body.open() as file:
        octets = file.read()
    assert len(octets) == body.size
    if body.octets is not None:
        assert body.octets == octets
    return octets


def good(octets: bytes, *keys: Key) -> bool:
    """Whether the signatures of all *keys* hold."""
    records = {f"{k.selector}._domainkey.{k.domain}.".encode(): k.record.encode() for k in keys or (key(),)}
    verifier = dkim.DKIM(octets)
    try:
        return all(
            verifier.verify(index, dnsfunc=lambda name, timeout=5: records[name]) for index in range(len(records))
        )
    except dkim.ValidationError:
        return False


@pytest.mark.parametrize("filed", [False, True])
@pytest.mark.parametrize("private", [RSA, ED25519], ids=["rsa", "ed25519"])
def test_it_holds(private: object, filed: bool) -> None:
    body = signed(MESSAGE, key(private), filed=filed)
    octets = content(body)
    assert octets.endswith(MESSAGE)
    top = octets[: -len(MESSAGE)]
    assert top.startswith(b"DKIM-Signature: v=1; a=")
    assert max(map(len, top.split(b"\r\n"))) <= 78
    assert good(octets, key(private))


def test_it_holds_after_what_relays_do() -> None:
    octets = content(signed(MESSAGE))
    for changed in (
        b"Received: by x\r\n" + octets,
        b"X-Spam: no\r\n" + octets,
        octets.replace(b"Subject: =?utf-8?q?caf=C3=A9?=  and", b"subject:\t=?utf-8?q?caf=C3=A9?=\r\n and"),
        octets + b"\r\n",
        octets.replace(b"Hello \t world \r\n", b"Hello world\r\n"),
    ):
        assert good(changed), changed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Alice", b"Mallory"),
        (b"world", b"w0rld"),
        (b"\r\n\r\nHello", b"\r\nSubject: another\r\n\r\nHello"),
        (b"\r\n\r\nHello", b"\r\nReply-To: mallory@evil.example\r\n\r\nHello"),
        (b"\r\n\r\nHello", b"\r\nFrom: mallory@evil.example\r\n\r\nHello"),
        (b"\r\n\r\nHello", b"\r\nDate: Mon, 1 Jan 2024 00:00:01 +0000\r\n\r\nHello"),
    ],
)
def test_it_breaks_when_the_message_is_changed(old: bytes, new: bytes) -> None:
    octets = content(signed(MESSAGE))
    assert octets.count(old) == 1
    assert not good(octets.replace(old, new))


def test_each_key_of_a_domain_signs() -> None:
    keys = key(RSA), key(ED25519, selector="s2")
    octets = content(signed(MESSAGE, *keys))
    assert octets.count(b"DKIM-Signature:") == 2
    assert good(octets, *keys)


@pytest.mark.parametrize(
    "message",
    [
        MESSAGE.replace(b"corp.example>", b"other.example>", 1),
        MESSAGE.replace(b"corp.example>", b"sub.corp.example>", 1),
        MESSAGE.replace(b"From:", b"X-From:"),
        MESSAGE.replace(b"From:", b"From: mallory@evil.example\r\nFrom:"),
        MESSAGE.replace(b"<alice@corp.example>", b"<alice@corp.example>, mallory@evil.example"),
        MESSAGE.replace(b"<alice@corp.example>", b"<alice@@corp.example"),
        MESSAGE.replace(b"<alice@corp.example>", b""),
        b"\r\nno header\r\n",
        b"",
        b"From: alice@corp.example\r\n" + b"x" * 300_000,
    ],
)
def test_what_is_not_signed(message: bytes) -> None:
    body = signed(message)
    assert content(body) == message


@pytest.mark.parametrize(
    "message",
    [
        b"From: alice@corp.example\r\n",
        b"From: alice@CORP.example\r\n\r\n",
        b"From: alice@corp.example\r\n\r\n \r\n\r\n",
        b"From: =?utf-8?q?=C3=A9?= <alice@corp.example>\r\nX: \x80\xff\r\n\r\n\x80\xff\r\n",
        b"From: group: alice@corp.example, bob@corp.example;\r\n\r\nx\r\n",
        b"From : alice@corp.example\r\nnot a field\r\n\r\nx\r\n",
        b"From:\r\n alice@corp.example\r\n\r\nx" + b" " * 4_000 + b"y\r\n",
        b"From: alice@corp.example\r\n\r\n" + b"\r\n" * 300_000 + b"end\r\n",
    ],
)
def test_odd_messages_hold(message: bytes) -> None:
    octets = content(signed(message))
    assert octets.startswith(b"DKIM-Signature:")
    if b"From :" not in message:  # dkimpy takes no white space there
        assert good(octets if b"\r\n\r\n" in message else octets + b"\r\n")


def test_strangers_are_not_vouched_for() -> None:
    assert content(signed(MESSAGE, may_relay=False)) == MESSAGE


def test_nothing_is_signed_twice() -> None:
    once = content(signed(MESSAGE))
    assert content(signed(once)) == once
    both = content(signed(once, key(RSA), key(ED25519, selector="s2")))
    assert both.count(b"DKIM-Signature:") == 2
    assert good(both, key(ED25519, selector="s2"), key())


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([b" ", b"\t", b"\r\n", b"a", b"bc", b".", b"\xff"]), max_size=30),
    st.lists(st.integers(0, 60), max_size=6),
)
def test_bodies_in_any_pieces(parts: list[bytes], cuts: list[int]) -> None:
    body = b"".join(parts) + b"\r\n"
    hashed, start = BodyHash(), 0
    for cut in sorted(cuts):
        hashed.update(body[start:cut])
        start = max(start, cut)
    hashed.update(body[start:])
    assert hashed.digest() == hashlib.sha256(Relaxed.canonicalize_body(body)).digest()


class TestKeys:
    def load(self, file: Path, private: object, form: PrivateFormat = PrivateFormat.PKCS8) -> Key:
        file.write_bytes(private.private_bytes(Encoding.PEM, form, NoEncryption()))  # type: ignore[attr-defined]
        return Key.load(Dkim("Corp.Example", "s1", file))

    def test_pkcs1_and_pkcs8(self, tmp_path: Path) -> None:
        for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
            loaded = self.load(tmp_path / "key", RSA, form)
            assert (loaded.domain, loaded.algorithm) == ("corp.example", "rsa-sha256")
            assert loaded.record == key().record

    def test_what_is_no_key(self, tmp_path: Path) -> None:
        file = tmp_path / "key"
        file.write_bytes(b64encode(b"x" * 100))
        with pytest.raises(ValueError, match="key holds no PEM private key without a passphrase"):
            Key.load(Dkim("corp.example", "s1", file))
        with pytest.raises(ValueError, match="of a kind that DKIM does not use"):
            self.load(file, dsa.generate_private_key(2048))
        file.write_bytes(WEAK)
        with pytest.raises(ValueError, match="RSA of 512 bits, which nobody"):
            Key.load(Dkim("corp.example", "s1", file))


WEAK = b"""\
-----BEGIN RSA PRIVATE KEY-----
MIIBOwIBAAJBAMTvTCGDU8qXct7e339R6aEkfWlz3G9X8TzyroR2PmX858ZJmNWt
M3n4prY89r4CO9kcoEQP3z6bxjlLadW5ZoECAwEAAQJAO8iFLPtIGY1GQuAXqvf7
235PUA7rESX6Rs1JK08V/DF0Qq1A8LI8EeNwsiGDEKu/WSvmfFH9A0op8UDPAPQC
0QIhAPjgAMFFFV9z7KwzuKnvAlvZJXyXlQHph6efKCsUZbsdAiEAypKgPlAZQMqe
LBTHlPr4aVyvj8Ikjr8hddAiFXDGl7UCIQDLIHk9RZdmKwW2nxhPioZQVPFluYqi
3uobg6mTT7igeQIgL1tR3N9q1+vGSHXfJqP5WOBTJp9zXm+uSdWLckm4E5UCIQC5
2EBiZNTaWAB9puFn8kkJip8F3DQLA1DkymNWaJHY3A==
-----END RSA PRIVATE KEY-----
"""
