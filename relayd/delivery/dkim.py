"""DKIM signatures on what leaves (RFC 6376, RFC 8301, RFC 8463): ``[[dkim]]``.

Signed is mail whose From: is of a domain that has a key, when it comes from whoever may relay: what strangers send to a
domain that anybody may reach is passed on, not vouched for.
"""

from __future__ import annotations

import hashlib
import io
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import BinaryIO, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relayd.config.dkim import PrivateKey, private_key
from relayd.delivery.outflow import BLOCK, InThread
from relayd.model import Fault, Reply
from relayd.policy.domains import fold
from relayd.queue.store import Claim, MessageBody
from relayd.settings import Dkim
from relayd.wire.header import Header, addresses

#: Octets of a message that are searched for the end of its header section.
HEADER_LIMIT: Final = 256 * 1024

#: Signed as often as they stand there, and once more, so that nobody can add one (RFC 6376 8.15).
SEALED: Final = ("from", "reply-to", "subject", "cc")
#: Signed once more than they stand there when they do: next hops add the ones that are missing.
KEPT: Final = ("to", "date", "message-id", "mime-version", "content-type", "content-transfer-encoding", "sender")
#: Signed as often as they stand there.
SIGNED: Final = (
    "in-reply-to",
    "references",
    "list-id",
    "list-help",
    "list-unsubscribe",
    "list-unsubscribe-post",
    "list-post",
    "resent-from",
    "resent-to",
    "resent-cc",
    "resent-date",
    "resent-message-id",
    "content-id",
    "content-description",
)

_SPACES: Final = re.compile(rb"[ \t]+")


@dataclass(frozen=True, slots=True)
class Key:
    """One ``[[dkim]]`` entry with its key."""

    domain: str
    selector: str
    private: PrivateKey

    @classmethod
    def load(cls, entry: Dkim) -> Key:
        """:raises ValueError: the file holds no key that DKIM can use; the text names it.
        :raises OSError: it cannot be read.
        """
        private = private_key(entry.key_file)
        return cls(fold(entry.domain), entry.selector, private)

    @property
    def algorithm(self) -> str:
        return "rsa-sha256" if isinstance(self.private, rsa.RSAPrivateKey) else "ed25519-sha256"

    @property
    def record(self) -> str:
        """The text of the TXT record at ``selector._domainkey.domain`` (RFC 6376 3.6.1)."""
        if isinstance(self.private, rsa.RSAPrivateKey):
            public = self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            return f"v=DKIM1; k=rsa; p={b64encode(public).decode()}"
        raw = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return f"v=DKIM1; k=ed25519; p={b64encode(raw).decode()}"

    def sign(self, octets: bytes) -> bytes:
        if isinstance(self.private, rsa.RSAPrivateKey):
            return self.private.sign(octets, padding.PKCS1v15(), hashes.SHA256())
        # RFC 8463 3: the hash is what is signed.
        return self.private.sign(hashlib.sha256(octets).digest())


class BodyHash:
    """SHA-256 of a body in relaxed form (RFC 6376 3.4.4), fed in pieces of any size."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._held = b""  # white space and line ends that may be the last ones
        self._any = False

    def update(self, octets: bytes) -> None:
        octets = self._held + octets
        kept = octets.rstrip(b" \t\r\n")
        self._held = octets[len(kept) :]
        if kept:
            self._any = True
            self._hash.update(_SPACES.sub(b" ", kept).replace(b" \r\n", b"\r\n"))

    def digest(self) -> bytes:
        """Call it once."""
        if self._any:
            self._hash.update(b"\r\n")
        return self._hash.digest()


@dataclass(frozen=True, slots=True)
class SignedBody:
    """A message with signatures on top. See :class:`relayd.queue.store.MessageBody`."""

    top: bytes
    message: MessageBody

    @property
    def size(self) -> int:
        return len(self.top) + self.message.size

    @property
    def octets(self) -> bytes | None:
        octets = self.message.octets
        return None if octets is None else self.top + octets

    def open(self) -> BinaryIO:
        return io.BufferedReader(_Chained(self.top, self.message.open()))


class _Chained(io.RawIOBase):
    """*top*, then *file*."""

    def __init__(self, top: bytes, file: BinaryIO) -> None:
        self._top = memoryview(top)
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._top:
            count = min(len(buffer), len(self._top))
            buffer[:count] = self._top[:count]
            self._top = self._top[count:]
            return count
        return self._file.readinto(buffer)  # type: ignore[attr-defined, no-any-return]

    def close(self) -> None:
        self._file.close()
        super().close()


class Signer:
    """Signs messages. See :class:`relayd.delivery.sending.Signs`.

    :param in_thread: where messages are read and signed.
    :param clock: seconds since the epoch.
    """

    def __init__(self, keys: Sequence[Key], in_thread: InThread, clock: Callable[[], float]) -> None:
        by_domain: dict[str, list[Key]] = {}
        for key in keys:
            by_domain.setdefault(key.domain, []).append(key)
        self._keys: Mapping[str, Sequence[Key]] = by_domain
        self._in_thread = in_thread
        self._clock = clock

    async def signed(self, claim: Claim) -> MessageBody:
        if not claim.origin.may_relay:
            return claim.body
        at = int(self._clock())
        try:
            return await self._in_thread(lambda: self._sign(claim.body, at))
        except OSError as error:
            raise Fault(Reply.of(451, "4.3.0", "The message cannot be read for now"), str(error)) from None

    def _sign(self, body: MessageBody, at: int) -> MessageBody:
        """In a thread."""
        with body.open() as file:
            head = file.read(HEADER_LIMIT)
            end = 0 if head.startswith(b"\r\n") else head.find(b"\r\n\r\n") + 2
            if end == 1:  # no end of the header, or none within reach
                if len(head) == HEADER_LIMIT:
                    return body
                end = len(head)
            header = Header.parse(head[:end])
            keys = self._for(header)
            if not keys:
                return body
            hashed = BodyHash()
            hashed.update(head[end + 2 :])
            while block := file.read(BLOCK):
                hashed.update(block)
        digest = hashed.digest()
        return SignedBody(b"".join(signature(key, header, digest, at) for key in keys), body)

    def _for(self, header: Header) -> Sequence[Key]:
        """The keys of the one domain in From:, but for those that have signed already."""
        try:
            domains = {fold(a.rpartition("@")[2]) for f in header.all("from") for _, a in addresses(f.value)}
        except ValueError:
            return ()
        if len(domains) != 1:  # who of them would vouch for it?
            return ()
        there = [_tags(field.value) for field in header.all("dkim-signature")]
        return [
            key
            for key in self._keys.get(domains.pop(), ())
            if not any(tags.get("d", "").lower() == key.domain and tags.get("s") == key.selector for tags in there)
        ]


def signature(key: Key, header: Header, body: bytes, at: int) -> bytes:
    """The field DKIM-Signature (RFC 6376 3.5) for a message.

    :param body: the hash of its body.
    :param at: seconds since the epoch.
    """
    names: list[str] = []
    signed: list[bytes] = []
    for group in (SEALED, KEPT, SIGNED):
        for name in group:
            found = header.all(name)
            more = 1 if group is SEALED or (group is KEPT and found) else 0
            names += [name] * (len(found) + more)
            signed += [_relaxed(field.octets) for field in reversed(found)]  # RFC 6376 5.4.2: from the bottom
    tags = (
        f"v=1; a={key.algorithm}; c=relaxed/relaxed;",
        f"d={key.domain}; s={key.selector}; t={at};",
        f"h={':'.join(names)};",
        f"bh={b64encode(body).decode()};",
        "b=",
    )
    folded = _fold_names("DKIM-Signature: " + "\r\n\t".join(tags))
    octets = b"".join(f + b"\r\n" for f in signed) + _relaxed(folded.encode("ascii"))
    value = b64encode(key.sign(octets)).decode()
    lines = "\r\n\t".join(wrap(value, 72))
    return f"{folded}{lines}\r\n".encode("ascii")


def _fold_names(field: str) -> str:
    """Breaks the long list of names behind its colons: white space may stand there (RFC 6376 3.5, h=)."""
    lines = []
    for line in field.split("\r\n"):
        while len(line) > 76 and ":" in line[20:76]:
            cut = line.rindex(":", 20, 76) + 1
            lines.append(line[:cut])
            line = "\t" + line[cut:]
        lines.append(line)
    return "\r\n".join(lines)


def _relaxed(field: bytes) -> bytes:
    """A field in relaxed form (RFC 6376 3.4.2), without its CRLF."""
    name, _, value = field.partition(b":")
    return name.rstrip(b" \t").lower() + b":" + _SPACES.sub(b" ", value.replace(b"\r\n", b"")).strip(b" \t")


def _tags(value: bytes) -> dict[str, str]:
    pairs = (part.partition("=") for part in value.decode("latin-1").split(";"))
    return {name.strip(): "".join(text.split()) for name, _, text in pairs}
