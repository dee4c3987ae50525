"""What every request passes before and after its answer: host, token, number at once, headers, and counting."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from masklab.serve.metrics import Metrics
from masklab.serve.refusals import Refusal
from masklab.serve.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger(__name__)
MOST_AT_ONCE = 64
"""Requests that are being received or worked on; each may hold a file of the largest size on the disk."""
OPEN_TO_ALL = ("/", "/health", "/openapi.json")
"""Addresses that need no token, with those of the page's files: they tell nothing of images or the model."""
PAGE_FILES = "/page/"
IMAGES = "/predict"
"""Where images are sent, which may be large; other bodies are short."""
_MOST_OTHERS = 2**23  # bytes
_PATIENCE = 30  # seconds, for each piece of a body
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page loads its own files alone, and runs no script that stands in the page."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Guard:
    """An ASGI application around another one.

    Without a token only requests to a name of this machine itself are answered, so that no page of another site can
    reach the server under a name of its own.
    """

    def __init__(self, application: Application, settings: Settings, metrics: Metrics) -> None:
        self._application, self._metrics = application, metrics
        self._token = None if settings.token is None else settings.token.encode()
        own = f"[{settings.host}]" if ":" in settings.host else settings.host
        names = "|".join(map(re.escape, (*_LOCAL, own.lower())))
        self._hosts = re.compile(rf"({names})(:\d+)?")
        self._now = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.lower() for name, _ in message.get("headers", ())}
                own = ((name.lower().encode(), value.encode()) for name, value in _HEADERS.items())
                message["headers"] = [*message.get("headers", ()), *(pair for pair in own if pair[0] not in given)]
            await send(message)

        self._now += 1
        try:
            self._check(scope)
            await self._application(scope, _Bounded(scope, receive), answer)
        except Refusal as refusal:
            await problem(refusal)(scope, receive, answer)
        finally:
            self._now -= 1
            path = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - began)

    def _check(self, scope: Scope) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._token is None:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            if not self._hosts.fullmatch(host):
                raise Refusal(400, "the request names a host that is not this machine: ask for 127.0.0.1 or localhost.")
        elif scope["path"] not in OPEN_TO_ALL and not scope["path"].startswith(PAGE_FILES):
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if not hmac.compare_digest(given.strip(), self._token) or scheme.lower() != b"bearer":
                raise Refusal(401, "the token is missing or wrong: send it as the header Authorization: Bearer TOKEN.")
        if self._now > MOST_AT_ONCE:
            raise Refusal(503, "the server has too many requests at once: try again soon.", retry_after=1)


class _Bounded:
    """What a request receives, of which each piece must come in time, and all but an image must be short."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive, self._all_there = receive, False
        self._left = math.inf if scope["path"] == IMAGES else _MOST_OTHERS

    async def __call__(self) -> Message:
        if self._all_there:  # what comes now is the end of the connection
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), _PATIENCE)
        except asyncio.TimeoutError:
            raise Refusal(408, f"nothing of the body came for {_PATIENCE} seconds: send it faster.") from None
        self._all_there = not message.get("more_body", False)
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise Refusal(413, f"the body has over {_MOST_OTHERS} bytes: name fewer objects.")
        return message


def problem(error: HTTPException) -> JSONResponse:
    """The answer to a request that was refused."""
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
