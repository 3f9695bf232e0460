"""Promise 1 at the store's level: what was answered survives kill -9 at any moment, whole."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from relayd.queue import SqliteStore
from tests.unit.queue.loop import Loop, delivered

ROUNDS = 12

#: Commits messages of all sizes, ten at a time, settles some, and says what was answered, until it is killed.
WRITER = """
import hashlib, random, sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from relayd.queue import SqliteStore
from tests.unit.queue.loop import delivered, envelope

store = SqliteStore(sys.argv[1], reactor=reactor)
dice = random.Random(int(sys.argv[2]))

async def one():
    while True:
        octets = dice.randbytes(dice.choice((10, 4096, 100_000, 300_000, 1_500_000)))
        draft = store.draft()
        for start in range(0, len(octets), 65536):
            room = draft.write(octets[start:start + 65536])
            if room is not None:
                await room
        claim = await draft.commit(envelope(), claimed=dice.random() < 0.5)
        print("kept", draft.message_id, hashlib.sha256(octets).hexdigest(), flush=True)
        if claim is not None and dice.random() < 0.5:
            print("settling", draft.message_id, flush=True)
            await store.settle(delivered(claim))
            print("settled", draft.message_id, flush=True)

async def main():
    await store.open()
    print("open", flush=True)
    for _ in range(10):
        Deferred.fromCoroutine(one()).addErrback(lambda failure: print("fault", failure, flush=True))

reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()))
reactor.run()
"""


def test_every_answered_message_is_there_after_kill_9(loop: Loop, directory: Path, tmp_path: Path) -> None:
    dice = random.Random(20260101)
    kept: dict[str, str] = {}
    settling: set[str] = set()
    settled: set[str] = set()
    output = tmp_path / "output"
    for seed in range(ROUNDS):
        with (
            output.open("wb") as file,
            subprocess.Popen([sys.executable, "-c", WRITER, str(directory), str(seed)], stdout=file) as writer,
        ):
            wait_for(output, "open")
            if seed % 3 == 0:
                wait_for(output, "kept")
            time.sleep(dice.uniform(0.0, 0.3))  # the moment is meant to be any
            writer.send_signal(signal.SIGKILL)
        said = output.read_text()
        assert "fault" not in said
        for line in said.splitlines(keepends=True):
            if line.endswith("\n"):
                what, *values = line.split()
                if what == "kept":
                    kept[values[0]] = values[1]
                elif what == "settling":
                    settling.add(values[0])
                elif what == "settled":
                    settled.add(values[0])
    assert kept
    store = SqliteStore(directory, reactor=loop)
    loop.wait(store.open())
    found: dict[str, str] = {}
    while claims := loop.wait(store.claim(1000)):
        for claim in claims:
            with claim.body.open() as body:
                octets = body.read()
            assert len(octets) == claim.body.size
            found[claim.message_id] = hashlib.sha256(octets).hexdigest()
            loop.wait(store.settle(delivered(claim)))
    loop.wait(store.close())
    # Everything answered and not settled is there, octet for octet; nothing that was settled came back.
    missing = {i: digest for i, digest in kept.items() if found.get(i) != digest}
    assert set(missing) <= settling, json.dumps(missing)
    assert not settled & set(found)
    left = [path for path in (directory / "bodies").rglob("*") if path.is_file()]
    assert left == []


def wait_for(output: Path, word: str) -> None:
    deadline = time.monotonic() + 60
    while word not in output.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
