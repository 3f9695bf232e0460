"""relayd: the SMTP relay of an Active Directory network, on Twisted."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("relayd")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
