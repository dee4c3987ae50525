"""What a server refuses: a status and one sentence, which names nothing of the machine."""

from __future__ import annotations

import logging
from pathlib import Path

from starlette.exceptions import HTTPException

from masklab.utils.errors import InputError
from masklab.utils.failures import machine_error

_log = logging.getLogger(__name__)
_NO_ROOM = "the server has no memory or no room on its disk for this image now: send a smaller one, or try again later."
_OWN_ERROR = "the server met an error of its own, which its log describes: try another image, and tell its keeper."
SENTENCES = {
    400: "The request is incomplete or names a host that the server does not have.",
    401: "The token is missing or wrong.",
    404: "There is no such address, or no result of this name is kept.",
    406: "No format of `Accept` can be written.",
    408: "The body took longer than the time limit to arrive.",
    413: "The body has too many bytes, or the image too many pixels.",
    415: "The body is not said to be an image.",
    422: "The image cannot be read or used, or a parameter has a wrong value.",
    429: "As many requests wait as may wait: `Retry-After` says when to try again.",
    500: "The server met an error of its own.",
    503: "The server is stopping, has no room, or the work took longer than the time limit.",
}
"""What each status means, for the description of the server."""


class Refusal(HTTPException):
    """An answer that is not what was asked for: ``detail`` is a sentence that says why and what to do."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        super().__init__(status, sentence, headers)


def refusal_of(error: Exception, image: Path | None = None) -> Refusal:
    """What to answer where work on an ``image`` failed: nothing in it tells where the server keeps that."""
    if isinstance(error, Refusal):
        return error
    if image is not None and not image.exists():
        return Refusal(404, "this result is not kept any more: send the image again.")
    if isinstance(error, InputError):
        return Refusal(422, _without(str(error), image))
    if machine_error(error) is not None:
        _log.error("%s", machine_error(error))
        return Refusal(503, _NO_ROOM, retry_after=30)
    _log.error("an error in the work on an image", exc_info=error)
    return Refusal(500, _OWN_ERROR)


def _without(sentence: str, image: Path | None) -> str:
    """A sentence about an image that calls it a file, in place of the path that it is kept at."""
    if image is None:
        return sentence
    for name in (str(image), image.name):
        sentence = sentence.replace(name, "the file")
    if str(image.parent) in sentence:
        return "the file cannot be read: convert it to PNG, JPEG or TIFF."
    return sentence
