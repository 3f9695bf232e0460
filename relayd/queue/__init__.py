"""Kept safe: the store interface, its SQLite back end, and the retry schedule."""

from relayd.queue.ids import made_at
from relayd.queue.onward import Onward, hand_on
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
    "Onward",
    "QueueEntry",
    "QueuedRecipient",
    "RecipientEntry",
    "Settlement",
    "SqliteStore",
    "Store",
    "delay_notice_due",
    "hand_on",
    "made_at",
    "next_attempt",
]
