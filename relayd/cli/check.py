"""``relayctl check``: is the configuration sound?"""

from __future__ import annotations

import click

from relayd.cli.context import Context, pass_context
from relayd.config import ConfigFaults
from relayd.policy import open_relay


@click.command()
@click.option("--allow-open-relay", is_flag=True, help="An open relay is what is wanted.")
@pass_context
def check(context: Context, allow_open_relay: bool) -> int:
    """Says what is wrong with the configuration, one line a fault."""
    try:
        loaded = context.loaded
        faults = [] if allow_open_relay else [str(found) for found in open_relay(loaded.settings)]
    except ConfigFaults as found:
        faults = str(found).splitlines()
        warnings: list[str] = []
    else:
        warnings = [str(warning) for warning in loaded.warnings]
    if context.as_json:
        context.document({"ok": not faults, "faults": faults, "warnings": warnings})
    else:
        for line in (*faults, *(f"{w} (warning)" for w in warnings)):
            click.echo(line)
        if not faults:
            click.echo(f"{context.config}: sound")
    return 1 if faults else 0
