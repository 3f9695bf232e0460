"""The pickup folder under kill -9: each file is sent, and becomes one message, whatever the relay was doing with it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.crash.clients import LARGE, SMALL
from tests.crash.mail import content, recognise
from tests.crash.sink import TokenSink
from tests.crash.test_kill import CONFIG, CONNECTIONS, SEED, bodies, until
from tests.lab.relay import Relay
from tests.lab.sink import unstuff

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

KILLS = 25
WAITING = 300  # files in the folder, before the writer waits

ENVELOPE = b"X-Sender: client@corp.example\r\nX-Receiver: someone@elsewhere.example\r\n"
_ID = re.compile(rb"\tid ([0-9A-Z]{13})\b")


class IdSink(TokenSink):
    """Knows by its Received field which message a file became."""

    def __init__(self, seed: int, refusals: float) -> None:
        super().__init__(seed, refusals)
        self.ids: defaultdict[str, set[bytes]] = defaultdict(set)

    def take(self, wire: bytes, life: int) -> bytes:
        token, found = recognise(unstuff(wire)), _ID.search(wire)
        if token is not None:
            self.ids[token].add(found[1] if found else b"none")
        return super().take(wire, life)


class Writer:
    """Puts whole files into *folder*, as fast as they are taken."""

    def __init__(self, folder: Path, random: Random) -> None:
        self.tokens: set[str] = set()
        self.large = 0
        self._folder = folder
        self._random = random
        self._running = True

    def stop(self) -> None:
        self._running = False

    async def run(self) -> None:
        while self._running:
            if len(list(self._folder.glob("*.eml"))) < WAITING:
                await asyncio.to_thread(self._write)
            else:
                await asyncio.sleep(0.01)

    def _write(self) -> None:
        random = self._random
        for _ in range(20):
            large = random.random() < 0.03
            self.large += large
            token = f"0-{random.getrandbits(64):016x}"
            octets = ENVELOPE + content(token, random.randint(*(LARGE if large else SMALL)))
            part = self._folder / f".{token}.part"
            part.write_bytes(octets)
            part.rename(self._folder / f"{token}.eml")
            self.tokens.add(token)


def files(folder: Path) -> list[Path]:
    """What waits, the taken ones too."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it went meanwhile
            if path.is_file() and path.stat().st_size > 0:
                found.append(path)
    return found


def test_killed_again_and_again_each_file_becomes_one_message(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = tmp_path / "pickup"
    folder.mkdir()
    random = Random(SEED)
    sink, writer = IdSink(SEED, refusals=0.03), Writer(folder, Random(SEED + 1))
    faults: list[object] = []
    kills = 0

    async def scenario() -> Relay:
        nonlocal kills
        config = CONFIG % await sink.listen() + f'[pickup]\ndirectory = "{folder}"\n'
        relay = Relay(tmp_path, config)

        async def start(ready: bool = True) -> None:
            sink.life += 1
            relay.other_lines.clear()
            await asyncio.to_thread(relay.start, ready=ready)

        async def kill() -> None:
            nonlocal kills
            kills += 1
            assert await asyncio.to_thread(relay.kill) == -signal.SIGKILL, "it ended before it was killed"
            faults.extend(relay.find("fault"))

        try:
            await start()
            writing = asyncio.create_task(writer.run())
            for number in range(KILLS):
                wanted = len(sink.taken) + random.randint(1, 300)
                await until(lambda wanted=wanted: len(sink.taken) >= wanted or writing.done(), "mail")
                await asyncio.sleep(random.uniform(0, 0.3))
                await kill()
                if number % 4 == 3:  # and while it finishes what the last life began
                    await start(ready=False)
                    await asyncio.sleep(random.uniform(0.3, 2.0))
                    await kill()
                await start()
            writer.stop()
            await writing
            await until(lambda: not files(folder), "empty folder")
            end = time.monotonic() + 90
            while queued := await asyncio.to_thread(relay.ctl_json, "queue", "list"):
                assert time.monotonic() < end, f"still queued: {queued[:5]}"
            faults.extend(relay.find("fault"))
            assert await asyncio.to_thread(relay.stop) == -signal.SIGTERM
        finally:
            sink.close()
            if relay.process is not None and relay.process.poll() is None:
                relay.kill()
        return relay

    relay = asyncio.run(scenario())
    again = [token for token, lives in sink.taken.items() if len(lives) > 1]
    counts = {
        "kills": kills,
        "files": len(writer.tokens),
        "large": writer.large,
        "lost": len(writer.tokens - sink.taken.keys()),
        "two messages": sum(len(ids) > 1 for ids in sink.ids.values()),
        "twice at the sink": len(again),
    }
    print(counts)
    for name, count in counts.items():
        record_property(name, count)

    assert faults == []
    assert relay.other_lines == []
    assert sink.strange == []
    assert writer.tokens - sink.taken.keys() == set()
    assert sink.taken.keys() - writer.tokens == set()
    assert {token: ids for token, ids in sink.ids.items() if len(ids) > 1} == {}
    # Twice at the sink only where a crash came between its 250 and the settlement, as with any mail.
    assert [lives for lives in sink.taken.values() if len(set(lives)) < len(lives)] == []
    assert len(again) <= 2 * CONNECTIONS * kills
    assert list((tmp_path / "state" / "badmail").iterdir()) == []
    assert bodies(relay) == []
    assert writer.large > 0
