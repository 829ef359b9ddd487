"""The command line: `nplus run|check|report|...`. Heavy imports stay inside the commands."""

from nplus.cli.main import app

__all__ = ["app"]
