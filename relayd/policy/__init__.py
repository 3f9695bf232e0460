"""May it? Pure functions over values: access, relay, send-as; why; and is it an open relay?"""

from relayd.policy.addresses import is_postmaster, plain_local
from relayd.policy.domains import DomainTable, fold
from relayd.policy.explain import Explanation, Question, explain
from relayd.policy.hosts import HostMatcher
from relayd.policy.openrelay import OpenRelay, open_relay
from relayd.policy.policy import Policy
from relayd.policy.rewriting import Rewriting, Rewritten
from relayd.policy.steps import Step, Trace

__all__ = [
    "DomainTable",
    "Explanation",
    "HostMatcher",
    "OpenRelay",
    "Policy",
    "Question",
    "Rewriting",
    "Rewritten",
    "Step",
    "Trace",
    "explain",
    "fold",
    "is_postmaster",
    "open_relay",
    "plain_local",
]
