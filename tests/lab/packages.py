"""Installs the programs that the tests run: Debian packages as root, npm and PyPI extras into var/lab.

`python -m tests.lab.packages` does it, or, without root, says what is missing and exits 1; the argument "directory"
adds what the directory tests need, "extras" relayd's own extras that they use. It uses the standard library alone, so
it runs before anything is installed, and answers in a fraction of a second when all is there.
"""

from __future__ import annotations

import configparser
import contextlib
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = [
    "CACHE",
    "DEBIAN",
    "DIRECTORY",
    "ROOT",
    "Missing",
    "dotnet_openssl",
    "dotnet_python",
    "ensure",
    "ensure_directory",
    "ensure_extras",
    "node_modules",
]

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "var" / "lab"
"""Where npm's and PyPI's extras go. Nothing in it is committed."""

DEBIAN = (
    "apparmor",  # apparmor_parser
    "ca-certificates",
    "curl",
    "dovecot-lmtpd",
    "ldnsutils",  # signs zones
    "libauthen-sasl-perl",  # swaks: AUTH mechanisms
    "libdigest-hmac-perl",  # swaks: CRAM-MD5
    "libnet-ssleay-perl",  # swaks: TLS
    "libpython3.11-testsuite",  # test_email/data: malformed mails
    "msmtp",
    "nmap",  # scripts/smtp-open-relay.nse
    "openssl",
    "postfix",  # smtp-source, smtp-sink, a private instance
    "strace",  # what is on disk before a reply
    "swaks",
    "systemd",  # systemd-analyze
    "testssl.sh",
    "unbound",
)
"""Debian 12 packages. nodejs and npm join them when no `node` or `npm` is on the PATH: not all have Debian's."""

DIRECTORY = (
    "cyrus-clients",  # smtptest
    "faketime",  # programs with a wrong clock
    "gcc",
    "gsasl",
    "gss-ntlmssp",  # NTLM in .NET's Negotiate
    "krb5-user",
    "ldap-utils",
    "ldb-tools",
    "libauthen-ntlm-perl",  # swaks: NTLM
    "libkrb5-dev",
    "libldb2",
    "libpython3-dev",
    "libsasl2-modules",
    "libsasl2-modules-gssapi-mit",  # GSSAPI and GSS-SPNEGO for smtptest and Postfix
    "mutt",
    "python3-samba",
    "samba",
    "samba-ad-provision",
    "samba-dsdb-modules",
    "samba-vfs-modules",
    "winbind",
)
"""What the directory tests need beside `DEBIAN`: Samba as a domain controller, Kerberos and its mail clients, and what
gssapi and krb5 are built with. libnss-winbind is left out on purpose: it edits nsswitch.conf."""

DIRECTORY_MODULES = ("gssapi", "krb5", "impacket")

NODEMAILER = "nodemailer@6.10.1"
DOTNET = ("dotnetcore2==3.1.23", "pythonnet==3.2.1")
# .NET Core 3.1 speaks TLS through OpenSSL 1.1 alone, which Debian 12 no longer has; this wheel brings it along.
DOTNET_OPENSSL = "psycopg2-binary==2.9.5"

EXTRAS = ((CACHE / "node", NODEMAILER), (CACHE / "dotnet", " ".join((*DOTNET, DOTNET_OPENSSL))))
APT_INSTALL = ("apt-get", "install", "-y", "--no-install-recommends")
POLICY = Path("/usr/sbin/policy-rc.d")


class Missing(Exception):
    """Something the tests need is not installed, and cannot be installed by this user; the text says how."""


def node_modules() -> Path:
    """Where nodemailer is, for NODE_PATH."""
    return CACHE / "node" / "node_modules"


def dotnet_python() -> Path:
    """The Python of the virtual environment that holds .NET Core and pythonnet."""
    return CACHE / "dotnet" / "bin" / "python"


def dotnet_openssl() -> Path:
    """A directory with libssl.so.1.1 and libcrypto.so.1.1, for LD_LIBRARY_PATH of .NET alone."""
    return CACHE / "dotnet" / "openssl-1.1"


def ensure(debian: tuple[str, ...] = DEBIAN) -> None:
    """Install what is missing.

    :param debian: further lab modules pass packages of their own.
    :raises Missing: not root, and a Debian package is missing.
    :raises subprocess.CalledProcessError: apt, npm or pip failed; their output was shown.
    """
    missing = _missing(debian)
    if missing and os.geteuid() != 0:
        listed = "\n".join(f"  {package}" for package in missing)
        raise Missing(
            f"The tests need Debian packages that are not installed:\n{listed}\nInstall them with:\n"
            f"  sudo {' '.join([*APT_INSTALL, *missing])}"
        )
    if not missing and not any(_outdated(*extra) for extra in EXTRAS):
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        # Test workers in parallel: one installs, the others wait, and then find everything there.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if missing := _missing(debian):
            _apt(missing)
        _npm()
        _dotnet()


def ensure_directory() -> None:
    """Install what a domain controller needs: `DIRECTORY`.

    :raises Missing: not root, and a Debian package is missing.
    :raises subprocess.CalledProcessError: apt failed; its output was shown.
    """
    ensure((*DEBIAN, *DIRECTORY))


def ensure_extras() -> None:
    """Install relayd's extras for a directory into this environment; not for tests that do without them.

    gssapi and krb5 take two minutes and more to build, once; the wheels stay in var/lab.

    :raises subprocess.CalledProcessError: pip failed; its output was shown.
    """
    if all(map(_importable, DIRECTORY_MODULES)):
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all(map(_importable, DIRECTORY_MODULES)):
            _directory_extras()
    importlib.invalidate_caches()


def _importable(module: str) -> bool:
    importlib.invalidate_caches()
    return importlib.util.find_spec(module) is not None


def _directory_extras() -> None:
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg")
    extras = declared["options.extras_require"]
    wanted = [line for extra in ("kerberos", "netlogon") for line in extras[extra].strip().splitlines()]
    wheels = CACHE / "wheels"
    pip = ["nice", "-n", "19", sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    with _once(wheels, f"{' '.join(wanted)} for Python {sys.version_info[0]}.{sys.version_info[1]}") as needed:
        if needed:
            _run([*pip, "wheel", "-w", str(wheels), *wanted])
    _run([*pip, "install", "--no-index", "--find-links", str(wheels), *wanted])


def _missing(wanted: tuple[str, ...]) -> list[str]:
    programs = (("nodejs", "node"), ("npm", "npm"))
    return _not_installed(wanted) + [package for package, name in programs if not shutil.which(name)]


def _apt(missing: list[str]) -> None:
    print(f"installing {' '.join(missing)}", flush=True)
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    patience = ("-q", "-o", "DPkg::Lock::Timeout=300")
    with _no_service_starts():
        if "postfix" in missing:
            # "No configuration": the machine gets no mail server of its own, now or at the next boot.
            answer = "postfix postfix/main_mailer_type select No configuration\n"
            _run(["debconf-set-selections"], environment, answer)
        _run(["apt-get", "update", *patience], environment)
        _run([*APT_INSTALL, *patience, *missing], environment)


def _not_installed(packages: tuple[str, ...]) -> list[str]:
    try:
        query = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *packages],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise Missing("The tests' clients are Debian packages, and this machine has no dpkg-query.") from None
    installed = {line.split()[0] for line in query.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Keep maintainer scripts from starting services: a policy-rc.d that exits 101 (Debian's invoke-rc.d(8))."""
    kept: Path | None = None
    if POLICY.exists():
        if subprocess.run([POLICY, "postfix", "start"], capture_output=True, check=False).returncode == 101:
            yield
            return
        kept = POLICY.with_name("policy-rc.d.before-lab")
        POLICY.rename(kept)
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
        if kept is not None:
            kept.rename(POLICY)


def _npm() -> None:
    directory, wanted = EXTRAS[0]
    with _once(directory, wanted) as needed:
        if needed:
            quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(directory)]
            _run([shutil.which("npm") or "npm", "install", *quiet, NODEMAILER])


def _dotnet() -> None:
    directory, wanted = EXTRAS[1]
    with _once(directory, wanted) as needed:
        if not needed:
            return
        _run([sys.executable, "-m", "venv", "--clear", str(directory)])
        pip = [str(dotnet_python()), "-m", "pip", "--disable-pip-version-check", "-q"]
        _run([*pip, "install", *DOTNET])
        with tempfile.TemporaryDirectory() as temporary:
            # The wheel of Python 3.10 on purpose: it is only unpacked for its libraries, never imported.
            fixed = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.10"]
            fixed += ["--platform", "manylinux2014_x86_64"]
            _run([*pip, "download", *fixed, "-d", temporary, DOTNET_OPENSSL])
            (wheel,) = Path(temporary).glob("*.whl")
            _unpack_openssl(wheel, dotnet_openssl())


def _unpack_openssl(wheel: Path, directory: Path) -> None:
    directory.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            name = member.rpartition("/")[2]
            if not (name.startswith(("libssl-", "libcrypto-")) and name.endswith(".so.1.1")):
                continue
            (directory / name).write_bytes(archive.read(member))
            # The wheel's names carry a hash, by which libssl finds libcrypto; .NET looks for the usual ones.
            (directory / f"{name.partition('-')[0]}.so.1.1").symlink_to(name)


@contextlib.contextmanager
def _once(directory: Path, what: str) -> Iterator[bool]:
    """Say whether `directory` has yet to be filled with `what`; note afterwards that it was."""
    if not _outdated(directory, what):
        yield False
        return
    print(f"installing {what} into {directory.relative_to(ROOT)}", flush=True)
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    yield True
    _note(directory).write_text(what)


def _note(directory: Path) -> Path:
    return directory / ".installed"


def _outdated(directory: Path, what: str) -> bool:
    return not _note(directory).exists() or _note(directory).read_text() != what


def _run(command: list[str], environment: dict[str, str] | None = None, feed: str | None = None) -> None:
    done = subprocess.run(
        command,
        env=environment,
        input=feed or "",
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        done.check_returncode()


def main(arguments: Sequence[str] = ()) -> int:
    """Install what `arguments` ask for; 1 when something is missing that this user cannot install."""
    try:
        ensure_directory() if "directory" in arguments else ensure()
        if "extras" in arguments:
            ensure_extras()
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as failed:
        print(f"{' '.join(failed.cmd)}: exit code {failed.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
