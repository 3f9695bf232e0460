"""``relayctl explain``'s answer: its shape, and its steps in the order of a session."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address

import pytest

from relayd.model import NULL_PATH, Names, Path
from relayd.policy import Policy, Question, explain
from relayd.settings import TlsMode

from .configurations import CORP, all_except, listener, only, settings

QUESTION = Question(ip_address("203.0.113.5"), Path("app", "x.example"), Path("bob", "elsewhere.example"))
POLICY = Policy(
    settings(
        listener(relay=only("192.0.2.1", "192.0.2.7")),
        listener("other", access=only("10.0.0.0/8")),
        listener("smtps", tls=TlsMode.IMPLICIT),
        domains=[CORP],
        lines={"relay.list[1]": 41, "relay.allow": 40},
    )
)


def test_the_shape_is_that_of_the_contract() -> None:
    answer = explain(POLICY, QUESTION).as_dict()
    assert list(answer) == ["verdict", "code", "enhanced", "text", "rule", "line", "steps"]
    assert {key: value for key, value in answer.items() if key != "steps"} == {
        "verdict": "refuse",
        "code": 550,
        "enhanced": "5.7.1",
        "text": "Unable to relay for bob@elsewhere.example",
        "rule": "relay.allow",
        "line": 40,
    }
    steps = json.loads(json.dumps(answer))["steps"]
    assert [list(step) for step in steps] == [["asked", "rule", "line", "outcome", "text"]] * len(steps)
    assert steps[-1] == {
        "asked": "relay list",
        "rule": "relay.allow",
        "line": 40,
        "outcome": "refuse",
        "text": "203.0.113.5 may not relay",
    }


def test_steps_follow_the_session() -> None:
    steps = explain(POLICY, replace(QUESTION, tls=True, user="alice", client=ip_address("192.0.2.7"))).steps
    assert [(step.asked, step.outcome, step.rule.key) for step in steps] == [
        ("access", "accept", "access.allow"),
        ("tls", "pass", "listener[0].require_tls"),
        ("auth", "accept", "authentication.integrated"),
        ("sender", "accept", "relay.send_as"),
        ("domain", "pass", "domain"),
        ("relay when authenticated", "accept", "relay.authenticated"),
    ]


def test_the_list_is_asked_when_authentication_does_not_help() -> None:
    explanation = explain(POLICY, replace(QUESTION, client=ip_address("192.0.2.7")))
    assert [(step.asked, step.outcome) for step in explanation.steps[-3:]] == [
        ("domain", "pass"),
        ("relay when authenticated", "pass"),
        ("relay list", "accept"),
    ]
    assert str(explanation.verdict.rule) == "relay.list[1] (line 41)"


def test_nothing_is_asked_after_the_first_refusal() -> None:
    explanation = explain(POLICY, replace(QUESTION, listener="other"))
    assert [(step.asked, step.outcome) for step in explanation.steps] == [("access", "refuse")]


def test_a_deferred_verdict() -> None:
    policy = Policy(settings(listener(access=all_except("*.bad.example"))))
    answer = explain(policy, replace(QUESTION, names=Names(failed=True))).as_dict()
    assert (answer["verdict"], answer["code"], answer["rule"]) == ("defer", 421, "access.list[0]")


def test_the_first_listener_is_asked_unless_one_is_named() -> None:
    assert explain(POLICY, QUESTION) == explain(POLICY, replace(QUESTION, listener="smtp"))
    with pytest.raises(LookupError):
        explain(POLICY, replace(QUESTION, listener="nowhere"))


def test_a_user_needs_tls_where_a_session_would() -> None:
    user = replace(QUESTION, user="alice", mechanism="PLAIN")
    assert explain(POLICY, user).as_dict()["code"] == 538
    assert explain(POLICY, replace(user, tls=True)).as_dict()["verdict"] == "accept"
    assert explain(POLICY, replace(user, listener="smtps")).as_dict()["verdict"] == "accept"


def test_the_null_sender() -> None:
    answer = explain(POLICY, replace(QUESTION, sender=NULL_PATH, recipient=Path("a", "corp.example"))).as_dict()
    assert answer["verdict"] == "accept"
    assert answer["text"] == "<a@corp.example> recipient ok"
