"""What the policy asked on its way to a verdict, for ``relayctl explain``."""

from __future__ import annotations

from dataclasses import dataclass

from relayd.model import Outcome, Rule


@dataclass(frozen=True, slots=True)
class Step:
    """One question of the policy.

    :ivar asked: what was asked: ``access``, ``tls``, ``relay list``.
    :ivar outcome: what it said: ``accept``, ``refuse``, ``defer``; or ``pass``: no answer, the next step is asked.
    :ivar text: the same for people.
    """

    asked: str
    rule: Rule
    outcome: str
    text: str


class Trace:
    """The steps, in order."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def add(self, asked: str, rule: Rule, outcome: Outcome | None, text: str) -> None:
        self.steps.append(Step(asked, rule, outcome.value if outcome is not None else "pass", text))
