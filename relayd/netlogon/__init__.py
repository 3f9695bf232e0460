"""The secure channel to a domain controller, which judges NTLM answers."""

from relayd.netlogon.logon import Logon
from relayd.netlogon.netlogon import Netlogon, netlogon_missing
from relayd.netlogon.statuses import LogonRefused

__all__ = ["Logon", "LogonRefused", "Netlogon", "netlogon_missing"]
