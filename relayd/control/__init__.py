"""The running server's API: HTTP and JSON over a unix socket that only its owner may open."""

from relayd.control.api import ControlSite, Status
from relayd.control.client import ControlClient, ControlError, Unreachable
from relayd.control.documents import filter_from, queue_document
from relayd.control.totals import Totals

__all__ = [
    "ControlClient",
    "ControlError",
    "ControlSite",
    "Status",
    "Totals",
    "Unreachable",
    "filter_from",
    "queue_document",
]
