"""What the directory says of people and computers decides what they may, however they signed in.

And ``relayctl explain --ask-directory`` says beforehand what the log says afterwards.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from relayd.directory.entries import sid_text
from tests.directory.relays import Answer, Log, integrated, running
from tests.directory.sessions import BY_PASSWORD, Session
from tests.lab.directory import DirectoryLab
from tests.lab.domain import COMPUTER
from tests.lab.relay import Event, Relay

SETTINGS = """\
[[domain]]
name = "elsewhere.example"
kind = "remote"
route = ["127.0.0.1:1"]

[authentication]
anonymous = false
"""

SignIn = Callable[[Session, str], Answer]
SignIns = dict[str, SignIn]

#: listener -> its own keys.
LISTENERS = {
    "name": '[listener.relay]\ngroups = ["relay users"]',
    "netbios": '[listener.relay]\ngroups = ["lab\\\\Relay Users"]',
    "dn": '[listener.relay]\ngroups = ["{dn}"]',
    "sid": '[listener.relay]\ngroups = ["{sid}"]',
    "hosts": '[listener.relay]\ngroups = ["Relay Hosts"]',
    "own": """\
[listener.relay]
send_as = "own"
[listener.relay.send_as_groups]
"Send As Anyone" = ["*@apps.example"]
"relay hosts" = ["*@hosts.example"]
"{sid}" = ["team@apps.example"]""",
    "corp": 'default_domain = "corp.example"',
}

ELSEWHERE = "someone@elsewhere.example"
HERE = "bob@lab.example"

#: listener, account, sender, recipient -> the reply's code, the key of the rule that decided.
CASES = [
    *(
        (listener, account, "app@x.example", recipient, *wanted)
        for listener in ("name", "netbios", "dn", "sid")
        for account, recipient, *wanted in [
            ("alice", ELSEWHERE, 250, "groups[0]"),  # Engineers < Staff < Relay Users
            ("carol", ELSEWHERE, 250, "groups[0]"),  # Staff < Relay Users
            ("bob", ELSEWHERE, 550, "groups"),
            (COMPUTER, ELSEWHERE, 550, "groups"),
            ("bob", HERE, 250, "domain[0]"),
        ]
    ),
    ("hosts", COMPUTER, "app@x.example", ELSEWHERE, 250, "groups[0]"),
    ("hosts", "alice", "app@x.example", ELSEWHERE, 550, "groups"),
    ("own", "alice", "Alice.Liddell@lab.example", ELSEWHERE, 250, "authenticated"),
    ("own", "alice", "sales@corp.example", ELSEWHERE, 250, "authenticated"),
    ("own", "alice", "bob@lab.example", ELSEWHERE, 550, "send_as"),
    ("own", "alice", "x@apps.example", ELSEWHERE, 550, "send_as"),
    ("own", "alice", "team@apps.example", ELSEWHERE, 250, "authenticated"),
    ("own", "bob", "x@apps.example", ELSEWHERE, 250, "authenticated"),
    ("own", "bob", "alice@lab.example", HERE, 550, "send_as"),
    ("own", "carol", "carol@corp.example", ELSEWHERE, 550, "send_as"),  # her name, and no address of hers
    ("own", "carol", "", ELSEWHERE, 250, "authenticated"),  # a report of hers
    ("own", COMPUTER, "backup@hosts.example", ELSEWHERE, 250, "authenticated"),
    ("own", COMPUTER, "alice@lab.example", ELSEWHERE, 550, "send_as"),
]


@pytest.fixture(scope="module")
def relay(lab: DirectoryLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    (sid,) = lab.attributes("Relay Users", "objectSid")["objectSid"]
    group = {"dn": lab.dn("Relay Users"), "sid": sid_text(sid)}
    more = SETTINGS + "".join(
        f'\n[[listener]]\nname = "{name}"\naddress = "127.0.0.1"\nport = 0\n{keys.format(**group)}\n'
        for name, keys in LISTENERS.items()
    )
    with running(tmp_path_factory.mktemp("relay"), integrated(lab, more)) as relay:
        yield relay


@pytest.fixture(scope="module")
def tickets(lab: DirectoryLab) -> Iterator[Callable[[str], Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KRB5_CONFIG", str(lab.krb5_conf))
        yield functools.cache(lab.kinit)


@pytest.fixture(scope="module")
def sign_ins(lab: DirectoryLab, tickets: Callable[[str], Path]) -> SignIns:
    """Sign a session in, by mechanism."""
    return {
        "PLAIN": lambda session, account: session.plain(account, lab.users[account]),
        "GSSAPI": lambda session, account: session.gssapi(tickets(account)),
        "NTLM": lambda session, account: session.ntlm(f"LAB\\{account}", lab.users[account]),
    }


@pytest.fixture(params=["PLAIN", "GSSAPI", "NTLM"])
def sign_in(request: pytest.FixtureRequest, sign_ins: SignIns) -> SignIn:
    return sign_ins[request.param]


def decided(log: Log) -> Event:
    """The event that tells which rule did."""
    log.relay.wait_until(lambda: bool(log.all("accepted") + log.all("refused")), "the verdict in the log")
    (event,) = log.all("accepted") + log.all("refused")
    return event


def outcome(
    lab: DirectoryLab, relay: Relay, sign_in: SignIn, listener: str, account: str, sender: str, recipient: str
) -> tuple[Answer, str]:
    """What a session ends with, and the rule in the log."""
    log = Log(relay)
    with Session(lab, relay, listener=listener) as session:
        assert sign_in(session, account).code == 235
        answer = session.send(sender, recipient)
    return answer, str(decided(log)["rule"])


@pytest.mark.parametrize(("listener", "account", "sender", "recipient", "code", "key"), CASES)
def test_each_case(
    lab: DirectoryLab,
    relay: Relay,
    sign_in: SignIn,
    listener: str,
    account: str,
    sender: str,
    recipient: str,
    code: int,
    key: str,
) -> None:
    answer, rule = outcome(lab, relay, sign_in, listener, account, sender, recipient)
    assert answer.code == code
    assert rule.partition(" ")[0].rpartition(".")[2] == key


def explain(relay: Relay, listener: str, user: str, sender: str, recipient: str) -> CompletedProcess[str]:
    where = ("--client", "127.0.0.1", "--tls", "--listener", listener)
    what = ("--from", sender or "<>", "--to", recipient)
    return relay.ctl("--json", "explain", "--ask-directory", "--user", user, *where, *what)


#: One of each kind: it takes a second each.
EXPLAINED = [
    ("name", "alice", "app@x.example", ELSEWHERE),
    ("dn", "LAB\\carol", "app@x.example", ELSEWHERE),
    ("sid", "bob@lab.example", "app@x.example", ELSEWHERE),
    ("netbios", "bob", "app@x.example", HERE),
    ("hosts", COMPUTER, "app@x.example", ELSEWHERE),
    ("own", "alice", "sales@corp.example", ELSEWHERE),
    ("own", "alice", "bob@lab.example", ELSEWHERE),
    ("own", "bob", "x@apps.example", ELSEWHERE),
    ("own", COMPUTER, "alice@lab.example", ELSEWHERE),
]


@pytest.mark.parametrize(("listener", "user", "sender", "recipient"), EXPLAINED)
def test_explain_says_the_same(
    lab: DirectoryLab, relay: Relay, sign_ins: SignIns, listener: str, user: str, sender: str, recipient: str
) -> None:
    done = explain(relay, listener, user, sender, recipient)
    said = json.loads(done.stdout)
    account = user.partition("@")[0].rpartition("\\")[2]
    for sign_in in sign_ins.values():
        answer, rule = outcome(lab, relay, sign_in, listener, account, sender, recipient)
        assert rule == said["rule"] + (f" (line {said['line']})" if said["line"] else "")
        assert answer.code == said["code"]
        assert done.returncode == (0 if answer.code == 250 else 1)
        if answer.code != 250:
            # Of a computer, the KDC makes up a user principal name.
            text = answer.text.replace(f"{COMPUTER}@{lab.domain}", COMPUTER)
            assert text == f"{said['enhanced']} {said['text']}"


class TestDefaultDomain:
    """Of the listener "corp" it is corp.example, the suffix of carol's user principal name alone."""

    def signed_in(self, lab: DirectoryLab, relay: Relay, mechanism: str, name: str, account: str) -> int:
        with Session(lab, relay, listener="corp") as session:
            return BY_PASSWORD[mechanism](session, name, lab.users[account]).code

    @pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
    def test_is_what_a_bare_name_belongs_to(self, lab: DirectoryLab, relay: Relay, mechanism: str) -> None:
        assert self.signed_in(lab, relay, mechanism, "carol", "carol") == 235
        assert self.signed_in(lab, relay, mechanism, "alice", "alice") == 535
        assert self.signed_in(lab, relay, mechanism, "LAB\\alice", "alice") == 235
        assert self.signed_in(lab, relay, mechanism, "alice@lab.example", "alice") == 235

    @pytest.mark.parametrize("mechanism", ["NTLM", "GSSAPI/NTLM"])
    def test_is_none_of_ntlms_business(self, lab: DirectoryLab, relay: Relay, mechanism: str) -> None:
        """The client's answer is made of the domain that it names; without one, the controller takes its own."""
        assert self.signed_in(lab, relay, mechanism, "carol", "carol") == 235
        assert self.signed_in(lab, relay, mechanism, "alice", "alice") == 235
        assert self.signed_in(lab, relay, mechanism, "carol@corp.example", "carol") == 235

    def test_explain_knows_it(self, relay: Relay) -> None:
        assert explain(relay, "corp", "carol", "x@x.example", ELSEWHERE).returncode == 0
        done = explain(relay, "corp", "alice", "x@x.example", ELSEWHERE)
        assert done.returncode != 0
        assert "alice: the directory has no such account, so it cannot authenticate" in done.stderr
