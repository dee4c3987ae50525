"""Start of a server, and its end by a signal."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

from masklab.inference.finder import ObjectFinder
from masklab.serve.settings import Settings
from masklab.utils.errors import InputError
from masklab.utils.extras import require

_log = logging.getLogger(__name__)
TOKEN = "MASKLAB_TOKEN"
"""The variable of the environment that holds the token; a command line can be read by others on the machine."""
_SHORTEST_TOKEN = 16  # letters
_MOST_CONNECTIONS = 1000
_LAST_PORT = 2**16 - 1


def check_installed() -> None:
    """Raise `InputError` where a package of the extra is missing."""
    require(("fastapi", "uvicorn", "prometheus_client"), "serve", "a server")


def token_for(host: str) -> str | None:
    """The token of the environment; `InputError` where a host that others reach needs one, or it is too short."""
    token = os.environ.get(TOKEN) or None
    if token is None and not _is_loopback(host):
        raise InputError(
            f"the host {host} can be reached from other machines: set the variable {TOKEN} to a secret of at least "
            f"{_SHORTEST_TOKEN} letters, or leave --host out."
        )
    if token is not None and not (len(token) >= _SHORTEST_TOKEN and token.isascii() and token.isprintable()):
        raise InputError(f"{TOKEN} must have at least {_SHORTEST_TOKEN} letters, digits or signs of ASCII.")
    return token


def serve(finder: ObjectFinder, name: str, port: int, settings: Settings) -> None:
    """Answer requests until a signal asks to stop: what is being worked on is finished, what waits gets 503.

    A second Ctrl-C ends it at once.  Raises `InputError` for an address that cannot be listened at.
    """
    import uvicorn

    host = settings.host
    from masklab.serve.app import create_app
    from masklab.serve.service import Service

    with (
        tempfile.TemporaryDirectory(prefix="masklab-serve-") as folder,
        _listening(host, port) as listener,
        finder.image_threads() as threads,
    ):
        service = Service(finder, settings, Path(folder), threads)

        class Server(uvicorn.Server):
            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                # not at once: the signal may have come in the middle of a lock that stopping needs
                asyncio.get_running_loop().call_soon_threadsafe(service.stop)
                super().handle_exit(sig, frame)
                self._captured_signals.clear()  # a server that was asked to stop has done its work

        config = uvicorn.Config(
            create_app(service, name),
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            lifespan="off",
            ws="none",
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=int(settings.seconds) + 5,
        )
        where = f"[{host}]" if ":" in host else host
        _log.info("http://%s:%d/ finds objects with %s; Ctrl-C stops it", where, listener.getsockname()[1], name)
        Server(config).run(sockets=[listener])
        service.stop()
    _log.info("stopped")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port <= _LAST_PORT:  # the system would take the rest of a division
        raise InputError(f"there is no port {port}: name a --port from 1 to {_LAST_PORT}, or 0 for a free one.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)  # so that the address that is told is answered
    except OSError as error:
        raise InputError(
            f"{host}, port {port}, cannot be listened at ({error}): name another --port or --host."
        ) from None
    return listener
