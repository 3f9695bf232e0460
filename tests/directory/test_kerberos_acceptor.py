"""Kerberos from the acceptor's side, with tickets of the lab's controller: who is let in, and who is at fault."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gssapi
import krb5
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from impacket.krb5.pac import VALIDATION_INFO
from spnego._spnego import NegTokenInit, NegTokenResp, pack_mech_type_list, unpack_token
from twisted.cred.error import UnauthorizedLogin

from relayd.auth.authenticator import unbound
from relayd.auth.gss_token import kerberos_token, request
from relayd.auth.kerberos import KerberosAcceptor, KerberosContext, kerberos_missing
from relayd.model import Fault
from tests.directory.conftest import StartLab
from tests.lab import domain, tickets
from tests.lab.directory import DirectoryLab
from tests.lab.tickets import KERBEROS, SPNEGO, initiator

HERE, ELSEWHERE = b"tls-server-end-point:here", b"tls-server-end-point:elsewhere"
INTEGRITY = [gssapi.RequirementFlag.integrity]  # without mutual authentication: no answer, and no error token
BOTH = pytest.mark.parametrize("mechanism", [KERBEROS, SPNEGO], ids=["raw", "spnego"])
FLAGS = pytest.mark.parametrize("flags", [None, INTEGRITY], ids=["mutual", "one-way"])


@pytest.fixture(autouse=True)
def _private(lab: DirectoryLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRB5_CONFIG", str(lab.krb5_conf))
    monkeypatch.setenv("KRB5RCACHENAME", f"file2:{tmp_path}/replays")
    monkeypatch.delenv("KRB5_KTNAME", raising=False)


@pytest.fixture
def acceptor(lab: DirectoryLab) -> KerberosAcceptor:
    return KerberosAcceptor(lab.keytab)


@pytest.fixture(scope="session")
def cache(lab: DirectoryLab) -> Path:
    return lab.kinit("alice")


def accepted(acceptor: KerberosAcceptor, token: bytes) -> KerberosContext:
    context = acceptor.context(b"", "ignore")
    context.step(token)
    assert context.complete
    return context


def refused(acceptor: KerberosAcceptor, token: bytes) -> str:
    """Why *token* is refused, for what is the client's fault."""
    with pytest.raises(UnauthorizedLogin) as caught:
        acceptor.context(b"", "ignore").step(token)
    return str(caught.value)


def failed(acceptor: KerberosAcceptor, token: bytes) -> str:
    """Why *token* cannot be judged, for what is our fault."""
    with pytest.raises(Fault) as caught:
        acceptor.context(b"", "ignore").step(token)
    assert caught.value.reply.code == 454
    return caught.value.detail


# ---- who it is ------------------------------------------------------------------------------------------------


def test_nothing_is_missing() -> None:
    assert kerberos_missing() == ""


@BOTH
@pytest.mark.parametrize("name", ["smtp", "SMTP", "SMTPSVC"])
def test_every_name_of_the_service(acceptor: KerberosAcceptor, cache: Path, mechanism: gssapi.OID, name: str) -> None:
    client = initiator(cache, f"{name}/{domain.RELAY}", mechanism)
    context = acceptor.context(b"", "accept")
    client.step(context.step(client.step()))
    assert client.complete
    assert context.complete
    assert context.spnego == (mechanism == SPNEGO)
    assert context.principal == "alice@LAB.EXAMPLE"
    # The layer of RFC 4752: integrity alone, both ways.
    assert client.unwrap(context.wrap(b"\1\0\0\0")) == (b"\1\0\0\0", False, 0)
    assert context.unwrap(client.wrap(b"\1\0\0\0", False).message) == b"\1\0\0\0"
    assert context.unwrap(client.wrap(b"\1\0\0\0", True).message) == b"\1\0\0\0"


@BOTH
def test_without_mutual_authentication(acceptor: KerberosAcceptor, cache: Path, mechanism: gssapi.OID) -> None:
    client = initiator(cache, mechanism=mechanism, flags=INTEGRITY)
    context = accepted(acceptor, client.step())
    assert context.unwrap(client.wrap(b"\1\0\0\0", False).message) == b"\1\0\0\0"


@pytest.mark.parametrize("name", ["alice", "bob", "carol", "jörg", domain.COMPUTER, domain.ADMINISTRATOR])
def test_account_and_nested_groups_in_the_pac(lab: DirectoryLab, acceptor: KerberosAcceptor, name: str) -> None:
    context = accepted(acceptor, initiator(lab.kinit(name)).step())
    assert context.principal == f"{name}@LAB.EXAMPLE"
    pac = context.pac
    assert pac is not None
    assert (pac.name, pac.domain) == (name, domain.NETBIOS)
    assert pac.sid == sid_of(lab.attributes(name, "objectSid")["objectSid"][0])
    assert pac.upn == (f"carol@{domain.ALTERNATE_SUFFIX}" if name == "carol" else f"{name}@{domain.DOMAIN}")
    connection = lab.administrator()
    connection.search(lab.dn(name), "(objectClass=*)", "BASE", attributes=["tokenGroups"])
    groups = {sid_of(each) for each in connection.response[0]["raw_attributes"]["tokenGroups"]}
    # tokenGroups has the built-in groups of the controller itself as well, which are no business of other hosts.
    assert {each for each in groups if not each.startswith("S-1-5-32-")} <= pac.group_sids


def sid_of(octets: bytes) -> str:
    parts = [int.from_bytes(octets[at : at + 4], "little") for at in range(8, len(octets), 4)]
    return "-".join(("S-1", str(int.from_bytes(octets[2:8], "big")), *map(str, parts)))


@pytest.mark.parametrize("name", ["alice", "jörg", domain.COMPUTER, domain.ADMINISTRATOR])
def test_pac_reads_as_impacket_reads_it(lab: DirectoryLab, acceptor: KerberosAcceptor, name: str) -> None:
    token = initiator(lab.kinit(name)).step()
    pac = accepted(acceptor, token).pac
    accepting = gssapi.Credentials(
        usage="accept", mechs=[KERBEROS], store={"keytab": f"FILE:{lab.keytab}", "rcache": "none:"}
    )
    context = gssapi.SecurityContext(creds=accepting, usage="accept")
    context.step(token)
    octets = gssapi.raw.get_name_attribute(context.initiator_name, b"urn:mspac:logon-info").values[0]
    read = VALIDATION_INFO()
    read.fromString(octets)
    read.fromStringReferents(octets[len(read) :])
    account = read["Data"]
    assert pac is not None
    assert account["EffectiveName"] == pac.name
    base = account["LogonDomainId"].formatCanonical()
    assert pac.sid == f"{base}-{account['UserId']}"
    groups = {f"{base}-{group['RelativeId']}" for group in account["GroupIds"]}
    groups |= {each["Sid"].formatCanonical() for each in account["ExtraSids"]}
    assert pac.group_sids == groups | {f"{base}-{account['PrimaryGroupId']}"}


def test_ticket_without_a_pac(lab: DirectoryLab, acceptor: KerberosAcceptor, tmp_path: Path) -> None:
    made = subprocess.run(
        ["kinit", "-c", f"FILE:{tmp_path}/cache", "--no-request-pac", "alice"],
        env=lab.environment,
        input=f"{lab.users['alice']}\n",
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    context = accepted(acceptor, initiator(tmp_path / "cache").step())
    assert context.principal == "alice@LAB.EXAMPLE"
    assert context.pac is None


@pytest.mark.parametrize("realm", ["WELLKNOWN:ANONYMOUS", "LAB.EXAMPLE"])
def test_ticket_of_nobody(lab: DirectoryLab, acceptor: KerberosAcceptor, cache: Path, realm: str) -> None:
    """A KDC gives them to everybody (RFC 8062); the initiator need not say in its flags that it has one."""
    assert "anonymous" in refused(acceptor, tickets.named(cache, lab.keytab, ["WELLKNOWN", "ANONYMOUS"], realm))
    context = accepted(acceptor, tickets.named(cache, lab.keytab, ["alice", "anonymous"], "LAB.EXAMPLE"))
    assert (context.principal, context.pac) == ("alice/anonymous@LAB.EXAMPLE", None)


@BOTH
def test_ticket_of_48_kib(lab: DirectoryLab, acceptor: KerberosAcceptor, cache: Path, mechanism: gssapi.OID) -> None:
    big = tickets.edited(cache, lab.keytab, tickets.edited_pac(lab.keytab, tickets.with_groups(6100)))
    token = initiator(big, mechanism=mechanism).step()
    assert 48 * 1024 < len(token) < 64 * 1024
    pac = accepted(acceptor, token).pac
    assert pac is not None
    assert len(pac.group_sids) == 6105


def test_pac_with_a_wrong_signature(lab: DirectoryLab, acceptor: KerberosAcceptor, cache: Path) -> None:
    forged = tickets.edited(cache, lab.keytab, tickets.edited_pac(lab.keytab, tickets.with_groups(1), sign=False))
    context = accepted(acceptor, initiator(forged).step())
    assert context.pac is None


def test_pac_that_cannot_be_read(lab: DirectoryLab, acceptor: KerberosAcceptor, cache: Path) -> None:
    odd = tickets.edited(cache, lab.keytab, tickets.edited_pac(lab.keytab, lambda logon: logon[:100]))
    context = accepted(acceptor, initiator(odd).step())
    with pytest.raises(Fault, match=r"PAC of alice@LAB\.EXAMPLE: .* cut short"):
        assert context.pac


# ---- channel bindings -----------------------------------------------------------------------------------------


@BOTH
@FLAGS
@pytest.mark.parametrize("aware", [False, True], ids=["unaware", "aware"])
@pytest.mark.parametrize(
    ("mode", "bound", "verdict"),
    [
        ("ignore", b"", ""),
        ("ignore", HERE, ""),
        ("ignore", ELSEWHERE, ""),
        ("accept", b"", ""),
        ("accept", HERE, ""),
        ("accept", ELSEWHERE, "another channel"),
        ("require", b"", "channel"),
        ("require", HERE, ""),
        ("require", ELSEWHERE, "another channel"),
    ],
)
def test_channel_bindings(
    lab: DirectoryLab,
    acceptor: KerberosAcceptor,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mechanism: gssapi.OID,
    flags: list[gssapi.RequirementFlag] | None,
    aware: bool,
    mode: str,
    bound: bytes,
    verdict: str,
) -> None:
    """An aware client says that it knows of bindings (MS-KILE 3.2.5.8), as Windows does whether or not it has any."""
    conf = tmp_path / "krb5.conf"
    says = f"[libdefaults]\nclient_aware_channel_bindings = {str(aware).lower()}"
    conf.write_text(lab.krb5_conf.read_text().replace("[libdefaults]", says))
    monkeypatch.setenv("KRB5_CONFIG", str(conf))
    client = initiator(cache, mechanism=mechanism, binding=bound, flags=flags)
    token = client.step()
    context = acceptor.context(HERE, mode)
    if verdict:
        with pytest.raises(UnauthorizedLogin, match=verdict):
            context.step(token)
        assert not context.complete
        return
    answer = context.step(token)
    assert context.principal == "alice@LAB.EXAMPLE"
    if answer:
        client.step(answer)
    assert client.complete
    assert context.unwrap(client.wrap(b"layer", False).message) == b"layer"
    # Whatever way it went, it was noted as used.
    with pytest.raises(UnauthorizedLogin, match="replay"):
        acceptor.context(HERE, mode).step(token)


def test_required_bindings_without_tls(acceptor: KerberosAcceptor, cache: Path) -> None:
    with pytest.raises(UnauthorizedLogin, match="no TLS"):
        acceptor.context(b"", "require").step(initiator(cache, binding=HERE).step())


def test_a_token_bound_elsewhere_behind_one_that_is_not_bound(
    lab: DirectoryLab, acceptor: KerberosAcceptor, cache: Path
) -> None:
    """MIT 1.20 does not hold fields of SPNEGO to the length of what is around them, and reads on inside of negState:
    so it accepts another token than the one that its bindings are looked up in."""

    def der(tag: int, *parts: bytes) -> bytes:
        content = b"".join(parts)
        return bytes((tag, 0x82)) + len(content).to_bytes(2, "big") + content

    victims = initiator(cache, binding=ELSEWHERE, flags=INTEGRITY).step()
    own = initiator(lab.kinit("bob"), flags=INTEGRITY).step()
    kerberos = bytes.fromhex("06092a864886f712010202")
    offer = der(0x60, bytes.fromhex("06062b0601050502"), der(0xA0, der(0x30, der(0xA0, der(0x30, kerberos)))))
    hidden = der(0xA0, b"\x0a\x01\x01", der(0xA2, der(0x04, victims)))
    context = acceptor.context(HERE, "accept")
    context.step(offer)
    with pytest.raises(UnauthorizedLogin, match=r"bob@LAB\.EXAMPLE in the place of one bound elsewhere"):
        context.step(der(0xA1, der(0x30, hidden, der(0xA2, der(0x04, own)))))
    assert not context.complete


# ---- what is the client's fault -------------------------------------------------------------------------------


@BOTH
@FLAGS
def test_replay(acceptor: KerberosAcceptor, cache: Path, mechanism: gssapi.OID, flags: list[int] | None) -> None:
    token = initiator(cache, mechanism=mechanism, flags=flags).step()
    accepted(acceptor, token)
    assert refused(acceptor, token) == "replay (ticket for smtp/relay.lab.example@LAB.EXAMPLE, kvno 1)"


@BOTH
@FLAGS
def test_expired_ticket(
    lab: DirectoryLab, acceptor: KerberosAcceptor, cache: Path, mechanism: gssapi.OID, flags: list[int] | None
) -> None:
    old = tickets.edited(cache, lab.keytab, tickets.without_validity)
    token = initiator(old, mechanism=mechanism, flags=flags).step()
    assert "expired ticket" in refused(acceptor, token)


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (b"", "no token"),
        (b"hello", "no token"),
        (b"\x60", "without a mechanism"),
        (b"\x60\x03\x06\x01\x2a", "neither Kerberos nor SPNEGO"),
        (b"\x60" * 40000, "without a mechanism"),
        (b"NTLMSSP\0\1\0\0\0" + bytes(24), "neither Kerberos nor SPNEGO"),
        (NegTokenInit(["1.3.6.1.4.1.311.2.2.10"], mech_token=b"NTLMSSP\0" + bytes(24)).pack(), "malformed"),
    ],
)
def test_garbage(acceptor: KerberosAcceptor, token: bytes, reason: str) -> None:
    assert reason in refused(acceptor, token)


@BOTH
def test_cut_short(acceptor: KerberosAcceptor, cache: Path, mechanism: gssapi.OID) -> None:
    token = initiator(cache, mechanism=mechanism).step()
    for length in (2, 10, 20, 30, 60, 100, 500, len(token) - 1):
        refused(acceptor, token[:length])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_tokens(acceptor: KerberosAcceptor, cache: Path, data: st.DataObject) -> None:
    original = token_of(cache, data.draw(st.sampled_from(["raw", "spnego"])))
    at = data.draw(st.integers(0, len(original) - 1))
    octets = data.draw(st.binary(min_size=1, max_size=4))
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 40]))
    token = original[:at] + octets + original[at + len(octets) : len(original) - cut]
    descriptors = os.listdir("/proc/self/fd")
    context = acceptor.context(HERE, data.draw(st.sampled_from(["ignore", "accept", "require"])))
    said = ""
    try:
        context.step(token)
    except (UnauthorizedLogin, Fault) as error:
        said = str(error)
    assert said.isprintable()
    assert not (said and context.complete)
    if context.complete:
        assert context.principal == "alice@LAB.EXAMPLE"
    assert os.listdir("/proc/self/fd") == descriptors


TOKENS: dict[str, bytes] = {}


def token_of(cache: Path, kind: str) -> bytes:
    if kind not in TOKENS:
        TOKENS[kind] = initiator(cache, mechanism=KERBEROS if kind == "raw" else SPNEGO).step()
    return TOKENS[kind]


def test_context_takes_no_token_after_its_end(acceptor: KerberosAcceptor, cache: Path) -> None:
    context = accepted(acceptor, initiator(cache).step())
    with pytest.raises(UnauthorizedLogin, match="too many"):
        context.step(initiator(cache).step())
    broken = acceptor.context(b"", "ignore")
    with pytest.raises(UnauthorizedLogin, match="no token"):
        broken.step(b"garbage")
    with pytest.raises(UnauthorizedLogin, match="too many"):
        broken.step(initiator(cache).step())


def test_nothing_is_known_before_the_end(acceptor: KerberosAcceptor) -> None:
    context = acceptor.context(b"", "ignore")
    for ask in (lambda: context.principal, lambda: context.pac, lambda: context.wrap(b""), lambda: context.unwrap(b"")):
        with pytest.raises(UnauthorizedLogin, match="not established"):
            ask()


def test_unwrap_of_what_the_initiator_did_not_wrap(acceptor: KerberosAcceptor, cache: Path) -> None:
    client = initiator(cache)
    context = accepted(acceptor, client.step())
    wrapped = context.wrap(b"\1\0\0\0")
    for octets in (b"", b"\1\0\0\0", bytes(64), wrapped):  # its own is not the initiator's
        with pytest.raises(UnauthorizedLogin, match="unwrap"):
            context.unwrap(octets)


# ---- SPNEGO ---------------------------------------------------------------------------------------------------


def test_spnego_as_windows_lists_its_mechanisms(acceptor: KerberosAcceptor, cache: Path) -> None:
    """Windows lists Kerberos by a wrong identifier first, then by the right one, then NTLM; its token is Kerberos'."""
    wrong, ntlm = "1.2.840.48018.1.2.2", "1.3.6.1.4.1.311.2.2.10"
    client = initiator(cache)
    offer = NegTokenInit([wrong, KERBEROS.dotted_form, ntlm], mech_token=client.step())
    context = acceptor.context(b"", "ignore")
    answer = unpack_token(context.step(offer.pack()))
    assert context.complete
    assert context.spnego
    assert answer.supported_mech in (wrong, KERBEROS.dotted_form)
    client.step(answer.response_token)
    assert client.complete


@pytest.mark.parametrize("aware", [False, True], ids=["unaware", "aware"])
def test_spnego_whose_first_token_was_for_another_mechanism(
    lab: DirectoryLab,
    acceptor: KerberosAcceptor,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    aware: bool,
) -> None:
    conf = tmp_path / "krb5.conf"
    says = f"[libdefaults]\nclient_aware_channel_bindings = {str(aware).lower()}"
    conf.write_text(lab.krb5_conf.read_text().replace("[libdefaults]", says))
    monkeypatch.setenv("KRB5_CONFIG", str(conf))
    ntlm = "1.3.6.1.4.1.311.2.2.10"
    offer = NegTokenInit([ntlm, KERBEROS.dotted_form], mech_token=b"NTLMSSP\0" + bytes(24))
    context = acceptor.context(HERE, "accept")
    answer = unpack_token(context.step(offer.pack()))
    assert not context.complete
    assert answer.supported_mech == KERBEROS.dotted_form
    # What follows is Kerberos', and both ends sign the list of mechanisms: see RFC 4178 5.
    client = initiator(cache)
    last = unpack_token(context.step(NegTokenResp(response_token=client.step()).pack()))
    client.step(last.response_token)
    assert client.complete
    assert last.mech_list_mic
    signed = client.get_signature(mech_list(offer))
    client.verify_signature(mech_list(offer), last.mech_list_mic)
    context.step(NegTokenResp(mech_list_mic=signed).pack())
    assert context.complete
    assert context.principal == "alice@LAB.EXAMPLE"


def mech_list(offer: NegTokenInit) -> bytes:
    return pack_mech_type_list(offer.mech_types)


# ---- what is ours ---------------------------------------------------------------------------------------------


@BOTH
@FLAGS
def test_keytab_without_the_name(
    acceptor: KerberosAcceptor, cache: Path, mechanism: gssapi.OID, flags: list[int] | None
) -> None:
    token = initiator(cache, "HOST/relay01.lab.example", mechanism, flags=flags).step()
    why = failed(acceptor, token)
    assert why == ("the keytab has no key of that service (ticket for HOST/relay01.lab.example@LAB.EXAMPLE, kvno 1)")


@BOTH
@FLAGS
def test_clock_skew(acceptor: KerberosAcceptor, cache: Path, mechanism: gssapi.OID, flags: list[int] | None) -> None:
    token = initiator(tickets.skewed(cache, 3600), mechanism=mechanism, flags=flags).step()
    assert "clock skew" in failed(acceptor, token)


def test_ticket_of_the_future(lab: DirectoryLab, acceptor: KerberosAcceptor, cache: Path) -> None:
    def in_2037(inside: object) -> None:
        for name, year in (("authtime", 2036), ("starttime", 2036), ("endtime", 2037), ("renew-till", 2037)):
            inside[name] = f"{year}0101000000Z"  # type: ignore[index]

    early = tickets.edited(cache, lab.keytab, in_2037)
    assert "clock skew: the ticket is not yet valid" in failed(acceptor, initiator(early).step())


@BOTH
@FLAGS
def test_key_version_that_the_keytab_has_not(
    lab: DirectoryLab, acceptor: KerberosAcceptor, cache: Path, mechanism: gssapi.OID, flags: list[int] | None
) -> None:
    token = initiator(tickets.edited(cache, lab.keytab, kvno=9, key=bytes(32)), mechanism=mechanism, flags=flags).step()
    why = failed(acceptor, token)
    assert why.startswith("the keytab has no key of that version")
    assert "kvno 9" in why


@BOTH
@FLAGS
def test_another_key_of_the_same_version(
    lab: DirectoryLab, cache: Path, tmp_path: Path, mechanism: gssapi.OID, flags: list[int] | None
) -> None:
    keytab = tmp_path / "keytab"
    write_keytab(keytab, f"{tickets.SERVICE}@LAB.EXAMPLE", bytes(32))
    token = initiator(cache, mechanism=mechanism, flags=flags).step()
    assert "another key than the controller" in failed(KerberosAcceptor(keytab), token)


def write_keytab(keytab: Path, principal: str, key: bytes, kvno: int = 1) -> None:
    context = krb5.init_context()
    target = krb5.kt_resolve(context, f"FILE:{keytab}".encode())
    name = krb5.parse_name_flags(context, principal.encode())
    krb5.kt_add_entry(context, target, name, kvno, 0, krb5.init_keyblock(context, 18, key))


def test_keytab_that_is_no_good(tmp_path: Path, lab: DirectoryLab) -> None:
    missing, empty, text, keyless = (tmp_path / name for name in ("missing", "empty", "text", "keyless"))
    empty.touch()
    text.write_text("not a keytab\n")
    keyless.write_bytes(lab.keytab.read_bytes()[:2])
    for keytab, why in ((missing, "not found"), (empty, "format"), (text, "format"), (keyless, "no keys")):
        with pytest.raises(ValueError, match=f"{keytab}.*{why}"):
            KerberosAcceptor(keytab)
    with pytest.raises(ValueError, match=str(tmp_path)):
        KerberosAcceptor(tmp_path)


@BOTH
def test_keytab_lost_while_running(lab: DirectoryLab, cache: Path, tmp_path: Path, mechanism: gssapi.OID) -> None:
    keytab = tmp_path / "keytab"
    shutil.copy(lab.keytab, keytab)
    acceptor = KerberosAcceptor(keytab)
    accepted(acceptor, initiator(cache, mechanism=mechanism).step())
    keytab.unlink()
    token = initiator(cache, mechanism=mechanism).step()
    assert failed(acceptor, token) == f"keytab {keytab}: No such file or directory"
    keytab.touch()
    assert f"keytab {keytab}" in failed(acceptor, token)
    # The same token is good once it is back: a fault of ours does not use it up.
    shutil.copy(lab.keytab, keytab)
    accepted(acceptor, token)


def test_keytab_replaced_while_running(start_lab: StartLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = start_lab()
    monkeypatch.setenv("KRB5_CONFIG", str(lab.krb5_conf))
    keytab = tmp_path / "keytab"
    shutil.copy(lab.keytab, keytab)
    acceptor = KerberosAcceptor(keytab)
    before = lab.kinit("alice")
    accepted(acceptor, initiator(before).step())
    lab.modify(domain.SERVICE, unicodePwd='"Rotated-1-password"'.encode("utf-16-le"))
    after = lab.kinit("bob")
    assert "no key of that version (ticket for smtp/relay.lab.example@LAB.EXAMPLE, kvno 2)" in failed(
        acceptor, initiator(after).step()
    )
    fresh = tmp_path / "fresh"
    for principal in domain.SPNS:
        domain.tool(lab.directory, "samba-tool", "domain", "exportkeytab", str(fresh), f"--principal={principal}")
    fresh.replace(keytab)
    assert accepted(acceptor, initiator(after).step()).principal == "bob@LAB.EXAMPLE"
    # Whoever has a ticket from before needs the old key still (`relayctl join --rotate` keeps it).
    assert "no key of that version" in failed(acceptor, initiator(before).step())
    assert acceptor.principals == tuple(f"{name}@LAB.EXAMPLE" for name in domain.SPNS)


def test_replay_cache_that_cannot_be_written(
    acceptor: KerberosAcceptor, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KRB5RCACHENAME", "file2:/nonexistent/replays")
    for mechanism in (KERBEROS, SPNEGO):
        assert "/nonexistent/replays" in failed(acceptor, initiator(cache, mechanism=mechanism).step())


# ---- the process ----------------------------------------------------------------------------------------------


def test_system_keytab(lab: DirectoryLab, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRB5_KTNAME", f"FILE:{lab.keytab}")
    acceptor = KerberosAcceptor(None)
    assert acceptor.keytab == str(lab.keytab)
    assert accepted(acceptor, initiator(cache).step()).principal == "alice@LAB.EXAMPLE"
    monkeypatch.setenv("KRB5_KTNAME", "FILE:/nonexistent/keytab")
    with pytest.raises(ValueError, match="/nonexistent/keytab"):
        KerberosAcceptor(None)


def test_environment_does_not_count_where_a_keytab_is_named(
    acceptor: KerberosAcceptor, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KRB5_KTNAME", "FILE:/nonexistent/keytab")
    before = dict(os.environ)
    accepted(acceptor, initiator(cache).step())
    assert dict(os.environ) == before


def test_replays_after_root_was_dropped(lab: DirectoryLab, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replay cache is made by whom the process is when it accepts, not by whom it started as."""
    monkeypatch.delenv("KRB5RCACHENAME")
    # Where everybody may look, which pytest's own directories are not for.
    shared = Path(tempfile.mkdtemp(prefix="replays-"))
    shared.chmod(0o1777)
    try:
        monkeypatch.setenv("KRB5RCACHEDIR", str(shared))
        keytab = shared / "keytab"
        shutil.copy(lab.keytab, keytab)
        keytab.chmod(0o644)
        acceptor = KerberosAcceptor(keytab)
        accepted(acceptor, initiator(cache).step())  # root's own
        token = initiator(cache).step()
        fork = multiprocessing.get_context("fork")
        here, there = fork.Pipe()

        def drop_and_accept() -> None:
            os.setgid(65534)
            os.setuid(65534)
            said = []
            for _ in range(2):
                try:
                    said.append(accepted(acceptor, token).principal)
                except Exception as error:
                    said.append(f"{type(error).__name__}: {error}")
            there.send(said)

        child = fork.Process(target=drop_and_accept)
        child.start()
        assert here.poll(30)
        first, second = here.recv()
        child.join(30)
    finally:
        shutil.rmtree(shared)
    assert first == "alice@LAB.EXAMPLE"
    assert second.startswith("UnauthorizedLogin: replay")


def test_contexts_in_many_threads_leave_nothing_behind(acceptor: KerberosAcceptor, cache: Path) -> None:
    good = [initiator(cache, mechanism=mechanism).step() for mechanism in (KERBEROS, SPNEGO) for _ in range(40)]
    bad = [initiator(cache, "HOST/relay01.lab.example", SPNEGO).step() for _ in range(20)]

    def outcome(token: bytes) -> str:
        try:
            return accepted(acceptor, token).principal
        except (UnauthorizedLogin, Fault) as error:
            return type(error).__name__

    descriptors = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(outcome, good + bad))
    assert said == ["alice@LAB.EXAMPLE"] * 80 + ["Fault"] * 20
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_looking_for_bindings_is_no_use_of_the_token(
    lab: DirectoryLab, acceptor: KerberosAcceptor, cache: Path
) -> None:
    for bound in (b"", HERE):
        token = initiator(cache, mechanism=SPNEGO, binding=bound).step()
        message = request(kerberos_token(token))
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            assert unbound(message, acceptor.keytab_name) == (not bound)
        assert len(os.listdir("/proc/self/fd")) == descriptors
        accepted(acceptor, token)
