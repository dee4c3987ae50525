"""Images on disks and in object stores: where they are, whether they changed, and a file to read them from."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from masklab.images.listing import left_out, list_images
from masklab.images.opened import ZARR_SUFFIX
from masklab.images.read import IMAGE_SUFFIXES
from masklab.images.state import image_state
from masklab.utils.errors import InputError

_log = logging.getLogger(__name__)

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_OF_ADDRESSES = "%:/?&=@#+,;$!*'()[]~"
_READING = 16  # files at a time whose state is looked at


@dataclass(frozen=True)
class Place:
    """Where an image is.

    ``path`` is a local path, or one in ``filesystem`` of pyarrow; ``state`` is what the listing of an object store says of
    the image, None for a local one.  ``address`` is for messages and tables, without a password that its source may hold.
    """

    name: str
    address: str
    path: str
    filesystem: Any = None
    state: tuple[int, int] | None = None

    def current_state(self) -> list[Any]:
        """What tells whether the image is still the same; `InputError` for one that cannot be read."""
        return image_state(Path(self.path)) if self.state is None else list(self.state)

    def naming(self, reason: str, file: Path) -> str:
        """A sentence on the ``file`` that the image was fetched to, on the image instead."""
        return reason.replace(str(file), self.address)


def find_places(sources: Sequence[str]) -> list[Place]:
    """The images of files, folders and addresses such as ``s3://bucket/folder``, in the order of these and of names.

    Of an address the images are known by their suffixes.  Raises `InputError` as `list_images` does, and for two images of
    one name, whose objects no table could tell apart.
    """
    local = [source for source in sources if not _SCHEME.match(source)]
    if unread := left_out(local):
        _log.warning("%s", unread)
    places = [place for source in sources for place in (_remote if _SCHEME.match(source) else _local)(source)]
    seen: dict[str, Place] = {}
    for place in places:
        if (first := seen.setdefault(place.name, place)) is not place:
            raise InputError(f"{first.address} and {place.address} have one name: predict them into two folders.")
    return places


def states(places: Sequence[Place]) -> list[list[Any] | None]:
    """The `Place.current_state` of each image, None for one that cannot be read."""

    def state(place: Place) -> list[Any] | None:
        try:
            return place.current_state()
        except InputError:
            return None

    with ThreadPoolExecutor(_READING) as pool:
        return list(pool.map(state, places))


@contextmanager
def local_file(place: Place) -> Iterator[Path]:
    """The image as a local file, or folder of OME-Zarr; what was fetched is removed at the end.

    Raises `InputError` for an image that cannot be fetched or is not the one that was listed.
    """
    if place.filesystem is None:
        yield Path(place.path)
        return
    from pyarrow import fs

    with tempfile.TemporaryDirectory(prefix="masklab-", ignore_cleanup_errors=True) as folder:
        suffix = Path(place.name).suffix
        target = Path(folder) / ("image" + (suffix if suffix.isascii() and suffix.isprintable() else ""))
        try:
            if suffix.lower() == ZARR_SUFFIX:
                fs.copy_files(
                    place.path,
                    str(target),
                    source_filesystem=place.filesystem,
                    destination_filesystem=fs.LocalFileSystem(),
                )
            else:
                with place.filesystem.open_input_stream(place.path) as source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
        except FileNotFoundError:
            raise InputError(f"{place.address} is no longer there: restore it or run the same command again.") from None
        except OSError as error:
            if error.filename is not None and Path(str(error.filename)).is_relative_to(folder):
                raise  # the disk of this machine
            raise InputError(
                f"{place.address} cannot be fetched ({_reason(error)}): run the same command again."
            ) from None
        if target.is_file() and place.state is not None and target.stat().st_size != place.state[0]:
            raise InputError(f"{place.address} has changed since it was listed: run the same command again.")
        try:
            yield target
        except InputError as error:
            raise InputError(place.naming(str(error), target)) from error


def _local(source: str) -> Iterator[Place]:
    for path in list_images(source):
        yield Place(path.name, str(path.absolute()), str(path.absolute()))


def _remote(source: str) -> list[Place]:
    try:
        from pyarrow import fs
    except ImportError:
        raise InputError(f'{source} needs pyarrow, which is not installed: pip install "masklab[ray]".') from None
    shown = _shown(source)
    scheme = shown.partition("://")[0]
    try:
        # names of plates have spaces and letters that an address may not have; what is written as one stays
        filesystem, path = fs.FileSystem.from_uri(quote(source, safe=_OF_ADDRESSES))
        info = filesystem.get_file_info(path)
        entries = [info]
        if info.type == fs.FileType.Directory and not path.rstrip("/").lower().endswith(ZARR_SUFFIX):
            entries = filesystem.get_file_info(fs.FileSelector(path))
        places = [
            Place(entry.base_name, f"{scheme}://{entry.path}", entry.path, filesystem, _state(filesystem, entry))
            for entry in sorted(entries, key=lambda entry: str(entry.path))
            if entry is info or _is_image(entry, entry.type == fs.FileType.Directory)
        ]
    except (OSError, ValueError, NotImplementedError) as error:  # of pyarrow too
        reason = _reason(error).replace(source, shown)
        raise InputError(f"{shown} cannot be listed ({reason}): correct the address or the access to it.") from None
    if info.type == fs.FileType.NotFound:
        raise InputError(f"{shown}: there is no such image or folder; correct the address.")
    if not places:
        raise InputError(f"{shown} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}): name another folder.")
    return places


def _shown(source: str) -> str:
    """An address without a user, a password and options."""
    scheme, _, rest = source.partition("://")
    authority, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme.lower()}://{authority.rpartition('@')[2]}{slash}{path}"


def _is_image(entry: Any, is_folder: bool) -> bool:
    suffix = Path(entry.base_name).suffix.lower()
    if entry.base_name.startswith(".") or suffix not in IMAGE_SUFFIXES:
        return False
    return (suffix == ZARR_SUFFIX) == is_folder


def _state(filesystem: Any, entry: Any) -> tuple[int, int]:
    """The bytes and the time of change of an image; of a folder of OME-Zarr those of its files together."""
    from pyarrow import fs

    files = [entry]
    if entry.type == fs.FileType.Directory:
        files = filesystem.get_file_info(fs.FileSelector(entry.path, recursive=True))
    return sum(file.size or 0 for file in files), max((file.mtime_ns or 0 for file in files), default=0)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
