"""Results of an image that holds every kind of object: drawn at random, as run lengths, without soft masks."""

import numpy as np

from masklab.masks.encode import encode_windows
from masklab.results.instances import Instances

NAMES = ("cell", "débris / 2", "細胞")
SIZE = (90, 130)


def windows(rng, count, size, largest=30):
    """Discs, rings, parts that touch at corners, noise with holes, single pixels, lines, and the whole image."""
    found = []
    for k in range(count):
        h, w = (int(side) for side in rng.integers(3, largest, 2))
        y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
        disc = x**2 + y**2 <= 1
        bits = [
            disc,
            disc & (x**2 + y**2 > 0.3),
            rng.random((h, w)) < 0.6,
            np.eye(h, dtype=bool),
            np.ones((1, 1), bool),
            np.ones((1, w), bool),
            np.kron(np.eye(2, dtype=bool), np.ones((2, 3), bool)),
        ][k % 7]
        corner = rng.integers(0, (size[1] - bits.shape[1] + 1, size[0] - bits.shape[0] + 1))
        if k % 5 == 0:
            corner[k % 2] = 0  # on the left or the top edge
        if k % 5 == 1:
            corner[k % 2] = (size[1] - bits.shape[1], size[0] - bits.shape[0])[k % 2]  # right or bottom
        found.append((bits, corner))
    return found


def scene(count=40, size=SIZE, seed=0, empty=True, names=NAMES):
    """Instances in no order of score; ``empty`` adds an object without pixels and one of the whole image, the worst."""
    rng = np.random.default_rng(seed)
    drawn = windows(rng, count, size)
    if empty:
        drawn += [(np.zeros((4, 4), bool), np.array([3, 3])), (np.ones(size, bool), np.array([0, 0]))]
    corners = np.array([corner for _, corner in drawn]).reshape(-1, 2)
    boxes = np.array([(x, y, x + b.shape[1], y + b.shape[0]) for b, (x, y) in drawn], np.float32).reshape(-1, 4) + 0.25
    scores = rng.random(len(drawn)).astype(np.float32)
    if count > 4:
        scores[3] = scores[4]
    if empty:
        scores[-1] = 0.001
    labels = rng.integers(0, len(names), len(drawn))
    rle = encode_windows([bits for bits, _ in drawn], corners, size)
    masks = np.zeros((len(drawn), 0, 0), np.float32)
    return Instances(size, boxes, scores, labels, masks, names, tuple(range(5, 5 + len(names))), rle)


def full(found):
    """All masks ``(n, H, W)``."""
    return np.array([found.mask(n) for n in range(len(found))]).reshape(len(found), *found.size)


class Windows:
    """A reader of windows that remembers the largest that was asked for."""

    def __init__(self, values):
        self.values, self.size, self.largest = values, values.shape[1:], 0

    def read(self, box):
        x1, y1, x2, y2 = box
        self.largest = max(self.largest, (x2 - x1) * (y2 - y1))
        return self.values[:, y1:y2, x1:x2]
