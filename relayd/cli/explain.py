"""``relayctl explain``: would this mail be taken, and which rule decides?"""

from __future__ import annotations

from dataclasses import dataclass

import click

from relayd.auth import Account, AccountsFile, AccountsFileError
from relayd.auth.directory import directory_principal
from relayd.cli.asking import asked
from relayd.cli.context import COLOURS, Context, pass_context
from relayd.cli.parameters import MailAddress
from relayd.config import size as size_reader
from relayd.directory import User
from relayd.model import IPAddress, Names, Outcome, Path, client_address
from relayd.policy import Explanation, Policy, Question
from relayd.policy import explain as explained


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
@click.option("--from", "sender", required=True, type=MailAddress(), help="MAIL FROM.")
@click.option("--to", "recipient", required=True, type=MailAddress(), help="RCPT TO.")
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
    """Says whether a mail would be taken, and by which rule; from the configuration and the accounts file alone.

    With --ask-directory the user's groups and addresses come from the directory, as in a session.
    """
    if ask_directory and not user:
        raise click.UsageError("--ask-directory: whom shall it be asked about? name a --user")
    who = _who(context, user, listener, ask_directory)
    question = Question(
        client=client,
        sender=sender,
        recipient=recipient,
        names=Names(confirmed=tuple(name.lower().rstrip(".") for name in names)),
        listener=listener,
        tls=tls,
        user=who.name,
        groups=frozenset(groups) | who.groups,
        addresses=who.addresses,
        mechanism=mechanism.upper(),
        size=_size(size),
    )
    try:
        explanation = explained(Policy(context.settings), question)
    except LookupError:
        known = ", ".join(entry.name for entry in context.settings.listeners)
        raise click.UsageError(f"--listener: {listener}: no such listener; there are: {known}") from None
    _show(context, explanation, who.entry)
    return 0 if explanation.verdict.outcome is Outcome.ACCEPT else 1


def _size(text: str | None) -> int:
    if text is None:
        return 0
    try:
        return int(text) if text.isdecimal() else size_reader("0", "1024G")(text)
    except ValueError as error:
        raise click.UsageError(f"--size: {error}") from None


@dataclass(frozen=True, slots=True)
class _Who:
    """Who authenticates, as a checker would say; *entry* is what the directory has of it, when it was asked."""

    name: str
    groups: frozenset[str] = frozenset()
    addresses: tuple[str, ...] = ()
    entry: User | None = None


def _who(context: Context, name: str, listener: str, ask_directory: bool) -> _Who:
    account = _account(context, name)
    if account is not None:
        if ask_directory:
            click.echo(f"relayctl: {account.name} is in the accounts file, so the directory is not asked", err=True)
        return _Who(account.name, frozenset(account.groups), account.addresses)
    if not ask_directory:
        return _Who(name)
    entries = context.settings.listeners
    default_domain = next((e for e in entries if e.name == listener), entries[0]).authentication.default_domain
    found = asked(context, lambda directory: directory.find(name, default_domain))
    if found is None:
        raise click.ClickException(f"{name}: the directory has no such account, so it cannot authenticate")
    if not found.state.good:
        click.echo(f"relayctl: {found.name} cannot authenticate for now: {found.state}", err=True)
    return _Who(str(directory_principal(found, "", "")), found.groups, found.addresses, found)


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


def _document(entry: User) -> dict[str, object]:
    return {
        "name": entry.name,
        "upn": entry.upn,
        "sid": entry.sid,
        "state": str(entry.state),
        "addresses": list(entry.addresses),
        "groups": sorted(entry.groups),
    }


def _show(context: Context, explanation: Explanation, entry: User | None) -> None:
    if context.as_json:
        told = {"user": _document(entry)} if entry is not None else {}
        context.document({**explanation.as_dict(), **told})
        return
    if entry is not None:
        rows = [("NAME", entry.name), ("UPN", entry.upn), ("SID", entry.sid), ("STATE", str(entry.state))]
        rows += [("ADDRESS", address) for address in entry.addresses]
        # Of a group's spellings, the one for people and the one that never changes.
        rows += [("GROUP", group) for group in sorted(entry.groups) if "\\" in group or group in entry.group_sids]
        context.table(("", "IN THE DIRECTORY"), [row for row in rows if row[1]])
        context.console.print()
    context.table(
        ("ASKED", "OUTCOME", "RULE", "LINE", ""),
        [(s.asked, s.outcome, s.rule.key, s.rule.line or "-", s.text) for s in explanation.steps],
    )
    verdict = explanation.verdict
    context.console.print()
    colour = COLOURS[verdict.outcome.value]
    context.console.print(f"{verdict.outcome.value}: {verdict.reply}", style=f"bold {colour}", markup=False)
    context.console.print(f"by {verdict.rule} of {context.config}", markup=False)
