"""pyspnego's NTLM client against the mechanisms, the accounts backend and its checker: raw, and in SPNEGO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from spnego._context import GSSMech
from spnego._spnego import NegTokenInit, NegTokenResp, pack_mech_type_list
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred

from relayd.auth import AccountsFile, FailureCount
from relayd.auth.ntlm_accounts import AccountsBackend
from relayd.auth.ntlm_checker import LocalNtlmChecker
from relayd.model import Client, Peer, Principal, Tls, client_address
from relayd.smtpd import Challenge, Done
from relayd.smtpd.integrated import integrated_mechanisms
from tests.unit.auth.ntlm_client import Spnego
from tests.unit.auth.test_accounts import CHEAP
from tests.unit.auth.test_ntlm_accounts import result
from tests.unit.smtpd.integrated_fakes import FakeAcceptor, at_once

BINDING = b"tls-server-end-point:0123456789abcdef0123456789abcdef"
CLIENT = Client(Peer(client_address("192.0.2.7")), "smtp", tls=Tls("TLSv1.3", "", binding=BINDING))
NTLM, NEGOEX, KERBEROS = GSSMech.ntlm.value, GSSMech.negoex.value, GSSMech.kerberos.value


class Server:
    """One exchange, and the checker behind it."""

    def __init__(self, directory: Path, name: str, channel_binding: str = "accept") -> None:
        accounts = AccountsFile(directory / "accounts.json", CHEAP)
        accounts.add("alice", "secret", (), ("App Senders",), nt=True)
        backend = AccountsBackend(accounts, "relay01.corp.example", lambda: 1_700_000_000.0)
        acceptor: Any = FakeAcceptor()
        self.checker = LocalNtlmChecker(FailureCount(3, 60.0, lambda: 0.0), lambda _: channel_binding)
        self.mechanism: Any = integrated_mechanisms(acceptor, backend, at_once, channel_binding)[name](CLIENT)

    def challenge(self, response: bytes) -> bytes:
        step = self.mechanism.step(response)
        if isinstance(step, Deferred):
            step = result(step)
        assert isinstance(step, Challenge)
        return step.octets

    def token(self, response: bytes) -> NegTokenResp:
        octets = self.challenge(response)
        return NegTokenResp.unpack(octets[2 if octets[1] < 0x80 else 2 + octets[1] - 0x80 :])

    def principal(self, response: bytes) -> Principal:
        step = self.mechanism.step(response)
        assert isinstance(step, Done)
        principal: Principal = result(self.checker.requestAvatarId(step.credentials))  # type: ignore[arg-type]
        return principal


def answered(client: Spnego, challenge: bytes | None, mechanisms: list[str]) -> bytes:
    """The client's last token, with the proof of its list."""
    assert challenge is not None
    return NegTokenResp(None, None, client.answer(challenge), client.signature(pack_mech_type_list(mechanisms))).pack()


@pytest.mark.parametrize("name", ["NTLM", "GSSAPI", "GSS-SPNEGO"])
def test_raw(tmp_path: Path, name: str) -> None:
    client, server = Spnego("alice", "secret"), Server(tmp_path, name)
    principal = server.principal(client.answer(server.challenge(client.negotiate)))
    assert principal == Principal("alice", name, "accounts", groups=frozenset({"App Senders"}))
    assert server.mechanism.user == "alice"


@pytest.mark.parametrize("name", ["GSSAPI", "GSS-SPNEGO"])
@pytest.mark.parametrize("mechanisms", [[NTLM], [NTLM, NEGOEX], [NTLM, KERBEROS]])
def test_first_of_the_list(tmp_path: Path, name: str, mechanisms: list[str]) -> None:
    client, server = Spnego("CORP\\alice", "secret"), Server(tmp_path, name)
    challenge = server.token(NegTokenInit(mechanisms, mech_token=client.negotiate).pack())
    assert server.principal(answered(client, challenge.response_token, mechanisms)).mechanism == name
    assert server.mechanism.user == "CORP\\alice"


def test_second_of_the_list(tmp_path: Path) -> None:
    client, server, mechanisms = Spnego("alice", "secret"), Server(tmp_path, "GSSAPI"), [NEGOEX, NTLM]
    assert server.token(NegTokenInit(mechanisms, mech_token=b"of NEGOEX").pack()).supported_mech == NTLM
    challenge = server.token(NegTokenResp(None, None, client.negotiate).pack())
    assert server.principal(answered(client, challenge.response_token, mechanisms)).name == "alice"


def test_a_list_that_somebody_shortened(tmp_path: Path) -> None:
    """Kerberos was struck off on the way, to have the client fall back to NTLM (RFC 4178 7)."""
    client, server = Spnego("alice", "secret"), Server(tmp_path, "GSSAPI")
    challenge = server.token(NegTokenInit([NTLM], mech_token=client.negotiate).pack())
    with pytest.raises(UnauthorizedLogin, match="mechanism list was altered"):
        server.principal(answered(client, challenge.response_token, [KERBEROS, NTLM]))


@pytest.mark.parametrize("channel_binding", ["accept", "require"])
def test_the_channel(tmp_path: Path, channel_binding: str) -> None:
    client, server = Spnego("alice", "secret", binding=BINDING), Server(tmp_path, "NTLM", channel_binding)
    assert server.principal(client.answer(server.challenge(client.negotiate))).name == "alice"


def test_another_channel(tmp_path: Path) -> None:
    client, server = Spnego("alice", "secret", binding=BINDING + b"!"), Server(tmp_path, "GSSAPI")
    with pytest.raises(UnauthorizedLogin, match="another channel"):
        server.principal(client.answer(server.challenge(client.negotiate)))


def test_a_wrong_password(tmp_path: Path) -> None:
    client, server = Spnego("alice", "guess"), Server(tmp_path, "GSSAPI")
    challenge = server.token(NegTokenInit([NTLM], mech_token=client.negotiate).pack())
    with pytest.raises(UnauthorizedLogin, match="wrong password"):
        server.principal(answered(client, challenge.response_token, [NTLM]))
