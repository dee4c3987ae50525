"""What is wrong with the words of a command, in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import yaml

from masklab.utils.words import as_written, nearest

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def explain(message: str, words: list[str], name: str, parser: ArgumentParser, has_fields: bool) -> str:
    """The ``message`` of jsonargparse on the words of the verb ``name`` as one sentence with a next step.

    ``has_fields`` says that the verb takes the fields of the configuration as options.
    """
    sentence = (
        (field_fault(words) if has_fields else None) or _value(message, words, parser) or _unknown(message, parser)
    )
    text = sentence or " ".join(message.split()).replace("Parser key ", "").rstrip(". ")
    return f"{text}." if text.count("--help") else f"{text}; see `masklab {name} --help`."


def field_fault(words: list[str]) -> str | None:
    """What is wrong with the first field of the configuration that cannot be used; None for nothing."""
    from pydantic import ValidationError

    from masklab.config import Config
    from masklab.config.nested import merge
    from masklab.config.words import field_error

    values: dict[str, Any] = {}
    for option, value in _options(words):
        *sections, last = option.split(".")
        if value is None or option.endswith("+"):  # jsonargparse takes --list+ to append
            continue
        if not (sections or last in Config.model_fields):
            continue
        nested: Any = {last: _read(value)}
        for section in reversed(sections):
            nested = {section: nested}
        values = merge(values, nested)
    try:
        Config.model_validate(values)
    except ValidationError as error:
        # a number may be the name of a file; errors of several fields together depend on those that were not given
        wrong = [each for each in error.errors() if each["type"] not in ("path_type", "string_type", "value_error")]
        return field_error(Config, wrong[0], values) if wrong else None
    return None


def _options(words: list[str]) -> Iterator[tuple[str, str | None]]:
    """The options among the words, without their dashes, with the value that follows, None for none."""
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            option, equals, value = word[2:].partition("=")
            yield option, value if equals else None if following.startswith("--") else following


def _read(value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _value(message: str, words: list[str], parser: ArgumentParser) -> str | None:
    """What is wrong with the value of an option that is no field."""
    from masklab.config.words import allowed

    if choice := re.match(r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)", message):
        return f"{choice[1]} is {choice[2]} but must be one of {choice[3].replace(chr(39), '')}"
    if missing := re.match(r"argument (\S+): expected (?:one|at least one) argument", message):
        return f"{missing[1]} has no value: write it after the name"
    key = re.match(r'(?:Parser key )?"([\w.]+)"', message)
    action = next((action for action in parser._actions if key and action.dest == key[1]), None)
    kind = getattr(action, "_typehint", None)
    if action is None or kind is None or not action.option_strings:
        return None
    given = dict(_options(words)).get(action.dest)
    if wrong := re.search(r"element \d+:.*Got value: (.*)", message, re.DOTALL):
        given = wrong[1]
    value = _read(given or "")
    shown = as_written(given if isinstance(value, str) else value)
    return f"{action.option_strings[0]} is {shown} but must be {allowed(kind)}"


def _unknown(message: str, parser: ArgumentParser) -> str | None:
    """Words that are no arguments, with the option that was probably meant."""
    unknown = re.match(r"unrecognized arguments: (.*)", message)
    if unknown is None:
        return None
    if unknown[1] in ("true", "false"):
        return f"{message}; options such as --resume are switched on by their name alone: leave the value out"
    options = [option for action in parser._actions for option in action.option_strings]
    meant = nearest(unknown[1].split()[0].partition("=")[0], options)
    return f"{message} (did you mean {meant}?)" if meant else None
