"""Download of public data sets: resumed, verified, and unpacked into the folder that training reads."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from masklab.datasets.archives import DATA_SETS, Archive, DataSet
from masklab.datasets.unpack import Moved, byte_progress, unpack
from masklab.utils.errors import InputError

logger = logging.getLogger(__name__)

_BLOCK = 2**20  # bytes
_HEADERS = {"User-Agent": "masklab (+urllib)", "Accept-Encoding": "identity"}


class _BrokenTransferError(Exception):
    """A transfer ended early for a reason that may not recur."""


def download(
    name: str,
    folder: str | Path,
    sets: Mapping[str, DataSet] = DATA_SETS,
    timeout: float = 30,
    tries: int = 5,
    pause: float = 2,
) -> Path:
    """Fetch, verify and unpack a data set into ``folder``; returns it.

    An archive that was unpacked before is skipped, and a partial download is continued.  A transfer that breaks off,
    or stalls for ``timeout`` seconds, is resumed after ``pause`` seconds; ``tries`` attempts in a row without a byte
    end it.  An archive is removed once it is unpacked, or when verification fails.  Raises `InputError` for an unknown
    name, a server without the archive, a broken transfer, an archive that differs from its publisher's, and a folder
    or disk that cannot hold it.
    """
    if name not in sets:
        raise InputError(f"{name} is not a data set that can be downloaded: name one of {', '.join(sets)}.")
    folder = Path(folder)
    logger.info("%s", sets[name].terms)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for archive in sets[name].archives:
            if (folder / archive.makes).exists():
                logger.info("%s exists already", folder / archive.makes)
                continue
            path = _fetch(archive, folder, timeout, tries, pause)
            unpack(path, folder, archive.makes)
            path.unlink()
            logger.info("%s unpacked into %s", archive.name, folder / archive.makes)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written to ({error.strerror}): name another folder or make room."
        ) from None
    return folder


def _fetch(archive: Archive, folder: Path, timeout: float, tries: int, pause: float) -> Path:
    """Fetch an archive, continuing its ``.part`` file if there is one, and verify it; returns its path."""
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    if path.exists():  # put there by hand, or left by an interrupted command
        _verify(archive, path)
        return path
    logger.info("fetching %s", archive.url)
    failures, done = 0, False
    with byte_progress(archive.name) as moved:
        while not done:
            before = _size(part)
            try:
                _transfer(archive, part, timeout, moved)
                done = True
            except _BrokenTransferError as error:
                failures = 0 if _size(part) > before else failures + 1
                if failures >= tries:
                    raise InputError(
                        f"{archive.url} broke off at byte {_size(part)} ({error}): run the same command again to "
                        "continue from there."
                    ) from None
                time.sleep(pause)
    _verify(archive, part)
    os.replace(part, path)
    return path


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _transfer(archive: Archive, part: Path, timeout: float, moved: Moved) -> None:
    """Append the rest of the archive to ``part``; `_BrokenTransferError` if the connection ends before that."""
    have = _size(part)
    if have == archive.size:
        return
    request = urllib.request.Request(archive.url, headers=_HEADERS | ({"Range": f"bytes={have}-"} if have else {}))
    with _open(archive, request, timeout, part) as response:
        start, total = _extent(archive, response, have)
        if total is not None and shutil.disk_usage(part.parent).free < total - start:
            raise InputError(
                f"{part.parent} has no room for {archive.name} ({total} bytes): make room or name another."
            )
        with open(part, "r+b" if part.exists() else "wb") as file:
            file.truncate(start)
            file.seek(start)
            while block := _read(response):
                file.write(block)
                moved(file.tell(), total)
            end = file.tell()
    if total is not None and end < total:
        raise _BrokenTransferError(f"{end} of {total} bytes came")


def _open(archive: Archive, request: urllib.request.Request, timeout: float, part: Path) -> HTTPResponse:
    """The server's response; `_BrokenTransferError` for failures that may be temporary, `InputError` for others."""
    try:
        response: HTTPResponse = urllib.request.build_opener(_SafeRedirects).open(request, timeout=timeout)
        return response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part does not belong to what the server has now
            part.unlink(missing_ok=True)
        if error.code in (408, 416, 429) or error.code >= 500:
            raise _BrokenTransferError(f"the server answered {error.code}") from None
        raise InputError(
            f"{archive.url} cannot be had, the server answered {error.code} {_reason(error)}: "
            f"fetch the archive by hand into {part.with_suffix('')} and run this again."
        ) from None
    except (OSError, HTTPException) as error:
        raise _BrokenTransferError(_reason(error)) from None


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(_BLOCK)  # as much as has arrived, so that a stall loses nothing
    except (OSError, HTTPException) as error:
        raise _BrokenTransferError(_reason(error)) from None


def _extent(archive: Archive, response: HTTPResponse, have: int) -> tuple[int, int | None]:
    """The position of the response's first byte in the file, and the file's size where it is known."""
    start, length = 0, response.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else None
    if response.status == 206:
        extent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if extent is None or int(extent[1]) != have:
            raise _BrokenTransferError("the server sent another part than it was asked for")
        start, total = have, int(extent[2])
    if archive.size is not None and total not in (None, archive.size):
        raise InputError(
            f"{archive.url} has {total} bytes but its publisher's archive has {archive.size}: the server sends "
            "something else, so nothing of it was kept; fetch the archive by hand."
        )
    return start, archive.size if total is None else total


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return "nothing came for too long"
    return " ".join(str(reason).split()).rstrip(". ") or type(reason).__name__


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, except from HTTPS to another scheme."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.type == "https" and not newurl.lower().startswith("https:"):
            raise InputError(f"{req.full_url} redirects to {newurl}, which is not encrypted: fetch it by hand.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _verify(archive: Archive, path: Path) -> None:
    """Compare the SHA-256 with the publisher's; a file that differs is removed."""
    if archive.sha256 is None:
        logger.info("%s: no published checksum is known; only the zip's own checksums are verified", archive.name)
        return
    digest = hashlib.sha256()
    with open(path, "rb") as file, byte_progress(f"{archive.name}: SHA-256") as moved:
        while block := file.read(_BLOCK):
            digest.update(block)
            moved(file.tell(), archive.size)
    if digest.hexdigest() != archive.sha256:
        path.unlink()
        raise InputError(
            f"{archive.url} came damaged (its SHA-256 is {digest.hexdigest()}, not {archive.sha256}) and was removed: "
            "run the same command again."
        )
