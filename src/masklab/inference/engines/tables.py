"""Folder of results as Parquet tables that many machines fill.

::

    objects/NAME.parquet    the objects, in the columns of the format parquet
    images/NAME.parquet     the images that are done, also those without objects
    failed.parquet          the images of the last run that failed, and why
    settings.json           what the results depend on
    tiles/                  what was found so far in the tiles of large images

A shard of objects and one of images have the same name, a checksum of the images in them, and are written in this order:
the second vouches for the first.  So after a stop at any time, what has no voucher is removed, and an image
is either done or to be done.  A shard of an image that has changed since is written anew without it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masklab.inference.engines.places import Place, states
from masklab.inference.engines.work import Found, LargeImage
from masklab.inference.output import RECORDS, Totals
from masklab.inference.tiles.store import TileStore
from masklab.results.formats.parquet import as_text, to_table
from masklab.utils.errors import InputError
from masklab.utils.files import atomic_write, file_name, make_folder, read_json
from masklab.utils.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

_TILES = "tiles"
_ROWS = 200_000  # objects, of a shard
_IMAGES = 5_000
_SECONDS = 30.0  # after which a shard is written, however small: what a stop may lose


class Tables:
    """The results of images in a folder of tables, which one process writes.

    ``settings`` are all that results depend on besides the images, as plain values.  Raises `InputError` for a folder that
    holds other results.
    """

    def __init__(self, output: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = make_folder(output)
        self._settings = json.loads(json.dumps(settings))
        file = self.path / "settings.json"
        if (self.path / RECORDS).exists():
            raise InputError(f"{self.path} holds results that were not written by --engine ray: name another --output.")
        if file.exists() and read_json(file) != self._settings:
            raise InputError(
                f"{self.path} holds results of another model, other options or other versions: name another --output."
            )
        self._objects, self._images = make_folder(self.path / "objects"), make_folder(self.path / "images")
        self._waiting: list[Found] = []
        self._since = time.monotonic()
        self._rows: dict[str, dict[str, Any]] = {}  # of the images that are done, by name
        self._failed: dict[str, tuple[Place, str]] = {}
        self._given: list[Place] = []
        self._kept = 0
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(self._settings, indent=1))

    def start(self, places: Sequence[Place]) -> list[Place]:
        """Mend the tables after a stop, and give the images that are still to be done.

        Raises `InputError` for an image with the name of another one that is done.
        """
        self._given = list(places)
        given = {as_text(place.name): place for place in places}
        now = dict(zip(given, states(places), strict=True))
        for file in sorted(self.path.rglob(".*.part")):  # what a process that was killed was writing
            file.unlink(missing_ok=True)
        for shard in sorted(self._objects.glob("*.parquet")):
            if not (self._images / shard.name).exists():
                shard.unlink()
        for shard in sorted(self._images.glob("*.parquet")):
            table = _read(shard)
            rows = [] if table is None else table.to_pylist()
            kept = [row for row in rows if self._holds(row, given, now)]
            self._mend(shard, rows, kept)
            self._rows |= {row["file_name"]: row for row in kept}
        missing = [place for name, place in given.items() if name not in self._rows or now[name] is None]
        self._kept = len(places) - len(missing)
        return missing

    def _holds(self, row: dict[str, Any], given: dict[str, Place], now: dict[str, Any]) -> bool:
        """Whether a row of the table of images is still right; those of images that are not given are."""
        name = row["file_name"]
        state = now.get(name)
        if name in self._rows:
            return False
        if state is None or json.loads(row["state"]) == state:
            return True
        if row["address"] != as_text(given[name].address):
            raise InputError(
                f"{self.path} holds the results of {row['address']}, and {given[name].address} has the same name: predict "
                "it into another folder."
            )
        return False

    def _mend(self, images: Path, rows: list[dict[str, Any]], kept: list[dict[str, Any]]) -> None:
        """Leave in a shard what is kept, and nothing else."""
        import pyarrow as pa
        import pyarrow.compute as pc

        file = self._objects / images.name
        count = sum(row["objects"] for row in kept)
        if kept and len(kept) == len(rows) and _rows_of(file) == count:
            return
        objects = _read(file) if kept else None
        if objects is not None:
            names = pa.array([row["file_name"] for row in kept], pa.string())
            objects = objects.filter(pc.is_in(objects["file_name"], names))
        if objects is None or objects.num_rows != count:
            if kept:
                _log.warning("%s is damaged or missing: %s again.", file, counted(len(kept), "image"))
            kept.clear()
            images.unlink()
            file.unlink(missing_ok=True)
        else:
            _write(images, pa.Table.from_pylist(kept, _images_schema()))
            _write(file, objects)

    def tiles(self, image: LargeImage) -> TileStore:
        """What was found so far in the tiles of an image."""
        key = {"settings": self._settings, "image": image.state, "address": as_text(image.place.address)}
        return TileStore(self._tiles(image.place), key)

    def _tiles(self, place: Place) -> Path:
        return self.path / _TILES / file_name(as_text(place.name), ".tiles")

    def add(self, found: Found) -> None:
        """Take the results of an image; they are written together with others, in time.  A second result is left out."""
        name = as_text(found.place.name)
        if name in self._rows:
            if json.loads(self._rows[name]["state"]) != found.state:
                self.fail(found.place, f"{found.place.address} could not be read before: run the same command again.")
            return
        black, white = found.value_range or (None, None)
        self._rows[name] = {
            "file_name": name,
            "address": as_text(found.place.address),
            "height": found.size[0],
            "width": found.size[1],
            "objects": found.objects.num_rows,
            "found": found.found,
            "full": found.full,
            "black": black,
            "white": white,
            "state": json.dumps(found.state),
        }
        self._waiting.append(found)
        if (
            len(self._waiting) >= _IMAGES
            or sum(each.objects.num_rows for each in self._waiting) >= _ROWS
            or time.monotonic() - self._since > _SECONDS
        ):
            self.commit()

    def fail(self, place: Place, reason: str) -> None:
        """Note that an image cannot be used."""
        if place.name not in self._failed:
            _log.warning("%s", reason if place.address in reason else f"{place.address}: {reason}")
            self._failed[place.name] = place, reason

    def commit(self) -> None:
        """Write what is waiting."""
        import pyarrow as pa

        self._since = time.monotonic()
        if not self._waiting:
            return
        rows = [self._rows[as_text(found.place.name)] for found in self._waiting]
        content = json.dumps(sorted((row["file_name"], row["state"]) for row in rows))
        name = f"{hashlib.blake2b(content.encode(), digest_size=10).hexdigest()}.parquet"
        _write(self._objects / name, pa.concat_tables([to_table([]), *(found.objects for found in self._waiting)]))
        _write(self._images / name, pa.Table.from_pylist(rows, _images_schema()))
        if (self.path / _TILES).exists():
            for found in self._waiting:
                TileStore(self._tiles(found.place)).remove()
        self._waiting.clear()

    def finish(self) -> tuple[Totals, int]:
        """Write what remains and the table of failures; the counts of the images given, and the number of failures."""
        import pyarrow as pa

        self.commit()
        failed = [
            {"file_name": as_text(place.name), "address": as_text(place.address), "reason": as_text(reason)}
            for place, reason in self._failed.values()
        ]
        schema = pa.schema([(name, pa.string()) for name in ("file_name", "address", "reason")])
        _write(self.path / "failed.parquet", pa.Table.from_pylist(failed, schema))
        with suppress(OSError):
            (self.path / _TILES).rmdir()
        rows = [self._rows[name] for place in self._given if (name := as_text(place.name)) in self._rows]
        found, objects, full = (sum(row[key] for row in rows) for key in ("found", "objects", "full"))
        return Totals(len(rows), found, objects, full, self._kept), len(failed)


def _images_schema() -> pa.Schema:
    import pyarrow as pa

    texts, numbers = ("file_name", "address"), ("height", "width", "objects", "found")
    return pa.schema(
        [
            *((name, pa.string()) for name in texts),
            *((name, pa.int32()) for name in numbers),
            ("full", pa.bool_()),
            ("black", pa.float64()),
            ("white", pa.float64()),
            ("state", pa.string()),
        ]
    )


def _write(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _rows_of(path: Path) -> int | None:
    """The number of rows of a table of ours, None where it is missing or its end is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with suppress(OSError, pa.ArrowException):
        rows: int = pq.read_metadata(path).num_rows
        return rows
    return None


def _read(path: Path) -> pa.Table | None:
    """A table of ours, None where it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with suppress(OSError, pa.ArrowException), open(path, "rb") as file:
        return pq.read_table(file)
    return None
