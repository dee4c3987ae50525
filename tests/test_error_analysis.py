"""What limits a model: every kind of error drawn by hand and against dense pixels, recall and annotated masks by hand."""

import io
import json
import random
import shutil
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import torch
from contracts import fails, predictor
from msgspec.structs import replace as changed_to
from PIL import Image
from rich.console import Console

from masklab.cli.app import main
from masklab.datasets.objects import Objects
from masklab.datasets.split import Split
from masklab.evaluation import inputs as evaluation_inputs
from masklab.evaluation.coco import coco_metrics, coco_metrics_of
from masklab.evaluation.errors import ERROR_TYPES, find_errors
from masklab.evaluation.evaluate import evaluate
from masklab.evaluation.inputs import read_inputs
from masklab.evaluation.matching import matching_metrics, overlaps, overlaps_of
from masklab.evaluation.oracle import with_annotated_masks
from masklab.evaluation.recall import Boxes, neighbour_gaps, recall_table, stage_overlaps
from masklab.evaluation.report import print_report
from masklab.inference.options import PredictionOptions
from masklab.masks import coco_segmentation
from masklab.model.build import build_model
from masklab.results.instances import Instances
from masklab.weights.checkpoint import save_model

WIDTH = 24


def row(text, label=1):
    """A mask in an image of one row: "..##" covers the third and the fourth pixel."""
    bits = [character == "#" for character in text.ljust(WIDTH, ".")]
    counts = [0] * bits[0] + [len(list(group)) for _, group in groupby(bits)]
    covered = [place for place, bit in enumerate(bits) if bit] or [0]
    box = [covered[0], 0, covered[-1] + 1 - covered[0], 1]
    return {"image_id": 1, "category_id": label, "segmentation": {"size": [1, WIDTH], "counts": counts}, "bbox": box}


def scene(objects, detections, crowds=()):
    """COCO ground truth and results; what is not a string is a (string, label)."""

    def read(entry):
        return row(*entry) if isinstance(entry, tuple) else row(entry)

    annotations = [
        read(entry) | {"id": n, "iscrowd": int(n > len(objects))} for n, entry in enumerate([*objects, *crowds], 1)
    ]
    truth = {
        "images": [{"id": 1, "height": 1, "width": WIDTH}],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "dust"}],
        "annotations": annotations,
    }
    return truth, [read(entry) | {"score": 0.9 - 0.01 * n} for n, entry in enumerate(detections)]


CASES = {
    "nothing": ([], [], [], []),
    "nothing found": (["####"], [], ["missed"], []),
    "nothing there": ([], ["####"], [], ["background"]),
    "IoU 3/4": (["####"], ["###"], ["right"], ["right"]),
    "IoU 2/3": (["######"], ["####"], ["localisation"], ["localisation"]),
    "IoU 3/8": (["########"], ["###"], ["localisation"], ["localisation"]),
    "IoU 4/15": (["####"], ["###############"], ["localisation"], ["localisation"]),
    "IoU 1/12": (["############"], ["#"], ["missed"], ["background"]),
    "the best of two attempts, no pieces": (
        ["........####"],
        ["..........##############", ".....#####"],
        ["localisation"],
        ["background", "localisation"],
    ),
    "beside a found one": (["####"], ["####", "...#####"], ["right"], ["right", "background"]),
    "found twice": (["####"], ["####", "###"], ["right"], ["right", "duplicate"]),
    "a piece of a found one": (["######"], ["####", "....##"], ["localisation"], ["localisation", "duplicate"]),
    "a blob over a found one": (["####"], ["####", "###########"], ["right"], ["right", "duplicate"]),
    "merged, matched with one": (["####", "....####"], ["########"], ["merged"] * 2, ["merged"]),
    "merged, matched with none": (["####", "......####"], ["##########"], ["merged"] * 2, ["merged"]),
    "merged with a little one": (["######", "......##"], ["########"], ["merged"] * 2, ["merged"]),
    "less than most of the other": (["######", "......####"], ["########"], ["right", "missed"], ["right"]),
    "merged, but one has its own": (
        ["####", "......####"],
        ["####", "##########"],
        ["right", "merged"],
        ["right", "merged"],
    ),
    "over two, each with its own": (
        ["######", "......##"],
        ["########", "......##"],
        ["right", "right"],
        ["right", "right"],
    ),
    "over two, both found by others": (
        ["####", "......####"],
        ["####", "......####", "##########"],
        ["right", "right"],
        ["right", "right", "duplicate"],
    ),
    "split in two": (["#########"], ["####", "....####"], ["split"], ["split", "split"]),
    "split, and a blob": (
        ["#########"],
        ["####", "....####", "####################"],
        ["split"],
        ["split", "split", "duplicate"],
    ),
    "of two pieces one is enough": (
        ["########"],
        ["####", "....###"],
        ["localisation"],
        ["localisation", "duplicate"],
    ),
    "over a part of its own, of just half of it": (["########", "..#"], ["####"], ["merged"] * 2, ["merged"]),
    "of another class": (["####"], [("####", 2)], ["missed"], ["background"]),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_error_by_hand(name):
    objects, detections, object_kinds, detection_kinds = CASES[name]
    errors = find_errors(overlaps(*scene(objects, detections)), 0.5)
    assert errors.objects.tolist() == object_kinds
    assert errors.detections.tolist() == detection_kinds


def test_crowds_and_low_scores_do_not_count():
    truth, results = scene(["####"], ["####", "........##", "####"], crowds=["......######"])
    results[2]["score"] = 0.1
    errors = find_errors(overlaps(truth, results), 0.5)
    assert errors.objects.tolist() == ["right", ""]
    assert errors.detections.tolist() == ["right", "", ""]
    assert errors.counts()["right"] == {"detections": 1, "objects": 1}
    assert sum(sum(counts.values()) for counts in errors.counts().values()) == 2


def test_a_score_of_just_the_threshold_counts():
    truth, results = scene(["####"], ["####", "........##"])
    for result in results:
        result["score"] = 0.5
    errors = find_errors(overlaps(truth, results), 0.5)
    assert errors.objects.tolist() == ["right"]
    assert errors.detections.tolist() == ["right", "background"]
    assert errors.ious.tolist() == [1.0]


def reference_kinds(truth, results, errors):
    """The docstring of `find_errors` word by word on dense pixels, for the matching that it chose."""

    def pixels(entry):
        counts = entry["segmentation"]["counts"]
        return np.repeat(np.arange(len(counts)) % 2 == 1, counts)

    def share(a, b):
        return (a & b).sum() / max(1, (a | b).sum())

    annotations = truth["annotations"]
    things = {n: pixels(a) for n, a in enumerate(annotations) if not a["iscrowd"]}
    crowds = [a for a in annotations if a["iscrowd"]]
    kinds, object_kinds = [""] * len(results), [""] * len(annotations)
    mate = dict(zip(errors.matched.tolist(), errors.owners.tolist(), strict=True))
    holder = {thing: n for n, thing in mate.items()}
    masks = {}
    for n, result in enumerate(results):
        own = pixels(result)
        inside = [2 * (own & pixels(c)).sum() > own.sum() for c in crowds if c["category_id"] == result["category_id"]]
        if n in mate or not any(inside):
            masks[n] = own

    def same(n, k):
        return results[n]["category_id"] == annotations[k]["category_id"]

    def covers(n, k):
        return 2 * (masks[n] & things[k]).sum() > things[k].sum()

    def lies_in(n, k):
        return 2 * (masks[n] & things[k]).sum() > masks[n].sum()

    for n in masks:
        over = [k for k in things if same(n, k) and (covers(n, k) or mate.get(n) == k)]
        if len(over) > 1 and any(k not in holder for k in over):
            kinds[n] = "merged"
            for k in over:
                if holder.get(k, n) == n:
                    object_kinds[k] = "merged"
    for n, k in mate.items():
        if kinds[n] == "":
            kinds[n] = object_kinds[k] = "right" if share(masks[n], things[k]) >= 0.75 else "localisation"
    left = [n for n in masks if kinds[n] == ""]
    tries = {}
    for n in left:
        wanted = [(share(masks[n], things[k]), k) for k in things if same(n, k)]
        if wanted and max(wanted)[0] > 0:
            tries[n] = max(wanted)
    for k in [k for k in things if object_kinds[k] == ""]:
        pieces = [n for n in tries if tries[n][1] == k and lies_in(n, k)]
        close = [(tries[n][0], n) for n in tries if tries[n][1] == k and tries[n][0] >= 0.1]
        if len(pieces) > 1:
            object_kinds[k] = "split"
            for n in pieces:
                kinds[n] = "split"
        elif close:
            kinds[max(close)[1]] = object_kinds[k] = "localisation"
        else:
            object_kinds[k] = "missed"
    for n in left:
        if kinds[n] == "":
            k = tries[n][1] if n in tries else None
            found = k is not None and object_kinds[k] != "missed" and (covers(n, k) or lies_in(n, k))
            kinds[n] = "duplicate" if found else "background"
    return kinds, object_kinds


def test_errors_equal_dense_pixels_and_every_thing_has_one_kind():
    rng, met = random.Random(0), set()

    def bars(most):
        starts = [rng.randrange(20) for _ in range(rng.randrange(most))]
        return [
            ("." * start + "#" * min(rng.randrange(1, 12), WIDTH - start), rng.choice([1, 1, 1, 2])) for start in starts
        ]

    for _ in range(250):
        truth, results = scene(bars(5), bars(6), bars(2))
        shared = overlaps(truth, results)
        errors = find_errors(shared, 0.5)
        kinds, object_kinds = reference_kinds(truth, results, errors)
        tied = len(set(shared.pair_ious.tolist())) < len(shared.pair_ious)  # either of two equals may be tried for
        if not tied:
            assert errors.detections.tolist() == kinds
            assert errors.objects.tolist() == object_kinds
            met |= {*kinds, *object_kinds}
        counts = errors.counts()
        assert sum(entry["objects"] for entry in counts.values()) == (~shared.crowds).sum()
        tp = len(errors.matched)
        total = len(truth["annotations"]) - shared.crowds.sum() + (errors.detections != "").sum() - tp
        expected = matching_metrics(shared, 0.5)["stardist"]["0.50"]
        assert expected == (pytest.approx(tp / total) if total else None)
    assert met == {*ERROR_TYPES, ""}


def test_annotated_masks_by_hand():
    """The best of two on one object gets its mask; a box IoU of 3/7, a crowd and another class leave the own mask."""
    truth, results = scene(
        ["##########", "............####"],
        ["########", "#########", ".............######", "....................####", ("############", 2)],
        crowds=["....................#..#"],
    )
    before = json.dumps([truth, results])
    inputs = read_inputs(truth, results)
    own, detections = coco_area([entry["segmentation"] for entry in results]), list(inputs.detections)
    changed = with_annotated_masks(inputs)
    assert json.dumps([truth, results]) == before
    assert inputs.detections == detections
    assert coco_area([region.mask for region in changed.detections]) == [10, *own[1:]]
    assert [changed_to(r, mask={}) for r in changed.detections] == [changed_to(r, mask={}) for r in detections]
    assert with_annotated_masks(read_inputs(truth, [])).detections == []
    assert with_annotated_masks(read_inputs(scene([], [])[0], results)).detections == detections
    results[1]["score"] = 0.95
    changed = with_annotated_masks(read_inputs(truth, results))
    assert coco_area([region.mask for region in changed.detections])[:2] == [8, 10]
    for detection, area in (("#####", 10), ("####", 4)):  # a box IoU of a half is enough, of 4 / 10 is not
        changed = with_annotated_masks(read_inputs(*scene(["##########"], [detection])))
        assert coco_area([region.mask for region in changed.detections]) == [area]


def coco_area(masks):
    truth, _ = scene([], [])
    entries = [{"image_id": 1, "category_id": 1, "segmentation": mask, "score": 1.0} for mask in masks]
    return overlaps(truth, entries).areas.tolist()


@pytest.mark.parametrize("rows", [1, 3, 1024])
def test_gaps_by_hand(rows, monkeypatch):
    monkeypatch.setattr("masklab.ops.box_index._ROWS", rows)
    assert neighbour_gaps(np.zeros((0, 4), np.float32)).shape == (0,)
    assert neighbour_gaps(np.array([[0, 0, 4, 4]], np.float32)).tolist() == [np.inf]
    boxes = np.array([[0, 0, 4, 4], [4, 2, 8, 6], [11, 10, 19, 18], [11, 2, 12, 3]], np.float32)
    # from the third to the second (3, 4), to the fourth (0, 7); from the fourth to the second (3, 0)
    assert neighbour_gaps(boxes).tolist() == [0, 0, 5 / 8, 3]


def test_stages_and_recall_by_hand():
    objects = Objects.build((20, 20), [np.array([0, 20 * 10, 20 * 10]), np.array([20 * 12, 80, 80])], [0, 1])
    assert objects.boxes.tolist() == [[0, 0, 10, 20], [12, 0, 16, 20]]
    nothing = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    assert stage_overlaps(objects, torch.zeros(0, 4), nothing, 0.5).tolist() == [[0, 0]] * 3
    found = Boxes(
        torch.tensor([[0.0, 0, 8, 20], [0, 0, 10, 20], [12, 0, 16, 20], [0, 0, 6, 20]]),
        torch.tensor([0, 1, 1, 0]),
        torch.tensor([0.4, 0.9, 0.5, 0.9]),
    )
    shares = stage_overlaps(objects, torch.tensor([[0.0, 0, 10, 10], [0, 0, 9, 20], [12, 0, 16, 12]]), found, 0.5)
    np.testing.assert_allclose(shares, [[0.9, 0.6], [0.8, 1], [0.6, 1]])
    table = recall_table(np.array([0.0, 0.5, 0.6, np.inf]), np.array([[0.9, 0.6, 0.1, 0.5], [0.8, 1, 0, 0], [0] * 4]))
    assert table["touching"]["proposals"] == {"0.50": 1.0, "0.75": 1.0}
    assert table["near"]["proposals"] == {"0.50": 1.0, "0.75": 0.0}
    assert table["apart"] == {
        "objects": 2,
        "proposals": {"0.50": 0.5, "0.75": 0.0},
        "detections": {"0.50": 0.0, "0.75": 0.0},
        "found": {"0.50": 0.0, "0.75": 0.0},
    }
    assert table["all"]["objects"] == 4
    assert table["all"]["detections"] == {"0.50": 0.5, "0.75": 0.5}
    assert recall_table(np.zeros(0), np.zeros((3, 0)))["all"]["found"] == {"0.50": None, "0.75": None}


@pytest.fixture(scope="module")
def weights(tiny_config, shapes, tmp_path_factory):
    torch.manual_seed(0)
    model = build_model(tiny_config, Split.find(shapes, "val").categories)
    path = tmp_path_factory.mktemp("error_analysis") / "tiny.safetensors"
    save_model(model, path)
    return path


def printed(metrics, width=100):
    stream = io.StringIO()
    print_report(metrics, Console(file=stream, width=width))
    return stream.getvalue()


def test_limits_from_the_command_line(weights, shapes, tmp_path, capsys):
    target = tmp_path / "val.json"
    words = ["evaluate", str(weights), "--data", str(shapes), "--error_analysis", "--output", str(target)]
    assert main([*words, "--flips", "horizontal", "--scales", "0.8"]) == 0
    out = capsys.readouterr().out
    for title in ("boxes or outlines", "Where boxes are lost", "Errors at the score threshold"):
        assert title in out
    metrics = json.loads(target.read_text())
    views = {"flips": "horizontal", "scales": [0.8]}
    assert {key: metrics["measured"][key] for key in views} == views
    error_analysis, truth = metrics["error_analysis"], json.loads((shapes / "val.json").read_text())
    in_boxes = evaluate(weights, shapes, options=PredictionOptions(**views), ground_truth_boxes=True)
    assert error_analysis["annotated_boxes"] == in_boxes["mask"]
    assert error_analysis["annotated_masks"]["AP"] >= metrics["mask"]["AP"]
    recall, count = error_analysis["recall"], len(truth["annotations"])
    assert recall["all"]["objects"] == sum(recall[group]["objects"] for group in ("touching", "near", "apart")) == count
    assert recall["all"]["detections"]["0.50"] >= recall["all"]["found"]["0.50"]
    for stage in ("proposals", "detections", "found"):
        for least in ("0.50", "0.75"):
            (row,) = (line for line in out.splitlines() if f"{stage} {least}" in line)
            assert f"{recall['all'][stage][least]:.3f}" in row
    assert sum(kind["objects"] for kind in error_analysis["errors"].values()) == count
    for width in (80, 100):
        text = printed(metrics, width)
        assert "…" not in text
        assert "None" not in text
    fails(["ground_truth_boxes"], lambda: evaluate(weights, shapes, ground_truth_boxes=True, error_analysis=True))
    assert main([*words, "--scales", "9"]) == 2
    assert "scales holds 9" in capsys.readouterr().err


def test_each_annotation_is_decoded_once_and_each_result_read_once(weights, shapes, tmp_path, monkeypatch):
    """Two sets of results, the model's own and those in the annotated boxes, on grey and coloured images."""
    folder = tmp_path / "both"
    shutil.copytree(shapes, folder)
    grey = Split.find(folder, "val").images[0].path
    Image.open(grey).convert("L").convert("RGB").save(grey)
    decoded, decode = [], coco_segmentation.flat_from_strings
    others, read_other = [], coco_segmentation.read_segmentation
    sets, read_results = [], evaluation_inputs._read_results

    def counted(strings):
        decoded.extend(strings)
        return decode(strings)

    def read_alone(segmentation, size):
        others.append(segmentation)
        return read_other(segmentation, size)

    def read(truth, results, chosen):
        sets.append(results)
        return read_results(truth, results, chosen)

    monkeypatch.setattr(coco_segmentation, "flat_from_strings", counted)
    monkeypatch.setattr(coco_segmentation, "read_segmentation", read_alone)
    monkeypatch.setattr(evaluation_inputs, "_read_results", read)
    assert {"by_colour", "error_analysis"} <= evaluate(weights, folder, error_analysis=True).keys()
    assert len(sets) == 2
    assert sets[0]
    assert sets[0] != sets[1]
    annotations = json.loads((shapes / "val.json").read_text())["annotations"]
    assert sorted(decoded) == sorted(a["segmentation"]["counts"] for a in annotations)
    assert not others


def test_proposals_are_in_the_images_pixels(tiny_config, classes):
    torch.manual_seed(0)
    model = build_model(
        tiny_config.model_copy(update={"image": tiny_config.image.model_copy(update={"scale": 2.0})}), classes
    )
    boxes = predictor(model).propose(np.random.default_rng(0).integers(0, 255, (3, 30, 50), dtype=np.uint8))
    assert boxes.shape == (40, 4) or len(boxes) < 40
    assert (boxes >= 0).all()
    assert boxes[:, 2].max() == pytest.approx(50, abs=1e-3)
    assert boxes[:, 3].max() == pytest.approx(30, abs=1e-3)


def test_grey_and_colour_images_are_measured_apart(tiny_config, shapes, tmp_path, monkeypatch):
    """A model that finds everything in colour and nothing in grey."""
    folder = tmp_path / "both"
    shutil.copytree(shapes, folder)
    source = Split.find(folder, "val")
    for image in source.images[:3]:
        Image.open(image.path).convert("L").convert("RGB").save(image.path)
    model, colour = predictor(build_model(tiny_config, source.categories)), source.objects(3)
    runs = [colour.rle(n) for n in range(len(colour))]

    def predict(values, check=None):
        shown = 0 if (values[0] == values[1]).all() else len(colour)
        masks, scores = np.ones((shown, 3, 3), np.float32), np.ones(shown, np.float32)
        names, ids = source.categories.names, source.categories.ids
        found = Instances(source.images[3].size, colour.boxes[:shown], scores, colour.labels[:shown], masks, names, ids)
        return replace(found, _rle=runs[:shown])

    monkeypatch.setattr(model, "predict", predict)
    metrics = evaluate(model, folder)
    text = printed(metrics, 80)
    assert "colour of image" in text
    assert "…" not in text
    parts = metrics["by_colour"]
    assert [parts[kind]["images"] for kind in ("grey", "colour")] == [3, 1]
    assert parts["colour"]["objects"] == len(colour)
    assert parts["grey"]["objects"] == sum(len(source.objects(n)) for n in range(3))
    assert parts["grey"]["mask"]["AP"] == 0
    assert parts["grey"]["matching"]["stardist"]["mean"] == 0
    assert parts["colour"]["mask"]["AP"] == pytest.approx(1)
    assert parts["colour"]["matching"]["kaggle"]["mean"] == 1
    for image in source.images[3:]:
        Image.open(image.path).convert("L").convert("RGB").save(image.path)
    assert "by_colour" not in evaluate(model, folder), "of one kind only"


def test_inputs_of_some_images_are_those_read_for_them():
    truth, results = scene(["####", ".....####"], ["####", "......###"], ["..........####"])
    truth["images"] += [{"id": number, "height": 1, "width": WIDTH} for number in (7, 3, "b", 12)]
    truth["annotations"] += [entry | {"id": 10 + entry["id"], "image_id": 7} for entry in truth["annotations"]]
    results += [entry | {"image_id": "b"} for entry in results] + [entry | {"image_id": 7} for entry in results]
    inputs = read_inputs(truth, results)
    for chosen in ([12, 7], ["b", 1], [3], [], [1, 3, 7, 12, "b"]):
        some, expected = inputs.subset(chosen), read_inputs(truth, results, chosen)
        assert list(some.images.items()) == list(expected.images.items())
        assert (some.sizes, some.class_names) == (expected.sizes, expected.class_names)
        assert some.detections == expected.detections
        plain = [[changed_to(region, rle=None) for region in each.objects] for each in (some, expected)]
        assert plain[0] == plain[1]
        assert coco_metrics_of(some, 50) == coco_metrics(truth, results, 50, chosen)
        assert matching_metrics(overlaps_of(some), 0.5) == matching_metrics(overlaps(truth, results, chosen), 0.5)
    fails(["image_ids names 5"], lambda: inputs.subset([5]))


def test_coco_metrics_of_annotated_masks_and_boxes_are_perfect():
    """Boxes as annotated with bad masks: the annotated masks bring AP to 1."""
    truth, results = scene(["##########", "............####"], ["##########", "............####"])
    results[0]["segmentation"] = row("###")["segmentation"]
    assert coco_metrics(truth, results, 100)["mask"]["AP"] < 0.6
    assert coco_metrics_of(with_annotated_masks(read_inputs(truth, results)), 100)["mask"]["AP"] == pytest.approx(1)
