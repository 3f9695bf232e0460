"""Why the channel does not answer, sorted by who is to blame."""

from __future__ import annotations

__all__ = ["CannotTell", "ChannelFault", "MachineFault"]


class ChannelFault(Exception):
    """The channel to one controller is of no more use, or could not be opened; another may do.

    :ivar timed_out: the controller did not answer in time.
    :ivar asked: logons that went out without an answer to be believed; the controller may have counted each as a
        failure of the account.
    """

    def __init__(self, detail: str, *, timed_out: bool = False, asked: int = 0) -> None:
        super().__init__(detail)
        self.timed_out = timed_out
        self.asked = asked


class MachineFault(Exception):
    """The machine account is refused, or its secret cannot be read; no controller is to blame."""


class CannotTell(Exception):
    """The controller works, and knows nobody who can judge this account: the domain that has it is out of reach."""
