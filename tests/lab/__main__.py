"""`make lab`: the domain for a person to play with. It stays until Ctrl-C, and this prints what to type meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys

from tests.lab import domain, packages
from tests.lab.controller import NoAddress
from tests.lab.directory import DirectoryLab

CONFIG = packages.CACHE / "relayd.toml"
PORT = 2525

RELAY = """\
# Written by `make lab`, each time anew.
[server]
hostname = "{relay}"
state = "relay"

[[listener]]
name = "smtp"
address = "127.0.0.1"
port = {port}

[tls]
certificate = "{lab.directory}/ca/relay-chain.pem"
key = "{lab.directory}/ca/relay.key"

[authentication]
default_domain = "{lab.domain}"

[relay]
groups = ["Relay Users"]

[[domain]]
name = "{lab.domain}"
kind = "local"
deliver = "drop"

"""

WHAT_TO_TYPE = """\
The domain {lab.domain} ({lab.netbios}) is served at {lab.address} by {lab.host}.

{accounts}
{administrator:14} {lab.users[Administrator]:20} may change everything

These tables of relayd.toml join a relay to it; {config} has them, and the rest of a relay:

{toml}
In another terminal, the relay, and when it says "ready", in a third, a client:

  export KRB5_CONFIG={lab.krb5_conf} KRB5CCNAME=FILE:{lab.directory}/tickets
  PYTHONPATH={root} {root}/.venv/bin/twistd --nodaemon --pidfile= relayd --config {config}

  export KRB5_CONFIG={lab.krb5_conf} KRB5CCNAME=FILE:{lab.directory}/tickets
  echo '{lab.users[alice]}' | kinit alice
  send() {{ printf 'Subject: hello\\n\\nIt works.\\n' | curl -sS --crlf --upload-file - smtp://{relay}:{port} \\
      --resolve {relay}:{port}:127.0.0.1 --ssl-reqd --cacert {lab.ca} \\
      --mail-from alice@{lab.domain} --mail-rcpt bob@{lab.domain} "$@"; }}
  send --user : --login-options AUTH=GSSAPI
  send --user '{lab.netbios}\\alice:{lab.users[alice]}' --login-options AUTH=NTLM
  send --user 'alice@{lab.domain}:{lab.users[alice]}' --login-options AUTH=PLAIN
  send --user 'disabled@{lab.domain}:{lab.users[disabled]}' --login-options AUTH=PLAIN     # refused

What an administrator may ask (docs/active-directory.md):

  ctl() {{ PYTHONPATH={root} {root}/.venv/bin/relayctl --config {config} "$@"; }}
  ctl directory test
  ctl spn check                 # nobody has the short names here
  echo '{lab.users[alice]}' | ctl auth test alice --mechanism GSSAPI --password-file -

Ctrl-C ends it.
"""


def what_to_type(lab: DirectoryLab) -> str:
    """The text for a running domain."""
    return WHAT_TO_TYPE.format(
        lab=lab,
        relay=domain.RELAY,
        port=PORT,
        administrator=domain.ADMINISTRATOR,
        accounts="\n".join(f"{each.name:14} {each.password:20} {each.note}" for each in domain.ACCOUNTS),
        toml=lab.toml(),
        config=CONFIG,
        root=packages.ROOT,
    )


def main() -> int:
    """Keep a domain up until a signal; 1 when it cannot be, or ends by itself."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        packages.ensure_directory()
        print("starting the domain controller; the first time, a domain is made for it", flush=True)
        with DirectoryLab() as lab:
            CONFIG.write_text(RELAY.format(lab=lab, relay=domain.RELAY, port=PORT) + lab.toml())
            print(what_to_type(lab), flush=True)
            lab.controller.wait()
            print(f"the domain controller ended by itself:\n{lab.controller.log_text()}", file=sys.stderr)
    except KeyboardInterrupt:
        return 0
    except subprocess.CalledProcessError as failed:
        print(f"{' '.join(failed.cmd)}: exit code {failed.returncode}", file=sys.stderr)
    except (packages.Missing, NoAddress, RuntimeError, TimeoutError) as wrong:
        print(wrong, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
