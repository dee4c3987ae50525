"""What was found in the tiles of an image, on disk, so that a prediction that was stopped goes on where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from masklab.inference.tiles.merge import TileObjects
from masklab.masks.packed import PackedRLEs
from masklab.utils.files import atomic_write, make_folder
from masklab.utils.types import Box

_KEY = "image.json"
_ARRAYS = ("boxes", "scores", "labels", "bounds")


class TileStore:
    """A folder with a file for each tile of one image.

    ``key`` says what the tiles depend on: the image, the model and the options, as plain values.  Files of another key
    are removed.  Nothing is made or removed before the first tile is asked for.  A tile is written beside its place and
    renamed; one that cannot be read counts as missing.
    """

    def __init__(self, folder: str | Path, key: Any = None) -> None:
        self.folder = Path(folder)
        self._key = json.dumps(key, sort_keys=True)
        self._ready = False

    def _make(self) -> None:
        if self._ready:
            return
        written = self.folder / _KEY
        try:
            same = written.read_text(encoding="utf-8") == self._key
        except (OSError, UnicodeDecodeError):
            same = False
        if not same:
            self.remove()
            make_folder(self.folder)
            with atomic_write(written) as temporary:
                temporary.write_text(self._key, encoding="utf-8")
        self._ready = True

    def get(self, tile: Box) -> list[TileObjects] | None:
        """What was found in a tile, or in the parts that it was divided into; None if that is not known."""
        self._make()
        try:
            with np.load(self._path(tile), allow_pickle=False) as arrays:
                values = {name: arrays[name] for name in arrays.files}
            strings = values["counts"].tobytes().split(b"\n") if len(values["scores"]) else []
            parts, first = [], 0
            for (x1, y1, x2, y2), count in zip(values["tiles"].tolist(), values["lengths"].tolist(), strict=True):
                some = slice(first, first + count)
                first += count
                boxes, scores, labels, bounds = (values[name][some] for name in _ARRAYS)
                masks = PackedRLEs(strings[some])
                parts.append(TileObjects((x1, y1, x2, y2), boxes, scores, labels, bounds, masks))
        except Exception:  # a damaged file may raise almost anything
            return None
        return parts if first == len(strings) == len(values["scores"]) else None

    def put(self, tile: Box, found: list[TileObjects]) -> None:
        """Keep what was found in a tile."""
        strings = b"\n".join(text for part in found for text in part.masks.strings)
        arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in found]) for name in _ARRAYS}
        arrays["tiles"] = np.array([part.tile for part in found], np.int64)
        arrays["lengths"] = np.array([len(part) for part in found], np.int64)
        arrays["counts"] = np.frombuffer(strings, np.uint8)
        with atomic_write(self._path(tile)) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)

    def remove(self) -> None:
        """Remove the folder, once the results of the image are written elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, tile: Box) -> Path:
        return self.folder / "x{}_y{}_{}_{}.npz".format(*tile)


class KnownTiles:
    """What was found in some tiles of one image, in memory."""

    def __init__(self, found: dict[Box, list[TileObjects]]) -> None:
        self._found = dict(found)

    def get(self, tile: Box) -> list[TileObjects] | None:
        """What was found in a tile; None if that is not known."""
        return self._found.get(tile)

    def put(self, tile: Box, found: list[TileObjects]) -> None:
        """Keep what was found in a tile."""
        self._found[tile] = found
