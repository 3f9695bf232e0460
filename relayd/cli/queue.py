"""``relayctl queue``: the mail that waits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from relayd.cli.context import Context, age, octets, pass_context, shown
from relayd.config import duration
from relayd.control.documents import MOST_LISTED
from relayd.queue import MessageState

F = TypeVar("F", bound=Callable[..., Any])


def _duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float:
    if value is None:
        return 0.0
    try:
        return duration()(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


_FILTERS = (
    click.option("--sender", default="", metavar="G", help="Envelope sender; * and ? are wildcards."),
    click.option("--recipient", default="", metavar="G", help="A recipient; * and ? are wildcards."),
    click.option("--domain", default="", metavar="D", help="The domain of a recipient."),
    click.option("--state", type=click.Choice([s.value for s in MessageState]), help="The state of a recipient."),
    click.option("--older", callback=_duration, metavar="2h", help="Received longer ago than this."),
    click.option("--error", default="", metavar="TEXT", help="A part of the last reply."),
)


def _filters(command: F) -> F:
    for option in reversed(_FILTERS):
        command = option(command)
    return command


def _wanted(ids: tuple[str, ...], limit: int, **given: Any) -> dict[str, Any]:
    return {"ids": list(ids), "limit": limit, **{k: v for k, v in given.items() if v}}


@click.group()
def queue() -> None:
    """The mail that waits."""


@queue.command("list")
@_filters
@click.option("--limit", type=click.IntRange(1, MOST_LISTED), default=100, show_default=True)
@pass_context
def list_(context: Context, /, limit: int, **given: Any) -> None:
    """Lists messages, the oldest first."""
    messages = context.control.queue(_wanted((), limit, **given))
    if context.as_json:
        context.documents(messages)
        return
    rows = [
        (
            m["id"] if n == 0 else "",
            age(m["age"]) if n == 0 else "",
            octets(m["size"]) if n == 0 else "",
            (m["sender"] or "<>") if n == 0 else "",
            r["address"],
            r["state"],
            r["attempts"],
            r["next_at"] or "",
            r["last_reply"],
        )
        for m in messages
        for n, r in enumerate(m["recipients"])
    ]
    if rows:
        context.table(("ID", "AGE", "SIZE", "SENDER", "RECIPIENT", "STATE", "TRIES", "NEXT", "LAST REPLY"), rows)
    else:
        click.echo("no messages")


@queue.command()
@click.argument("message_id", metavar="ID")
@click.option("--body", is_flag=True, help="The message itself, as it is stored.")
@pass_context
def show(context: Context, message_id: str, body: bool) -> None:
    """One message, and what happened to it."""
    if body:
        sys.stdout.buffer.write(context.control.body(message_id))
        return
    message = context.control.message(message_id)
    if context.as_json:
        context.document(message)
        return
    for name in ("id", "sender", "received_at", "size", "client", "user", "listener", "tls", "rule", "session"):
        click.echo(f"{name + ':':13}{shown(message[name]) or '-'}")
    click.echo()
    context.table(
        ("RECIPIENT", "STATE", "TRIES", "NEXT", "LAST REPLY", "HOST"),
        [
            (r["address"], r["state"], r["attempts"], r["next_at"] or "", r["last_reply"], r["last_host"])
            for r in message["recipients"]
        ],
    )
    click.echo()
    context.table(
        ("AT", "WHAT", "RECIPIENT", "REPLY", "HOST", "TLS", "DETAIL"),
        [
            tuple(h[c] for c in ("at", "what", "recipient", "reply", "host", "tls", "detail"))
            for h in message["history"]
        ],
    )


def _act(context: Context, action: str, ids: tuple[str, ...], given: dict[str, Any]) -> int:
    wanted = _wanted(ids, MOST_LISTED, **given)
    if len(wanted) == 2 and not ids:
        raise click.UsageError("which messages? name ids or a filter")
    number = context.control.act(action, wanted)
    if context.as_json:
        context.document({"messages": number})
    else:
        click.echo(f"{number} message{'' if number == 1 else 's'}")
    return 0 if number else 1


@queue.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_filters
@pass_context
def retry(context: Context, /, ids: tuple[str, ...], **given: Any) -> int:
    """Tries waiting messages now."""
    return _act(context, "retry", ids, given)


@queue.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_filters
@pass_context
def drop(context: Context, /, ids: tuple[str, ...], **given: Any) -> int:
    """Takes messages out of the queue for good; nobody is told."""
    return _act(context, "drop", ids, given)
