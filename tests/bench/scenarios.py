"""What is measured, and one measurement."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass

from tests.bench.latency import latencies
from tests.bench.machine import cpu_seconds
from tests.bench.servers import Server
from tests.lab.clients import smtp_source
from tests.lab.net import wait_for
from tests.lab.postfix import SmtpSink

__all__ = ["SCENARIOS", "Result", "Scenario", "measure"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load of a fixed number of messages.

    :ivar sessions: at a time.
    :ivar length: octets of a message.
    :ivar reuse: many messages a connection; else each comes in a connection of its own.
    :ivar latency: by a client of our own, in one session, which takes the time of each message.
    """

    name: str
    sessions: int
    messages: int
    length: int = 4096
    reuse: bool = False
    latency: bool = False


SCENARIOS = (
    Scenario("4 KiB, 1 session", 1, 1000),
    Scenario("4 KiB, 20 sessions", 20, 4000),
    Scenario("4 KiB, 100 sessions", 100, 4000),
    Scenario("4 KiB, 20 sessions, reused", 20, 4000, reuse=True),
    Scenario("4 KiB, 100 sessions, reused", 100, 4000, reuse=True),
    Scenario("10 MiB, 4 sessions", 4, 40, length=10 * 1024 * 1024),
    Scenario("4 KiB, one client, reused", 1, 1000, reuse=True, latency=True),
)


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement.

    :ivar accepted: messages a second, until the last 250.
    :ivar end_to_end: messages a second, until the last one was at the next hop.
    :ivar cpu: milliseconds of processor time a message, of all the server's processes, accepting and delivering.
    :ivar p50: milliseconds from MAIL to 250; p99 too. 0 where nobody took the time.
    """

    accepted: float
    end_to_end: float
    cpu: float
    p50: float = 0.0
    p99: float = 0.0


def measure(scenario: Scenario, server: Server, sink: SmtpSink) -> Result:
    """Puts *scenario* on *server*, which relays to *sink*; both are fresh.

    :raises AssertionError: a message was refused.
    :raises TimeoutError: they were not all delivered.
    """
    os.sync()  # what others left in the page cache is not this server's to write
    before = cpu_seconds(server.pids())
    start = time.perf_counter()
    times: list[float] = []
    if scenario.latency:
        times = latencies(server.port, scenario.messages, scenario.length)
    else:
        smtp_source(
            "127.0.0.1",
            server.port,
            sessions=scenario.sessions,
            messages=scenario.messages,
            length=scenario.length,
            reuse=scenario.reuse,
            timeout=300,
        ).require()
    accepted = time.perf_counter() - start
    wait_for(lambda: sink.count() >= scenario.messages, "the last message at the sink", 300, interval=0.005)
    delivered = time.perf_counter() - start
    used = cpu_seconds(server.pids()) - before
    p50 = p99 = 0.0
    if times:
        p50 = statistics.median(times) * 1000
        p99 = statistics.quantiles(times, n=100)[98] * 1000
    return Result(
        scenario.messages / accepted, scenario.messages / delivered, used / scenario.messages * 1000, p50, p99
    )
