"""The lab: real clients and peers on loopback, for tests.

Nothing here starts relayd. Each module wraps programs that nobody here wrote, or records what they send:

- `packages`: installs what the tests need (Debian, npm, PyPI).
- `ca`: a certificate authority of the lab's own, and leaf certificates.
- `net`: free ports, and waiting with a deadline.
- `sink`: a recording SMTP server that keeps every octet as it came.
- `clients`: one function per SMTP client.
- `postfix`: smtp-sink, smtp-source and a private Postfix instance.
- `scanners`: testssl and nmap, with parsed findings.
- `malformed`: the malformed mails of CPython's own test suite.
- `directory`: a real Active Directory domain (Samba): one running controller, on an address of its own.
- `domain`: who is in that domain, and how it is made. `controller`: the processes of one controller.
"""
