"""The command line: ``masklab VERB ...``."""

from masklab.cli.app import main

__all__ = ["main"]
