"""Config -> the tree of Twisted services. The only place that knows every part of relayd.

``twistd relayd`` comes in here: :class:`Options` reads the configuration, or says what is wrong with it before anything
is started; :func:`makeService` builds a :class:`RelayService`.
"""

from __future__ import annotations

import os
import pwd
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path as File
from typing import Any, NoReturn

from twisted.application.service import IServiceCollection, MultiService
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.logger import ILogObserver
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.python.util import switchUID

from relayd import __version__
from relayd.auth import Sources, account_of
from relayd.config import ConfigFaults, Loaded, default_file, load
from relayd.control import AuthTest, ControlSite, Totals, rehearsal_document, standing_document
from relayd.delivery import (
    Authenticator,
    BadmailFolder,
    Dane,
    Https,
    Key,
    KeytabInitiators,
    PolicyFolder,
    Roots,
    Scheduler,
    Signer,
    Sts,
    TlsPolicy,
    Tokens,
)
from relayd.directory import Directory, Operations
from relayd.events import Events, InternalFault, Notice, Ready, Stopping
from relayd.log import LogWriter, twisted_log, twisted_observer
from relayd.model import Fault
from relayd.pickup import PickupFolder
from relayd.policy import Policy, open_relay
from relayd.privilege import (
    as_root,
    hidden,
    insist_on_reading,
    may_read,
    prepare,
    raise_file_limit,
    secrets,
    unreadable_libraries,
)
from relayd.queue import SqliteStore
from relayd.realm import RelayRealm
from relayd.resolver import Resolver
from relayd.settings import Listener, OutboundTls
from relayd.smtpd import (
    MECHANISMS,
    External,
    Listening,
    MechanismFactory,
    VirtualServer,
    integrated_mechanisms,
    rehearse,
)
from relayd.systemd import notify
from relayd.threads import BoundedPool


class Options(usage.Options):
    """The options of ``twistd relayd``."""

    optParameters = [  # noqa: RUF012  # usage.Options wants it so
        ["config", "c", None, "The configuration. Default: ./etc/relayd.toml, /etc/relayd/relayd.toml."]
    ]
    optFlags = [  # noqa: RUF012
        ["allow-open-relay", None, "Start although strangers may relay."],
        ["check", None, "Read the configuration, say what is wrong, and end."],
    ]
    longdesc = "relayd, the SMTP relay of an Active Directory network."

    loaded: Loaded

    def postOptions(self) -> None:
        file = File(self["config"]) if self["config"] else default_file()
        try:
            self.loaded = load(file)
        except ConfigFaults as wrong:
            _end(1, str(wrong))
        settings = self.loaded.settings
        faults = [] if self["allow-open-relay"] else [str(found) for found in open_relay(settings)]
        faults += map(str, as_root(settings))
        if self["check"] and not faults:
            faults += map(str, hidden(settings))
        if faults:
            _end(1, *faults)
        if self["check"]:
            _end(0, *(f"{warning} (warning)" for warning in self.loaded.warnings), f"{file}: sound")


def _end(code: int, *lines: str) -> NoReturn:
    print(*lines, sep="\n", file=sys.stderr if code else sys.stdout, flush=True)
    raise SystemExit(code)


def makeService(options: Options) -> RelayService:
    """What twistd runs."""
    from twisted.internet import reactor

    try:
        return RelayService(
            options.loaded,
            reactor,
            own_log=not _logs_elsewhere(options.parent),
            give_up=partial(_give_up, options.parent),
        )
    except (Fault, OSError, ValueError) as error:
        _end(1, f"{options.loaded.settings.file}: {_reason(error)}")


def _give_up(twistd: Any, text: str) -> None:
    """Clears up after a start that failed, before SystemExit.

    twistd does so after an Exception alone, and shows its traceback; after SystemExit the command that waits for its
    daemon would wait for ever.
    """
    if twistd is None:
        return
    with suppress(OSError):
        if (pipe := twistd.get("statusPipe")) is not None:
            os.write(pipe, f"1 {text}".encode("ascii", "replace")[:100])  # as much as twistd reads of it
        if twistd["pidfile"]:
            os.unlink(twistd["pidfile"])


def _reason(error: BaseException) -> str:
    """What an administrator should read of *error*."""
    return error.detail or str(error.reply) if isinstance(error, Fault) else str(error)


def _logs_elsewhere(twistd: Any) -> bool:
    """Whether twistd sends the log somewhere: it was told to, or it becomes a daemon without a standard error."""
    return twistd is not None and (
        not twistd["nodaemon"] or any(twistd.get(name) for name in ("logfile", "syslog", "logger"))
    )


class RelayService(MultiService):
    """One relayd: everything there is once, and (with ``workers = 1``) what serves.

    :param own_log: Twisted's own warnings become events; else twistd's log has them, and the events too where
        ``[log] file`` is not set.
    :param give_up: is told why a start failed, before the process ends.
    """

    def __init__(
        self, loaded: Loaded, reactor: Any, *, own_log: bool = True, give_up: Callable[[str], None] = lambda _: None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        settings = self.settings = loaded.settings
        self._warnings = loaded.warnings
        self._reactor = reactor
        self._own_log = own_log
        self._give_up = give_up
        self._started_at = time.time()
        self._log: LogWriter | None = None
        self._control: IListeningPort | None = None
        self._failed = False
        self.events = Events()
        self.totals = Totals()
        self.events.subscribe(self.totals)
        self.policy = Policy(settings)
        # Each transaction may ask for a domain, or for the addresses of two hosts, at the same time.
        waiting = 4 * settings.delivery.connections
        self.resolver = Resolver(settings.dns.servers, reactor=reactor, trust_ad=settings.dns.trust_ad, waiting=waiting)
        self._client_names = Resolver(settings.dns.servers, reactor=reactor, name="names")
        self.store = SqliteStore(settings.server.state / "queue", reactor=reactor, events=self.events)
        self._signing: BoundedPool | None = None
        self._credentials = BoundedPool("credentials", reactor, threads=2, waiting=200)
        https = Https(reactor, self.resolver, Roots(settings.delivery.ca))
        self._sts = self._policies(https)
        self.scheduler = Scheduler(
            settings,
            self.policy.domains,
            self.store,
            self.events,
            self.resolver,
            reactor,
            authenticator=self._authenticator(https),
            tls_policy=TlsPolicy(self._sts, Dane(self.resolver)),
            signer=self._signer(),
        )
        self.pickup = self._pickup()
        self._files = BoundedPool("files", reactor, threads=2, waiting=50)
        self.directory = (
            Directory(settings.directory, self.resolver, reactor, self.events, keytab=settings.kerberos.keytab)
            if settings.directory.configured
            else None
        )
        self.sources = Sources(settings, self.directory, reactor, self.events)
        self.listening: list[Listening] = []

    # ---- twistd's order: setServiceParent, privilegedStartService, startService, stopService -----------------

    def setServiceParent(self, parent: IServiceCollection) -> None:
        if self._own_log and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, twisted_observer(self.events))  # type: ignore[no-untyped-call]
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]

    def privilegedStartService(self) -> None:
        """What may need root: files, keys and ports. After it, the process is ``server.user``."""
        try:
            self._take_possession()
        except (Fault, OSError, ValueError) as error:
            self.events.emit(InternalFault(where="start", detail=_reason(error)))
            if self._log is not None:
                self._log.flush()
            if self._log is None or self.settings.log.file is not None:  # else the event was shown just now
                print(f"relayd: {_reason(error)}", file=sys.__stderr__, flush=True)
            self._give_up(_reason(error))
            raise SystemExit(1) from None
        super().privilegedStartService()  # type: ignore[no-untyped-call]

    def _take_possession(self) -> None:
        settings = self.settings
        raise_file_limit()
        self._open_log()
        for fault in self._warnings:
            self.events.emit(Notice(text=fault.text, key=fault.key, line=fault.line))
        user = pwd.getpwnam(settings.server.user) if settings.server.user and os.geteuid() == 0 else None
        prepare(settings, user)
        sources = self.sources
        sources.open(partial(may_read, user))
        if not sources.passwords and any(entry.authentication.basic for entry in settings.listeners):
            text = "is off: there is no accounts file and no directory"
            self.events.emit(Notice(text=text, key="authentication.basic"))
        portal = self._portal()
        for listener in settings.listeners:
            server = VirtualServer(
                hostname=settings.server.hostname,
                listener=listener,
                policy=self.policy,
                portal=portal,
                events=self.events,
                reactor=self._reactor,
                resolver=self._client_names,
                mechanisms=self._mechanisms(listener),
            )
            self.listening.append(Listening(server, settings.server.state / "tls"))
        for entry in self.listening:
            entry.bind()
        if user is not None:
            switchUID(user.pw_uid, user.pw_gid)
        if self.pickup is not None:
            self.pickup.prepare()
        for _, file in secrets(settings):
            insist_on_reading(file)
        for file in unreadable_libraries():
            text = f"{file} is closed to {settings.server.user}: what is loaded later fails; install it elsewhere"
            self.events.emit(Notice(text=text, key="server.user", line=settings.lines.get("server.user")))

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        Deferred.fromCoroutine(self._start()).addErrback(self._not_started)

    async def _start(self) -> None:
        await self.store.open()
        if self._sts is not None:
            await self._sts.open()
        self.scheduler.startService()
        if self.pickup is not None:
            self.pickup.startService()
        await self._listen_for_control()
        for entry in self.listening:
            entry.start()
        self.events.emit(Ready(listening=tuple(entry.text for entry in self.listening)))
        notify("READY=1")

    def _not_started(self, failure: Failure) -> None:
        error = failure.value
        detail = _reason(error) if isinstance(error, Fault | OSError | ValueError) else failure.getTraceback()
        self.events.emit(InternalFault(where="start", detail=detail))
        self._failed = True
        self._reactor.callWhenRunning(self._reactor.stop)

    def stopService(self) -> Deferred[Any]:
        super().stopService()  # type: ignore[no-untyped-call]
        notify("STOPPING=1")
        self.events.emit(Stopping())
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await gatherResults([entry.stop() for entry in self.listening], consumeErrors=True)
        if self._control is not None:
            await maybeDeferred(self._control.stopListening)
        if self.pickup is not None and self.pickup.running:
            await self.pickup.stopService()
        if self.scheduler.running:
            await self.scheduler.stopService()
        if self._sts is not None:
            await self._sts.close()
        await self.store.close()
        await self.sources.close()
        if self.directory is not None:
            await self.directory.close()
        await gatherResults([self.resolver.close(), self._client_names.close()])
        self._files.stop()
        self._credentials.stop()
        if self._signing is not None:
            self._signing.stop()
        if self._log is not None:
            self._log.flush()
        if self._failed:
            # twistd ends with 0 whatever happened; systemd must see that the start failed.
            self._reactor.addSystemEventTrigger("after", "shutdown", _exit_badly)

    # ---- parts ----------------------------------------------------------------------------------------------------

    def _authenticator(self, https: Https) -> Authenticator:
        """Who shows credentials to next hops."""
        run = self._credentials.run
        tokens = Tokens(https, run, self.events, self._reactor.seconds)
        return Authenticator(run, tokens, KeytabInitiators(self.settings.kerberos.keytab))

    def _signer(self) -> Signer | None:
        if not self.settings.dkim:
            return None
        self._signing = BoundedPool("dkim", self._reactor, threads=2, waiting=4 * self.settings.delivery.connections)
        return Signer([Key.load(entry) for entry in self.settings.dkim], self._signing.run, self._reactor.seconds)

    def _pickup(self) -> PickupFolder | None:
        if self.settings.pickup.directory is None:
            return None
        badmail = BadmailFolder(self.settings.server.state / "badmail", self._reactor)
        return PickupFolder(
            self.settings, lambda: self.policy, self.store, self.scheduler, badmail, self.events, self._reactor
        )

    def _policies(self, https: Https) -> Sts | None:
        """What is known of MTA-STS, where a route is held to it."""
        levels = [self.settings.delivery.tls, *(domain.tls for domain in self.settings.domains)]
        if OutboundTls.STS not in levels:
            return None
        folder = PolicyFolder(self.settings.server.state / "sts")
        return Sts(self.resolver, https, folder, self.events, self._reactor)

    def _portal(self) -> Portal:
        recipients = self.directory if self.settings.directory.verify_recipients else None
        realm = RelayRealm(
            self.settings, lambda: self.policy, self.store, self.scheduler, self.events, recipients=recipients
        )
        return Portal(realm, self.sources.checkers)

    def _mechanisms(self, listener: Listener) -> dict[str, MechanismFactory]:
        """What AUTH can be answered with; what is offered is the policy's to say."""
        sources, authentication = self.sources, listener.authentication
        ntlm = sources.ntlm if authentication.ntlm else None
        mechanisms = dict(
            integrated_mechanisms(sources.kerberos, ntlm, sources.tickets.run, authentication.channel_binding)
        )
        if sources.passwords:
            mechanisms.update(MECHANISMS)
        if self.directory is not None:
            mechanisms["EXTERNAL"] = External
        return mechanisms

    def _open_log(self) -> None:
        settings = self.settings.log
        if settings.file is None and not self._own_log:
            self.events.subscribe(twisted_log(settings.format))
            return
        descriptor = 2
        if settings.file is not None:
            descriptor = os.open(settings.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._log = LogWriter(settings.format, descriptor, self._reactor)
        self.events.subscribe(self._log)

    async def _listen_for_control(self) -> None:
        path = self.settings.console.socket
        path.unlink(missing_ok=True)  # the queue is ours, so whoever made it is gone
        site = ControlSite(self.store, self._status, self._rehearse, self.events, self.scheduler.retry, self._files)
        # Twisted 26 makes the socket and then sets its mode; the umask closes the gap.
        before = os.umask(0o177)
        try:
            self._control = await UNIXServerEndpoint(self._reactor, str(path), mode=0o600).listen(site)
        finally:
            os.umask(before)

    async def _rehearse(self, asked: AuthTest) -> dict[str, Any]:
        """Authenticates as a client would, for an administrator who wants to see how it goes."""
        wanted = asked.listener or self.settings.listeners[0].name
        server = next((entry.server for entry in self.listening if entry.server.listener.name == wanted), None)
        if server is None:
            known = ", ".join(entry.server.listener.name for entry in self.listening)
            raise LookupError(f"{wanted}: no such listener; there are: {known}")
        mechanism = asked.mechanism or "PLAIN"
        default_domain = server.listener.authentication.default_domain
        user = await account_of(self.directory, asked.user, mechanism, default_domain)
        return rehearsal_document(
            await rehearse(server, mechanism, user, asked.password, self._files.run), mechanism, wanted
        )

    async def _status(self) -> dict[str, Any]:
        return {
            "version": __version__,
            "hostname": self.settings.server.hostname,
            "pid": os.getpid(),
            "config": str(self.settings.file),
            "uptime": round(time.time() - self._started_at),
            "listeners": [
                {
                    "name": entry.server.listener.name,
                    "address": entry.address,
                    "tls": entry.server.listener.tls.value,
                    "sessions": len(entry.server.sessions),
                }
                for entry in self.listening
            ],
            "directory": [standing_document(one) for one in self.directory.status()] if self.directory else [],
            "queue": await self.store.counts(),
            "totals": self.totals.document() | self._asked(),
        }

    def _asked(self) -> dict[str, int]:
        """How often the domain's controllers were asked, for the totals."""
        operations = self.directory.operations() if self.directory is not None else Operations()
        netlogon = self.sources.netlogon
        return {
            "directory_connections": operations.connections,
            "directory_binds": operations.binds,
            "directory_searches": operations.searches,
            "netlogon_logons": netlogon.logons if netlogon is not None else 0,
        }


def _exit_badly() -> None:
    os._exit(1)
