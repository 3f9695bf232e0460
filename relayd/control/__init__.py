"""The running server's API: HTTP and JSON over a unix socket that only its owner may open."""

from relayd.control.api import AuthTest, ControlSite, Status
from relayd.control.client import ControlClient, ControlError, Unreachable
from relayd.control.documents import (
    filter_from,
    principal_document,
    queue_document,
    rehearsal_document,
    standing_document,
)
from relayd.control.totals import Totals

__all__ = [
    "AuthTest",
    "ControlClient",
    "ControlError",
    "ControlSite",
    "Status",
    "Totals",
    "Unreachable",
    "filter_from",
    "principal_document",
    "queue_document",
    "rehearsal_document",
    "standing_document",
]
