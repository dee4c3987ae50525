"""Image files of a folder, and what is left out of it."""

from __future__ import annotations

from collections.abc import Iterable
from os.path import exists, isdir, isfile, islink
from pathlib import Path

from masklab.images.opened import ZARR_SUFFIX, is_zarr
from masklab.images.read import IMAGE_SUFFIXES
from masklab.utils.errors import InputError

_NAMED = 5  # files: more names would make the sentence long
_OTHER_PURPOSE = frozenset(
    {".csv", ".db", ".geojson", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".pdf", ".tsv", ".txt"}
    | {".xlsx", ".xml", ".yaml", ".yml"}
)
"""Suffixes of files that lie beside images and that nobody takes for one."""
_BEGINNINGS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8", b"BM")


def list_images(path: str | Path) -> list[Path]:
    """The image itself if ``path`` is a file, else the images directly inside the folder in order of name.

    A folder of OME-Zarr, by its suffix .zarr, is one image.
    Files without a suffix, or with a number as suffix, are images if they begin as PNG, JPEG, TIFF, GIF or BMP do.
    Hidden files are left out.  Raises `InputError` if ``path`` does not exist, cannot be listed, or holds no image.
    """
    path = Path(path)
    if isfile(path) or is_zarr(path):
        return [path]
    if not isdir(path):
        raise InputError(f"{path}: there is no such image or folder; correct the path.")
    entries = _entries(path)
    found = [entry for entry in entries if _is_image(entry)]
    if found:
        return found
    seen = _left_out(entries) or [entry for entry in entries if isdir(entry)]
    but = f", but {_some(seen)}" if seen else ""
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    raise InputError(f"{path} holds no image ({suffixes}){but}; convert what it holds or name another folder.")


def left_out(sources: Iterable[str | Path]) -> str | None:
    """A sentence on the files that `list_images` leaves out of folders, with advice; None if there are none.

    Hidden files and those of text and tables are not counted.
    """
    others = [
        entry
        for source in map(Path, sources)
        if isdir(source) and not is_zarr(source)
        for entry in _left_out(_entries(source))
    ]
    if not others:
        return None
    broken = sum(map(_is_broken_link, others))
    advice = ["convert them to PNG or TIFF"] * (broken < len(others)) + ["restore the broken links"] * (broken > 0)
    return f"left out: {_some(others)}: {', and '.join(advice)}."


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.name[0] != ".")
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror}); change its rights.") from None


def _is_image(entry: Path) -> bool:
    suffix = entry.suffix.lower()
    if not isfile(entry):
        return is_zarr(entry)
    return (suffix in IMAGE_SUFFIXES and suffix != ZARR_SUFFIX) or (
        (not suffix or suffix[1:].isdecimal()) and _begins_as_image(entry)
    )


def _begins_as_image(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith(_BEGINNINGS)
    except OSError:
        return False


def _left_out(entries: list[Path]) -> list[Path]:
    """Files of a folder that may be images and are not read."""
    return [
        entry
        for entry in entries
        if not isdir(entry) and entry.suffix.lower() not in _OTHER_PURPOSE and not _is_image(entry)
    ]


def _is_broken_link(entry: Path) -> bool:
    return islink(entry) and not exists(entry)


def _some(entries: list[Path]) -> str:
    """Their number and the first names; they are all files or all folders."""
    noun = "folder" if isdir(entries[0]) else "file"
    names = [f"{entry.name} (a broken link)" if _is_broken_link(entry) else entry.name for entry in entries[:_NAMED]]
    more = ", ..." if len(entries) > _NAMED else ""
    return f"{len(entries)} {noun}{'' if len(entries) == 1 else 's'} ({', '.join(names)}{more})"
