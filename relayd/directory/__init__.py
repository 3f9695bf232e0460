"""One client of the directory, for auth, policy and recipients."""

from relayd.directory.answers import Answers
from relayd.directory.directory import Directory, Probe
from relayd.directory.entries import AccountState, LockoutPolicy, User
from relayd.directory.faults import Refusal, Unavailable
from relayd.directory.names import Domain

__all__ = ["AccountState", "Answers", "Directory", "Domain", "LockoutPolicy", "Probe", "Refusal", "Unavailable", "User"]
