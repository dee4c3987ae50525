"""Fetching the official archives of public data sets: resumed, verified, unpacked to where `masklab train` finds them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from masklab.utils.errors import InputError

BLOCK = 2**20  # bytes
AGENT = "masklab (+urllib)"


class Archive(NamedTuple):
    """A zip file at ``url`` that unpacks to the folder ``makes``, or into it if it has no such folder itself.

    ``size`` in bytes and ``sha256`` are None where its publisher's are not known: the size is then the server's, and
    the zip's own checksums of its members stand alone.
    """

    url: str
    makes: str
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


class DataSet(NamedTuple):
    """The archives of a data set, and its terms in one line."""

    archives: Sequence[Archive]
    terms: str


COCO = "http://images.cocodataset.org"  # has no certificate of its own: the SHA-256 vouch for what it sends
DATA_SETS: Mapping[str, DataSet] = {
    "coco2017": DataSet(
        (
            Archive(
                f"{COCO}/annotations/annotations_trainval2017.zip",
                "annotations",
                252907541,
                "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            ),
            Archive(
                f"{COCO}/zips/val2017.zip",
                "val2017",
                815585330,
                "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            ),
            Archive(
                f"{COCO}/zips/train2017.zip",
                "train2017",
                19336861798,
                "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            ),
        ),
        "COCO: annotations CC BY 4.0; each image has its own Flickr licence, see https://cocodataset.org/#termsofuse",
    ),
    "nuclei": DataSet(
        (
            Archive(
                "https://data.broadinstitute.org/bbbc/BBBC038/stage1_train.zip",
                "train",
                82923446,
                "dcb6edc2690f137406638b2309581a71522c4dff19157d118453b448dcddcb68",
            ),
        ),
        "BBBC038v1, the training set of the 2018 Data Science Bowl (Caicedo et al., Nature Methods, 2019): CC0",
    ),
}


class BrokenTransferError(Exception):
    """A transfer ended early, for a reason that another try may not meet."""


def download(
    name: str,
    folder: str | Path,
    sets: Mapping[str, DataSet] = DATA_SETS,
    timeout: float = 30,
    tries: int = 5,
    pause: float = 2,
) -> Path:
    """Fetch, verify and unpack a data set into ``folder``; returns it.

    An archive that was unpacked before is left alone, and one that was fetched in part is gone on with.  A transfer
    that breaks off, or from which nothing comes for ``timeout`` seconds, is taken up again after ``pause`` seconds;
    ``tries`` in a row without a single byte end it.  An archive is removed once it is unpacked, or when it
    proves wrong.  Raises `InputError` for an unknown name, a server that does not have the archive, a broken transfer,
    an archive that is not what its publisher put there, and a folder or disk that cannot take it.
    """
    if name not in sets:
        raise InputError(f"{name} is not a data set that can be downloaded: name one of {', '.join(sets)}.")
    folder = Path(folder)
    print(sets[name].terms)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for archive in sets[name].archives:
            if (folder / archive.makes).exists():
                print(f"{folder / archive.makes} is there already")
                continue
            path = fetch(archive, folder, timeout, tries, pause)
            unpack(path, folder, archive.makes)
            path.unlink()
            print(f"{archive.name} unpacked into {folder / archive.makes}")
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written to ({error.strerror}): name another folder or make room."
        ) from None
    return folder


def fetch(archive: Archive, folder: Path, timeout: float = 30, tries: int = 5, pause: float = 2) -> Path:
    """Fetch an archive into ``folder``, going on with its ``.part`` file if one is there, and verify it.

    The arguments and what is raised are as in `download`; returns the path of the archive.
    """
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    if path.exists():  # put there by hand, or left by an interrupted command
        _verify(archive, path)
    else:
        print(f"fetching {archive.url}")
        failures = 0
        with _progress(archive.name) as moved:
            while True:
                before = part.stat().st_size if part.exists() else 0
                try:
                    _transfer(archive, part, timeout, moved)
                    break
                except BrokenTransferError as error:
                    after = part.stat().st_size if part.exists() else 0
                    failures = 0 if after > before else failures + 1
                    if failures >= tries:
                        raise InputError(
                            f"{archive.url} broke off at byte {after} ({error}): run the same command again to go on "
                            "from there."
                        ) from None
                    time.sleep(pause)
        _verify(archive, part)
        os.replace(part, path)
    return path


def _transfer(archive: Archive, part: Path, timeout: float, moved: Any) -> None:
    """Bring ``part`` to its full size from where it is; `BrokenTransferError` if the connection ends before that."""
    have = part.stat().st_size if part.exists() else 0
    if archive.size is not None and have == archive.size:
        return
    request = urllib.request.Request(archive.url, headers={"User-Agent": AGENT, "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with _answer(archive, request, timeout, part) as answer:
        start, total = _extent(archive, answer, have)
        if total is not None and shutil.disk_usage(part.parent).free < total - start:
            raise InputError(
                f"{part.parent} has no room for {archive.name} ({total} bytes): make room or name another."
            )
        with open(part, "r+b" if part.exists() else "wb") as file:
            file.truncate(start)
            file.seek(start)
            while block := _read(answer):
                file.write(block)
                moved(file.tell(), total)
            end = file.tell()
    if total is not None and end < total:
        raise BrokenTransferError(f"{end} of {total} bytes came")


@contextmanager
def _answer(archive: Archive, request: urllib.request.Request, timeout: float, part: Path) -> Iterator[HTTPResponse]:
    """The server's answer; what may pass is a `BrokenTransferError`, what will not an `InputError`."""
    try:
        answer = urllib.request.build_opener(_SafeRedirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what we have does not belong to what is there now
            part.unlink(missing_ok=True)
        if error.code in (408, 416, 429) or error.code >= 500:
            raise BrokenTransferError(f"the server answered {error.code}") from None
        raise InputError(
            f"{archive.url} cannot be had, the server answered {error.code} {_reason(error)}: "
            f"fetch the archive by hand into {part.with_suffix('')} and run this again."
        ) from None
    except (OSError, HTTPException) as error:
        raise BrokenTransferError(_reason(error)) from None
    with answer:
        yield answer


def _read(answer: HTTPResponse) -> bytes:
    try:
        return answer.read1(BLOCK)  # what has come, so that a stall loses nothing
    except (OSError, HTTPException) as error:
        raise BrokenTransferError(_reason(error)) from None


def _extent(archive: Archive, answer: HTTPResponse, have: int) -> tuple[int, int | None]:
    """Where the answer's bytes belong and how long the whole file is, if the server says so."""
    start, length = 0, answer.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else None
    if answer.status == 206:
        extent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if extent is None or int(extent[1]) != have:
            raise BrokenTransferError("the server sent another part than it was asked for")
        start, total = have, int(extent[2])
    if archive.size is not None and total not in (None, archive.size):
        raise InputError(
            f"{archive.url} has {total} bytes but its publisher's archive has {archive.size}: something else answers "
            "there, so nothing was kept of it."
        )
    return start, archive.size if total is None else total


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return "nothing came for too long"
    return " ".join(str(reason).split()).rstrip(". ") or type(reason).__name__


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but not from an encrypted address to one that is not."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.type == "https" and not newurl.lower().startswith("https:"):
            raise InputError(f"{req.full_url} redirects to {newurl}, which is not encrypted: fetch it by hand.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _verify(archive: Archive, path: Path) -> None:
    """Compare size and SHA-256 with the publisher's, and remove what differs."""
    if archive.sha256 is None:
        print(f"{archive.name}: no published checksum is known; its members are checked by the zip's own")
        return
    digest = hashlib.sha256()
    with open(path, "rb") as file, _progress(f"{archive.name}: SHA-256") as moved:
        while block := file.read(BLOCK):
            digest.update(block)
            moved(file.tell(), archive.size)
    if digest.hexdigest() != archive.sha256:
        path.unlink()
        raise InputError(
            f"{archive.url} came damaged (its SHA-256 is {digest.hexdigest()}, not {archive.sha256}) and was removed: "
            "run the same command again."
        )


def unpack(path: Path, folder: Path, makes: str) -> None:
    """Unpack a zip file so that ``folder / makes`` is there whole or not at all.

    Every member's checksum is verified.  Raises `InputError`, and removes the archive, if it is damaged, holds links or
    names that leave the folder; raises it too if the disk has no room.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{makes}-", dir=folder))
    try:
        temporary.chmod(0o755)
        with zipfile.ZipFile(path) as opened:
            members = opened.infolist()
            for member in members:
                _check_member(path, member)
            total = sum(member.file_size for member in members)
            if shutil.disk_usage(folder).free < total:
                raise InputError(f"{folder} has no room to unpack {path.name} ({total} bytes): make room.")
            with _progress(f"{path.name}: unpacking") as moved:
                done = 0
                for member in members:
                    opened.extract(member, temporary)
                    done += member.file_size
                    moved(done, total)
        inside = temporary / makes
        os.replace(inside if inside.is_dir() else temporary, folder / makes)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        path.unlink()
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"{path} is a damaged archive ({reason}) and was removed: run the same command again."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    """Refuse names that leave the folder, and links."""
    parts = re.split(r"[/\\]", member.filename)
    link = stat.S_ISLNK(member.external_attr >> 16)
    if link or ".." in parts or parts[0] == "" or ":" in parts[0]:
        path.unlink()
        raise InputError(
            f"{path} holds {member.filename!r}, which {'is a link' if link else 'leaves the folder'}, and was removed: "
            "it is not the archive that it should be."
        )


@contextmanager
def _progress(what: str) -> Iterator[Any]:
    """A bar; yields a function of how much is done, and of how much."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
