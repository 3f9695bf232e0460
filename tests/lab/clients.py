"""Real SMTP clients, one function each. Each runs the program itself and returns its exit code and what it said.

None reads a configuration file of the machine or of the user, and none uses a default port.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import smtplib
import ssl
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import packages

__all__ = [
    "Credentials",
    "Place",
    "Ran",
    "curl",
    "dotnet",
    "msmtp",
    "nodemailer",
    "python_smtplib",
    "run",
    "smtp_source",
    "succeeded",
    "swaks",
]

Credentials = tuple[str, str]
"""User and password."""

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client runs: its command line goes behind `prefix`, and `env` is added to its environment."""

    prefix: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


HERE_AND_NOW = Place()

SAMPLE = b"From: alice@lab.example\r\nTo: bob@lab.example\r\nSubject: sample\r\n\r\nHello.\r\n.leading dot\r\n"


@dataclass(frozen=True, slots=True)
class Ran:
    """A finished program.

    :ivar code: exit code.
    :ivar output: standard output and standard error, together, decoded as UTF-8 with replacements.
    """

    command: tuple[str, ...]
    code: int
    output: str

    @property
    def ok(self) -> bool:
        """Whether it exited 0."""
        return self.code == 0

    def json(self) -> dict[str, Any]:
        """The last line of output as JSON (what `nodemailer` and `dotnet` print)."""
        answer = json.loads(self.output.strip().splitlines()[-1])
        assert isinstance(answer, dict)
        return answer

    def require(self) -> Ran:
        """Itself when it exited 0.

        :raises AssertionError: with everything it said.
        """
        assert self.ok, f"{' '.join(self.command)}: exit code {self.code}\n{self.output}"
        return self


def run(
    command: Sequence[str | Path],
    *,
    feed: bytes = b"",
    env: dict[str, str] | None = None,
    timeout: float = 30.0,
    cwd: Path | None = None,
    place: Place = HERE_AND_NOW,
) -> Ran:
    """Run a program to its end.

    :param feed: its standard input.
    :param env: added to a small environment that holds nothing of the user's, and to that of `place`.
    :param timeout: seconds; then it and its children are killed.
    :raises TimeoutError: with what it had said.
    """
    words = tuple(str(word) for word in command)
    base = {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    base["HOME"] = str(packages.CACHE)  # no ~/.curlrc, ~/.msmtprc, ~/.swaksrc
    process = subprocess.Popen(
        (*place.prefix, *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=base | dict(place.env) | (env or {}),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(feed, timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        said = output.decode(errors="replace")
        raise TimeoutError(f"{words[0]}: not done in {timeout:g} s; it said:\n{said}") from None
    return Ran(words, process.returncode, output.decode(errors="replace"))


def swaks(
    host: str,
    port: int,
    from_: str = "alice@lab.example",
    to: str | Sequence[str] = "bob@lab.example",
    *,
    data: bytes | None = None,
    auth: Credentials | None = None,
    mechanism: str = "LOGIN",
    tls: bool = False,
    implicit_tls: bool = False,
    ca: Path | None = None,
    more: Sequence[str] = (),
    timeout: float = 30.0,
    place: Place = HERE_AND_NOW,
) -> Ran:
    """swaks. Exit code 0 = delivered, 24 = no recipient accepted, 28 = not authenticated, 29 = no TLS, see its manual.

    :param from_: "<>" for the null reverse-path.
    :param data: the message; swaks makes CRLF of LF, stuffs dots and replaces its %TOKENS%. Without it swaks
        writes one itself.
    :param ca: trust this CA alone, and insist on a certificate that it signed.
    :param more: further options, e.g. `["--quit-after", "RCPT"]`.
    """
    command = ["swaks", "--server", host, "--port", str(port), "--from", from_, "--to", _commas(to)]
    command += ["--helo", "client.lab.example", "--timeout", f"{timeout:.0f}"]
    if auth:
        command += ["--auth", mechanism, "--auth-user", auth[0], "--auth-password", auth[1]]
    if implicit_tls:
        command.append("--tls-on-connect")
    elif tls:
        command.append("--tls")
    if ca:
        command += ["--tls-verify", "--tls-ca-path", str(ca)]
    if data is not None:
        command += ["--data", "-"]
    return run([*command, *more], feed=data or b"", timeout=timeout, place=place)


def curl(
    host: str,
    port: int,
    from_: str = "alice@lab.example",
    to: str | Sequence[str] = "bob@lab.example",
    *,
    data: bytes = SAMPLE,
    auth: Credentials | None = None,
    mechanism: str | None = None,
    tls: bool = False,
    implicit_tls: bool = False,
    ca: Path | None = None,
    more: Sequence[str] = (),
    timeout: float = 30.0,
    place: Place = HERE_AND_NOW,
) -> Ran:
    """curl. Exit code 55 or 56 = the server refused MAIL, RCPT or data, 67 = not authenticated, 60 = bad certificate.

    :param from_: "" for the null reverse-path.
    :param data: sent as it is, octet for octet (curl stuffs dots, and adds the CRLF that a message lacks at its end).
    """
    scheme = "smtps" if implicit_tls else "smtp"
    address = f"[{host}]" if ":" in host else host
    # -q first: no ~/.curlrc. The URL's path is the EHLO argument.
    command = [
        "curl",
        "-q",
        "-v",
        "-sS",
        "--max-time",
        f"{timeout:.0f}",
        f"{scheme}://{address}:{port}/client.lab.example",
    ]
    command += ["--noproxy", "*", "--mail-from", from_, "--upload-file", "-"]
    for recipient in _each(to):
        command += ["--mail-rcpt", recipient]
    if auth:
        command += ["--user", f"{auth[0]}:{auth[1]}"]
    if mechanism:
        command += ["--login-options", f"AUTH={mechanism}"]
    if tls:
        command.append("--ssl-reqd")
    if ca:
        command += ["--cacert", str(ca)]
    elif tls or implicit_tls:
        command.append("--insecure")
    return run([*command, *more], feed=data, timeout=timeout + 5, place=place)


def msmtp(
    host: str,
    port: int,
    from_: str = "alice@lab.example",
    to: str | Sequence[str] = "bob@lab.example",
    *,
    data: bytes = SAMPLE,
    auth: Credentials | None = None,
    mechanism: str = "plain",
    tls: bool = False,
    implicit_tls: bool = False,
    ca: Path | None = None,
    more: Sequence[str] = (),
    timeout: float = 30.0,
    place: Place = HERE_AND_NOW,
) -> Ran:
    """msmtp. Exit codes are those of sysexits.h: 65 = recipient or data refused, 69 = unavailable, 77 = bad password.

    :param data: msmtp ends every line with CRLF, whatever ended it.
    """
    # --host: "use this server with settings from the command line; do not use any configuration file data".
    command = [
        "msmtp",
        "--debug",
        f"--host={host}",
        f"--port={port}",
        f"--from={from_}",
        f"--timeout={timeout:.0f}",
    ]
    command += [
        "--domain=client.lab.example",
        "--set-from-header=off",
        "--set-msgid-header=off",
        "--set-date-header=off",
    ]
    environment = {}
    if auth:
        environment["LAB_PASSWORD"] = auth[1]
        command += [
            f"--auth={mechanism}",
            f"--user={auth[0]}",
            '--passwordeval=printf "%s\\n" "$LAB_PASSWORD"',
        ]
    else:
        command.append("--auth=off")
    if tls or implicit_tls:
        command += ["--tls=on", f"--tls-starttls={'off' if implicit_tls else 'on'}"]
        command.append(f"--tls-trust-file={ca}" if ca else "--tls-certcheck=off")
    return run([*command, *more, "--", *_each(to)], feed=data, env=environment, timeout=timeout + 5, place=place)


def nodemailer(
    host: str,
    port: int,
    from_: str = "alice@lab.example",
    to: str | Sequence[str] = "bob@lab.example",
    *,
    message: dict[str, Any] | None = None,
    auth: Credentials | None = None,
    tls: bool = False,
    implicit_tls: bool = False,
    ca: Path | None = None,
    timeout: float = 30.0,
) -> Ran:
    """nodemailer on Node.js. Prints one JSON object: `accepted`, `rejected`, `response`, or `error`, `responseCode`.

    :param message: nodemailer's message fields (subject, text, html, attachments, raw, dsn, ...) as JSON.
    """
    transport: dict[str, Any] = {
        "host": host,
        "port": port,
        "name": "client.lab.example",
        "secure": implicit_tls,
    }
    transport |= {
        "requireTLS": tls,
        "ignoreTLS": not tls,
        "connectionTimeout": 5000,
        "greetingTimeout": 10000,
    }
    if auth:
        transport["auth"] = {"user": auth[0], "pass": auth[1]}
    if tls or implicit_tls:
        transport["tls"] = {"ca": ca.read_text()} if ca else {"rejectUnauthorized": False}
    envelope = {"from": from_, "to": _each(to)}
    fields = {"subject": "sample", "text": "Hello.\n.leading dot\n"} if message is None else message
    job = {"transport": transport, "message": {"from": from_, "to": _each(to), "envelope": envelope} | fields}
    env = {"NODE_PATH": str(packages.node_modules())}
    return run(["node", HERE / "nodemailer_send.js"], feed=json.dumps(job).encode(), env=env, timeout=timeout)


def dotnet(
    host: str,
    port: int,
    from_: str = "alice@lab.example",
    to: str | Sequence[str] = "bob@lab.example",
    *,
    subject: str = "sample",
    body: str = "Hello.\r\n.leading dot\r\n",
    html: bool = False,
    cc: Sequence[str] = (),
    bcc: Sequence[str] = (),
    attachments: dict[str, bytes] | None = None,
    auth: Credentials | None = None,
    domain: str = "",
    default_credentials: bool = False,
    tls: bool = False,
    ca: Path | None = None,
    count: int = 1,
    pickup: Path | None = None,
    timeout: float = 60.0,
    place: Place = HERE_AND_NOW,
) -> Ran:
    """System.Net.Mail.SmtpClient of .NET Core 3.1, by pythonnet.

    It prints one JSON object: `sent` (how many of `count`), and after a failure `error`, `cause`, `status`
    (SmtpStatusCode) and `failed` (the recipients refused). It can do STARTTLS, not implicit TLS. Credentials go by
    the mechanisms that the server offers and it knows, in its own order: GSSAPI, else NTLM; then LOGIN. After the last
    535 it goes on without having authenticated, and it says no QUIT. It asks for tickets of SMTPSVC/`host`.

    :param domain: of the user in `auth`.
    :param default_credentials: UseDefaultCredentials: the tickets of the place it runs in.
    :param ca: trust this CA alone (SSL_CERT_FILE). It verifies always, so `tls` needs it.
    :param count: messages sent one after the other through one SmtpClient; this runtime connects anew for each.
    :param pickup: a folder that the messages are written to (SpecifiedPickupDirectory); nothing is sent then. This
        version stuffs dots there, as .NET Framework does; .NET 5 and later do not.
    """
    job: dict[str, Any] = {
        "host": host,
        "port": port,
        "tls": tls,
        "from": from_,
        "to": _each(to),
        "cc": list(cc),
    }
    job |= {"bcc": list(bcc), "subject": subject, "body": body, "html": html, "count": count}
    job |= {
        "user": auth[0] if auth else None,
        "password": auth[1] if auth else None,
        "domain": domain,
        "default_credentials": default_credentials,
        "pickup": str(pickup) if pickup else None,
        "timeout": int(timeout * 500),
    }
    encoded = {name: base64.b64encode(content).decode() for name, content in (attachments or {}).items()}
    job["attachments"] = encoded
    env = {
        "DOTNET_SYSTEM_GLOBALIZATION_INVARIANT": "1",  # no ICU needed
        "DOTNET_CLI_TELEMETRY_OPTOUT": "1",
        "LD_LIBRARY_PATH": str(packages.dotnet_openssl()),
    }
    if ca:
        env |= {"SSL_CERT_FILE": str(ca), "SSL_CERT_DIR": "/nonexistent"}
    command = [packages.dotnet_python(), HERE / "dotnet_send.py"]
    return run(command, feed=json.dumps(job).encode(), env=env, timeout=timeout, place=place)


def python_smtplib(
    host: str,
    port: int,
    from_: str = "alice@lab.example",
    to: str | Sequence[str] = "bob@lab.example",
    *,
    data: bytes = SAMPLE,
    auth: Credentials | None = None,
    tls: bool = False,
    implicit_tls: bool = False,
    ca: Path | None = None,
    options: Sequence[str] = (),
    timeout: float = 30.0,
) -> dict[str, tuple[int, bytes]]:
    """Python's smtplib, in this process. Returns the refused recipients and their replies, as `sendmail` does.

    :param data: sent octet for octet (smtplib stuffs dots, and adds the CRLF that a message lacks at its end).
    :param options: MAIL parameters, e.g. `["BODY=8BITMIME"]`.
    :raises smtplib.SMTPException: as smtplib does.
    """
    context = ssl.create_default_context(cafile=str(ca)) if ca else ssl._create_unverified_context()
    client: smtplib.SMTP
    if implicit_tls:
        client = smtplib.SMTP_SSL(host, port, "client.lab.example", timeout=timeout, context=context)
    else:
        client = smtplib.SMTP(host, port, "client.lab.example", timeout=timeout)
    with client:
        if tls:
            client.starttls(context=context)
        if auth:
            client.login(*auth)
        return client.sendmail(from_, _each(to), data, mail_options=list(options))


def smtp_source(
    host: str,
    port: int,
    from_: str = "alice@lab.example",
    to: str = "bob@lab.example",
    *,
    sessions: int = 1,
    messages: int = 1,
    length: int | None = None,
    file: Path | None = None,
    recipients: int = 1,
    reuse: bool = False,
    go_on: bool = False,
    more: Sequence[str] = (),
    timeout: float = 60.0,
) -> Ran:
    """Postfix's load generator smtp-source. Exit code 0 = every message was accepted.

    :param messages: in all, over all sessions.
    :param length: octets of message payload; `file` sends that message instead (LF for line ends).
    :param recipients: per message; more than one makes it prefix a number to `to`.
    :param reuse: many messages a connection, instead of one.
    :param go_on: do not stop at the first refusal.
    """
    command = [
        "smtp-source",
        "-s",
        str(sessions),
        "-m",
        str(messages),
        "-f",
        from_,
        "-t",
        to,
        "-M",
        "client.lab.example",
    ]
    command += ["-r", str(recipients)]
    if length is not None:
        command += ["-l", str(length)]
    if file is not None:
        command += ["-F", str(file)]
    if reuse:
        command.append("-d")
    if go_on:
        command.append("-A")
    address = f"[{host}]" if ":" in host else host
    return run([*command, *more, f"inet:{address}:{port}"], timeout=timeout)


def succeeded(send: Callable[..., Any], *where: Any, **what: Any) -> bool:
    """Whether the client that `send` runs says that all of it was accepted."""
    try:
        answer = send(*where, **what)
    except (smtplib.SMTPException, ssl.SSLCertVerificationError) as error:
        print(error)
        return False
    if isinstance(answer, Ran):
        print(answer.output)
        return answer.ok
    return bool(answer == {})


def _each(to: str | Sequence[str]) -> list[str]:
    return [to] if isinstance(to, str) else list(to)


def _commas(to: str | Sequence[str]) -> str:
    return ",".join(_each(to))
