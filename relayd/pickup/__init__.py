"""The pickup folder: files that are written there are sent. Who may write there may relay: the folder's permissions are
the gate."""

from relayd.pickup.folder import Files, Look
from relayd.pickup.service import PickupFolder
from relayd.pickup.submission import Content, Refused, Submission, marked_end, stuffed

__all__ = ["Content", "Files", "Look", "PickupFolder", "Refused", "Submission", "marked_end", "stuffed"]
