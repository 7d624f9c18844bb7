"""Tries to break the verbs, what they store and what they read: `python -m tools.chaos --help`."""
