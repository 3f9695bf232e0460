"""EXTERNAL (RFC 4422 appendix A): the client's certificate says who it is."""

from __future__ import annotations

from relayd.auth.credentials import ClientCertificate
from relayd.model import Client, Fault
from relayd.smtpd import replies
from relayd.smtpd.sasl import Challenge, Done, Step

__all__ = ["External"]


class External:
    """One response: the authorisation identity, or nothing for the certificate's own."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.user = ""

    def step(self, response: bytes | None) -> Step:
        if response is None:
            return Challenge()
        try:
            authorise = response.decode("utf-8")
        except UnicodeDecodeError:
            raise Fault(replies.MALFORMED_RESPONSE, "the authorisation identity is not UTF-8") from None
        if "\0" in authorise:
            raise Fault(replies.MALFORMED_RESPONSE, "NUL in the authorisation identity")
        self.user = authorise
        return Done(ClientCertificate(authorise, self._client))
