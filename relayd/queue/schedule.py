"""When to try again, when to give up, when to tell the sender that it takes long. Pure functions."""

from __future__ import annotations


def next_attempt(
    attempts: int, received_at: float, now: float, retry: tuple[float, ...], expire: float
) -> float | None:
    """When a recipient is due again that was tried *attempts* times (1 or more) and deferred at *now*.

    The waits are those of ``[delivery] retry``: the first after the first attempt, and so on; the last one repeats.
    An attempt that would come after the message has expired is moved to the moment it expires, so that each message
    gets a last chance before it bounces. There is no jitter: messages spread by when they came.

    :param received_at: when the message was accepted, seconds since the epoch.
    :param retry: waits in seconds, at least one.
    :param expire: seconds after *received_at* at which a message is given up.
    :return: seconds since the epoch, greater than *now*; None where the message has expired: bounce it.
    :raises ValueError: *retry* is empty, or *attempts* is below 1.
    """
    if not retry:
        raise ValueError("retry holds no wait")
    if attempts < 1:
        raise ValueError(f"{attempts} attempts")
    end = received_at + expire
    if now >= end:
        return None
    return min(now + max(retry[min(attempts, len(retry)) - 1], 1.0), max(end, now + 1.0))


def delay_notice_due(received_at: float, now: float, after: float, notified: bool) -> bool:
    """Whether the sender is to be told now that a message is late (RFC 3461 4.1: DELAY), once in its life.

    :param after: ``[delivery] delay_notice`` in seconds; 0 = never.
    :param notified: whether it was told before.
    """
    return after > 0 and not notified and now - received_at >= after
