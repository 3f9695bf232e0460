"""Inbound: SMTP sessions, the SASL acceptor, TLS, and the listeners they come in by."""

from relayd.smtpd.listeners import Listening, SessionFactory
from relayd.smtpd.rehearsal import Rehearsal, rehearse
from relayd.smtpd.sasl import MECHANISMS, Challenge, Done, Mechanism, MechanismFactory
from relayd.smtpd.session import RelayESMTP
from relayd.smtpd.tls import ServerTls, self_signed, server_tls
from relayd.smtpd.virtual_server import VirtualServer

__all__ = [
    "MECHANISMS",
    "Challenge",
    "Done",
    "Listening",
    "Mechanism",
    "MechanismFactory",
    "Rehearsal",
    "RelayESMTP",
    "ServerTls",
    "SessionFactory",
    "VirtualServer",
    "rehearse",
    "self_signed",
    "server_tls",
]
