"""The command and its exit codes: 0 done or yes, 1 no or a fault in the input, 2 relayd or a dependency is away."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path as File
from typing import Final

import click

from relayd import __version__
from relayd.cli.context import Context
from relayd.config import ConfigFaults, default_file

DONE, NO, AWAY = 0, 1, 2

#: Each is a module of this package that has a command of its name. One is imported when it is asked for: the parts of
#: relayd that it needs take longer to load than most commands take to run.
COMMANDS: Final = ("account", "auth", "check", "directory", "explain", "join", "queue", "route", "spn", "status")


class _Commands(click.Group):
    """The commands of relayctl."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"relayd.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
    except BrokenPipeError:
        return DONE
    except Exception as error:
        code = _code(error)
        if code is None:
            raise
        click.echo(f"relayctl: {error}", err=True)
        return code


def _code(error: Exception) -> int | None:
    """The exit code that *error* stands for; None: it is a fault of relayctl's own."""
    if _is(error, "relayd.control", "ControlError"):
        return NO if getattr(error, "status", 0) < 500 else AWAY
    if _is(error, "relayd.control", "Unreachable") or _is(error, "relayd.directory", "Unavailable"):
        return AWAY
    return NO if _is(error, "relayd.auth", "AccountsFileError") else None


def _is(error: Exception, module: str, name: str) -> bool:
    """Whether *error* is one of *module*'s: not so when nothing has imported that yet, see :data:`COMMANDS`."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(error, getattr(loaded, name))


def main() -> None:
    sys.exit(run(sys.argv[1:]))
