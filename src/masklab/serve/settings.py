"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass

from masklab.utils.errors import InputError

_MOST = 2**40


@dataclass(frozen=True)
class Settings:
    """Limits of a server, named as the options of `masklab serve`.

    ==============  ===================================================================================================
    name            meaning
    ==============  ===================================================================================================
    ``max_body``    bytes of an image file
    ``max_pixels``  pixels of an image, by its header
    ``seconds``     from the beginning of a request to the end of its work
    ``waiting``     requests that wait while all threads work; with one, an answer takes about twice as long
    ``keep``        results that are kept for the page, with their images
    ``token``       what a request must carry to be answered, None for no such word
    ``host``        the name under which the server is reached without a token, besides those of this machine itself
    ==============  ===================================================================================================

    Raises `InputError` for limits that let nothing through.
    """

    max_body: int = 2**28
    max_pixels: int = 100_000_000
    seconds: float = 300.0
    waiting: int = 1
    keep: int = 16
    token: str | None = None
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        least = {"max_body": 1, "max_pixels": 1, "seconds": 0.1, "waiting": 0, "keep": 1}
        for name, value in least.items():
            if not value <= getattr(self, name) <= _MOST:
                raise InputError(f"{name} is {getattr(self, name)}: give {value} to {_MOST}.")
