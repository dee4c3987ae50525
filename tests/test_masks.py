"""Soft masks brought to the image: pixels, run lengths, label maps and polygons against slow versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pycocotools import mask as oracle
from reference import Regions, paste, tf_positions

from masklab.masks import encode, label_map, polygons, rle
from masklab.masks import threshold as ops

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
MODES = ["exact", "tf"]  # the convention of `ops/coordinates.py`, and boxes of TensorFlow's brought to it


def slow_sample(mask: np.ndarray, y: float, x: float) -> float:
    """``y`` and ``x`` run from 0 to 1 over the box."""
    p, slack = mask.shape[0], 1e-7
    if not (-slack <= y <= 1 + slack and -slack <= x <= 1 + slack):
        return 0.0
    y, x = min(max(y, 0), 1) * (p - 1), min(max(x, 0), 1) * (p - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, p - 1), min(left + 1, p - 1)
    fy, fx = y - top, x - left
    upper = mask[top, left] * (1 - fx) + mask[top, right] * fx
    return float(upper * (1 - fy) + (mask[bottom, left] * (1 - fx) + mask[bottom, right] * fx) * fy)


def slow_paste(mask: np.ndarray, box: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """One pixel at a time, on the whole image."""
    h, w = size
    x1, y1, x2, y2 = (float(edge) for edge in box)
    canvas = np.zeros(size, np.float32)
    if not all(math.isfinite(edge) for edge in box) or x2 <= x1 or y2 <= y1:
        return canvas
    for row in range(h):
        for column in range(w):
            if mode == "exact":
                y = (row + 0.5 - y1) / (y2 - y1)
                x = (column + 0.5 - x1) / (x2 - x1)
            else:
                y = (row / (h - 1) - y1 / h) / ((y2 - y1) / h)
                x = (column / (w - 1) - x1 / w) / ((x2 - x1) / w)
            canvas[row, column] = slow_sample(mask, y, x)
    return canvas


def positions(boxes: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    return boxes if mode == "exact" else tf_positions(boxes, size)


def canvas_of(regions: Regions, n: int, size: tuple[int, int]) -> np.ndarray:
    canvas = np.zeros(size, np.float32)
    x1, y1, x2, y2 = regions.boxes[n]
    canvas[y1:y2, x1:x2] = regions.region(n)
    return canvas


def scene(seed: int, count: int, size: tuple[int, int], samples: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Random masks in boxes of which many reach outside, some are thin, some cover the image."""
    rng = np.random.default_rng(seed)
    h, w = size
    corners = rng.uniform(-0.3, 1.1, (count, 2)) * (w, h)
    sides = rng.choice([0.02, 0.2, 0.6, 2.0], (count, 2)) * rng.uniform(0.5, 1, (count, 2)) * (w, h)
    boxes = np.concatenate((corners, corners + sides), axis=1).astype(np.float32)
    return rng.random((count, samples, samples), np.float32), boxes


@pytest.mark.parametrize("mode", MODES)
def test_no_objects(mode: str) -> None:
    masks, boxes = np.zeros((0, 5, 5), np.float32), np.zeros((0, 4), np.float32)
    regions = paste(masks, positions(boxes, (6, 8), mode), (6, 8))
    assert regions.boxes.shape == (0, 4)
    assert regions.values.size == 0
    assert regions.offsets.tolist() == [0]
    assert ops.encode_masks(masks, positions(boxes, (6, 8), mode), (6, 8)) == []
    assert label_map.label_map([], np.zeros(0), (2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_the_papers_library_by_hand() -> None:
    mask = np.array([[[0, 1, 2]] * 3], np.float32)
    box = np.array([[0.25, 0.25, 0.75, 0.75]], np.float32) * 5
    regions = paste(mask, tf_positions(box, (5, 5)), (5, 5))
    expected = np.zeros((5, 5))
    expected[1:4] = [0, 0, 1, 2, 0]
    np.testing.assert_allclose(canvas_of(regions, 0, (5, 5)), expected, atol=1e-6)


def test_pixels_by_hand() -> None:
    """Over columns 1..4 of an image the pixels' centres are at 1/8, 3/8, 5/8, 7/8 of the box."""
    mask = np.array([[[0, 1]] * 2], np.float32)
    regions = paste(mask, np.array([[1, 1, 5, 2]], np.float32), (3, 7))
    assert regions.boxes.tolist() == [[1, 1, 5, 2]]
    np.testing.assert_allclose(regions.region(0), [[0.125, 0.375, 0.625, 0.875]])
    assert ops.encode_masks(mask, np.array([[1, 1, 5, 2]], np.float32), (3, 7))[0].tolist() == [10, 1, 2, 1, 7]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("samples", [1, 2, 7])
def test_paste_equals_the_slow_version(mode: str, samples: int) -> None:
    size = (13, 18)
    masks, boxes = scene(0, 40, size, samples)
    regions = paste(masks, positions(boxes, size, mode), size)
    for n in range(len(masks)):
        expected = slow_paste(masks[n], boxes[n], size, mode)
        np.testing.assert_allclose(canvas_of(regions, n, size), expected, atol=2e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "box",
    [
        (3, 3, 3, 6),
        (3, 3, 6, 3),
        (6, 6, 3, 3),
        (3.6, 3.6, 3.7, 3.7),
        (-9, -9, -2, -2),
        (30, 30, 40, 40),
        (-1e30, 2, -1e29, 4),
        (float("nan"), 0, 4, 4),
        (0, 0, float("inf"), 4),
        (-float("inf"), 0, float("inf"), 4),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_boxes_without_a_pixel_give_empty_masks(mode: str, box: tuple[float, ...]) -> None:
    """And leave the object after them alone."""
    boxes = np.array([box, (0, 0, 10, 8), box], np.float32)
    masks = np.ones((3, 5, 5), np.float32)
    boxes = positions(boxes, (8, 10), mode)
    regions = paste(masks, boxes, (8, 10))
    assert regions.region(0).size == 0
    assert regions.region(2).size == 0
    assert (regions.region(1) == 1).all()
    assert [rle.area(runs) for runs in ops.encode_masks(masks, boxes, (8, 10))] == [0, 80, 0]


@pytest.mark.parametrize("mode", MODES)
def test_rle_equals_pycocotools_on_the_whole_image(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (13, 18)
    masks, boxes = scene(1, 60, size)
    regions = paste(masks, positions(boxes, size, mode), size)
    expected = [
        oracle.encode(np.asfortranarray(canvas_of(regions, n, size) > 0.5, np.uint8))["counts"].decode()
        for n in range(len(masks))
    ]
    for batch in (1, 100, 1 << 22):
        monkeypatch.setattr(ops, "_BATCH", batch)
        found = rle.rle_to_coco(ops.encode_masks(masks, positions(boxes, size, mode), size), size)
        assert [r["counts"] for r in found] == expected
        assert all(r["size"] == [13, 18] for r in found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("samples", [1, 2, 9, 41])
def test_runs_equal_the_pasted_pixels_above_a_half(mode: str, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes smaller and larger than the mask, noise, and values that are exactly a half."""
    size = (97, 131)
    masks, boxes = scene(2, 80, size, samples)
    masks[::2] = np.round(masks[::2] * 4) / 4
    monkeypatch.setattr(ops, "_STRIP", 700)
    regions = paste(masks, positions(boxes, size, mode), size)
    bitmaps = [regions.region(n) > 0.5 for n in range(len(masks))]
    expected = encode.encode_windows(bitmaps, regions.boxes, size)
    found = ops.encode_masks(masks, positions(boxes, size, mode), size)
    assert [len(runs) for runs in found] == [len(runs) for runs in expected]
    assert np.concatenate(found).tolist() == np.concatenate(expected).tolist()


def test_half_is_background() -> None:
    runs = ops.encode_masks(np.full((1, 3, 3), 0.5, np.float32), np.array([[0, 0, 4, 4]], np.float32), (4, 4))
    assert runs[0].tolist() == [16]


def test_half_between_two_samples_is_background() -> None:
    """From 0 on the upper edge to 1 on the lower: the middle one of three pixels is a half, and so is that of a row."""
    down = np.array([[[0, 0], [1, 1]]], np.float32)
    assert ops.encode_masks(down, np.array([[0, 0, 1, 3]], np.float32), (3, 1))[0].tolist() == [2, 1]
    assert ops.encode_masks(1 - down, np.array([[0, 0, 1, 3]], np.float32), (3, 1))[0].tolist() == [0, 1, 2]
    across = down.transpose(0, 2, 1)
    assert ops.encode_masks(across, np.array([[0, 0, 3, 1]], np.float32), (1, 3))[0].tolist() == [2, 1]


def test_just_above_and_below_a_half() -> None:
    boxes = np.array([[0, 0, 4, 4]] * 2, np.float32)
    masks = np.full((2, 3, 3), 0.5, np.float32) + np.array([1e-4, -1e-4], np.float32)[:, None, None]
    assert [rle.area(runs) for runs in ops.encode_masks(masks, boxes, (4, 4))] == [16, 0]


def test_a_pixel_on_the_edge_of_a_box_is_inside_whatever_the_rounding() -> None:
    """Edges one float32 beyond the centres of the pixels 1000 and 1002, which reads the mask's own edge, not beyond."""
    first = np.nextafter(np.float32(1000.5), np.float32(2000))
    last = np.nextafter(np.float32(1002.5), np.float32(0))
    for box, size in (((first, 0, last, 1), (1, 1200)), ((0, first, 1, last), (1200, 1))):
        regions = paste(np.ones((1, 2, 2), np.float32), np.array([box], np.float32), size)
        assert regions.values.tolist() == [1, 1, 1]
    ramp = np.array([[[0, 1]] * 2], np.float32)
    thin = paste(ramp, np.array([[2.4, 0, 2.49995, 1]], np.float32), (1, 6))
    assert thin.values.tolist() == [1]
    assert paste(ramp, np.array([[2.4, 0, 2.49, 1]], np.float32), (1, 6)).values.size == 0


def runs_of(mask: np.ndarray) -> rle.RLE:
    return encode.encode_windows([mask], [(0, 0)], (mask.shape[0], mask.shape[1]))[0]


def test_label_map_by_hand() -> None:
    low, high, hidden = np.zeros((3, 4), bool), np.zeros((3, 4), bool), np.zeros((3, 4), bool)
    low[:2, :3], high[1:, 1:3], hidden[2, 1] = True, True, True
    labels = label_map.label_map([runs_of(m) for m in (low, high, hidden)], np.array([0.5, 0.9, 0.1]), (3, 4))
    assert labels.dtype == np.int32
    assert labels.tolist() == [[2, 2, 2, 0], [2, 1, 1, 0], [0, 1, 1, 0]]


def test_equal_scores_show_the_earlier() -> None:
    first, second, third = np.eye(3, dtype=bool)[[0, 1, 2], None] | np.eye(3, dtype=bool)[[1, 2, 2], None]
    labels = label_map.label_map([runs_of(m) for m in (first, second, third)], np.ones(3), (1, 3))
    assert labels.tolist() == [[1, 1, 2]]


def test_the_better_by_a_hair_is_on_top() -> None:
    full = runs_of(np.ones((1, 3), bool))
    part = runs_of(np.array([[True, False, False]]))
    scores = np.array([0.9, np.nextafter(np.float32(0.9), np.float32(1))], np.float32)
    assert label_map.label_map([full, part], scores, (1, 3)).tolist() == [[1, 2, 2]]
    assert label_map.label_map([part, full], scores, (1, 3)).tolist() == [[1, 1, 1]]


def slow_fill(found: list[polygons.Polygon], shape: tuple[int, int]) -> np.ndarray:
    """Even-odd rule at every pixel's centre, over the rings of all polygons."""
    filled = np.zeros(shape, bool)
    for ring in (ring for polygon in found for ring in polygon):
        for (xa, ya), (xb, yb) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            assert (xa == xb) != (ya == yb), "edges run along the pixels"
            if xa == xb:
                filled[min(ya, yb) : max(ya, yb), xa:] ^= True
    return filled


def test_polygons_by_hand() -> None:
    assert polygons.polygons(np.zeros((3, 3), bool)) == []
    (square,) = polygons.polygons(np.ones((2, 3), bool), origin=(10, 20))
    assert [ring.tolist() for ring in square] == [[[10, 20], [13, 20], [13, 22], [10, 22]]]
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    ((outer, hole),) = polygons.polygons(ring)
    assert outer.tolist() == [[0, 0], [3, 0], [3, 3], [0, 3]]
    assert sorted(hole.tolist()) == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert polygons._signed_area(outer) == 9
    assert polygons._signed_area(hole) == -1


def test_pixels_that_touch_at_a_corner_are_two_polygons() -> None:
    found = polygons.polygons(np.array([[1, 0], [0, 1]], bool))
    assert [[ring.tolist() for ring in polygon] for polygon in found] == [
        [[[0, 0], [1, 0], [1, 1], [0, 1]]],
        [[[1, 1], [2, 1], [2, 2], [1, 2]]],
    ]


def test_a_hole_that_touches_the_outside_at_a_corner() -> None:
    mask = np.ones((3, 3), bool)
    mask[0, 0] = mask[1, 1] = False
    ((outer, hole),) = polygons.polygons(mask)
    assert len(outer) == 6
    assert len(hole) == 4


def test_island_in_a_lake() -> None:
    mask = np.ones((7, 7), bool)
    mask[1:6, 1:6] = False
    mask[2:5, 2:5] = True
    mask[3, 3] = False
    found = polygons.polygons(mask)
    assert [[polygons._signed_area(ring) for ring in polygon] for polygon in found] == [[49, -25], [9, -1]]


@pytest.mark.parametrize("density", [0.1, 0.4, 0.6, 0.9])
def test_polygons_fill_to_the_region(density: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        mask = rng.random(rng.integers(1, 12, 2)) < density
        found = polygons.polygons(mask)
        assert (slow_fill(found, mask.shape) == mask).all()
        for outer, *holes in found:
            assert polygons._signed_area(outer) > 0
            alone = slow_fill([[outer, *holes]], mask.shape)
            inside = slow_fill([[outer]], mask.shape)
            assert (alone <= mask).all(), "a polygon with its own holes covers foreground only"
            for hole in holes:
                assert polygons._signed_area(hole) < 0
                assert (slow_fill([[hole]], mask.shape) <= inside).all()
        for ring in (ring for polygon in found for ring in polygon):
            assert len({tuple(point) for point in ring.tolist()}) == len(ring), "no ring meets itself"
            steps = np.roll(ring, -1, axis=0) - ring
            assert ((steps[:, 0] == 0) != (np.roll(steps, -1, axis=0)[:, 0] == 0)).all(), "every point is a corner"


def test_polygons_from_runs_lie_in_the_image() -> None:
    mask = np.zeros((9, 11), bool)
    mask[4:7, 5:8] = True
    ((ring,),) = polygons.rle_to_polygons(runs_of(mask), (9, 11))
    assert ring.tolist() == [[5, 4], [8, 4], [8, 7], [5, 7]]
    assert polygons.rle_to_polygons(np.array([99]), (9, 11)) == []
    mask[5, 6] = False
    ((_, hole),) = polygons.rle_to_polygons(runs_of(mask), (9, 11))
    assert hole.min(axis=0).tolist() == [6, 5], "x, then y"
    assert hole.max(axis=0).tolist() == [7, 6]
