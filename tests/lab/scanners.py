"""Scanners that look for faults from outside: testssl (TLS) and nmap's smtp-open-relay, with parsed findings."""

from __future__ import annotations

import json
import re
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.clients import run

__all__ = ["SEVERITIES", "Finding", "RelayScan", "nmap_open_relay", "run_testssl"]

SEVERITIES = ("DEBUG", "OK", "INFO", "WARN", "LOW", "MEDIUM", "HIGH", "CRITICAL", "FATAL")
"""testssl's grades, the best first. WARN is about testssl's own means, FATAL means that it could not scan."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of testssl's report."""

    name: str
    severity: str
    text: str
    cve: str

    def at_least(self, severity: str) -> bool:
        """Whether it is as bad as `severity`, or worse."""
        return SEVERITIES.index(self.severity) >= SEVERITIES.index(severity)


def run_testssl(
    host: str,
    port: int,
    *,
    name: str = "localhost",
    starttls: bool = True,
    ca: Path | None = None,
    checks: Sequence[str] = ("-p", "-s", "-f", "-P", "-S", "-U"),
    timeout: float = 240.0,
) -> list[Finding]:
    """Scan an SMTP server's TLS with testssl.sh 3.0. It makes over a hundred connections and takes about 40 s.

    A test wants `not [f for f in findings if f.at_least("MEDIUM")]`.

    :param host: an address, to which it connects; `name` is what it expects in the certificate and sends as SNI.
    :param starttls: STARTTLS in SMTP, else TLS at once.
    :param ca: trusted in addition to testssl's own stores.
    :param checks: by default protocols, ciphers, forward secrecy, preferences, defaults and certificate, and
        vulnerabilities; () is everything, with client simulations.
    :raises AssertionError: when it did not scan.
    """
    with tempfile.TemporaryDirectory(prefix="lab-testssl-") as temporary:
        report = Path(temporary) / "report.json"
        command = ["testssl", "--quiet", "--warnings", "off", "--color", "0", "--nodns", "none", "--ip", host]
        command += ["--connect-timeout", "10", "--openssl-timeout", "10", "--jsonfile", str(report)]
        if starttls:
            command += ["--starttls", "smtp"]
        if ca:
            command += ["--add-ca", str(ca)]
        done = run([*command, *checks, f"{name}:{port}"], timeout=timeout, cwd=Path(temporary))
        # Its exit code counts oddities, so only the report says whether it scanned.
        assert report.exists(), f"testssl left no report:\n{done.output}"
        entries = json.loads(report.read_text())
    findings = [Finding(item["id"], item["severity"], item["finding"], item.get("cve", "")) for item in entries]
    broken = [finding for finding in findings if finding.severity == "FATAL"]
    assert not broken, f"testssl could not scan {name}:{port}: {broken}\n{done.output}"
    assert any(finding.name == "scanTime" for finding in findings), f"testssl did not finish:\n{done.output}"
    return findings


@dataclass(frozen=True, slots=True)
class RelayScan:
    """What smtp-open-relay found.

    :ivar verdict: its own words.
    :ivar open: the (sender, recipient) pairs, of its 16, that the server would relay.
    """

    verdict: str
    open: tuple[tuple[str, str], ...]


def nmap_open_relay(host: str, port: int, *, timeout: float = 60.0) -> RelayScan:
    """Try nmap's 16 ways of relaying; takes 0.3 s where replies are fast.

    :raises AssertionError: when the script did not come to a verdict (e.g. the connection broke), which is no pass.
    """
    # "+" runs it whatever nmap thinks the port is; -vv lists the pairs; -Pn -n: no ping, no DNS.
    command = ["nmap", "-Pn", "-n", "-vv", "-p", str(port), "--script", "+smtp-open-relay", "-oX", "-", host]
    if ":" in host:
        command.insert(1, "-6")
    done = run(command, timeout=timeout)
    start = done.output.find("<nmaprun")
    root = ElementTree.fromstring(done.output[start : done.output.find("</nmaprun>") + len("</nmaprun>")])
    scripts = [script for script in root.iter("script") if script.get("id") == "smtp-open-relay"]
    assert scripts, f"smtp-open-relay did not run:\n{done.output}"
    verdict = scripts[0].get("output", "")
    pairs = re.findall(r"MAIL FROM:<(.*?)> -> RCPT TO:<(.*)>", verdict)
    known = (
        "Server doesn't seem to be an open relay",
        "Server is an open relay",
        "Server isn't an open relay",
    )
    assert verdict.startswith(known), f"smtp-open-relay came to no verdict: {verdict}"
    return RelayScan(verdict.splitlines()[0], tuple((sender, to) for sender, to in pairs))
