"""The command line: ``masklab VERB ...``."""

from __future__ import annotations

import signal


def main() -> int:
    """Run the command line of this process; returns the exit code, see `masklab.cli.app.main`.

    A signal that comes before or after a verb's work, while modules are imported for example, ends the process at
    once: there is nothing to tidy up, and Python would print a stack trace.
    """
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so for a shell's background jobs
    if handled:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from masklab.cli.app import main as run

    if handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run()
    finally:
        if handled:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


__all__ = ["main"]
