"""The decisions of the policy against decisions.golden, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path as File

import pytest

from relayd.model import (
    NULL_PATH,
    Client,
    Names,
    Outcome,
    Path,
    Peer,
    Principal,
    Recipient,
    Sender,
    Tls,
    Verdict,
)
from relayd.policy import Policy, Question, explain
from relayd.settings import TlsMode

from .configurations import CONFIGURATIONS

GOLDEN = File(__file__).with_name("decisions.golden")


@dataclass(frozen=True)
class Person:
    groups: frozenset[str] = frozenset()
    addresses: tuple[str, ...] = ()


PEOPLE = {
    "alice": Person(frozenset({"MAIL RELAY", "Staff"}), ("alice@corp.example", "a.smith@corp.example")),
    "app$": Person(frozenset({"s-1-5-21-1-2-3-515", "app senders"})),
    "bob": Person(frozenset({"Staff", "Mail"}), ("bob@corp.example",)),
    "carol": Person(frozenset({"anything"}), ("carol@corp.example",)),
}


@dataclass(frozen=True)
class Row:
    line: int
    configuration: str
    question: Question
    reply: str
    rule: str


def path_of(text: str) -> Path:
    if text.startswith('"') and text.endswith('"'):  # a quoted local part and no domain
        return Path(text)
    local, at, domain = text.rpartition("@")
    return NULL_PATH if text == "<>" else Path(local, domain) if at else Path(text)


def names_of(text: str) -> Names:
    confirmed, claimed, failed = [], [], False
    for word in text.replace(",", " ").split():
        if word == "failed":
            failed = True
        elif word.startswith("claimed:"):
            claimed.append(word.removeprefix("claimed:"))
        elif word != "-":
            confirmed.append(word)
    return Names(tuple(confirmed), tuple(claimed), failed)


def question_of(text: str) -> Question:
    client, names, tls, principal, sender, recipient = (column.strip() for column in text.split(" | "))
    address, _, listener = client.partition(" ")
    user, _, mechanism = principal.partition(" via ")
    person = PEOPLE[user] if user != "-" else Person()
    reverse_path, _, size = sender.partition(" SIZE=")
    assert tls in ("tls", "-")
    return Question(
        client=ip_address(address),
        sender=path_of(reverse_path),
        recipient=path_of(recipient),
        names=names_of(names),
        listener=listener,
        tls=tls == "tls",
        user="" if user == "-" else user,
        groups=person.groups,
        addresses=person.addresses,
        mechanism=mechanism or "PLAIN",
        size=int(size or "0"),
    )


def rows() -> Iterator[Row]:
    configuration = ""
    for number, line in enumerate(GOLDEN.read_text("utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            configuration = line.strip("[]")
            continue
        asked, answer = line.split(" -> ")
        reply, rule = answer.split(" | ")
        yield Row(number, configuration, question_of(asked), reply, rule)


ROWS = tuple(rows())
POLICIES = {name: Policy(each) for name, each in CONFIGURATIONS.items()}
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"line {row.line}")


@every_row
def test_decision(row: Row) -> None:
    verdict = explain(POLICIES[row.configuration], row.question).verdict
    assert (f"{verdict.reply.code} {verdict.reply.enhanced}", verdict.rule.key) == (row.reply, row.rule)


@every_row
def test_the_outcome_is_that_of_the_reply(row: Row) -> None:
    verdict = explain(POLICIES[row.configuration], row.question).verdict
    expected = {"2": Outcome.ACCEPT, "4": Outcome.DEFER, "5": Outcome.REFUSE}[row.reply[0]]
    assert verdict.outcome is expected


@every_row
def test_the_last_step_tells_the_verdict(row: Row) -> None:
    explanation = explain(POLICIES[row.configuration], row.question)
    last = explanation.steps[-1]
    assert (last.outcome, last.rule) == (explanation.verdict.outcome.value, explanation.verdict.rule)


@every_row
def test_a_session_gets_the_same_answers_without_a_trace(row: Row) -> None:
    """The server asks one by one, and writes no steps."""
    policy, asked = POLICIES[row.configuration], row.question

    def session() -> Iterator[Verdict]:
        listener = policy.listener(asked.listener or "smtp")
        tls = Tls("TLSv1.3", "") if asked.tls or listener.tls is TlsMode.IMPLICIT else None
        client = Client(Peer(asked.client), listener.name, asked.names, tls)
        yield policy.greet(client)
        if (verdict := policy.tls_required(client)) is not None:
            yield verdict
        if asked.user:
            yield policy.auth(client, asked.mechanism)
            principal = Principal(asked.user, asked.mechanism, "test", groups=asked.groups, addresses=asked.addresses)
            client = Client(client.peer, client.listener, client.names, client.tls, principal)
        sender = Sender(asked.sender, size=asked.size)
        yield policy.mail(client, sender)
        yield policy.rcpt(client, sender, Recipient(asked.recipient))

    verdict = None
    for verdict in session():
        if not verdict.accepted:
            break
    assert verdict == explain(policy, asked).verdict


def test_the_table_is_whole() -> None:
    assert len(ROWS) >= 150
    assert {row.configuration for row in ROWS} == set(CONFIGURATIONS)
    asked = [(row.configuration, row.question) for row in ROWS]
    assert len(set(asked)) == len(asked)
