"""The slow and obvious versions that the fast ones must equal."""

import math
from typing import NamedTuple

import numpy as np
import torch

from masklab.masks.threshold import _interpolate_columns, _place_boxes


def crop_and_resize(features, boxes, images, size, margin=(0.0, 0.0)):
    """One sample at a time. ``features`` (N, C, H, W); ``boxes`` (R, 4) xyxy, 0 and 1 the outermost cells' centres."""
    channels, height, width = features.shape[1:]
    out = torch.zeros(len(boxes), channels, *size, dtype=features.dtype)
    for r, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for i in range(size[0]):
            for j in range(size[1]):
                y = _place(y1, y2, i, size[0])
                x = _place(x1, x2, j, size[1])
                if not (-margin[1] <= y <= 1 + margin[1] and -margin[0] <= x <= 1 + margin[0]):
                    continue
                y = min(max(y * (height - 1), 0), height - 1)
                x = min(max(x * (width - 1), 0), width - 1)
                top, left = math.floor(y), math.floor(x)
                bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                fy, fx = y - top, x - left
                image = features[int(images[r])]
                upper = image[:, top, left] * (1 - fx) + image[:, top, right] * fx
                lower = image[:, bottom, left] * (1 - fx) + image[:, bottom, right] * fx
                out[r, :, i, j] = upper * (1 - fy) + lower * fy
    return out


def _place(start, stop, i, samples):
    return (start + stop) / 2 if samples == 1 else start + (stop - start) * i / (samples - 1)


def select_channels(crops, channels):
    """Of crops (R, C, P, Q), the channel each sample asks for: a (P, Q) table, one (R,) a box, or (R, P, Q)."""
    out = torch.zeros(crops.shape[0], *crops.shape[2:], dtype=crops.dtype)
    for r in range(crops.shape[0]):
        for i in range(crops.shape[2]):
            for j in range(crops.shape[3]):
                place = {1: (r,), 2: (i, j), 3: (r, i, j)}[channels.dim()]
                out[r, i, j] = crops[r, int(channels[place]), i, j]
    return out


def tf_positions(boxes, size):
    """Boxes (R, 4) of TensorFlow's corner-aligned coordinates, 0 to the height and width over the outermost pixels'
    centres, as positions in pixels."""
    sides = np.array([size[1], size[0]] * 2)
    return boxes * (sides - 1) / sides + 0.5


class Regions(NamedTuple):
    """Box-sized pieces of one image, one per object, laid end to end.

    ===========  ==============  ========  ==================================================
    name         shape           dtype     meaning
    ===========  ==============  ========  ==================================================
    ``boxes``    ``(N, 4)``      int64     ``xyxy``, inside the image; may be empty
    ``values``   ``(sum,)``      float32   the pixels of each box, column by column
    ``offsets``  ``(N + 1,)``    int64     where each box's pixels begin in ``values``
    ===========  ==============  ========  ==================================================
    """

    boxes: np.ndarray
    values: np.ndarray
    offsets: np.ndarray

    def region(self, n):
        """Object ``n``'s values, ``(y2 - y1, x2 - x1)``; a view."""
        x1, y1, x2, y2 = self.boxes[n].tolist()
        return self.values[self.offsets[n] : self.offsets[n + 1]].reshape(x2 - x1, y2 - y1).T


def paste(masks, boxes, size):
    """All pixels of soft masks in the image: bilinear inside the box, 0 outside, with the package's arithmetic.

    ``masks`` ``(N, P, P)`` float32 lie over ``boxes`` ``(N, 4)`` float32, ``xyxy`` in pixels of an image of ``size``
    (height, width).  Pixel ``Y`` reads the mask at ``(P - 1) * (Y + 0.5 - y1) / (y2 - y1)``; the same along ``X``.
    """
    samples = masks.shape[-1]
    placed = _place_boxes(boxes, size, samples)
    wide, tall = (placed.boxes[:, 2:] - placed.boxes[:, :2]).T
    lines = np.ascontiguousarray(masks.transpose(0, 2, 1), np.float32).reshape(-1, samples)
    owner = np.repeat(np.arange(len(wide)), wide)
    columns = _interpolate_columns(lines, placed.columns, owner, slice(None), samples).ravel()
    heights = tall[owner]
    tap = np.arange(int(heights.sum())) + np.repeat(placed.rows.begin[owner] - np.cumsum(heights) + heights, heights)
    index = np.repeat(np.arange(len(owner)) * samples, heights) + placed.rows.low[tap]
    upper = columns[index]
    values = upper + placed.rows.share[tap] * (columns[index + min(samples - 1, 1)] - upper)
    return Regions(placed.boxes, values, np.concatenate(([0], np.cumsum(wide * tall))))
