"""Kerberos, the acceptor's side: security contexts by GSS-API (RFC 2743, RFC 4121), raw or inside SPNEGO (RFC 4178).

This speaks to gssapi and not to pyspnego's proxies, whose acceptor finds its keytab by the environment of the whole
process alone, hides the error of the mechanism, cannot name the PAC's attributes, and lets ValueError and
AttributeError out for odd tokens. What is in a token, :mod:`relayd.auth.gss_token` says.

Who is at fault, where a context fails (design, promise 5: what is ours is never 535):

===================================================  ====  =================================================
what Kerberos says (RFC 4120 7.5.9)                  code  why
===================================================  ====  =================================================
ticket expired, replay, modified, address, version   535   only the client can mend it
not a token, not Kerberos, other channel bindings    535   likewise
the keytab is away, unreadable, empty                454   ours
no key of that service, version or type; wrong key   454   the controller made the ticket: the keytab is behind it
clock skew, ticket not yet valid                     454   a client learns the controller's time with its ticket
the replay cache cannot be written                   454   ours
===================================================  ====  =================================================

Replays: MIT keeps a file of the authenticators of the last minutes, /var/tmp/krb5_UID.rcache2 (krb5.conf's
``default_rcache_name``), which all processes of the user share. It is opened for each context, so it belongs to whom
relayd runs as after it dropped root; it costs 0.01 ms.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path as File
from typing import TYPE_CHECKING

from twisted.cred.error import UnauthorizedLogin

from relayd.auth.authenticator import unbound
from relayd.auth.gss_token import KERBEROS, SPNEGO, kerberos_token, mechanism, request, ticket
from relayd.auth.pac import Pac, logon_info, upn_dns_info
from relayd.model import AUTH_UNAVAILABLE, Fault

if TYPE_CHECKING:
    from gssapi.raw import ChannelBindings, Creds, GSSError, Name, SecurityContext
    from gssapi.raw.named_tuples import AcceptSecContextResult

__all__ = ["KerberosAcceptor", "KerberosContext", "kerberos_missing"]


# Error tables of MIT's (com_err): a code is its table's base and a number below 256.
_KRB5_TABLE = -1765328384
#: ASN.1; GSS-API's framing, of all mechanisms and of Kerberos: the token is not what it should be.
_MALFORMED_TABLES = frozenset({1859794432, -2045022976, 39756032})
#: RFC 4120 7.5.9, KRB_AP_ERR_: TKT_EXPIRED, REPEAT, BADMATCH, BADADDR, BADVERSION, MSG_TYPE, MODIFIED, BADORDER, and
#: METHOD to INAPP_CKSUM: what only the client can mend.
_CLIENTS = frozenset({32, 34, 36, 38, 39, 40, 41, 42, 46, 47, 48, 49, 50})
#: What it means for an administrator, by the same numbers.
_REASONS = {
    31: "cannot be decrypted: the keytab has another key than the controller, or the token is forged",
    32: "expired ticket",
    33: "clock skew: the ticket is not yet valid, so the clock of this host is behind the controller's",
    34: "replay",
    35: "the keytab has no key of that service",
    36: "the ticket is another's than the authenticator",
    37: "clock skew: the clocks of this host and of the client differ too much",
    44: "the keytab has no key of that version",
    45: "the keytab has no key of that type",
}


def kerberos_missing() -> str:
    """What must be installed for Kerberos; empty: nothing."""
    absent = [name for name in ("gssapi", "krb5") if find_spec(name) is None]
    if not absent:
        return ""
    return f"Kerberos needs relayd[kerberos] (missing: {', '.join(absent)}; Debian: libkrb5-dev, gcc to build them)"


class KerberosAcceptor:
    """Accepts by the keys of one keytab.

    The keytab is read for each context, so one that was replaced counts at once. Nothing of the process' environment is
    changed for it: it is named in a credential store.

    :param keytab: None: the system's.
    :raises ValueError: it cannot be read, or has no keys; the text names it and says why.
    """

    def __init__(self, keytab: File | None) -> None:
        #: The keytab with its type, as libkrb5 names it; empty: the system's.
        self.keytab_name = f"FILE:{keytab}" if keytab is not None else ""
        if not self.principals:
            raise ValueError(f"keytab {self.keytab} has no keys")

    @property
    def keytab(self) -> str:
        """The keytab's file."""
        import krb5

        name = self.keytab_name or krb5.kt_default_name(krb5.init_context()).decode("utf-8", "replace")
        return name.removeprefix("FILE:")

    @property
    def principals(self) -> tuple[str, ...]:
        """Whose keys the keytab holds now.

        :raises ValueError: it cannot be read; the text names it and says why.
        """
        import krb5

        context = krb5.init_context()
        try:
            keytab = (
                krb5.kt_resolve(context, self.keytab_name.encode()) if self.keytab_name else krb5.kt_default(context)
            )
            names = [krb5.unparse_name_flags(context, entry.principal).decode("utf-8", "replace") for entry in keytab]
        except krb5.Krb5Error as error:
            why = str(error).removesuffix(f" {error.err_code}")
            raise ValueError(f"keytab {self.keytab}: {why}") from None
        return tuple(dict.fromkeys(names))

    def context(self, binding: bytes, channel_binding: str) -> KerberosContext:
        """A new security context. It does no I/O.

        :param binding: channel binding data of the TLS session (RFC 5929); empty: none.
        :param channel_binding: ``ignore``: whatever the initiator binds to; ``accept``: an initiator that binds must
            bind to *binding*; ``require``: it must bind to it.
        """
        return KerberosContext(self, binding, channel_binding)

    def credentials(self, replays: bool = False) -> Creds:
        """The acceptor's credentials, of the keytab as it is now.

        :param replays: they are taken: what is accepted was looked up before.
        :raises Fault: 454 4.7.0: the keytab is away, unreadable or empty.
        """
        from gssapi.raw import OID, GSSError, acquire_cred, acquire_cred_from, set_neg_mechs

        mechanisms = [OID.from_int_seq(oid) for oid in (KERBEROS, SPNEGO)]
        store: dict[bytes | str, bytes | str] = {b"keytab": self.keytab_name.encode()} if self.keytab_name else {}
        if replays:
            store[b"rcache"] = b"none:"
        try:
            if store:
                credentials = acquire_cred_from(store, mechs=mechanisms, usage="accept").creds
            else:
                credentials = acquire_cred(None, mechs=mechanisms, usage="accept").creds
            # SPNEGO would take any mechanism that is installed, such as gss-ntlmssp.
            set_neg_mechs(credentials, mechanisms[:1])
        except GSSError as error:
            raise Fault(AUTH_UNAVAILABLE, self.why_not() or f"keytab {self.keytab}: {error}") from None
        return credentials

    def why_not(self) -> str:
        """What is wrong with the keytab; empty: nothing. GSS-API says no more than that there are no credentials."""
        try:
            with open(self.keytab, "rb"):
                return "" if self.principals else f"keytab {self.keytab}: it has no keys"
        except OSError as error:
            return f"keytab {self.keytab}: {os.strerror(error.errno or 0)}"
        except ValueError as error:
            return str(error)


class KerberosContext:
    """One security context. Its methods block, and are called one at a time, from any thread.

    :ivar complete: the initiator is authenticated; there is no other token.
    :ivar spnego: the tokens are SPNEGO.
    :ivar protection: the initiator asks for integrity or confidentiality of messages.
    """

    def __init__(self, acceptor: KerberosAcceptor, binding: bytes, channel_binding: str) -> None:
        self._acceptor = acceptor
        self._binding = b"" if channel_binding == "ignore" else binding
        self._required = channel_binding == "require"
        self._credentials: Creds | None = None
        self._context: SecurityContext | None = None
        self._initiator: Name | None = None
        self._unbound_name = ""
        self._failed = False
        self._tokens: list[bytes] = []
        self.complete = False
        self.spnego = False
        self.protection = False

    def step(self, token: bytes) -> bytes:
        """Takes a token of the initiator's; the answer to it, which may be empty.

        :raises UnauthorizedLogin: refused; nothing more is taken.
        :raises Fault: 454 4.7.0: something of ours is wrong.
        """
        if self.complete or self._failed:
            raise UnauthorizedLogin("a token too many")
        self._failed = True  # unless it gets to the end of this
        if self._credentials is None:
            self._begin(token)
        result = self._accept(token)
        self._context = result.context
        if not result.more_steps:
            self._judge(result)
            self._initiator = result.initiator_name
            self._tokens.clear()
            self.complete = True
        self._failed = False
        return result.token or b""

    def _begin(self, token: bytes) -> None:
        try:
            oid = mechanism(token)
        except ValueError as error:
            raise UnauthorizedLogin(str(error)) from None
        if oid not in (KERBEROS, SPNEGO):
            raise UnauthorizedLogin(f"a token of {oid}, which is neither Kerberos nor SPNEGO")
        if self._required and not self._binding:
            raise UnauthorizedLogin("channel bindings are required, and there is no TLS")
        self.spnego = oid == SPNEGO
        self._credentials = self._acceptor.credentials()

    def _accept(self, token: bytes) -> AcceptSecContextResult:
        from gssapi.raw import BadChannelBindingsError, GSSError, accept_sec_context

        self._tokens.append(token)
        try:
            return accept_sec_context(token, self._credentials, self._context, self._bindings())
        except BadChannelBindingsError:
            if self._required or not self._unbound(token):
                raise UnauthorizedLogin("bound to another channel than this one (channel bindings)") from None
            return self._accept_unbound(token)
        except GSSError as error:
            raise self._failure(error, token) from None

    def _unbound(self, token: bytes) -> bool:
        try:
            return unbound(request(kerberos_token(token)), self._acceptor.keytab_name)
        except OSError as error:
            raise Fault(AUTH_UNAVAILABLE, f"cannot tell whether the initiator binds: {error}") from None
        except ValueError:
            return False

    def _accept_unbound(self, last: bytes) -> AcceptSecContextResult:
        """Begins again without bindings; that none of it is a replay was seen the first time.

        :param last: the token that was found to be unbound.
        """
        from gssapi.raw import GSSError, accept_sec_context

        self._credentials = self._acceptor.credentials(replays=True)
        self._binding = b""
        self._context = None
        try:
            if self.spnego:
                # Whose token it was that does not bind: a SPNEGO token can be made of which MIT reads another one.
                self._unbound_name = _shown(accept_sec_context(kerberos_token(last), self._credentials).initiator_name)
            for token in self._tokens:
                result = accept_sec_context(token, self._credentials, self._context)
                self._context = result.context
        except GSSError as error:
            raise self._failure(error, last) from None
        return result

    def _bindings(self) -> ChannelBindings | None:
        from gssapi.raw import ChannelBindings

        return ChannelBindings(application_data=self._binding) if self._binding else None

    def _judge(self, result: AcceptSecContextResult) -> None:
        """What GSS-API leaves to the acceptor.

        :raises UnauthorizedLogin: the context is no good.
        """
        from gssapi.raw import RequirementFlag

        if result.mech.dotted_form != KERBEROS:
            raise UnauthorizedLogin(f"authenticated by {result.mech.dotted_form}, which is not Kerberos")
        # The flag says what the initiator asked for; a KDC's anonymous ticket names nobody without it (RFC 6111, 8062).
        if result.flags & RequirementFlag.anonymity or _shown(result.initiator_name).startswith("WELLKNOWN/"):
            raise UnauthorizedLogin("an anonymous ticket")
        if self._required and not result.flags & RequirementFlag.channel_bound:
            raise UnauthorizedLogin("no channel bindings, which are required")
        if self._unbound_name and self._unbound_name != _shown(result.initiator_name):
            raise UnauthorizedLogin(f"an unbound token of {self._unbound_name} in the place of one bound elsewhere")
        self.protection = bool(result.flags & (RequirementFlag.integrity | RequirementFlag.confidentiality))

    def _failure(self, error: GSSError, token: bytes) -> Exception:
        from gssapi.raw import BadMechanismError, BadMICError, InvalidTokenError

        if lost := self._acceptor.why_not():
            return Fault(AUTH_UNAVAILABLE, lost)
        try:
            inner = kerberos_token(token)
            asked = ticket(inner)
        except ValueError as malformed:
            return UnauthorizedLogin(f"malformed token: {malformed}")
        if self.spnego:
            own = self._own_error(error, inner)
            if own is None:
                return UnauthorizedLogin(f"{_text(error)} (ticket for {asked})")
            error = own
        code = _signed(error.min_code)
        number = code - _KRB5_TABLE
        reason = _REASONS.get(number) or _text(error)
        reason = f"{reason} (ticket for {asked})"
        malformed_token = isinstance(error, BadMechanismError | BadMICError | InvalidTokenError)
        if number in _CLIENTS or code & ~0xFF in _MALFORMED_TABLES or malformed_token:
            return UnauthorizedLogin(reason)
        return Fault(AUTH_UNAVAILABLE, reason)

    def _own_error(self, error: GSSError, inner: bytes) -> GSSError | None:
        """Kerberos' own error: SPNEGO passes its text on, and a number that means nothing. None: it is SPNEGO's.

        So the token is tried outside of SPNEGO: an error that says the same is the same. In the first trial the replay
        cache is left out, since the token may be in there by now, whatever was wrong with it.
        """
        from gssapi.raw import GSSError, accept_sec_context

        good = False
        for replays in (True, False):
            try:
                accept_sec_context(inner, self._acceptor.credentials(replays), None, self._bindings())
                good = True
            except GSSError as own:
                if _text(own) == _text(error):
                    return own
        return None if good else error

    def wrap(self, octets: bytes) -> bytes:
        """*octets* with integrity, without confidentiality.

        :raises UnauthorizedLogin: the context cannot.
        """
        from gssapi.raw import GSSError, wrap

        try:
            return bytes(wrap(self._established(), octets, confidential=False).message)
        except GSSError as error:
            raise UnauthorizedLogin(f"wrap: {error}") from None

    def unwrap(self, octets: bytes) -> bytes:
        """What the initiator wrapped.

        :raises UnauthorizedLogin: it is not the initiator's, out of sequence, or too late.
        """
        from gssapi.raw import GSSError, unwrap

        try:
            return bytes(unwrap(self._established(), octets).message)
        except GSSError as error:
            raise UnauthorizedLogin(f"unwrap: {error}") from None

    def _established(self) -> SecurityContext:
        if self._context is None or not self.complete:
            raise UnauthorizedLogin("the security context is not established")
        return self._context

    @cached_property
    def principal(self) -> str:
        """Who the initiator is: ``alice@CORP.EXAMPLE``.

        :raises UnauthorizedLogin: a name that is not UTF-8.
        """
        self._established()
        return _shown(self._initiator)

    @cached_property
    def pac(self) -> Pac | None:
        """What the ticket says of the account; None: it has no PAC, or one that the controller did not sign.

        :raises Fault: 454 4.7.0: it cannot be read.
        """
        logon = self._pac_buffer("logon-info")
        if logon is None:
            return None
        upn = self._pac_buffer("upn-dns-info")
        try:
            return replace(logon_info(logon), upn=upn_dns_info(upn) if upn is not None else "")
        except ValueError as error:
            raise Fault(AUTH_UNAVAILABLE, f"PAC of {self.principal}: {error}") from None

    def _pac_buffer(self, name: str) -> bytes | None:
        from gssapi.raw import GSSError, get_name_attribute

        self._established()
        assert self._initiator is not None
        try:
            # MIT checks the service key's signature, and the name of the client (MS-PAC 2.8, 2.7).
            found = get_name_attribute(self._initiator, f"urn:mspac:{name}".encode())
        except GSSError:
            return None
        return bytes(found.values[0]) if found.authenticated and found.values else None


def _shown(name: Name | None) -> str:
    """``alice@CORP.EXAMPLE``.

    :raises UnauthorizedLogin: there is none, or it is not UTF-8.
    """
    from gssapi.raw import GSSError, display_name

    if name is None:
        raise UnauthorizedLogin("the initiator has no name")
    try:
        return str(display_name(name, False).name.decode())
    except (ValueError, GSSError) as error:
        raise UnauthorizedLogin(f"the initiator's name: {error}") from None


def _text(error: GSSError) -> str:
    # It may hold names out of the token, of any length, and zeros.
    text = " ".join(error.get_all_statuses(error.min_code, False))[:512]
    return "".join(letter if letter.isprintable() else "?" for letter in text.rstrip("\0"))


def _signed(code: int) -> int:
    # OM_uint32 (RFC 2744 3.4) of what is an int in Kerberos.
    return code - (1 << 32) if code >= 1 << 31 else code
