"""A process with a real reactor that sends what it is told: one JSON job a line on stdin, one JSON result on stdout."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from ipaddress import ip_address
from pathlib import Path as File
from typing import Any


class Sender:
    """The process, seen from the test. Use as a context manager."""

    def __enter__(self) -> Sender:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.delivery.sender"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=File(__file__).parents[3],
        )
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()

    def send(self, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
        """Send the messages one after the other, through one pool; what came of each."""
        watchdog = threading.Timer(60, self._process.kill)
        watchdog.start()
        try:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            print(json.dumps(jobs), file=self._process.stdin, flush=True)
            results: list[dict[str, Any]] = json.loads(self._process.stdout.readline())
            return results
        finally:
            watchdog.cancel()


def main() -> None:
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.stdio import StandardIO
    from twisted.protocols.basic import LineOnlyReceiver

    class Jobs(LineOnlyReceiver):
        delimiter = b"\n"
        MAX_LENGTH = 1 << 20

        def lineReceived(self, line: bytes) -> None:
            done = Deferred.fromCoroutine(_work(reactor, json.loads(line)))
            done.addErrback(lambda failure: [{"error": failure.getTraceback()}])
            done.addCallback(lambda results: self.sendLine(json.dumps(results).encode()))

        def connectionLost(self, reason: object = None) -> None:
            reactor.stop()  # type: ignore[attr-defined]

    StandardIO(Jobs())
    reactor.run()  # type: ignore[attr-defined]


async def _work(reactor: Any, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from relayd.delivery import ClientTls, ConnectionPool, PathFault, Target, Timeouts
    from relayd.model import Path, Recipient
    from relayd.model import Sender as From
    from relayd.settings import Credential, OutboundTls
    from relayd.threads import BoundedPool

    class Body:
        def __init__(self, content: bytes, filed: bool) -> None:
            self.size = len(content)
            self.octets = None if filed else content
            self.open = lambda: io.BytesIO(content)

    def file(name: str) -> File | None:
        return File(jobs[0][name]) if name in jobs[0] else None

    threads = BoundedPool("files", reactor, threads=2, waiting=100)
    pool = ConnectionPool(
        reactor,
        hostname="relay.example",
        tls=ClientTls(file("ca"), file("certificate"), file("key")),
        in_thread=threads.run,
        timeouts=Timeouts(10.0, 20.0, 20.0),
    )
    results = []
    for job in jobs:
        credential = None
        if "user" in job:
            credential = Credential(
                "c",
                user=job["user"],
                password_file=File(job["password_file"]),
                allow_insecure=job.get("insecure", False),
            )
        target = Target(
            job["host"], ip_address("127.0.0.1"), job["port"], OutboundTls(job["tls"]), credential=credential
        )
        try:
            sent = await pool.send(
                target,
                From(Path("alice", "corp.example")),
                [Recipient(Path("bob", "partner.example"))],
                Body(job["content"].encode("latin-1") * job.get("times", 1), job.get("filed", False)),
            )
        except PathFault as fault:
            results.append({"stage": fault.stage.name, "code": fault.reply.code, "text": fault.reply.text})
        else:
            results.append({"codes": [reply.code for reply in sent.replies], "tls": sent.tls})
    await pool.close()
    threads.stop()
    return results


if __name__ == "__main__":
    main()
