"""The parser of a verb, whose help says in words what an option may hold."""

from __future__ import annotations

from argparse import Action

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from masklab.config.words import allowed


class _InWords(DefaultHelpFormatter):
    def _get_help_string(self, action: Action) -> str:
        """jsonargparse's, with "a path, or null" in place of "type: Path | null"."""
        text: str = super()._get_help_string(action)
        kind = getattr(action, "_typehint", None) or action.type
        return text if kind is None else text.replace("type: %(type)s", allowed(kind).replace("%", "%%"))


def new_parser(name: str, description: str) -> ArgumentParser:
    """A parser of the words after ``masklab NAME``; it raises `ArgumentError` in place of ending the process."""
    return ArgumentParser(
        prog=f"masklab {name}", description=description, formatter_class=_InWords, exit_on_error=False
    )
