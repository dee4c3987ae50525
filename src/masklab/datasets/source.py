"""What names a data set: a folder, a COCO file beside its images, or the files that it consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masklab.utils.errors import InputError


@dataclass(frozen=True)
class DataSource:
    """A data set and how it is read.

    ==================== ====================================================================================
    name                 meaning
    ==================== ====================================================================================
    ``path``             its folder, whose layout is recognised, or a COCO file beside its images
    ``annotations``      COCO files instead of ``path``; of several, each is the split that its name tells
    ``images``           the folders that the images of ``annotations`` are looked for in
    ``layout``           the name of its layout, where looking finds more than one
    ``split_components`` each connected piece of a mask is read as an object of its own
    ==================== ====================================================================================
    """

    path: Path | None = None
    annotations: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    layout: str | None = None
    split_components: bool = False

    def __str__(self) -> str:
        return ", ".join(map(str, self.annotations)) if self.path is None else str(self.path)


Data = str | Path | DataSource
"""A data set: its folder or a COCO file beside its images, or a `DataSource`."""


def as_source(data: Data) -> DataSource:
    """A data set as a `DataSource`."""
    return data if isinstance(data, DataSource) else DataSource(Path(data))


def named_source(
    path: str | Path | None,
    annotations: Path | Sequence[Path] | None,
    images: Path | Sequence[Path] | None,
    layout: str | None = None,
    split_components: bool = False,
) -> DataSource | None:
    """The data set of options of these names; None where they name none, `InputError` where they do not agree."""
    if bool(annotations) != bool(images):
        raise InputError("annotations and images belong together: give COCO files and the folders of their images.")
    if path is not None and annotations:
        raise InputError(f"both {path} and annotations name a data set: give one of them.")
    if path is None and not annotations:
        if layout:
            raise InputError(f"layout {layout} needs the folder of a data set: name it, or leave the layout out.")
        return None
    place = None if path is None else Path(path)
    return DataSource(place, _as_tuple(annotations), _as_tuple(images), layout, split_components)


def _as_tuple(paths: Path | Sequence[Path] | None) -> tuple[Path, ...]:
    if paths is None:
        return ()
    return (Path(paths),) if isinstance(paths, (str, Path)) else tuple(map(Path, paths))
