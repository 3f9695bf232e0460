"""Questions to the directory, for commands that need no running relayd."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click

from relayd.cli.context import Context
from relayd.cli.resolving import resolved
from relayd.directory import Directory
from relayd.events import Events
from relayd.resolver import Resolver

T = TypeVar("T")


def asked(context: Context, ask: Callable[[Directory], Awaitable[T]]) -> T:
    """What *ask* brings, or raises, with a client of the directory as the configuration says. Once in a process.

    :raises click.ClickException: no directory is configured.
    :raises relayd.directory.Unavailable: the directory cannot be asked.
    """
    settings = context.settings
    if not settings.directory.configured:
        raise click.ClickException(f"{context.config}: [directory] names neither domain nor servers")

    async def run(resolver: Resolver, reactor: Any) -> T:
        directory = Directory(settings.directory, resolver, reactor, Events(), keytab=settings.kerberos.keytab)
        try:
            return await ask(directory)
        finally:
            await directory.close()

    try:
        return resolved(settings, run)
    except ValueError as wrong:
        raise click.ClickException(str(wrong)) from None
