"""Images larger than a tile: plan, merging, statistics of norms, the store, and the way through the predictor."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contracts import assert_instances, predictor
from PIL import Image
from torch import nn

import masklab
from masklab.datasets.synthetic.nuclei import draw_nuclei
from masklab.evaluation.evaluate import evaluate
from masklab.images.reader import ArrayReader
from masklab.inference.tiles import plan as plan_module
from masklab.inference.tiles import predict as predict_module
from masklab.inference.tiles.merge import TileObjects, bounds_of, merge
from masklab.inference.tiles.plan import TilePlan, plan_tiles, sample_boxes, tile_boxes
from masklab.inference.tiles.predict import predict_tiles
from masklab.inference.tiles.store import TileStore
from masklab.masks import rle
from masklab.masks.encode import encode_labels, encode_windows
from masklab.masks.packed import PackedRLEs
from masklab.model.build import build_model
from masklab.model.fixed_norm import FixedNorm, has_norms_to_fix, measure_norms, with_fixed_norms
from masklab.results.instances import Instances
from masklab.structures import ClassTable, TrainingData
from masklab.weights.checkpoint import load_model, save_model


def small_plan(size, side=64, overlap=24, step=4):
    return TilePlan(size, 4.0, side, overlap, step)


def boxes_inside(size, sides, seed=0, gap=2):
    """Rectangles that do not touch, of side lengths from ``sides``."""
    rng = np.random.default_rng(seed)
    taken, boxes = np.zeros(size, bool), []
    for _ in range(4000):
        height, width = rng.integers(*sides, 2)
        if height >= size[0] or width >= size[1]:
            continue
        y, x = rng.integers(0, size[0] - height + 1), rng.integers(0, size[1] - width + 1)
        around = taken[max(0, y - gap) : y + height + gap, max(0, x - gap) : x + width + gap]
        if not around.any():
            taken[y : y + height, x : x + width] = True
            boxes.append((x, y, x + width, y + height))
    return np.array(boxes)


class SeesAll:
    """In place of a model: finds the visible part of every rectangle of a picture in which each has its own number."""

    threshold, max_detections, config = 0.5, 10**6, masklab.Config()

    def __init__(self, scores=None, most=10**6):
        self.max_detections, self.scores, self.seen = most, scores, []

    def predict(self, tile, check=None):
        values = np.rint(tile[0] * 65535 / 255).astype(int)
        self.seen.append(values.shape)
        boxes, scores = [], []
        for number in np.unique(values[values > 0])[: self.max_detections]:
            rows, columns = np.nonzero(values == number)
            boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            scores.append(0.9 if self.scores is None else self.scores[number - 1])
        count = len(boxes)
        return Instances(
            values.shape,
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(scores, np.float32),
            np.zeros(count, np.int64),
            np.ones((count, 4, 4), np.float32),
            ("thing",),
            (1,),
        )


def picture(boxes, size):
    values = np.zeros((1, *size), np.uint16)
    for number, (x1, y1, x2, y2) in enumerate(boxes.tolist(), 1):
        values[:, y1:y2, x1:x2] = number
    return ArrayReader(values)


def found_by(seer, image, plan, monkeypatch, store=None):
    real = SimpleNamespace(
        image_config=lambda _: masklab.Config().image,
        threshold=0.5,
        classes=ClassTable((1,), ("thing",)),
    )
    monkeypatch.setattr(predict_module, "tile_predictor", lambda *_: seer)
    return predict_tiles(real, image, plan, store)


def as_set(boxes):
    return sorted(map(tuple, np.asarray(boxes).astype(int).tolist()))


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (200, 331), (64, 1000), (30, 500), (127, 129)])
@pytest.mark.parametrize("step", [1, 4])
def test_tiles_cover_an_image_and_overlap(size, step):
    tiles = small_plan(size, step=step).tiles()
    seen = np.zeros(size, int)
    for x1, y1, x2, y2 in tiles:
        seen[y1:y2, x1:x2] += 1
        assert x2 - x1 == min(64, size[1])
        assert y2 - y1 == min(64, size[0])
    assert seen.min() >= 1
    for axis, length in ((0, size[1]), (1, size[0])):
        starts = sorted({tile[axis] for tile in tiles})
        ends = sorted({tile[axis + 2] for tile in tiles})
        assert starts[0] == 0
        assert ends[-1] == length
        assert all(end - start >= 24 for start, end in zip(starts[1:], ends, strict=False))
        assert all(start % step == 0 for start in starts[:-1])
    assert len(tiles) == len(set(tiles))


def test_tiles_of_an_area_lie_in_it():
    tiles = tile_boxes((100, 40, 190, 140), 64, 20, 4)
    assert {(tile[0], tile[1]) for tile in tiles} >= {(100, 40)}
    assert max(tile[2] for tile in tiles) == 190
    assert max(tile[3] for tile in tiles) == 140


def test_a_tile_is_divided_until_its_parts_would_be_too_small():
    plan = small_plan((256, 256), side=256, overlap=40)
    parts = plan.divided((0, 0, 256, 256))
    assert len(parts) == 4
    assert all(part[2] - part[0] >= 148 for part in parts)
    tile = (0, 0, 256, 256)
    for _ in range(9):
        parts = plan.divided(tile)
        if not parts:
            break
        tile = parts[0]
    assert not parts


def test_samples_are_spread_over_the_image():
    boxes = sample_boxes((400, 1600), 100, 16)
    assert len(boxes) == 16
    assert {box[3] - box[1] for box in boxes} == {100}
    assert len({box[0] for box in boxes}) == 8
    assert all(0 <= x1 < x2 <= 1600 and 0 <= y1 < y2 <= 400 for x1, y1, x2, y2 in boxes)
    assert len(sample_boxes((100, 100), 100, 16)) == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sides", [(1, 22), (8, 24)])
def test_every_object_is_found_once_and_whole(sides, seed, monkeypatch):
    size = (230, 310)
    boxes = boxes_inside(size, sides, seed)
    assert len(boxes) > 60
    found = found_by(SeesAll(), picture(boxes, size), small_plan(size), monkeypatch)
    assert_instances(found)
    assert as_set(found.boxes) == as_set(boxes)
    assert as_set(bounds_of(found.rle, size)) == as_set(boxes)
    assert sorted(map(rle.area, found.rle)) == sorted(((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)).tolist())


def test_objects_larger_than_the_overlap_are_looked_for_again_around_them(monkeypatch):
    size = (230, 310)
    boxes = boxes_inside(size, (26, 58), 1)
    seer = SeesAll()
    found = found_by(seer, picture(boxes, size), small_plan(size), monkeypatch)
    assert as_set(found.boxes) == as_set(boxes)
    assert len(seer.seen) > len(small_plan(size).tiles())


def test_objects_larger_than_a_tile_are_kept_in_parts_and_said(monkeypatch, caplog):
    boxes = np.array([[20, 20, 200, 60], [100, 100, 110, 110]])
    found = found_by(SeesAll(), picture(boxes, (128, 256)), small_plan((128, 256)), monkeypatch)
    assert (100, 100, 110, 110) in as_set(found.boxes)
    covered = sum(rle.window(mask, (128, 256), (0, 0, 256, 128)) for mask in found.rle) > 0
    assert covered[20:60, 20:200].mean() > 0.75
    assert "larger than a tile of 64 pixels" in caplog.text


def test_there_is_no_cap_for_an_image(monkeypatch):
    size = (512, 512)
    boxes = boxes_inside(size, (4, 12), 2)
    assert len(boxes) > 400
    plan = small_plan(size, side=256, overlap=16)
    found = found_by(SeesAll(most=40), picture(boxes, size), plan, monkeypatch)
    assert as_set(found.boxes) == as_set(boxes)


def test_scores_order_the_objects(monkeypatch):
    size = (150, 200)
    boxes = boxes_inside(size, (8, 20), 3)
    scores = np.random.default_rng(0).uniform(0.05, 1, len(boxes))
    found = found_by(SeesAll(scores), picture(boxes, size), small_plan(size), monkeypatch)
    assert_instances(found)
    assert as_set(found.boxes) == as_set(boxes)
    by_box = dict(zip(map(tuple, boxes.tolist()), scores.astype(np.float32).tolist(), strict=True))
    for box, score in zip(found.boxes.astype(int).tolist(), found.scores.tolist(), strict=True):
        assert by_box[tuple(box)] == score


SIZE = (100, 200)


def objects_of(tile, *objects):
    """What a tile holds: boxes xyxy, each with a score and a label, as rectangles."""
    boxes = np.array([each[0] for each in objects], np.int64).reshape(-1, 4)
    masks = encode_windows([np.ones((y2 - y1, x2 - x1), bool) for x1, y1, x2, y2 in boxes.tolist()], boxes, SIZE)
    return TileObjects(
        tile,
        boxes.astype(np.float32),
        np.array([each[1] for each in objects], np.float32),
        np.array([each[2] for each in objects], np.int64),
        boxes,
        PackedRLEs.of(masks),
    )


LEFT, RIGHT = (0, 0, 120, 100), (80, 0, 200, 100)


def kept_of(left, right, threshold=0.5):
    (kept_left, kept_right), _ = merge([objects_of(LEFT, *left), objects_of(RIGHT, *right)], SIZE, threshold)
    return kept_left.tolist(), kept_right.tolist()


def test_of_two_views_of_an_object_the_deeper_one_is_kept():
    assert kept_of([((85, 40, 95, 60), 0.6, 0)], [((85, 40, 96, 60), 0.9, 0)]) == ([0], [])
    assert kept_of([((105, 40, 116, 60), 0.9, 0)], [((105, 40, 115, 60), 0.6, 0)]) == ([], [0])


def test_objects_that_share_half_or_less_or_are_of_two_classes_are_kept_both():
    assert kept_of([((85, 40, 105, 60), 0.9, 0)], [((95, 40, 115, 60), 0.9, 0)]) == ([0], [0])
    assert kept_of([((85, 40, 105, 60), 0.9, 0)], [((94, 40, 115, 60), 0.9, 0)]) != ([0], [0])
    assert kept_of([((85, 40, 105, 60), 0.9, 0)], [((85, 40, 105, 60), 0.9, 1)]) == ([0], [0])


def test_objects_of_one_tile_are_not_compared():
    assert kept_of([((85, 40, 105, 60), 0.9, 0), ((86, 40, 105, 60), 0.8, 0)], []) == ([0, 1], [])


def test_an_object_below_the_threshold_never_replaces_one_above_it():
    assert kept_of([((85, 40, 95, 60), 0.1, 0)], [((84, 40, 95, 60), 0.9, 0)]) == ([], [0])


def test_what_is_cut_gives_way_to_the_whole_object_and_to_the_tile_that_sees_all_of_it():
    assert kept_of([((110, 40, 120, 60), 0.9, 0)], [((110, 40, 130, 60), 0.6, 0)]) == ([], [0])
    assert kept_of([((110, 40, 120, 60), 0.9, 0)], []) == ([], [])
    kept, cut = merge([objects_of(LEFT, ((70, 40, 120, 60), 0.9, 0)), objects_of(RIGHT)], SIZE, 0.5)
    assert [rows.tolist() for rows in kept] == [[], []]
    assert [rows.tolist() for rows in cut] == [[0], []]


def test_nothing_found_is_no_object():
    kept, cut = merge([objects_of(LEFT), objects_of(RIGHT)], SIZE, 0.5)
    assert not any(map(len, (*kept, *cut)))


def test_packed_run_lengths_are_the_same(tmp_path):
    masks = [np.array([3, 4, 5]), np.array([0, 7]), np.array([10**10, 5, 3]), np.array([12])]
    packed = PackedRLEs.of(masks)
    assert [mask.tolist() for mask in packed] == [mask.tolist() for mask in masks]
    assert packed[2].tolist() == masks[2].tolist()
    assert [mask.tolist() for mask in packed.take([3, 0])] == [[12], [3, 4, 5]]
    assert [mask.tolist() for mask in PackedRLEs.joined([packed, packed[:1]])][-1] == [3, 4, 5]


def test_a_stopped_prediction_goes_on(tmp_path, monkeypatch):
    size = (230, 310)
    boxes = boxes_inside(size, (8, 24), 0)
    image, plan = picture(boxes, size), small_plan(size)
    whole = found_by(SeesAll(), image, plan, monkeypatch)

    class Stops(SeesAll):
        def predict(self, tile, check=None):
            if len(self.seen) == 5:
                raise KeyboardInterrupt
            return super().predict(tile)

    with pytest.raises(KeyboardInterrupt):
        found_by(Stops(), image, plan, monkeypatch, TileStore(tmp_path / "tiles", {"model": 1}))
    next(iter(sorted((tmp_path / "tiles").glob("*.npz")))).write_bytes(b"cut off")
    seer = SeesAll()
    found = found_by(seer, image, plan, monkeypatch, TileStore(tmp_path / "tiles", {"model": 1}))
    assert len(seer.seen) == len(plan.tiles()) - 4
    assert found.to_coco(1) == whole.to_coco(1)
    again = SeesAll()
    found_by(again, image, plan, monkeypatch, TileStore(tmp_path / "tiles", {"model": 2}))
    assert len(again.seen) == len(plan.tiles())
    store = TileStore(tmp_path / "tiles", {"model": 2})
    store.remove()
    assert not (tmp_path / "tiles").exists()


def test_norms_with_the_statistics_of_an_image_are_group_norm_on_it(tiny_config, classes):
    torch.manual_seed(0)
    model = build_model(with_norm(tiny_config, "group"), classes).eval()
    for part in model.modules():
        if isinstance(part, nn.GroupNorm):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    inputs = torch.randn(1, 3, 65, 81)
    with torch.no_grad():
        statistics = measure_norms(model, inputs)
        fixed = with_fixed_norms(model, statistics)
        for one, two in zip(fixed.backbone(inputs)[:4], model.backbone(inputs)[:4], strict=True):
            assert torch.allclose(one, two, atol=1e-4)
        part = inputs[:, :, :33, :33]
        assert not torch.allclose(fixed.backbone(part).conv4, model.backbone(part).conv4, atol=1e-2)
        halves = torch.cat([inputs[..., :41], inputs[..., 40:]])
        several = measure_norms(model, halves)
    assert has_norms_to_fix(model)
    assert several.keys() == statistics.keys()
    assert {name.split(".")[0] for name in statistics} == {"backbone", "mask_head"}
    name = next(iter(several))
    first = model.backbone.conv1[0](halves).detach()
    groups = model.get_submodule(name).num_groups
    wanted = first.unflatten(1, (groups, -1)).transpose(0, 1).flatten(1)
    assert torch.allclose(several[name][0], wanted.mean(1), atol=1e-5)
    assert torch.allclose(several[name][1], wanted.var(1, correction=0), atol=1e-4)
    assert not any(isinstance(part, FixedNorm) for part in model.modules())
    assert {id(p) for p in fixed.parameters()} <= {id(p) for p in model.parameters()}


def with_norm(config, norm):
    backbone = config.model.backbone.model_copy(update={"norm": norm})
    return config.model_copy(update={"model": config.model.model_copy(update={"backbone": backbone})})


def test_weights_keep_what_tiles_follow_from(tiny_config, classes, tmp_path):
    model = build_model(tiny_config, classes)
    assert load_saved(model, tmp_path).training_data is None
    model.training_data = TrainingData((480, 640), 5.0, 77.0)
    assert load_saved(model, tmp_path).training_data == model.training_data


def load_saved(model, folder):
    save_model(model, folder / "weights.safetensors")
    return load_model(folder / "weights.safetensors", "cpu")


def test_tiles_follow_from_the_model_alone(tiny_config, classes):
    model = build_model(tiny_config, classes)
    image = model.config.image
    model.config = model.config.model_copy(update={"image": image.model_copy(update={"scale": 2.0})})
    assert plan_tiles(model, (1024, 1024)) is None
    plan = plan_tiles(model, (1025, 1024))
    assert (plan.scale, plan.side) == (2.0, 1024)
    model.training_data = TrainingData((256, 256), 5.0, 100.0)
    assert plan_tiles(model, (4000, 4000)).overlap == 125
    model.training_data = TrainingData((256, 256), 5.0, 1.0)
    assert plan_tiles(model, (4000, 4000)).overlap == 64
    model.training_data = TrainingData((256, 256), 5.0, 9999.0)
    assert plan_tiles(model, (4000, 4000)).overlap == 342


def test_a_model_of_one_input_size_takes_tiles_as_large_as_its_training_images(tiny_config, classes):
    model = build_model(tiny_config, classes)
    rule = model.config.image.model_copy(update={"scale": None, "min_side": 600, "max_side": 1024})
    model.config = model.config.model_copy(update={"image": rule})
    assert plan_tiles(model, (9000, 9000)) is None, "its training images are not known"
    model.training_data = TrainingData((480, 640), 10.0, 200.0)
    assert plan_tiles(model, (960, 1280)) is None
    plan = plan_tiles(model, (960, 1300))
    assert plan.side == 640
    assert plan.scale == 1.25
    assert plan.overlap == 214


def test_a_large_image_is_predicted_as_its_parts_are(monkeypatch, tmp_path):
    """Drawn nuclei, in tiles and as a whole: nearly all objects the same, wherever the tiles' edges are."""
    model = predictor(masklab.load("nuclei", "cpu").model)
    image, _ = draw_nuclei(60, 3, (400, 400))
    whole = model.predict(image).above(model.threshold)
    monkeypatch.setattr(plan_module, "TILE", 400)
    tiled = model.predict(image)
    assert tiled.masks.shape[1:] == (0, 0)
    assert_instances(tiled)
    assert model.model.config.image.scale == 2.0, "the model stays as it was"
    found = tiled.above(model.threshold)
    assert len(whole) > 20
    assert abs(len(found) - len(whole)) <= 0.1 * len(whole)


def test_given_boxes_of_a_large_image_are_segmented_tile_by_tile(monkeypatch):
    image, labels = draw_nuclei(60, 3, (400, 400))
    values, masks = encode_labels(labels)
    boxes = bounds_of(masks, (400, 400)).astype(np.float32)
    boxes = np.concatenate((boxes, [[10, 10, 390, 380]])).astype(np.float32)
    model = predictor(masklab.load("nuclei", "cpu").model)
    scores = np.linspace(0.1, 1, len(boxes))
    whole = model.segment(image, boxes, None, scores)
    monkeypatch.setattr(plan_module, "TILE", 400)
    tiled = model.segment(image, boxes, None, scores)
    assert tiled.masks.shape[1:] == (0, 0)
    assert (tiled.boxes == boxes).all()
    assert (tiled.scores == whole.scores).all()
    shares = [
        (one & two).sum() / (one | two).sum()
        for one, two in ((whole.mask(n), tiled.mask(n)) for n in range(len(values)))
    ]
    assert np.mean(shares) > 0.95
    assert rle.area(tiled.rle[len(values)]) > 0, "a box that no tile holds"


def test_large_images_are_evaluated_in_tiles(monkeypatch, tmp_path):
    image, labels = draw_nuclei(60, 3, (400, 400))
    for folder, values in (("images", image[0]), ("masks", labels.astype(np.uint16))):
        (tmp_path / folder).mkdir()
        Image.fromarray(values).save(tmp_path / folder / "x.png")
    monkeypatch.setattr(plan_module, "TILE", 400)
    metrics = evaluate(predictor(masklab.load("nuclei", "cpu").model), tmp_path, "all")
    assert metrics["mask"]["AP50"] > 0.9
    assert metrics["measured"]["images_left_out"] == []


def test_empty_ground_is_no_dim_image(monkeypatch, caplog):
    image, _ = draw_nuclei(10, 3, (200, 200))
    wide = np.full((3, 200, 600), 8, np.uint8)
    wide[:, :, :200] = image
    monkeypatch.setattr(plan_module, "TILE", 400)
    network = masklab.load("nuclei", "cpu").model
    image_rule = network.config.image.model_copy(update={"percentiles": None})
    network.config = network.config.model_copy(update={"image": image_rule})
    model = predictor(network)
    assert len(model.tile_plan((200, 600)).tiles()) > 2
    model.predict(wide)
    assert "WARNING" not in caplog.text
    model.predict((wide // 30).astype(np.uint8))
    assert "1 of 1 images use less than a twelfth" in caplog.text


_PINNED = """
import re
from pathlib import Path
from masklab.utils.memory import release_freed

def resident():
    return int(re.search(r"VmRSS:[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1]) // 1024

blocks = [b"1" * 60_000 for _ in range(4_000)]
kept = blocks[99::100]
del blocks
before = resident()
release_freed()
print(before, resident())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs the C library glibc"
)
def test_memory_that_small_blocks_hold_back_is_given_back():
    before, after = map(int, subprocess.check_output([sys.executable, "-c", _PINNED], text=True).split())
    assert before > 200 > 100 > after
