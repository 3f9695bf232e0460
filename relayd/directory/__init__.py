"""One client of the directory, for auth, policy and recipients."""

from relayd.directory.answers import Answers
from relayd.directory.connecting import Probe
from relayd.directory.controllers import Standing
from relayd.directory.directory import Directory
from relayd.directory.entries import AccountState, LockoutPolicy, User
from relayd.directory.faults import Refusal, Unavailable
from relayd.directory.names import Domain
from relayd.directory.operations import Operations

__all__ = [
    "AccountState",
    "Answers",
    "Directory",
    "Domain",
    "LockoutPolicy",
    "Operations",
    "Probe",
    "Refusal",
    "Standing",
    "Unavailable",
    "User",
]
