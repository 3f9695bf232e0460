"""AUTH EXTERNAL: the mechanism, and a session whose client shows a certificate."""

from __future__ import annotations

from base64 import b64encode
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from relayd.auth.certificate import certificate_name
from relayd.auth.credentials import ClientCertificate, IClientCertificate
from relayd.channel_binding import end_point_binding
from relayd.model import Client, Fault, Peer, Principal, Reply
from relayd.policy import Policy
from relayd.settings import Authentication, Console, Domain, Listener, Server, Settings, TlsMode
from relayd.smtpd import Challenge, Done, ServerTls
from relayd.smtpd.client_certificates import ClientCertificates
from relayd.smtpd.external import External
from tests.lab.ca import LabCA
from tests.unit.smtpd.fakes import FakeAnonymous, FakeRealm
from tests.unit.smtpd.talk import Talk

CLIENT = Client(Peer(ip_address("192.0.2.7")), "test")


@implementer(ICredentialsChecker)
class Names:
    """Takes a verified certificate's common name for an account."""

    credentialInterfaces = (IClientCertificate,)

    def __init__(self) -> None:
        self.fault: Exception | None = None

    def requestAvatarId(self, credentials: ClientCertificate) -> Deferred[Any]:
        tls = credentials.client.tls
        assert tls is not None
        if tls.undecided:
            return fail(Fault(Reply.of(454, "4.7.0", "Temporary authentication failure"), tls.undecided))
        name = certificate_name(x509.load_der_x509_certificate(tls.certificate)).removeprefix("CN=")
        if credentials.authorise not in ("", name):
            return fail(UnauthorizedLogin("asks to act as another"))
        return succeed(Principal(name, "EXTERNAL", "certificate"))


class Setting:
    def __init__(self, directory: Path) -> None:
        self.server = LabCA(directory / "server").leaf()
        self.ca = LabCA(directory / "clients", "clients")
        self.alice = self.ca.leaf("alice", client=True)

    def talk(self, crl: Path | None = None, mode: TlsMode = TlsMode.STARTTLS) -> Talk:
        """A session under the real policy, before its handshake."""
        clients = ClientCertificates(self.ca.path, crl)
        talk = Talk(
            tls=ServerTls(self.server.chain, self.server.key, clients=clients),
            policy=_policy(mode),
            mode=mode,
            connect=False,
        )
        talk.server.mechanisms = {**talk.server.mechanisms, "EXTERNAL": External}
        talk.session.portal = Portal(FakeRealm(), [Names(), FakeAnonymous(), talk.checker])
        talk.connect()
        return talk


def _policy(mode: TlsMode) -> Any:
    """The real one, with passwords and certificates alone."""
    listener = Listener(name="test", tls=mode, authentication=Authentication(integrated=False))
    server, console = Server("relay.example", Path()), Console(Path("control.sock"))
    return Policy(Settings(Path("relayd.toml"), server, console, domains=(Domain("x.example"),), listeners=(listener,)))


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("external"))


def offered(hello: str) -> list[str]:
    return next(line[4:].split()[1:] for line in hello.splitlines() if line[4:].startswith("AUTH"))


def encoded(text: str) -> str:
    return b64encode(text.encode()).decode()


class TestMechanism:
    def test_asks_once(self) -> None:
        mechanism = External(CLIENT)
        assert mechanism.step(None) == Challenge(b"")
        assert mechanism.step(b"alice") == Done(ClientCertificate("alice", CLIENT))
        assert mechanism.user == "alice"

    def test_nothing_is_the_certificates_own(self) -> None:
        assert External(CLIENT).step(b"") == Done(ClientCertificate("", CLIENT))

    @pytest.mark.parametrize("response", [b"\xff", b"al\0ice", b"\0"])
    def test_malformed(self, response: bytes) -> None:
        with pytest.raises(Fault) as refused:
            External(CLIENT).step(response)
        assert refused.value.reply.code == 501


class TestSession:
    @pytest.mark.parametrize("mode", [TlsMode.STARTTLS, TlsMode.IMPLICIT])
    @pytest.mark.parametrize("command", ["AUTH EXTERNAL =", f"AUTH EXTERNAL {encoded('alice')}", "AUTH EXTERNAL"])
    def test_alice(self, setting: Setting, mode: TlsMode, command: str) -> None:
        talk = setting.talk(mode=mode)
        if mode is TlsMode.STARTTLS:
            assert "EXTERNAL" not in talk.hello()
            assert talk.line("AUTH EXTERNAL =").startswith("504 5.5.4")
            assert talk.line("STARTTLS").startswith("220")
        talk.start_tls(setting.alice)
        tls = talk.session.client.tls
        assert tls is not None
        assert tls.binding == end_point_binding(setting.server.certificate)
        assert offered(talk.hello()) == ["EXTERNAL", "PLAIN", "LOGIN"]
        answer = talk.line(command)
        if command == "AUTH EXTERNAL":
            assert answer == "334 "
            answer = talk.line("")
        assert answer == "235 2.7.0 Authentication successful"
        assert talk.event("authenticated").user == "alice"
        assert talk.event("authenticated").source == "certificate"
        assert "EXTERNAL" not in talk.hello()

    def test_a_client_without_a_certificate_is_not_disturbed(self, setting: Setting) -> None:
        talk = setting.talk()
        talk.hello()
        talk.line("STARTTLS")
        talk.start_tls()
        assert offered(talk.hello()) == ["PLAIN", "LOGIN"]
        assert talk.line("AUTH EXTERNAL =").startswith("504 5.5.4")
        assert talk.line("AUTH PLAIN AGFsaWNlAHNlY3JldA==").startswith("235")

    def test_a_bad_one_says_why_in_the_log_alone(self, setting: Setting) -> None:
        talk = setting.talk(setting.ca.crl(setting.alice, filename="bad.crl"))
        talk.hello()
        talk.line("STARTTLS")
        talk.start_tls(setting.alice)
        assert talk.event("tls-started").distrust == "CN=alice: it is revoked"
        assert offered(talk.hello()) == ["PLAIN", "LOGIN"]
        assert talk.line("AUTH EXTERNAL =").startswith("504 5.5.4")
        talk.mail()

    def test_one_that_nobody_can_judge_is_454(self, setting: Setting) -> None:
        talk = setting.talk(setting.ca.crl(filename="late.crl", days=-1))
        talk.hello()
        talk.line("STARTTLS")
        talk.start_tls(setting.alice)
        assert offered(talk.hello())[0] == "EXTERNAL"
        answers = [talk.line("AUTH EXTERNAL =") for _ in range(5)]
        assert answers == ["454 4.7.0 Temporary authentication failure"] * 5
        why = "CN=alice: the list of its issuer in client_crl has expired"
        assert talk.event("authentication-failed").reason == why

    def test_nobody_acts_for_another(self, setting: Setting) -> None:
        talk = setting.talk()
        talk.hello()
        talk.line("STARTTLS")
        talk.start_tls(setting.alice)
        talk.hello()
        assert talk.line(f"AUTH EXTERNAL {encoded('bob')}").startswith("535 5.7.8")
        assert talk.event("authentication-failed").user == "bob"

    @pytest.mark.parametrize(("response", "code"), [("*", "501"), ("!", "501"), ("//8=", "501"), ("AA==", "501")])
    def test_what_is_no_response(self, setting: Setting, response: str, code: str) -> None:
        talk = setting.talk()
        talk.hello()
        talk.line("STARTTLS")
        talk.start_tls(setting.alice)
        talk.hello()
        assert talk.line("AUTH EXTERNAL") == "334 "
        assert talk.line(response).startswith(code)
        assert talk.line("AUTH EXTERNAL =").startswith("235")
