"""Host names on the command line."""

from __future__ import annotations

from ipaddress import ip_address

import click

from relayd.config.faults import Wrong
from relayd.config.readers import domain_name


def host_name(option: str, text: str) -> str:
    """*text* as a host's name, in lower case and A-labels.

    :raises click.UsageError: it is none.
    """
    try:
        ip_address(text)
    except ValueError:
        try:
            return domain_name(text)
        except Wrong as wrong:
            raise click.UsageError(f"{option}: {wrong.parts[0][1]}") from None
    raise click.UsageError(f"{option}: {text} is an address, and Kerberos goes by names")
