"""Why would it? One question, asked of the same policy that the server asks, with every step on the way."""

from __future__ import annotations

from dataclasses import dataclass

from relayd.model import NO_NAMES, Client, IPAddress, Names, Path, Peer, Principal, Recipient, Sender, Tls, Verdict
from relayd.policy.policy import BASIC_MECHANISMS, Policy
from relayd.policy.steps import Step, Trace
from relayd.settings import TlsMode

_ASSUMED_TLS = Tls(version="TLSv1.3", cipher="")


@dataclass(frozen=True, slots=True)
class Question:
    """A mail that somebody might send.

    :ivar names: what reverse DNS would say of the client.
    :ivar listener: empty for the first one.
    :ivar tls: the session is in TLS (on an implicit TLS listener it always is).
    :ivar user: empty for an anonymous session. Whether the password is right is not asked.
    :ivar groups: the user's, as the checker would give them.
    :ivar addresses: the user's own mail addresses.
    :ivar mechanism: empty for the first one that is offered.
    :ivar size: octets that MAIL declares; 0 = not declared.
    """

    client: IPAddress
    sender: Path
    recipient: Path
    names: Names = NO_NAMES
    listener: str = ""
    tls: bool = False
    user: str = ""
    groups: frozenset[str] = frozenset()
    addresses: tuple[str, ...] = ()
    mechanism: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict, and what was asked until it was reached."""

    verdict: Verdict
    steps: tuple[Step, ...]

    def as_dict(self) -> dict[str, object]:
        """What ``relayctl explain --json`` prints."""
        verdict = self.verdict
        return {
            "verdict": verdict.outcome.value,
            "code": verdict.reply.code,
            "enhanced": verdict.reply.enhanced,
            "text": verdict.reply.text,
            "rule": verdict.rule.key,
            "line": verdict.rule.line,
            "steps": [
                {
                    "asked": step.asked,
                    "rule": step.rule.key,
                    "line": step.rule.line,
                    "outcome": step.outcome,
                    "text": step.text,
                }
                for step in self.steps
            ],
        }


def explain(policy: Policy, question: Question) -> Explanation:
    """Plays *question* as a session would go: greeting, TLS, AUTH, MAIL, RCPT, up to the first refusal.

    :raises LookupError: there is no listener of that name.
    """
    trace = Trace()
    return Explanation(_play(policy, question, trace), tuple(trace.steps))


def _play(policy: Policy, question: Question, trace: Trace) -> Verdict:
    listener = policy.listener(question.listener or policy.settings.listeners[0].name)
    client = Client(
        Peer(question.client),
        listener.name,
        question.names,
        _ASSUMED_TLS if question.tls or listener.tls is TlsMode.IMPLICIT else None,
    )
    verdict = policy.greet(client, trace)
    if not verdict.accepted:
        return verdict
    refused = policy.tls_required(client, trace)
    if refused is not None:
        return refused
    if question.user:
        mechanism = question.mechanism or next(iter(policy.mechanisms(client)), BASIC_MECHANISMS[0])
        verdict = policy.auth(client, mechanism, trace)
        if not verdict.accepted:
            return verdict
        principal = Principal(
            question.user, mechanism.upper(), "assumed", groups=question.groups, addresses=question.addresses
        )
        client = Client(client.peer, client.listener, client.names, client.tls, principal)
    sender = Sender(question.sender, size=question.size)
    verdict = policy.mail(client, sender, trace)
    if not verdict.accepted:
        return verdict
    return policy.rcpt(client, sender, Recipient(question.recipient), trace)
