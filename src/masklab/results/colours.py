"""Colours of objects and classes in pictures."""

from __future__ import annotations

from masklab.utils.types import Colour

# Seven hues that people with any kind of colour blindness tell apart (Okabe and Ito, 2008; its black left out).
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
