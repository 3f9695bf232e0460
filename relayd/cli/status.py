"""``relayctl status``: how the running server does."""

from __future__ import annotations

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
            [
                (entry["controller"], f"rests for {entry['rests']}s: {entry['why']}" if entry["rests"] else "works")
                for entry in found["directory"]
            ],
        )
    click.echo()
    context.table(("QUEUE", ""), sorted(found["queue"].items()))
    click.echo()
    context.table(("SINCE START", ""), sorted(found["totals"].items()))
