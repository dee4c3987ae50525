"""One image's result: its views agree with each other and with pycocotools."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as oracle
from reference import tf_positions

from masklab.masks import polygons as trace
from masklab.masks import rle
from masklab.masks import threshold as ops
from masklab.results.instances import Instances
from masklab.results.overlay import overlay

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
SIZE = (40, 60)


def instances(n: int = 5, seed: int = 0, size: tuple[int, int] = SIZE) -> Instances:
    """Discs, best first, with category ids that have gaps."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:11j, -1:1:11j]
    disc = (1 / (1 + np.exp(8 * (np.hypot(y, x) - 0.9)))).astype(np.float32)
    corners = rng.uniform(-0.1, 0.9, (n, 2)) * size[::-1]
    boxes = np.concatenate((corners, corners + rng.uniform(3, 20, (n, 2))), axis=1).astype(np.float32)
    scores = np.sort(rng.random(n, np.float32))[::-1].copy()
    labels = rng.integers(0, 3, n)
    return Instances(size, boxes, scores, labels, np.tile(disc, (n, 1, 1)), ("cat", "dog", "newt"), (7, 1, 90))


def test_no_objects() -> None:
    empty = instances(0)
    assert len(empty) == 0
    assert repr(empty) == "Instances(0 objects; image 40 x 60)"
    assert empty.rles() == []
    assert empty.polygons() == []
    assert empty.to_coco(3) == []
    assert [empty.mask(n) for n in range(len(empty))] == []
    assert (empty.label_map() == np.zeros(SIZE)).all()
    assert len(empty.above(0.5)) == 0
    assert empty.above(0.5).masks.shape == (0, 11, 11)


def test_repr_says_what_was_found() -> None:
    one = instances(1)
    assert repr(one).startswith("Instances(1 object: 1 ")
    assert repr(one).endswith("image 40 x 60)")
    many = repr(instances(30))
    assert "30 objects" in many
    assert "newt" in many


def test_arrays_must_belong_together() -> None:
    good = instances(3)
    with pytest.raises(ValueError, match="one row per object"):
        Instances(SIZE, good.boxes[:2], good.scores, good.labels, good.masks, ("a", "b", "c"), (1, 2, 3))
    with pytest.raises(ValueError, match="labels"):
        Instances(SIZE, good.boxes, good.scores, good.labels + 3, good.masks, ("a", "b", "c"), (1, 2, 3))
    with pytest.raises(ValueError, match="category ids"):
        Instances(SIZE, good.boxes, good.scores, good.labels, good.masks, ("a", "b", "c"), (1, 2))


def test_all_views_show_the_same_masks() -> None:
    found = instances(12)
    masks = [found.mask(n) for n in range(len(found))]
    labels = found.label_map()
    expected = np.zeros(SIZE, np.int32)
    for n in reversed(range(len(found))):
        expected[masks[n]] = n + 1
    assert (labels == expected).all()
    for n, (mask, segmentation, polygons) in enumerate(zip(masks, found.rles(), found.polygons(), strict=True)):
        assert mask.dtype == bool
        assert mask.shape == SIZE
        assert (mask == found.mask(n)).all()
        assert (oracle.decode(segmentation) == mask).all()
        filled = sum(trace._signed_area(ring) for polygon in polygons for ring in polygon)
        assert filled == mask.sum()
    assert sum(mask.any() for mask in masks) > 8


def test_above_keeps_those_at_least_as_good() -> None:
    found = instances(12)
    score = float(found.scores[4])
    best = found.above(score)
    assert len(best) == 5
    assert (best.boxes == found.boxes[:5]).all()
    assert best.rles() == found.rles()[:5]
    assert found.above(score).rles() == best.rles()
    assert len(found.above(1.1)) == 0
    assert len(found.above(0.0)) == 12


def test_masks_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = ops.encode_masks
    monkeypatch.setattr(ops, "encode_masks", lambda *args: calls.append(1) or encode(*args))
    found = instances(4)
    found.rles(), found.label_map(), found.polygons(), found.to_coco(1), [found.mask(n) for n in range(len(found))]
    found.above(0.1).rles()
    assert calls == [1]


def test_coco_results_survive_json() -> None:
    found = instances(6)
    entries = json.loads(json.dumps(found.to_coco("image-7")))
    assert len(entries) == 6
    for n, entry in enumerate(entries):
        assert entry["image_id"] == "image-7"
        assert entry["category_id"] == (7, 1, 90)[found.labels[n]]
        x, y, w, h = entry["bbox"]
        np.testing.assert_allclose([x, y, x + w, y + h], found.boxes[n], rtol=1e-6)
        assert np.float32(entry["score"]) == found.scores[n]
        assert (oracle.decode(entry["segmentation"]) == found.mask(n)).all()


def test_boxes_lie_as_they_say() -> None:
    found = instances(6)
    other = Instances(
        SIZE,
        tf_positions(found.boxes, SIZE).astype(np.float32),
        found.scores,
        found.labels,
        found.masks,
        found.class_names,
        found.category_ids,
    )
    assert other.rles() == rle.rle_to_coco(ops.encode_masks(other.masks, other.boxes, SIZE), SIZE)
    assert other.rles() != found.rles()
    assert other.above(0.0).rles() == other.rles()


def test_overlay_of_nothing_is_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 600, 520), np.uint8)
    found = overlay(image, instances(0, size=(600, 520)))
    assert isinstance(found, Image.Image)
    assert (np.asarray(found) == image.transpose(1, 2, 0)).all()


def test_overlay_enlarges_small_images_by_a_whole_factor() -> None:
    image = np.zeros((3, 40, 60), np.uint8)
    found = overlay(image, instances(5))
    assert found.mode == "RGB"
    assert found.width * 40 == found.height * 60
    assert found.height % 40 == 0
    assert found.height >= 512


def test_overlay_does_not_enlarge_a_strip_beyond_reason() -> None:
    assert overlay(np.zeros((3, 4, 3000), np.uint8), instances(2, size=(4, 3000))).size == (3000, 4)


@pytest.mark.parametrize("n", [3, 200])
def test_overlay_draws_objects_and_leaves_the_rest(n: int) -> None:
    image = np.full((3, 600, 700), 90, np.uint8)
    scene = instances(n, size=(600, 700))
    changed = (np.asarray(overlay(image, scene, min_score=0.0)) != 90).any(axis=2)
    labels = scene.label_map() > 0
    assert changed[labels].mean() > 0.99
    assert changed[:, :].mean() < 0.8
    assert not (np.asarray(overlay(image, scene, min_score=1.1)) != 90).any()


def test_overlay_shows_a_small_object_on_a_large_one_that_scores_better() -> None:
    boxes = np.array([[0, 0, 600, 600], [300, 300, 320, 320]], np.float32)
    scores, labels = np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64)
    scene = Instances((600, 600), boxes, scores, labels, np.ones((2, 5, 5), np.float32), ("cat",), (1,))
    found = np.asarray(overlay(np.full((3, 600, 600), 90, np.uint8), scene))
    assert (found[310, 310] != found[400, 400]).any()


def test_overlay_refuses_another_size() -> None:
    with pytest.raises(ValueError, match="size"):
        overlay(np.zeros((3, 41, 60), np.uint8), instances(1))
