"""``relayctl auth``: would this user be let in, and as whom?"""

from __future__ import annotations

import click

from relayd.cli.context import COLOURS, Context, pass_context
from relayd.cli.secret import password_from

_EXIT = {"accept": 0, "refuse": 1, "defer": 2}


@click.group()
def auth() -> None:
    """Authentication."""


@auth.command()
@click.argument("user")
@click.option("--mechanism", default="", metavar="M", help="PLAIN, LOGIN, GSSAPI, GSS-SPNEGO or NTLM. Default: PLAIN.")
@click.option("--listener", default="", metavar="NAME", help="Default: the first.")
@click.option("--password-file", metavar="F|-", help="Its first line is the password; -: standard input.")
@pass_context
def test(context: Context, user: str, mechanism: str, listener: str, password_file: str | None) -> int:
    """Has the running server authenticate USER, and shows whom it sees, or why it refuses.

    It is a real attempt: a wrong password counts, in the directory and in relayd's lockout.
    """
    password = password_from(password_file)
    if not password:
        raise click.ClickException("an empty password is never tried")
    found = context.control.auth_test(user, password, mechanism.upper(), listener)
    if context.as_json:
        context.document(found)
        return _EXIT[found["verdict"]]
    principal = found["principal"]
    if principal is not None:
        rows = [(name.upper(), value) for name, value in principal.items() if isinstance(value, str) and value]
        rows += [("ADDRESS", address) for address in principal["addresses"]]
        rows += [("GROUP", group) for group in principal["groups"]]
        context.table(("", f"{found['mechanism']} on {found['listener']}"), rows)
        context.console.print()
    why = f" ({found['reason']})" if found["reason"] else ""
    colour = COLOURS[found["verdict"]]
    context.console.print(f"{found['verdict']}: {found['reply']}{why}", style=f"bold {colour}", markup=False)
    return _EXIT[found["verdict"]]
