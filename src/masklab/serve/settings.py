"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass

from masklab.utils.errors import InputError


@dataclass(frozen=True)
class Settings:
    """Limits of a server.

    ===========  ======================================================================================================
    name         meaning
    ===========  ======================================================================================================
    ``body``     bytes of an image file
    ``pixels``   pixels of an image, by its header
    ``seconds``  from the beginning of a request to the end of its work
    ``waiting``  requests that wait while one is worked on; with two of them, an answer takes three times as long at most
    ``kept``     results that are kept for the page, with their images
    ``token``    what a request must carry to be answered, None for no such word
    ===========  ======================================================================================================

    Raises `InputError` for limits that let nothing through.
    """

    body: int = 2**28
    pixels: int = 100_000_000
    seconds: float = 300.0
    waiting: int = 2
    kept: int = 16
    token: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("body", 1), ("pixels", 1), ("seconds", 0.1), ("waiting", 0), ("kept", 1)):
            if not getattr(self, name) >= least:
                raise InputError(f"the limit {name} is {getattr(self, name)}: give {least} or more.")
