"""A process that serves the stand-ins on real sockets: ``python -m tests.dialogs.server DIRECTORY``.

It prints its addresses as JSON, one line, and serves until its standard input ends. On the way out it prints how many
sessions there were to end, and how many are left.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Protocol
from twisted.internet.stdio import StandardIO

from relayd.settings import Limits, Listener, TlsMode
from relayd.smtpd import MECHANISMS, Listening, VirtualServer
from relayd.threads import BoundedPool
from tests.unit.smtpd.fakes import FakeChecker, FakePolicy, FakeRealm, FakeResolver, portal, recorder
from tests.unit.smtpd.integrated_fakes import INTEGRATED, FakeBackend, IdentityChecker, integrated

LISTENERS = (
    Listener(name="plain", address="::", port=0, tls=TlsMode.NONE),
    Listener(name="starttls", address="127.0.0.1", port=0),
    Listener(name="implicit", address="127.0.0.1", port=0, tls=TlsMode.IMPLICIT),
    Listener(name="integrated", address="127.0.0.1", port=0, tls=TlsMode.NONE),
    Listener(
        name="few", address="127.0.0.1", port=0, tls=TlsMode.NONE, limits=replace(Limits(), connections_per_client=1)
    ),
)


class Control(Protocol):
    """Standard input."""

    def __init__(self, listening: list[Listening]) -> None:
        self.listening = listening

    def connectionLost(self, reason: Any = None) -> None:
        before = sum(len(one.server.sessions) for one in self.listening)
        left = [one.stop() for one in self.listening]

        def stopped(_: Any) -> None:
            left.pop()
            if not left:
                after = sum(len(one.server.sessions) for one in self.listening)
                print(json.dumps({"ended": before, "left": after}), flush=True)
                reactor.stop()

        for one in list(left):
            one.addBoth(stopped)


def main(directory: Path) -> None:
    events, _ = recorder()
    listening = []
    pool = BoundedPool("kerberos", reactor, threads=2, waiting=100)
    reactor.addSystemEventTrigger("during", "shutdown", pool.stop)
    for listener in LISTENERS:
        policy, mechanisms = FakePolicy(), MECHANISMS
        if listener.name == "integrated":
            policy = FakePolicy(offered=INTEGRATED)
            mechanisms = {**MECHANISMS, **integrated(FakeBackend(), run=pool.run)}
        server = VirtualServer(
            hostname="relay.example",
            listener=listener,
            policy=policy,
            portal=portal(FakeRealm(), FakeChecker(), IdentityChecker()),
            events=events,
            reactor=reactor,
            resolver=FakeResolver(),
            mechanisms=mechanisms,
        )
        one = Listening(server, directory)
        one.bind()
        listening.append(one)
    for one in listening:
        one.start()
    print(json.dumps({one.server.listener.name: one.bound for one in listening}), flush=True)
    StandardIO(Control(listening))
    reactor.run()


reactor: Any = _reactor

if __name__ == "__main__":
    main(Path(sys.argv[1]))
