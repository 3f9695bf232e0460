"""May it? Every decision about a session, a sender and a recipient, from the settings alone.

The order is the design's: access list, TLS, authentication, sender, then each recipient. A decision is a
:class:`~relayd.model.Verdict` that carries the rule which made it; with a :class:`~relayd.policy.steps.Trace` the same
functions also write down what they asked on the way.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from relayd.model import (
    Client,
    Fault,
    IPAddress,
    Outcome,
    Path,
    Principal,
    Recipient,
    Reply,
    Rule,
    Sender,
    Verdict,
)
from relayd.policy.addresses import AddressPatterns, address_key, is_postmaster, plain_local, written_key
from relayd.policy.domains import DomainTable, fold
from relayd.policy.hosts import UNKNOWN_NAMES, HostMatcher, HostRule
from relayd.policy.lines import Lines
from relayd.policy.rewriting import Rewriting
from relayd.policy.steps import Trace
from relayd.settings import Authentication, DomainKind, Listener, Relay, Settings

BASIC_MECHANISMS: Final = ("PLAIN", "LOGIN")
INTEGRATED_MECHANISMS: Final = ("GSSAPI", "GSS-SPNEGO", "NTLM")
EXTERNAL: Final = "EXTERNAL"
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_ROUTING_CHARACTERS: Final = frozenset("%!@")

_TLS_FIRST: Final = Reply.of(530, "5.7.0", "Must issue a STARTTLS command first")  # RFC 3207 4
_AUTHENTICATE_FIRST: Final = Reply.of(530, "5.7.0", "Authentication required")  # RFC 4954 6
_AUTH_AGAIN: Final = Reply.of(503, "5.5.1", "Already authenticated")  # RFC 4954 4
_AUTH_UNKNOWN: Final = Reply.of(504, "5.5.4", "Unrecognized authentication mechanism")
_AUTH_IN_THE_CLEAR: Final = Reply.of(538, "5.7.11", "Encryption required for requested authentication mechanism")
_AUTH_GO_ON: Final = Reply.of(334, "", "")
_UNQUALIFIED: Final = Reply.of(553, "5.1.3", "Address must have a domain")


@lru_cache(maxsize=1024)
def _folded(groups: frozenset[str]) -> frozenset[str]:
    return frozenset(group.casefold() for group in groups)


@lru_cache(maxsize=1024)
def _keys(addresses: tuple[str, ...]) -> frozenset[tuple[str, str]]:
    return frozenset(map(written_key, addresses))


class _SenderRules:
    """``send_as``, ``send_as_groups`` and ``anonymous_send_as`` of one listener."""

    def __init__(self, relay: Relay, lines: Lines) -> None:
        self.own = relay.send_as == "own"
        self.rule = lines.rule(f"{relay.origin}.send_as")
        self.groups = tuple(
            (
                group.casefold(),
                AddressPatterns(patterns),
                _entry_rules(lines, f"{relay.origin}.send_as_groups.{_key_name(group)}", patterns),
            )
            for group, patterns in relay.send_as_groups.items()
        )
        self.anonymous = AddressPatterns(relay.anonymous_send_as) if relay.anonymous_send_as else None
        self.anonymous_rule = lines.rule(f"{relay.origin}.anonymous_send_as")
        self.anonymous_rules = _entry_rules(lines, f"{relay.origin}.anonymous_send_as", relay.anonymous_send_as)

    def test_anonymous(self, sender: Path, otherwise: Rule) -> tuple[bool, Rule]:
        if self.anonymous is None or sender.null:
            return True, otherwise
        index = self.anonymous.match(sender)
        return (False, self.anonymous_rule) if index is None else (True, self.anonymous_rules[index])

    def test_principal(self, sender: Path, principal: Principal) -> tuple[bool, Rule]:
        if not self.own or sender.null or address_key(sender) in _keys(principal.addresses):
            return True, self.rule
        groups = _folded(principal.groups)
        for group, patterns, rules in self.groups:
            if group in groups and (index := patterns.match(sender)) is not None:
                return True, rules[index]
        return False, self.rule


def _entry_rules(lines: Lines, key: str, entries: tuple[str, ...]) -> tuple[Rule, ...]:
    return tuple(lines.rule(f"{key}[{index}]") for index in range(len(entries)))


def _key_name(key: str) -> str:
    """A key as TOML writes it: bare, or in quotes."""
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)


class _Site:
    """One listener's part of the policy, compiled."""

    def __init__(self, listener: Listener, lines: Lines) -> None:
        auth, relay, origin = listener.authentication, listener.relay, listener.origin
        self.listener = listener
        self.access = HostRule(listener.access.allow, listener.access.list, listener.access.origin, lines)
        self.relay = HostRule(relay.allow, relay.list, relay.origin, lines)
        self.legacy = HostMatcher(listener.legacy_clients)
        self.senders = _SenderRules(relay, lines)
        self.require_tls = lines.rule(f"{origin}.require_tls")
        # A listener may override single keys of [authentication] and [limits]: the rule is the one that was written.
        self.anonymous = lines.rule(f"{auth.origin}.anonymous", "authentication.anonymous")
        self.basic = lines.rule(f"{auth.origin}.basic", "authentication.basic")
        self.integrated = lines.rule(f"{auth.origin}.integrated", "authentication.integrated")
        self.ntlm = lines.rule(f"{auth.origin}.ntlm", "authentication.ntlm")
        self.channel_binding = lines.rule(f"{auth.origin}.channel_binding", "authentication.channel_binding")
        self.client_ca = lines.rule(f"{origin}.client_ca", "tls.client_ca")
        self.requires_tls = lines.rule(f"{auth.origin}.basic_requires_tls", "authentication.basic_requires_tls")
        self.message_size = lines.rule(f"{origin}.limits.message_size", f"{origin}.message_size", "limits.message_size")
        self.authenticated = lines.rule(f"{relay.origin}.authenticated")
        self.groups = tuple(
            zip(
                map(str.casefold, relay.groups),
                _entry_rules(lines, f"{relay.origin}.groups", relay.groups),
                strict=True,
            )
        )
        self.groups_rule = lines.rule(f"{relay.origin}.groups")

    @property
    def auth(self) -> Authentication:
        return self.listener.authentication

    @property
    def can_authenticate(self) -> bool:
        """Whether anybody can: without basic and integrated, "allow authenticated" is void (KB 324281)."""
        return self.auth.basic or self.auth.integrated or self.listener.tls_settings.client_ca is not None

    def serves(self, mechanism: str) -> bool:
        """Whether this integrated *mechanism* is switched on."""
        return self.auth.integrated and (self.auth.ntlm or mechanism != "NTLM")

    def switch(self, mechanism: str) -> Rule:
        """The rule that turns *mechanism* on and off."""
        if mechanism == EXTERNAL:
            return self.client_ca
        if mechanism not in INTEGRATED_MECHANISMS:
            return self.basic
        return self.ntlm if mechanism == "NTLM" and self.auth.integrated else self.integrated

    def relay_list_matters(self) -> bool:
        """Whether some session may get as far as the relay list."""
        everyone_relays = self.listener.relay.authenticated and not self.groups
        return self.auth.anonymous or (self.can_authenticate and not everyone_relays)

    def test_authenticated(self, principal: Principal | None, trace: Trace | None) -> tuple[bool, Rule]:
        """ "Allow all computers which successfully authenticate to relay, regardless of the list above"."""
        yes, rule, why = False, self.authenticated, "the client has not authenticated"
        if principal is not None:
            if not self.listener.relay.authenticated:
                why = "authentication alone does not allow to relay"
            elif not self.can_authenticate:
                why = "authentication is off"
            elif not self.groups:
                yes, why = True, f"{principal} has authenticated"
            else:
                groups = _folded(principal.groups)
                yes, rule = next(
                    ((True, rule) for group, rule in self.groups if group in groups),
                    (False, self.groups_rule),
                )
                why = f"{principal} is {'' if yes else 'not '}in a group that may relay"
        if trace is not None:
            trace.add("relay when authenticated", rule, Outcome.ACCEPT if yes else None, why)
        return yes, rule


class Policy:
    """The policy of one configuration, compiled once.

    Methods that take a *client* raise :exc:`LookupError` when its listener is not in the settings.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.domains = DomainTable(settings.domains)
        self._lines = Lines(settings.lines)
        self._sites = {listener.name: _Site(listener, self._lines) for listener in settings.listeners}
        self._hostname = settings.server.hostname
        self._default_domain = next(
            (d.name for d in settings.domains if d.kind is DomainKind.LOCAL and not d.wildcard), ""
        )
        self.rewriting = Rewriting(settings.rewrites, self._lines)
        self._no_domain = self._lines.rule("domain")
        self._postmaster = self._lines.rule("server.postmaster")
        self._own_literals = frozenset(
            literal for listener in settings.listeners if (literal := _literal(listener.address))
        )

    # ---- the session ------------------------------------------------------------------------------------------

    def listener(self, name: str) -> Listener:
        """The listener of that name."""
        return self._sites[name].listener

    def wants_names(self, listener: str, address: IPAddress) -> bool:
        """Whether what reverse DNS says of *address* could change anything that the policy decides for it."""
        site = self._sites[listener]
        access, _ = site.access.test(address, UNKNOWN_NAMES)
        if access is not Outcome.ACCEPT:
            return access is Outcome.DEFER
        if site.legacy.has_names and site.legacy.match(address, denying=False) is None:
            return True
        if self.rewriting.wants_names:
            return True
        relay, _ = site.relay.test(address, UNKNOWN_NAMES)
        return relay is Outcome.DEFER and site.relay_list_matters()

    def legacy(self, client: Client) -> bool:
        """Whether the client is an old device that is let off the strict rules (``legacy_clients``)."""
        site = self._sites[client.listener]
        return site.legacy.match(client.peer.address, client.names, denying=False) is not None

    def mechanisms(self, client: Client) -> tuple[str, ...]:
        """The SASL mechanisms that AUTH may offer right now, the ones that show no password first."""
        auth, tls = self._sites[client.listener].auth, client.tls
        offered: tuple[str, ...] = (EXTERNAL,) if tls is not None and tls.external else ()
        if auth.integrated and (tls is not None or auth.channel_binding != "require"):
            offered += INTEGRATED_MECHANISMS if auth.ntlm else INTEGRATED_MECHANISMS[:-1]
        if auth.basic and (tls is not None or not auth.basic_requires_tls):
            offered += BASIC_MECHANISMS
        return offered

    def greet(self, client: Client, trace: Trace | None = None) -> Verdict:
        """Connection control: 220, 554 5.7.1, or 421 4.4.3 when a name that may decide cannot be looked up."""
        outcome, rule = self._sites[client.listener].access.test(client.peer.address, client.names)
        if outcome is Outcome.ACCEPT:
            reply, why = Reply.of(220, "", f"{self._hostname} ESMTP"), f"{client.peer} may connect"
        elif outcome is Outcome.REFUSE:
            reply, why = (
                Reply.of(554, "5.7.1", f"Access denied to {client.peer}"),
                f"{client.peer} may not connect",
            )
        else:
            why = f"The name of {client.peer} cannot be looked up for now"
            reply = Reply.of(421, "4.4.3", f"{self._hostname} {why.lower()}")
        if trace is not None:
            trace.add("access", rule, outcome, why)
        return Verdict(outcome, reply, rule)

    def tls_required(self, client: Client, trace: Trace | None = None) -> Verdict | None:
        """530 5.7.0 for every command but EHLO, HELO, STARTTLS, NOOP, RSET and QUIT, or None when all is well."""
        site = self._sites[client.listener]
        refused = site.listener.require_tls and client.tls is None
        if trace is not None:
            why = "TLS is required first" if refused else "in TLS" if client.tls else "TLS is not required"
            trace.add("tls", site.require_tls, Outcome.REFUSE if refused else None, why)
        return Verdict(Outcome.REFUSE, _TLS_FIRST, site.require_tls) if refused else None

    def auth(self, client: Client, mechanism: str, trace: Trace | None = None) -> Verdict:
        """Whether AUTH with *mechanism* may begin. An accepted one says nothing of who the client is."""
        site = self._sites[client.listener]
        name = mechanism.upper()
        refused = self.tls_required(client)
        if refused is not None:
            verdict, why = refused, "TLS is required first"
        elif client.principal is not None:
            verdict, why = Verdict(Outcome.REFUSE, _AUTH_AGAIN, site.switch(name)), "already authenticated"
        elif name in self.mechanisms(client):
            verdict, why = Verdict(Outcome.ACCEPT, _AUTH_GO_ON, site.switch(name)), f"AUTH {name} is offered"
        elif name in BASIC_MECHANISMS and site.auth.basic:
            why = f"AUTH {name} is offered under TLS only"
            verdict = Verdict(Outcome.REFUSE, _AUTH_IN_THE_CLEAR, site.requires_tls)
        elif name in INTEGRATED_MECHANISMS and site.serves(name):
            why = f"AUTH {name} is offered under TLS only, since it must be bound to the channel"
            verdict = Verdict(Outcome.REFUSE, _AUTH_IN_THE_CLEAR, site.channel_binding)
        else:
            verdict, why = Verdict(Outcome.REFUSE, _AUTH_UNKNOWN, site.switch(name)), f"AUTH {name} is not offered"
        if trace is not None:
            trace.add("auth", verdict.rule, verdict.outcome, why)
        return verdict

    # ---- the message ------------------------------------------------------------------------------------------

    def mail(self, client: Client, sender: Sender, trace: Trace | None = None) -> Verdict:
        """The answer to MAIL: TLS and authentication where required, who may send as whom, the declared size."""
        site = self._sites[client.listener]
        refused = self._admission(site, client, trace)
        if refused is not None:
            return refused
        try:
            path = self.complete(sender.path, sender=True)
        except Fault as fault:
            return self._refuse("sender", fault.reply, self._no_domain, "the sender has no domain", trace)
        if client.principal is None:
            passed, rule = site.senders.test_anonymous(path, site.anonymous)
        else:
            passed, rule = site.senders.test_principal(path, client.principal)
        if not passed:
            text = f"<{path}> is not a sender for {client.principal or 'clients that have not authenticated'}"
            return self._refuse("sender", Reply.of(550, "5.7.1", text), rule, text, trace)
        limit = site.listener.limits.message_size
        if limit and sender.size > limit:  # RFC 1870 6.1
            text = f"Message size exceeds the limit of {limit} octets"
            return self._refuse("size", Reply.of(552, "5.3.4", text), site.message_size, text, trace)
        if trace is not None:
            who = client.principal or "a client that has not authenticated"
            trace.add("sender", rule, Outcome.ACCEPT, f"{who} may send as <{path}>")
        return Verdict(Outcome.ACCEPT, Reply.of(250, "2.1.0", f"<{path}> sender ok"), rule)

    def rcpt(self, client: Client, sender: Sender, recipient: Recipient, trace: Trace | None = None) -> Verdict:
        """The answer to RCPT: ours, a domain that anybody may reach, or relayed for those who may."""
        site = self._sites[client.listener]
        refused = self._admission(site, client, trace)
        if refused is not None:
            return refused
        try:
            path = self.complete(recipient.path)
        except Fault as fault:
            return self._refuse("recipient", fault.reply, self._no_domain, fault.detail, trace)
        if not path.domain:  # RFC 5321 4.5.1
            return self._accept("postmaster", path, self._postmaster, "postmaster is always accepted", trace)
        found = self.domains.locate(path.domain)
        if found is None:
            if trace is not None:
                trace.add("domain", self._no_domain, None, f"{path.domain} is not listed")
        else:
            domain, key = found
            rule = self._lines.rule(key)
            if domain.kind is DomainKind.LOCAL:
                return self._accept("domain", path, rule, f"{path.domain} is local", trace)
        if not _ROUTING_CHARACTERS.isdisjoint(plain_local(path.local)):
            why = f"the local part of <{path}> asks for a route, and {path.domain} is not local"
            return self._refuse("route", _unable(path), self._no_domain, why, trace)
        if found is not None:
            rule = self._lines.rule(f"{domain.origin}.relay")
            if domain.relay:
                return self._accept("domain", path, rule, f"anyone may send to {path.domain}", trace)
            if trace is not None:
                trace.add("domain", rule, None, f"{path.domain} is not open to everyone")
        return self._relay(site, client, path, trace)

    def _relay(self, site: _Site, client: Client, path: Path, trace: Trace | None) -> Verdict:
        """The relay restrictions: authenticated and allowed, or passed by the list."""
        yes, rule = site.test_authenticated(client.principal, trace)
        if yes:
            return Verdict(Outcome.ACCEPT, _recipient_ok(path), rule)
        lacking = rule
        outcome, rule = site.relay.test(client.peer.address, client.names)
        if outcome is Outcome.ACCEPT:
            return self._accept("relay list", path, rule, f"{client.peer} may relay", trace)
        if outcome is Outcome.DEFER:
            why = f"The name of {client.peer} cannot be looked up for now"
            if trace is not None:
                trace.add("relay list", rule, outcome, why)
            return Verdict(outcome, Reply.of(451, "4.4.3", why), rule)
        why = f"{client.peer} may not relay"
        if rule is site.relay.rule and lacking is site.groups_rule:
            rule, why = lacking, f"{why}, and {client.principal} is not in a group that may"
        return self._refuse("relay list", _unable(path), rule, why, trace)

    def may_relay(self, client: Client) -> bool:
        """Whether *client* may relay to any domain, whatever it may have been let in for."""
        site = self._sites[client.listener]
        if site.test_authenticated(client.principal, None)[0]:
            return True
        return site.relay.test(client.peer.address, client.names)[0] is Outcome.ACCEPT

    def complete(self, path: Path, *, sender: bool = False) -> Path:
        """*path* with a domain: an unqualified address gets the first local one.

        A bare recipient ``postmaster`` stays bare, and ``postmaster`` at an address literal of ours becomes so.

        :param sender: *path* is a reverse-path, where even ``postmaster`` needs a domain.
        :raises Fault: 553 5.1.3, there is no local domain; 550 5.7.1, the local part of a recipient asks for a route,
            and nobody said that it is a name of ours.
        """
        if path.null:
            return path
        if path.domain:
            if not sender and path.domain[0] == "[" and self._is_own_postmaster(path):
                return Path(path.local)
            return path
        if is_postmaster(path) and not sender:
            return path
        if not sender and not _ROUTING_CHARACTERS.isdisjoint(plain_local(path.local)):
            raise Fault(_unable(path), f"<{path}> has no domain, and its local part asks for a route")
        if not self._default_domain:
            raise Fault(_UNQUALIFIED, f"<{path}> has no domain, and there is no local one to complete it")
        return Path(path.local, self._default_domain)

    def _is_own_postmaster(self, path: Path) -> bool:
        literal = fold(path.domain)
        return literal in self._own_literals and is_postmaster(path) and not self.domains.is_local(literal)

    # ---- verdicts ---------------------------------------------------------------------------------------------

    def _admission(self, site: _Site, client: Client, trace: Trace | None) -> Verdict | None:
        """What stops MAIL and RCPT alike: TLS required, authentication required."""
        refused = self.tls_required(client)
        if refused is not None:
            return refused
        if client.principal is None and not site.auth.anonymous:
            why = "authentication is required"
            return self._refuse("authentication", _AUTHENTICATE_FIRST, site.anonymous, why, trace)
        return None

    @staticmethod
    def _refuse(asked: str, reply: Reply, rule: Rule, why: str, trace: Trace | None) -> Verdict:
        if trace is not None:
            trace.add(asked, rule, Outcome.REFUSE, why)
        return Verdict(Outcome.REFUSE, reply, rule)

    @staticmethod
    def _accept(asked: str, path: Path, rule: Rule, why: str, trace: Trace | None) -> Verdict:
        if trace is not None:
            trace.add(asked, rule, Outcome.ACCEPT, why)
        return Verdict(Outcome.ACCEPT, _recipient_ok(path), rule)


def _recipient_ok(path: Path) -> Reply:
    return Reply.of(250, "2.1.5", f"<{path}> recipient ok")


def _unable(path: Path) -> Reply:
    return Reply.of(550, "5.7.1", f"Unable to relay for {path}")


def _literal(address: str) -> str:
    """The address literal by which a listener's *address* is reached; empty for a wildcard address."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return ""
    return "" if parsed.is_unspecified else f"[{parsed}]"
