"""Passwords for commands: never on the command line, where everybody on the host reads them."""

from __future__ import annotations

import sys
from pathlib import Path as File

import click


def password_from(file: str | None, prompt: str = "Password", *, twice: bool = False) -> str:
    """The first line of *file* (``-``: of standard input); None: asked for on the terminal.

    :param twice: a new one, to be typed twice.
    :raises click.ClickException: there is no terminal, or the file cannot be read.
    """
    if file is None:
        if not sys.stdin.isatty():
            raise click.ClickException("no terminal to ask for the password; use --password-file")
        return str(click.prompt(prompt, hide_input=True, confirmation_prompt=twice))
    try:
        text = sys.stdin.read() if file == "-" else File(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file}: {error}") from None
    return text.split("\n", 1)[0].rstrip("\r")
