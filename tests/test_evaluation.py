"""Evaluation: pycocotools and brute force as oracles, fractions worked by hand."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO as ReferenceCOCO
from pycocotools.cocoeval import COCOeval as ReferenceEval
from rich.console import Console

from masklab.datasets.ground_truth import GroundTruth
from masklab.evaluation.coco import coco_metrics
from masklab.evaluation.matching import matching_metrics, overlaps, tune_score_threshold
from masklab.evaluation.report import print_report, write_metrics
from masklab.utils.errors import InputError

THRESHOLDS = [round(0.5 + 0.05 * n, 2) for n in range(10)]
SIDE = 200
# pycocotools itself, under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# ---------------------------------------------------------------- drawing


def rle(pixels: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def bar(start: int, stop: int, row: int = 0, size: tuple[int, int] = (4, 40)) -> dict[str, Any]:
    """Pixels start..stop of one row: IoUs are fractions that one can work out by hand."""
    pixels = np.zeros(size, bool)
    pixels[row, start:stop] = True
    return rle(pixels)


def scene(
    objects: list[tuple[int, dict[str, Any]]],
    detections: list[tuple[int, dict[str, Any], float]],
    images: int = 1,
    classes: int = 1,
    crowds: list[tuple[int, dict[str, Any]]] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and results of class 1 from (image, mask) and (image, mask, score)."""
    annotations = [
        {"id": n, "image_id": image, "category_id": 1, "segmentation": mask, "iscrowd": int(n > len(objects))}
        for n, (image, mask) in enumerate([*objects, *(crowds or [])], 1)
    ]
    truth = {
        "images": [{"id": n, "height": 4, "width": 40} for n in range(1, images + 1)],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, classes + 1)],
        "annotations": annotations,
    }
    results = [
        {"image_id": image, "category_id": 1, "segmentation": mask, "score": score} for image, mask, score in detections
    ]
    return truth, results


def draw_ellipse(rng: np.random.Generator, size: float) -> tuple[np.ndarray, list[float]]:
    centre = rng.uniform(0, SIDE, 2)
    radii = size * rng.uniform(0.5, 1.0, 2)
    return centre, radii


def ellipse_polygon(centre: np.ndarray, radii: np.ndarray) -> list[float]:
    turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    x = np.clip(centre[0] + radii[0] * np.cos(turn), 0, SIDE)
    y = np.clip(centre[1] + radii[1] * np.sin(turn), 0, SIDE)
    return np.stack([x, y], 1).round(2).ravel().tolist()


def polygon_mask(polygons: list[list[float]]) -> dict[str, Any]:
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, SIDE, SIDE))
    return {"size": merged["size"], "counts": merged["counts"].decode()}


def drawn_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Several classes, crowds, empty images, one crowded image, tied scores, polygons and both RLEs."""
    rng = np.random.default_rng(seed)
    images = [{"id": int(n), "height": SIDE, "width": SIDE} for n in (7, 3, 12, 40, 5)]
    categories = [{"id": 2, "name": "cell"}, {"id": 9, "name": "fruit"}, {"id": 4, "name": "never there"}]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for entry, count in zip(images, (130, 20, 0, 12, 0), strict=True):
        for _ in range(count):
            centre, radii = rng.uniform(0, SIDE, 2), rng.choice([6, 20, 70]) * rng.uniform(0.4, 1, 2)
            polygons = [ellipse_polygon(centre, radii)]
            if rng.random() < 0.2:
                polygons.append(ellipse_polygon(rng.uniform(0, SIDE, 2), radii))
            mask = polygon_mask(polygons)
            crowd = rng.random() < 0.08
            segmentation: Any = polygons
            if crowd:
                pixels = coco_mask.decode(mask).ravel(order="F")
                edges = np.flatnonzero(np.diff(np.concatenate([[0], pixels, [1 - pixels[-1]]]))).tolist()
                segmentation = {"size": [SIDE, SIDE], "counts": np.diff([0, *edges]).tolist()}
            elif rng.random() < 0.3:
                segmentation = mask
            category = int(rng.choice([2, 9]))
            annotations.append(
                {
                    "id": len(annotations) + 11,
                    "image_id": entry["id"],
                    "category_id": category,
                    "segmentation": segmentation,
                    "bbox": coco_mask.toBbox(mask).tolist(),
                    "area": float(coco_mask.area(mask)),
                    "iscrowd": int(crowd),
                }
            )
            for _ in range(rng.integers(0, 4)):
                moved = [ellipse_polygon(centre + rng.normal(0, 1.5, 2), radii * rng.uniform(0.8, 1.2, 2))]
                category = category if rng.random() < 0.9 else int(rng.choice([2, 4, 9]))
                results.append(detection(int(entry["id"]), category, moved, rng))
    for _ in range(15):
        image = int(rng.choice([7, 3, 12, 40]))
        results.append(detection(image, 2, [ellipse_polygon(rng.uniform(0, SIDE, 2), np.array([9, 9]))], rng))
    truth = {"images": images, "categories": categories, "annotations": annotations}
    return truth, [results[n] for n in rng.permutation(len(results))]


def detection(image: int, category: int, polygons: list[list[float]], rng: np.random.Generator) -> dict[str, Any]:
    mask = polygon_mask(polygons)
    box = (coco_mask.toBbox(mask) + rng.normal(0, 0.4, 4) * [1, 1, 0, 0]).tolist()
    score = float(rng.choice([0.1, 0.5, 0.9])) if rng.random() < 0.5 else float(rng.random())
    return {"image_id": image, "category_id": category, "segmentation": mask, "bbox": box, "score": score}


# ---------------------------------------------------------------- oracles


def reference_coco(
    truth: dict[str, Any], results: list[dict[str, Any]], cap: int, image_ids: list[int] | None = None
) -> dict[str, Any]:
    """pycocotools, read from its precision array; masks without boxes so that areas are the masks'."""
    figures: dict[str, Any] = {"per_class": {}}
    for key, kind, dropped in (("mask", "segm", "bbox"), ("box", "bbox", "segmentation")):
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = ReferenceCOCO()
            dataset.dataset = copy.deepcopy(truth)
            dataset.createIndex()
            found = dataset.loadRes([{k: v for k, v in result.items() if k != dropped} for result in results])
            evaluation = ReferenceEval(dataset, found, kind)
            evaluation.params.maxDets = sorted({100, cap})
            if image_ids is not None:
                evaluation.params.imgIds = image_ids
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"]
        at, at_100 = evaluation.params.maxDets.index(cap), evaluation.params.maxDets.index(100)

        def mean(values: np.ndarray) -> float | None:
            values = values[values > -1]
            return float(np.mean(values)) if values.size else None

        figures[key] = {
            "AP": mean(precision[:, :, :, 0, at]),
            "AP50": mean(precision[0, :, :, 0, at]),
            "AP75": mean(precision[5, :, :, 0, at]),
            "APs": mean(precision[:, :, :, 1, at]),
            "APm": mean(precision[:, :, :, 2, at]),
            "APl": mean(precision[:, :, :, 3, at]),
            "AP_max100": mean(precision[:, :, :, 0, at_100]),
        }
        names = {category["id"]: category["name"] for category in truth["categories"]}
        for place, category in enumerate(evaluation.params.catIds):
            row = figures["per_class"].setdefault(names[category], {})
            row[f"{key}_AP"] = mean(precision[:, :, place, 0, at])
            if key == "mask":
                row["mask_AP50"] = mean(precision[0, :, place, 0, at])
    return figures


def assert_same(ours: Any, reference: Any) -> None:
    assert ours.keys() >= reference.keys()
    for key, value in reference.items():
        if isinstance(value, dict):
            assert_same(ours[key], value)
        else:
            assert ours[key] == (None if value is None else pytest.approx(value, abs=1e-9)), key


def reference_matching(truth: dict[str, Any], results: list[dict[str, Any]], score_threshold: float) -> dict[str, Any]:
    """Dense pixels, exact fractions, every one-to-one assignment tried: for small scenes of RLE masks."""

    def pixels(entry: dict[str, Any]) -> np.ndarray:
        return coco_mask.decode(entry["segmentation"]).astype(bool)

    def share(a: np.ndarray, b: np.ndarray) -> Fraction:
        return Fraction(int((a & b).sum()), max(int((a | b).sum()), 1))

    def best(good: list[list[bool]], inside: list[bool]) -> tuple[int, int]:
        """Largest number of matches, and of those with fewest unmatched detections outside crowds."""
        columns = len(good[0]) if good else 0
        places: list[int | None] = [*range(columns), *[None] * len(good)]
        options = {(0, 0)}
        for choice in set(itertools.permutations(places, len(good))):
            used = [c is not None and good[row][c] for row, c in enumerate(choice)]
            options.add((sum(used), sum(u and not inside[row] for row, u in enumerate(used))))
        return max(options)

    def counts(image: int, threshold: Fraction, strict: bool) -> np.ndarray:
        total = np.zeros(3, int)
        for category in truth["categories"]:
            here = [a for a in truth["annotations"] if a["image_id"] == image and a["category_id"] == category["id"]]
            objects = [pixels(a) for a in here if not a["iscrowd"]]
            crowds = [pixels(a) for a in here if a["iscrowd"]]
            found = [
                pixels(r)
                for r in results
                if r["image_id"] == image and r["category_id"] == category["id"] and r["score"] >= score_threshold
            ]
            inside = [any(Fraction(int((f & c).sum()), int(f.sum())) > Fraction(1, 2) for c in crowds) for f in found]
            ious = [[share(f, o) for o in objects] for f in found]
            good = [[iou > threshold if strict else iou >= threshold for iou in row] for row in ious]
            matches, matched_outside = best(good, inside)
            total += [matches, inside.count(False) - matched_outside, len(objects) - matches]
        return total

    def ratio(row: np.ndarray) -> Fraction:
        return Fraction(int(row[0]), int(row.sum())) if row.sum() else Fraction(1)

    ways: dict[str, dict[str, float]] = {"kaggle": {}, "stardist": {}, "cellpose": {}}
    images = [entry["id"] for entry in truth["images"]]
    for step in range(10):
        threshold, name = Fraction(50 + 5 * step, 100), f"{0.5 + 0.05 * step:.2f}"
        closed = [counts(image, threshold, strict=False) for image in images]
        above = [counts(image, threshold, strict=True) for image in images]
        ways["kaggle"][name] = float(sum(map(ratio, above)) / len(images))
        ways["cellpose"][name] = float(sum(map(ratio, closed)) / len(images))
        ways["stardist"][name] = float(ratio(np.sum(closed, axis=0)))
    for way in ways.values():
        way["mean"] = sum(way.values()) / 10
    return ways


def small_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Short bars that overlap one another in many ways, two classes, crowds, many exact thresholds."""
    rng = random.Random(seed)

    def draw() -> dict[str, Any]:
        start = rng.randrange(0, 8)
        return bar(start, start + rng.randrange(6, 21), rng.randrange(2))

    truth, _ = scene([], [], images=3, classes=2)
    results = []
    for image, category in itertools.product((1, 2, 3), (1, 2)):
        for _ in range(rng.randrange(4)):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]),
                    "image_id": image,
                    "category_id": category,
                    "segmentation": draw(),
                    "iscrowd": int(rng.random() < 0.2),
                }
            )
        for _ in range(rng.randrange(4)):
            score = rng.choice([0.2, 0.5, 0.8])
            results.append({"image_id": image, "category_id": category, "segmentation": draw(), "score": score})
    return truth, results


# ---------------------------------------------------------------- COCO


def test_coco_of_nothing_is_none() -> None:
    empty = {"images": [], "categories": [], "annotations": []}
    metrics = coco_metrics(empty, [], 100)
    assert set(metrics["mask"].values()) == {None} == set(metrics["box"].values())
    assert metrics["per_class"] == {}


def test_coco_without_annotations_is_none_and_without_results_zero() -> None:
    truth, results = scene([], [(1, bar(0, 10), 0.5)])
    del truth["annotations"]
    assert coco_metrics(truth, results, 100)["mask"]["AP"] is None
    truth, _ = scene([(1, bar(0, 10))], [])
    metrics = coco_metrics(truth, [], 100)
    assert metrics["mask"]["AP"] == 0.0
    assert metrics["mask"]["APs"] == 0.0
    assert metrics["box"]["APl"] is None
    assert metrics["per_class"] == {"class 1": {"mask_AP": 0.0, "mask_AP50": 0.0, "box_AP": 0.0, "objects": 1}}


@pytest.mark.parametrize("cap", [1, 30, 100, 500])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_coco_equals_pycocotools(seed: int, cap: int) -> None:
    truth, results = drawn_case(seed)
    metrics = coco_metrics(truth, results, cap)
    assert_same(metrics, reference_coco(truth, results, cap))
    assert metrics["per_class"]["never there"] == {"mask_AP": None, "mask_AP50": None, "box_AP": None, "objects": 0}
    assert 0.0 < metrics["mask"]["AP"] < 0.95


@pytest.mark.parametrize("seed", range(8))
def test_coco_equals_pycocotools_where_overlaps_equal_thresholds(seed: int) -> None:
    truth, results = small_case(seed)
    for annotation in truth["annotations"]:
        annotation["id"] += 1
        annotation["area"] = float(coco_mask.area(annotation["segmentation"]))
        annotation["bbox"] = coco_mask.toBbox(annotation["segmentation"]).tolist()
    for result in results:
        result["bbox"] = coco_mask.toBbox(result["segmentation"]).tolist()
    assert_same(coco_metrics(truth, results, 100), reference_coco(truth, results, 100))


def test_coco_cap_matters_in_the_drawn_case() -> None:
    truth, results = drawn_case(0)
    metrics = coco_metrics(truth, results, 500)
    assert metrics["mask"]["AP_max100"] < metrics["mask"]["AP"]
    assert metrics["mask"]["AP_max100"] == pytest.approx(coco_metrics(truth, results, 100)["mask"]["AP"], abs=1e-12)


def test_coco_of_some_images_equals_pycocotools() -> None:
    truth, results = drawn_case(4)
    for chosen in ([3, 40], [12], [40]):
        assert_same(coco_metrics(truth, results, 300, chosen), reference_coco(truth, results, 300, chosen))


def test_coco_is_silent_and_changes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    truth, results = drawn_case(5)
    before = copy.deepcopy((truth, results))
    coco_metrics(truth, results, 300)
    overlaps(truth, results)
    assert (truth, results) == before
    assert capfd.readouterr() == ("", "")


def test_coco_of_perfect_results_is_one() -> None:
    """Objects apart from one another, 40 small, 1 medium and 1 large, at a cap that just holds them."""
    truth, results = scene([], [])
    truth["images"][0] |= {"height": SIDE, "width": SIDE}
    corners = [(2 + 9 * (n % 20), 150 + 9 * (n // 20), 8) for n in range(40)] + [(0, 0, 40), (60, 0, 120)]
    for n, (x, y, side) in enumerate(corners, 1):
        polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
        entry = {"image_id": 1, "category_id": 1, "segmentation": [polygon]}
        truth["annotations"].append(entry | {"id": n, "iscrowd": 0})
        results.append(entry | {"score": n / 100})
    metrics = coco_metrics(truth, results, 42)
    for kind in ("mask", "box"):
        assert list(metrics[kind].values()) == pytest.approx([1.0] * 7)
    assert metrics["per_class"]["class 1"]["objects"] == 42
    assert coco_metrics(truth, results, 41)["mask"]["AP"] < 0.99


def test_crowds_are_not_counted_among_the_objects_of_a_class() -> None:
    truth, results = scene([(1, bar(0, 10)), (1, bar(12, 20))], [(1, bar(0, 10), 0.5)], crowds=[(1, bar(20, 40))])
    assert coco_metrics(truth, results, 100)["per_class"]["class 1"]["objects"] == 2


def test_coco_does_not_depend_on_ids() -> None:
    truth, results = drawn_case(7)
    expected = coco_metrics(truth, results, 200)
    for entry in truth["images"]:
        entry["id"] = f"image {entry['id']:03}"
    for n, annotation in enumerate(truth["annotations"]):
        annotation |= {"id": n, "image_id": f"image {annotation['image_id']:03}"}
    for result in results:
        result["image_id"] = f"image {result['image_id']:03}"
    assert coco_metrics(truth, results, 200) == expected


def test_figures_do_not_depend_on_the_form_of_the_ground_truth() -> None:
    truth, results = drawn_case(6)
    read = GroundTruth.from_coco(truth)
    chosen = [7, 40]
    assert coco_metrics(read, results, 200) == coco_metrics(truth, results, 200)
    assert coco_metrics(read, results, 200, chosen) == coco_metrics(truth, results, 200, chosen)
    metrics = matching_metrics(overlaps(read, results), 0.3)
    assert metrics == matching_metrics(overlaps(truth, results), 0.3)


def test_polygons_of_two_points_cover_nothing() -> None:
    truth, results = scene([(1, bar(0, 10))], [(1, bar(0, 10), 0.5)])
    truth["annotations"].append({"id": 2, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1]]})
    results.append({"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1]], "score": 0.4})
    found = overlaps(truth, results)
    assert found.object_areas.tolist() == [10, 0]
    assert found.areas.tolist() == [10, 0]


def test_coco_takes_missing_and_malformed_boxes_and_areas_from_masks() -> None:
    truth, results = drawn_case(8)
    bare = copy.deepcopy(truth)
    for annotation in bare["annotations"]:
        del annotation["area"], annotation["bbox"]
    broken = copy.deepcopy(truth)
    for annotation in broken["annotations"]:
        annotation |= {"area": "large", "bbox": ["1", 2, 3, 4]}
    for result in results:
        result["bbox"] = coco_mask.toBbox(result["segmentation"]).tolist()
    boxless = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    assert coco_metrics(bare, boxless, 200) == coco_metrics(truth, results, 200)
    assert coco_metrics(broken, boxless, 200) == coco_metrics(truth, results, 200)


def frame(x: int, y: int, side: int, wide: int) -> dict[str, Any]:
    """A square outline: few pixels in a large box."""
    pixels = np.zeros((SIDE, SIDE), bool)
    pixels[y : y + side, x : x + side] = True
    pixels[y + wide : y + side - wide, x + wide : x + side - wide] = False
    return rle(pixels)


SMALL, MEDIUM, LARGE = frame(0, 0, 40, 2), frame(0, 50, 100, 3), frame(40, 40, 150, 40)


def hollow(results: list[tuple[dict[str, Any], float]]) -> dict[str, Any]:
    """Of 304 pixels in a box of 1600, of 1164 in one of 10000 and of 17600 in one of 22500."""
    truth, found = scene([(1, SMALL), (1, MEDIUM), (1, LARGE)], [(1, mask, score) for mask, score in results])
    truth["images"][0] |= {"height": SIDE, "width": SIDE}
    assert overlaps(truth, found).object_areas.tolist() == [304, 1164, 17600]
    assert overlaps(truth, found).areas.tolist() == [int(coco_mask.area(mask)) for mask, _ in results]
    return coco_metrics(truth, found, 100)["mask"]


@pytest.mark.parametrize(("found", "sizes"), [(SMALL, [1, 0, 0]), (MEDIUM, [0, 1, 0]), (LARGE, [0, 0, 1])])
def test_an_object_is_as_large_as_its_mask_not_as_its_box(found: dict[str, Any], sizes: list[int]) -> None:
    figures = hollow([(found, 0.9)])
    assert [figures[key] for key in ("APs", "APm", "APl")] == pytest.approx(sizes)


def test_a_triangle_has_an_area_and_a_given_area_wins() -> None:
    triangle = {"segmentation": [[20.0, 20, 60, 20, 20, 60]], "image_id": 1, "category_id": 1}
    truth, _ = scene([], [])
    truth["images"][0] |= {"height": SIDE, "width": SIDE}
    truth["annotations"] = [triangle | {"id": 1, "iscrowd": 0}]
    assert overlaps(truth, []).object_areas.tolist() == [pytest.approx(800, rel=0.05)]
    for area, key in ((None, "APs"), (5000, "APm"), (10000, "APl")):
        truth["annotations"][0]["area"] = area
        figures = coco_metrics(truth, [], 100)["mask"]
        assert [name for name in ("APs", "APm", "APl") if figures[name] is not None] == [key]


def test_a_false_alarm_is_as_large_as_its_mask() -> None:
    """It comes before the right ones, of which there is one of each size: the precision of its size is a half."""
    right = [(SMALL, 0.5), (MEDIUM, 0.5), (LARGE, 0.5)]
    for wrong, expected in (
        (frame(150, 0, 40, 2), [0.5, 1, 1]),
        (frame(99, 0, 100, 4), [1, 0.5, 1]),
        (frame(0, 0, 140, 60), [1, 1, 0.5]),
    ):
        figures = hollow([(wrong, 0.9), *right])
        assert [figures[key] for key in ("APs", "APm", "APl")] == pytest.approx(expected)


def test_shuffled_results_change_nothing() -> None:
    truth, results = drawn_case(9)
    for n, result in enumerate(results):
        result["score"] = (n + 1) / 1000
    shuffled = random.Random(0).sample(results, len(results))
    assert coco_metrics(truth, shuffled, 150) == coco_metrics(truth, results, 150)
    assert matching_metrics(overlaps(truth, shuffled), 0.1) == matching_metrics(overlaps(truth, results), 0.1)


# ---------------------------------------------------------------- bad input


def broken(kind: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    truth, results = scene([(1, bar(0, 10))], [(1, bar(0, 10), 0.5)])
    match kind:
        case "image":
            results[0]["image_id"] = 99
        case "class":
            results[0]["category_id"] = 99
        case "mask":
            del results[0]["segmentation"]
        case "size":
            results[0]["segmentation"] = bar(0, 10, size=(8, 80))
        case "score":
            results[0]["score"] = float("nan")
        case "polygons":
            truth["annotations"][0]["segmentation"] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        case "categories":
            del truth["categories"]
        case "iscrowd":
            truth["annotations"][0]["iscrowd"] = "0"
        case "crowd":
            truth["annotations"][0] |= {"iscrowd": 1, "segmentation": [], "bbox": [0, 0, 5, 2]}
            truth["annotations"][0]["category_id"] = 5
        case "height":
            del truth["images"][0]["height"]
    return truth, results


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("image", "result 0.*image 99"),
        ("class", "result 0.*category 99"),
        ("mask", "result 0.*segmentation"),
        ("size", r"result 0.*\[4, 40\].*\[8, 80\]"),
        ("score", "result 0.*score"),
        ("polygons", "annotation 1.*polygons"),
        ("iscrowd", "annotation 1.*iscrowd"),
        ("crowd", "annotation 1.*category"),
        ("categories", "categories"),
        ("height", "image 1.*height"),
    ],
)
def test_bad_input_is_named(kind: str, names: str) -> None:
    truth, results = broken(kind)
    with pytest.raises(InputError, match=names):
        coco_metrics(truth, results, 100)
    with pytest.raises(InputError, match=names):
        overlaps(truth, results)


def test_bad_arguments_are_named() -> None:
    truth, results = scene([(1, bar(0, 10))], [])
    with pytest.raises(InputError, match="max_detections is 0"):
        coco_metrics(truth, results, 0)
    with pytest.raises(InputError, match="image_ids names 5"):
        coco_metrics(truth, results, 100, [1, 5])
    with pytest.raises(InputError, match="grid"):
        tune_score_threshold(overlaps(truth, results), [])


# ---------------------------------------------------------------- matching


def test_matching_of_nothing() -> None:
    nothing = matching_metrics(overlaps({"images": [], "categories": []}, []), 0.5)
    for way in ("kaggle", "stardist", "cellpose"):
        assert set(nothing[way].values()) == {None}
    truth, _ = scene([], [], images=2)
    empty = matching_metrics(overlaps(truth, []), 0.5)
    assert set(empty["kaggle"].values()) == {1.0} == set(empty["cellpose"].values())
    assert set(empty["stardist"].values()) == {None}


def test_matching_worked_by_hand() -> None:
    """Image 1: objects of 10 pixels; IoU 8/10, a miss, a false alarm.  Image 2: IoU 10/10.

    Image 1 has TP 1, FP 1, FN 1 up to IoU 0.8 and TP 0, FP 2, FN 2 above; image 2 has TP 1.
    Image 2 also has a false alarm of score 0.3, below the threshold.
    """
    truth, results = scene(
        objects=[(1, bar(0, 10)), (1, bar(20, 30)), (2, bar(5, 15))],
        detections=[(1, bar(0, 8), 0.9), (1, bar(30, 40), 0.8), (2, bar(5, 15), 0.5), (2, bar(30, 40), 0.3)],
        images=2,
    )
    metrics = matching_metrics(overlaps(truth, results), 0.5)
    low, high = (1 / 3 + 1) / 2, (0 + 1) / 2
    closed = [low] * 7 + [high] * 3
    above = [low] * 6 + [high] * 4
    pooled = [2 / 4] * 7 + [1 / 5] * 3
    for way, expected in (("kaggle", above), ("cellpose", closed), ("stardist", pooled)):
        assert [metrics[way][f"{t:.2f}"] for t in THRESHOLDS] == pytest.approx(expected, abs=1e-12)
        assert metrics[way]["mean"] == pytest.approx(sum(expected) / 10, abs=1e-12)
    assert metrics["score_threshold"] == 0.5
    assert set(metrics["kaggle"]) == {*(f"{t:.2f}" for t in THRESHOLDS), "mean"}

    # at 0.3 the false alarm of image 2 counts too: 1/2 there, and 2/5 and 1/6 of all
    metrics = matching_metrics(overlaps(truth, results), 0.3)
    assert metrics["kaggle"]["0.50"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert metrics["stardist"]["0.80"] == pytest.approx(2 / 5)
    assert metrics["stardist"]["0.85"] == pytest.approx(1 / 6)


def test_matching_is_largest_where_detections_overlap() -> None:
    """Objects 0..12 and 4..16; the detection 2..14 (IoU 10/14 with both) must leave 0..12 to the one that needs it."""
    truth, results = scene(
        objects=[(1, bar(0, 12)), (1, bar(4, 16))],
        detections=[(1, bar(2, 14), 0.9), (1, bar(0, 12), 0.8)],
    )
    metrics = matching_metrics(overlaps(truth, results), 0.5)
    assert metrics["stardist"]["0.70"] == 1.0
    assert metrics["stardist"]["0.75"] == pytest.approx(1 / 3)


def test_matching_chain_longer_than_the_recursion_limit() -> None:
    count = 3000
    pairs = [(n, n) for n in range(count)] + [(n, n + 1) for n in range(count - 1)]
    truth, _ = scene([], [])
    chain = replace(
        overlaps(truth, []),
        objects=np.array([count]),
        scores=np.ones(count),
        images=np.zeros(count, np.int64),
        in_crowd=np.zeros(count, bool),
        pair_detections=np.array([d for d, _ in reversed(pairs)]),
        pair_objects=np.array([o for _, o in reversed(pairs)]),
        pair_ious=np.full(len(pairs), 0.99),
    )
    assert matching_metrics(chain, 0.5)["stardist"]["mean"] == 1.0


def test_matching_needs_the_same_class() -> None:
    truth, results = scene([(1, bar(0, 10))], [(1, bar(0, 10), 0.9)], classes=2)
    results[0]["category_id"] = 2
    assert matching_metrics(overlaps(truth, results), 0.5)["stardist"]["mean"] == 0.0


def test_matching_and_crowds() -> None:
    """Crowd 20..40: 21..29 is inside, 16..24 by exactly half, so only the second is a false alarm."""
    truth, results = scene(
        objects=[(1, bar(0, 10))],
        crowds=[(1, bar(20, 40))],
        detections=[(1, bar(0, 10), 0.9), (1, bar(21, 29), 0.9), (1, bar(16, 24), 0.9)],
    )
    assert matching_metrics(overlaps(truth, results), 0.5)["stardist"]["mean"] == pytest.approx(1 / 2)
    truth, results = scene([(1, bar(22, 30))], [(1, bar(22, 30), 0.9)], crowds=[(1, bar(20, 40))])
    assert matching_metrics(overlaps(truth, results), 0.5)["stardist"]["mean"] == 1.0
    truth, results = scene([], [(1, bar(22, 30), 0.9)], crowds=[(1, bar(20, 40))])
    assert matching_metrics(overlaps(truth, results), 0.5)["kaggle"]["mean"] == 1.0
    for crowds in ([(1, bar(20, 28)), (1, bar(28, 40))], [(1, bar(28, 40)), (1, bar(20, 28))]):
        truth, results = scene([], [(1, bar(20, 30), 0.9)], crowds=crowds)
        assert overlaps(truth, results).in_crowd.tolist() == [True], "mostly in one, a little in the other"


@pytest.mark.parametrize("order", [1, -1])
def test_a_detection_in_a_crowd_leaves_the_object_to_one_outside(order: int) -> None:
    """Object 0..10, crowd 0..7: the detection 0..10 is in the crowd, 3..13 (IoU 7/13) is not and would be a false alarm."""
    truth, results = scene(
        objects=[(1, bar(0, 10))],
        crowds=[(1, bar(0, 7))],
        detections=[(1, bar(0, 10), 0.9), (1, bar(3, 13), 0.8)][::order],
    )
    metrics = matching_metrics(overlaps(truth, results), 0.5)["stardist"]
    assert metrics["0.50"] == 1
    assert metrics["0.55"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("seed", range(25))
def test_matching_equals_brute_force(seed: int) -> None:
    truth, results = small_case(seed)
    for score_threshold in (0.0, 0.5):
        metrics = matching_metrics(overlaps(truth, results), score_threshold)
        for way, expected in reference_matching(truth, results, score_threshold).items():
            assert metrics[way] == pytest.approx(expected, abs=1e-12), way


def test_matching_of_perfect_results_is_one_and_images_can_be_chosen() -> None:
    truth, _ = drawn_case(10)
    results = [
        {key: a[key] for key in ("image_id", "category_id", "segmentation")} | {"score": 0.7}
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]
    for way in ("kaggle", "stardist", "cellpose"):
        assert set(matching_metrics(overlaps(truth, results), 0.7)[way].values()) == {1.0}
    without = [result for result in results if result["image_id"] != 7]
    assert matching_metrics(overlaps(truth, without), 0.5)["stardist"]["mean"] < 0.5
    assert matching_metrics(overlaps(truth, without, [3, 40]), 0.5)["stardist"]["mean"] == 1.0


def test_tuning_finds_the_best_threshold() -> None:
    """Right answers at 0.6 and above, false alarms at 0.4 and below, so 0.45 to 0.6 are best."""
    truth, results = scene(
        objects=[(1, bar(0, 10)), (2, bar(0, 10))],
        detections=[(1, bar(0, 10), 0.6), (2, bar(0, 10), 0.8), (1, bar(20, 30), 0.4), (2, bar(20, 30), 0.1)],
        images=2,
    )
    found = overlaps(truth, results)
    assert tune_score_threshold(found) == 0.5
    assert tune_score_threshold(found, [0.9, 0.05, 0.6, 0.2]) == 0.6
    assert matching_metrics(found, tune_score_threshold(found))["kaggle"]["mean"] == 1.0
    assert tune_score_threshold(found, [0.9, 0.6, 0.05, 0.45, 0.5]) == 0.5, "the middle of 0.45, 0.5 and 0.6"
    drawn = overlaps(*drawn_case(11))
    scores = {t: matching_metrics(drawn, t)["kaggle"]["mean"] for t in (0.1, 0.3, 0.5, 0.7, 0.9)}
    assert scores[tune_score_threshold(drawn, list(scores))] == max(scores.values())


@pytest.mark.parametrize("score", [0.05, 0.95])
def test_tuning_looks_from_005_to_095(score: float) -> None:
    """One answer is right; where it is so unsure, or the false alarms so sure, only one threshold of the grid will do."""
    wrong = [(1, bar(20, 30), score - 0.03)] if score > 0.5 else []
    found = overlaps(*scene([(1, bar(0, 10))], [(1, bar(0, 10), score), *wrong]))
    assert tune_score_threshold(found) == score


def test_tuning_is_exact_and_counts_overlaps_above_the_threshold_only() -> None:
    """Of 101 images with one object each, one is lost beyond 0.1; an IoU of exactly 0.5 is worth nothing to Kaggle."""
    objects = [(n, bar(0, 10)) for n in range(1, 102)]
    sure = [(n, bar(0, 10), 0.9 if n > 1 else 0.1) for n in range(1, 102)]
    assert tune_score_threshold(overlaps(*scene(objects, sure, images=101)), [0.1, 0.4, 0.8]) == 0.1
    row = [(2, bar(n, n + 2)) for n in range(0, 40, 2)]
    half_and_a_false_alarm = [(1, bar(0, 5), 0.3), (2, bar(0, 5, row=1), 0.3)]
    found = half_and_a_false_alarm + [(*entry, 0.9) for entry in row]
    assert tune_score_threshold(overlaps(*scene([(1, bar(0, 10)), *row], found, images=2)), [0.2, 0.8]) == 0.8


# ---------------------------------------------------------------- report


def report(metrics: dict[str, Any], width: int = 100) -> str:
    stream = io.StringIO()
    print_report(metrics, Console(file=stream, width=width))
    return stream.getvalue()


def test_report_shows_every_figure() -> None:
    truth, results = drawn_case(12)
    truth["categories"][0]["name"] = "cell [red]"
    metrics = coco_metrics(truth, results, 300)
    metrics["matching"] = matching_metrics(overlaps(truth, results), 0.35)
    text = report(metrics)
    for value in [*metrics["mask"].values(), *metrics["box"].values()]:
        assert f"{value:.3f}" in text
    for way in ("kaggle", "stardist", "cellpose"):
        for key in ("0.50", "0.60", "0.70", "0.80", "0.90", "mean"):
            assert f"{metrics['matching'][way][key]:.3f}" in text
    for words in ("Kaggle DSB2018", "StarDist", "Cellpose", "0.35", "300", "cell [red]", "fruit", "small"):
        assert words in text
    assert "None" not in text
    assert "…" not in report(metrics, width=80)
    never = next(line for line in text.splitlines() if "never there" in line)
    assert never.count("-") == 3


def test_report_of_one_class_and_of_parts() -> None:
    truth, results = scene([(1, bar(0, 10))], [(1, bar(0, 10), 0.9)])
    metrics = coco_metrics(truth, results, 100)
    assert "class 1" not in report(metrics)
    assert "Matched objects" not in report(metrics)
    assert "COCO" not in report({"matching": matching_metrics(overlaps(truth, results), 0.5)})


def test_metrics_are_written_as_strict_json(tmp_path: Any) -> None:
    truth, results = drawn_case(13)
    metrics = coco_metrics(truth, results, 300)
    metrics["matching"] = matching_metrics(overlaps(truth, results), 0.5)
    path = tmp_path / "metrics.json"
    write_metrics(path, metrics)
    first = path.read_text()
    assert json.loads(first) == metrics
    write_metrics(path, dict(reversed(metrics.items())))
    assert path.read_text() == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.json"]
    with pytest.raises(InputError, match=r"metrics\.json.*NaN"):
        write_metrics(path, {"AP": float("nan")})
    assert path.read_text() == first


@pytest.mark.parametrize(("classes", "listed"), [(1, False), (2, True), (20, True), (21, False)])
def test_a_few_classes_are_listed_in_the_report(classes: int, listed: bool) -> None:
    per_class = {f"kind {k}": {"mask_AP": 0.5, "mask_AP50": 0.6, "box_AP": 0.4, "objects": k} for k in range(classes)}
    assert ("kind 0" in report({"per_class": per_class})) == listed
