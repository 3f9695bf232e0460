"""A real relayd: ``twistd relayd`` in a process of its own, with its log read as events."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Whatever a test waits for has to come in this many seconds.
DEADLINE = 30.0

#: The tree under test comes before whatever is installed.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

Event = dict[str, Any]

MINIMAL = """\
[server]
hostname = "relay.example"
state = "state"

[[listener]]
name = "smtp"
address = "127.0.0.1"
port = 0

[accounts]
file = "accounts.json"

[log]
format = "json"

[[domain]]
name = "local.example"
"""


def program(name: str) -> str:
    """A console script of the environment that runs the tests."""
    return str(Path(sys.executable).with_name(name))


class Relay:
    """One relayd with its configuration and state in *directory*; it may be started again after it ended."""

    def __init__(self, directory: Path, config: str = MINIMAL, arguments: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.config = directory / "relayd.toml"
        self.config.write_text(config)
        self.arguments = arguments
        self.events: list[Event] = []
        self.other_lines: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        self._news = threading.Condition()
        self._reader: threading.Thread | None = None

    # ---- life ------------------------------------------------------------------------------------------------

    def start(
        self, *, environment: Mapping[str, str] | None = None, prefix: Sequence[str] = (), ready: bool = True
    ) -> Relay:
        """Starts it, and waits until it listens.

        :param prefix: what stands before its command line, and replaces itself by it.
        """
        self.events.clear()
        self.process = subprocess.Popen(
            [
                *prefix,
                *(program("twistd"), "--nodaemon", "--pidfile=", "relayd"),
                *("--config", str(self.config), *self.arguments),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**ENVIRONMENT, **(environment or {})},
        )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()
        if ready:
            self.wait_for("ready")
        return self

    def stop(self) -> int:
        """Asks it to end, and waits until it has; its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """Ends it as a power cut would end it."""
        return self._end(signal.SIGKILL)

    def _end(self, number: int) -> int:
        assert self.process is not None
        assert self._reader is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        return code

    def __enter__(self) -> Relay:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    # ---- what it says ----------------------------------------------------------------------------------------

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            with self._news:
                if isinstance(event, dict):
                    self.events.append(event)
                else:
                    self.other_lines.append(line.decode("utf-8", "replace"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def find(self, name: str, **fields: object) -> Iterator[Event]:
        """The events called *name* so far whose fields are as given."""
        for event in list(self.events):
            if event["event"] == name and all(event.get(k) == v for k, v in fields.items()):
                yield event

    def wait_for(self, name: str, count: int = 1, **fields: object) -> Event:
        """Waits for the *count*-th such event; the event."""
        found: list[Event] = []

        def there() -> bool:
            found[:] = self.find(name, **fields)
            return len(found) >= count

        self.wait_until(there, f"{count} x {name} {fields}")
        return found[count - 1]

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits until *condition* holds; it is looked at after each line of the log, and a few times a second."""
        end = time.monotonic() + DEADLINE
        with self._news:
            while not condition():
                assert self.process is not None
                left = end - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not condition()):
                    raise AssertionError(
                        f"no {what}; exit code {self.process.poll()}; "
                        f"the log ends: {self.events[-20:]} {self.other_lines[-30:]}"
                    )
                self._news.wait(min(left, 0.2))

    def assert_clean(self) -> None:
        """No fault of relayd's own in the log, nothing that is not an event."""
        assert not list(self.find("fault"))
        assert not self.other_lines

    # ---- where it is -----------------------------------------------------------------------------------------

    @property
    def state(self) -> Path:
        return self.directory / "state"

    def port(self, listener: str = "smtp") -> int:
        """The port the kernel chose for *listener*."""
        ready = next(self.find("ready"))
        for text in ready["listening"]:
            name, address, _ = text.split(" ")
            if name == listener:
                return int(address.rpartition(":")[2])
        raise AssertionError(f"no listener {listener} in {ready}")

    def dropped(self) -> list[bytes]:
        """The messages in the drop directory."""
        return [file.read_bytes() for file in sorted((self.state / "drop").glob("*.eml"))]

    def ctl(self, *arguments: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs relayctl."""
        return subprocess.run(
            [program("relayctl"), "--config", str(self.config), *arguments],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            input=input,
            env=ENVIRONMENT,
        )

    def ctl_json(self, *arguments: str) -> Any:
        """Runs relayctl --json; the documents it printed."""
        done = self.ctl("--json", *arguments)
        assert done.returncode == 0, done
        documents = [json.loads(line) for line in done.stdout.splitlines()]
        return documents
