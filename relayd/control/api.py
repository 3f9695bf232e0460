"""The API itself, on twisted.web.

    GET  /api/v1/status
    GET  /api/v1/queue?filter={…}        {"messages": […]}
    GET  /api/v1/queue/ID                a message with its history
    GET  /api/v1/queue/ID/body           message/rfc822
    POST /api/v1/queue/retry  {filter}   {"messages": N}
    POST /api/v1/queue/drop   {filter}   {"messages": N}
    POST /api/v1/auth/test    {"user", "password", "mechanism", "listener"}

A fault is ``{"error": TEXT}`` with status 400 (the request), 404, or 503 (the queue cannot answer now).
"""

from __future__ import annotations

import json
import pwd
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.http import BAD_REQUEST, INTERNAL_SERVER_ERROR, NOT_FOUND, SERVICE_UNAVAILABLE
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from relayd.control.documents import Document, filter_from, history_document, queue_document, restricts
from relayd.events import AdminAction, Events, InternalFault
from relayd.model import Fault
from relayd.queue import Filter, MessageBody, Store
from relayd.threads import BoundedPool

Status = Callable[[], Awaitable[Document]]
Authenticate = Callable[["AuthTest"], Awaitable[Document]]

#: A request body longer than this is refused, in octets.
LONGEST_REQUEST = 1024 * 1024
#: So much of a filter is logged, in characters; it may name thousands of messages.
LONGEST_IN_LOG = 1000


class ApiError(Exception):
    """The request cannot be served: *status* is HTTP's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class AuthTest:
    """Who shall be authenticated, and how.

    :ivar mechanism: a SASL mechanism; empty: the first one that goes by a password.
    :ivar listener: the name of a listener; empty: the first one.
    """

    user: str
    password: str = field(repr=False)
    mechanism: str = ""
    listener: str = ""


class ControlSite(Site):
    """The site to listen with.

    :param status: makes the document of ``status``.
    :param authenticate: makes the document of ``auth/test``; LookupError where there is no such listener.
    :param wake: called after an administrator made mail due.
    :param pool: where large messages are read.
    """

    def __init__(
        self,
        store: Store,
        status: Status,
        authenticate: Authenticate,
        events: Events,
        wake: Callable[[], None],
        pool: BoundedPool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        root, api, version = Resource(), Resource(), Resource()
        root.putChild(b"api", api)
        api.putChild(b"v1", version)
        version.putChild(b"status", _Page(events, lambda request: status()))
        auth = Resource()
        version.putChild(b"auth", auth)
        auth.putChild(b"test", _Page(events, post=lambda request: _auth_test(request, authenticate, events)))
        version.putChild(b"queue", _Queue(store, events, wake, pool, clock))
        super().__init__(root)  # type: ignore[no-untyped-call]
        self.displayTracebacks = False
        self.noisy = False

    def log(self, request: object) -> None:
        """Actions are events of their own; looks are not logged."""


class _Page(Resource):
    """Answers with a JSON document made by a coroutine."""

    isLeaf = True

    def __init__(
        self,
        events: Events,
        get: Callable[[Request], Awaitable[Any]] | None = None,
        post: Callable[[Request], Awaitable[Any]] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._events = events
        self._get = get
        self._post = post

    def render_GET(self, request: Request) -> int | bytes:
        return self._render(request, self._get)

    def render_POST(self, request: Request) -> int | bytes:
        return self._render(request, self._post)

    def _render(self, request: Request, answer: Callable[[Request], Awaitable[Any]] | None) -> int | bytes:
        if answer is None:
            return _send(request, NOT_FOUND, {"error": "not found"})
        gone = request.notifyFinish()
        gone.addErrback(lambda _: None)

        async def run() -> Any:
            return await answer(request)

        def finish(result: Any) -> None:
            if gone.called:
                return
            octets = self._failed(request, result) if isinstance(result, Failure) else _encode(request, result)
            request.write(octets)
            request.finish()

        Deferred.fromCoroutine(run()).addBoth(finish)
        return NOT_DONE_YET

    def _failed(self, request: Request, failure: Failure) -> bytes:
        error = failure.value
        if isinstance(error, ApiError):
            return _send(request, error.status, {"error": str(error)})
        if isinstance(error, Fault):
            return _send(request, SERVICE_UNAVAILABLE, {"error": error.detail or str(error.reply)})
        self._events.emit(InternalFault(where="control", detail=failure.getTraceback()))
        return _send(request, INTERNAL_SERVER_ERROR, {"error": "a fault of relayd; its log says more"})


async def _auth_test(request: Request, authenticate: Authenticate, events: Events) -> Document:
    wanted = _asked(request)
    events.emit(AdminAction(action="auth test", who=_who(request), detail=f"{wanted.user[:LONGEST_IN_LOG]}"))
    try:
        return await authenticate(wanted)
    except LookupError as error:
        raise ApiError(BAD_REQUEST, str(error)) from None


def _asked(request: Request) -> AuthTest:
    octets = request.content.read(LONGEST_REQUEST + 1) if request.content else b""
    try:
        document = json.loads(octets)
        if not isinstance(document, dict) or not all(isinstance(value, str) for value in document.values()):
            raise ValueError
        wanted = AuthTest(**document)
    except (ValueError, TypeError, RecursionError):
        raise ApiError(BAD_REQUEST, "user, password, mechanism and listener are wanted, as texts") from None
    if not wanted.user or not wanted.password:
        raise ApiError(BAD_REQUEST, "an empty user name or password is never tried")
    return wanted


class _Queue(Resource):
    def __init__(
        self,
        store: Store,
        events: Events,
        wake: Callable[[], None],
        pool: BoundedPool,
        clock: Callable[[], float],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._store = store
        self._events = events
        self._wake = wake
        self._pool = pool
        self._clock = clock

    def getChild(self, path: bytes, request: Request) -> Resource:
        rest = [part for part in request.postpath or [] if part]
        match [path, *rest]:
            case [b""]:
                return _Page(self._events, get=self._list)
            case [b"retry"]:
                return _Page(self._events, post=lambda r: self._act(r, "retry"))
            case [b"drop"]:
                return _Page(self._events, post=lambda r: self._act(r, "drop"))
            case [message_id]:
                return _Page(self._events, get=lambda _: self._show(_text(message_id)))
            case [message_id, b"body"]:
                return _Page(self._events, get=lambda _: self._body(_text(message_id)))
        return _Page(self._events)

    def render_GET(self, request: Request) -> int | bytes:
        return _Page(self._events, get=self._list).render_GET(request)

    async def _list(self, request: Request) -> Document:
        given = (request.args or {}).get(b"filter", [b"{}"])[0]
        entries = await self._store.list(_filter(given))
        now = self._clock()
        return {"messages": [queue_document(entry, now) for entry in entries]}

    async def _show(self, message_id: str) -> Document:
        entry = await self._store.show(message_id)
        if entry is None:
            raise ApiError(NOT_FOUND, f"{message_id}: no such message")
        history = await self._store.history(message_id)
        return {**queue_document(entry, self._clock()), "history": [history_document(h) for h in history]}

    async def _body(self, message_id: str) -> bytes:
        body = await self._store.body(message_id)
        if body is None:
            raise ApiError(NOT_FOUND, f"{message_id}: no such message, or it is finished and its text is gone")
        if body.octets is not None:
            return body.octets
        return await self._pool.run(_read, body)

    async def _act(self, request: Request, action: str) -> Document:
        octets = request.content.read(LONGEST_REQUEST + 1) if request.content else b""
        if len(octets) > LONGEST_REQUEST:
            raise ApiError(BAD_REQUEST, "the request is too long")
        wanted = _filter(octets)
        if not restricts(wanted):
            raise ApiError(BAD_REQUEST, "which messages? name ids or a filter")
        who = _who(request)
        if action == "retry":
            number = await self._store.retry(wanted, who)
            self._wake()
        else:
            number = await self._store.drop(wanted, who)
        asked = octets.decode()
        if len(asked) > LONGEST_IN_LOG:
            asked = f"{asked[:LONGEST_IN_LOG]}…"
        self._events.emit(AdminAction(action=action, who=who, detail=f"{number} messages: {asked}"))
        return {"messages": number}


def _read(body: MessageBody) -> bytes:
    with body.open() as file:
        return file.read()


def _text(part: bytes) -> str:
    return part.decode("ascii", "replace").upper()


def _filter(octets: bytes) -> Filter:
    try:
        document = json.loads(octets.decode() or "{}")
        if not isinstance(document, dict):
            raise ValueError("a JSON object is wanted")
        return filter_from(document)
    except RecursionError:
        raise ApiError(BAD_REQUEST, "not a filter") from None
    except ValueError as error:
        raise ApiError(BAD_REQUEST, str(error)) from None


def _encode(request: Request, result: Any) -> bytes:
    if isinstance(result, bytes):
        request.setHeader(b"content-type", b"message/rfc822")
        return result
    request.setHeader(b"content-type", b"application/json")
    return json.dumps(result).encode() + b"\n"


def _send(request: Request, status: int, document: Document) -> bytes:
    request.setResponseCode(status)
    return _encode(request, document)


def _who(request: Request) -> str:
    """The user at the other end of the socket (Linux SO_PEERCRED, unix(7))."""
    try:
        handle: socket.socket = request.channel.transport.getHandle()  # type: ignore[union-attr]
        _, uid, _ = struct.unpack("3i", handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pwd.getpwuid(uid).pw_name
    except (AttributeError, OSError, KeyError):
        return "control socket"
