"""DNS for commands that then go on without a reactor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from relayd.resolver import Resolver
from relayd.settings import Settings

T = TypeVar("T")


def resolved(settings: Settings, ask: Callable[[Resolver, Any], Awaitable[T]]) -> T:
    """What *ask* brings, or raises, given the resolver that relayd itself would use and the reactor. Once in a
    process."""
    from twisted.internet import reactor as installed  # made here, so that other commands have none

    reactor: Any = installed
    results: list[T | Failure] = []

    async def run() -> None:
        resolver = Resolver(settings.dns.servers, reactor=reactor, trust_ad=settings.dns.trust_ad)
        try:
            results.append(await ask(resolver, reactor))
        except Exception:
            results.append(Failure())
        finally:
            await resolver.close()
            reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(run()))
    reactor.run()
    if not results:
        raise click.Abort
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]
