import json
from itertools import combinations

import numpy as np
import pytest
from contracts import fails
from PIL import Image, ImageFilter

from masklab.cli.app import main
from masklab.datasets.objects import Objects
from masklab.datasets.split import Split
from masklab.datasets.statistics import shared_boxes
from masklab.datasets.synthetic.shapes import CLASSES, draw_shapes
from masklab.masks import coco_segmentation, encode, rle
from masklab.utils.errors import InputError


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_shapes(tmp_path_factory.mktemp("shapes") / "set", {"train": 40, "val": 3}, seed=5)


def test_same_seed_same_bytes(drawn, tmp_path):
    again = draw_shapes(tmp_path / "deep" / "again", {"train": 40, "val": 3}, seed=5)
    files = sorted(p.relative_to(drawn) for p in drawn.rglob("*") if p.is_file())
    assert len(files) == 45
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((drawn / p).read_bytes() == (again / p).read_bytes() for p in files)
    other = draw_shapes(tmp_path / "other", {"train": 1}, seed=6)
    assert (drawn / "train/00001.png").read_bytes() != (other / "train/00001.png").read_bytes()
    assert (drawn / "train/00001.png").read_bytes() != (drawn / "val/00001.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "other"]


def test_masks_are_the_visible_parts(drawn):
    split = Split.find(drawn, "train")
    counts = [len(split.objects(index)) for index in range(len(split))]
    assert counts.count(0) == 2
    assert min(c for c in counts if c) >= 2
    assert max(counts) <= 10
    assert not split.skipped
    assert split.categories.names == CLASSES
    touching = 0
    for index in range(len(split)):
        objects, covered = split.objects(index), np.zeros((96, 128), int)
        for row in range(len(objects)):
            covered += rle.window(objects.rle(row), (96, 128), (0, 0, 128, 96))
        assert covered.max(initial=0) <= 1
        boxes = objects.boxes
        left, right = (
            np.maximum(boxes[:, None, :2], boxes[None, :, :2]),
            np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]),
        )
        touching += int((left < right).all(axis=2).sum() - len(boxes))
    assert touching > 40
    labels = np.concatenate([split.objects(index).labels for index in range(len(split))])
    assert np.bincount(labels).min() > 30


def test_objects_differ_from_the_background(drawn):
    split = Split.find(drawn, "train")
    for index in range(5):
        image, objects = split.read(index, 3).astype(float), split.objects(index)
        covered = np.zeros((96, 128), bool)
        for row in range(len(objects)):
            covered |= rle.window(objects.rle(row), (96, 128), (0, 0, 128, 96)) > 0
        evenly_spaced = image.max(axis=0) - image.min(axis=0)
        assert evenly_spaced[covered].mean() > evenly_spaced[~covered].mean() + 20


def test_fields_of_the_json_agree(drawn):
    values = json.loads((drawn / "train.json").read_text())
    for annotation in values["annotations"]:
        runs = coco_segmentation.rle_from_segmentation(annotation["segmentation"], (96, 128))
        x, y, width, height = annotation["bbox"]
        assert rle.area(runs) == annotation["area"] > 0
        assert rle.bounds(runs, (96, 128)) == (x, y, x + width, y + height)
    assert len({a["id"] for a in values["annotations"]}) == len(values["annotations"])


def test_other_sizes_and_no_images(tmp_path):
    folder = draw_shapes(tmp_path / "a", {"train": 2, "val": 0}, size=(64, 48))
    assert Image.open(folder / "train/00001.png").size == (48, 64)
    assert len(Split.find(folder, "val")) == 0


def test_what_exists_is_not_overwritten(tmp_path):
    (tmp_path / "here").mkdir()
    draw_shapes(tmp_path / "here", {"train": 1})
    with pytest.raises(InputError, match=r"here exists and is not empty; name a new folder"):
        draw_shapes(tmp_path / "here", {"train": 1})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file exists"):
        draw_shapes(tmp_path / "file", {"train": 1})
    with pytest.raises(InputError, match="at least 32 x 32"):
        draw_shapes(tmp_path / "small", {"train": 1}, size=(16, 90))


def test_a_negative_number_of_images_is_refused(tmp_path):
    fails(["val is to have -2 images", "0 or more"], draw_shapes, tmp_path / "set", {"train": 2, "val": -2})
    assert not (tmp_path / "set").exists()


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    return draw_shapes(tmp_path_factory.mktemp("crowd") / "set", {"train": 12, "val": 1}, seed=2, style="crowd")


def test_a_crowd_is_of_large_objects_of_one_class_that_overlap(crowd):
    split = Split.find(crowd, "train")
    assert split.categories.names == ("bone", "crescent", "hook", "wave")
    assert not split.skipped
    assert {image.size for image in split.images} == {(256, 320)}
    objects = [split.objects(index) for index in range(len(split))]
    assert min(map(len, objects)) >= 3
    assert len(np.unique(np.concatenate([each.labels for each in objects]))) == 4
    longest = np.concatenate([(each.boxes[:, 2:] - each.boxes[:, :2]).max(axis=1) for each in objects])
    assert longest.max() <= 201
    assert np.quantile(longest, 0.1) >= 45, "covered ends alone make them shorter than 48"
    assert longest.max() > 150
    assert shared_boxes(split) > 0.6
    for each in objects:
        covered = sum(rle.window(each.rle(row), (256, 320), (0, 0, 320, 256)).astype(int) for row in range(len(each)))
        assert covered.max() == 1, "a mask is what is visible"


def test_nothing_but_its_outline_parts_an_object_from_its_neighbour_of_the_same_class(crowd):
    """Within an image the pixels of a class have one colour, up to stripes and noise; those of its objects do not differ."""
    split = Split.find(crowd, "train")
    pairs = 0
    for index in range(len(split)):
        image, objects = split.read(index, 3).astype(float), split.objects(index)
        masks = [rle.window(objects.rle(row), (256, 320), (0, 0, 320, 256)) for row in range(len(objects))]
        insides = [np.asarray(Image.fromarray(mask).filter(ImageFilter.MinFilter(9))) > 0 for mask in masks]
        colours = [image[:, inside].mean(axis=1) if inside.sum() > 400 else None for inside in insides]
        for row, other in combinations(range(len(objects)), 2):
            if objects.labels[row] == objects.labels[other] and not (colours[row] is None or colours[other] is None):
                np.testing.assert_allclose(colours[row], colours[other], atol=9)
                pairs += 1
    assert pairs > 10


def test_a_crowd_is_drawn_again_byte_by_byte_and_at_other_sizes(crowd, tmp_path):
    again = draw_shapes(tmp_path / "again", {"train": 2, "val": 1}, seed=2, style="crowd")
    for name in ("val.json", "val/00001.png", "train/00002.png"):
        assert (again / name).read_bytes() == (crowd / name).read_bytes()
    small = draw_shapes(tmp_path / "small", {"train": 1}, size=(96, 200), style="crowd")
    assert Image.open(small / "train/00001.png").size == (200, 96)
    assert len(Split.find(small, "train").objects(0)) >= 1
    fails(["90 x 200", "at least 96 x 96"], draw_shapes, tmp_path / "no", {"train": 1}, 0, (90, 200), "crowd")
    fails(["no style mob", "shapes, crowd"], draw_shapes, tmp_path / "no", {"train": 1}, 0, None, "mob")


def test_the_command_line_draws_a_crowd(tmp_path, capsys):
    words = ["data", "shapes", str(tmp_path / "a"), "--style", "crowd", "--train", "1", "--val", "0"]
    assert main(words) == 0
    assert Image.open(tmp_path / "a/train/00001.png").size == (320, 256)
    assert main(["data", "shapes", str(tmp_path / "b"), "--style", "mob"]) == 2
    assert "mob" in capsys.readouterr().err


def bars(boxes, labels, size=(40, 60)):
    whole = np.asarray(boxes)
    bits = [np.ones((y2 - y1, x2 - x1), bool) for x1, y1, x2, y2 in boxes]
    return Objects.build(size, encode.encode_windows(bits, whole, size), labels)


def test_boxes_that_hold_another_object_by_hand(drawn, monkeypatch):
    """A large box holds a small object whole, but not the other way round; classes differ; 10 % is too little, 20 % not."""
    split = Split.find(drawn, "train")
    images = [bars([(0, 0, 30, 30), (2, 2, 8, 8)], [0, 0]), bars([(40, 0, 50, 20), (40, 16, 50, 36)], [0, 1])]
    images.append(bars([(0, 0, 20, 20), (18, 0, 38, 20), (0, 16, 20, 36)], [2, 2, 2]))
    monkeypatch.setattr(split, "objects", lambda index: images[index % 3])
    monkeypatch.setattr(split, "evenly_spaced_indices", lambda most: [0, 1, 2])
    assert shared_boxes(split) == pytest.approx((1 + 0 + 2) / 7)
    images[:] = [bars([], [])] * 3
    assert shared_boxes(split) is None
