"""Messages of layouts about what they leave out, each written to the log once."""

from __future__ import annotations

import logging
from functools import lru_cache

logger = logging.getLogger(__name__)


@lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Log a warning, unless the same one was logged before: a folder is looked at again for each of its splits."""
    logger.warning(message)


@lru_cache(maxsize=1024)
def inform_once(message: str) -> None:
    """Log a message that is no warning, unless the same one was logged before."""
    logger.info(message)
