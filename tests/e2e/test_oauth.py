"""A smart host that wants an access token (XOAUTH2), with a real token server over HTTPS."""

from __future__ import annotations

import json
import smtplib
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.e2e.configurations import relaying
from tests.e2e.conftest import StartRelay
from tests.lab.ca import LabCA, Leaf
from tests.lab.relay import Relay
from tests.lab.sink import RecordingSink
from tests.lab.web import Request, Response, WebServer

FROM, TO = "alice@local.example", "bob@elsewhere.example"
SECRET = "s3cret/+&="


class TokenServer:
    """Gives tokens that the smart host takes; *refusal* says otherwise."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self.refusal: Response | None = None
        self.numbers = count(1)

    def __call__(self, request: Request) -> Response:
        if self.refusal is not None:
            return self.refusal
        assert request.form == {
            "grant_type": "client_credentials",
            "client_id": "app",
            "client_secret": SECRET,
            "scope": "https://mail.example/.default",
        }
        token = f"T{next(self.numbers)}." + "x" * 1500
        self.tokens.add(token)
        content = json.dumps({"access_token": token, "token_type": "Bearer", "expires_in": 3599})
        return Response(content=content.encode(), content_type="application/json; charset=utf-8")


@pytest.fixture
def tokens() -> TokenServer:
    return TokenServer()


@pytest.fixture
def server(tokens: TokenServer, leaf: Leaf) -> Iterator[WebServer]:
    with WebServer(leaf.server_context(), tokens) as running:
        yield running


@pytest.fixture
def smart_host(tokens: TokenServer, leaf: Leaf) -> Iterator[RecordingSink]:
    with RecordingSink(tls=leaf.server_context(), tokens=tokens.tokens, require_auth=True) as running:
        yield running


@pytest.fixture
def relay(start_relay: StartRelay, server: WebServer, smart_host: RecordingSink, ca: LabCA, tmp_path: Path) -> Relay:
    secret = tmp_path / "client.secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    credential = (
        '[[credential]]\nname = "m365"\nkind = "oauth2"\nuser = "relay@corp.example"\nclient_id = "app"\n'
        f'token_url = "https://localhost:{server.port}/tenant/oauth2/v2.0/token"\nclient_secret_file = "{secret}"\n'
        'scope = "https://mail.example/.default"\n'
    )
    config = relaying(smart_host.port, delivery=f'smart_host_auth = "m365"\nca = "{ca.path}"\n', more=credential)
    return start_relay(config.replace("127.0.0.1:", "localhost:"))


def send(relay: Relay, number: int = 1) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port()) as client:
        for _ in range(number):
            client.sendmail(FROM, TO, b"Subject: x\r\n\r\n")


def quiet(relay: Relay) -> None:
    """Neither a secret nor a token anywhere, and no fault of relayd's own."""
    relay.assert_clean()
    said = str(relay.events) + str(relay.ctl_json("queue", "list", "--state", "delivered"))
    assert SECRET not in said
    assert "xxxx" not in said


def test_one_token_for_many_messages(relay: Relay, server: WebServer, smart_host: RecordingSink) -> None:
    send(relay, 10)
    for mail in smart_host.wait(10):
        assert mail.secure
        assert mail.auth is not None
        assert mail.auth[:2] == ("XOAUTH2", "relay@corp.example")
    assert [request.path for request in server.requests] == ["/tenant/oauth2/v2.0/token"]
    quiet(relay)


def test_a_token_that_was_taken_back_is_replaced(
    relay: Relay, server: WebServer, smart_host: RecordingSink, tokens: TokenServer
) -> None:
    send(relay)
    smart_host.wait(1)
    tokens.tokens.clear()
    smart_host.wait_sessions(1)  # so that the next message authenticates
    send(relay)
    (_, mail) = smart_host.wait(2)
    assert mail.auth is not None
    assert mail.auth[2].startswith("T2.")
    assert len(server.requests) == 2
    assert not list(relay.find("deferred"))
    quiet(relay)


@pytest.mark.parametrize(
    ("refusal", "why"),
    [
        (
            Response(
                401,
                json.dumps({"error": "invalid_client", "error_description": f"AADSTS7000215: bad {SECRET}"}).encode(),
                "application/json",
            ),
            "401 invalid_client AADSTS7000215: bad",
        ),
        (Response(503, b"<html>", "text/html"), "503 without JSON"),
        (Response(302, b"", "text/plain", (("Location", "https://localhost/"),)), "302 without JSON"),
        (Response(200, b'{"access_token": "a b", "token_type": "Bearer"}'), "without a usable access_token"),
        (Response(200, b'{"access_token": "' + b"x" * 70_000 + b'"}'), "more than 65536 octets"),
    ],
)
def test_no_token_is_no_refusal_of_mail(
    relay: Relay, smart_host: RecordingSink, tokens: TokenServer, refusal: Response, why: str
) -> None:
    tokens.refusal = refusal
    send(relay)
    alarm = relay.wait_for("token-refused")
    assert alarm["credential"] == "m365"
    assert why in alarm["reason"]
    deferred = relay.wait_for("deferred")
    assert deferred["reply"].startswith("451 4.7.0 No token for credential m365")
    assert why in deferred["detail"]
    assert smart_host.mails == []
    quiet(relay)


def test_a_token_that_the_smart_host_never_takes(
    relay: Relay, server: WebServer, smart_host: RecordingSink, tokens: TokenServer
) -> None:
    smart_host.tokens = set()
    send(relay)
    assert relay.wait_for("deferred")["reply"].startswith("451 4.7.3 Authentication unsuccessful")
    assert len(server.requests) == 2
    smart_host.tokens = tokens.tokens
    smart_host.wait(1)
    quiet(relay)


def test_a_token_server_that_cannot_prove_its_name(
    start_relay: StartRelay, smart_host: RecordingSink, tokens: TokenServer, ca: LabCA, tmp_path: Path
) -> None:
    secret = tmp_path / "client.secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    stranger = LabCA(tmp_path / "stranger").leaf("localhost")
    with WebServer(stranger.server_context(), tokens) as server:
        credential = (
            '[[credential]]\nname = "m365"\nkind = "oauth2"\nuser = "u"\nclient_id = "app"\nscope = "s"\n'
            f'token_url = "https://localhost:{server.port}/"\nclient_secret_file = "{secret}"\n'
        )
        more = f'smart_host_auth = "m365"\nca = "{ca.path}"\n'
        config = relaying(smart_host.port, delivery=more, more=credential)
        relay = start_relay(config.replace("127.0.0.1:", "localhost:"))
        send(relay)
        assert "certificate verify failed" in relay.wait_for("token-refused")["reason"]
        assert server.requests == []
    quiet(relay)
