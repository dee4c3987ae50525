"""TIFF files whose structure alone - pages, tags, strips - would take long to read, or much memory."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import tifffile

from masklab.utils.errors import InputError

MOST_PAGES = 4096
"""Of a TIFF, with the pages inside pages: tifffile compares each with all others."""
_MOST_SEGMENTS = 2**22  # strips or tiles: a slide of 400,000 x 400,000 pixels has 2.4 million
_MOST_TAGS = 2**17
_MOST_VALUES = 2**26  # bytes of values that tifffile reads with the tags
_SEGMENTS, _PAGES_INSIDE = (273, 324), 330  # codes of tags
_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # by type of tag, else 1


class _Tag(NamedTuple):
    code: int
    kind: int
    length: int
    value: bytes  # or where it is

    @property
    def size(self) -> int:
        return self.length * _BYTES.get(self.kind, 1)


def open_tiff_file(path: Path, alone: bool = False) -> tifffile.TiffFile:
    """Open a TIFF with tifffile; ``alone`` without the other files that it may name as parts of it.

    Raises `InputError` for one of too many pages, and `ValueError` for one of too many tags or strips.
    """
    with open(path, "rb") as file:
        _check_structure(file, path)
    return tifffile.TiffFile(path, _multifile=not alone)


def _check_structure(file: IO[bytes], path: Path) -> None:
    pages = segments = tags = values = 0
    for page in _Structure(file).pages():
        pages, tags = pages + 1, tags + len(page)
        segments += sum(tag.length for tag in page if tag.code in _SEGMENTS)
        values += sum(tag.size for tag in page if tag.code in tifffile.TIFF.TAG_LOAD)
        if pages > MOST_PAGES:
            raise InputError(
                f"{path} has over {MOST_PAGES} pages but a flat image is needed: "
                "save its planes, or their projection, as files of their own."
            )
        for what, number, most in (
            ("strips or tiles", segments, _MOST_SEGMENTS),
            ("tags", tags, _MOST_TAGS),
            ("bytes in its tags", values, _MOST_VALUES),
        ):
            if number > most:
                raise ValueError(f"it has {number} {what}, more than {most}")


class _Structure:
    """The pages of a TIFF, as far as they can be read: what is wrong with the others, tifffile says."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        beginning = file.read(4)
        order = "<" if beginning[:2] == b"II" else ">"
        big = beginning[2:] in (b"+\0", b"\0+")
        number, entry, place = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
        self.order, self.first = order, 8 if big else 4
        self.number, self.entry, self.place = (struct.Struct(order + form) for form in (number, entry, place))

    def pages(self) -> Iterator[list[_Tag]]:
        """The tags of each page and of the pages inside it, until one refers back, or to nothing."""
        seen = set[int]()
        following = self.first
        try:
            while (offset := self.read(self.place, following)) and offset not in seen:
                seen.add(offset)
                tags = self.tags(offset)
                yield tags
                for tag in tags:
                    if tag.code == _PAGES_INSIDE:
                        yield from map(self.tags_or_none, self.offsets(tag))
                count = self.read(self.number, offset)
                following = offset + self.number.size + count * self.entry.size
        except (OverflowError, struct.error):
            return

    def read(self, form: struct.Struct, offset: int) -> int:
        self.file.seek(offset)
        value: int = form.unpack(self.file.read(form.size))[0]
        return value

    def tags(self, offset: int) -> list[_Tag]:
        count = min(self.read(self.number, offset), _MOST_TAGS + 1)
        return [_Tag(*fields) for fields in self.entry.iter_unpack(self.file.read(count * self.entry.size))]

    def tags_or_none(self, offset: int) -> list[_Tag]:
        try:
            return self.tags(offset)
        except (OverflowError, struct.error):
            return []

    def offsets(self, tag: _Tag) -> tuple[int, ...]:
        """The values of a tag that lists places in the file; one more than `MOST_PAGES` at most."""
        form = {2: "H", 4: "I", 8: "Q"}.get(_BYTES.get(tag.kind, 1), "B")
        values = struct.Struct(f"{self.order}{min(tag.length, MOST_PAGES + 1)}{form}")
        if tag.size <= self.place.size:
            return values.unpack(tag.value[: values.size])
        self.file.seek(*self.place.unpack(tag.value))
        return values.unpack(self.file.read(values.size))
