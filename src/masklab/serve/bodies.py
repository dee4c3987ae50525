"""The body of a request, an image file, within the limits of a server."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

from starlette.requests import ClientDisconnect, Request

from masklab.serve.refusals import Refusal
from masklab.serve.settings import Settings
from masklab.serve.worker import Order, Worker

IMAGE_TYPES = (
    *("image/png", "image/jpeg", "image/tiff", "image/bmp", "image/gif", "image/webp", "image/jp2"),
    *("image/x-portable-anymap", "image/x-portable-graymap", "image/x-portable-pixmap", "application/octet-stream"),
)
"""Media types of bodies; what the file is, its content says."""


def check_type(request: Request) -> None:
    """Raise `Refusal` unless the body is said to be an image, as it is."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise Refusal(415, "the body is compressed: send the image's own bytes, without Content-Encoding.")
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in IMAGE_TYPES:
        said = "no media type" if not given else "a media type that is no image"
        raise Refusal(415, f"the body has {said}: send the bytes of an image, as {', '.join(IMAGE_TYPES)}.")


async def receive(request: Request, folder: Path, settings: Settings, order: Order, worker: Worker) -> Path:
    """Write the body into a new file of ``folder``; returns its path.

    Raises `Refusal` for a body that is empty, cut off, too long, whatever its length is said to be, or too slow, and as
    ``worker.check`` does.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > settings.max_body:
        raise _too_long(settings)
    path = folder / secrets.token_hex(12)
    try:
        await asyncio.wait_for(_write(request, path, settings, worker), order.left)
        return path
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, asyncio.TimeoutError):
            raise Refusal(408, f"the body took over {settings.seconds:g} seconds: send it faster.") from None
        if isinstance(error, ClientDisconnect):
            raise Refusal(400, "the body is cut off: send it whole.") from None
        raise


async def _write(request: Request, path: Path, settings: Settings, worker: Worker) -> None:
    size = 0
    with open(path, "xb") as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > settings.max_body:
                raise _too_long(settings)
            worker.check()
            file.write(chunk)
    if not size:
        raise Refusal(400, "the body is empty: send the bytes of an image file.")


def _too_long(settings: Settings) -> Refusal:
    return Refusal(
        413, f"the body has over {settings.max_body} bytes: send a smaller file, or cut the image into tiles."
    )
