"""The policy host of MTA-STS domains: HTTPS on port 443 of a loopback address of its own (needs root), and the domains'
records in a :class:`~tests.lab.dns.DnsServer`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.ca import LabCA
from tests.lab.dns import DnsServer
from tests.lab.web import Request, Response, WebServer

__all__ = ["PolicyHost", "loopback_address"]


def loopback_address(host: int) -> str:
    """An address that no other test process uses: 127.x.y.*host*."""
    number = os.getpid()
    return f"127.{100 + (number >> 8) % 100}.{number % 256}.{host}"


class PolicyHost:
    """:ivar policies: by domain, what is answered; a domain that is not there gets 404.
    :ivar requests: the domains that were asked for, in order.
    """

    def __init__(self, dns: DnsServer, ca: LabCA, address: str) -> None:
        self.policies: dict[str, Response] = {}
        self.requests: list[str] = []
        self.address = address
        self._dns = dns
        self._ca = ca

    def publish(self, domain: str, version: str, mode: str, *exchangers: str, max_age: int = 604800) -> None:
        """Has *domain* announce a policy, and serves it."""
        lines = ["version: STSv1", f"mode: {mode}", *(f"mx: {name}" for name in exchangers), f"max_age: {max_age}", ""]
        self.policies[domain] = Response(content="\r\n".join(lines).encode())
        self.announce(domain, version)

    def announce(self, domain: str, version: str) -> None:
        self._dns.records[f"_mta-sts.{domain}", "TXT"] = [f'"v=STSv1; id={version};"']
        self._dns.records[f"mta-sts.{domain}", "A"] = [self.address]

    @contextmanager
    def serving(self, *domains: str, ca: LabCA | None = None) -> Iterator[WebServer]:
        """Serves, with a certificate for the policy hosts of *domains*, by *ca* in place of the lab's."""
        names = [f"mta-sts.{domain}" for domain in domains]
        leaf = (ca or self._ca).leaf(*names, filename="policy-host")
        with WebServer(leaf.server_context(), self._answer, self.address, 443) as server:
            yield server

    def _answer(self, request: Request) -> Response:
        domain = request.host.removeprefix("mta-sts.")
        self.requests.append(domain)
        if (request.method, request.path) != ("GET", "/.well-known/mta-sts.txt"):
            return Response(404)
        return self.policies.get(domain, Response(404))
