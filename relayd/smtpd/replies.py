"""The replies a session gives, each once; and as octets those that are given all the time."""

from __future__ import annotations

from typing import Final

from relayd.model import Reply
from relayd.wire import encode_reply

# Given once a message or more often: encoded once.
SENDER_OK: Final = encode_reply(Reply.of(250, "2.1.0", "Sender OK"))
RECIPIENT_OK: Final = encode_reply(Reply.of(250, "2.1.5", "Recipient OK"))
GO_AHEAD: Final = encode_reply(Reply.of(354, "", "End data with <CR><LF>.<CR><LF>"))
RESET: Final = encode_reply(Reply.of(250, "2.0.0", "OK"))
NOOP: Final = encode_reply(Reply.of(250, "2.0.0", "OK"))
BYE: Final = encode_reply(Reply.of(221, "2.0.0", "Bye"))
READY_FOR_TLS: Final = encode_reply(Reply.of(220, "", "Ready to start TLS"))

HELP: Final = Reply.of(214, "2.0.0", "RFC 5321: EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY AUTH STARTTLS QUIT")
VRFY: Final = Reply.of(252, "2.5.2", "Send some mail, I will try my best")
AUTHENTICATED: Final = Reply.of(235, "2.7.0", "Authentication successful")

# Of the command itself.
UNKNOWN_COMMAND: Final = Reply.of(500, "5.5.2", "Command not recognised")
NOT_IMPLEMENTED: Final = Reply.of(502, "5.5.1", "Command not implemented")
NO_ARGUMENT: Final = Reply.of(501, "5.5.4", "This command takes no argument")
NO_TLS: Final = Reply.of(502, "5.5.1", "STARTTLS is not offered")
TLS_ACTIVE: Final = Reply.of(503, "5.5.1", "TLS is active already")
ARGUMENT_WANTED: Final = Reply.of(501, "5.5.4", "Argument missing")
LINE_TOO_LONG: Final = Reply.of(500, "5.5.6", "Line too long")
MECHANISM_WANTED: Final = Reply.of(501, "5.5.4", "AUTH what?")
CANCELLED: Final = Reply.of(501, "5.7.0", "Authentication cancelled")
BAD_BASE64: Final = Reply.of(501, "5.5.2", "Cannot decode this base64")
MALFORMED_RESPONSE: Final = Reply.of(501, "5.5.2", "Malformed response")
TOKEN_TOO_LONG: Final = Reply.of(500, "5.5.6", "Authentication exchange line is too long")  # RFC 4954 6
NO_MECHANISM: Final = Reply.of(504, "5.5.4", "Mechanism not offered")

# Of the order of commands.
HELLO_FIRST: Final = Reply.of(503, "5.5.1", "EHLO or HELO first")
NESTED_MAIL: Final = Reply.of(503, "5.5.1", "Sender already given")
MAIL_FIRST: Final = Reply.of(503, "5.5.1", "MAIL first")
RCPT_FIRST: Final = Reply.of(503, "5.5.1", "RCPT first")
NO_RECIPIENTS: Final = Reply.of(554, "5.5.1", "No valid recipients")
IN_CHUNKS: Final = Reply.of(503, "5.5.1", "The message comes by BDAT already")
AUTH_IN_MAIL: Final = Reply.of(503, "5.5.1", "Not within a mail transaction")
REFUSED_BEFORE: Final = Reply.of(503, "5.5.1", "Refused at the greeting; QUIT is all that is left")

# Of the message.
TOO_MANY_RECIPIENTS: Final = Reply.of(452, "4.5.3", "Too many recipients")
TOO_BIG: Final = Reply.of(552, "5.3.4", "Message too big")

# Of the client.
REFUSED_CREDENTIALS: Final = Reply.of(535, "5.7.8", "Authentication credentials invalid")
AUTHENTICATION_WANTED: Final = Reply.of(530, "5.7.0", "Authentication required")
NO_DELIVERY: Final = Reply.of(550, "5.7.1", "No mail is taken from you")
ASCII_ONLY: Final = Reply.of(553, "5.6.7", "Addresses beyond ASCII are not taken here")

# 421: the last reply of a session.
TIMED_OUT: Final = Reply.of(421, "4.4.2", "Timed out")
TOO_MANY_ERRORS: Final = Reply.of(421, "4.7.0", "Too many bad commands")
TOO_MANY_FAILURES: Final = Reply.of(421, "4.7.0", "Too many failed authentications")
TOO_MUCH_MAIL: Final = Reply.of(421, "4.7.0", "Too much mail in one session; connect again")
TOO_MUCH_REFUSED: Final = Reply.of(421, "4.7.0", "Too much data for a message that is refused")
TOO_MANY_CONNECTIONS: Final = Reply.of(421, "4.3.2", "Too many connections; try again later")
TOO_MANY_OF_YOURS: Final = Reply.of(421, "4.7.0", "Too many connections from your address")
NOT_HTTP: Final = Reply.of(421, "4.7.0", "This is SMTP")
OUT_OF_STEP: Final = Reply.of(421, "4.7.0", "Cannot tell data from commands")
BEHIND_STARTTLS: Final = Reply.of(421, "4.7.0", "Nothing may be sent between STARTTLS and the handshake")
SHUTTING_DOWN: Final = Reply.of(421, "4.3.2", "Shutting down")

INTERNAL_FAULT: Final = Reply.of(451, "4.3.0", "Local error; try again later")
INTERNAL_FAULT_AT_GREETING: Final = Reply.of(421, "4.3.0", "Local error; try again later")
