"""The tables of the queue, and the triggers that let one statement do a whole batch.

Python's sqlite3 gives up the interpreter's lock for every step of every statement, and a thread that wants it back
from a busy reactor may wait for 5 ms each time. So the writer hands SQLite all that waits as the rows of *one* INSERT
into the view ``work``; triggers spread the rows over the tables, and the implicit transaction of that statement
commits them. Beside a busy thread this was four to five times faster than a BEGIN, one INSERT a table, and a COMMIT.

Columns of ``work``: kind, message, n, seq, at, due, i, j, k, a, b, c, d, e, octets. What they mean for each kind
stands at the triggers; :mod:`relayd.queue.rows` makes the rows.
"""

from __future__ import annotations

from typing import Final

#: In the header of the database file, so that no other database is taken for a queue. "rlyq"
APPLICATION_ID: Final = 0x726C7971
#: Of the tables; a newer one is refused, an older one will be brought up to date here.
VERSION: Final = 1

TABLES: Final = """
CREATE TABLE message (
    id          INTEGER PRIMARY KEY,        -- relayd.queue.ids: grows with time
    received_at REAL NOT NULL,
    size        INTEGER NOT NULL,           -- octets
    in_file     INTEGER NOT NULL,           -- 0: the octets are in body; 1: in a file
    envelope    TEXT NOT NULL,              -- JSON, without the recipients
    finished_at REAL                        -- set when all recipients are final
);
CREATE INDEX message_finished ON message (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE body (
    id     INTEGER PRIMARY KEY,             -- message.id
    octets BLOB NOT NULL
);

CREATE TABLE recipient (
    message        INTEGER NOT NULL,
    n              INTEGER NOT NULL,        -- 0, 1, 2, ... within the message
    state          INTEGER NOT NULL,        -- relayd.queue.rows.STATES; below 2: not final
    leased         INTEGER NOT NULL,
    due_at         REAL NOT NULL,           -- when to try; while leased, when the lease ends
    attempts       INTEGER NOT NULL DEFAULT 0,
    delay_notified INTEGER NOT NULL DEFAULT 0,
    local          TEXT NOT NULL,
    domain         TEXT NOT NULL,
    extra          TEXT NOT NULL,           -- JSON or empty: what RCPT said beside the path
    last_reply     TEXT,
    last_host      TEXT,
    PRIMARY KEY (message, n)
) WITHOUT ROWID;
CREATE INDEX recipient_open ON recipient (state, due_at, leased) WHERE state < 2;

CREATE TABLE history (
    message INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    at      REAL NOT NULL,
    what    TEXT NOT NULL,
    n       INTEGER,                        -- recipient.n; NULL: about the whole message
    reply   TEXT,
    host    TEXT,
    tls     TEXT,
    detail  TEXT,
    PRIMARY KEY (message, seq)
) WITHOUT ROWID;
"""

#: Made where they are missing, whenever a queue is opened: an older relayd works with them, and without. For looks at
#: the whole queue: messages that wait, in the order in which they came; those of them that have a file.
INDEXES: Final = """
CREATE INDEX IF NOT EXISTS message_open ON message (id, finished_at) WHERE finished_at IS NULL;
CREATE INDEX IF NOT EXISTS message_file ON message (id, size) WHERE in_file AND finished_at IS NULL;
"""

#: Columns of ``work`` and of ``act``.
WIDTH: Final = 15

#: Of the writing connection alone. Each trigger of a view costs for each row, so rare kinds have their own.
TRIGGERS: Final = """
CREATE TEMP VIEW work (kind, message, n, seq, at, due, i, j, k, a, b, c, d, e, octets) AS
    SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE 0;

-- 1 MESSAGE with its first recipient: at = received_at, i = size, j = in_file, e = envelope; octets unless in a file;
-- the rest as for RECIPIENT
CREATE TEMP TRIGGER work_message INSTEAD OF INSERT ON work WHEN NEW.kind = 1 BEGIN
    INSERT INTO message (id, received_at, size, in_file, envelope)
        VALUES (NEW.message, NEW.at, NEW.i, NEW.j, NEW.e);
    INSERT INTO recipient (message, n, state, leased, due_at, local, domain, extra)
        VALUES (NEW.message, 0, 0, NEW.k, NEW.due, NEW.a, NEW.b, NEW.c);
    INSERT INTO body (id, octets) SELECT NEW.message, NEW.octets WHERE NOT NEW.j;
END;

-- 2 RECIPIENT, any but the first: due = due_at or the lease's end, k = leased, a = local, b = domain, c = extra
CREATE TEMP TRIGGER work_recipient INSTEAD OF INSERT ON work WHEN NEW.kind = 2 BEGIN
    INSERT INTO recipient (message, n, state, leased, due_at, local, domain, extra)
        VALUES (NEW.message, NEW.n, 0, NEW.k, NEW.due, NEW.a, NEW.b, NEW.c);
END;

-- 3 ATTEMPT: at = now, due = next_at, i = the new state, j = counts, k = delay_notified + 2 * finish, a = reply,
-- b = host, c = tls, d = detail, e = what.
-- Why a recipient was not tried is shown as its last reply until there is a real one.
-- What an administrator dropped stays dropped, what he holds stays held unless it is final now; the history says what
-- happened all the same. With finish, a message none of whose recipients waits any more loses its octets.
CREATE TEMP TRIGGER work_attempt INSTEAD OF INSERT ON work WHEN NEW.kind = 3 BEGIN
    INSERT INTO history (message, seq, at, what, n, reply, host, tls, detail)
        SELECT NEW.message, NEW.seq, NEW.at, NEW.e, NEW.n, NEW.a, NEW.b, NEW.c, NEW.d
        FROM recipient WHERE message = NEW.message AND n = NEW.n AND (NEW.j OR NEW.i <> 0);
    UPDATE recipient SET
        state = CASE NEW.i WHEN 0 THEN state ELSE NEW.i END,
        leased = 0,
        due_at = NEW.due,
        attempts = attempts + NEW.j,
        delay_notified = delay_notified | (NEW.k & 1),
        last_reply = CASE WHEN NEW.j OR NEW.i <> 0 OR attempts = 0 THEN NEW.a ELSE last_reply END,
        last_host = CASE WHEN NEW.j OR NEW.i <> 0 OR attempts = 0 THEN NEW.b ELSE last_host END
    WHERE message = NEW.message AND n = NEW.n AND state < 2;
    UPDATE message SET finished_at = NEW.at
        WHERE NEW.k & 2 AND id = NEW.message AND finished_at IS NULL
        AND NOT EXISTS (SELECT 1 FROM recipient WHERE message = NEW.message AND state < 2);
    DELETE FROM body
        WHERE NEW.k & 2 AND id = NEW.message
        AND EXISTS (SELECT 1 FROM message WHERE id = NEW.message AND finished_at IS NOT NULL);
END;

-- 4 RENEW: due = the lease's end
CREATE TEMP TRIGGER work_renew INSTEAD OF INSERT ON work WHEN NEW.kind = 4 BEGIN
    UPDATE recipient SET due_at = NEW.due
        WHERE message = NEW.message AND n = NEW.n AND state = 0 AND leased = 1;
END;

CREATE TEMP VIEW act (kind, message, n, seq, at, due, i, j, k, a, b, c, d, e, octets) AS
    SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE 0;

-- 11 NOTE in the history, about the whole message: e = what, d = detail
CREATE TEMP TRIGGER act_note INSTEAD OF INSERT ON act WHEN NEW.kind = 11 BEGIN
    INSERT INTO history (message, seq, at, what, detail) VALUES (NEW.message, NEW.seq, NEW.at, NEW.e, NEW.d);
END;

-- 12 LEASE: due = its end
CREATE TEMP TRIGGER act_lease INSTEAD OF INSERT ON act WHEN NEW.kind = 12 BEGIN
    UPDATE recipient SET leased = 1, due_at = NEW.due WHERE message = NEW.message AND n = NEW.n AND state = 0;
END;

-- 13 RETRY: due = now; what is leased is being tried already
CREATE TEMP TRIGGER act_retry INSTEAD OF INSERT ON act WHEN NEW.kind = 13 BEGIN
    UPDATE recipient SET due_at = NEW.due WHERE message = NEW.message AND state = 0 AND leased = 0;
END;

-- 14 STOP: at = now; every recipient that is not final gets state i; the octets go when that is a final one
CREATE TEMP TRIGGER act_stop INSTEAD OF INSERT ON act WHEN NEW.kind = 14 BEGIN
    UPDATE recipient SET state = NEW.i, leased = 0 WHERE message = NEW.message AND state < 2;
    UPDATE message SET finished_at = NEW.at WHERE NEW.i > 1 AND id = NEW.message AND finished_at IS NULL;
    DELETE FROM body WHERE NEW.i > 1 AND id = NEW.message;
END;

-- 15 PURGE: a finished message and its history go
CREATE TEMP TRIGGER act_purge INSTEAD OF INSERT ON act WHEN NEW.kind = 15 BEGIN
    DELETE FROM history WHERE message = NEW.message;
    DELETE FROM recipient WHERE message = NEW.message;
    DELETE FROM body WHERE id = NEW.message;
    DELETE FROM message WHERE id = NEW.message;
END;
"""
