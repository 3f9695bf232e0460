"""smtp-sink in its failing modes: what becomes of the mail, and that it arrives once the next hop is well."""

from __future__ import annotations

import smtplib
from contextlib import ExitStack

from tests.e2e.configurations import HEAD, listener
from tests.e2e.conftest import StartRelay
from tests.lab.postfix import SmtpSink
from tests.lab.relay import Relay
from tests.lab.sink import RecordingSink

FROM = "alice@local.example"
STEPS = ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", ".")

#: The options of smtp-sink, and what the first attempt comes to.
MODES: dict[tuple[str, ...], str] = {
    **{("-q", step): "deferred" for step in STEPS},
    **{("-Q", step): "deferred" for step in STEPS},
    **{("-r", step): "deferred" for step in STEPS},
    # Only MAIL, RCPT and the end of data refuse for good; without EHLO there is HELO.
    ("-f", "CONNECT"): "deferred",
    ("-f", "EHLO"): "delivered",
    ("-f", "MAIL"): "bounced",
    ("-f", "RCPT"): "bounced",
    ("-f", "DATA"): "deferred",
    ("-f", "."): "bounced",
    ("-A", "0"): "bounced",  # 550 in the middle of the message
    ("-p", "-W", "RCPT:1"): "delivered",  # with pipelining smtp-sink answers DATA before RCPT then
    ("-w", "1"): "delivered",  # a second until the 354
    ("-p",): "delivered",
    ("-e",): "delivered",
    ("-P",): "delivered",
    ("-8",): "delivered",
    ("-N",): "delivered",
    ("-L",): "delivered",
}


def configuration(sinks: dict[tuple[str, ...], SmtpSink]) -> str:
    """A domain each; that of the LMTP server is local."""
    domains = "".join(
        f'[[domain]]\nname = "d{number}.example"\n'
        + (
            f'deliver = "lmtp://127.0.0.1:{sink.port}"\n'
            if mode == ("-L",)
            else f'kind = "remote"\nroute = ["127.0.0.1:{sink.port}"]\n'
        )
        for number, (mode, sink) in enumerate(sinks.items())
    )
    return (
        HEAD
        + listener()
        + '[relay]\nlist = ["127.0.0.1"]\n[delivery]\nretry = ["1s"]\n'
        + '[[domain]]\nname = "local.example"\n'
        + domains
    )


def outcomes(relay: Relay, recipient: str) -> list[str]:
    ends = ("deferred", "bounced", "delivered")
    return [e["event"] for e in list(relay.events) if e["event"] in ends and e["recipient"] == recipient]


def test_each_mode(start_relay: StartRelay) -> None:
    with ExitStack() as stack:
        sinks = {mode: stack.enter_context(SmtpSink(*mode, dump=False)) for mode in MODES}
        relay = start_relay(configuration(sinks))
        recipients = {mode: f"bob@d{number}.example" for number, mode in enumerate(MODES)}
        with smtplib.SMTP("127.0.0.1", relay.port()) as client:
            for recipient in recipients.values():
                client.sendmail(FROM, recipient, b"Subject: x\r\n\r\n" + b"0123456789\r\n" * 50)
        relay.wait_until(lambda: all(outcomes(relay, r) for r in recipients.values()), "an outcome for each")
        assert {mode: outcomes(relay, recipient)[0] for mode, recipient in recipients.items()} == MODES
        waiting = [mode for mode, outcome in MODES.items() if outcome == "deferred"]
        wells = {}
        for mode in waiting:
            sinks[mode].stop()
            wells[mode] = stack.enter_context(RecordingSink(port=sinks[mode].port))
        for mode in waiting:
            relay.wait_for("delivered", recipient=recipients[mode])
        assert {mode: [mail.to for mail in well.mails] for mode, well in wells.items()} == {
            mode: [(recipients[mode],)] for mode in waiting
        }
        assert all(outcomes(relay, r)[-1] in ("bounced", "delivered") for r in recipients.values())
        relay.assert_clean()
