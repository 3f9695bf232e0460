"""``relayctl spn``: the names that clients ask tickets for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import click
from cryptography import x509

from relayd.auth import keytab
from relayd.auth.keytab import KeytabError, encryption_name
from relayd.auth.service_names import Finding, compare, service_names, with_aliases
from relayd.cli.context import Context, pass_context
from relayd.cli.names import host_name
from relayd.cli.resolving import resolved
from relayd.directory.computer import find_by_principals
from relayd.directory.faults import ControllerFault
from relayd.directory.locating import locate, searching, told_domain
from relayd.model import Fault
from relayd.settings import Settings

AWAY = 2


@click.group()
def spn() -> None:
    """Service principal names."""


@spn.command()
@click.option("--host", "hosts", multiple=True, metavar="NAME", help="One more name that clients connect to.")
@pass_context
def check(context: Context, hosts: tuple[str, ...]) -> int:
    """Compares what clients ask tickets for with the directory and the keytab.

    Looked at are [server] hostname and each --host, in full and by their first label. The names in the listeners'
    certificates are looked at too, and nobody need have those.
    """
    if why := keytab.missing():
        raise click.ClickException(why)
    settings = context.settings
    if not settings.directory.configured:
        raise click.ClickException(f"{context.config}: [directory] names neither domain nor servers; write the domain")
    web = bool(settings.console.address)
    names = service_names((settings.server.hostname, *(host_name("--host", host) for host in hosts)), web=web)
    optional = tuple(n for n in service_names(_certified(settings), web=False) if "." in n and n not in names)
    try:
        keys = keytab.read(settings.kerberos.keytab)
        controllers = resolved(settings, partial(locate, settings.directory))
        connection = searching(settings.directory, settings.kerberos.keytab, controllers)
        try:
            domain = told_domain(connection)
            accounts = find_by_principals(domain, with_aliases((*names, *optional)), connection)
        finally:
            connection.close()
    except KeytabError as error:
        raise click.ClickException(str(error)) from None
    except (Fault, ControllerFault) as away:
        click.echo(f"relayctl: {away.detail if isinstance(away, Fault) else away}", err=True)
        return AWAY
    findings = compare((*names, *optional), accounts, keys, domain.dns.upper(), optional=optional)
    _show(context, findings)
    return 1 if any(finding.faults for finding in findings) else 0


def _certified(settings: Settings) -> Iterator[str]:
    """The names in certificates: clients that check them connect by no other."""
    files = {listener.tls_settings.certificate for listener in settings.listeners}
    for file in sorted(file for file in files if file is not None):
        certificate = x509.load_pem_x509_certificates(file.read_bytes())[0]
        try:
            found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (x509.ExtensionNotFound, ValueError):
            continue
        names = (name.lower() for name in found.get_values_for_type(x509.DNSName))
        yield from (name for name in names if "." in name and not name.startswith("*"))


def _show(context: Context, findings: tuple[Finding, ...]) -> None:
    faults = sum(len(finding.faults) for finding in findings)
    if context.as_json:
        keytab_file = context.settings.kerberos.keytab
        documents = [_document(finding) for finding in findings]
        context.document({"ok": not faults, "keytab": str(keytab_file or ""), "principals": documents})
        return
    rows = [
        (
            finding.name,
            ", ".join(account.name for account in finding.accounts) or "-",
            _keys(finding) or "-",
            "; ".join(finding.faults) or finding.note or "good",
        )
        for finding in findings
    ]
    context.table(("PRINCIPAL", "ACCOUNT", "KEYS", ""), rows)
    context.console.print()
    text = "nothing is wrong" if not faults else f"{faults} fault{'' if faults == 1 else 's'}"
    context.console.print(text, style="bold red" if faults else "bold green", markup=False)


def _keys(finding: Finding) -> str:
    """``2 (aes256, aes128)``."""
    kinds = ", ".join(encryption_name(e) for e in sorted({key.enctype for key in finding.keys}, reverse=True))
    return f"{finding.keys[0].kvno} ({kinds})" if finding.keys else ""


def _document(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "accounts": [{"name": a.name, "dn": a.dn, "kvno": a.kvno, "disabled": a.disabled} for a in finding.accounts],
        "keys": [
            {"principal": k.principal, "kvno": k.kvno, "encryption": encryption_name(k.enctype)} for k in finding.keys
        ],
        "faults": list(finding.faults),
        "note": finding.note,
    }
