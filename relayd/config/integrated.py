"""Whether this host can serve integrated authentication, and by whom.

Both defaults are on, and what cannot be served is off, with one line that says why: without keys there is no Kerberos,
and without somebody to ask there is no NTLM.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path as File
from typing import Final

from relayd.config.reading import Reading

__all__ = ["settle", "system_keytab"]

#: Where MIT Kerberos keeps the host's keys, unless its own configuration says otherwise.
SYSTEM_KEYTAB = File("/etc/krb5.keytab")
#: Where winbindd listens (Debian, and Samba's own default).
WINBIND_PIPES = (File("/run/samba/winbindd/pipe"), File("/var/lib/samba/winbindd_privileged/pipe"))

_KERBEROS: Final = "authentication.integrated"
_NTLM: Final = "authentication.ntlm"


def system_keytab() -> bool:
    """Whether this host has keys of its own."""
    return _exists(SYSTEM_KEYTAB)


def settle(reading: Reading) -> None:
    """Replaces ``ntlm.backend = "auto"`` by whom it means (or nothing), and turns off what cannot be served.

    A written backend that cannot be served is a fault.
    """
    no_kerberos = _no_kerberos(reading)
    backend, no_ntlm = _backend(reading)
    reading.tables.setdefault("ntlm", {})["backend"] = backend
    if no_kerberos and not backend:
        _off(reading, _KERBEROS, f"is off: {no_kerberos}, and {no_ntlm}")
        _off(reading, _NTLM)
    elif no_kerberos:
        reading.warn(_KERBEROS, f"is NTLM alone: {no_kerberos}")
    elif not backend:
        _off(reading, _NTLM, f"is off: {no_ntlm}")


def _no_kerberos(reading: Reading) -> str:
    """Why there is no Kerberos; empty: there is."""
    written = reading.written.get("kerberos.keytab")
    if not written and not system_keytab():
        return "there is no keytab (`relayctl join` makes one)"
    if importlib.util.find_spec("gssapi") is None:
        return "Kerberos needs the extra relayd[kerberos]"
    return ""


def _backend(reading: Reading) -> tuple[str, str]:
    """Who judges NTLM answers, or nobody and why."""
    written = str(reading.written.get("ntlm.backend", "auto"))
    computer = reading.written.get("ntlm.computer")
    if written == "netlogon" or (written == "auto" and computer):
        _netlogon(reading, "ntlm.backend" if written == "netlogon" else "ntlm.computer")
        return "netlogon", ""
    if written == "winbind":
        if shutil.which("ntlm_auth") is None:
            reading.fault("ntlm.backend", "needs ntlm_auth, which is not installed; apt-get install winbind")
        return "winbind", ""
    if written == "accounts":
        if not reading.written.get("accounts.file"):
            reading.fault("ntlm.backend", 'needs [accounts] file; name one, or write another backend than "accounts"')
        return "accounts", ""
    if shutil.which("ntlm_auth") is not None and any(_exists(pipe) for pipe in WINBIND_PIPES):
        return "winbind", ""
    return "", "[ntlm] names no computer to ask the controllers with"


def _netlogon(reading: Reading, key: str) -> None:
    """Notes what the backend netlogon lacks. The extra is the business of the key ``ntlm.computer``."""
    for needed in ("computer", "secret_file"):
        rule = f"ntlm.{needed}"
        if not reading.written.get(rule) and reading.good(rule):
            reading.fault(rule, "is missing; `relayctl join` makes both, computer and secret_file", at=key)
    directory = reading.tables.get("directory", {})
    if not directory.get("domain") and not directory.get("servers"):
        reading.fault(key, "needs [directory]: its controllers are asked; write domain or servers")


def _exists(file: File) -> bool:
    try:
        return file.exists()
    except OSError:
        return False


def _off(reading: Reading, key: str, why: str = "") -> None:
    """Turns *key* off, written or not: a default that is written is still a default."""
    table, _, name = key.partition(".")
    told = [key] if reading.written.get(key, True) and key not in reading.bad else []
    reading.tables.setdefault(table, {})[name] = False
    for index, listener in enumerate(reading.arrays.get("listener", ())):
        if listener.get(name):
            listener[name] = False
            told.append(f"listener[{index}].{name}")
    for written in told if why and _wanted(reading, name) else ():
        reading.warn(written, why)


def _wanted(reading: Reading, name: str) -> bool:
    """NTLM is off without a word where integrated authentication is off by choice."""
    return name == "integrated" or bool(reading.written.get(_KERBEROS, True))
