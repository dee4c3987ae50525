"""Reports: their figures are those of an evaluation, names stay text, odd cases are said, and the page works in a browser."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from contracts import fails, predictor
from PIL import Image
from processes import in_another_process, needs_fork, recipe_file, torchrun

from masklab.cli.app import main
from masklab.config.schema import validate
from masklab.datasets.open import open_split
from masklab.evaluation.coco import ap_of_groups
from masklab.evaluation.confusion import confusion
from masklab.evaluation.evaluate import evaluate_in_full
from masklab.evaluation.groups import image_kinds, object_groups
from masklab.evaluation.matching import image_counts, match
from masklab.evaluation.mended import gains
from masklab.evaluation.sweep import STEPS, calibration, curve, stored, sweep
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import Predictor
from masklab.model.build import build_model
from masklab.plots.failures import marked
from masklab.report.compare import comparison, sentences
from masklab.report.markup import Html, named, shown, tag
from masklab.report.page import data_block
from masklab.report.pictures import Budget, Gallery
from masklab.report.report import report, write_report
from masklab.structures import ClassTable
from masklab.weights.checkpoint import save_model

SIZE = (48, 64)
FLOAT32 = PredictionOptions(precision="float32")
HOSTILE = "<script>alert('1')</script>"


class Page(HTMLParser):
    """The elements and the text of a page, outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self._skipped = [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._skipped = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._skipped = ""

    def handle_data(self, data):
        self.text += "" if self._skipped else data


def outline(box):
    x1, y1, x2, y2 = box
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def drawn(folder, images, names=("cell",), file_names=None):
    """A COCO folder ``val`` of dark images with bright boxes: ``images`` are lists of (box, label) or (box, label, crowd)."""
    (folder / "val").mkdir(parents=True)
    entries, annotations = [], []
    for n, objects in enumerate(images, 1):
        values = np.full((*SIZE, 3), 20, np.uint8)
        for box, label, *crowd in objects:
            values[box[1] : box[3], box[0] : box[2]] = (200, 120, 60)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": n, "category_id": label + 1, "segmentation": outline(box)}
                | {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "area": 1, "iscrowd": int(bool(crowd))}
            )
        name = f"{n}.png" if file_names is None else file_names[n - 1]
        Image.fromarray(values).save(folder / "val" / name, "PNG")
        entries.append({"id": n, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
    categories = [{"id": k, "name": name} for k, name in enumerate(names, 1)]
    text = json.dumps({"images": entries, "annotations": annotations, "categories": categories})
    (folder / "val.json").write_text(text)
    return folder


def results(images):
    """Results by image id from lists of (box, label, score)."""
    return {
        n: [
            {"image_id": n, "category_id": label + 1, "score": score, "segmentation": outline(box)}
            | {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
            for box, label, score in detections
        ]
        for n, detections in enumerate(images, 1)
    }


@pytest.fixture(scope="module")
def model_of(tiny_config):
    def make(names=("cell",)):
        torch.manual_seed(0)
        return build_model(
            validate(tiny_config.model_dump(), "tests"), ClassTable(tuple(range(1, len(names) + 1)), names)
        )

    return make


@pytest.fixture
def measured(tmp_path, model_of):
    """An evaluation of given results on drawn images, at a threshold."""

    def make(objects, detections, names=("cell",), threshold=0.5, file_names=None, folder="set"):
        data = (
            drawn(tmp_path / folder, objects, names, file_names)
            if not (tmp_path / folder).exists()
            else tmp_path / folder
        )
        known = results(detections)
        return evaluate_in_full(
            predictor(model_of(tuple(names)).eval(), score_threshold=threshold), data, known_results=known
        )

    return make


def random_scenes(seed, count=6, classes=3):
    """Objects and detections near them, with crowds, repeated scores and detections of nothing."""
    rng = np.random.default_rng(seed)

    def box():
        x, y = rng.integers(0, 48), rng.integers(0, 34)
        return (int(x), int(y), int(x + rng.integers(4, 16)), int(y + rng.integers(4, 14)))

    objects, detections = [], []
    for _ in range(count):
        some = [(box(), int(rng.integers(classes))) for _ in range(rng.integers(0, 9))]
        near = [
            (
                tuple(max(0, c + int(rng.integers(-1, 2))) for c in b),
                label if rng.random() < 0.8 else int(rng.integers(classes)),
            )
            for b, label in some
            for _ in range(rng.integers(0, 4))
        ]
        near += [(box(), int(rng.integers(classes))) for _ in range(3)]
        crowds = [(box(), int(rng.integers(classes)), True) for _ in range(rng.integers(0, 3))]
        objects.append(some + crowds)
        detections.append([(b, label, float(np.round(rng.random(), 2))) for b, label in near])
    return objects, detections


A, B, C = (2, 2, 14, 14), (20, 2, 32, 14), (40, 20, 60, 40)


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("seed", range(4))
def test_matches_of_all_thresholds_are_those_of_each(seed, measured):
    """Also in crowds, and where several detections contend for several objects."""
    one = measured(*random_scenes(seed), names=("a", "b", "c"))
    labels = np.array([region.label for region in one.inputs.detections])
    for iou in (0.3, 0.5, 0.75):
        swept = sweep(one.inputs, one.overlaps, iou)
        kept = stored(swept)
        for step in (0, 130, 290, 500, 570, 700, 999):
            counted = one.overlaps.scores >= step / STEPS
            by_class = [image_counts(one.overlaps, counted & (labels == k), (iou,))[0].sum(axis=0) for k in range(3)]
            found, wrong, missed = swept.counts(step / STEPS)
            assert found.tolist() == [counts[0] for counts in by_class]
            assert wrong.tolist() == [counts[1] for counts in by_class]
            for k, each in enumerate(kept):
                assert sum(right for s, right, _ in each["steps"] if s >= step) == found[k]
                assert sum(bad for s, _, bad in each["steps"] if s >= step) == wrong[k]
                assert each["objects"] - found[k] == missed[k]


def test_curves_and_calibration_by_hand(measured):
    one = measured([[(A, 0), (B, 0)]], [[(A, 0, 0.9), (C, 0, 0.8), (B, 0, 0.4), (A, 0, 0.2)]])
    swept = sweep(one.inputs, one.overlaps)
    drawn_curve = curve(swept)
    assert drawn_curve.scores.tolist() == [0.9, 0.8, 0.4, 0.2]
    assert drawn_curve.precision.tolist() == [1, 1 / 2, 2 / 3, 2 / 4]
    assert drawn_curve.recall.tolist() == [1 / 2, 1 / 2, 1, 1]
    assert drawn_curve.f1.tolist() == [2 / 3, 1 / 2, 4 / 5, 4 / 6]
    bins, error = calibration(swept)
    assert [(total, share) for total, _, share in bins if total] == [(1, 0), (1, 1), (1, 0), (1, 1)]
    assert error == pytest.approx((0.2 + 0.6 + 0.8 + 0.1) / 4)
    one = measured([[(A, 0)]], [[(A, 0, 0.95), (B, 0, 0.92), (C, 0, 0.91), (B, 0, 0.2)]], folder="uneven")
    bins, error = calibration(sweep(one.inputs, one.overlaps))
    assert bins[9] == pytest.approx((3, 2.78 / 3, 1 / 3))
    assert error == pytest.approx(3 / 4 * (2.78 / 3 - 1 / 3) + 1 / 4 * 0.2)


def test_confusion_by_hand(measured):
    """Right, taken for another class, missed, made up; what is below the threshold is not there."""
    one = measured(
        [[(A, 0), (B, 1), (C, 1)]], [[(A, 0, 0.9), (B, 0, 0.8), ((2, 30, 12, 40), 1, 0.7), (C, 1, 0.1)]], ("a", "b")
    )
    found = confusion(one.inputs, one.overlaps, 0.5)
    assert found.matrix.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert found.detections.tolist() == [1]
    assert found.objects.tolist() == [1]


def test_what_mending_brings_by_hand(measured):
    """Two objects, AP50 one half: the gain is one half where the kind is what is wrong, else nothing."""
    piece = (20, 2, 32, 7)  # of B, IoU 5 / 12
    cases = {
        "localisation": [(A, 0, 0.9), (piece, 0, 0.8)],
        "missed": [(A, 0, 0.9)],
        "class": [(A, 0, 0.9), (B, 1, 0.8)],
        "split": [((20, 2, 32, 7), 0, 0.95), ((20, 8, 32, 13), 0, 0.92), (A, 0, 0.9)],
    }
    for n, (kind, detections) in enumerate(cases.items()):
        one = measured([[(A, 0), (B, 0), (C, 1)]], [[*detections, (C, 1, 0.9)]], ("a", "b"), folder=str(n))
        found = {gain.kind: gain for gain in gains(one.inputs, one.overlaps, 20)}
        before = one.metrics["mask"]["AP50"]
        assert found[kind].ap50 == pytest.approx(1 - before), kind
        assert found[kind].objects == 1
    two = measured([[((0, 0, 10, 10), 0), ((10, 0, 20, 10), 0)]], [[((0, 0, 20, 10), 0, 0.9)]], folder="merged")
    found = {gain.kind: gain for gain in gains(two.inputs, two.overlaps, 20)}
    assert (found["merged"].detections, found["merged"].objects) == (1, 2)
    assert two.metrics["mask"]["AP50"] + found["merged"].ap50 == pytest.approx(1)
    three = measured([[(A, 0), (B, 0)]], [[(A, 0, 0.9), (C, 0, 0.85), (A, 0, 0.8), (B, 0, 0.7)]], folder="wrong")
    found = {gain.kind: gain for gain in gains(three.inputs, three.overlaps, 20)}
    assert found["background"].ap50 > 0.05
    assert found["duplicate"].ap50 > 0.05
    assert found["missed"].ap50 == found["split"].ap50 == 0


def test_groups_by_hand(measured):
    near = (15, 2, 27, 14)  # beside A, which has one neighbour; C stands alone
    one = measured([[(A, 0), (near, 0), (C, 0)], []], [[(A, 0, 0.9), (C, 0, 0.8)], []])
    groups = object_groups(one.inputs, one.overlaps, 0.5, 20)
    assert [(g.name, g.objects, g.found) for g in groups["neighbours"]] == [("none", 1, 1), ("1 or 2", 2, 0.5)]
    assert sum(g.objects for g in groups["size"]) == 3
    assert groups["size"][-1].found == groups["size"][-1].iou == 1
    assert image_kinds(one.inputs) == [("without objects", [2]), ("3 objects", [1])]


def test_average_precision_of_groups_by_hand(measured):
    """Wrong with higher scores: one beside the two that have neighbours, and a piece of C, which has none."""
    near, alone = (15, 2, 27, 14), (2, 34, 12, 44)
    wrong = (28, 3, 38, 13)  # 1 away from `near`, on no object
    piece = (40, 20, 48, 40)  # of C, IoU 0.4: it has no neighbour, as C has none
    detections = [(wrong, 0, 0.95), (A, 0, 0.9), (near, 0, 0.8), (piece, 0, 0.75), (C, 0, 0.7), (alone, 0, 0.6)]
    one = measured([[(A, 0), (near, 0), (C, 0), ((44, 2, 60, 12), 0, True)]], [detections])
    none, some = object_groups(one.inputs, one.overlaps, 0.1, 20)["neighbours"]
    assert (none.objects, none.ap, none.ap50) == pytest.approx((1, 1 / 2, 1 / 2))
    assert (some.objects, some.ap, some.ap50) == pytest.approx((2, 2 / 3, 2 / 3)), "at 1/2, 2/3: the envelope is 2/3"
    sizes = object_groups(one.inputs, one.overlaps, 0.1, 20)["size"]
    assert [(g.name, g.objects) for g in sizes] == [("12 to 16 pixels", 2), ("16 or more pixels", 1)]
    assert [g.ap50 for g in sizes] == pytest.approx([1, 1]), "the wrong ones are of 10 pixels"
    whole = object_groups(one.inputs, one.overlaps, 0.1, 1)["neighbours"]
    assert [g.ap50 for g in whole] == [0, 0], "only the first detection counts"


@pytest.mark.parametrize("seed", range(3))
def test_the_average_precision_of_one_group_is_that_of_all(seed, measured):
    one = measured(*random_scenes(seed), names=("a", "b", "c"))
    objects, detections = (np.zeros(len(each), np.int64) for each in (one.inputs.objects, one.inputs.detections))
    mask = one.metrics["mask"]
    assert ap_of_groups(one.inputs, one.max_detections, objects, detections, 1) == [(mask["AP"], mask["AP50"])]
    apart = ap_of_groups(one.inputs, one.max_detections, objects, detections + 1, 2)
    assert apart[0][1] >= mask["AP50"], "wrong detections of another group cost nothing"
    assert apart[1] == (None, None)


# ---------------------------------------------------------------- the page


def cells(text, identifier):
    return re.search(rf'id="{identifier}">([^<]*)<', text).group(1)


def matches(text):
    return json.loads(re.search(r'id="matches">(.*?)</script>', text, re.DOTALL).group(1))


def test_the_figures_are_those_of_the_evaluation(measured, tmp_path):
    objects, detections = random_scenes(7)
    one = measured(objects, detections, ("a", "b", "c"), threshold=0.35)
    text = write_report(tmp_path / "r.html", "runs/mine", one).read_text()
    page = Page(text)
    for kind in ("mask", "box"):
        for key in ("AP", "AP50", "AP75", "APs", "AP_max100"):
            assert f"{one.metrics[kind][key]:.3f}" in page.text
    for way in ("kaggle", "stardist", "cellpose"):
        assert f"{one.metrics['matching'][way]['mean']:.3f}" in page.text
    matched, _, _ = match(one.overlaps, 0.35)
    in_crowds = int(one.overlaps.in_crowd[matched].sum())
    wrong = int(((one.overlaps.scores >= 0.35) & ~one.overlaps.in_crowd).sum()) - len(matched) + in_crowds
    assert cells(text, "all-found") == str(len(matched))
    assert cells(text, "all-wrong") == str(wrong)
    assert cells(text, "all-ap") == f"{one.metrics['matching']['stardist']['0.50']:.3f}"
    for threshold in (0.1, 0.5, 0.8):
        found = wrong = 0
        for each in matches(text)["classes"]:
            found += sum(right for s, right, _ in each["steps"] if s >= threshold * STEPS)
            wrong += sum(bad for s, _, bad in each["steps"] if s >= threshold * STEPS)
        truth = image_counts(one.overlaps, one.overlaps.scores >= threshold, (0.5,))[0].sum(axis=0)
        assert (found, wrong) == (truth[0], truth[1])


def test_names_from_data_stay_text(measured, tmp_path):
    names = (HOSTILE, "細胞 & “x” $a_b$", "خلية\u202e", "a\"b' onload=1")
    files = ["<img src=x onerror=alert(1)>.png", "細胞 ядро.png"]
    objects = [[(A, 0), (B, 1), (C, 2)], [(A, 3)]]
    detections = [[(A, 0, 0.9), (B, 2, 0.8)], [(C, 3, 0.9)]]
    one = measured(objects, detections, names, file_names=files)
    text = write_report(tmp_path / "r.html", f"runs/{HOSTILE}", one).read_text()
    page = Page(text)
    assert page.tags.count("script") == 2, "the script and its data"
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in page.text
    assert names[1] in page.text
    assert all(name in page.text for name in files)
    assert "\u202e" not in text
    outside = [value for name, value in page.attributes if name in ("src", "href", "xlink:href") and value]
    assert all(value.startswith(("data:", "#")) for value in outside)
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)


def test_markup_is_escaped_unless_it_says_otherwise():
    assert tag("p", "<b>", Html("<b>"), title='"<') == '<p title="&quot;&lt;">&lt;b&gt;<b></p>'
    assert named("a&b") == "<bdi>a&amp;b</bdi>"
    assert shown("\ud800\x00a\u200db") == "\ufffd\ufffda\u200db"


def test_values_for_the_script_cannot_end_their_element():
    block = data_block("d", [HOSTILE, "</script>"])
    assert Page(block).tags == ["script"]
    assert Page(block).text == ""
    assert json.loads(block[block.index(">") + 1 : block.rindex("<")]) == [HOSTILE, "</script>"]


CASES = {
    "no objects": ([[], []], [[(A, 0, 0.9)], []], ("cell",), "no annotated object"),
    "no detections": ([[(A, 0)], [(B, 0)]], [[], []], ("cell",), "found nothing"),
    "neither": ([[]], [[]], ("cell",), "Every image is right"),
    "one image, all right": ([[(A, 0)]], [[(A, 0, 0.9)]], ("cell",), "Every image is right"),
    "only a crowd": ([[(A, 0, True)]], [[(A, 0, 0.9)]], ("cell",), "no annotated object"),
    "80 classes": (
        [[(A, k), (B, k + 1)] for k in range(0, 80, 2)],
        [[(A, k, 0.9), (B, k, 0.7)] for k in range(0, 80, 2)],
        tuple(f"kind {k}" for k in range(80)),
        "more are left out",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_odd_cases_are_said(name, measured, tmp_path):
    objects, detections, names, sentence = CASES[name]
    path = write_report(tmp_path / "r.html", "m", measured(objects, detections, names))
    assert sentence in Page(path.read_text()).text
    assert path.stat().st_size < 5_000_000


def test_images_stay_within_their_budget(measured, tmp_path, monkeypatch):
    one = measured([[(A, 0), (B, 0)]] * 3, [[(C, 0, 0.9)]] * 3)
    whole = write_report(tmp_path / "all.html", "m", one).read_text()
    monkeypatch.setattr("masklab.report.report.Budget", lambda: Budget(left=9000))
    small = write_report(tmp_path / "few.html", "m", one).read_text()
    assert 0 < small.count("data:image/jpeg") < whole.count("data:image/jpeg")
    assert sum(map(len, re.findall(r"base64,([^\"]*)", small))) <= 9000 * 4 / 3 + 100
    assert "left out to keep the file small" in small


def test_a_piece_is_that_part_of_the_whole(measured):
    """Outlines stand where they do in the whole image, solid, dashed and dotted."""
    one = measured([[(A, 0), (B, 0), (C, 0)]], [[((20, 2, 32, 9), 0, 0.9), ((40, 30, 50, 46), 0, 0.8)]])
    failures, image = Gallery(one).opened(1)
    whole = marked(failures, image, (SIZE[0] * 6, SIZE[1] * 6), named=False)
    for x1, y1, x2, y2 in ((15, 1, 40, 20), (30, 16, 64, 48)):
        piece = marked(failures, image, ((y2 - y1) * 6, (x2 - x1) * 6), named=False, window=(x1, y1, x2, y2))
        part = np.asarray(whole.crop((x1 * 6, y1 * 6, x2 * 6, y2 * 6)))
        assert len(np.unique(part.reshape(-1, 3), axis=0)) > 3
        assert np.array_equal(np.asarray(piece), part)


# ---------------------------------------------------------------- runs and the command line


@pytest.fixture(scope="module")
def run(shapes, tiny_config, tmp_path_factory):
    """A run that `masklab train` made, and whether anything was predicted for its report."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_config.model_dump(mode="json", exclude={"data", "output"})))
    assert main(["train", str(recipe), "--data", str(shapes), "--output", str(folder / "run")]) == 0
    return folder / "run"


def test_train_writes_a_report_from_what_it_found(run, shapes, monkeypatch, tmp_path):
    """No image is predicted again, and the figures are those of an evaluation that predicts them."""
    text = (run / "report.html").read_text()
    truth = evaluate_in_full(run, shapes, options=FLOAT32)
    metrics = truth.metrics
    assert f">{metrics['mask']['AP']:.3f}<" in text
    assert {"losses-", "validation-", "rate-"} <= set(re.findall(r'id="(\w+-)', text))
    monkeypatch.setattr(Predictor, "predict", lambda *_, **__: pytest.fail("predicted again"))
    again = report(run, tmp_path / "r.html", options=FLOAT32)
    assert len(truth.overlaps.scores)
    assert again.overlaps.scores.tolist() == truth.overlaps.scores.tolist()
    assert again.overlaps.pair_ious.tolist() == truth.overlaps.pair_ious.tolist()
    for part in ("mask", "box", "per_class", "matching"):
        assert again.metrics[part] == metrics[part]


def train_and_count(words, folder):
    """The command line, which leaves a file for each report that it writes."""

    def counted(*arguments, **options):
        (folder / f"by {os.getpid()}").touch()
        return report(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("masklab.report.report.report", counted)
        return main(words)


@needs_fork
def test_one_of_several_processes_writes_the_report(shapes, tiny_config, tmp_path):
    recipe = recipe_file(tiny_config.model_copy(update={"data": None, "output": None}), tmp_path / "tiny.yaml")
    words = ["train", recipe, "--data", str(shapes), "--output", str(tmp_path / "run"), "--train.devices", "2"]
    both = [in_another_process(train_and_count, words, tmp_path, **each) for each in torchrun(2)]
    for process in both:
        process.join(100)
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("by *"))) == 1
    text = (tmp_path / "run" / "report.html").read_text()
    assert {"losses-", "validation-", "rate-"} <= set(re.findall(r'id="(\w+-)', text))
    assert "seconds per image" not in text, "nothing was predicted for it"


def test_kept_results_of_other_images_weights_or_options_are_not_used(run, shapes, monkeypatch, tmp_path):
    asked = []
    predict = Predictor.predict
    monkeypatch.setattr(Predictor, "predict", lambda self, *a, **k: asked.append(a) or predict(self, *a, **k))
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    report(folder, tmp_path / "r.html", options=FLOAT32)
    assert not asked
    report(folder, tmp_path / "r.html", shapes, "train", FLOAT32)
    assert sum(not isinstance(image, list) for image, *_ in asked) == 8, "another split"
    asked.clear()
    report(folder, tmp_path / "r.html", options=PredictionOptions(flips="horizontal", precision="float32"))
    assert "horizontal" in (tmp_path / "r.html").read_text()
    assert asked, "other options"
    kept = folder / "best_results.json"
    values = json.loads(kept.read_text())
    for changed in ({"step": -1}, {"precision": "bf16x"}, {"images": values["images"][1:]}, {"images": 3}):
        asked.clear()
        kept.write_text(json.dumps(values | changed))
        report(folder, tmp_path / "r.html", options=FLOAT32)
        assert asked, changed
    kept.write_text(json.dumps(values))
    other = tmp_path / "shapes"
    shutil.copytree(shapes, other)
    image = open_split(other, "val").images[0].path
    image.write_bytes(image.read_bytes() + b" ")
    asked.clear()
    report(folder, tmp_path / "r.html", other, options=FLOAT32)
    assert asked, "another image"


def test_a_run_without_its_data_and_weights_alone(run, tmp_path, model_of):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"data": "gone"}))
    assert report(folder, tmp_path / "r.html") is None
    page = Page((tmp_path / "r.html").read_text())
    assert "cannot be used" in page.text
    assert "all losses" in page.text
    fingerprints = json.loads((folder / "run.json").read_text())["data"]["val"]
    assert all(fingerprints[key][:16] in page.text for key in ("annotations_sha256", "images_sha256"))
    (folder / "metrics.csv").unlink()
    report(folder, tmp_path / "r.html")
    assert "no rows in metrics.csv" in (tmp_path / "r.html").read_text()
    (folder / "run.json").write_text("{")
    (folder / "metrics.csv").write_text("step,loss\nx,1\n")
    report(folder, tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text().count("is damaged") == 2
    save_model(model_of(), tmp_path / "alone.safetensors", {})
    assert report(tmp_path / "alone.safetensors", tmp_path / "r.html") is None
    text = (tmp_path / "r.html").read_text()
    assert "give --data DIR" in text
    assert "without the folder of its run" in text


def test_the_command_line(run, shapes, tmp_path, capsys):
    words = ["evaluate", str(run), "--data", str(shapes), "--output", str(tmp_path / "m.json"), "--report"]
    assert main([*words, str(tmp_path / "one.html")]) == 0
    assert main(["report", str(run), "--output", str(tmp_path / "two.html"), "--precision", "float32"]) == 0
    value = json.loads((tmp_path / "m.json").read_text())["mask"]["AP"]
    for name in ("one", "two"):
        assert f">{value:.3f}<" in (tmp_path / f"{name}.html").read_text()
    assert main(["compare", str(run), str(run / "last.safetensors"), "--output", str(tmp_path / "c.html")]) == 0
    assert "of 4 images the second model does" in capsys.readouterr().out
    assert Page((tmp_path / "c.html").read_text()).tags.count("table") >= 1
    capsys.readouterr()
    for words in (["evaluate", str(run), "--data", str(shapes), "--report"], ["report", str(run), "--output"]):
        assert main([*words, str(tmp_path / "true")]) == 2
        assert "true.html" in capsys.readouterr().err
    assert main(["compare", str(run), str(run), "--output", str(tmp_path / "c.json")]) == 2
    assert not (tmp_path / "true").exists()
    assert main(["report", str(run), "--data", str(tmp_path / "none"), "--output", str(tmp_path / "x.html")]) == 2
    assert not (tmp_path / "x.html").exists()


# ---------------------------------------------------------------- comparison


def test_comparison_by_hand(measured):
    """The second finds one object more in the first image and one less in the second; seeds repeat intervals."""
    objects = [[(A, 0), (B, 0)], [(A, 0)], [(C, 0)], [(C, 0)]]
    first = measured(objects, [[(A, 0, 0.9)], [(A, 0, 0.9)], [(C, 0, 0.9)], []])
    second = measured(objects, [[(A, 0, 0.9), (B, 0, 0.8)], [], [(C, 0, 0.9)], [(C, 0, 0.6)]])
    one = comparison(("a", "b"), first, second, seed=3)
    assert one.changes.tolist() == [0.5, -1, 0, 1]
    by_name = {each.name: each for each in one.differences}
    mean = by_name["TP / (TP + FP + FN) at IoU 0.5, mean over images"]
    assert mean.change == pytest.approx(0.125)
    assert mean.low < 0 < mean.high
    f1 = by_name["F1 at IoU 0.5, all objects together"]
    assert (f1.first, f1.second) == (2 * 3 / (2 * 3 + 2), 2 * 4 / (2 * 4 + 1))
    assert by_name["mask AP50"].change == second.metrics["mask"]["AP50"] - first.metrics["mask"]["AP50"]
    assert comparison(("a", "b"), first, second, seed=3).differences == one.differences
    assert comparison(("a", "b"), first, second, seed=4).differences != one.differences
    assert sentences(one)[-1] == "of 4 images the second model does 2 better and 1 worse, 1 alike"
    same = comparison(("a", "a"), first, first)
    assert all(each.change == 0 and each.low in (0, None) and each.high in (0, None) for each in same.differences)


def test_intervals_cover_the_true_difference(measured):
    """Of 40 images with a gain in 30, the interval is that of a share of 0.75 of 40: about 0.61 to 0.88."""
    objects = [[(A, 0)]] * 40
    first = measured(objects, [[]] * 40)
    second = measured(objects, [[(A, 0, 0.9)]] * 30 + [[]] * 10)
    mean = comparison(("a", "b"), first, second).differences[3]
    assert mean.change == pytest.approx(0.75)
    assert (mean.low, mean.high) == pytest.approx((0.61, 0.88), abs=0.03)


def test_other_images_are_not_compared(measured):
    one = measured([[(A, 0)]], [[]])
    other = measured([[(A, 0)], [(B, 0)]], [[], []], folder="other")
    fails(["same images"], comparison, ("a", "b"), one, other)


# ---------------------------------------------------------------- a browser


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Opens a page with a script at its end; returns what its elements are then, and what its console said."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed, so the page is not opened in a browser")

    def open_page(text, script=""):
        folder = tmp_path_factory.mktemp("browser")
        (folder / "page.html").write_text(text.replace("</body>", f"<script>{script}</script></body>"))
        done = subprocess.run(
            [
                *(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
                *("--disable-dev-shm-usage", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"),
                *("--virtual-time-budget=2000", "--dump-dom", (folder / "page.html").as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=240,
        )
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return open_page


def test_the_slider_and_the_images_work_in_a_browser(browse, measured, tmp_path):
    one = measured(*random_scenes(11), names=("a", HOSTILE, "c"), threshold=0.5)
    text = write_report(tmp_path / "r.html", "m", one).read_text()
    script = """
        const input = document.getElementById("threshold");
        input.value = "0.8";
        input.dispatchEvent(new Event("input"));
        document.querySelector("button.enlarge").click();
    """
    page, console = browse(text, script)
    assert console == []
    truth = image_counts(one.overlaps, one.overlaps.scores >= 0.8, (0.5,))[0].sum(axis=0).tolist()
    assert [cells(page, f"all-{name}") for name in ("found", "wrong", "missed")] == list(map(str, truth))
    assert cells(page, "all-recall") == f"{truth[0] / (truth[0] + truth[2]):.3f}"
    assert re.search(r'<output id="threshold-now"[^>]*>0.800<', page)
    assert re.search(r'<dialog id="large" open=""><img alt="[^"]+" src="data:image/jpeg', page)
    untouched, console = browse(text)
    assert console == []
    assert cells(untouched, "all-found") == cells(text, "all-found")


def test_the_browser_test_sees_errors(browse, measured, tmp_path):
    text = write_report(tmp_path / "r.html", "m", measured([[(A, 0)]], [[]])).read_text()
    assert "missing is not defined" in browse(text, "missing.name()")[1][0]
    for load in ("new Image().src = 'https://example.org/x.png'", "fetch('https://example.org/')"):
        assert "Content Security Policy" in browse(text, load)[1][0], "the page may load nothing"
