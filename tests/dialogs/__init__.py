"""SMTP conversations as data: README.md says how they are written, dialog.py how they are played."""
