"""``relayctl status``: how the running server does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from relayd.cli.context import Context, age, pass_context


@click.command()
@pass_context
def status(context: Context) -> None:
    """Listeners, sessions, the directory's controllers and the queue of the running server."""
    found = context.control.status()
    if context.as_json:
        context.document(found)
        return
    click.echo(f"{found['hostname']}: relayd {found['version']}, pid {found['pid']}, up {age(found['uptime'])}")
    click.echo()
    context.table(
        ("LISTENER", "ADDRESS", "TLS", "SESSIONS"),
        [(entry["name"], entry["address"], entry["tls"], entry["sessions"]) for entry in found["listeners"]],
    )
    if found["directory"]:
        click.echo()
        context.table(
            ("CONTROLLER", ""),
            [(entry["controller"], _how(entry)) for entry in found["directory"]],
        )
    click.echo()
    context.table(("QUEUE", ""), sorted(found["queue"].items()))
    click.echo()
    context.table(("SINCE START", ""), sorted(found["totals"].items()))


def _how(controller: Mapping[str, Any]) -> str:
    """One that failed works again only when it was asked again."""
    if controller["rests"]:
        return f"rests for {controller['rests']}s: {controller['why']}"
    return f"failed, and is asked again: {controller['why']}" if controller["why"] else "works"
