"""Accounts in all states, by all mechanisms, against a real Active Directory: account_states.golden, line by line."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import krb5
import pytest
from ldap3.core.exceptions import LDAPInvalidCredentialsResult

from relayd.directory.entries import sid_text
from tests.directory.relays import Log, integrated, running
from tests.directory.sessions import BY_PASSWORD, BY_TICKET, Session
from tests.lab.ca import LabCA, Leaf
from tests.lab.directory import DirectoryLab
from tests.lab.domain import LOCKOUT_THRESHOLD, age_password
from tests.lab.relay import Relay
from tests.lab.tickets import initiator

GOLDEN = Path(__file__).with_name("account_states.golden")

NEW = "Lab-new-{name}-9"
"""The password of those who changed theirs."""

Changes = tuple[dict[str, object], ...]

#: What makes an account good, and then what it was before.
MENDED: dict[str, tuple[Changes, Changes]] = {
    "alice": ((), ()),
    "disabled": (({"userAccountControl": 0x200},), ({"userAccountControl": 0x202},)),
    "expired": (({"accountExpires": 0},), ({"accountExpires": "125911584000000000"},)),
    "lapsed": (({"pwdLastSet": 0}, {"pwdLastSet": -1}), ()),  # now; only from 0 it may be set so
    "mustchange": (({"pwdLastSet": -1},), ({"pwdLastSet": 0},)),
    "locked": (({"lockoutTime": 0},), ()),
    "nights": (({"logonHours": None},), ({"logonHours": bytes(21)},)),
    "bob": ((), ({"unicodePwd": f'"{NEW}"'.format(name="bob").encode("utf-16-le")},)),
}

LEAVER = {
    "objectClass": "user",
    "sAMAccountName": "leaver",
    "userPrincipalName": "leaver@lab.example",
    "unicodePwd": '"Lab-leaver-9"'.encode("utf-16-le"),
    "userAccountControl": 0x200,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line for one mechanism, with the names that the file explains."""

    line: int
    account: str
    mechanism: str
    credential: str
    reply: str
    log: str
    count: str

    def __str__(self) -> str:
        return f"{self.line}-{self.account}-{self.mechanism}-{self.credential}"


def rows() -> Iterator[Row]:
    account = ""
    for number, text in enumerate(GOLDEN.read_text().splitlines(), 1):
        line = text.partition("#")[0].strip()
        if line.startswith("["):
            account = line.strip("[]")
        elif line:
            given, _, wanted = line.partition(" -> ")
            mechanisms, credential = (field.strip() for field in given.split("|"))
            reply, log, count = (field.strip() for field in wanted.split("|"))
            for mechanism in mechanisms.split(", "):
                yield Row(number, account, mechanism, credential, reply, log, count)


class NoTicket(Exception):
    """The KDC's error."""


class Domain:
    """A lab whose accounts are failed with, and credentials for each of its accounts."""

    def __init__(self, lab: DirectoryLab, ca: LabCA) -> None:
        self.lab = lab
        self.ca = ca
        self._wrong = itertools.count()
        self._sids: dict[str, str] = {}
        self._leaves: dict[str, Leaf] = {}
        self._earlier: dict[str, Path] = {}
        dn = f"CN=leaver,CN=Users,{lab.base_dn}"
        lab.administrator().add(dn, attributes=LEAVER)
        for name, (mended, before) in MENDED.items():
            for change in mended:
                lab.modify(name, **change)
            self._earlier[name] = self._with_service_ticket(name, self.password(name, "former"))
            for change in before:
                lab.modify(name, **change)
        age_password(lab.directory, "lapsed")
        for _ in range(LOCKOUT_THRESHOLD):
            self._fail("locked")
        self._earlier["leaver"] = self._with_service_ticket("leaver", "Lab-leaver-9")
        self._sids["leaver"] = self.sid("leaver")
        lab.administrator().delete(dn)

    def password(self, name: str, credential: str) -> str:
        if credential == "wrong":
            # Another each time: relayd knows wrong ones again.
            return f"wrong{next(self._wrong)}"
        if credential == "right" and name == "bob":
            return NEW.format(name=name)
        return self.lab.users.get(name, f"Lab-{name}-9")

    def tickets(self, name: str, credential: str) -> Path:
        """A cache.

        :raises NoTicket: the KDC refused.
        """
        if credential == "earlier":
            return self._earlier[name]
        return self._granting(name, self.password(name, credential))

    def leaf(self, name: str) -> Leaf:
        if name not in self._leaves:
            self._leaves[name] = self.ca.leaf(name, filename=name, client=True, sid=self.sid(name))
        return self._leaves[name]

    def sid(self, name: str) -> str:
        if name not in self._sids:
            (self._sids[name],) = map(sid_text, self.lab.attributes(name, "objectSid")["objectSid"])
        return self._sids[name]

    def fail_once(self, name: str) -> None:
        """Brings badPwdCount to 1."""
        if self.lab.bad_password_count(name) != 1:
            self.lab.modify(name, lockoutTime=0)
            self._fail(name)
            assert self.lab.bad_password_count(name) == 1

    def _fail(self, name: str) -> None:
        with contextlib.suppress(LDAPInvalidCredentialsResult):
            self.lab.connect(name, "a guess")

    def _granting(self, name: str, password: str) -> Path:
        # Not by kinit: where a password has expired it goes on, and asks for a new one.
        file = Path(tempfile.mkdtemp(dir=self.lab.directory)) / "cache"
        context = krb5.init_context()
        principal = krb5.parse_name_flags(context, f"{name}@{self.lab.realm}".encode())
        options = krb5.get_init_creds_opt_alloc(context)
        try:
            credentials = krb5.get_init_creds_password(context, principal, options, password.encode())
        except krb5.Krb5Error as refused:
            raise NoTicket(str(refused)) from None
        cache = krb5.cc_resolve(context, f"FILE:{file}".encode())
        krb5.cc_initialize(context, cache, principal)
        krb5.cc_store_cred(context, cache, credentials)
        return file

    def _with_service_ticket(self, name: str, password: str) -> Path:
        cache = self._granting(name, password)
        initiator(cache).step()
        return cache


@pytest.fixture(scope="module", autouse=True)
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Domain]:
    with DirectoryLab() as lab, pytest.MonkeyPatch.context() as patch:
        patch.setenv("KRB5_CONFIG", str(lab.krb5_conf))
        yield Domain(lab, LabCA(tmp_path_factory.mktemp("clients"), "Lab Client CA"))


@pytest.fixture(scope="module")
def relay(spoilt: Domain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """It keeps no answers, and stops nobody before the directory's answer is seen."""
    more = '[authentication]\nlockout = "1000 in 1m"\nmax_failures = 100\n'
    config = integrated(spoilt.lab, more, 'cache = "0s"')
    config = config.replace("[tls]\n", f'[tls]\nclient_ca = "{spoilt.ca.path}"\n', 1)
    with running(tmp_path_factory.mktemp("relay"), config) as relay:
        yield relay


#: What the file has -> what the client reads.
REPLIES = {
    "235": "235 2.7.0 Authentication successful",
    "535": "535 5.7.8 Authentication credentials invalid",
    "no ticket": "no ticket",
}


def asked(spoilt: Domain, relay: Relay, row: Row) -> tuple[str, str]:
    """What relayd answers; or that it was not asked, and why."""
    name, credential = row.account, row.credential
    leaf = spoilt.leaf(name) if row.mechanism == "EXTERNAL" else None
    tickets = None
    if row.mechanism in BY_TICKET:
        try:
            tickets = spoilt.tickets(name, credential)
        except NoTicket as refused:
            return "no ticket", str(refused)
    with Session(spoilt.lab, relay, leaf=leaf) as session:
        if leaf is not None:
            answer = session.external()
        elif tickets is not None:
            answer = BY_TICKET[row.mechanism](session, tickets)
        else:
            answer = BY_PASSWORD[row.mechanism](session, f"LAB\\{name}", spoilt.password(name, credential))
    return f"{answer.code} {answer.text}", ""


def in_the_log(log: Log, row: Row) -> str:
    """Who signed in and by which source, or why not."""
    log.relay.wait_until(lambda: bool(log.all("authenticated") + log.all("authentication-failed")), "the outcome")
    (event,) = log.all("authenticated") + log.all("authentication-failed")
    assert event["mechanism"] == row.mechanism.partition("/")[0]
    if event["event"] == "authenticated":
        return f"{event['user']} {event['source']}"
    if row.mechanism != "EXTERNAL":
        assert event["user"] == f"LAB\\{row.account}"
    return str(event["reason"])


@pytest.mark.parametrize("row", list(rows()), ids=str)
def test_each_line(spoilt: Domain, relay: Relay, row: Row) -> None:
    before = 0
    if row.count != "-":
        if row.account != "locked":
            spoilt.fail_once(row.account)
        before = spoilt.lab.bad_password_count(row.account)
        assert before == (LOCKOUT_THRESHOLD if row.account == "locked" else 1)
    log = Log(relay)
    reply, reason = asked(spoilt, relay, row)
    assert reply == REPLIES[row.reply]
    if row.reply == "no ticket":
        assert row.log in reason
        assert not log.all("authentication-failed")
    else:
        assert in_the_log(log, row) == row.log
    if row.count != "-":
        after = spoilt.lab.bad_password_count(row.account)
        assert after == {"+1": before + 1, "same": before, "reset": 0}[row.count]


def test_every_state_meets_every_mechanism() -> None:
    """Nobody forgot a line."""
    mechanisms = {*BY_PASSWORD, *BY_TICKET, "EXTERNAL"}
    for account in (*MENDED, "RELAY01$", "leaver"):
        assert {row.mechanism for row in rows() if row.account == account} == mechanisms, account
