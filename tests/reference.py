"""The slow and obvious versions that the fast ones must equal."""

import math

import torch


def crop_and_resize(features, boxes, images, size, slack=(0.0, 0.0)):
    """One sample at a time. ``features`` (N, C, H, W); ``boxes`` (R, 4) xyxy, 0 and 1 the outermost cells' centres."""
    channels, height, width = features.shape[1:]
    out = torch.zeros(len(boxes), channels, *size, dtype=features.dtype)
    for r, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for i in range(size[0]):
            for j in range(size[1]):
                y = _place(y1, y2, i, size[0])
                x = _place(x1, x2, j, size[1])
                if not (-slack[1] <= y <= 1 + slack[1] and -slack[0] <= x <= 1 + slack[0]):
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
