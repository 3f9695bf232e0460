"""TLS and AUTH over real sockets: relayd's client in a process of its own, towards Python's ssl on the other side."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as File
from typing import Any

import pytest

from relayd.delivery import ClientTls
from tests.lab.ca import LabCA, Leaf
from tests.lab.sink import RecordingSink
from tests.unit.delivery.sender import Sender

CONTENT = "Subject: x\r\n\r\n.hello\r\n"


@pytest.fixture(scope="module")
def sender() -> Iterator[Sender]:
    with Sender() as sender:
        yield sender


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> LabCA:
    return LabCA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def leaf(ca: LabCA) -> Leaf:
    return ca.leaf("mx.example", "127.0.0.1")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Leaf:
    """A certificate for the right name that a CA nobody trusts has signed."""
    return LabCA(tmp_path_factory.mktemp("stranger")).leaf("mx.example")


@pytest.fixture
def password(tmp_path: File) -> str:
    file = tmp_path / "password"
    file.write_text("secret\n")
    return str(file)


def job(sink: RecordingSink, ca: LabCA, tls: str, **more: Any) -> dict[str, Any]:
    return {
        "host": "mx.example",
        "port": sink.port,
        "tls": tls,
        "content": CONTENT,
        "ca": str(ca.path),
    } | more


class TestCertificateThatHolds:
    @pytest.mark.parametrize("tls", ["may", "require", "verify"])
    def test_starttls(self, sender: Sender, ca: LabCA, leaf: Leaf, tls: str) -> None:
        with RecordingSink(tls=leaf.server_context()) as sink:
            (result,) = sender.send(job(sink, ca, tls))
            assert result["codes"] == [250]
            assert result["tls"].startswith("TLSv1.3 TLS_")
            assert result["tls"].endswith(" verified")
            (mail,) = sink.wait()
        assert mail.secure
        assert mail.content == CONTENT.encode()
        assert [line[:4] for line in mail.session.lines[:4]] == [b"EHLO", b"STAR", b"EHLO", b"MAIL"]

    def test_implicit(self, sender: Sender, ca: LabCA, leaf: Leaf) -> None:
        with RecordingSink(tls=leaf.server_context(), implicit_tls=True) as sink:
            (result,) = sender.send(job(sink, ca, "implicit"))
            assert result["tls"].endswith(" verified")
            (mail,) = sink.wait()
        assert mail.secure

    def test_for_an_address(self, sender: Sender, ca: LabCA, leaf: Leaf) -> None:
        with RecordingSink(tls=leaf.server_context()) as sink:
            (result,) = sender.send(job(sink, ca, "verify", host="127.0.0.1"))
        assert result["tls"].endswith(" verified")

    def test_the_name_is_asked_for(self, sender: Sender, ca: LabCA, leaf: Leaf) -> None:
        asked = []
        context = leaf.server_context()
        context.sni_callback = lambda connection, name, context: asked.append(name)
        with RecordingSink(tls=context) as sink:
            sender.send(job(sink, ca, "verify"))
        assert asked == ["mx.example"]

    def test_a_client_certificate_is_shown(self, sender: Sender, ca: LabCA, leaf: Leaf) -> None:
        own = ca.leaf("relay.example", filename="client", client=True)
        context = leaf.server_context()
        context.load_verify_locations(ca.path)
        context.verify_mode = ssl.CERT_REQUIRED
        with RecordingSink(tls=context) as sink:
            shown = job(sink, ca, "verify", certificate=str(own.chain), key=str(own.key))
            assert sender.send(shown) == [{"codes": [250], "tls": sender_tls(sender, shown)}]
            (refused,) = sender.send(job(sink, ca, "verify"))
        assert refused["code"] == 451

    def test_one_connection_for_several_messages(self, sender: Sender, ca: LabCA, leaf: Leaf) -> None:
        with RecordingSink(tls=leaf.server_context()) as sink:
            results = sender.send(*[job(sink, ca, "verify")] * 5)
            assert [result["codes"] for result in results] == [[250]] * 5
            assert len(sink.wait(5)) == 5
            assert len(sink.sessions) == 1

    @pytest.mark.parametrize("tls", ["none", "verify"])
    def test_a_large_message(self, sender: Sender, ca: LabCA, leaf: Leaf, tls: str) -> None:
        line = ".x" + "y" * 70 + "\r\n"
        with RecordingSink(tls=leaf.server_context()) as sink:
            (result,) = sender.send(job(sink, ca, tls, content=line, times=100_000, filed=True))
            assert result["codes"] == [250]
            (mail,) = sink.wait()
        assert mail.content == line.encode() * 100_000


def sender_tls(sender: Sender, repeated: dict[str, Any]) -> str:
    return str(sender.send(repeated)[0]["tls"])


class TestCertificateThatDoesNotHold:
    def untrusted(self, kind: str, ca: LabCA, stranger: Leaf) -> Leaf:
        if kind == "issuer":
            return stranger
        if kind == "name":
            return ca.leaf("other.example", filename="other")
        return ca.leaf("mx.example", filename="expired", days=-1)

    @pytest.mark.parametrize("kind", ["issuer", "name", "date"])
    @pytest.mark.parametrize("tls", ["verify", "implicit"])
    def test_nothing_is_said_where_it_must(
        self, sender: Sender, ca: LabCA, stranger: Leaf, kind: str, tls: str
    ) -> None:
        words = {"issuer": "self-signed certificate in chain", "name": "not for mx.example", "date": "expired"}
        context = self.untrusted(kind, ca, stranger).server_context()
        with RecordingSink(tls=context, implicit_tls=tls == "implicit") as sink:
            (result,) = sender.send(job(sink, ca, tls))
            sessions = sink.sessions
        assert (result["stage"], result["code"]) == ("TLS", 451)
        assert words[kind] in result["text"]
        if tls == "verify":
            assert [line for session in sessions for line in session.lines] == [b"EHLO relay.example", b"STARTTLS"]

    @pytest.mark.parametrize("kind", ["issuer", "name", "date"])
    @pytest.mark.parametrize("tls", ["may", "require"])
    def test_it_goes_encrypted_where_it_need_not(
        self, sender: Sender, ca: LabCA, stranger: Leaf, kind: str, tls: str
    ) -> None:
        with RecordingSink(tls=self.untrusted(kind, ca, stranger).server_context()) as sink:
            (result,) = sender.send(job(sink, ca, tls))
            (mail,) = sink.wait()
        assert result["codes"] == [250]
        assert result["tls"]
        assert "verified" not in result["tls"]
        assert mail.secure


ACCOUNTS = {"relay": "secret"}


class TestCredential:
    @pytest.mark.parametrize("tls", ["none", "may", "require", "verify", "implicit"])
    def test_over_verified_tls(self, sender: Sender, ca: LabCA, leaf: Leaf, tls: str, password: str) -> None:
        with RecordingSink(
            tls=leaf.server_context(), implicit_tls=tls == "implicit", accounts=ACCOUNTS, require_auth=True
        ) as sink:
            (result,) = sender.send(job(sink, ca, tls, user="relay", password_file=password))
            assert result["codes"] == [250]
            (mail,) = sink.wait()
        assert mail.secure
        assert mail.auth == ("PLAIN", "relay", "secret")

    @pytest.mark.parametrize("tls", ["none", "may", "require", "verify"])
    def test_never_to_a_host_that_does_not_hold(
        self, sender: Sender, ca: LabCA, stranger: Leaf, tls: str, password: str
    ) -> None:
        with RecordingSink(tls=stranger.server_context(), accounts=ACCOUNTS) as sink:
            (result,) = sender.send(job(sink, ca, tls, user="relay", password_file=password))
            lines = [line for session in sink.sessions for line in session.lines]
        assert result["code"] == 451
        assert not [line for line in lines if line.startswith(b"AUTH")]

    def test_unless_the_administrator_allowed_it(self, sender: Sender, ca: LabCA, password: str) -> None:
        with RecordingSink(accounts=ACCOUNTS, require_auth=True) as sink:
            (result,) = sender.send(job(sink, ca, "may", user="relay", password_file=password, insecure=True))
        assert result == {"codes": [250], "tls": ""}

    def test_a_wrong_password_is_the_path(self, sender: Sender, ca: LabCA, leaf: Leaf, password: str) -> None:
        with RecordingSink(tls=leaf.server_context(), accounts={"relay": "other"}) as sink:
            (result,) = sender.send(job(sink, ca, "verify", user="relay", password_file=password))
        assert (result["stage"], result["code"]) == ("AUTH", 451)


@contextmanager
def broken_tls() -> Iterator[tuple[int, list[bytes]]]:
    """A server that offers STARTTLS and then speaks no TLS; its port, and the first line of each connection's end."""
    heard: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            connection.sendall(b"220 mx.example\r\n")
            for line in lines:
                heard.append(line)
                verb = line[:4].upper()
                if verb == b"EHLO":
                    connection.sendall(b"250-mx.example\r\n250 STARTTLS\r\n")
                elif verb == b"STAR":
                    connection.sendall(b"220 go\r\n")
                    connection.recv(4096)
                    connection.sendall(b"this is not TLS\r\n" * 10)
                    return
                elif verb == b"DATA":
                    connection.sendall(b"354 go\r\n")
                elif verb == b"QUIT":
                    connection.sendall(b"221 bye\r\n")
                    return
                elif verb in (b"MAIL", b"RCPT") or line == b".\r\n":
                    connection.sendall(b"250 ok\r\n")

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], heard
        listener.shutdown(socket.SHUT_RDWR)


class TestBrokenTls:
    def test_may_sends_in_the_clear_on_a_second_connection(self, sender: Sender, ca: LabCA) -> None:
        with broken_tls() as (port, heard):
            (result,) = sender.send(
                {"host": "mx.example", "port": port, "tls": "may", "content": CONTENT, "ca": str(ca.path)}
            )
        assert result == {"codes": [250], "tls": ""}
        assert b"..hello\r\n" in heard

    @pytest.mark.parametrize("tls", ["require", "verify"])
    def test_more_than_may_does_not(self, sender: Sender, ca: LabCA, tls: str) -> None:
        with broken_tls() as (port, heard):
            (result,) = sender.send(
                {"host": "mx.example", "port": port, "tls": tls, "content": CONTENT, "ca": str(ca.path)}
            )
        assert (result["stage"], result["code"]) == ("TLS", 451)
        assert heard == [b"EHLO relay.example\r\n", b"STARTTLS\r\n"]


class TestFiles:
    def test_no_certificates(self, tmp_path: File) -> None:
        file = tmp_path / "ca.pem"
        file.write_text("nothing")
        with pytest.raises(ValueError, match=r"ca\.pem: holds no PEM certificates"):
            ClientTls(ca=file)

    def test_no_key(self, tmp_path: File, leaf: Leaf) -> None:
        with pytest.raises(ValueError, match="holds no PEM private key"):
            ClientTls(certificate=leaf.cert)

    def test_a_key_of_another_certificate(self, ca: LabCA, leaf: Leaf) -> None:
        with pytest.raises(ValueError, match="does not belong"):
            ClientTls(certificate=leaf.cert, key=ca.leaf("x.example", filename="x").key)

    def test_missing(self, tmp_path: File) -> None:
        with pytest.raises(OSError, match="absent"):
            ClientTls(ca=tmp_path / "absent.pem")

    def test_certificate_and_key_in_one_file(self, leaf: Leaf) -> None:
        ClientTls(certificate=leaf.bundle)
