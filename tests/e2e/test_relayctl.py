"""relayctl against a running relay: what it prints for people, for programs, and its exit codes."""

from __future__ import annotations

import json
import stat

from tests.e2e.configurations import HEAD, listener, relaying
from tests.e2e.conftest import StartRelay
from tests.lab import clients
from tests.lab.net import free_port, wait_for
from tests.lab.relay import Relay
from tests.lab.sink import RecordingSink

TO = "bob@elsewhere.example"


def with_waiting_mail(start_relay: StartRelay, count: int = 1) -> tuple[Relay, list[str]]:
    """A relay whose smart host is away, and the ids of the mail that waits for it."""
    config = relaying(free_port()).replace('retry = ["1s"]', 'retry = ["1h"]')
    relay = start_relay(config)
    for n in range(count):
        assert clients.python_smtplib("127.0.0.1", relay.port(), f"sender{n}@local.example", TO) == {}
    relay.wait_for("deferred", count=count)
    return relay, [str(event["queue_id"]) for event in relay.find("accepted")]


def test_status(start_relay: StartRelay, sink: RecordingSink) -> None:
    relay = start_relay(relaying(sink.port))
    (status,) = relay.ctl_json("status")
    assert status["hostname"] == "relay.example"
    assert [entry["name"] for entry in status["listeners"]] == ["smtp", "smtps"]
    assert status["queue"] == {"queued": 0, "deferred": 0, "held": 0, "messages": 0}
    assert (status["totals"]["directory_binds"], status["totals"]["netlogon_logons"]) == (0, 0)  # there is none
    shown = relay.ctl("status")
    assert shown.returncode == 0
    assert "relay.example: relayd" in shown.stdout
    assert stat.S_IMODE((relay.state / "control.sock").stat().st_mode) == 0o600


def test_without_a_server_it_says_so_and_exits_2(start_relay: StartRelay, sink: RecordingSink) -> None:
    relay = start_relay(relaying(sink.port))
    relay.stop()
    for command in (["status"], ["queue", "list"], ["queue", "show", "1M87Y48GX0000"], ["queue", "drop", "X"]):
        done = relay.ctl(*command)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert "no relayd answers" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_queue_is_listed_shown_retried_and_dropped(start_relay: StartRelay) -> None:
    relay, (first, second) = with_waiting_mail(start_relay, 2)
    listed = relay.ctl_json("queue", "list")
    assert [(m["id"], m["sender"]) for m in listed] == [
        (first, "sender0@local.example"),
        (second, "sender1@local.example"),
    ]
    (recipient,) = listed[0]["recipients"]
    assert (recipient["address"], recipient["state"], recipient["attempts"]) == (TO, "queued", 1)
    assert recipient["next_at"]
    shown = relay.ctl("queue", "list")
    assert first in shown.stdout
    assert TO in shown.stdout

    (message,) = relay.ctl_json("queue", "show", first.lower())
    assert [entry["what"] for entry in message["history"]] == ["accepted", "deferred"]
    assert message["rule"].startswith("relay.list[0]")
    body = relay.ctl("queue", "show", first, "--body").stdout
    assert body.startswith("Received: ")
    assert body.endswith((".leading dot\n", ".leading dot\r\n"))
    assert first in relay.ctl("queue", "show", first).stdout

    assert relay.ctl_json("queue", "list", "--sender", "*1@local.example", "--state", "queued")[0]["id"] == second
    assert relay.ctl_json("queue", "list", "--domain", "nowhere.example") == []
    assert relay.ctl_json("queue", "list", "--older", "1h") == []
    assert len(relay.ctl_json("queue", "list", "--limit", "1")) == 1

    assert relay.ctl_json("queue", "retry", first) == [{"messages": 1}]
    relay.wait_for("deferred", count=2, queue_id=first)
    assert relay.ctl_json("queue", "drop", "--sender", "sender1@*") == [{"messages": 1}]
    assert [m["id"] for m in relay.ctl_json("queue", "list")] == [first]
    dropped = relay.ctl("queue", "drop", second)
    assert (dropped.returncode, dropped.stdout) == (1, "0 messages\n")
    relay.assert_clean()


def test_what_was_retried_goes_out_when_the_smart_host_is_back(start_relay: StartRelay) -> None:
    relay, (first,) = with_waiting_mail(start_relay)
    port = int(relay.config.read_text().split("smart_host = [")[1].split(":")[1].split('"')[0])
    with RecordingSink(port=port) as sink:
        wait_for(lambda: relay.ctl("queue", "retry", first).returncode in (0, 1) and sink.mails, "the mail", timeout=90)
    relay.wait_for("delivered", queue_id=first)
    (message,) = relay.ctl_json("queue", "show", first)
    assert message["recipients"][0]["state"] == "delivered"
    assert [e["what"] for e in message["history"]][-1] == "delivered"
    assert relay.ctl("queue", "show", first, "--body").returncode == 1
    assert relay.ctl_json("queue", "list", "--state", "queued") == []


def test_bad_requests_are_named(start_relay: StartRelay, sink: RecordingSink) -> None:
    relay = start_relay(relaying(sink.port))
    for arguments, text in (
        (["queue", "show", "NOSUCHMESSAGE"], "no such message"),
        (["queue", "show", "../../etc/passwd"], "no such message"),
        (["queue", "drop"], "which messages?"),
        (["queue", "retry"], "which messages?"),
        (["queue", "list", "--older", "soon"], "soon"),
        (["queue", "list", "--state", "lost"], "lost"),
        (["queue", "list", "--limit", "0"], "0"),
        (["nonsense"], "nonsense"),
        (["explain", "--client", "1.2.3", "--from", "a@b.example", "--to", "c@d.example"], "1.2.3"),
        (["explain", "--client", "192.0.2.1", "--from", "a@b.example", "--to", "c d@e f"], "c d@e f"),
        (
            ["explain", "--client", "192.0.2.1", "--listener", "x", "--from", "<>", "--to", "c@d.example"],
            "no such listener",
        ),
        (["account", "add", "a\\b", "--password-file", "-"], "not a name"),
        (["account", "add", "bob", "--password-file", "/nonexistent"], "/nonexistent"),
    ):
        done = relay.ctl(*arguments, input="secret\n")
        assert done.returncode == 1, (arguments, done)
        assert text in done.stderr, (arguments, done)
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    relay.assert_clean()


def test_accounts(start_relay: StartRelay, sink: RecordingSink) -> None:
    relay = start_relay(relaying(sink.port))
    assert relay.ctl_json("account", "list") == []
    added = relay.ctl(
        *("account", "add", "alice", "--password-file", "-", "--address", "Alice@corp.example", "--group", "Staff"),
        input="secret\n",
    )
    assert added.returncode == 0, added
    assert relay.ctl_json("account", "list") == [
        {"name": "alice", "addresses": ["alice@corp.example"], "groups": ["Staff"]}
    ]
    assert relay.ctl("account", "remove", "ALICE").returncode == 0
    assert relay.ctl("account", "remove", "alice").returncode == 1
    assert "secret" not in "".join(map(str, relay.events))


def test_explain_names_the_rule_and_its_line(start_relay: StartRelay, sink: RecordingSink) -> None:
    relay = start_relay(relaying(sink.port, allow='["192.0.2.0/24"]'))
    lines = relay.config.read_text().splitlines()
    question = ("--from", "a@local.example", "--to", TO)
    done = relay.ctl("--json", "explain", "--client", "192.0.2.7", *question)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["verdict"], answer["rule"]) == (0, "accept", "relay.list[0]")
    assert "192.0.2.0/24" in lines[answer["line"] - 1]
    refused = relay.ctl("explain", "--client", "198.51.100.7", *question)
    assert refused.returncode == 1
    assert "refuse: 550 5.7.1 Unable to relay for bob@elsewhere.example" in refused.stdout
    assert "by relay." in refused.stdout
    # What explain says is what the server does.
    assert clients.python_smtplib("127.0.0.1", relay.port(), "a@local.example", ["d@local.example"]) == {}
    relay.ctl("account", "add", "alice", "--password-file", "-", input="secret\n")
    allowed = relay.ctl("--json", "explain", "--client", "198.51.100.7", "--tls", "--user", "Alice", *question)
    assert json.loads(allowed.stdout)["rule"] == "relay.authenticated"


def test_check(start_relay: StartRelay, sink: RecordingSink) -> None:
    relay = start_relay(relaying(sink.port))
    sound = relay.ctl("check")
    assert (sound.returncode, sound.stdout.splitlines()[-1]) == (0, f"{relay.config}: sound")
    relay.config.write_text(relaying(sink.port).replace("[relay]\n", '[relay]\nallow = "all-except"\nlst = []\n'))
    broken = relay.ctl("check")
    assert broken.returncode == 1
    assert f"{relay.config}:" in broken.stdout
    assert "relay.lst" in broken.stdout
    relay.config.write_text(HEAD + listener() + '[relay]\nallow = "all-except"\n')
    open_ = relay.ctl("--json", "check")
    assert open_.returncode == 1
    (fault,) = json.loads(open_.stdout)["faults"]
    assert "open relay" in fault
    assert relay.ctl("check", "--allow-open-relay").returncode == 0
