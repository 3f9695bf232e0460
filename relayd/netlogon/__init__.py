"""The secure channel to a domain controller, which judges NTLM answers."""
