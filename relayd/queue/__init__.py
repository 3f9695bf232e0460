"""Kept safe: the store interface, its SQLite back end, and the retry schedule."""

from relayd.queue.ids import made_at
from relayd.queue.schedule import delay_notice_due, next_attempt
from relayd.queue.sqlite import KEEP, SqliteStore
from relayd.queue.store import (
    SMALL_BODY,
    Attempt,
    Claim,
    Draft,
    Filter,
    HistoryEntry,
    MessageBody,
    MessageState,
    NewMessage,
    QueuedRecipient,
    QueueEntry,
    RecipientEntry,
    Settlement,
    Store,
)

__all__ = [
    "KEEP",
    "SMALL_BODY",
    "Attempt",
    "Claim",
    "Draft",
    "Filter",
    "HistoryEntry",
    "MessageBody",
    "MessageState",
    "NewMessage",
    "QueueEntry",
    "QueuedRecipient",
    "RecipientEntry",
    "Settlement",
    "SqliteStore",
    "Store",
    "delay_notice_due",
    "made_at",
    "next_attempt",
]
