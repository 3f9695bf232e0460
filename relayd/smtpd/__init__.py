"""Inbound: SMTP sessions, the SASL acceptor, TLS, and the listeners they come in by."""

from relayd.smtpd.external import External
from relayd.smtpd.integrated import integrated_mechanisms
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
    "External",
    "Listening",
    "Mechanism",
    "MechanismFactory",
    "Rehearsal",
    "RelayESMTP",
    "ServerTls",
    "SessionFactory",
    "VirtualServer",
    "integrated_mechanisms",
    "rehearse",
    "self_signed",
    "server_tls",
]
