"""Clients that sign in and go, as light as can be: their load must not be what is measured.

Each session is a process of its own with blocking sockets. Tickets are there before, and the first token of each
Kerberos exchange is made before the clock starts. What has to be computed while it runs (the answer to an NTLM
challenge, the last tokens of Kerberos) is timed: `Load.client` says how much of the processor the clients took.
"""

from __future__ import annotations

import base64
import multiprocessing
import resource
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gssapi
import spnego
from gssapi.raw import set_cred_option

from tests.lab.tickets import KERBEROS, SERVICE, SPNEGO, initiator

__all__ = ["Dialog", "Load", "external", "gss_spnego", "gssapi_kerberos", "gssapi_spnego", "load", "ntlm", "plain"]

DEADLINE = 60.0
#: RFC 4752 3.3: no security layer.
NO_LAYER = b"\1\0\0\0"
#: GSS_KRB5_CRED_NO_CI_FLAGS_X: no flag of integrity that was not asked for, as Cyrus SASL has it.
NO_CI_FLAGS = gssapi.OID.from_int_seq("1.2.752.43.13.29")


@dataclass(frozen=True, slots=True)
class Dialog:
    """One connection.

    :ivar mechanism: empty: EHLO and QUIT alone.
    :ivar answer: the response to a challenge.
    :ivar tls: STARTTLS first; a context for each connection has no session to resume.
    """

    mechanism: str = ""
    initial: bytes = b""
    answer: Callable[[bytes], bytes] | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """What a load came to.

    :ivar rate: dialogs a second, of all sessions together.
    :ivar client: seconds of processor time that the clients took for all of them.
    """

    rate: float
    client: float


def load(port: int, sessions: int, count: int, make: Callable[[int, int], Dialog]) -> Load:
    """Has *sessions* at a time do *count* dialogs in all, each on a connection of its own.

    :param make: the dialog of a session (from 0), and its how-manieth it is (from 0); called before the clock starts.
    :raises RuntimeError: one did not end as it should; the text has the reply.
    """
    # Forked, so that what was made stays what it is: security contexts cannot be sent.
    forking = multiprocessing.get_context("fork")
    start = forking.Barrier(sessions)
    running = []
    for session in range(sessions):
        share = count // sessions + (session < count % sessions)
        ours, theirs = forking.Pipe(duplex=False)
        process = forking.Process(target=_session, args=(port, session, share, make, start, theirs))
        process.start()
        theirs.close()
        running.append((process, ours))
    results = []
    for process, ours in running:
        try:
            results.append(ours.recv())
        except EOFError:
            results.append("a client died")
        process.join()
    if wrong := [result for result in results if isinstance(result, str)]:
        raise RuntimeError(wrong[0])
    begun, ended = min(result[0] for result in results), max(result[1] for result in results)
    return Load(count / (ended - begun), sum(result[2] for result in results))


def _session(
    port: int, session: int, share: int, make: Callable[[int, int], Dialog], start: Any, answer: Connection
) -> None:
    try:
        dialogs = [make(session, number) for number in range(share)]
        start.wait(DEADLINE)
        begun, before = time.monotonic(), _processor()
        for dialog in dialogs:
            _hold(port, dialog)
        answer.send((begun, time.monotonic(), _processor() - before))
    except Exception as error:
        start.abort()
        answer.send(f"{type(error).__name__}: {error}")


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _hold(port: int, dialog: Dialog) -> None:
    connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _ask(connection, b"", b"220")
        _ask(connection, b"EHLO client.lab.example\r\n", b"250")
        if dialog.tls is not None:
            _ask(connection, b"STARTTLS\r\n", b"220")
            connection = dialog.tls.wrap_socket(connection, server_hostname="127.0.0.1")
            _ask(connection, b"EHLO client.lab.example\r\n", b"250")
        if dialog.mechanism:
            token = base64.b64encode(dialog.initial) or b"="
            reply = _ask(connection, b"AUTH %b %b\r\n" % (dialog.mechanism.encode(), token))
            while reply.startswith(b"334") and dialog.answer is not None:
                response = dialog.answer(base64.b64decode(reply[4:]))
                reply = _ask(connection, base64.b64encode(response) + b"\r\n")
            if not reply.startswith(b"235"):
                raise RuntimeError(f"AUTH {dialog.mechanism}: {reply!r}")
        _ask(connection, b"QUIT\r\n", b"221")
    finally:
        connection.close()


def _ask(connection: socket.socket, line: bytes, code: bytes = b"") -> bytes:
    """The reply to *line*, all of its lines."""
    if line:
        connection.sendall(line)
    reply = b""
    while not reply.endswith(b"\r\n") or reply[reply.rfind(b"\n", 0, -1) + 1 :][3:4] == b"-":
        more = connection.recv(65536)
        if not more:
            raise RuntimeError(f"the server hung up behind {line[:20]!r}: {reply!r}")
        reply += more
    if code and not reply.startswith(code):
        raise RuntimeError(f"{reply!r} to {line[:20]!r}")
    return reply


# ---- the mechanisms --------------------------------------------------------------------------------------------


def plain(name: str, password: str) -> Dialog:
    return Dialog("PLAIN", f"\0{name}\0{password}".encode())


def gssapi_kerberos(cache: Path) -> Dialog:
    """Raw Kerberos (RFC 4752). The service ticket is in *cache* when a first context was made of it."""
    return _gssapi(initiator(cache, mechanism=KERBEROS))


def gssapi_spnego(cache: Path) -> Dialog:
    """SPNEGO in place of raw Kerberos, as .NET's SmtpClient and Exchange send it."""
    return _gssapi(initiator(cache, mechanism=SPNEGO))


def gss_spnego(cache: Path) -> Dialog:
    credentials = gssapi.Credentials(usage="initiate", mechs=[KERBEROS, SPNEGO], store={"ccache": f"FILE:{cache}"})
    set_cred_option(NO_CI_FLAGS, credentials, b"")
    context = gssapi.SecurityContext(
        name=gssapi.Name(f"{SERVICE}@LAB.EXAMPLE", gssapi.NameType.kerberos_principal),
        creds=credentials,
        usage="initiate",
        mech=SPNEGO,
        flags=gssapi.RequirementFlag.mutual_authentication,
    )
    return Dialog("GSS-SPNEGO", context.step() or b"", lambda token: context.step(token) or b"")


def _gssapi(context: gssapi.SecurityContext) -> Dialog:
    def answer(challenge: bytes) -> bytes:
        if not context.complete:
            return context.step(challenge) or b""
        if not challenge:  # SPNEGO was complete before the acceptor's last word
            return b""
        if not context.unwrap(challenge).message[0] & NO_LAYER[0]:
            raise RuntimeError("the server insists on a security layer")
        return bytes(context.wrap(NO_LAYER, False).message)

    return Dialog("GSSAPI", context.step() or b"", answer)


def ntlm(name: str, nt_hash: str) -> Dialog:
    """NTLMv2 by pyspnego.

    :param nt_hash: in hexadecimal; of a password pyspnego would have to make it each time.
    """
    secret = spnego.NTLMHash(username=name, nt_hash=nt_hash)
    context = spnego.client(secret, protocol="ntlm", options=spnego.NegotiateOptions.use_ntlm)
    return Dialog("NTLM", context.step() or b"", lambda token: context.step(token) or b"")


def external(ca: Path, chain: Path, key: Path, *, sign_in: bool = True) -> Dialog:
    """STARTTLS with a client certificate; *sign_in*: and AUTH EXTERNAL."""
    context = ssl.create_default_context(cafile=str(ca))
    context.load_cert_chain(chain, key)
    return Dialog("EXTERNAL" if sign_in else "", tls=context)
