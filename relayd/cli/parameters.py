"""What commands are told on their lines."""

from __future__ import annotations

import click

from relayd.cli.context import shown
from relayd.model import Fault, Path
from relayd.wire import parse_address


class MailAddress(click.ParamType[Path]):
    """A mail address; ``<>`` or nothing is the null reverse-path."""

    name = "ADDRESS"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        text = str(value).removeprefix("<").removesuffix(">")
        try:
            return parse_address(text) if text else Path("")
        except UnicodeEncodeError:
            self.fail(shown(f"{value}: it is not UTF-8"), param, ctx)
        except (ValueError, Fault) as error:
            self.fail(shown(f"{value}: {error}"), param, ctx)
