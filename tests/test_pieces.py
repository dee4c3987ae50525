"""Connected pieces of masks are compared with a slow search, and masks of one value are separated into objects."""

import json

import numpy as np
import pytest
from PIL import Image

from masklab.cli.app import main
from masklab.config.recipe import load_recipe
from masklab.datasets.check import check
from masklab.datasets.open import open_split
from masklab.datasets.source import DataSource
from masklab.masks import rle
from masklab.masks.encode import encode_windows
from masklab.masks.pieces import piece_areas, pieces
from masklab.training.resume import data_and_run


def slow_pieces(mask):
    """Flood fill, eight neighbours, starting points down the columns."""
    left, found = mask.copy(), []
    for x, y in np.ndindex(mask.shape[::-1]):
        if left[y, x]:
            piece, edge = np.zeros_like(mask), [(y, x)]
            left[y, x] = False
            while edge:
                b, a = edge.pop()
                piece[b, a] = True
                for d, c in np.ndindex(3, 3):
                    q, p = b + d - 1, a + c - 1
                    if 0 <= q < mask.shape[0] and 0 <= p < mask.shape[1] and left[q, p]:
                        left[q, p] = False
                        edge.append((q, p))
            found.append(piece)
    return found


def encoded(mask):
    return encode_windows([mask], [(0, 0)], mask.shape)[0]


def test_pieces_equal_the_slow_way():
    rng = np.random.default_rng(0)
    for _ in range(150):
        mask = rng.random(rng.integers(1, 25, 2)) < rng.random()
        found, expected, runs = pieces(encoded(mask), mask.shape), slow_pieces(mask), encoded(mask)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, encoded(other))
        assert piece_areas(runs, mask.shape).tolist() == [piece.sum() for piece in expected]


@pytest.mark.parametrize("shape", [(1, 400), (400, 1), (3, 3)])
def test_long_and_full_masks(shape):
    runs = encoded(np.ones(shape, bool))
    assert piece_areas(runs, shape).tolist() == [shape[0] * shape[1]]
    np.testing.assert_array_equal(pieces(runs, shape)[0], runs)
    assert pieces(encoded(np.zeros(shape, bool)), shape) == []


def test_a_spiral_is_one_piece():
    mask = np.zeros((41, 41), bool)
    for k in range(0, 20, 2):
        mask[k, max(k - 2, 0) : 41 - k] = mask[k : 41 - k, 40 - k] = mask[40 - k, k : 41 - k] = True
        mask[k + 2 : 41 - k, k] = True
    assert len(slow_pieces(mask)) == 1
    assert piece_areas(encoded(mask), mask.shape).tolist() == [mask.sum()]


CELLS = [(2, 2), (2, 20), (2, 40), (20, 2), (20, 20), (20, 40), (40, 2)]


@pytest.fixture
def binary(tmp_path):
    """Five images, each with a mask of 0 and 255, as ImageJ and GIMP write it; a speck of two pixels in the first."""
    for name in ("images", "masks"):
        (tmp_path / "set" / name).mkdir(parents=True)
    for k in range(5):
        mask = np.zeros((60, 60), np.uint8)
        for y, x in CELLS[: 4 + k % 4]:
            mask[y : y + 9, x : x + 8 + k] = 255
        if k == 0:
            mask[55, 55:57] = 255
        pixels = np.random.default_rng(k).integers(0, 200, (60, 60, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / "images" / f"{k}.png")
        Image.fromarray(mask).save(tmp_path / "set" / "masks" / f"{k}.png")
    return tmp_path / "set"


def test_masks_of_one_value_are_separated(binary):
    whole, split = open_split(binary, "all"), open_split(DataSource(binary, split_components=True), "all")
    assert [len(whole.objects(k)) for k in range(5)] == [1] * 5
    assert [len(split.objects(k)) for k in range(5)] == [4, 5, 6, 7, 4]
    assert split.most_objects == 7
    for k in range(5):
        objects = split.objects(k)
        assert objects.boxes[0].tolist() == [2, 2, 10 + k, 11]
        union = sum(rle.window(objects.rle(row), (60, 60), (0, 0, 60, 60)) for row in range(len(objects)))
        expected = rle.window(whole.objects(k).rle(0), (60, 60), (0, 0, 60, 60))
        expected[55, 55:57] = 0
        np.testing.assert_array_equal(union, expected)
    assert split.skipped == {"pieces of a pixel or two": 1}
    assert "1 pieces of a pixel or two" in split.summary()
    ids = [annotation["id"] for annotation in split.coco["annotations"]]
    assert len(set(ids)) == len(ids) == 26


def test_every_verb_takes_the_option(binary, tmp_path, capsys):
    new = tmp_path / "new"
    assert main(["data", "convert", str(binary), str(new), "--split_components"]) == 0
    assert sum(len(open_split(new, name).objects(k)) for name in ("train", "val") for k in range(1)) >= 8
    assert [finding.problem for finding in check(DataSource(new, split_components=True)).findings] == []
    findings = check(DataSource(binary, split_components=True)).findings
    assert [(f.problem, f.file_name, f.detail) for f in findings] == [
        ("pieces of a pixel or two", "images/0.png", "1 of them")
    ]
    config = load_recipe("nuclei")
    assert data_and_run(config.model_copy(update={"split_components": True}), binary, "run")[0] == DataSource(
        binary, split_components=True
    )
    assert data_and_run(config, binary, "run")[0] == DataSource(binary)


def test_crowds_stay_as_they_are(binary, tmp_path):
    new = tmp_path / "new"
    main(["data", "convert", str(binary), str(new)])
    values = json.loads((new / "train.json").read_text())
    for annotation in values["annotations"]:
        annotation["iscrowd"] = 1
    (new / "train.json").write_text(json.dumps(values))
    assert open_split(DataSource(new, split_components=True), "train").coco["annotations"] == values["annotations"]


def test_objects_of_one_piece_stay_as_they_are(shapes):
    before, after = open_split(shapes, "val"), open_split(DataSource(shapes, split_components=True), "val")
    single = [a for a in before.coco["annotations"] if a in after.coco["annotations"]]
    assert len(single) > 0.5 * len(before.coco["annotations"])
    assert after.categories == before.categories
    assert after.images.names() == before.images.names()
