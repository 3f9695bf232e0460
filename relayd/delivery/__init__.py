"""Outbound: connections to next hops, and what becomes of messages there."""

from relayd.delivery.badmail import BadmailFolder
from relayd.delivery.client import connect
from relayd.delivery.connection import Connection
from relayd.delivery.dane import Dane
from relayd.delivery.dkim import Key, Signer
from relayd.delivery.fault import PathFault, Stage
from relayd.delivery.https import Https
from relayd.delivery.kerberos import KeytabInitiators
from relayd.delivery.mx import Hop
from relayd.delivery.next_hops import NextHops
from relayd.delivery.oauth import Tokens
from relayd.delivery.pool import ConnectionPool, Sent
from relayd.delivery.route import Route, RouteKind, Router
from relayd.delivery.sasl import Authenticator
from relayd.delivery.scheduler import Scheduler
from relayd.delivery.sts import Sts
from relayd.delivery.sts_folder import PolicyFolder
from relayd.delivery.target import Target, Timeouts
from relayd.delivery.tls import ClientTls, Roots
from relayd.delivery.tls_policy import TlsPolicy

__all__ = [
    "Authenticator",
    "BadmailFolder",
    "ClientTls",
    "Connection",
    "ConnectionPool",
    "Dane",
    "Hop",
    "Https",
    "Key",
    "KeytabInitiators",
    "NextHops",
    "PathFault",
    "PolicyFolder",
    "Roots",
    "Route",
    "RouteKind",
    "Router",
    "Scheduler",
    "Sent",
    "Signer",
    "Stage",
    "Sts",
    "Target",
    "Timeouts",
    "TlsPolicy",
    "Tokens",
    "connect",
]
