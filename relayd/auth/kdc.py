"""One KDC, asked as a client and as a service would: the salt of an account, and whether a keytab has its keys.

It is the KDC of the very controller where an account was just changed, whatever the host's krb5.conf says: the others
know of the change only after replication. These calls block.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path as File
from typing import Final

from relayd.auth.keytab import AES, encryption_name
from relayd.model import IPAddress

__all__ = ["Kdc", "KdcFault"]

PORT: Final = 88

_CONFIGURATION: Final = """\
[libdefaults]
default_realm = {realm}
dns_lookup_kdc = false
dns_lookup_realm = false
dns_canonicalize_hostname = false
rdns = false
udp_preference_limit = 1
[realms]
{realm} = {{
    kdc = {address}:{port}
}}
"""


_Store = dict[bytes | str, bytes | str]


class KdcFault(Exception):
    """The KDC cannot be reached, or does not agree; the text says why."""


@dataclass(frozen=True, slots=True)
class Kdc:
    """The KDC at *address*."""

    realm: str
    address: IPAddress
    port: int = PORT

    def reach(self, seconds: float) -> None:
        """Sees whether anybody listens, which the Kerberos library would take half a minute to find out.

        :raises KdcFault: nobody does.
        """
        try:
            socket.create_connection((str(self.address), self.port), seconds).close()
        except OSError as error:
            raise KdcFault(f"the KDC at {self.address} port {self.port} cannot be reached: {error}") from None

    def salt(self, principal: str) -> bytes:
        """What an account's keys are salted with, by PA-ETYPE-INFO2 (RFC 4120 5.2.7.5).

        :param principal: ``RELAY01$@CORP.EXAMPLE``.
        :raises KdcFault: the KDC does not say.
        """
        import krb5

        with self._configured():
            try:
                context = krb5.init_context()
                options = krb5.get_init_creds_opt_alloc(context)
                krb5.get_init_creds_opt_set_etype_list(options, AES)
                info = krb5.get_etype_info(context, krb5.parse_name_flags(context, principal.encode()), options)
            except krb5.Krb5Error as error:
                raise KdcFault(f"the KDC at {self.address} does not tell the salt of {principal}: {error}") from None
        if info.salt is None or info.etype not in AES:
            raise KdcFault(f"the KDC at {self.address} offers {principal} no AES")
        return bytes(info.salt)

    def check(self, keytab: File, account: str, services: tuple[str, ...]) -> None:
        """Signs in by *keytab* as *account* with each AES key, and accepts a ticket of its own for each service.

        :param account: ``RELAY01$@CORP.EXAMPLE``; *services*: ``smtp/relay.corp.example@CORP.EXAMPLE``.
        :raises KdcFault: a key is not the KDC's, or a principal is not known there.
        """
        with self._configured():
            for enctype in AES:
                self._sign_in(keytab, account, enctype)
            for service in services:
                self._accept(keytab, account, service)

    def _sign_in(self, keytab: File, account: str, enctype: int) -> None:
        import krb5

        try:
            context = krb5.init_context()
            options = krb5.get_init_creds_opt_alloc(context)
            krb5.get_init_creds_opt_set_etype_list(options, [enctype])
            keys = krb5.kt_resolve(context, f"FILE:{keytab}".encode())
            principal = krb5.parse_name_flags(context, account.encode())
            krb5.get_init_creds_keytab(context, principal, options, keytab=keys)
        except krb5.Krb5Error as error:
            key = f"the {encryption_name(enctype)} key of {account}"
            raise KdcFault(f"the KDC at {self.address} does not take {key}: {error}") from None

    def _accept(self, keytab: File, account: str, service: str) -> None:
        import gssapi
        from gssapi.raw.misc import GSSError

        kerberos = gssapi.MechType.kerberos
        name = gssapi.Name(account, gssapi.NameType.kerberos_principal)
        target = gssapi.Name(service, gssapi.NameType.kerberos_principal)
        store: _Store = {"client_keytab": f"FILE:{keytab}", "ccache": os.environ["KRB5CCNAME"]}
        try:
            client = gssapi.Credentials(name=name, usage="initiate", mechs=[kerberos], store=store)
            initiator = gssapi.SecurityContext(name=target, creds=client, usage="initiate", mech=kerberos)
            token = initiator.step()
        except GSSError as error:
            raise KdcFault(f"the KDC at {self.address} gives no ticket for {service}: {_reason(error)}") from None
        try:
            server_store: _Store = {"keytab": f"FILE:{keytab}", "rcache": "none:"}
            server = gssapi.Credentials(usage="accept", mechs=[kerberos], store=server_store)
            # Not SecurityContext.step, which puts an error off when there is a token to tell the client of it.
            gssapi.raw.accept_sec_context(token, server)
        except GSSError as error:
            raise KdcFault(f"the new keytab does not open a ticket for {service}: {_reason(error)}") from None

    @contextmanager
    def _configured(self) -> Iterator[None]:
        """The library of this process asks this KDC alone, and touches no ticket of the caller's."""
        with tempfile.TemporaryDirectory(prefix="relayd-krb5-") as folder:
            file = File(folder) / "krb5.conf"
            address = f"[{self.address}]" if self.address.version == 6 else str(self.address)
            file.write_text(_CONFIGURATION.format(realm=self.realm, address=address, port=self.port))
            wanted = {"KRB5_CONFIG": str(file), "KRB5CCNAME": f"FILE:{folder}/tickets"}
            before = {name: os.environ.get(name) for name in wanted}
            os.environ.update(wanted)
            try:
                yield
            finally:
                for name, value in before.items():
                    if value is None:
                        del os.environ[name]
                    else:
                        os.environ[name] = value


def _reason(error: Exception) -> str:
    """The library's own words: what comes behind GSS-API's general ones."""
    text = " ".join(str(error).split())
    return text.partition("Minor (")[2].partition("): ")[2] or text
