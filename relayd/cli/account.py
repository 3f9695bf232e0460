"""``relayctl account``: the accounts file, for hosts without a directory."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path as File

import click

from relayd.auth import AccountsFile
from relayd.cli.context import Context, pass_context


def _accounts(context: Context) -> AccountsFile:
    file = context.settings.accounts.file
    if file is None:
        raise click.ClickException(f"{context.config}: [accounts] file is not set; write where accounts are kept")
    return AccountsFile(file)


def _hand_over(context: Context, accounts: AccountsFile) -> None:
    """What root writes, the user that relayd becomes must read."""
    user = context.settings.server.user
    if user and os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        os.chown(accounts.file, entry.pw_uid, entry.pw_gid)


def _ntlm(context: Context) -> bool:
    """Whether NTLM is answered from the accounts file."""
    return context.settings.ntlm.backend == "accounts"


@click.group()
def account() -> None:
    """Local accounts."""


@account.command()
@click.argument("name")
@click.option("--password-file", metavar="F|-", help="Its first line is the password; -: standard input.")
@click.option("--address", "addresses", multiple=True, metavar="A", help="A mail address of the account's own.")
@click.option("--group", "groups", multiple=True, metavar="G", help="A group the account belongs to.")
@pass_context
def add(
    context: Context, name: str, password_file: str | None, addresses: tuple[str, ...], groups: tuple[str, ...]
) -> None:
    """Adds an account, or replaces it.

    Where [ntlm] backend is "accounts", its NT hash is kept too: whoever reads that can sign in with it.
    """
    accounts = _accounts(context)
    replaced = accounts.find(name) is not None
    try:
        added = accounts.add(name, _password(password_file), addresses, groups, nt=_ntlm(context))
        _hand_over(context, accounts)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if context.as_json:
        context.document({"name": added.name, "addresses": list(added.addresses), "groups": list(added.groups)})
    else:
        click.echo(f"{added.name}: {'replaced' if replaced else 'added'} in {accounts.file}")


@account.command("list")
@pass_context
def list_(context: Context) -> None:
    """Lists the accounts; passwords are not shown."""
    found = sorted(_accounts(context).accounts().values(), key=lambda a: a.name.casefold())
    ntlm = _ntlm(context)  # says who was added before NTLM was answered from here, and must be added anew
    if context.as_json:
        context.documents(
            {"name": a.name, "addresses": list(a.addresses), "groups": list(a.groups)}
            | ({"ntlm": bool(a.nt)} if ntlm else {})
            for a in found
        )
    else:
        rows = [
            (a.name, ", ".join(a.addresses), ", ".join(a.groups), *(("yes" if a.nt else "no",) if ntlm else ()))
            for a in found
        ]
        context.table(("NAME", "ADDRESSES", "GROUPS", *(("NTLM",) if ntlm else ())), rows)


@account.command()
@click.argument("name")
@pass_context
def remove(context: Context, name: str) -> int:
    """Removes an account."""
    accounts = _accounts(context)
    try:
        removed = accounts.remove(name)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if context.as_json:
        context.document({"name": name, "removed": removed})
    elif removed:
        click.echo(f"{name}: removed from {accounts.file}")
    else:
        click.echo(f"{name}: no such account in {accounts.file}", err=True)
    return 0 if removed else 1


def _password(file: str | None) -> str:
    """From *file*, standard input, or asked for twice."""
    if file is None:
        if not sys.stdin.isatty():
            raise click.ClickException("no terminal to ask for the password; use --password-file")
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    try:
        text = sys.stdin.read() if file == "-" else File(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file}: {error}") from None
    return text.split("\n", 1)[0].rstrip("\r")
