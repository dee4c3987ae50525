"""Parts that work on many objects give what comparing each with each gives, without doing so."""

import numpy as np
import pytest
import torch
from test_overlaps import LAYOUTS, draw, labels_of

from masklab.config.recipe import load_recipe
from masklab.evaluation.recall import neighbour_gaps
from masklab.inference.tiles import predict, segment
from masklab.inference.tiles.merge import TileObjects, _Objects, depth_in
from masklab.inference.tiles.plan import TilePlan
from masklab.masks.encode import encode_windows
from masklab.masks.label_map import LabelPainter, label_map
from masklab.masks.packed import PackedRLEs
from masklab.ops import boxes as boxes_module
from masklab.ops.boxes import overlap_share
from masklab.results import measurements, overlay
from masklab.results.colours import PALETTE
from masklab.structures import Targets
from masklab.training.assign import sample_anchors, sample_proposals

PLAN = TilePlan(size=(900, 1000), scale=1.0, side=300, overlap=60, step=8)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "none"])
def test_gaps_are_those_to_the_nearest_of_all(layout):
    boxes = draw(layout).numpy()
    exact = boxes.astype(np.float64)
    apart = np.maximum(exact[:, None, :2] - exact[:, 2:], exact[:, :2] - exact[:, None, 2:]).clip(0)
    distance = np.hypot(apart[..., 0], apart[..., 1])
    np.fill_diagonal(distance, np.inf)
    sides = np.sqrt((exact[:, 2:] - exact[:, :2]).prod(axis=1))
    np.testing.assert_allclose(neighbour_gaps(boxes), distance.min(axis=1) / sides, rtol=1e-12)


def test_the_nearest_of_points_that_lie_on_one_another():
    points = np.array([[1.0, 1], [4, 5], [1, 1], [np.nan, 0], [1, 1], [4, 6]])
    np.testing.assert_array_equal(measurements._nearest(points), [0, 1, 0, np.nan, 0, 1])
    np.testing.assert_array_equal(measurements._nearest(points[[0, 2]]), [0, 0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_colours_are_those_of_looking_at_all_objects(layout):
    boxes = draw(layout).numpy()
    chosen, used = [], np.zeros(len(PALETTE), np.int64)
    for box in boxes:
        near = [
            colour
            for colour, other in zip(chosen, boxes, strict=False)
            if (other[:2] < box[2:] + 4).all() and (other[2:] > box[:2] - 4).all()
        ]
        chosen.append(int(np.lexsort((used, np.bincount(near, minlength=len(PALETTE)).astype(int)))[0]))
        used[chosen[-1]] += 1
    assert overlay._colours(boxes) == [PALETTE[k] for k in chosen]


def found_in_tiles(count=60, seed=0):
    """Objects of three classes in the tiles of `PLAN`, many of them cut by an edge or seen by several tiles."""
    rng = np.random.default_rng(seed)
    found = []
    for tile in PLAN.tiles():
        sides = rng.integers(3, 170, (count, 2))
        corner = rng.integers(tile[:2], np.array(tile[2:]) - 3, (count, 2))
        bounds = np.concatenate([corner, np.minimum(corner + sides, tile[2:])], axis=1)
        masks = encode_windows([np.ones((y2 - y1, x2 - x1), bool) for x1, y1, x2, y2 in bounds], bounds, PLAN.size)
        scores, labels = rng.random(count).astype(np.float32), rng.integers(3, size=count)
        found.append(TileObjects(tile, bounds.astype(np.float32), scores, labels, bounds, PackedRLEs.of(masks)))
    return found


def test_objects_of_tiles_are_compared_with_those_that_overlap_them():
    objects = _Objects(found_in_tiles(), PLAN.size)
    bounds = objects.bounds
    shares = (np.maximum(bounds[:, None, :2], bounds[:, :2]) < np.minimum(bounds[:, None, 2:], bounds[:, 2:])).all(
        axis=2
    )
    shares &= (objects.labels[:, None] == objects.labels) & (objects.tile[:, None] < objects.tile)
    assert sorted(objects.pairs()) == list(zip(*(each.tolist() for each in shares.nonzero()), strict=True))
    depth = objects.depth()
    seen = (depth_in(objects.tiles[None], bounds[:, None], PLAN.size) > 0).any(axis=1)
    assert 0 < (~seen).sum() < (depth <= 0).sum()
    assert objects.only_cut(depth).tolist() == (~seen).tolist()


def test_boxes_go_to_the_tile_in_which_they_lie_deepest():
    boxes = np.concatenate([part.boxes for part in found_in_tiles()] + [np.array([[5, 5, 800, 700]] * 3, np.float32)])
    tiles = PLAN.tiles()
    depths = depth_in(np.array(tiles)[None], boxes.astype(np.int64)[:, None], PLAN.size)
    assigned = segment._assigned(PLAN, boxes)
    assert sorted(row for rows in assigned.values() for row in rows.tolist()) == list(range(len(boxes)))
    for tile, rows in assigned.items():
        for row in rows.tolist():
            assert (tile in tiles and tiles.index(tile) == depths[row].argmax()) or depths[row].max() < 0
    assert assigned[PLAN.around((5, 5, 800, 700), int(1.25 * 795))].tolist()[-3:] == [
        len(boxes) - 3,
        len(boxes) - 2,
        len(boxes) - 1,
    ]


def test_cut_objects_share_the_tiles_around_them():
    found = found_in_tiles()
    cut = [np.arange(0, 60, 3) for _ in found]
    bounds = np.concatenate(
        [part.bounds[rows[part.scores[rows] >= 0.3]] for part, rows in zip(found, cut, strict=True)]
    )
    expected = []
    while len(bounds):
        tile = PLAN.around(tuple(bounds[0].tolist()))
        expected.append(tile)
        served = (bounds[:, :2] >= np.array(tile[:2]) + 75).all(axis=1) & (
            bounds[:, 2:] <= np.array(tile[2:]) - 75
        ).all(axis=1)
        served[0] = True
        bounds = bounds[~served]
    assert predict._tiles_around(PLAN, found, cut, 0.3) == expected


def test_any_part_of_a_label_map():
    part = found_in_tiles()[0]
    whole = label_map(list(part.masks), part.scores, PLAN.size)
    painter, painted = LabelPainter(part.masks, part.scores, PLAN.size), np.zeros_like(whole)
    for y in range(0, 900, 70):
        for x in range(0, 1000, 130):
            painter.paint(painted[y : y + 70, x : x + 130], (x, y))
    assert whole.max() >= 59
    np.testing.assert_array_equal(painted, whole)


@pytest.mark.parametrize("drop", [False, True])
def test_assignment_in_parts_is_that_of_all_at_once(drop, monkeypatch):
    config = load_recipe("nuclei", {"model": {"rpn": {"drop_crossing_anchors": drop}}}).model
    boxes, anchors = draw("spread"), torch.cat([draw("spread", 3), draw("spread"), draw("spread", 9) + 2])
    nothing = torch.zeros(0)
    targets = Targets(boxes, labels_of(boxes, 3), nothing, nothing, nothing, draw("spread", 8)[:30])

    def assigned():
        generator = torch.Generator().manual_seed(0)
        return [
            *sample_anchors(anchors, targets, (880, 880), config.rpn, generator),
            *sample_proposals(anchors, targets, config.box, generator),
            overlap_share(anchors, targets.ignored),
        ]

    expected = assigned()
    assert (expected[1] >= 0).any()
    monkeypatch.setattr(boxes_module, "_PAIRS", 7 * len(anchors))
    assert all(map(torch.equal, assigned(), expected))
