"""Many run lengths in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import overload

from masklab.masks.rle import RLE, rle_from_string, rle_to_strings, rles_from_strings

_AT_ONCE = 4096


class PackedRLEs(Sequence[RLE]):
    """A sequence of `RLE` that are kept as COCO's compressed strings, a fifth of the size, and read when they are asked for.

    For the objects of an image of any size, of which there may be millions.
    """

    def __init__(self, strings: Iterable[bytes] = ()) -> None:
        self.strings = list(strings)

    @classmethod
    def of(cls, masks: Sequence[RLE]) -> PackedRLEs:
        """Pack run lengths; those that are packed stay as they are."""
        if isinstance(masks, PackedRLEs):
            return masks
        return cls(text.encode("ascii") for text in rle_to_strings(masks))

    @classmethod
    def joined(cls, parts: Iterable[PackedRLEs]) -> PackedRLEs:
        """The masks of all parts, one after the other."""
        return cls(chain.from_iterable(part.strings for part in parts))

    def take(self, rows: Sequence[int]) -> PackedRLEs:
        """The masks of some rows, in their order."""
        return PackedRLEs([self.strings[row] for row in rows])

    def __len__(self) -> int:
        return len(self.strings)

    @overload
    def __getitem__(self, n: int) -> RLE: ...

    @overload
    def __getitem__(self, n: slice) -> PackedRLEs: ...

    def __getitem__(self, n: int | slice) -> RLE | PackedRLEs:
        return PackedRLEs(self.strings[n]) if isinstance(n, slice) else rle_from_string(self.strings[n])

    def __iter__(self) -> Iterator[RLE]:
        for first in range(0, len(self.strings), _AT_ONCE):
            yield from rles_from_strings(self.strings[first : first + _AT_ONCE])
