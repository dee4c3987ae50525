"""Folder of results: what was found in each image, on disk as soon as the image is done, and taken up again after a stop.

Of each image that is done there is a record, ``records/NAME.jsonl``: on its first line what the results depend on and
a few counts, on the second all detections.  It is written after the image's other files, and files of all images
together, such as ``predictions.json``, are made from the records at the end.  So a program that is killed loses
at most the few images it was at.

A record holds for an image if three things are the same: the settings (options, threshold, weights, versions and category
ids), the formats, at least, and the image itself, by its size, its time of change and a checksum of pieces of
its content (see `image_state`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from masklab.images.state import image_state
from masklab.inference.listing import Listing
from masklab.inference.result_names import label_of, naming_image, refuse_duplicate_names
from masklab.inference.tiles.store import TileStore
from masklab.results.formats.base import Entries, Format, Result, check_packages, entries
from masklab.results.formats.registry import DEFAULT, format_named
from masklab.results.instances import Instances
from masklab.results.pixels import ImageReader, as_pixel_size, as_reader
from masklab.utils.errors import InputError
from masklab.utils.files import atomic_write, file_name, make_folder

RECORDS = "records"


class Totals(NamedTuple):
    """Counts over the images of a folder that are done.

    ``found`` counts objects of at least the threshold, ``detections`` all, ``full`` images with as many objects as the
    model may find, ``kept`` images that an earlier run did.
    """

    images: int
    found: int
    detections: int
    full: int
    kept: int


class ResultFolder:
    """The results of images in a folder.

    For each of ``images``, a caller asks `done`, and if it is not, predicts it and calls `add`; `finish` then writes what
    belongs to all images.  ``settings`` are all that results depend on besides the image, as plain values; they become
    ``settings.json``.  ``listing`` gives images and classes the ids of a COCO JSON.  Without ``resume``, nothing that is in the folder counts as
    done.  Several processes may share a folder if each adds other images and the last one asks `done` of all.

    Raises `InputError` for an unknown format and one whose package is missing, for images that would write the same
    files, and for an output folder in which a result would replace an image.
    """

    def __init__(
        self,
        output: str | Path,
        images: Sequence[Path],
        settings: Mapping[str, Any],
        threshold: float,
        formats: Sequence[str] = DEFAULT,
        listing: Listing | None = None,
        resume: bool = False,
    ) -> None:
        self.formats = [format_named(name) for name in dict.fromkeys(formats)]
        for format in self.formats:
            check_packages(format)
        self.images, self.settings, self.threshold, self.listing = list(images), settings, threshold, listing
        self._resume = resume
        self._settings_id = _digest([settings, threshold, listing and sorted((listing.category_ids or {}).items())])
        self._headers: dict[Path, dict[str, Any]] = {}
        self._states: dict[Path, list[Any]] = {}
        self._kept = 0
        refuse_duplicate_names(self.images)
        self.path = make_folder(output)
        self._refuse_overwriting()
        self._records = self.path / RECORDS
        if self._records.exists():
            make_folder(self._records)  # refuses a file of that name
        self._records.mkdir(exist_ok=True)

    @property
    def measures(self) -> bool:
        """Whether a format takes from `add` the image as it is in the file: its own values, the size of its pixels."""
        return any(format.measures for format in self.formats)

    @property
    def main_file(self) -> Path:
        """The first file of all images together, or else the folder."""
        return next((self.path / format.combined for format in self.formats if format.combined), self.path)

    def files(self) -> list[str]:
        """What the folder holds, in words, for messages."""
        combined = [str(self.path / format.combined) for format in self.formats if format.combined]
        own = [format.name for format in self.formats if format.combine is None]
        return [*combined, *([f"in {self.path}, for each image: {' '.join(own)}"] if own else [])]

    def done(self, path: Path) -> bool:
        """Whether the results of an image stand in the folder; to be asked before the image is read.

        Raises `InputError` for an image that cannot be read.
        """
        self._states[path] = image_state(path)
        header = self._read_header(path) if self._resume else None
        if header is None or not self._fits(header, path):
            return False
        if any(not target.is_file() for _, target in self._targets(path)):
            return False
        self._kept += path not in self._headers
        self._headers[path] = header
        return True

    def tiles(self, path: Path) -> TileStore:
        """What was found so far in the tiles of a large image, until it is done; to be asked after `done`."""
        store = TileStore(self._tiles(path), {"settings": self._settings_id, "image": self._states[path]})
        if not self._resume:
            store.remove()
        return store

    def add(
        self,
        path: Path,
        instances: Instances,
        image: ImageReader | NDArray[Any] | None = None,
        *,
        shown: ImageReader | NDArray[np.uint8] | None = None,
        value_range: tuple[float, float] | None = None,
        full: bool = False,
    ) -> None:
        """Write the results of an image: all of them, in the order of the model.

        ``image`` has the file's own values, ``shown`` uint8 ``(3, H, W)`` for an overlay; either is an array or a reader of windows.
        The ``pixel_size`` of a reader is in micrometres; ``value_range`` is the intensities that were made black and white for this image
        alone, and ``full`` says that there may be more objects.

        Raises `InputError` where the files cannot have their names.
        """
        state = self._states.pop(path, None) or image_state(path)
        if self.listing is not None and self.listing.category_ids is not None:
            instances = instances.of_labels(self.listing.category_ids)
        found = instances.above(self.threshold)
        header = {
            "settings": self._settings_id,
            "image": state,
            "image_id": self._image_id(path),
            "formats": [format.name for format in self.formats],
            "found": len(found),
            "detections": len(instances),
            "full": full,
            "value_range": value_range,
        }
        before = self._read_header(path)
        if before is not None and not self._fits(before, path, state):
            self._record(path).unlink(missing_ok=True)  # else it would vouch for files that are replaced now
        whole = Result(
            instances,
            path.name,
            as_reader(image, instances.size),
            as_reader(shown, instances.size),
            as_pixel_size(getattr(image, "pixel_size", None)),
        )
        with naming_image(path):
            for format, target in self._targets(path):
                with atomic_write(target) as temporary:
                    format.write(temporary, whole if format.every else whole._replace(instances=found))
            with atomic_write(self._record(path)) as temporary:
                lines = (header, *self._entries(instances, path))
                temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="ascii")
        self._headers[path] = header
        TileStore(self._tiles(path)).remove()

    def finish(self) -> Totals:
        """Write the files of all images together, in the order in which the images were given, and ``settings.json``."""
        for format in self.formats:
            if format.combine is not None and format.combined is not None:
                with atomic_write(self.path / format.combined) as temporary:
                    format.combine(temporary, self._all_entries())
        settings = dict(self.settings)
        if settings.get("stretched"):
            settings["stretched"] = {
                path.name: self._headers[path]["value_range"] for path in self.images if path in self._headers
            }
        with atomic_write(self.path / "settings.json") as temporary:
            temporary.write_text(json.dumps(settings, indent=1))
        found, detections, full = (
            sum(header[key] for header in self._headers.values()) for key in ("found", "detections", "full")
        )
        return Totals(len(self._headers), found, detections, full, self._kept)

    def _targets(self, path: Path) -> list[tuple[Format, Path]]:
        """The files of an image, besides its record."""
        return [
            (format, self.path / file_name(label_of(path), format.ending))
            for format in self.formats
            if format.combine is None
        ]

    def _tiles(self, path: Path) -> Path:
        return self._records / file_name(label_of(path), ".tiles")

    def _record(self, path: Path) -> Path:
        return self._records / file_name(label_of(path), ".jsonl")

    def _image_id(self, path: Path) -> int | str:
        return path.name if self.listing is None else self.listing.images[path].image_id

    def _entries(self, instances: Instances, path: Path) -> Entries:
        """The detections of an image, under its name or the ids of a JSON."""
        found = entries(instances, path.name, self._image_id(path))
        if self.listing is not None and self.listing.category_ids is not None:
            for entry, label in zip(found.entries, found.labels, strict=True):
                entry["category_id"] = self.listing.category_ids[label]
        return found

    def _all_entries(self) -> Iterator[Entries]:
        for path in self.images:
            if path in self._headers:
                try:
                    with open(self._record(path), encoding="ascii") as file:
                        header, found, labels = (json.loads(line) for line in file)
                except (OSError, ValueError):
                    header = found = labels = None
                if header is None or not self._fits(header, path, self._headers[path]["image"]):
                    raise InputError(
                        f"{self._record(path)} was removed or replaced meanwhile: run the same command again with --resume."
                    )
                yield Entries(found, labels)

    def _read_header(self, path: Path) -> dict[str, Any] | None:
        """The first line of an image's record, None where there is none or it is damaged."""
        with suppress(OSError, ValueError), open(self._record(path), encoding="ascii") as file:
            header = json.loads(file.readline())
            if isinstance(header, dict):
                return header
        return None

    def _fits(self, header: dict[str, Any], path: Path, state: list[Any] | None = None) -> bool:
        """Whether a record is of the same settings, formats and image."""
        wanted = {"settings": self._settings_id, "image": state or self._states[path], "image_id": self._image_id(path)}
        formats = {format.name for format in self.formats if format.combine is None}
        return all(header.get(key) == value for key, value in wanted.items()) and formats <= set(
            header.get("formats", ())
        )

    def _refuse_overwriting(self) -> None:
        """Refuse an output folder in which a result would replace an image, or a file that is no result.

        Annotations lie beside images under the same names.  A folder without records was not written here; overlays alone
        are replaced there, as those of versions that kept no records.
        """
        images = {_file_id(path): path for path in self.images if path.exists()}
        is_ours = (self.path / RECORDS).is_dir()
        for path in self.images:
            for format, target in self._targets(path):
                if not target.exists():
                    continue
                if replaced := images.get(_file_id(target)):
                    own = "it" if replaced == path else replaced
                    raise InputError(f"the {format.name} of {path} would be written over {own}: name another --output.")
                if not is_ours and format.name != "overlay":
                    raise InputError(
                        f"{target} exists in a folder that holds no results, so it may be an annotation: name another --output."
                    )


def _file_id(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _digest(values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()
