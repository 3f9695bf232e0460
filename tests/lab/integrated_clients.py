"""Real clients that sign in with Windows-integrated authentication, and the place in a lab's domain where they run.

There the relay has its name, which is what a Kerberos client asks the controller for a ticket by:

    place = inside(lab, lab.kinit("alice"))
    clients.curl(RELAY, port, auth=("", ""), mechanism="GSSAPI", place=place).require()

Of the clients in `tests.lab.clients`, curl, msmtp, swaks and .NET's take a `place`; the others are here.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.lab import packages
from tests.lab.clients import HERE, Credentials, Place, Ran, dotnet, python_smtplib, run
from tests.lab.clock import skewed_clock
from tests.lab.directory import DirectoryLab
from tests.lab.domain import RELAY
from tests.lab.net import wait_for
from tests.lab.postfix import Postfix

__all__ = ["RELAY", "gsasl", "inside", "mutt", "postfix", "skewed", "smtptest", "windows"]

SMTPTEST = "/usr/lib/cyrus/bin/smtptest"


def inside(lab: DirectoryLab, tickets: Path | None = None) -> Place:
    """Where the hosts of `lab` have their names, and Kerberos its realm.

    :param tickets: a credential cache, of `lab.kinit`.
    """
    env = {name: value for name, value in lab.environment.items() if name.startswith("KRB5")}
    if tickets is not None:
        env["KRB5CCNAME"] = f"FILE:{tickets}"
    return Place(tuple(lab.named()), env)


def skewed(place: Place, by: str) -> Place:
    """`place`, with a wrong clock (see `skewed_clock`)."""
    return replace(place, env={**place.env, **skewed_clock(by)})


def gsasl(
    port: int,
    place: Place,
    *,
    mechanism: str = "GSSAPI",
    user: str = "alice",
    password: str = "",
    realm: str = "",
    timeout: float = 30.0,
) -> Ran:
    """GNU SASL's gsasl: signs in and quits. Exit code 0 = signed in.

    By GSSAPI it sends `user` as authorization identity. Its NTLM is NTLMv1.

    :param realm: the domain, for NTLM.
    """
    command = ["gsasl", "--smtp", f"--mechanism={mechanism}", "--no-starttls", "--service=smtp", f"--hostname={RELAY}"]
    command += [f"--authentication-id={user}", f"--authorization-id={user}", "--verbose"]
    if password:
        command.append(f"--password={password}")
    if realm:
        command.append(f"--realm={realm}")
    return run([*command, RELAY, str(port)], place=place, timeout=timeout)


def mutt(
    port: int,
    place: Place,
    *,
    user: str = "alice",
    from_: str = "alice@lab.example",
    to: str = "bob@lab.example",
    body: bytes = b"Hello.\n",
    timeout: float = 30.0,
) -> Ran:
    """mutt, by GSSAPI. Exit code 0 = delivered. It sends `user` as authorization identity."""
    settings = {
        "smtp_url": f"smtp://{user}@{RELAY}:{port}/",
        "smtp_authenticators": "gssapi",
        "ssl_starttls": "no",
        "ssl_force_tls": "no",
        "from": from_,
        "use_envelope_from": "yes",
        "envelope_from_address": from_,
        "copy": "no",
        "record": "",
        "hostname": "client.lab.example",
        "smtp_pass": "",
    }
    command = ["mutt", "-n", "-F", "/dev/null"]
    for name, value in settings.items():
        command += ["-e", f'set {name}="{value}"']
    return run([*command, "-s", "sample", "--", to], feed=body, place=place, timeout=timeout)


def smtptest(
    port: int,
    place: Place,
    *,
    mechanism: str = "GSSAPI",
    user: str = "alice",
    layer: int = 0,
    password: str = "",
    realm: str = "",
    more: Sequence[str] = (),
    timeout: float = 30.0,
) -> Ran:
    """Cyrus' smtptest: signs in by Cyrus SASL, shows the dialog, and quits. Exit code 0 whatever became of it: it
    prints "Authenticated." when it was signed in.

    Its NTLM is NTLMv1, or with `more` = ["-o", "ntlm_v2=yes"] an LMv2 response alone, without an NTLM one.

    :param mechanism: GSSAPI, GSS-SPNEGO, NTLM, PLAIN or LOGIN.
    :param layer: the strongest security layer it may negotiate: 0 none, 1 integrity, more: confidentiality. By
        GSS-SPNEGO it negotiates none on the wire: above 0 it wraps all that it says after the 235, unasked.
    """
    command = [SMTPTEST, "-m", mechanism, "-a", user, "-u", user, "-l", str(layer), "-p", str(port)]
    if password:
        command += ["-w", password]
    if realm:
        command += ["-r", realm]
    return run([*command, *more, RELAY], feed=b"QUIT\r\n", place=place, timeout=timeout)


def postfix(
    lab: DirectoryLab,
    port: int,
    *,
    user: str,
    password: str = "",
    tickets: Path | None = None,
    mechanism: str = "gssapi",
    tls: bool = False,
    timeout: float = 30.0,
) -> Ran:
    """A Postfix whose next hop is the relay, and which signs in there by Cyrus SASL with one message.

    Exit code 0 = delivered, else 1; the output is its log.

    :param tickets: a credential cache; Postfix gets a copy that its own user may read.
    :param mechanism: the only one that it may choose.
    :param tls: STARTTLS with a certificate that verifies, before it signs in.
    """
    place = inside(lab)
    settings = {
        "smtp_sasl_auth_enable": "yes",
        "smtp_sasl_password_maps": f"static:{{{user}:{password}}}",
        "smtp_sasl_mechanism_filter": mechanism,
        "smtp_sasl_security_options": "noanonymous",
        "smtp_sasl_tls_security_options": "noanonymous",
        "smtp_host_lookup": "native",
        "smtp_tls_security_level": "secure" if tls else "none",
        "smtp_tls_CAfile": str(lab.ca),
        "smtp_tls_secure_cert_match": RELAY,
    }
    relaying = Postfix((RELAY, port), settings, place=place)
    # What its processes keep of the environment: its own, and Kerberos'.
    kept = f"MAIL_CONFIG MAIL_LOGTAG POSTLOG_SERVICE KRB5_CONFIG={place.env['KRB5_CONFIG']}"
    if tickets is not None:
        cache = relaying.directory / "tickets"
        shutil.copyfile(tickets, cache)
        cache.chmod(0o600)
        shutil.chown(cache, "postfix")
        kept += f" KRB5CCNAME=FILE:{cache}"
    relaying.settings["import_environment"] = kept
    with relaying:
        python_smtplib(relaying.host, relaying.port)
        wait_for(lambda: " status=" in relaying.log_text(), "what became of the message", timeout)
        log = relaying.log_text()
    return Ran(("postfix",), 0 if " status=sent " in log else 1, log)


def windows(
    port: int,
    place: Place,
    *,
    auth: Credentials | None = None,
    domain: str = "",
    default_credentials: bool = False,
    **what: object,
) -> Ran:
    """.NET's SmtpClient in a domain (see `clients.dotnet`, which takes the other arguments).

    By GSSAPI it sends SPNEGO: Kerberos with the tickets of `place`, or with explicit credentials whose `domain` is the
    realm in capitals; NTLM with any other domain.

    :param auth: explicit credentials.
    :param default_credentials: the session's own, in place of them.
    """
    env = {**place.env, "LD_PRELOAD": f"{preloaded()} {place.env.get('LD_PRELOAD', '')}".strip()}
    return dotnet(
        RELAY,
        port,
        auth=auth,
        domain=domain,
        default_credentials=default_credentials,
        place=replace(place, env=env),
        **what,  # type: ignore[arg-type]
    )


@functools.cache
def preloaded() -> Path:
    """The library that .NET needs on Linux (see its source), built when it has not been.

    :raises subprocess.CalledProcessError: the compiler failed.
    """
    source = HERE / "gss_no_conf.c"
    built = packages.CACHE / f"gss_no_conf-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    if not built.exists():
        packages.CACHE.mkdir(parents=True, exist_ok=True)
        # A name of its own first: test workers may do this at the same time.
        unfinished = built.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", unfinished, source, "-ldl"], check=True)
        unfinished.rename(built)
    return built
