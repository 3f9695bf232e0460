"""Listening sockets, real ones: the server is another process, and the kernel chose the ports."""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relayd.model import Fault
from relayd.settings import Listener, TlsMode
from relayd.smtpd import Listening
from tests.dialogs.socket_channel import PATIENCE, Server, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as running:
        yield running


def test_ipv4_and_ipv6_by_one_socket(server: Server) -> None:
    hosts = ["127.0.0.1"] + (["::1"] if ":" in server.addresses["plain"][0] else [])
    for host in hosts:
        with smtplib.SMTP(host, server.addresses["plain"][1], timeout=PATIENCE) as client:
            assert client.ehlo()[0] == 250
            assert "starttls" not in client.esmtp_features


def test_mail_by_another_s_client(server: Server) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    body = b"Subject: x\r\n\r\n" + b".line\r\n" * 20_000
    with smtplib.SMTP("127.0.0.1", server.addresses["starttls"][1], timeout=PATIENCE) as client:
        client.starttls(context=context)
        client.login("alice", "secret")
        assert client.sendmail("a@b.example", ["c@d.example"], body) == {}
        assert client.docmd("NOOP") == (250, b"2.0.0 OK")
    with smtplib.SMTP_SSL("127.0.0.1", server.addresses["implicit"][1], context=context, timeout=PATIENCE) as client:
        client.login("alice", "secret")
        assert client.sendmail("a@b.example", ["c@d.example"], body) == {}


def test_connection_cap(server: Server) -> None:
    with server.connect("few") as first, server.connect("few") as second:
        assert first.recv(100).startswith(b"220")
        assert second.makefile("rb").read() == b"421 4.7.0 Too many connections from your address\r\n"


def test_a_client_that_does_not_read(server: Server) -> None:
    """The server stops reading, too; its memory is not for those who only write."""
    with server.connect("plain") as client:
        client.settimeout(1)
        with pytest.raises(TimeoutError):
            client.sendall(b"NOOP\r\n" * 10_000_000)
        client.settimeout(PATIENCE)
        assert client.recv(4) == b"220 "


def test_stop_ends_sessions(server: Server) -> None:
    with server.connect("plain") as plain, server.connect("starttls") as other:
        assert plain.recv(100).startswith(b"220")
        assert other.recv(100).startswith(b"220")
        assert server.stop() == {"ended": 2, "left": 0}
        assert plain.makefile("rb").read() == b"421 4.3.2 Shutting down\r\n"


class TestBind:
    """Without a reactor: bind is what may fail, and says why."""

    def listening(self, tmp_path: Path, **listener: Any) -> Listening:
        server: Any = SimpleNamespace(hostname="relay.example", listener=Listener(**listener), tls=None, sessions={})
        return Listening(server, tmp_path)

    def test_says_where(self, tmp_path: Path) -> None:
        one = self.listening(tmp_path, address="127.0.0.1", port=0, tls=TlsMode.NONE)
        one.bind()
        host, port = one.bound
        assert (host, one.address, one.text) == ("127.0.0.1", f"127.0.0.1:{port}", f"smtp 127.0.0.1:{port} (none)")
        one.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(one.bound, timeout=PATIENCE).close()

    def test_ipv6_in_brackets(self, tmp_path: Path) -> None:
        one = self.listening(tmp_path, address="::", port=0, tls=TlsMode.NONE)
        one.bind()
        assert one.address == f"[::]:{one.bound[1]}" or one.address == f"0.0.0.0:{one.bound[1]}"
        one.stop()

    def test_where_there_is_no_ipv6(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = socket.socket

        def no_ipv6(family: int, *rest: Any) -> socket.socket:
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            return made(family, *rest)

        monkeypatch.setattr("relayd.smtpd.listeners.socket.socket", no_ipv6)
        one = self.listening(tmp_path, address="::", port=0, tls=TlsMode.NONE)
        one.bind()
        assert one.address == f"0.0.0.0:{one.bound[1]}"
        one.stop()
        with pytest.raises(Fault, match="Address family not supported"):
            self.listening(tmp_path, address="::1", port=0, tls=TlsMode.NONE).bind()

    def test_taken(self, tmp_path: Path) -> None:
        first = self.listening(tmp_path, address="127.0.0.1", port=0, tls=TlsMode.NONE)
        first.bind()
        port = first.bound[1]
        with pytest.raises(Fault) as refused:
            self.listening(tmp_path, address="127.0.0.1", port=port, tls=TlsMode.NONE).bind()
        assert refused.value.detail == f"listener smtp: cannot listen on 127.0.0.1:{port}: Address already in use"
        first.stop()

    def test_bad_certificate(self, tmp_path: Path) -> None:
        (tmp_path / "self-signed.pem").mkdir()
        with pytest.raises(Fault, match=r"self-signed\.pem: Is a directory"):
            self.listening(tmp_path, address="127.0.0.1", port=0).bind()
