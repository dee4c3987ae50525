"""What a field of the configuration may hold, and what is wrong with one, in plain words."""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from masklab.utils.words import as_written, nearest


def allowed(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """The values of a type, such as "a whole number of 1 or more, or auto"; ``metadata`` has its limits."""
    metadata = list(metadata)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [limit for m in inner[1:] for limit in (m.metadata if isinstance(m, FieldInfo) else [m])]
        return allowed(inner[0], [*metadata, *limits])
    if origin in (Union, types.UnionType):
        return ", or ".join(allowed(one, metadata) for one in inner)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0])
    if origin is list:
        least, most = (
            max((getattr(m, side, 0) or 0 for m in metadata), default=0) for side in ("min_length", "max_length")
        )
        few = f"{least} to {most} entries" if least else f"at most {most} entries"
        return f"a list in brackets, {f'with {few}, ' if most else ''}each {allowed(inner[0])}"
    if origin is tuple:
        return f"a list in brackets of {len(inner)} entries, each {allowed(inner[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a group of fields, such as {next(iter(annotation.model_fields))}"
    simple = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path", type(None): "null"}
    return simple.get(annotation, "text") + (_limits(metadata) if annotation in (int, float) else "")


def _limits(metadata: Iterable[Any]) -> str:
    limit = {
        name: f"{int(value) if value == int(value) else value}"
        for m in metadata
        for name in ("gt", "ge", "lt", "le", "multiple_of")
        if (value := getattr(m, name, None)) is not None and not isinstance(m, annotated_types.Interval)
    }
    if "ge" in limit and "le" in limit:
        words = [f"from {limit['ge']} to {limit['le']}"]
    else:
        words = [f"of {limit['ge']} or more"] if "ge" in limit else []
        words += [f"above {limit['gt']}"] if "gt" in limit else []
        words += [f"below {limit['lt']}"] if "lt" in limit else []
        words += [f"of at most {limit['le']}"] if "le" in limit else []
    words += [f"divisible by {limit['multiple_of']}"] if "multiple_of" in limit else []
    return "".join(f" {word}" if n == 0 else f" and {word}" for n, word in enumerate(words))


def field_error(config: type[BaseModel], error: Any, values: Any) -> str:
    """One error of pydantic's, without a full stop: the field, its value as it is written, and what is allowed."""
    location: Sequence[Any] = error["loc"]
    if error["type"] == "extra_forbidden":
        return _unknown_field(config, location)
    path: list[str] = []
    annotation: Any = config
    metadata: list[Any] = []
    value = values
    for part in location:
        fields = annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else {}
        if part not in fields:
            break
        path.append(part)
        annotation, metadata = fields[part].annotation, fields[part].metadata
        value = value.get(part) if isinstance(value, dict) else error["input"]
    name = ".".join(path)
    if error["type"] == "value_error":  # a check of several fields, which says itself what is wrong
        return f"{name}: {error['ctx']['error']}" if name else str(error["ctx"]["error"])
    return f"{name} is {as_written(value)} but must be {allowed(annotation, metadata)}"


def _unknown_field(config: type[BaseModel], location: Sequence[Any]) -> str:
    names = [".".join(path) for path in _paths(config)]
    parent, _, last = ".".join(map(str, location)).rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == parent}
    anywhere = {name.rpartition(".")[2]: name for name in names}
    meant = next((known[near] for known in (beside, anywhere) if (near := nearest(last, known))), None)
    guess = f"did you mean {meant}? " if meant else ""
    name = f"{parent}.{last}" if parent else last
    return f"{name}: no such field; {guess}`masklab train --help` lists the fields{f' of {parent}' if parent else ''}"


def _paths(section: type[BaseModel]) -> Iterable[list[str]]:
    """The names of all fields and sections, those of a section after it."""
    for name, field in section.model_fields.items():
        yield [name]
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from ([name, *path] for path in _paths(field.annotation))
