"""relayctl: what an administrator types. Thin: it talks to the control API, or to the configuration alone."""

from relayd.cli.main import main

__all__ = ["main"]
