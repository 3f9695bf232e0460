"""One LDAP connection to one controller. It blocks, and is for a thread; every wait ends at the moment it was given.

ldap3 speaks the protocol. What it leaves open is closed here: its time-outs count from each octet, and it checks a
certificate's name by code that Python no longer has.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import ldap3
from ldap3.protocol.sasl.sasl import send_sasl_negotiation

from relayd.directory.entries import Entry
from relayd.directory.faults import ControllerFault, Refusal, refusal
from relayd.directory.operations import Tally
from relayd.model import IPAddress

__all__ = ["Connection", "Controller"]

#: Octets of all answers to one operation at most.
LONGEST_ANSWER: Final = 16 * 1024 * 1024

Scope = Literal["BASE", "LEVEL", "SUBTREE"]

_TUPLES: Final = re.compile(r"""^(?:\(["'])+|(?:["'],\))+$""")

_SUCCESS, _SIZE_LIMIT, _SASL_IN_PROGRESS, _NO_SUCH_OBJECT = 0, 4, 14, 32  # RFC 4511 A.1


@dataclass(frozen=True, slots=True)
class Controller:
    """Where a controller listens.

    :ivar host: the name that its certificate must have.
    :ivar ldaps: TLS from the first octet; else STARTTLS, which is required.
    """

    host: str
    port: int
    ldaps: bool

    @property
    def catalog(self) -> bool:
        """Whether it is asked as a global catalog, which holds a part of every domain of the forest."""
        return self.port in (3268, 3269)  # MS-ADTS 3.1.1.3.1.10

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'ldaps' if self.ldaps else 'ldap'}://{host}:{self.port}"


class _Until:
    """A socket whose operations all together end by :attr:`until`, on the monotonic clock."""

    def __init__(self, inner: socket.socket, until: float) -> None:
        self.inner = inner
        self.until = until
        self.octets = 0
        self.timed_out = False

    def recv(self, size: int) -> bytes:
        self._wait()
        octets: bytes = self._timed(self.inner.recv, size)
        self.octets += len(octets)
        if self.octets > LONGEST_ANSWER:
            raise OSError("the answer is too long")
        return octets

    def sendall(self, octets: bytes) -> None:
        self._wait()
        self._timed(self.inner.sendall, octets)

    def _wait(self) -> None:
        left = self.until - time.monotonic()
        if left <= 0:
            self.timed_out = True
            raise TimeoutError("timed out")
        self.inner.settimeout(left)

    def _timed(self, call: Any, argument: Any) -> Any:
        try:
            return call(argument)
        except TimeoutError:
            self.timed_out = True
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _VerifiedTls(ldap3.Tls):
    """TLS with the certificate and its name verified by OpenSSL, within a time."""

    def __init__(self, context: ssl.SSLContext, host: str, until: float) -> None:
        super().__init__(validate=ssl.CERT_REQUIRED)
        self._context = context
        self._host = host
        self._until = until

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        plain = connection.socket.inner if isinstance(connection.socket, _Until) else connection.socket
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.settimeout(max(0.001, self._until - time.monotonic()))
        connection.socket = _Until(self._context.wrap_socket(plain, server_hostname=self._host), self._until)


class Connection:
    """Opens a connection, with TLS verified.

    :param context: must verify certificate and host name.
    :param until: when everything must have ended, on the monotonic clock.
    :param tally: what is asked is counted there.
    :raises ControllerFault: it could not be opened.
    """

    def __init__(
        self,
        controller: Controller,
        address: IPAddress,
        context: ssl.SSLContext,
        until: float,
        tally: Tally | None = None,
    ) -> None:
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        self.controller = controller
        self.address = address
        self.used = time.monotonic()
        self._tally = tally or Tally()
        left = until - time.monotonic()
        if left <= 0:
            raise ControllerFault(f"{controller}: timed out")
        server = ldap3.Server(
            str(address),
            controller.port,
            use_ssl=controller.ldaps,
            get_info=ldap3.NONE,
            tls=_VerifiedTls(context, controller.host, until),
            connect_timeout=left,
        )
        self._ldap = ldap3.Connection(
            server,
            authentication=ldap3.SIMPLE,
            auto_referrals=False,
            check_names=False,
            return_empty_attributes=False,
            auto_escape=False,
        )
        self._tally.add("connections")
        try:
            self._ldap.open(read_server_info=False)
            if not controller.ldaps:
                self._ldap.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._ldap.socket = _Until(self._ldap.socket, until)
                if not self._ldap.start_tls(read_server_info=False):
                    raise ControllerFault("STARTTLS failed")
            if not isinstance(self._ldap.socket, _Until) or not isinstance(self._ldap.socket.inner, ssl.SSLSocket):
                raise ControllerFault("no TLS")
            self._socket = self._ldap.socket
        except Exception as error:
            self.close()
            raise ControllerFault(f"{controller} ({address}): {_reason(error)}") from None

    def limit(self, until: float) -> None:
        """The next operations end by *until*."""
        self._socket.until = until
        self._socket.octets = 0

    @property
    def stale(self) -> bool:
        """Whether an idle connection was ended by the other side, or has something to say that nobody asked for."""
        try:
            inner = self._socket.inner
            poll = select.poll()
            poll.register(inner.fileno(), select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True

    def bind(self, name: str, password: bytes) -> Refusal | None:
        """Signs in by simple bind; None when that went well.

        :raises ControllerFault: the controller cannot tell.
        """
        if not password or not name:  # RFC 4513 5.1.2: it would be called success
            raise ValueError("an empty name or password is never bound")
        try:
            if self._ldap.closed:  # ldap3 would open it again, without TLS
                raise ControllerFault("the connection is closed")
            self._ldap.user, self._ldap.password = name, password
            self._tally.add("binds")
            self._ldap.bind(read_server_info=False)
            result = dict(self._ldap.result)
        except Exception as error:
            raise self._failed(error, asked=1) from None
        finally:
            self._ldap.password = None
            self._ldap.request = None
        return self._judged(result, asked=1)

    def bind_sasl(self, mechanism: str, exchange: Generator[bytes, bytes, None]) -> Refusal | None:
        """Signs in by SASL (RFC 4513 5.2.1); None when that went well.

        :param exchange: yields what is sent, is sent what the controller answers, and ends after its last word.
        :raises ControllerFault: the controller cannot tell; what *exchange* raises becomes one, too.
        """
        try:
            if self._ldap.closed:
                raise ControllerFault("the connection is closed")
            self._ldap.sasl_mechanism = mechanism
            self._tally.add("binds")
            result = send_sasl_negotiation(self._ldap, None, next(exchange))
            while int(result["result"]) == _SASL_IN_PROGRESS:
                result = send_sasl_negotiation(self._ldap, None, exchange.send(result["saslCreds"] or b""))
        except StopIteration:
            raise self._failed(OSError(f"{mechanism}: the controller wants more than there is to say")) from None
        except Exception as error:
            raise self._failed(error) from None
        finally:
            exchange.close()
            self._ldap.request = None
        return self._judged(dict(result))

    @property
    def secured(self) -> ssl.SSLSocket:
        """The socket as TLS made it."""
        return cast(ssl.SSLSocket, self._socket.inner)

    @property
    def expires(self) -> float:
        """When the controller's certificate does, in seconds since the epoch."""
        shown = cast(Mapping[str, str], self.secured.getpeercert() or {})
        return float(ssl.cert_time_to_seconds(shown["notAfter"])) if "notAfter" in shown else 0.0

    def _judged(self, result: Mapping[str, Any], asked: int = 0) -> Refusal | None:
        code, message = int(result["result"]), str(result["message"])
        if code == _SUCCESS:
            return None
        refused = refusal(code, message)
        if refused is None:
            self.close()
            text = f"{self.controller}: bind: {result['description']} ({code}) {message}".rstrip()
            raise ControllerFault(text, asked=asked)
        return refused

    def search(
        self, base: str, filter: str, attributes: Iterable[str], *, scope: Scope = "SUBTREE", most: int = 0
    ) -> list[Entry]:
        """The entries found, references to other servers left out; none where *base* does not exist.

        :param most: entries wanted at most; more are cut off. 0: all.
        :raises ControllerFault: the controller cannot tell.
        """
        self._tally.add("searches")
        try:
            self._ldap.search(base, filter, scope, attributes=list(attributes), size_limit=most)
            result, response = self._ldap.result, self._ldap.response
            code, description, message = int(result["result"]), str(result["description"]), str(result["message"])
            entries = [
                Entry(str(item["dn"]), {k.lower(): tuple(v) for k, v in item["raw_attributes"].items()})
                for item in response or ()
                if item.get("type") == "searchResEntry"
            ]
        except Exception as error:
            raise self._failed(error) from None
        finally:
            self._ldap.request = self._ldap.response = None
        if code == _SUCCESS or (code == _SIZE_LIMIT and most):
            return entries
        if code == _NO_SUCH_OBJECT:
            return []
        self.close()
        raise ControllerFault(f"{self.controller}: search: {description} ({code}) {message}".rstrip())

    def close(self) -> None:
        """Ends the connection at once, without a word; it may be called again."""
        ended, self._ldap.socket = self._ldap.socket, None
        self._ldap.closed = True
        if ended is not None:
            ended.close()

    def _failed(self, error: Exception, asked: int = 0) -> ControllerFault:
        self.close()
        lost = not self._socket.timed_out
        return ControllerFault(f"{self.controller}: {_reason(error)}", lost=lost, asked=asked)


def _reason(error: Exception) -> str:
    # ldap3 puts the error that it met into a tuple, and that one's text into another: ("('certificate …',)",)
    text = _TUPLES.sub("", str(error).strip()).replace("\\'", "'") or type(error).__name__
    return " ".join(text.split())[:300]
