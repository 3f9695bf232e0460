"""SMTP as bytes, both ways: lines, commands, parameters, replies, message data, trace. No Twisted, no I/O.

Readers keep their state across chunks and give the same result however the octets were cut. What a parser
refuses it refuses with a :class:`relayd.model.Fault` whose reply can be sent as it is; what an encoder refuses,
with a :class:`ValueError`: octets that would mean something else to the next parser never leave.
"""

from relayd.wire.bdat import BdatReader, BdatWriter
from relayd.wire.command import parse_bdat, parse_command, parse_hello, parse_mail, parse_rcpt
from relayd.wire.data import DataReader, DataWriter
from relayd.wire.header import Field, Header, addresses, mailbox, section, sent_from
from relayd.wire.lines import LineReader
from relayd.wire.octets import UncleanMessage
from relayd.wire.path import BadAddress, parse_address
from relayd.wire.reply import ReplyReader, encode_reply
from relayd.wire.request import encode_mail, encode_rcpt
from relayd.wire.trace import count_received, header_block, missing_fields, received_header, submitted_header

__all__ = [
    "BadAddress",
    "BdatReader",
    "BdatWriter",
    "DataReader",
    "DataWriter",
    "Field",
    "Header",
    "LineReader",
    "ReplyReader",
    "UncleanMessage",
    "addresses",
    "count_received",
    "encode_mail",
    "encode_rcpt",
    "encode_reply",
    "header_block",
    "mailbox",
    "missing_fields",
    "parse_address",
    "parse_bdat",
    "parse_command",
    "parse_hello",
    "parse_mail",
    "parse_rcpt",
    "received_header",
    "section",
    "sent_from",
    "submitted_header",
]
