import importlib
import json
import logging
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contracts import assert_instances, predictor
from PIL import Image
from pycocotools import mask as oracle

import masklab
from masklab.cli.app import main, parse
from masklab.cli.demo import demo, try_nuclei
from masklab.cli.options import given_fields
from masklab.cli.registry import VERBS
from masklab.config import Config, load_recipe
from masklab.config.nested import flatten
from masklab.datasets.synthetic.nuclei import draw_nuclei
from masklab.inference.predictor import Predictor
from masklab.model.build import build_model
from masklab.results.instances import Instances
from masklab.training.train import train
from masklab.utils.log import terminal_messages
from masklab.weights.checkpoint import load_model, save_model


@pytest.fixture(scope="module")
def run(shapes, tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    train(tiny_config, shapes, folder)
    return folder


def fails(capsys, *words, code=2):
    """The command ends with the code and one sentence on stderr, which is returned."""
    assert main(list(map(str, words))) == code
    err = capsys.readouterr().err.strip()
    assert err.startswith("masklab: ")
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1
    return err


def test_evaluate_writes_what_it_promises(run, shapes, tmp_path, capsys):
    target = tmp_path / "figures" / "metrics.json"
    assert main(["evaluate", str(run), "--data", str(shapes), "--split", "val", "--output", str(target)]) == 0
    metrics = json.loads(target.read_text())
    for kind in ("mask", "box"):
        assert set(metrics[kind]) == {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP_max100"}
        assert all(value is None or 0 <= value <= 1 for value in metrics[kind].values())
    assert set(metrics["matching"]) == {"kaggle", "stardist", "cellpose", "score_threshold"}
    assert metrics["matching"]["score_threshold"] == load_model(run).score_threshold
    assert set(metrics["per_class"]) == {"disc", "box", "triangle", "ring"}
    measured = metrics["measured"]
    assert measured["images"] == 4
    assert measured["max_detections"] == 20
    assert measured["score_threshold_tuned"] is True
    assert "torch" in measured["versions"]
    assert "AP50" in capsys.readouterr().out


def test_predict_writes_coco_results_and_overlays(run, shapes, tmp_path):
    assert main(["predict", str(run), str(shapes / "val"), "--output", str(tmp_path), "--score", "0.01"]) == 0
    entries = json.loads((tmp_path / "predictions.json").read_text())
    assert entries
    categories = {c["id"] for c in json.loads((shapes / "val.json").read_text())["categories"]}
    assert {entry["category_id"] for entry in entries} <= categories
    for entry in entries[:20]:
        height, width = entry["segmentation"]["size"]
        assert oracle.decode(entry["segmentation"]).shape == (height, width) == (96, 112)
    overlays = sorted(tmp_path.glob("*.png"))
    assert len(overlays) == 4
    assert not list(tmp_path.glob(".*")), "nothing half written stays behind"


SQUARES = [(4, 4, 14, 14), (24, 4, 34, 14), (44, 4, 54, 14)]  # in each image of 40 x 60 pixels
VIEWS = ["--flips", "both", "--scales", "0.5", "1.25"]
SCALES = [0.5, 1.25]


def squares(shown, scores, classes):
    """The first of `SQUARES`, every pixel of them, as they are found."""
    boxes, masks = np.array(SQUARES[:shown], np.float32), np.ones((shown, 3, 3), np.float32)
    labels = np.zeros(shown, np.int64)
    return Instances((40, 60), boxes, np.array(scores, np.float32), labels, masks, classes.names, classes.ids)


@pytest.fixture
def sure_from_03(tiny_config, classes, tmp_path, monkeypatch):
    """Weights with the stored threshold 0.3 that find the three squares with scores 0.9, 0.4 and 0.2; the data set of
    a grey and a coloured image; and the views that were asked for."""
    model, data, views = build_model(tiny_config, classes), tmp_path / "data", []
    model.score_threshold = 0.3
    save_model(model, tmp_path / "stored.safetensors")
    (data / "val").mkdir(parents=True)
    for name, colour in (("1.png", (100, 100, 100)), ("2.png", (100, 60, 20))):
        Image.new("RGB", (60, 40), colour).save(data / "val" / name)
    annotations = [
        {"image_id": image, "category_id": 2, "bbox": [x1, y1, 10, 10], "area": 100, "iscrowd": 0}
        | {"segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]], "id": 10 * image + n}
        for image in (1, 2)
        for n, (x1, y1, x2, y2) in enumerate(SQUARES)
    ]
    images = [{"id": n, "file_name": f"{n}.png", "height": 40, "width": 60} for n in (1, 2)]
    categories = [{"id": i, "name": name} for i, name in zip(classes.ids, classes.names, strict=True)]
    values = {"images": images, "annotations": annotations, "categories": categories}
    (data / "val.json").write_text(json.dumps(values))

    def predict(self, images, batch_size=8, check=None):
        if isinstance(images, list):
            return [predict(self, image) for image in images]
        views.append(("predict", self.options.flips, list(self.options.scales)))
        return squares(3, [0.9, 0.4, 0.2], self.classes)

    def segment(self, image, boxes, labels):
        views.append(("segment", self.options.flips, list(self.options.scales)))
        return squares(len(boxes), [1.0] * len(boxes), self.classes)

    monkeypatch.setattr(Predictor, "predict", predict)
    monkeypatch.setattr(Predictor, "segment", segment)
    return tmp_path / "stored.safetensors", data, views


def tinted(path):
    """Which of the squares an overlay shows."""
    drawn = np.asarray(Image.open(path).convert("RGB"))
    factor = len(drawn) // 40
    return [bool((drawn[9 * factor, (x1 + 5) * factor] != drawn[30 * factor, 30 * factor]).any()) for x1, *_ in SQUARES]


def test_predict_draws_and_counts_from_the_stored_threshold(sure_from_03, tmp_path, capsys):
    weights, data, _ = sure_from_03
    for words, said, shown in (
        ([], "4 objects of score 0.30 or more (6 detections in all)", [True, True, False]),
        (["--score", "0.6"], "2 objects of score 0.60 or more", [True, False, False]),
        (["--score", "0"], "6 objects of score 0.00 or more", [True, True, True]),
    ):
        out = tmp_path / "out"
        assert main(["predict", str(weights), str(data / "val"), "--output", str(out), *words]) == 0
        assert said in capsys.readouterr().out
        assert [tinted(out / name) for name in ("1.png", "2.png")] == [shown, shown]
        assert len(json.loads((out / "predictions.json").read_text())) == 6, "every detection is written"


def test_evaluate_matches_from_the_stored_threshold(sure_from_03, tmp_path, capsys):
    """Two of three squares count, in both images, in the parts by kind and in what limits the model."""
    weights, data, _ = sure_from_03
    target = tmp_path / "metrics.json"
    words = ["evaluate", str(weights), "--data", str(data), "--error_analysis", "--output", str(target)]
    assert main(words) == 0
    assert "0.30" in capsys.readouterr().out
    metrics = json.loads(target.read_text())
    parts = metrics["by_colour"]
    assert (parts["grey"]["images"], parts["colour"]["images"]) == (1, 1)
    for matching in (metrics["matching"], parts["grey"]["matching"], parts["colour"]["matching"]):
        assert matching["score_threshold"] == 0.3
        for way in ("kaggle", "stardist", "cellpose"):
            assert list(matching[way].values()) == pytest.approx([2 / 3] * 11)
    assert metrics["error_analysis"]["errors"]["right"] == {"detections": 4, "objects": 4}
    assert metrics["error_analysis"]["errors"]["missed"]["objects"] == 2
    recall = metrics["error_analysis"]["recall"]["all"]
    assert recall["detections"]["0.75"] == 1
    assert recall["found"]["0.75"] == pytest.approx(2 / 3)
    for kind in ("annotated_boxes", "annotated_masks"):
        assert metrics["error_analysis"][kind]["AP"] == pytest.approx(1), "all three, whatever their score"


def test_the_views_asked_for_reach_the_model(sure_from_03, tmp_path):
    weights, data, views = sure_from_03
    out = ["--output", str(tmp_path / "out")]
    assert main(["predict", str(weights), str(data / "val"), *out, *VIEWS]) == 0
    assert views == [("predict", "both", SCALES)] * 2
    for words, called in (
        ([], ["predict"]),
        (["--ground_truth_boxes"], ["segment"]),
        (["--error_analysis"], ["predict", "segment"]),
    ):
        views.clear()
        target = tmp_path / "metrics.json"
        assert main(["evaluate", str(weights), "--data", str(data), "--output", str(target), *words, *VIEWS]) == 0
        assert views == [(name, "both", SCALES) for name in called for _ in range(2)], words
        measured = json.loads(target.read_text())["measured"]
        assert (measured["flips"], measured["scales"]) == ("both", SCALES)
    views.clear()
    assert main(["evaluate", str(weights), "--data", str(data)]) == 0
    assert views == [("predict", "none", [1.0])] * 2


def test_show_draws_from_the_stored_threshold(sure_from_03, tmp_path, monkeypatch, capsys):
    weights, data, _ = sure_from_03
    monkeypatch.setattr("masklab.plots.image._FIGURES", {"count": lambda look: f"{len(look.found)} at {look.score}"})
    words = ["show", str(weights), str(data / "val" / "1.png"), "--output", str(tmp_path / "a")]
    assert main(words) == 0
    assert "2 at 0.3\n" in capsys.readouterr().out
    assert main([*words, "--score", "0"]) == 0
    assert "3 at 0.0\n" in capsys.readouterr().out
    assert main(["show", str(weights), "--data", str(data), "--output", str(tmp_path / "b")]) == 0
    assert "2 images at score 0.30: 4 objects found (0 badly localised), 2 missed" in capsys.readouterr().out


def test_a_stored_threshold_of_0_is_one(tiny_config, classes, tmp_path):
    for stored, used in ((0.0, 0.0), (0.3, 0.3), (1.0, 1.0), (None, 0.5)):
        model = build_model(tiny_config, classes)
        model.score_threshold = stored
        save_model(model, tmp_path / "model.safetensors")
        assert masklab.load(tmp_path / "model.safetensors").threshold == used


def test_the_nuclei_of_the_demo_count_from_the_models_own_threshold(tiny_config, classes, tmp_path, monkeypatch):
    """Every nucleus found as it is drawn, 20 of the 32 with a score above 0.3, 8 of these above 0.5; but one twice, so
    that another is lost."""
    _, labels = draw_nuclei()
    scores = np.repeat(np.array([0.9, 0.4, 0.2], np.float32), (8, 12, 12))
    boxes = np.zeros((32, 4), np.float32)
    for n in range(32):
        rows, columns = np.nonzero(labels == n + 1)
        boxes[n] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    boxes[7] = boxes[0]
    masks, label = np.ones((32, 3, 3), np.float32), np.zeros(32, np.int64)
    found = Instances(labels.shape, boxes, scores, label, masks, classes.names, classes.ids)
    model = build_model(tiny_config, classes)
    model.score_threshold = 0.3
    sure = Predictor(model)
    monkeypatch.setattr(sure, "predict", lambda given: found)
    monkeypatch.setattr("masklab.cli.demo.load", lambda name: sure)
    assert try_nuclei(tmp_path / "nuclei.png") == (19, 32)
    drawn = np.asarray(Image.open(tmp_path / "nuclei.png").convert("RGB"))
    factor = len(drawn) // len(labels)
    centres = factor * (boxes[:, :2] + boxes[:, 2:]).astype(int) // 2
    coloured = [np.ptp(drawn[y, x].astype(int)) > 20 for x, y in centres.tolist()]
    assert sum(coloured) == 20


def test_one_bad_image_costs_only_itself(run, shapes, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(shapes / "val", images)
    (images / "broken.png").write_bytes((images / sorted(images.iterdir())[0].name).read_bytes()[:200])
    assert main(["predict", str(run), str(images), "--output", str(tmp_path / "out")]) == 2
    assert "broken.png" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    assert (tmp_path / "out" / "predictions.json").is_file()


def test_python_door(run, shapes):
    loaded = masklab.load(run)
    assert isinstance(loaded.model, torch.nn.Module)
    image = next((shapes / "val").iterdir())
    assert_instances(loaded.predict(image), loaded)
    began = time.perf_counter()
    measured = masklab.evaluate(loaded, shapes)["measured"]
    assert measured["model"] == "in memory"
    assert measured["images"] == 4
    assert 0 < measured["seconds_per_image"] <= (time.perf_counter() - began) / 4 + 0.001


def test_train_takes_fields_from_the_command_line(shapes, tmp_path):
    words = ["train", "shapes", "--data", str(shapes), "--output", str(tmp_path / "run")]
    words += ["--train.steps", "1", "--train.batch_size", "2", "--train.workers", "0", "--model.mask.directions", "4"]
    words += ["--model.backbone.width", "0.25", "--train.validate_images", "1"]
    assert main(words) == 0
    model = load_model(tmp_path / "run")
    assert model.config.model.mask.directions == 4
    assert model.config.train.batch_size == 2
    assert model.config.model.rpn == load_recipe("shapes").model.rpn, "the rest is the recipe's"


def test_weights_come_back_as_they_went(run, tmp_path):
    model = load_model(run)
    save_model(model, tmp_path / "copy.safetensors")
    again = load_model(tmp_path / "copy.safetensors")
    image = np.random.default_rng(0).integers(0, 255, (3, 60, 80), dtype=np.uint8)
    np.testing.assert_array_equal(predictor(model).predict(image).masks, predictor(again).predict(image).masks)
    assert again.classes == model.classes
    assert again.config.image == model.config.image
    assert b"pytest" not in (tmp_path / "copy.safetensors").read_bytes()[:20000], "no path of the training machine"


def test_doctor_finds_nothing_wrong(capsys):
    assert main(["doctor"]) == 0
    assert "works" in capsys.readouterr().out


def test_doctor_names_builds_that_do_not_fit(monkeypatch, capsys):
    def broken():
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(importlib.import_module("masklab.cli.doctor").CHECKS, "box suppression (torchvision)", broken)
    assert "different indexes" in fails(capsys, "doctor")


@pytest.mark.parametrize(
    ("environment", "url", "command"),
    [
        (None, None, "`pip install X`"),
        ("home = /usr/bin\n", None, "`pip install X`"),
        ("home = /usr/bin\nuv = 0.5.1\n", None, "`uv pip install X`"),
        ("home = /usr/bin\nuv = 0.5.1\n", '{"url": "file:///a.whl", "archive_info": {}}', "`uv pip install X`"),
        ("uv = 0.5.1\n", '{"url": "file:///a", "dir_info": {"editable": true}}', "`uv sync`"),
        ("home = /usr/bin\n", '{"url": "file:///a", "dir_info": {"editable": true}}', "`pip install X`"),
    ],
)
def test_doctor_names_the_command_of_this_installation(environment, url, command, monkeypatch, tmp_path):
    doctor = importlib.import_module("masklab.cli.doctor")
    if environment is not None:
        (tmp_path / "pyvenv.cfg").write_text(environment)
    monkeypatch.setattr(doctor.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(doctor, "distribution", lambda name: SimpleNamespace(read_text=lambda file: url))
    assert doctor._install("X", "uv sync") == command


def test_doctor_names_the_extra_that_is_missing(monkeypatch, capsys):
    doctor = importlib.import_module("masklab.cli.doctor")
    monkeypatch.setattr(doctor, "_installed", lambda package: package != "matplotlib")
    monkeypatch.setattr(doctor, "_install", lambda words, in_clone: f"install {words}")
    assert main(["doctor"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert 'extra report no matplotlib: install "masklab[report]"' in said
    assert "extra serve installed" in said


def test_doctor_says_that_torch_is_missing():
    script = (
        "import sys, importlib.metadata as m; sys.modules['torch'] = None; found = m.version\n"
        "def version(name):\n    if name == 'torch': raise m.PackageNotFoundError(name)\n    return found(name)\n"
        "m.version = version\nfrom masklab.cli.app import main\nsys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "masklab: torch is not installed: run `uv sync`.\n"


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        (["train", "--data", "x", "nuclei"], "nuclei"),
        (["train", "nuclei", "--data", "x"], "nuclei"),
        (["train", "--resume", "--train.steps=3", "nuclei"], "nuclei"),
        (["train", "--image.min_side", "700", "nuclei", "--data=x"], "nuclei"),
        (["pretrain", "--train.steps=3", "nuclei"], "nuclei"),
        (["ablate", "--data", "x", "table3"], "table3-2"),
        (["ablate", "--recipe=nuclei", "--rows", "table3-2", "--train.steps", "3", "--", "table3"], "nuclei"),
        (["ablate", "table3", "--data", "x", "--recipe", "shapes", "--recipe", "nuclei"], "nuclei"),
    ],
)
def test_the_defaults_are_the_recipes_wherever_it_stands(words, recipe):
    verb, parsed = parse(words)
    given = {"train.steps": 3, "image.min_side": 700, "data": Path("x")}
    start = "paper-base" if recipe == "table3-2" else recipe
    names = [name for name in given if any(name in word for word in words)]
    changes = {}
    for name in names:
        *sections, last = name.split(".")
        inner = {last: given[name]}
        for section in reversed(sections):
            inner = {section: inner}
        changes |= inner
    assert given_fields(parsed, "test") == load_recipe(start, changes)
    assert verb.config(parsed) == load_recipe(start)


def test_help_shows_the_values_of_the_recipe(capsys):
    texts = []
    for words in (["train", "nuclei", "--help"], ["train", "--help", "nuclei"], ["train", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        texts.append(" ".join(capsys.readouterr().out.split()))
    for text in texts:
        assert all(f"--{name} " in text for name in flatten(load_recipe("nuclei").model_dump()))
    assert texts[0] == texts[1]
    for text, config in zip(texts[1:], (load_recipe("nuclei"), Config()), strict=True):
        steps, bins = config.train.steps, config.model.box.max_detections
        assert re.search(rf"--train\.steps STEPS .{{1,200}}default: {steps}\)", text)
        assert re.search(rf"--model\.box\.max_detections MAX_DETECTIONS .{{1,300}}default: {bins}\)", text)


@pytest.mark.parametrize(
    "words",
    [["train", "nuclei", "--resume", "true"], ["evaluate", "nuclei", "--data", "x", "--error_analysis", "true"]],
)
def test_a_flag_with_a_value_is_explained(words, capsys):
    assert "switched on by their name alone: leave the value out" in fails(capsys, *words)


def test_the_module_runs_as_the_command():
    """`torchrun -m masklab.cli` starts it so."""
    for words, code in ((["--version"], 0), (["frobnicate"], 2)):
        command = [sys.executable, "-m", "masklab.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert ("masklab " in done.stdout) == (code == 0)


def test_flags_switch_on():
    for word, (verb, *rest) in {
        "resume": ["train", "nuclei"],
        "ground_truth_boxes": ["evaluate", "nuclei", "--data", "x"],
        "error_analysis": ["evaluate", "nuclei", "--data", "x"],
    }.items():
        assert parse([verb, *rest])[1][word] is False
        assert parse([verb, f"--{word}", *rest])[1][word] is True


def test_every_verb_is_in_the_overview_and_explains_itself(capsys):
    overviews = {}
    for group in ("", "data"):
        with pytest.raises(SystemExit):
            main([*group.split(), "--help"])
        overviews[group] = " ".join(capsys.readouterr().out.split())
    for name, verb in VERBS.items():
        group, _, last = name.rpartition(" ")
        assert f" {last} {verb.help}" in overviews[group]
        assert verb.run.__doc__
    assert "data make or inspect data sets" in overviews[""]


def test_messages_go_to_the_terminal_only_while_a_verb_runs(capsys):
    messages = logging.getLogger("masklab.test")
    messages.warning("before")
    with terminal_messages():
        messages.info("told %d", 1)
        messages.debug("detail")
        messages.warning("beware")
    messages.warning("after")
    assert capsys.readouterr() == ("told 1\n", "masklab: beware\n")


def test_the_cap_can_be_raised(run, shapes, tmp_path, capsys):
    """A cap of 1 is reached in every image, which is said; in one of 1000 the number of proposals is the limit."""
    folder, counts = shapes / "val", []
    for cap in ("1", "1000"):
        words = [str(run), str(folder), "--output", str(tmp_path / cap), "--max_detections", cap, "--score", "0.01"]
        assert main(["predict", *words]) == 0
        counts.append(len(json.loads((tmp_path / cap / "predictions.json").read_text())))
        said = "reached the maximum of 1 detection" in capsys.readouterr().out
        assert said == (cap == "1")
    assert counts[0] == 4
    assert counts[1] > 4 * 20, "more than the model's own cap"
    target = tmp_path / "figures.json"
    words = [str(run), "--data", str(shapes), "--output", str(target), "--max_detections", "1"]
    assert main(["evaluate", *words]) == 0
    assert "4 of 4 images reached the maximum of 1 detection" in capsys.readouterr().out
    assert json.loads(target.read_text())["measured"]["max_detections"] == 1
    assert "max_detections" in fails(capsys, "evaluate", str(run), "--data", str(shapes), "--max_detections", "0")


def test_the_number_format_can_be_chosen(run, shapes, tmp_path, capsys):
    """Both formats find about the same, not the same; the figures say which it was."""
    scores = []
    for precision in ("bf16", "float32"):
        chosen = ["--precision", precision]
        assert main(["predict", str(run), str(shapes / "val"), "--output", str(tmp_path / precision), *chosen]) == 0
        found = json.loads((tmp_path / precision / "predictions.json").read_text())
        scores.append([entry["score"] for entry in found])
        target = tmp_path / f"{precision}.json"
        assert main(["evaluate", str(run), "--data", str(shapes), "--output", str(target), *chosen]) == 0
        assert json.loads(target.read_text())["measured"]["precision"] == precision
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
    assert scores[0] != scores[1]
    words = ("evaluate", str(run), "--data", str(shapes), "--precision")
    assert "float32" in fails(capsys, *words, "half")
    if not torch.cuda.is_available():
        assert "precision is fp16 but there is no CUDA GPU" in fails(capsys, *words, "fp16")


@pytest.mark.parametrize(("first", "second"), [("1.png", "1.tif"), ("a.png", "a.jpg")])
def test_images_that_results_could_not_tell_apart_are_refused(run, shapes, tmp_path, capsys, first, second):
    for name in (first, second):
        Image.open(sorted((shapes / "val").iterdir())[0]).save(tmp_path / name)
    err = fails(capsys, "predict", run, tmp_path, "--output", tmp_path / "out")
    assert first in err
    assert second in err


def test_recipes_and_info(capsys):
    assert main(["recipes"]) == 0
    assert "nuclei" in capsys.readouterr().out
    assert main(["info", "shapes", "--classes", "4", "--height", "96", "--width", "96"]) == 0
    out = capsys.readouterr().out
    assert "refinement" in out
    assert "shapes: one image of 96 x 96, 4 classes" in out


def test_data_shapes(tmp_path):
    assert main(["data", "shapes", str(tmp_path / "set"), "--train", "2", "--val", "1"]) == 0
    assert len(json.loads((tmp_path / "set" / "train.json").read_text())["images"]) == 2


@pytest.mark.parametrize(
    "verb",
    [
        [],
        ["demo"],
        ["train"],
        ["ablate"],
        ["evaluate"],
        ["predict"],
        ["show"],
        ["submit"],
        ["pretrain"],
        ["recipes"],
        ["data"],
        ["data", "shapes"],
        ["data", "convert"],
        ["data", "check"],
        ["data", "show"],
        ["data", "download"],
        ["share"],
        ["info"],
        ["doctor"],
    ],
)
def test_help(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*verb, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert len(said) > 100
    assert not re.search(r"type: |<class|Annotated\[", said), "types in words"


def test_the_readmes_commands_are_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/four").mkdir(parents=True)
    Path("runs/four/config.yaml").write_text("base: nuclei\n")  # of the run that the README stops and resumes
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    commands = re.findall(r"^.*?uv run masklab ([^#\n]+)", readme, re.MULTILINE)
    assert len(commands) > 6
    for command in commands:
        words = command.split()
        if "--help" not in words:
            verb, _ = parse(words)
            assert verb in VERBS.values()


def test_bad_words(run, shapes, tmp_path, capsys):
    assert "no recipe nucleus: use one of" in fails(
        capsys, "train", "nucleus", "--data", shapes, "--output", tmp_path / "x"
    )
    assert "train.stepz" in fails(capsys, "train", "shapes", "--train.stepz", "3")
    assert "train.steps" in fails(capsys, "train", "shapes", "--train.steps", "many")
    assert "--data DIR" in fails(capsys, "train", "shapes", "--output", tmp_path / "x")
    assert "no such data set folder" in fails(
        capsys, "train", "shapes", "--data", "/no/such", "--output", tmp_path / "x"
    )
    assert "no such run folder" in fails(capsys, "predict", "/no/such", shapes / "val")
    assert "no such image or folder" in fails(capsys, "predict", run, tmp_path / "none.png")
    assert "holds no split test" in fails(capsys, "evaluate", run, "--data", shapes, "--split", "test")
    fails(capsys, "frobnicate")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model.mask.dilations", "[1,2,4]"], ["model.mask.dilations", "resnet18"]),
        (["--model.box.dilations", "[0,1]"], ["model.box.dilations"]),
        (["--model.rpn.anchor_ratios", "[0]"], ["anchor_ratios"]),
        (["--model.rpn.anchor_sizes", "[-8]"], ["anchor_sizes"]),
        (["--model.backbone.pretrained", "true"], ["width", "pretrained"]),
        (["--model.backbone.pretrained", "true", "--model.backbone.width", "1"], ["norm", "pretrained"]),
        (["--model.backbone.weights", "w.safetensors"], ["weights", "pretrained"]),
        (["--model.backbone.segmentation_weights", "w.safetensors"], ["segmentation_weights", "w.safetensors"]),
        (["--model.backbone.output_stride", "4"], ["output_stride"]),
        (["--model.mask.directions", "1"], ["directions"]),
        (["--image.std", "[1,0,1]"], ["std"]),
        (["--train.seed", "99999999999"], ["seed"]),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_anything_is_read(words, named, tmp_path, capsys):
    said = fails(capsys, "train", "shapes", "--data", "/no/such", "--output", tmp_path / "x", *words)
    assert "no such data set folder" not in said
    assert all(name in said for name in named), said
    assert not (tmp_path / "x").exists()


def test_a_bad_annotation_is_left_out_of_training_tuning_and_validation(shapes, tmp_path, capsys):
    """One without a segmentation in each split: counted, never a reason to stop."""
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    for split in ("train", "val"):
        values = json.loads((data / f"{split}.json").read_text())
        del values["annotations"][0]["segmentation"]
        (data / f"{split}.json").write_text(json.dumps(values))
    run_folder = tmp_path / "run"
    words = ["--train.steps", "1", "--train.batch_size", "1", "--train.workers", "0", "--model.backbone.width", "0.25"]
    assert main(["train", "shapes", "--data", str(data), "--output", str(run_folder), *words]) == 0
    assert "1 malformed segmentation" in capsys.readouterr().out
    assert load_model(run_folder).score_threshold is not None
    assert main(["evaluate", str(run_folder), "--data", str(data)]) == 0
    assert main(["show", str(run_folder), "--data", str(data), "--output", str(tmp_path / "figures")]) == 0


def test_evaluating_images_of_another_size_names_the_image(run, shapes, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    values = json.loads((data / "val.json").read_text())
    values["images"][1]["width"] += 1
    values["annotations"] = [a for a in values["annotations"] if a["image_id"] != 2]
    (data / "val.json").write_text(json.dumps(values))
    assert main(["evaluate", str(run), "--data", str(data)]) == 2
    said = capsys.readouterr()
    assert "00002.png is 112 wide" in said.err
    assert "1 image could not be used" in said.err
    assert "mask" in said.out, "the others are measured"


def test_overlays_are_not_written_over_the_images(run, shapes, tmp_path, capsys):
    shutil.copytree(shapes / "val", tmp_path / "images")
    before = (tmp_path / "images" / "00001.png").read_bytes()
    said = fails(capsys, "predict", run, tmp_path / "images", "--output", tmp_path / "images")
    assert "would be written over it" in said
    assert (tmp_path / "images" / "00001.png").read_bytes() == before


def test_an_output_that_is_a_file_is_named(run, shapes, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot be a folder" in fails(capsys, "predict", run, shapes / "val", "--output", tmp_path / "file")
    assert "cannot be a folder" in fails(
        capsys, "evaluate", run, "--data", shapes, "--output", tmp_path / "file" / "metrics.json"
    )
    assert "cannot be a folder" in fails(capsys, "train", "shapes", "--data", shapes, "--output", tmp_path / "file")


def test_weights_of_another_kind(run, shapes, tmp_path, capsys):
    from safetensors.torch import save_file

    image = next((shapes / "val").iterdir())
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "not masklab's" in fails(capsys, "predict", tmp_path / "other.safetensors", image)
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.pt")
    assert "not a weights file" in fails(capsys, "predict", tmp_path / "pickle.pt", image)
    whole = (run / "best.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cut.safetensors is not a weights file or is damaged" in fails(
        capsys, "predict", tmp_path / "cut.safetensors", image
    )


def test_weights_that_do_not_fit_their_configuration(tiny_config, classes, tmp_path, capsys, shapes):
    model = build_model(tiny_config, classes)
    values = tiny_config.model.model_copy(update={"mask": tiny_config.model.mask.model_copy(update={"directions": 4})})
    model.config = tiny_config.model_copy(update={"model": values})
    save_model(model, tmp_path / "odd.safetensors")
    assert "do not fit its configuration" in fails(capsys, "predict", tmp_path / "odd.safetensors", shapes / "val")


def break_json(folder, change):
    values = json.loads((folder / "train.json").read_text())
    change(values)
    (folder / "train.json").write_text(json.dumps(values))


def test_bad_data_is_named(shapes, tmp_path, capsys):
    def train_on(change):
        folder = tmp_path / "set"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(shapes, folder)
        change(folder)
        words = ["train", "shapes", "--data", folder, "--output", tmp_path / "run", "--train.workers", "1"]
        return fails(capsys, *words)

    first = json.loads((shapes / "train.json").read_text())["images"][0]["file_name"]
    every = [image["file_name"] for image in json.loads((shapes / "train.json").read_text())["images"]]

    def truncate(folder):
        for name in every:
            (folder / "train" / name).write_bytes((folder / "train" / name).read_bytes()[:300])

    assert "is not JSON" in train_on(lambda f: (f / "train.json").write_text("{"))
    assert "not a COCO file" in train_on(lambda f: (f / "train.json").write_text("[]"))
    assert first in train_on(lambda f: (f / "train" / first).unlink())
    assert "is damaged or cut off" in train_on(truncate)
    assert "wide and" in train_on(lambda f: [Image.new("RGB", (20, 10)).save(f / "train" / name) for name in every])


def test_bad_annotations_are_skipped_and_counted(shapes, tiny_config, tmp_path, caplog):
    caplog.set_level("INFO", "masklab")
    folder = tmp_path / "set"
    shutil.copytree(shapes, folder)

    def spoil(values):
        image = values["images"][0]["id"]
        common = {"image_id": image, "category_id": values["categories"][0]["id"], "iscrowd": 0, "area": 0}
        values["annotations"] += [
            {**common, "id": 9001, "bbox": [3, 3, 0, 0], "segmentation": [[3, 3, 3, 3, 3, 3]]},
            {**common, "id": 9002, "bbox": [500, 500, 9, 9], "segmentation": [[500, 500, 509, 500, 509, 509]]},
        ]

    break_json(folder, spoil)
    train(tiny_config, folder, tmp_path / "run")
    assert "skipped 2 annotations" in caplog.text


def test_demo_end_to_end_at_a_smaller_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("masklab.cli.demo.IMAGES", {"train": 6, "val": 2})
    figures = demo(tmp_path / "demo", steps=2)
    assert set(figures) >= {"AP", "AP50"}
    for name in (
        "metrics.json",
        "run/best.safetensors",
        "predictions/predictions.json",
        "shapes/train.json",
        "nuclei.png",
    ):
        assert (tmp_path / "demo" / name).is_file(), name
    assert "done in" in capsys.readouterr().out
