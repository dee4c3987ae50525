"""Run lengths against pycocotools and against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as oracle

from masklab.datasets.objects import Objects
from masklab.masks import coco_segmentation, encode, rle

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def blob(rng: np.random.Generator, height: int, width: int, density: float) -> np.ndarray:
    return (rng.random((height, width)) < density).astype(np.uint8)


def slow_runs(mask: np.ndarray) -> list[int]:
    """One pixel at a time."""
    runs, value = [0], 0
    for pixel in mask.ravel(order="F"):
        if pixel == value:
            runs[-1] += 1
        else:
            runs.append(1)
            value = pixel
    return runs


def oracle_string(mask: np.ndarray) -> str:
    return oracle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def random_masks(seed: int, count: int = 150) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, (count, 2))
    return [blob(rng, h, w, d) for (h, w), d in zip(sizes, rng.choice([0, 0.02, 0.5, 0.98, 1], count), strict=True)]


def runs_of(mask: np.ndarray) -> np.ndarray:
    return np.array(slow_runs(mask), np.int64)


def test_nothing() -> None:
    assert rle.rle_to_strings([]) == []
    assert encode.encode_windows([], np.zeros((0, 4), np.int64), (3, 4)) == []
    empty = np.array([12], np.int64)
    assert rle.bounds(empty, (3, 4)) is None
    assert rle.area(empty) == 0
    assert rle.window(empty, (3, 4), (1, 1, 3, 2)).tolist() == [[0, 0]]
    assert rle.window(empty, (3, 4), (1, 1, 1, 2)).shape == (1, 0)


def test_drawn_by_hand() -> None:
    """A 3 x 4 image; read down the columns: 000 011 110 000."""
    mask = np.array([[0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0]], np.uint8)
    runs = coco_segmentation.rle_from_segmentation({"size": [3, 4], "counts": [4, 4, 4]}, (3, 4))
    assert runs.tolist() == [4, 4, 4]
    assert rle.rle_to_strings([runs]) == ["444"]
    assert rle.area(runs) == 4
    assert rle.bounds(runs, (3, 4)) == (1, 0, 3, 3)
    assert (rle.window(runs, (3, 4), (0, 0, 4, 3)) == mask).all()
    assert rle.window(runs, (3, 4), (2, 0, 4, 2)).tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize("masks", [random_masks(0), random_masks(1)])
def test_strings_equal_pycocotools(masks: list[np.ndarray]) -> None:
    runs = [runs_of(mask) for mask in masks]
    strings = rle.rle_to_strings(runs)
    assert strings == [oracle_string(mask) for mask in masks]
    for string, expected in zip(strings, runs, strict=True):
        assert rle.rle_from_string(string).tolist() == expected.tolist()
        assert rle.rle_from_string(string.encode()).tolist() == expected.tolist()


def test_large_numbers_survive() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 2**exponent, 50) for exponent in (1, 4, 5, 9, 10, 24, 30, 33)]
    for runs, string in zip(masks, rle.rle_to_strings(masks), strict=True):
        assert rle.rle_from_string(string).tolist() == runs.tolist()


@pytest.mark.parametrize(
    ("string", "reason"),
    [
        ("4 4", "outside"),
        ("44\x7f", "outside"),
        ("4é", "outside"),
        ("44Q", "ends inside"),
        ("o" * 9 + "0", "too large"),
        ("o" * 7 + "0", "too large"),
        ("44O", "negative"),
        ("441K", "negative"),
    ],
)
def test_malformed_strings_are_refused(string: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        rle.rle_from_string(string)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "null"),
        ([], "no polygons"),
        ([[1, 1, 3, 3]], "2 points"),
        ([[1, 1, 3, 3, 2]], "odd"),
        ([[1, 1, 3, float("nan"), 2, 2]], "finite"),
        ([[1, 1, 3, 1e9, 2, 2]], "outside"),
        ([[1, 1, 3, -1e9, 2, 2]], "outside"),
        ([1, 1, 3, 3, 2, 2], "flat list"),
        ([[[1, 1], [3, 3], [2, 2]]], "flat list"),
        ([[1, 1, 3, None, 2, "x"]], "flat list"),
        ([[1, 1, 3, "4", 2, 2]], "flat list"),
        ([[1, 1, 3, 2**70, 2, 2]], "flat list"),
        ({"counts": [20]}, "no 'size'"),
        ({"size": [4, 5]}, "no 'counts'"),
        ({"size": [5, 4], "counts": [20]}, "image's"),
        ({"size": [4, 5], "counts": [19]}, "covers 19"),
        ({"size": [4, 5], "counts": []}, "covers 0"),
        ({"size": [4, 5], "counts": ""}, "covers 0"),
        ({"size": [4, 5], "counts": [21, -1]}, "negative"),
        ({"size": [4, 5], "counts": [2**64]}, "whole numbers"),
        ({"size": [4, 5], "counts": [2**62, 2**62, 2**62, 2**62, 20]}, "run of"),
        ({"size": [4, 5], "counts": [10.5, 9.5]}, "whole numbers"),
        ({"size": [4, 5], "counts": [[20]]}, "whole numbers"),
        ({"size": [4, 5], "counts": [[20], 3]}, "whole numbers"),
        ({"size": [4, 5], "counts": None}, "whole numbers"),
        ({"size": [4, 5], "counts": "d"}, "ends inside"),
    ],
)
def test_bad_segmentations_are_refused(segmentation: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        coco_segmentation.rle_from_segmentation(segmentation, (4, 5))


def test_counts_that_overflow_64_bits_are_refused() -> None:
    size = (2**31 - 1, 2**31 - 1)
    rest = size[0] * size[1] + 2**64
    counts = [min(size[0] * size[1], max(0, rest - k * size[0] * size[1])) for k in range(7)]
    assert sum(counts) == rest
    assert np.array(counts).sum() == size[0] * size[1], "as numpy adds"
    with pytest.raises(ValueError, match="covers"):
        coco_segmentation.rle_from_segmentation({"size": list(size), "counts": counts}, size)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([0, 20], [0, 20]),
        ([20, 0], [20]),
        ([0, 0, 20], [20]),
        ([3, 0, 2, 15], [5, 15]),
        ([0, 3, 0, 2, 15], [0, 5, 15]),
        ([0, 0, 0, 4, 16, 0, 0], [0, 4, 16]),
    ],
)
def test_runs_of_length_zero_are_joined(counts: list[int], expected: list[int]) -> None:
    assert coco_segmentation.rle_from_segmentation({"size": [4, 5], "counts": counts}, (4, 5)).tolist() == expected
    string = rle.rle_to_strings([np.array(counts, np.int64)])[0]
    assert coco_segmentation.rle_from_segmentation({"size": [4, 5], "counts": string}, (4, 5)).tolist() == expected


def test_polygons_equal_pycocotools() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        h, w = (int(side) for side in rng.integers(3, 60, 2))
        parts = [(rng.random((rng.integers(3, 9), 2)) * (w + 8, h + 8) - 4).ravel() for _ in range(rng.integers(1, 4))]
        polygons = [part.round(2).tolist() for part in parts]
        expected = oracle.decode(oracle.merge(oracle.frPyObjects(polygons, h, w)))
        runs = coco_segmentation.rle_from_segmentation(polygons, (h, w))
        assert runs.tolist() == slow_runs(expected)


def test_area_bounds_and_window_equal_the_full_mask() -> None:
    rng = np.random.default_rng(3)
    for mask in random_masks(4):
        h, w = mask.shape
        runs = runs_of(mask)
        assert rle.area(runs) == mask.sum()
        rows, columns = np.nonzero(mask)
        tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None
        assert rle.bounds(runs, (h, w)) == tight
        x1, x2 = sorted(rng.integers(-5, w + 6, 2).tolist())
        y1, y2 = sorted(rng.integers(-5, h + 6, 2).tolist())
        padded = np.pad(mask, 6)
        found = rle.window(runs, (h, w), (x1, y1, x2, y2))
        assert found.dtype == np.uint8
        assert found.shape == (y2 - y1, x2 - x1)
        assert (found == padded[y1 + 6 : y2 + 6, x1 + 6 : x2 + 6]).all()


@pytest.mark.parametrize("density", [0.0, 0.3, 0.9, 1.0])
def test_windows_encode_like_the_full_image(density: float) -> None:
    """Objects of every kind, those as tall as the image, whose columns join, among them."""
    rng = np.random.default_rng(5)
    h, w = 12, 17
    boxes, bitmaps, canvases = [], [], []
    for k in range(80):
        x1, x2 = sorted(rng.integers(0, w + 1, 2).tolist())
        y1, y2 = (0, h) if k % 3 == 0 else sorted(rng.integers(0, h + 1, 2).tolist())
        bitmap = blob(rng, y2 - y1, x2 - x1, density)
        canvas = np.zeros((h, w), np.uint8)
        canvas[y1:y2, x1:x2] = bitmap
        boxes.append((x1, y1, x2, y2))
        bitmaps.append(bitmap)
        canvases.append(canvas)
    runs = encode.encode_windows(bitmaps, boxes, (h, w))
    assert [r.tolist() for r in runs] == [slow_runs(canvas) for canvas in canvases]
    assert rle.rle_to_strings(runs) == [oracle_string(canvas) for canvas in canvases]
    by_corner = encode.encode_windows(bitmaps, [box[:2] for box in boxes], (h, w))
    assert all((a == b).all() for a, b in zip(runs, by_corner, strict=True))


def test_neighbours_in_the_list_do_not_join() -> None:
    """One mask ends in the last pixel, the next begins in the first."""
    full = np.ones((2, 3), bool)
    runs = encode.encode_windows([full, full, full[:, :0], full], [(0, 0), (0, 0), (1, 0), (0, 0)], (2, 3))
    assert [r.tolist() for r in runs] == [[0, 6], [0, 6], [6], [0, 6]]


def test_many_strings_are_read_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((7, 9)) < share for share in (0.0, 0.1, 0.5, 0.9, 1.0) for _ in range(8)]
    strings = [oracle.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask in masks]
    for texts in (strings, [s.decode() for s in strings], ["", *strings, ""], [""], []):
        found = rle.rles_from_strings(texts)
        assert len(found) == len(texts)
        for runs, text in zip(found, texts, strict=True):
            np.testing.assert_array_equal(runs, rle.rle_from_string(text))


@pytest.mark.parametrize("wrong", ["P", "~", "0P", "é", "0" + "P" * 8 + "0", "00O"])
def test_one_malformed_string_of_many_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match="RLE string"):
        rle.rle_from_string(wrong)
    for texts in ([wrong], ["52", wrong], [wrong, "52"]):
        with pytest.raises(ValueError, match="RLE string"):
            rle.rles_from_strings(texts)


def test_windows_must_fit() -> None:
    with pytest.raises(ValueError, match="differs from its box"):
        encode.encode_windows([np.ones((2, 2), bool)], [(0, 0, 2, 3)], (5, 5))
    with pytest.raises(ValueError, match="leaves the image"):
        encode.encode_windows([np.ones((2, 2), bool)], [(4, 0, 6, 2)], (5, 5))
    for box in ((-1, 0, 1, 2), (0, -1, 2, 1), (0, 4, 2, 6)):
        with pytest.raises(ValueError, match="leaves the image"):
            encode.encode_windows([np.ones((2, 2), bool)], [box], (5, 5))
    assert encode.encode_windows([np.ones((2, 2), bool)], [(5, 1, 7, 3)], (3, 7))[0].tolist() == [16, 2, 1, 2]
    with pytest.raises(ValueError, match="differs from its box"):
        encode.encode_windows([np.ones((1, 3), bool)], np.array([[0, 0, 2, 2]]), (5, 5))


SHAPES = {  # and how many pixels of each are drawn
    "ring": (["####", "#..#", "#..#", "####"], 12),
    "ring in a ring": (["#####", "#...#", "#.#.#", "#...#", "#####"], 17),
    "hook": (["#....", "#....", "###.."], 5),
    "stairs": (["#...", "##..", ".##.", "..##"], 7),
    "two parts": (["##...", ".....", "...##"], 4),
    "a corner touches": (["#.", ".#"], 2),
    "full": (["###", "###"], 6),
    "last pixel": (["...", "..#"], 1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_area_is_that_of_the_pixels_not_of_the_box(name: str) -> None:
    rows, pixels = SHAPES[name]
    mask = np.array([[character == "#" for character in row] for row in rows])
    runs = encode.encode_windows([mask], [(1, 2)], (9, 8))[0]
    assert rle.area(runs) == pixels
    objects = Objects.build((9, 8), [runs, runs_of(np.ones((9, 8), np.uint8)), runs], [0, 0, 0])
    assert objects.areas.tolist() == [pixels, 72, pixels]


def test_any_number_but_0_labels_an_object() -> None:
    values, runs = encode.encode_labels(np.array([[-3, 0, 7], [-3, 7, 7]]))
    assert values.tolist() == [-3, 7]
    assert [r.tolist() for r in runs] == [[0, 2, 4], [3, 3]]


def test_polygons_in_an_image_of_almost_4_thousand_million_pixels() -> None:
    """Which 31 bits do not count and 32 do."""
    square = [[10, 20, 60, 20, 60, 60, 10, 60]]
    assert rle.area(coco_segmentation.rle_from_segmentation(square, (2**16, 2**16 - 1))) == 50 * 40
    with pytest.raises(ValueError, match="too many"):
        coco_segmentation.rle_from_segmentation(square, (2**16, 2**16))


def test_coco_annotations_equal_pycocotools() -> None:
    path = SHARED / "coco-mini" / "annotations" / "instances_val2017.json"
    if not path.is_file():
        pytest.skip("no ../shared/data/coco-mini to read")
    content = json.loads(path.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    kinds = set()
    for annotation in content["annotations"][:800]:
        h, w = sizes[annotation["image_id"]]
        segmentation = annotation["segmentation"]
        found = coco_segmentation.rle_from_segmentation(segmentation, (h, w))
        theirs = oracle.frPyObjects(segmentation, h, w)
        theirs = theirs if isinstance(theirs, dict) else oracle.merge(theirs)
        assert rle.area(found) == int(oracle.area(theirs))
        box = rle.bounds(found, (h, w))
        if box is not None:
            x, y, wide, tall = oracle.toBbox(theirs).tolist()
            assert box[0] == x
            assert box[2] == x + wide
            assert box[1] == y
            assert box[3] == y + tall
        assert rle.rle_to_strings([found]) == [oracle_string(oracle.decode(theirs))]
        kinds.add(type(segmentation))
    assert kinds
