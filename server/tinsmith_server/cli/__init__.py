"""The command line. Each command is a few lines over a module that could be called without it."""

from tinsmith_server.cli.main import main

__all__ = ["main"]
