"""COCO JSON whose entries stay text until they are asked for.

A file of 118,000 images and 860,000 annotations opens in a fraction of the time of a whole parse.  A process keeps two
numbers for each entry, in arrays that worker processes share.
"""

from __future__ import annotations

import codecs
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from masklab.utils.errors import InputError
from masklab.utils.files import read_json

LISTS = ("images", "annotations", "categories")
_BOM = b"\xef\xbb\xbf"
_CHUNK = 1024  # entries read at once
_BLOCK = 2**20  # bytes
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Header(msgspec.Struct):
    """The fields that place an annotation, of any type; None where there is none."""

    image_id: Any = None
    category_id: Any = None
    iscrowd: Any = None


_as_value = msgspec.json.Decoder().decode
_as_header = msgspec.json.Decoder(Header).decode


class _Text(Protocol):
    """A text that is read in parts."""

    def parts(self, starts: Iterable[int], stops: Iterable[int]) -> list[bytes]: ...


@dataclass(frozen=True)
class _Memory:
    content: bytes

    def parts(self, starts: Iterable[int], stops: Iterable[int]) -> list[bytes]:
        return [self.content[start:stop] for start, stop in zip(starts, stops, strict=True)]


@dataclass(frozen=True)
class _File:
    """A file that is opened for each reading, so that processes and threads can share it."""

    path: Path
    version: tuple[int, int]

    def parts(self, starts: Iterable[int], stops: Iterable[int]) -> list[bytes]:
        found = []
        with open(self.path, "rb") as file:
            if _version(file.fileno()) != self.version:
                raise InputError(f"{self.path} has changed while it was in use; start again.")
            for start, stop in zip(starts, stops, strict=True):
                file.seek(start)
                found.append(file.read(stop - start))
        return found


def _version(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class JsonArray(Sequence[Any]):
    """Values of a JSON text: value ``k`` is what stands from ``starts[k]`` to ``stops[k]``, both ``(N,)`` int64.

    Reading one raises `InputError`, which names ``path``, where it is not JSON.
    """

    path: Path
    text: _Text
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        return self.take(np.array([range(len(self))[row]]))[0]

    def __iter__(self) -> Iterator[Any]:
        return map(self._value, self.texts())

    def take(self, rows: NDArray[np.int64]) -> list[Any]:
        """The values of some rows."""
        return [self._value(part) for part in self.text.parts(self.starts[rows].tolist(), self.stops[rows].tolist())]

    def texts(self) -> Iterator[bytes]:
        """The text of each value."""
        for first in range(0, len(self), _CHUNK):
            rows = slice(first, first + _CHUNK)
            yield from self.text.parts(self.starts[rows].tolist(), self.stops[rows].tolist())

    def headers(self) -> Iterator[Header]:
        """What places each annotation."""
        return map(self._header, self.texts())

    def _value(self, text: bytes) -> Any:
        try:
            return _as_value(text)
        except _UNREADABLE:  # such as NaN, which Python writes and reads
            pass
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path} is not JSON ({error}): replace or repair the file.") from None

    def _header(self, text: bytes) -> Header:
        try:
            return _as_header(text)
        except _UNREADABLE:
            value = self._value(text)
            known = value if isinstance(value, dict) else {}
            return Header(*(known.get(name) for name in Header.__struct_fields__))


@dataclass(frozen=True)
class CocoDocument:
    """The lists of a COCO file, and its other fields as they are; ``missing`` names the lists that it does not have."""

    path: Path
    images: JsonArray
    annotations: JsonArray
    categories: Any
    others: dict[str, Any]
    missing: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | Path, required: Sequence[str] = LISTS) -> CocoDocument:
        """Open a file; `InputError` names it when it is not JSON or one of the ``required`` lists is not there.

        ``annotations`` may also be an object with the annotations as values.
        """
        path = Path(path)
        try:
            with open(path, "rb") as file:
                text = _File(path, _version(file.fileno()))
                content = file.read()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); correct the path.") from None
        try:
            _check_utf8(content)
            document = cls._parse(path, text, content, len(_BOM) if content.startswith(_BOM) else 0)
        except _UNREADABLE:  # perhaps only for msgspec, which is strict; if not, json says where it is broken
            del content
            return cls.from_values(read_json(path), path, required)
        return document._checked(required)

    @classmethod
    def from_values(cls, values: Any, path: str | Path, required: Sequence[str] = LISTS) -> CocoDocument:
        """A document of a dictionary in COCO's form, which ``path`` names in messages."""
        if not isinstance(values, dict):
            values = {}
        others = {key: value for key, value in values.items() if key not in LISTS}
        missing = tuple(key for key in LISTS if not _is_list(key, values.get(key)))
        images, annotations = (_encoded(Path(path), [] if key in missing else values[key]) for key in LISTS[:2])
        categories = None if "categories" in missing else values["categories"]
        return cls(Path(path), images, annotations, categories, others, missing)._checked(required)

    def classes(self, used: Collection[int | str]) -> Any:
        """``categories`` without one that only stands above all others, as Roboflow writes it, unless it is ``used``."""
        if not isinstance(self.categories, list) or not all(isinstance(entry, dict) for entry in self.categories):
            return self.categories
        above = Counter(name for entry in self.categories if isinstance(name := entry.get("supercategory"), str))
        for entry in self.categories:
            name, own, others = entry.get("name"), entry.get("supercategory"), len(self.categories) - 1
            if others and isinstance(name, str) and own in ("none", "", None):
                is_above = above[name] - (own == name) == others
                if is_above and entry.get("id") not in used:
                    return [other for other in self.categories if other is not entry]
        return self.categories

    @classmethod
    def _parse(cls, path: Path, text: _Text, content: bytes, begin: int) -> CocoDocument:
        view = memoryview(content)[begin:]
        fields = msgspec.json.decode(view, type=dict[str, msgspec.Raw])
        first = _address(content)
        arrays, missing = {}, [key for key in LISTS if key not in fields]
        for key in ("images", "annotations"):
            try:
                rows = _rows(fields.get(key, msgspec.Raw(b"[]")), key)
            except msgspec.ValidationError:
                rows, missing = [], [*missing, key]
            starts = np.array([_address(row) - first for row in rows], np.int64)
            arrays[key] = JsonArray(
                path, text, starts, starts + np.array([len(memoryview(row)) for row in rows], np.int64)
            )
        categories = _as_value(fields["categories"]) if "categories" in fields else None
        if "categories" in fields and not isinstance(categories, list):
            missing.append("categories")
        others = {key: _as_value(raw) for key, raw in fields.items() if key not in LISTS}
        return cls(path, arrays["images"], arrays["annotations"], categories, others, tuple(missing))

    def _checked(self, required: Sequence[str]) -> CocoDocument:
        for key in required:
            if key in self.missing:
                raise InputError(f"{self.path} is not a COCO file: it has no list {key!r}; name another file.")
        return self


def _check_utf8(content: bytes) -> None:
    """Raise `UnicodeDecodeError` for a text that is none, which reading it in parts would find late."""
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(content)
    for first in range(0, len(content), _BLOCK):
        decoder.decode(view[first : first + _BLOCK])
    decoder.decode(b"", final=True)


def _rows(raw: msgspec.Raw, key: str) -> list[msgspec.Raw]:
    """The texts of a list's entries, or of an object's values where they are annotations."""
    if key == "annotations" and bytes(memoryview(raw)[:1]) == b"{":
        return list(msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).values())
    return msgspec.json.decode(raw, type=list[msgspec.Raw])


def _is_list(key: str, value: Any) -> bool:
    return isinstance(value, list) or (key == "annotations" and isinstance(value, dict))


def _address(part: Any) -> int:
    return int(np.frombuffer(part, np.uint8).__array_interface__["data"][0])


def _encoded(path: Path, values: Any) -> JsonArray:
    """Values as text in memory."""
    texts = [json.dumps(value).encode() for value in (values.values() if isinstance(values, dict) else values)]
    stops = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return JsonArray(path, _Memory(b"".join(texts)), stops - np.array([len(text) for text in texts], np.int64), stops)
