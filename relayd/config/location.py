"""Where the configuration lies when nobody says."""

from pathlib import Path as File

INSTALLED = File("/etc/relayd/relayd.toml")


def default_file() -> File:
    """``./etc/relayd.toml`` in a checkout, ``/etc/relayd/relayd.toml`` elsewhere."""
    checkout = File("etc/relayd.toml")
    return checkout if checkout.exists() else INSTALLED
