"""``relayctl join``: makes this host's computer account, its keytab, and its secret."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Final

import click

from relayd.auth import keytab
from relayd.auth.joining import Administrator, Joined, JoinFailed, Joining, JoinRefused, Plan
from relayd.auth.kdc import Kdc
from relayd.auth.secret_file import Owner
from relayd.auth.service_names import service_names
from relayd.cli.context import Context, pass_context
from relayd.cli.names import host_name
from relayd.cli.resolving import resolved
from relayd.cli.secret import password_from
from relayd.config import load
from relayd.directory.computer import Changing
from relayd.directory.connecting import verifying
from relayd.directory.faults import ControllerFault
from relayd.directory.locating import Located, locate, told_domain
from relayd.directory.names import Domain
from relayd.model import Fault
from relayd.settings import Settings

NO, AWAY = 1, 2

#: What join makes, so that it need not be there before; and what the keytab does in place of a written account.
UNMADE: Final = (
    "kerberos.keytab",
    "ntlm.computer",
    "ntlm.secret_file",
    "ntlm.backend",
    "directory.bind_user",
    "directory.bind_password_file",
)
#: NetBIOS names end there (MS-NBTE 2.2.1), and with them what older parts of Windows know a computer by.
LONGEST_NAME: Final = 15
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")


@click.command(short_help="Makes this host's computer account, its keytab and its secret.")
@click.option("--user", default="", metavar="ADMIN", help="Who signs in; with --rotate, default: the computer itself.")
@click.option("--password-file", metavar="F|-", help="Its first line is ADMIN's password; -: standard input.")
@click.option("--computer", default="", metavar="NAME", help="Default: [ntlm] computer, or the host's first label.")
@click.option(
    "--ou", default="", metavar="DN", help="Where a new account goes. Default: the domain's own place for it."
)
@click.option("--spn-host", "spn_hosts", multiple=True, metavar="NAME", help="One more name that clients connect to.")
@click.option("--reuse", is_flag=True, help="Take over an account that exists; its password becomes another.")
@click.option("--rotate", is_flag=True, help="Give the account a new password; the old keys stay in the keytab.")
@pass_context
def join(
    context: Context,
    user: str,
    password_file: str | None,
    computer: str,
    ou: str,
    spn_hosts: tuple[str, ...],
    reuse: bool,
    rotate: bool,
) -> int:
    """Makes this host's computer account in the directory, with its service principal names, and writes its keys to the
    keytab and its password to the secret file.

    The files are those that [kerberos] keytab and [ntlm] secret_file name; by default relayd.keytab and relayd.secret
    beside relayd.toml. A running relayd uses new ones by itself.
    """
    if rotate and (reuse or ou or spn_hosts):
        raise click.UsageError("--rotate changes the password alone; it goes with --user and --computer")
    if not user and not rotate:
        raise click.UsageError("who signs in? name an administrator with --user")
    if why := keytab.missing():
        raise click.ClickException(why)
    settings = load(context.config, unmade=UNMADE).settings
    if not settings.directory.configured:
        raise click.ClickException(f"{context.config}: [directory] names neither domain nor servers; write the domain")
    plan = planned(settings, computer, spn_hosts, ou=ou, reuse=reuse, rotate=rotate)
    itself = not user or user.casefold() == plan.account.casefold()
    if itself and not rotate:
        raise click.UsageError(f"--user: {plan.account} may not make itself; name an administrator")
    password = "" if itself else password_from(password_file, f"Password of {user}")
    if not password and not itself:
        raise click.ClickException("an empty password is never tried")
    try:
        _join(context, settings, plan, "" if itself else user, password)
    except JoinRefused as refused:
        click.echo(f"relayctl: {refused}", err=True)
        return NO
    except (JoinFailed, ControllerFault) as failed:
        click.echo(f"relayctl: {failed}", err=True)
        return AWAY
    except Fault as fault:
        click.echo(f"relayctl: {fault.detail or fault}", err=True)
        return AWAY
    return 0


def _join(context: Context, settings: Settings, plan: Plan, user: str, password: str) -> None:
    """Does it, and shows what was done. An empty *user* is the computer itself."""

    def say(text: str) -> None:
        if not context.as_json:
            context.console.print(text, markup=False, soft_wrap=True)

    controllers = resolved(settings, partial(locate, settings.directory))
    administrator, domain = _reached(settings, controllers)
    name, password = (_bind_name(user, domain), password) if user else _itself(plan, domain, administrator)
    administrator = replace(administrator, name=name, password=password, itself=not user)
    kdc = Kdc(domain.dns.upper(), administrator.address)
    joined = Joining(plan, domain, administrator, kdc, say).run()
    _show(context, settings, plan, domain, joined, str(administrator.controller), len(controllers) > 1)


def planned(
    settings: Settings,
    computer: str,
    spn_hosts: Iterable[str],
    *,
    ou: str = "",
    reuse: bool = False,
    rotate: bool = False,
) -> Plan:
    """What shall be there, by the configuration and the command line.

    :raises click.ClickException: a name that cannot be.
    """
    hostname = settings.server.hostname
    if "." not in hostname:
        raise click.ClickException(
            f'[server] hostname is "{hostname}", no full name; write the one that clients connect to'
        )
    name = (computer or settings.ntlm.computer).removesuffix("$") or hostname.partition(".")[0].upper()
    if not _NAME.fullmatch(name) or name.isdecimal():
        raise click.ClickException(f'"{name}" cannot be a computer\'s name; write letters, digits and hyphens')
    if len(name) > LONGEST_NAME:
        raise click.ClickException(
            f"{name} has more than {LONGEST_NAME} characters; name a shorter account with --computer (clients go on to "
            "use the host's name)"
        )
    if ou and "=" not in ou:
        raise click.UsageError('--ou: write a DN such as "OU=Servers,DC=corp,DC=example"')
    folder = settings.file.absolute().parent
    hosts = (hostname, *(host_name("--spn-host", host) for host in spn_hosts))
    return Plan(
        computer=name,
        host=hostname,
        services=service_names(hosts, web=bool(settings.console.address)),
        keytab=settings.kerberos.keytab or folder / "relayd.keytab",
        secret=settings.ntlm.secret_file or folder / "relayd.secret",
        owner=_owner(settings.server.user),
        ou=ou,
        reuse=reuse,
        rotate=rotate,
    )


def _owner(user: str) -> Owner | None:
    """What root writes, the user that relayd becomes must read."""
    if not user or os.geteuid() != 0:
        return None
    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


def _reached(settings: Settings, controllers: Iterable[Located]) -> tuple[Administrator, Domain]:
    """The first controller that answers, and what it says of its domain.

    :raises ControllerFault: none does.
    """
    context = verifying(settings.directory)
    reasons = []
    for controller, addresses in controllers:
        for address in addresses:
            try:
                connection = Changing(controller, address, context, settings.directory.timeout)
            except ControllerFault as fault:
                reasons.append(str(fault))
                continue
            try:
                domain = told_domain(connection)
            except ControllerFault as fault:
                reasons.append(str(fault))
                continue
            finally:
                connection.close()
            return Administrator(controller, address, context), domain
    hint = "" if settings.directory.ca else " ([directory] ca is not set: the system's authorities are believed)"
    untrusted = any("certificate verify failed" in reason for reason in reasons)
    raise ControllerFault("; ".join(reasons) + (hint if untrusted else "") or "there is no controller")


def _bind_name(user: str, domain: Domain) -> str:
    """A bare name does not bind: it gets its domain (MS-ADTS 5.1.1.1.1)."""
    return user if any(c in user for c in "@\\=") else f"{user}@{domain.dns}"


def _itself(plan: Plan, domain: Domain, administrator: Administrator) -> tuple[str, str]:
    """The computer's own name and password; the next one, where an earlier run ended before it was done. That one is
    tried first: the one before it goes on to sign in for an hour, and changes nothing any more.

    :raises JoinRefused: there is none, or it is refused.
    """
    name = f"{plan.account}@{domain.dns}"
    passwords = []
    for file in (plan.next_secret, plan.secret):
        try:
            passwords.append(file.read_text("utf-8").strip("\r\n"))
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise JoinRefused(f"{file}: {error}") from None
    for password in filter(None, passwords):
        if administrator.signs_in(name, password):
            return name, password
    why = "is refused" if any(passwords) else "is not there"
    raise JoinRefused(
        f"the password of {plan.account} in {plan.secret} {why}; name an administrator with --user, "
        "or join with --reuse"
    )


def _show(
    context: Context, settings: Settings, plan: Plan, domain: Domain, joined: Joined, controller: str, replicated: bool
) -> None:
    known = settings.ntlm.computer.casefold() == joined.computer.casefold()
    lines = {
        "kerberos": {} if settings.kerberos.keytab else {"keytab": plan.keytab.name},
        "ntlm": {
            **({} if known else {"computer": joined.computer}),
            **({} if settings.ntlm.secret_file else {"secret_file": plan.secret.name}),
        },
    }
    missing = {table: keys for table, keys in lines.items() if keys}
    if context.as_json:
        context.document(
            {
                "computer": joined.computer,
                "dn": joined.dn,
                "sid": joined.sid,
                "domain": domain.dns,
                "controller": controller,
                "created": joined.made,
                "kvno": joined.kvno,
                "service_principals": list(joined.services),
                "principals": list(joined.principals),
                "keytab": str(plan.keytab),
                "secret_file": str(plan.secret),
                "to_add": missing,
            }
        )
        return
    click.echo()
    if missing:
        click.echo(f"Write into {context.config}:")
        for table, keys in missing.items():
            click.echo(f"\n[{table}]")
            for key, value in keys.items():
                click.echo(f'{key} = "{value}"')
        click.echo()
    if replicated:
        click.echo(f"Other controllers know of it when they have replicated {controller}.")
    click.echo("`relayctl spn check` compares the directory and the keytab with what clients ask for.")
