"""Parsing of the command line, and exit codes."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from masklab import __version__
from masklab.cli.registry import GROUPS, VERBS, Verb
from masklab.utils.errors import BrokenLossError, FailedRunsError, FaultyDataError, InputError
from masklab.utils.failures import machine_error
from masklab.utils.log import any_encoding, terminal_messages
from masklab.utils.signals import exit_code, stop_signals

if TYPE_CHECKING:
    from jsonargparse import Namespace

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code.

    That is 0, 1 for work that failed, 2 for input that cannot be used, or 128 and the number of the signal that
    stopped the verb: 130 for Ctrl-C, 143 for SIGTERM.
    """
    # The waiting threads of OpenMP spin by default; with another process on the same cores, such as the one
    # that loads images, that makes a training step many times slower.  It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with any_encoding(), terminal_messages():
        try:
            with stop_signals():
                verb, parsed = parse(list(sys.argv[1:] if arguments is None else arguments))
                verb.run(parsed)
                sys.stdout.flush()  # or Python finds at its very end that nothing could be written
        except InputError as error:
            return _fail(str(error), 2)
        except (BrokenLossError, FailedRunsError, FaultyDataError) as error:
            return _fail(str(error), 1)
        except ModuleNotFoundError as error:
            library = (error.name or "masklab").split(".")[0]
            if library == "masklab":
                raise
            return _fail(f"{library} is not installed, which this needs: pip install masklab.", 2)
        except KeyboardInterrupt as stop:
            return _fail(str(stop) or "stopped.", exit_code(stop))
        except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
            _discard_output()
        except Exception as error:
            refused = machine_error(error)
            if refused is None:
                raise
            _discard_output()
            return _fail(str(refused), 1)
    return 0


def parse(words: list[str]) -> tuple[Verb, Namespace]:
    """The verb that the words begin with, and its parsed arguments.

    Raises `InputError` for words that cannot be understood, and `SystemExit` after ``--help`` and ``--version``.
    """
    for name, verb in VERBS.items():
        length = len(name.split())
        if words[:length] == name.split():
            return verb, _parse_arguments(name, verb, words[length:])
    _explain(words)


def _parse_arguments(name: str, verb: Verb, words: list[str]) -> Namespace:
    from jsonargparse import ArgumentError

    from masklab.cli.errors import explain, field_fault
    from masklab.cli.options import add_fields, field_defaults
    from masklab.cli.parser import new_parser
    from masklab.config import Config

    parser = new_parser(name, inspect.getdoc(verb.run) or "")
    verb.add_arguments(parser)
    try:
        if verb.config is not None:
            # The words are parsed twice: first to learn the recipe, then with its values as the defaults.
            add_fields(parser, Config())
            try:
                named = parser.parse_args([word for word in words if word not in ("-h", "--help")])
            except ArgumentError:
                pass  # the second pass says what is wrong, after --help
            else:
                parser.set_defaults(field_defaults(verb.config(named)))
        parsed = parser.parse_args(words)
    except ArgumentError as error:
        raise InputError(explain(str(error), words, name, parser, verb.config is not None)) from None
    if verb.config is not None and (fault := field_fault(words)):
        raise InputError(f"{fault}.")
    return parsed


def _explain(words: list[str]) -> NoReturn:
    """Print the help or the version; `InputError` where the words ask for neither."""
    group = words[0] if words and words[0] in GROUPS else ""
    prefix = f"{group} " if group else ""
    parser = _Overview(prog=f"masklab {group}".rstrip(), description=_sentence(GROUPS[group]), allow_abbrev=False)
    if not group:
        parser.add_argument("--version", action="version", version=f"masklab {__version__}")
    entries: dict[str, str] = {}
    for name, verb in VERBS.items():
        if name.startswith(prefix):
            first, _, rest = name.removeprefix(prefix).partition(" ")
            entries[first] = GROUPS[first] if rest else verb.help
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, text in entries.items():
        verbs.add_parser(name, help=text, add_help=False)
    parser.epilog = f"`{parser.prog} VERB --help` describes a verb and its options."
    parser.parse_args(words[1:] if group else words)
    parser.error("the verb must be the first word")  # after a separator, for example


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


class _Overview(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`.")


def _discard_output() -> None:
    """Leave out what is still to be written to stdout, if that is what failed: Python would try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    with suppress(OSError):  # stderr may be full too
        _log.error(message)
    return code
