"""A next hop fails at each step of the dialogue, in each way: what became of each recipient, and how often it was sent.

fault_table.golden says it line by line: what each recipient was answered, attempt by attempt, and which messages the
next hop read to their end. A second copy stands only where the next hop took a message and never said so.
"""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.configurations import HEAD, listener
from tests.e2e.conftest import StartRelay
from tests.lab.faulty_hop import FAULTS, STEPS, FaultyHop, FaultyHops
from tests.lab.relay import Relay

GOLDEN = Path(__file__).with_name("fault_table.golden")

#: How the message goes, and what the next hop offers for it.
MODES = {
    "DATA, pipelined": ("PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES"),
    "DATA, one by one": ("8BITMIME", "ENHANCEDSTATUSCODES"),
    "BDAT": ("PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES", "CHUNKING"),
    "LMTP": ("PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES"),
}
RECIPIENTS = ("one", "two")
MESSAGE = b"Subject: x\r\n\r\n" + b"0123456789\r\n" * 100


@dataclass(frozen=True)
class Cell:
    """One line of the table."""

    mode: str
    hop: FaultyHop
    domain: str


def cells() -> Iterator[Cell]:
    number = 0
    for mode, extensions in MODES.items():
        for step in STEPS:
            for fault in FAULTS:
                # relayd waits ten minutes for the answer to a whole message (RFC 5321 4.5.3.2.6): not here.
                if fault == "silence" and step in ("body", "end"):
                    continue
                # Whether EHLO was still read is for the kernel to say; 250 in the middle of a message is a lie.
                if step in ("greeting", "body") and fault == "reply, close":
                    continue
                if mode == "BDAT" and step == "DATA":
                    continue
                number += 1
                yield Cell(mode, FaultyHop(extensions, step, fault, lmtp=mode == "LMTP"), f"d{number}.example")


def configuration(table: list[Cell]) -> str:
    domains = "".join(
        f'[[domain]]\nname = "{cell.domain}"\n'
        + (
            f'deliver = "lmtp://127.0.0.1:{cell.hop.port}"\n'
            if cell.hop.lmtp
            else f'kind = "remote"\nroute = ["127.0.0.1:{cell.hop.port}"]\n'
        )
        for cell in table
    )
    return (
        HEAD
        + listener()
        + '[relay]\nlist = ["127.0.0.1"]\n[[domain]]\nname = "local.example"\n'
        + '[delivery]\nretry = ["1s"]\ntimeout = "2s"\n'
        + domains
    )


def outcome(relay: Relay, cell: Cell) -> str:
    """The cell's line: ``451 4.4.2, 250 2.0.0`` for each recipient, and the copies."""
    parts = []
    for local in RECIPIENTS:
        address = f"{local}@{cell.domain}"
        said = [
            " ".join(event["reply"].split()[:2])
            for event in list(relay.events)
            if event["event"] in ("deferred", "bounced", "delivered") and event["recipient"] == address
        ]
        parts.append(f"{local}: {', '.join(said)}")
    taken = "; ".join("+".join(names) for names in cell.hop.taken)
    return f"{cell.mode} | {cell.hop.step} | {cell.hop.fault} | {' | '.join(parts)} | taken: {taken}"


def test_each_step_in_each_way(start_relay: StartRelay) -> None:
    table = list(cells())
    with FaultyHops(cell.hop for cell in table):
        relay = start_relay(configuration(table))
        with smtplib.SMTP("127.0.0.1", relay.port()) as client:
            for cell in table:
                client.sendmail("alice@local.example", [f"{r}@{cell.domain}" for r in RECIPIENTS], MESSAGE)
        everybody = {f"{local}@{cell.domain}" for cell in table for local in RECIPIENTS}

        def over() -> bool:
            events = list(relay.events)
            return everybody <= {e["recipient"] for e in events if e["event"] in ("delivered", "bounced")}

        relay.wait_until(over, "an end for each recipient")
        found = [outcome(relay, cell) for cell in table]
        relay.assert_clean()
    assert all(cell.hop.failed for cell in table)
    for cell in table:
        for local in RECIPIENTS:
            times = sum(local in names for names in cell.hop.taken)
            refused = cell.hop.fault == "550" and cell.hop.step in ("MAIL", "RCPT 1", "RCPT 2", "body", "end")
            # Of an LMTP server the first recipient's answer came, the second one's did not.
            half = cell.hop.lmtp and cell.hop.step == "end" and local == "two"
            unsaid = cell.hop.step in ("body", "end") and cell.hop.fault in ("close", "noise", *["reply, close"] * half)
            assert times <= (2 if unsaid else 1), cell
            assert times >= (0 if refused else 1), cell
    assert found == GOLDEN.read_text().splitlines()
