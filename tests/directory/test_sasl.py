"""The integrated mechanisms over a real keytab, without sockets.

python-gssapi and pyspnego are the clients: to the letter of RFC 4752, and off it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gssapi
import pytest
import spnego
from gssapi.raw import OID, ChannelBindings, set_cred_option
from spnego.channel_bindings import GssChannelBindings
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred

from relayd.auth.credentials import KerberosIdentity
from relayd.auth.kerberos import KerberosAcceptor
from relayd.model import Client, Fault, Peer, Tls, client_address
from relayd.smtpd import Challenge, Done
from relayd.smtpd.integrated import integrated_mechanisms
from tests.lab.directory import DirectoryLab
from tests.lab.domain import COMPUTER, RELAY
from tests.unit.smtpd.integrated_fakes import FakeBackend, at_once

BINDING = b"tls-server-end-point:0123456789abcdef0123456789abcdef"
KRB5 = OID.from_int_seq("1.2.840.113554.1.2.2")
SPNEGO = OID.from_int_seq("1.3.6.1.5.5.2")
#: GSS_KRB5_CRED_NO_CI_FLAGS_X: no integrity or confidentiality flag that was not asked for; as Cyrus SASL has it.
NO_CI_FLAGS = OID.from_int_seq("1.2.752.43.13.29")
NO_LAYER = b"\1\0\0\0"
FLAGS = gssapi.RequirementFlag


@pytest.fixture
def tickets(lab: DirectoryLab, monkeypatch: pytest.MonkeyPatch) -> Path:
    """alice's ticket-granting ticket; this process is a client in the lab's realm."""
    cache = lab.kinit("alice")
    for name, value in lab.environment.items():
        if name.startswith("KRB5"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{cache}")
    return cache


class Server:
    """One exchange."""

    def __init__(self, lab: DirectoryLab, name: str, channel_binding: str = "accept", tls: bool = False) -> None:
        client = Client(
            Peer(client_address("192.0.2.7")), "smtp", tls=Tls("TLSv1.3", "", binding=BINDING) if tls else None
        )
        acceptor = KerberosAcceptor(lab.keytab)
        self.mechanism: Any = integrated_mechanisms(acceptor, FakeBackend(), at_once, channel_binding)[name](client)

    def step(self, response: bytes) -> Any:
        """What it makes of a response.

        :raises Exception: what it failed with.
        """
        outcome = self.mechanism.step(response)
        if isinstance(outcome, Deferred):
            caught: list[Any] = []
            outcome.addCallbacks(caught.append, lambda failure: caught.append(failure.value))
            (outcome,) = caught
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def challenge(self, response: bytes) -> bytes:
        step = self.step(response)
        assert isinstance(step, Challenge)
        return step.octets

    def identity(self, response: bytes) -> KerberosIdentity:
        step = self.step(response)
        assert isinstance(step, Done)
        assert isinstance(step.credentials, KerberosIdentity)
        return step.credentials


def initiator(
    mech: OID,
    *,
    service: str = "smtp",
    flags: int = FLAGS.mutual_authentication | FLAGS.integrity,
    bare: bool = False,
    binding: bytes = b"",
) -> gssapi.SecurityContext:
    """A client's security context.

    :param bare: without flags that MIT adds by itself.
    """
    credentials = gssapi.Credentials(usage="initiate", mechs=[mech])
    if bare:
        set_cred_option(NO_CI_FLAGS, credentials, b"")
    return gssapi.SecurityContext(
        name=gssapi.Name(f"{service}@{RELAY}", gssapi.NameType.hostbased_service),
        creds=credentials,
        mech=mech,
        usage="initiate",
        flags=flags,
        channel_bindings=ChannelBindings(application_data=binding) if binding else None,
    )


def established(server: Server, context: gssapi.SecurityContext) -> bytes:
    """Establishes the context; what the server says after its last token."""
    token = context.step()
    assert token is not None
    while not context.complete:
        answer = context.step(server.challenge(token))
        token = answer or b""
    return server.challenge(token)


MECHS = pytest.mark.parametrize("mech", [KRB5, SPNEGO], ids=["raw", "SPNEGO"])


@pytest.mark.usefixtures("tickets")
class TestGssapi:
    @MECHS
    @pytest.mark.parametrize("service", ["smtp", "SMTP", "SMTPSVC"])
    def test_to_the_rfc(self, lab: DirectoryLab, mech: OID, service: str) -> None:
        server, context = Server(lab, "GSSAPI"), initiator(mech, service=service)
        offered = context.unwrap(established(server, context))
        assert offered.message == NO_LAYER, "no layer, and no longest message"
        assert not offered.encrypted
        identity = server.identity(context.wrap(NO_LAYER, False).message)
        assert (identity.principal, identity.mechanism) == (f"alice@{lab.realm}", "GSSAPI")
        assert identity.pac is not None
        assert identity.pac.name == "alice"

    @MECHS
    @pytest.mark.parametrize("authzid", [b"alice", b"alice@LAB.EXAMPLE", b"LAB\\ALICE"])
    def test_authorisation_identity(self, lab: DirectoryLab, mech: OID, authzid: bytes) -> None:
        server, context = Server(lab, "GSSAPI"), initiator(mech)
        established(server, context)
        assert server.identity(context.wrap(NO_LAYER + authzid, False).message)

    def test_of_somebody_else(self, lab: DirectoryLab) -> None:
        server, context = Server(lab, "GSSAPI"), initiator(KRB5)
        established(server, context)
        with pytest.raises(UnauthorizedLogin, match="asks to act as another user: bob"):
            server.step(context.wrap(NO_LAYER + b"bob", False).message)

    @MECHS
    def test_dotnet_puts_the_length_in_front(self, lab: DirectoryLab, mech: OID) -> None:
        server, context = Server(lab, "GSSAPI"), initiator(mech)
        established(server, context)
        wrapped = context.wrap(NO_LAYER, False).message
        assert server.identity(len(wrapped).to_bytes(4, "little") + wrapped)

    def test_an_encrypted_answer(self, lab: DirectoryLab) -> None:
        server, context = Server(lab, "GSSAPI"), initiator(KRB5)
        established(server, context)
        assert server.identity(context.wrap(NO_LAYER, True).message)

    @pytest.mark.parametrize("layer", [2, 4, 7])
    def test_a_layer_that_was_not_offered(self, lab: DirectoryLab, layer: int) -> None:
        server, context = Server(lab, "GSSAPI"), initiator(KRB5)
        established(server, context)
        with pytest.raises(UnauthorizedLogin, match="was not offered"):
            server.step(context.wrap(bytes([layer]) + b"\0\xff\xff", False).message)

    def test_an_altered_answer(self, lab: DirectoryLab) -> None:
        server, context = Server(lab, "GSSAPI"), initiator(KRB5)
        established(server, context)
        wrapped = context.wrap(NO_LAYER, False).message
        with pytest.raises(UnauthorizedLogin, match="unwrap"):
            server.step(wrapped[:-1] + bytes([wrapped[-1] ^ 1]))

    def test_the_answer_of_another_exchange(self, lab: DirectoryLab) -> None:
        server, context = Server(lab, "GSSAPI"), initiator(KRB5)
        established(server, context)
        other_server, other = Server(lab, "GSSAPI"), initiator(KRB5)
        established(other_server, other)
        with pytest.raises(UnauthorizedLogin, match="unwrap"):
            server.step(other.wrap(NO_LAYER, False).message)

    def test_without_mutual_authentication(self, lab: DirectoryLab) -> None:
        server, context = Server(lab, "GSSAPI"), initiator(KRB5, flags=FLAGS.integrity)
        token = context.step()
        assert context.complete
        assert context.unwrap(server.challenge(token or b"")).message == NO_LAYER
        assert server.identity(context.wrap(NO_LAYER, False).message)

    def test_a_context_without_integrity_can_answer_too(self, lab: DirectoryLab) -> None:
        server, context = Server(lab, "GSSAPI"), initiator(KRB5, flags=FLAGS.mutual_authentication, bare=True)
        assert context.unwrap(established(server, context)).message == NO_LAYER
        assert server.identity(context.wrap(NO_LAYER, False).message)

    @MECHS
    def test_a_token_behind_the_end(self, lab: DirectoryLab, mech: OID) -> None:
        server, context = Server(lab, "GSSAPI"), initiator(mech)
        token = context.step()
        assert token is not None
        server.challenge(token)
        with pytest.raises(UnauthorizedLogin, match="behind the end"):
            server.step(token)

    @MECHS
    def test_replayed(self, lab: DirectoryLab, mech: OID) -> None:
        token = initiator(mech).step()
        assert token is not None
        Server(lab, "GSSAPI").challenge(token)
        with pytest.raises(UnauthorizedLogin, match="replay"):
            Server(lab, "GSSAPI").step(token)

    @MECHS
    def test_cut_short(self, lab: DirectoryLab, mech: OID) -> None:
        token = initiator(mech).step()
        assert token is not None
        for length in (1, 2, 10, 20, 50, len(token) // 2, len(token) - 1):
            with pytest.raises(UnauthorizedLogin):
                Server(lab, "GSSAPI").step(token[:length])

    def test_any_octet_wrong(self, lab: DirectoryLab) -> None:
        token = initiator(SPNEGO).step()
        assert token is not None
        for at in [*range(100), *range(100, len(token), 97)]:
            server = Server(lab, "GSSAPI")
            try:
                server.step(token[:at] + bytes([token[at] ^ 0x55]) + token[at + 1 :])
            except (UnauthorizedLogin, Fault):
                continue
            # An octet that nothing depends on, or another mechanism was taken for the first of the list.
            assert server.mechanism.user in ("", f"alice@{lab.realm}")


@pytest.mark.usefixtures("tickets")
class TestGssSpnego:
    @MECHS
    def test_as_cyrus_has_it(self, lab: DirectoryLab, mech: OID) -> None:
        server = Server(lab, "GSS-SPNEGO")
        context = initiator(mech, flags=FLAGS.mutual_authentication | FLAGS.out_of_sequence_detection, bare=True)
        token = context.step()
        assert token is not None
        assert not context.step(server.challenge(token))
        assert context.complete
        assert server.identity(b"").mechanism == "GSS-SPNEGO"

    @pytest.mark.parametrize("flags", [FLAGS.integrity, FLAGS.confidentiality])
    def test_a_layer_is_refused(self, lab: DirectoryLab, flags: int) -> None:
        server = Server(lab, "GSS-SPNEGO")
        context = initiator(SPNEGO, flags=FLAGS.mutual_authentication | flags, bare=True)
        with pytest.raises(UnauthorizedLogin, match="with a security layer, which is not served"):
            server.step(context.step() or b"")


@pytest.mark.usefixtures("tickets")
class TestChannel:
    @MECHS
    @pytest.mark.parametrize("rule", ["ignore", "accept", "require"])
    def test_bound(self, lab: DirectoryLab, mech: OID, rule: str) -> None:
        server, context = Server(lab, "GSSAPI", rule, tls=True), initiator(mech, binding=BINDING)
        established(server, context)
        assert server.identity(context.wrap(NO_LAYER, False).message)

    @MECHS
    @pytest.mark.parametrize("rule", ["accept", "require"])
    def test_to_another(self, lab: DirectoryLab, mech: OID, rule: str) -> None:
        server = Server(lab, "GSSAPI", rule, tls=True)
        with pytest.raises(UnauthorizedLogin, match="channel"):
            server.step(initiator(mech, binding=BINDING + b"!").step() or b"")

    @MECHS
    def test_to_none(self, lab: DirectoryLab, mech: OID) -> None:
        server, context = Server(lab, "GSSAPI", "accept", tls=True), initiator(mech)
        established(server, context)
        assert server.identity(context.wrap(NO_LAYER, False).message)
        with pytest.raises(UnauthorizedLogin, match="channel"):
            Server(lab, "GSSAPI", "require", tls=True).step(initiator(mech).step() or b"")


@pytest.mark.usefixtures("tickets")
class TestPyspnego:
    @pytest.mark.parametrize("protocol", ["kerberos", "negotiate"])
    def test_gssapi(self, lab: DirectoryLab, protocol: str) -> None:
        server = Server(lab, "GSSAPI", "require", tls=True)
        context = spnego.client(
            hostname=RELAY,
            service="smtp",
            protocol=protocol,
            channel_bindings=GssChannelBindings(application_data=BINDING),
        )
        token: bytes | None = context.step()
        while token is not None and not context.complete:
            token = context.step(server.challenge(token))
        offered = context.unwrap(server.challenge(token or b""))
        assert offered.data == NO_LAYER
        assert server.identity(context.wrap(NO_LAYER, encrypt=False).data).principal == f"alice@{lab.realm}"


@pytest.mark.usefixtures("tickets")
def test_a_service_that_the_keytab_has_no_key_of(lab: DirectoryLab) -> None:
    """Ours, not the client's: the controller issued the ticket."""
    context = gssapi.SecurityContext(
        name=gssapi.Name(f"{COMPUTER}@{lab.realm}", gssapi.NameType.kerberos_principal), mech=KRB5, usage="initiate"
    )
    with pytest.raises(Fault) as fault:
        Server(lab, "GSSAPI").step(context.step() or b"")
    assert fault.value.reply.code == 454
