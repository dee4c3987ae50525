"""Faults are put into a drawn data set one by one, each must be found; and the settings that suit a data set."""

import copy
import io
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from masklab.cli.app import main
from masklab.config.image import ImageConfig
from masklab.config.recipe import load_recipe
from masklab.config.schema import validate
from masklab.datasets.check import check, print_check
from masklab.datasets.check.annotations import duplicates
from masklab.datasets.ground_truth import GroundTruth
from masklab.datasets.open import open_split
from masklab.datasets.problems import KEPT, PROBLEMS, SKIPPED, STOPS
from masklab.datasets.split import Split
from masklab.datasets.statistics import Statistics, measure
from masklab.datasets.synthetic.shapes import draw_shapes
from masklab.masks import coco_segmentation
from masklab.model.build import build_model
from masklab.plots.dataset import suggestion
from masklab.training.auto import resolve_auto
from masklab.training.judge import judge_data
from masklab.training.train import train
from masklab.utils.errors import InputError
from masklab.weights.checkpoint import load_model

SQUARE = [[2, 3, 6, 3, 6, 9, 2, 9]]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return draw_shapes(tmp_path_factory.mktemp("clean") / "set", {"train": 6, "val": 2}, seed=3)


@pytest.fixture
def data(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "set")


def edit(folder, change, split="train"):
    path = folder / f"{split}.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return values


def found(folder):
    """Problem, image id and annotation id of every finding, unused categories of a few drawn images left out."""
    report = check(folder)
    json.dumps(report.as_dict(), allow_nan=False)
    return [
        (f.split, f.problem, f.image_id, f.annotation_id) for f in report.findings if f.problem != "unused category"
    ]


def test_a_drawn_data_set_has_nothing_wrong(clean, capsys):
    assert found(clean) == []
    assert check(clean).splits["train"]["images"] == 6
    assert main(["data", "check", str(clean)]) == 0


ANNOTATIONS = [
    ({"segmentation": [[1, 1, 2]]}, "malformed segmentation"),
    ({"segmentation": None}, "malformed segmentation"),
    ({"segmentation": {"size": [5, 5], "counts": [25]}}, "malformed segmentation"),
    ({"segmentation": {"size": [96, 128], "counts": [96 * 128]}}, "empty mask"),
    ({"segmentation": [[500, 1, 520, 1, 510, 9]], "bbox": [500, 1, 20, 8]}, "outside the image"),
    ({"category_id": 77}, "unknown category"),
    ({"category_id": None}, "unknown category"),
    ({"category_id": [1]}, "unknown category"),
    ({"bbox": [2, 3, float("nan"), 6]}, "malformed box"),
    ({"bbox": [2, 3, 10**400, 1.5]}, "malformed box"),
    ({"bbox": "everywhere"}, "malformed box"),
    ({"bbox": [2, 3, True, 6]}, "malformed box"),
    ({"area": "large"}, "malformed area"),
    ({"area": -1}, "malformed area"),
    ({"area": 10**400}, "malformed area"),
    ({"iscrowd": "0"}, "malformed iscrowd"),
    ({"iscrowd": 2, "segmentation": []}, "malformed iscrowd"),
    ({"category_id": True}, "unknown category"),
    ({"bbox": [2, 3, 0, 6]}, "box without area"),
    ({"bbox": [2, 3, -4, 6]}, "box without area"),
    ({"bbox": [2, 3, 400, 6]}, "box outside the image"),
    ({"bbox": [-1.5, 3, 4, 6]}, "box outside the image"),
    ({"iscrowd": 1, "segmentation": [], "bbox": None}, "malformed segmentation"),
    ({"image_id": 99}, "annotation of no image"),
    ({"image_id": {}}, "annotation of no image"),
    ({"id": 1}, "duplicate annotation id"),
]


@pytest.mark.parametrize(("fields", "problem"), ANNOTATIONS, ids=[str(fields) for fields, _ in ANNOTATIONS])
def test_a_faulty_annotation_is_named(data, fields, problem):
    extra = {"id": 1000, "image_id": 2, "category_id": 1, "bbox": [2, 3, 4, 6], "segmentation": SQUARE, "iscrowd": 0}
    values = edit(data, lambda v: v["annotations"].append({**extra, **fields}))
    findings = found(data)
    assert ("train", problem) in {finding[:2] for finding in findings}
    assert {finding[3] for finding in findings} == {fields.get("id", 1000)}
    if PROBLEMS[problem] == SKIPPED:  # what training itself says
        split = Split.find(data, "train")
        assert split.summary().count(f"skipped 1 annotation (1 {problem})") == 1
    elif PROBLEMS[problem] == STOPS:
        with pytest.raises(InputError):
            Split.find(data, "train")
    else:
        assert not Split.find(data, "train").skipped
        assert len(values["annotations"]) == sum(len(Split.find(data, "train").objects(k)) for k in range(6))


@pytest.mark.parametrize("number", ["x", 10**400, 7.5, None])
def test_ids_of_any_type_are_compared(data, number):
    extra = {"image_id": 2, "category_id": 1, "segmentation": SQUARE, "id": number}
    other = {**extra, "image_id": 3, "segmentation": [[20, 3, 26, 3, 26, 9, 20, 9]]}
    edit(data, lambda v: v["annotations"].extend([extra, other]))
    expected = [] if number in (7.5, None) else [("train", "duplicate annotation id", k, number) for k in (2, 3)]
    assert found(data) == expected


def test_boxes_are_allowed_the_rounding_of_their_makers(data):
    fields = {"id": 1000, "image_id": 2, "category_id": 1, "bbox": [-0.9, 3, 6, 6], "segmentation": SQUARE}
    edit(data, lambda v: v["annotations"].append(fields))
    assert found(data) == []


def test_a_crowd_region_is_not_a_fault(data):
    crowd = {"id": 1000, "image_id": 2, "category_id": 1, "bbox": [2, 3, 4, 6], "segmentation": [], "iscrowd": 1}
    edit(data, lambda v: v["annotations"].append(crowd))
    assert found(data) == []


def test_duplicate_objects_are_those_of_one_category(data):
    first = json.loads((data / "train.json").read_text())["annotations"][0]
    other = next(k for k in (1, 2, 3, 4) if k != first["category_id"])
    again = [{**first, "id": 1000}, {**first, "id": 1001, "category_id": other}, {**first, "id": 1002}]
    edit(data, lambda v: v["annotations"].extend(again))
    assert found(data) == [("train", "duplicate object", 1, 1000), ("train", "duplicate object", 1, 1002)]
    assert main(["data", "check", str(data)]) == 0, "training keeps them"


def full(masks):
    """IoU of every pair, from whole images."""
    return [[(a & b).sum() / max((a | b).sum(), 1) for b in masks] for a in masks]


def test_duplicates_equal_the_slow_way():
    rng, size, drawn = np.random.default_rng(5), (40, 50), []
    for _ in range(30):
        y, x = rng.integers(0, 20, 2)
        mask = np.zeros(size, bool)
        mask[y : y + 20, x : x + 25] = True
        drawn.append(mask)
        copy_of = drawn[int(rng.integers(len(drawn)))].copy()
        where = np.argwhere(copy_of)
        copy_of[tuple(where[rng.permutation(len(where))[: int(rng.integers(0, 60))]].T)] = False
        drawn.append(copy_of)
    labels = rng.integers(0, 2, len(drawn))
    runs = [coco_segmentation.rle_from_segmentation(as_rle(mask), size) for mask in drawn]
    slow = full(drawn)
    rows = {b for b in range(len(drawn)) for a in range(b) if labels[a] == labels[b] and slow[a][b] > 0.95}
    fast = duplicates(runs, labels, size)
    assert {row for row, _, _ in fast} == rows
    assert 5 < len(rows) < 50
    for row, other, iou in fast:
        assert other < row
        assert iou == pytest.approx(slow[row][other])
    assert duplicates([], [], size) == []


def as_rle(mask):
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, flat.size]).tolist()}


def test_masks_of_any_size_are_compared_by_their_runs():
    size = (2**30, 2**30)
    runs = [np.array([0, 2**60]), np.array([2**59, 2**59]), np.array([2**20, 2**60 - 2**20])]
    assert duplicates(runs, [0, 0, 0], size) == [(2, 0, pytest.approx(1))]


def test_every_broken_image_is_found_and_the_rest_is_still_checked(data):
    names = sorted(path.name for path in (data / "train").iterdir())
    (data / "train" / names[0]).unlink()
    whole = (data / "train" / names[1]).read_bytes()
    (data / "train" / names[1]).write_bytes(whole[: len(whole) // 2])
    (data / "train" / names[2]).write_bytes(b"GIF89a no image")
    Image.new("RGB", (60, 50), "red").save(data / "train" / names[3])
    edit(data, lambda v: v["annotations"].append({**v["annotations"][0], "id": 1000, "category_id": 9, "image_id": 5}))
    edit(data, lambda v: v["images"][5].update(file_name="x" * 300))
    assert found(data) == [
        ("train", "missing image", 1, None),
        ("train", "missing image", 6, None),
        ("train", "damaged image", 2, None),
        ("train", "damaged image", 3, None),
        ("train", "other size than annotated", 4, None),
        ("train", "unknown category", 5, 1000),
    ]


def test_images_that_are_there_twice(data):
    names = sorted(path.name for path in (data / "train").iterdir())
    shutil.copy(data / "train" / names[0], data / "train" / names[1])
    with Image.open(data / "train" / names[2]) as image:  # other bytes, the same pixels
        image.save(data / "train" / names[3], compress_level=1)
    shutil.copy(data / "train" / names[4], data / "val" / names[0])
    assert found(data) == [
        ("train", "duplicate image", 2, None),
        ("train", "duplicate image", 4, None),
        ("val", "image in two splits", 1, None),
    ]
    details = [finding.detail for finding in check(data).findings if "image" in finding.problem]
    assert "same bytes" in details[0]
    assert "same pixels" in details[1]
    assert "in train (image 5)" in details[2]


def test_exif_orientation_and_the_space_of_the_labels(data):
    exif = Image.Exif()
    for index, orientation in ((0, 6), (1, 3), (2, 6)):
        path = data / "train" / f"{index + 1:05d}.png"
        exif[274] = orientation
        with Image.open(path) as image:
            upright = image.rotate(90, expand=True) if index == 2 else image.copy()
        upright.save(path, exif=exif)
    assert found(data) == [
        ("train", "annotated as stored, before EXIF", 1, None),
        ("train", "EXIF orientation", 2, None),
    ]


ENTRIES = [
    (lambda v: v["images"].append(copy.deepcopy(v["images"][0])), "duplicate image id", 1),
    (lambda v: v["images"][2].pop("height"), "unusable image entry", 3),
    (lambda v: v["images"][2].update(file_name="../../secret.png"), "missing image", 3),
    (lambda v: v["images"].append("image.png"), "unusable image entry", None),
    (lambda v: v["categories"].append({"id": 1, "name": "again"}), "unusable categories", None),
    (lambda v: v["categories"].append({"id": "x"}), "unusable categories", None),
    (lambda v: v.pop("annotations"), "unusable split", None),
]


@pytest.mark.parametrize(("change", "problem", "image_id"), ENTRIES, ids=range(len(ENTRIES)))
def test_a_json_that_training_refuses_is_read_to_its_end(data, change, problem, image_id):
    edit(data, change)
    with pytest.raises(InputError):
        Split.find(data, "train")
    assert found(data) == [("train", problem, image_id, None)]


def test_a_json_that_is_cut_off_is_one_finding(data):
    text = (data / "train.json").read_text()
    (data / "train.json").write_text(text[:-40])
    assert found(data) == [("train", "unusable split", None, None)]


CASES = 60
HOSTILE = [None, -1, 0, 1e400, float("nan"), 10**400, True, "", "x", [], {}, [[1, 2]], {"id": 1}, "../up", "\ud800"]


def places(values, path=()):
    """Every place in nested lists and dictionaries."""
    for key in values if isinstance(values, dict) else range(len(values)):
        yield (*path, key)
        if isinstance(values[key], (dict, list)):
            yield from places(values[key], (*path, key))


def trains(folder):
    """Whether training takes every annotation of both splits."""
    try:
        train_split = open_split(folder, "train")
        splits = [train_split, open_split(folder, "val", train_split.categories)]
        for split in splits:
            split.summary()
            for index in range(len(split)):
                split.read(index, 3)
        judge_data(*splits, ImageConfig())
    except InputError:
        return False
    return not any(split.skipped for split in splits)


def test_it_finds_a_fault_exactly_where_training_does(clean, tmp_path):
    rng, kept = np.random.default_rng(0), 0
    data = shutil.copytree(clean, tmp_path / "set")
    original = (data / "train.json").read_text()
    fields = {}  # each equally often, however many objects have it
    for place in places(json.loads(original)):
        fields.setdefault(tuple(step for step in place if isinstance(step, str)), []).append(place)
    for _ in range(CASES):
        values = json.loads(original)
        everywhere = fields[list(fields)[int(rng.integers(len(fields)))]]
        *path, key = everywhere[int(rng.integers(len(everywhere)))]
        node = values
        for step in path:
            node = node[step]
        kind = int(rng.integers(len(HOSTILE) + 1))
        if kind == len(HOSTILE):
            del node[key]
        else:
            node[key] = HOSTILE[kind]
        (data / "train.json").write_text(json.dumps(values))
        report = check(data)
        assert (report.fault is None) is trains(data), (path, key, node)
        print_check(report, Console(file=io.StringIO(), width=100))
        kept += report.fault is None
    assert 0.1 < kept / CASES < 0.9, "both kinds were met"


def test_classes_are_compared_between_splits_and_with_their_use(data):
    edit(data, lambda v: v["categories"].append({"id": 9, "name": "unseen"}), "val")
    report = check(data)
    assert ("val", "category not in train") in {finding[:2] for finding in report.findings}
    unused = [f for f in report.findings if f.problem == "unused category" and f.split == "val"]
    used = {a["category_id"] for a in json.loads((data / "val.json").read_text())["annotations"]}
    assert len(unused) == 5 - len(used)
    assert any("unseen" in finding.detail for finding in unused)
    assert {finding.consequence for finding in unused} == {KEPT}


def test_other_formats_are_checked_as_they_are_read(tmp_path):
    labels = np.zeros((40, 50), np.uint8)
    labels[5:20, 5:20], labels[25:35, 30:45] = 1, 2
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for k in range(4):
        Image.fromarray(np.random.default_rng(k // 2).integers(0, 255, (40, 50), np.uint8)).save(
            tmp_path / "images" / f"{k}.png"
        )
        Image.fromarray(labels).save(tmp_path / "masks" / f"{k}.png")
    problems = [finding[1] for finding in found(tmp_path)]
    assert len(problems) == 2, "images 0 and 1 are the same, and so are 2 and 3"
    assert set(problems) <= {"duplicate image", "image in two splits"}
    (tmp_path / "images" / "0.png").write_bytes(b"")
    (tmp_path / "masks" / "1.png").write_bytes(b"")
    Image.fromarray(labels.T).save(tmp_path / "masks" / "2.png")
    findings = {(f.file_name, f.problem) for f in check(tmp_path).findings if f.consequence == STOPS}
    assert findings == {
        ("images/0.png", "damaged image"),
        ("images/1.png", "unusable annotation file"),
        ("images/2.png", "unusable annotation file"),
        (None, "no usable object"),  # the one image of val is one of these
    }
    (tmp_path / "masks" / "3.png").unlink()
    assert "unusable split" in [finding[1] for finding in found(tmp_path)], "nobody knows what has a mask"


def test_the_table_says_where_on_a_narrow_terminal(data):
    edit(data, lambda v: [a.update(segmentation=[]) for a in v["annotations"][:6]])
    (data / "train" / "00002.png").unlink()
    target = io.StringIO()
    print_check(check(data), Console(file=target, width=80))
    lines = target.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "missing image 1 stops image 2 (00002.png): there is no" in text
    assert "malformed segmentation 6 skipped image 1 (00001.png), annotation 1" in text
    assert "... and 2 more; --output FILE lists all" in text


def test_the_command_line_tells_by_its_exit_code(data, tmp_path, capsys):
    target = tmp_path / "report.json"
    edit(data, lambda v: v["annotations"][0].update(segmentation=[]))
    assert main(["data", "check", str(data), "--output", str(target)]) == 1
    printed = capsys.readouterr()
    assert "malformed" in printed.out
    assert printed.err.startswith("masklab: ")
    assert "training skips 1 annotation:" in printed.err
    assert "" not in [line.strip() for line in printed.out.splitlines()[:2]], "no bars where nobody watches"
    report = json.loads(target.read_text())
    assert report["counts"][SKIPPED] == 1
    (finding,) = (f for f in report["findings"] if f["consequence"] == SKIPPED)
    assert (finding["image_id"], finding["annotation_id"], finding["split"]) == (1, 1, "train")
    assert finding["file_name"] == "00001.png"
    assert main(["data", "check", str(data), "--output", str(tmp_path)]) == 2
    assert capsys.readouterr() == ("", f"masklab: {tmp_path} is a folder: name a file to write to.\n")
    assert main(["data", "check", str(tmp_path / "nothing")]) == 2
    assert main(["data", "check", str(data / "train")]) == 2


REASONS = [
    ({"segmentation": [[[2, 3], [6, 3], [6, 9]]]}, "a polygon is written in points [2, 3] but must be a flat list"),
    (
        {"segmentation": [[2, 3], [6, 3], [6, 9], [2, 9]]},
        "the segmentation is a list of points [x, y], not of polygons",
    ),
    ({"segmentation": [2, 3, 6, 3, 6, 9]}, "the segmentation is a flat list of numbers, not a list of polygons"),
    ({"segmentation": [[2, 3, 6, 9]]}, "a polygon has 2 points but needs 3"),
    ({"segmentation": [[2, 3]]}, "a polygon has 1 point but needs 3"),
    ({"segmentation": [[2, 3, 6, 3, 6, 9, 2]]}, "a polygon has 7 numbers, which is odd"),
    ({"segmentation": [[2, 3, "6", 3, 6, 9]]}, "a polygon holds '6' but must be"),
    ({"segmentation": [[2, 3, None, 3, 6, 9]]}, "a polygon holds null but must be"),
    ({"segmentation": [[2, 3, float("nan"), 3, 6, 9]]}, "a polygon holds NaN, a number that is not finite"),
    ({"segmentation": [[]]}, "a polygon has 0 points"),
    ({"segmentation": [None]}, "a polygon is null but must be"),
    ({"segmentation": "2 3 6 9"}, "not '2 3 6 9'"),
    (
        {"segmentation": {"size": [128, 96], "counts": [96 * 128]}},
        "size is [128, 96], swapped but the image's [height, width] is [96, 128]",
    ),
    ({"segmentation": {"size": ["96", 128], "counts": [96 * 128]}}, 'size is ["96", 128] but'),
    ({"segmentation": {"size": [96, 128], "counts": [3, "4"]}}, "a list of whole numbers, not '4'"),
    ({"segmentation": {"size": [96, 128], "counts": [12300, -12]}}, "a negative run, -12"),
    ({"iscrowd": "1"}, "iscrowd is '1' but must be 0 or 1"),
    ({"iscrowd": True}, "iscrowd is true, taken as 1"),
    ({"category_id": "1"}, "its category id is '1' but the categories have 1"),
    ({"category_id": 1.0}, "its category id is 1.0 but the categories have 1"),
    ({"category_id": 77}, "its category id is 77"),
    ({"category_id": True}, "its category id is true"),
    ({"bbox": [2, "3", 4, 6]}, 'its bbox is [2, "3", 4, 6] but must be four numbers'),
    ({"area": "24"}, "its area is '24'; evaluation"),
    ({"segmentation": "long" * 1000}, "longlon ..."),
]


@pytest.mark.parametrize(("fields", "reason"), REASONS, ids=[str(fields)[:60] for fields, _ in REASONS])
def test_the_report_says_what_is_wrong_with_the_value_as_it_is_written(data, fields, reason):
    extra = {"id": 1000, "image_id": 2, "category_id": 1, "bbox": [2, 3, 4, 6], "segmentation": SQUARE, "iscrowd": 0}
    edit(data, lambda v: v["annotations"].append({**extra, **fields}))
    (finding,) = (f for f in check(data).findings if f.problem != "unused category")
    assert reason in finding.detail
    target = io.StringIO()
    print_check(check(data), Console(file=target, width=400))
    assert f"annotation 1000: {finding.detail}" in target.getvalue()


PARTS = [[[70, 5, 75, 9]], [[70, 5, 75, 5, 75]], [[[70, 5], [75, 5], [75, 9]]], [["70", 5, 75, 5, 75, 9]], [None]]


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_bad_part_of_a_polygon_costs_that_part(data, part, capsys):
    good = [[2, 3, 6, 3, 6, 9, 2, 9], [20, 10, 24, 10, 24, 12, 20, 12]]
    extra = {"id": 1000, "image_id": 2, "category_id": 1, "bbox": [2, 3, 22, 9], "iscrowd": 0}
    edit(data, lambda v: v["annotations"].append(extra | {"segmentation": [good[0], *part, good[1]]}))
    (finding,) = check(data).findings
    assert (finding.problem, finding.consequence, finding.annotation_id) == (
        "malformed part of a mask",
        "skipped in part",
        1000,
    )
    assert finding.detail.startswith("polygon 2 of 3 ")
    assert main(["data", "check", str(data)]) == 1
    assert "training skips a part of 1 mask:" in capsys.readouterr().err
    split = Split.find(data, "train")
    assert split.summary().endswith("; skipped a malformed part of 1 mask")
    expected = coco_segmentation.rle_from_segmentation(good, (96, 128)).tolist()
    assert split.objects(1).rle(len(split.objects(1)) - 1).tolist() == expected
    assert split.truth.regions[2][-1].rle.tolist() == expected
    from_dictionary = GroundTruth.from_coco(json.loads((data / "train.json").read_text()))
    assert from_dictionary.regions[2][-1].rle.tolist() == expected, "evaluation of a dictionary reads the same mask"


def test_annotations_that_lose_all_or_a_part_are_counted_apart(data, capsys):
    bad = [[2, 3, 6, 9]]
    edit(
        data,
        lambda v: [a.update(segmentation=s) for a, s in zip(v["annotations"], [bad, bad, bad + SQUARE], strict=False)],
    )
    assert (
        Split.find(data, "train")
        .summary()
        .endswith("; skipped 2 annotations (2 malformed segmentation) and a malformed part of 1 mask")
    )
    assert main(["data", "check", str(data)]) == 1
    printed = capsys.readouterr()
    assert "skips 2 annotations and a part of 1 mask:" in printed.err
    assert "stops training: 0, skipped: 2, skipped in part: 1, kept:" in printed.out


def test_real_data_has_no_faults(real_data):
    report = check(real_data / "coco-mini")
    assert report.fault is None
    assert report.splits["train"]["annotations"] == 739


# ---- anchors and caps


def statistics(sides, per_image=(1,)):
    return Statistics(np.array(sides, float), np.array(per_image, np.int64), np.array([len(sides)]))


def test_anchors_by_hand():
    assert statistics([32] * 50).anchor_sizes == [32]
    # 16 to 64 are two doublings: anchors at their middles on a logarithmic scale
    assert statistics([16] * 50 + [64] * 50).anchor_sizes == [23, 45]
    assert statistics([16] * 50 + [64] * 50 + [1.5] * 1000).anchor_sizes == [23, 45], "too small to be trained on"
    assert statistics([16] * 500 + [64] * 500 + [900]).anchor_sizes == [23, 45], "one odd object changes nothing"
    assert statistics([]).anchor_sizes is None


def test_anchors_cover_what_they_promise():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sides = np.exp(rng.normal(rng.uniform(2.5, 5), rng.uniform(0.01, 1.2), 400)).clip(8)
        anchors = np.array(statistics(sides).anchor_sizes)
        near = np.abs(np.log2(sides[:, None] / anchors)).min(axis=1)
        assert (near <= 0.5 + 0.1).mean() >= 0.96, "within a factor of the root of 2, save rounding to whole pixels"
        assert (np.abs(np.diff(np.log2(anchors)) - 1) < 0.15).all()


def test_caps_by_hand():
    assert statistics([], [0]).max_detections == 100
    assert statistics([], [3, 66]).max_detections == 100
    assert statistics([], [67, 2]).max_detections == 101
    assert statistics([], [375]).max_detections == 563


def test_sizes_are_those_that_the_network_sees(data):
    split = Split.find(data, "train")
    config = validate({"image": {"scale": 2.0}}, "test").image
    measured = measure(split, config)
    boxes = np.array([a["bbox"] for a in split.coco["annotations"]])
    np.testing.assert_allclose(np.sort(measured.sides), np.sort(2 * np.sqrt(boxes[:, 2] * boxes[:, 3])))
    assert measured.per_image.sum() == measured.per_class.sum() == len(boxes)
    small = measure(split, validate({"image": {"min_side": 48, "max_side": 500}}, "test").image)
    np.testing.assert_allclose(np.sort(small.sides), np.sort(measured.sides) / 4)


AUTO = {"rpn": {"anchor_sizes": "auto", "proposals_test": "auto"}, "box": {"max_detections": "auto"}}


def test_auto_is_resolved_from_the_training_split(data, caplog):
    caplog.set_level("INFO", "masklab")
    config, split = load_recipe("shapes", {"model": AUTO}), Split.find(data, "train")
    resolved = resolve_auto(config, split).model
    measured = measure(split, config.image)
    assert resolved.rpn.anchor_sizes == measured.anchor_sizes
    assert resolved.box.max_detections == 100
    assert resolved.rpn.proposals_test == 300
    assert resolved.rpn.pre_nms_test >= 600
    assert resolved.rpn.channels == config.model.rpn.channels
    assert len(caplog.messages) == 3
    fixed = load_recipe("shapes").model
    resolved = resolve_auto(load_recipe("shapes"), split).model
    assert (resolved.rpn, resolved.box) == (fixed.rpn, fixed.box)
    edit(data, lambda v: v.update(annotations=[]))
    with pytest.raises(InputError, match=r"anchor_sizes is auto but .* holds no objects"):
        resolve_auto(config, Split.find(data, "train"))


@pytest.mark.parametrize(
    ("part", "field"), [("rpn", "anchor_sizes"), ("rpn", "proposals_test"), ("box", "max_detections")]
)
def test_a_model_is_not_built_of_auto(classes, part, field):
    config = load_recipe("shapes", {"model": {part: {field: "auto"}}})
    with pytest.raises(InputError, match=rf"model\.{part}\.{field} is auto") as caught:
        build_model(config, classes, load_pretrained=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("part", "field", "value"), [("rpn", "anchor_sizes", []), ("box", "max_detections", 0)])
def test_what_is_neither_a_value_nor_auto_is_refused_by_its_name(part, field, value):
    with pytest.raises(InputError, match=rf": model\.{part}\.{field} is .* but must be .*, or auto"):
        validate({"model": {part: {field: value}}}, "test")


def test_training_stores_what_auto_became(shapes, tiny_config, tmp_path):
    values = tiny_config.model_dump()
    values["model"]["rpn"] |= AUTO["rpn"]
    values["model"]["box"] |= AUTO["box"]
    values["train"] |= {"steps": 1, "validate_images": 1}
    train(validate(values, "test"), shapes, tmp_path / "run")
    config = load_model(tmp_path / "run").config
    expected = measure(Split.find(shapes, "train"), config.image)
    assert config.model.rpn.anchor_sizes == expected.anchor_sizes
    assert config.model.box.max_detections == 100
    assert config.model.rpn.proposals_test == 300
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["model"]["rpn"]["anchor_sizes"] == expected.anchor_sizes


def test_the_command_line_takes_auto(tmp_path, capsys):
    words = ["--model.rpn.anchor_sizes", "auto", "--model.box.max_detections", "auto"]
    assert main(["train", "shapes", "--data", str(tmp_path / "none"), "--output", str(tmp_path), *words]) == 2
    assert "no such data set folder" in capsys.readouterr().err


# ---- figures


def test_show_draws_the_data_and_suggests_a_recipe(shapes, tmp_path, capsys):
    assert main(["data", "show", str(shapes), "--output", str(tmp_path / "out"), "--recipe", "shapes"]) == 0
    for name in ("images", "statistics"):
        with Image.open(tmp_path / "out" / f"train_{name}.png") as figure:
            assert 400 < figure.width <= 1600
            assert len(figure.getcolors(2**24)) > 20
    recipe = tmp_path / "out" / "train_suggestion.yaml"
    config = load_recipe(recipe)
    auto = resolve_auto(load_recipe("shapes", {"model": AUTO}), Split.find(shapes, "train"))
    assert config.model.rpn.anchor_sizes == auto.model.rpn.anchor_sizes
    assert config.model.box == auto.model.box
    assert config.model.rpn.proposals_test == auto.model.rpn.proposals_test
    assert recipe.read_text() in capsys.readouterr().out


def test_a_suggestion_for_crowded_images_makes_room_before_suppression():
    crowded = statistics([20] * 3000, [3000])
    assert yaml.safe_load(suggestion(crowded, None, 6000))["model"]["rpn"] == {
        "anchor_sizes": [20],
        "proposals_test": 9000,
        "pre_nms_test": 18000,
    }
    assert "pre_nms_test" not in suggestion(crowded, None, 18000)


@pytest.mark.parametrize("objects", [1, 20_000, 40_000, 10**6])
@pytest.mark.parametrize("sides", [[2.0], [2.0, 46_000.0], [20_000.0], [2.0, 3.0, 9.0, 400.0]], ids=str)
@pytest.mark.parametrize("recipe", [None, "nuclei", "shapes"])
def test_a_suggestion_is_a_recipe_whatever_the_objects(recipe, sides, objects, tmp_path):
    text = suggestion(statistics(sides, [objects]), recipe, 6000)
    path = tmp_path / "suggested.yaml"
    path.write_text(text)
    model = load_recipe(path).model
    assert model.box.max_detections >= min(1.5 * objects, 100_000)
    assert 2 * model.rpn.proposals_test <= max(model.rpn.pre_nms_test, 600)
    assert model.rpn.anchor_sizes == sorted(set(model.rpn.anchor_sizes))


def test_show_draws_what_is_empty(data, tmp_path, capsys):
    edit(data, lambda v: v.update(annotations=[]))
    assert main(["data", "show", str(data), "--output", str(tmp_path / "out")]) == 0
    assert "anchor_sizes" not in (tmp_path / "out" / "train_suggestion.yaml").read_text()
    edit(data, lambda v: v.update(images=[]))
    assert main(["data", "show", str(data), "--output", str(tmp_path / "none")]) == 2
    assert "no images to draw" in capsys.readouterr().err


def test_show_refuses_in_one_sentence(data, tmp_path, capsys):
    assert main(["data", "show", str(data), "--split", "test", "--output", str(tmp_path)]) == 2
    assert main(["data", "show", str(data), "--recipe", "unheard-of", "--output", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
