"""Type aliases used throughout the package."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Auto = Literal["auto"]
Intensity = Literal["model", "percentiles"]
Precision = Literal["auto", "bf16", "fp16", "float32"]
SubBoxes = Literal["grid", "cell"]
DistanceMetric = Literal["linf", "l2_side", "l2_corner"]

Size = tuple[int, int]
"""(height, width) in pixels."""

Box = tuple[int, int, int, int]
"""(x1, y1, x2, y2) in whole pixels, the last two one past the end."""

Colour = tuple[int, int, int]
"""(red, green, blue) from 0 to 255."""

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]
