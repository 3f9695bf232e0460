"""``relayctl explain``: would this mail be taken, and which rule decides?"""

from __future__ import annotations

import click

from relayd.auth import Account, AccountsFile, AccountsFileError
from relayd.cli.context import Context, pass_context
from relayd.config import size as size_reader
from relayd.model import Fault, IPAddress, Names, Outcome, Path, client_address
from relayd.policy import Explanation, Policy, Question
from relayd.policy import explain as explained
from relayd.wire import parse_address

_COLOURS = {"accept": "green", "refuse": "red", "defer": "yellow"}


class _Address(click.ParamType[Path]):
    """A mail address; ``<>`` or nothing is the null reverse-path."""

    name = "ADDRESS"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        text = str(value).removeprefix("<").removesuffix(">")
        try:
            return parse_address(text) if text else Path("")
        except (ValueError, Fault) as error:
            self.fail(f"{value}: {error}", param, ctx)


class _Client(click.ParamType[IPAddress]):
    name = "IP"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> IPAddress:
        try:
            return client_address(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(short_help="Says whether a mail would be taken, and by which rule.")
@click.option("--client", required=True, type=_Client(), help="The client's address.")
@click.option("--name", "names", multiple=True, metavar="PTR", help="A confirmed reverse-DNS name of the client.")
@click.option("--listener", default="", metavar="NAME", help="Default: the first.")
@click.option("--tls", is_flag=True, help="The session is in TLS.")
@click.option("--user", default="", metavar="NAME", help="Who authenticates; nobody where it is absent.")
@click.option("--group", "groups", multiple=True, metavar="G", help="A group of the user's.")
@click.option("--mechanism", default="", metavar="M", help="Default: the first that is offered.")
@click.option("--from", "sender", required=True, type=_Address(), help="MAIL FROM.")
@click.option("--to", "recipient", required=True, type=_Address(), help="RCPT TO.")
@click.option("--size", default=None, metavar="BYTES", help="The declared size.")
@click.option("--ask-directory", is_flag=True, help="Look the user up.")
@pass_context
def explain(
    context: Context,
    client: IPAddress,
    names: tuple[str, ...],
    listener: str,
    tls: bool,
    user: str,
    groups: tuple[str, ...],
    mechanism: str,
    sender: Path,
    recipient: Path,
    size: str | None,
    ask_directory: bool,
) -> int:
    """Says whether a mail would be taken, and by which rule; from the configuration and the accounts file alone."""
    if ask_directory:
        raise click.UsageError("--ask-directory: no directory is served by this version")
    account = _account(context, user)
    question = Question(
        client=client,
        sender=sender,
        recipient=recipient,
        names=Names(confirmed=tuple(name.lower().rstrip(".") for name in names)),
        listener=listener,
        tls=tls,
        user=account.name if account else user,
        groups=frozenset(groups) | frozenset(account.groups if account else ()),
        addresses=account.addresses if account else (),
        mechanism=mechanism.upper(),
        size=_size(size),
    )
    try:
        explanation = explained(Policy(context.settings), question)
    except LookupError:
        known = ", ".join(entry.name for entry in context.settings.listeners)
        raise click.UsageError(f"--listener: {listener}: no such listener; there are: {known}") from None
    _show(context, explanation)
    return 0 if explanation.verdict.outcome is Outcome.ACCEPT else 1


def _size(text: str | None) -> int:
    if text is None:
        return 0
    try:
        return int(text) if text.isdecimal() else size_reader("0", "1024G")(text)
    except ValueError as error:
        raise click.UsageError(f"--size: {error}") from None


def _account(context: Context, user: str) -> Account | None:
    """The local account of this name; an accounts file that cannot be read explains nothing, and stops nothing."""
    file = context.settings.accounts.file
    if not user or file is None:
        return None
    try:
        return AccountsFile(file).find(user)
    except AccountsFileError as error:
        click.echo(f"relayctl: {error}; going on without it", err=True)
        return None


def _show(context: Context, explanation: Explanation) -> None:
    if context.as_json:
        context.document(explanation.as_dict())
        return
    context.table(
        ("ASKED", "OUTCOME", "RULE", "LINE", ""),
        [(s.asked, s.outcome, s.rule.key, s.rule.line or "-", s.text) for s in explanation.steps],
    )
    verdict = explanation.verdict
    context.console.print()
    colour = _COLOURS[verdict.outcome.value]
    context.console.print(f"{verdict.outcome.value}: {verdict.reply}", style=f"bold {colour}", markup=False)
    context.console.print(f"by {verdict.rule} of {context.config}", markup=False)
