"""Names of the files of an image's results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from masklab.images.read import IMAGE_SUFFIXES
from masklab.utils.errors import InputError
from masklab.utils.failures import only_this_file


@contextmanager
def naming_image(path: Path) -> Iterator[None]:
    """Context in which a file whose name the system refuses costs its image alone, which the error names."""
    try:
        yield
    except OSError as error:
        if not only_this_file(error):
            raise
        raise InputError(f"the results of {path} cannot be written: {error}.") from error


def label_of(path: Path) -> str:
    """An image's name without the suffix of an image; frame.001 and frame.002 stay apart."""
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def refuse_duplicate_names(images: Sequence[Path]) -> None:
    """Refuse two images whose results would have the same name, such as a.png and a.jpg."""
    seen: dict[str, Path] = {}
    for path in images:
        name = label_of(path)
        if name in seen:
            raise InputError(f"{seen[name]} and {path} would write the same results: predict them into two folders.")
        seen[name] = path
