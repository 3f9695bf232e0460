"""The command and its exit codes: 0 done or yes, 1 no or a fault in the input, 2 relayd or a dependency is away."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path as File

import click

from relayd import __version__
from relayd.auth import AccountsFileError
from relayd.cli.account import account
from relayd.cli.auth import auth
from relayd.cli.check import check
from relayd.cli.context import Context
from relayd.cli.directory import directory
from relayd.cli.explain import explain
from relayd.cli.join import join
from relayd.cli.queue import queue
from relayd.cli.spn import spn
from relayd.cli.status import status
from relayd.config import ConfigFaults, default_file
from relayd.control import ControlError, Unreachable
from relayd.directory import Unavailable

DONE, NO, AWAY = 0, 1, 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    type=click.Path(path_type=File, readable=False),
    help="Default: ./etc/relayd.toml, /etc/relayd/relayd.toml.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document; lists: one object a line.")
@click.option("--no-color", is_flag=True, help="No colours.")
@click.version_option(__version__, prog_name="relayctl")
@click.pass_context
def relayctl(context: click.Context, config: File | None, as_json: bool, no_color: bool) -> None:
    """Looks after relayd, the SMTP relay of an Active Directory network."""
    context.obj = Context(config or default_file(), as_json, no_color)


for command in (check, explain, account, auth, directory, join, queue, spn, status):
    relayctl.add_command(command)


def run(arguments: Sequence[str]) -> int:
    """Runs relayctl with *arguments*; its exit code."""
    try:
        result = relayctl.main(args=list(arguments), prog_name="relayctl", standalone_mode=False)
        return result if isinstance(result, int) else DONE
    except click.exceptions.NoArgsIsHelpError as asked:
        click.echo(asked.format_message(), err=True)
        return NO
    except click.ClickException as wrong:
        wrong.show()
        return NO
    except click.Abort:
        click.echo("aborted", err=True)
        return NO
    except ConfigFaults as faults:
        click.echo(str(faults), err=True)
        return NO
    except AccountsFileError as fault:
        click.echo(f"relayctl: {fault}", err=True)
        return NO
    except (Unreachable, Unavailable) as away:
        click.echo(f"relayctl: {away}", err=True)
        return AWAY
    except ControlError as refused:
        click.echo(f"relayctl: {refused}", err=True)
        return NO if refused.status < 500 else AWAY
    except BrokenPipeError:
        return DONE


def main() -> None:
    sys.exit(run(sys.argv[1:]))
