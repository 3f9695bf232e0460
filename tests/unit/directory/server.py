"""An LDAP server for tests, that can be sick in every way a real one cannot be asked to be."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from ldap3.protocol.rfc4511 import (
    LDAPDN,
    URI,
    AttributeDescription,
    AttributeValue,
    BindResponse,
    ExtendedResponse,
    LDAPMessage,
    LDAPString,
    MessageID,
    PartialAttribute,
    PartialAttributeList,
    ProtocolOp,
    ResultCode,
    SearchResultDone,
    SearchResultEntry,
    SearchResultReference,
    Vals,
)
from pyasn1.codec.ber import encoder

from relayd.directory.entries import sid_octets
from tests.lab.ca import Leaf

BASE = "DC=corp,DC=example"
SEARCHER, SEARCHER_PASSWORD = "CN=searcher,DC=corp,DC=example", b"searching"
BAD = "80090308: LdapErr: DSID-0C090447, comment: AcceptSecurityContext error, data {}, v4563"

Attributes = dict[str, list[bytes]]


def _sid(rid: int) -> bytes:
    return sid_octets(f"S-1-5-21-1-2-3-{rid}")


def person(name: str, rid: int, **more: list[bytes]) -> Attributes:
    return {
        "objectClass": [b"top", b"user"],
        "sAMAccountName": [name.encode()],
        "userPrincipalName": [f"{name}@corp.example".encode()],
        "objectSid": [_sid(rid)],
        "userAccountControl": [b"512"],
        "accountExpires": [b"9223372036854775807"],
        "msDS-User-Account-Control-Computed": [b"0"],
        "pwdLastSet": [b"134400403457254380"],
        "tokenGroups": [_sid(600)],
        **more,
    }


def entries() -> dict[str, Attributes]:
    """A small domain."""
    return {
        "": {
            "objectClass": [b"top"],
            "defaultNamingContext": [BASE.encode()],
            "configurationNamingContext": [f"CN=Configuration,{BASE}".encode()],
        },
        BASE: {
            "objectClass": [b"domainDNS"],
            "lockoutThreshold": [b"5"],
            "lockOutObservationWindow": [b"-6000000000"],
        },
        f"CN=CORP,CN=Partitions,CN=Configuration,{BASE}": {
            "objectClass": [b"crossRef"],
            "nCName": [BASE.encode()],
            "nETBIOSName": [b"CORP"],
        },
        f"CN=Senders,{BASE}": {
            "objectClass": [b"group"],
            "sAMAccountName": [b"App Senders"],
            "objectSid": [_sid(600)],
        },
        f"CN=alice,{BASE}": person(
            "alice", 1001, mail=[b"Alice@corp.example"], proxyAddresses=[b"smtp:sales@corp.example", b"X500:/o=corp"]
        ),
        f"CN=bob,{BASE}": person("bob", 1002),
        f"CN=app,{BASE}": person("HOST$", 1003),
    }


@dataclass
class FakeDirectory:
    """Serves LDAPS, or LDAP with STARTTLS, on a loopback port that the kernel chose.

    :ivar entries: by DN.
    :ivar passwords: by DN; a bind with another one is refused with *refusals*.
    :ivar refusals: sub-code by DN; default 52e.
    :ivar answer: called before each request with its kind (bind, search, starttls) and its name (the DN that binds, the
        base of the search); what it returns is done in place of the usual: a result code to answer with, an iterator
        over octets to send as they are, or an exception class to end the connection. None: as usual.
    :ivar asked: requests so far, by kind and name.
    :ivar connections: connections so far.
    """

    leaf: Leaf
    ldaps: bool = True
    entries: dict[str, Attributes] = field(default_factory=entries)
    passwords: dict[str, bytes] = field(
        default_factory=lambda: {
            SEARCHER: SEARCHER_PASSWORD,
            f"CN=alice,{BASE}": b"wonderland",
            f"CN=bob,{BASE}": b"builder",
            f"CN=app,{BASE}": b"machine",
        }
    )
    refusals: dict[str, str] = field(default_factory=dict)
    answer: Callable[[str, str], Any] | None = None
    tls: Callable[[], None] | None = None
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    connections: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._hang = threading.Event()

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hang.set()
        if self._listener is not None:
            # Closing alone would not end an accept that waits.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.hang_up()

    @property
    def url(self) -> str:
        return f"{'ldaps' if self.ldaps else 'ldap'}://localhost:{self.port}"

    def hang(self, *_: object) -> Any:
        """For *answer* and *tls*: nothing ever comes."""
        self._hang.wait(60)
        return ConnectionError

    def drip(self, *_: object) -> Iterator[bytes]:
        """For *answer*: a long message, an octet now and then."""
        yield b"\x30\x84\x0f\xff\xff\xff"
        while not self._hang.wait(0.05):
            yield b"\0"

    def hang_up(self) -> None:
        """Ends all connections."""
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    @property
    def open(self) -> int:
        """Connections that clients hold open."""
        return len(self._open)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        served = connection
        try:
            with contextlib.suppress(OSError):
                if self.ldaps:
                    served = self._secured(served)
                self._requests(served)
        finally:
            self._open.discard(connection)
            self._open.discard(served)
            served.close()

    def _secured(self, connection: socket.socket) -> socket.socket:
        if self.tls is not None:
            self.tls()
        self._open.discard(connection)
        secured = self.leaf.server_context().wrap_socket(connection, server_side=True)
        self._open.add(secured)
        return secured

    def _requests(self, connection: socket.socket) -> None:
        held = b""
        while octets := connection.recv(65536):
            held += octets
            while (length := _length(held)) is not None and len(held) >= length:
                ((_, message),), held = _ber(held[:length]), held[length:]
                answered = self._respond(connection, message)
                if answered is None:
                    return
                connection = answered

    def _respond(self, connection: socket.socket, message: Any) -> socket.socket | None:
        number = int.from_bytes(message[0][1], "big")
        tag, request = message[1][:2]
        if tag not in _KINDS:  # unbind
            return None
        kind = _KINDS[tag]
        name = "" if kind == "starttls" else request[1 if kind == "bind" else 0][1].decode()
        self.asked[kind, name] += 1
        told = self.answer(kind, name) if self.answer is not None else None
        if isinstance(told, type):
            raise told
        if isinstance(told, Iterator):
            for octets in told:
                connection.sendall(octets)
        elif kind == "bind":
            connection.sendall(self._bind(number, name, request[2][1], told))
        elif kind == "search":
            connection.sendall(self._search(number, name, request, told))
        else:
            connection.sendall(_message(number, "extendedResp", _result(ExtendedResponse(), told or 0, "")))
            return self._secured(connection) if not told else connection
        return connection

    def _bind(self, number: int, name: str, password: bytes, told: int | None) -> bytes:
        code, text = 0, ""
        if told is not None:
            code = told
        elif password and self.passwords.get(name) != password:
            code, text = 49, BAD.format("52e")
        elif name in self.refusals:
            code, text = 49, BAD.format(self.refusals[name])
        # An empty password succeeds, as it does in a real directory (RFC 4513 5.1.2).
        return _message(number, "bindResponse", _result(BindResponse(), code, text))

    def _search(self, number: int, base: str, request: Any, told: int | None) -> bytes:
        out = b""
        scope = request[1][1][0]
        wanted = {name.decode().lower() for _, name in request[7][1]}
        if told is None:
            for dn, attributes in self.entries.items():
                inside = dn == base if scope == 0 else dn.lower().endswith(base.lower())
                if inside and _matches(request[6], attributes):
                    out += _message(number, "searchResEntry", _entry(dn, attributes, wanted))
            if scope and base == BASE:
                reference = SearchResultReference()
                reference[0] = URI("ldap://ForestDnsZones.corp.example/DC=ForestDnsZones,DC=corp,DC=example")
                out += _message(number, "searchResRef", reference)
        missing = scope == 0 and base not in self.entries
        code = told if told is not None else 32 if missing else 0
        return out + _message(number, "searchResDone", _result(SearchResultDone(), code, ""))


_KINDS = {0x60: "bind", 0x63: "search", 0x77: "starttls"}  # RFC 4511 appendix B


def _length(octets: bytes) -> int | None:
    """Octets of the element at the start, header and all; None while that cannot be told."""
    if len(octets) < 2:
        return None
    if octets[1] < 128:
        return 2 + octets[1]
    size = octets[1] - 128
    return 2 + size + int.from_bytes(octets[2 : 2 + size], "big") if len(octets) >= 2 + size else None


def _ber(octets: bytes) -> list[tuple[int, Any]]:
    """BER elements as (tag, octets), and constructed ones as (tag, elements)."""
    elements: list[tuple[int, Any]] = []
    while octets:
        length = _length(octets)
        assert length is not None
        header = 2 if octets[1] < 128 else 2 + octets[1] - 128
        content = octets[header:length]
        elements.append((octets[0], _ber(content) if octets[0] & 0x20 else content))
        octets = octets[length:]
    return elements


def _message(number: int, kind: str, operation: Any) -> bytes:
    message = LDAPMessage()
    message["messageID"] = MessageID(number)
    message["protocolOp"] = ProtocolOp().setComponentByName(kind, operation)
    return bytes(encoder.encode(message))


def _result(response: Any, code: int, text: str) -> Any:
    response["resultCode"] = ResultCode(code)
    response["matchedDN"] = LDAPDN("")
    response["diagnosticMessage"] = LDAPString(text)
    return response


def _entry(dn: str, attributes: Attributes, wanted: set[str]) -> Any:
    entry = SearchResultEntry()
    entry["object"] = LDAPDN(dn)
    listed = PartialAttributeList()
    for name, values in attributes.items():
        if name.lower() in wanted:
            one = PartialAttribute()
            one["type"] = AttributeDescription(name)
            one["vals"] = Vals()
            for index, value in enumerate(values):
                one["vals"][index] = AttributeValue(value)
            listed[len(listed)] = one
    entry["attributes"] = listed
    return entry


def _matches(filter: tuple[int, Any], attributes: Attributes) -> bool:
    """RFC 4511 4.5.1.7, as far as it is used here."""
    tag, value = filter
    folded = {name.lower().encode(): [v.lower() for v in values] for name, values in attributes.items()}
    match tag:
        case 0xA0 | 0xA1:
            return (all if tag == 0xA0 else any)(_matches(one, attributes) for one in value)
        case 0xA2:
            return not _matches(value[0], attributes)
        case 0x87:
            return value.lower() in folded
        case 0xA3:
            return value[1][1].lower() in folded.get(value[0][1].lower(), [])
    return False  # extensible: no trusts here
