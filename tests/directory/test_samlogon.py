"""The call and its answer as impacket has them: what relayd writes is the same call, what it reads the same account."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from impacket.dcerpc.v5 import nrpc

from relayd.netlogon.logon import NetworkLogon
from relayd.netlogon.samlogon import decode_answer, encode_request

ANSWERS = Path(__file__).parents[1] / "unit" / "netlogon" / "samlogon"
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@given(NAMES.filter(bool), NAMES, NAMES, st.binary(min_size=8, max_size=8), st.binary(min_size=25), st.binary())
def test_the_call(account: str, domain: str, workstation: str, challenge: bytes, nt: bytes, lm: bytes) -> None:
    call = nrpc.NetrLogonSamLogonEx(
        encode_request("RELAY01", NetworkLogon(account, domain, workstation, challenge, nt, lm))
    )
    assert call["ComputerName"] == "RELAY01\0"
    assert (call["LogonLevel"], call["LogonInformation"]["tag"], call["ValidationLevel"], call["ExtraFlags"]) == (
        nrpc.NETLOGON_LOGON_INFO_CLASS.NetlogonNetworkInformation,
        nrpc.NETLOGON_LOGON_INFO_CLASS.NetlogonNetworkInformation,
        nrpc.NETLOGON_VALIDATION_INFO_CLASS.NetlogonValidationSamInfo4,
        0,
    )
    network = call["LogonInformation"]["LogonNetwork"]
    identity = network["Identity"]
    assert (identity["UserName"], identity["LogonDomainName"], identity["Workstation"]) == (
        account,
        domain,
        workstation,
    )
    assert identity["ParameterControl"] == 0x830
    assert bytes(network["LmChallenge"]) == challenge
    assert (_octets(network, "NtChallengeResponse"), _octets(network, "LmChallengeResponse")) == (nt, lm)


def _octets(network: Any, name: str) -> bytes:
    # By its name it would be decoded as a text.
    return bytes(network.fields[name].fields["Data"].fields["Data"])


@pytest.mark.parametrize("name", ["alice", "disabled"])
def test_the_answer(name: str) -> None:
    octets = (ANSWERS / f"{name}.answer").read_bytes()
    status, ours = decode_answer(octets)
    theirs = nrpc.NetrLogonSamLogonExResponse(octets)
    assert status == theirs["ErrorCode"]
    if ours is None:
        assert status
        return
    info = theirs["ValidationInformation"]["ValidationSam4"]
    assert (ours.name, ours.domain) == (info["EffectiveName"], info["LogonDomainName"])
    assert ours.domain_sid == info["LogonDomainId"].formatCanonical()
    assert (ours.user, ours.primary, ours.flags) == (info["UserId"], info["PrimaryGroupId"], info["UserFlags"])
    assert ours.groups == tuple(group["RelativeId"] for group in info["GroupIds"])
    assert ours.session_key == bytes(info["UserSessionKey"])


def test_extra_sids() -> None:
    """In an answer that impacket made: Samba's has none."""
    answer = nrpc.NetrLogonSamLogonExResponse()
    answer["ValidationInformation"]["tag"] = 6
    answer["Authoritative"] = 1
    answer["ExtraFlags"] = 0
    answer["ErrorCode"] = 0
    info = answer["ValidationInformation"]["ValidationSam4"]
    info["EffectiveName"] = "alice"
    info["UserSessionKey"], info["LMKey"] = bytes(16), bytes(8)  # else it leaves them out
    info["LogonDomainId"].fromCanonical("S-1-5-21-1-2-3")
    wanted = {"S-1-5-21-9-9-9-1200": 7, "S-1-18-1": 7, "S-1-5-9": 0x14, "S-1-5-11": 0x3}
    for text, attributes in wanted.items():
        sid = nrpc.NETLOGON_SID_AND_ATTRIBUTES()
        sid["Sid"].fromCanonical(text)
        sid["Attributes"] = attributes
        info["ExtraSids"].append(sid)
    info["SidCount"] = len(wanted)
    _, ours = decode_answer(answer.getData())
    assert ours is not None
    assert (ours.name, ours.domain_sid) == ("alice", "S-1-5-21-1-2-3")
    assert ours.extra == ("S-1-5-21-9-9-9-1200", "S-1-18-1")
