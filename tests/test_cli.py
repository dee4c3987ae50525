import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import assert_instances, predictor
from PIL import Image
from pycocotools import mask as oracle

import masklab
from masklab.cli.app import _parser, main
from masklab.cli.demo import demo
from masklab.config.recipe import load_recipe
from masklab.model.build import build_model
from masklab.training.fit import train
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
    assert masklab.evaluate(loaded, shapes)["measured"]["model"] == "in memory"


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
    ("words", "has"),
    [
        (["train", "--data", "x", "nuclei"], "masklab train RECIPE --data"),
        (["pretrain", "--train.steps=3", "nuclei"], "masklab pretrain RECIPE --train.steps=3"),
        (["ablate", "--data", "x", "table3"], "masklab ablate TABLE --data"),
    ],
)
def test_what_the_defaults_come_from_stands_first(words, has, capsys):
    assert has in fails(capsys, *words)


def test_the_cap_can_be_raised(run, shapes, tmp_path, capsys):
    """A cap of 1 is reached in every image, which is said; in one of 1000 the number of proposals is the limit."""
    folder, counts = shapes / "val", []
    for cap in ("1", "1000"):
        words = [str(run), str(folder), "--output", str(tmp_path / cap), "--max_detections", cap, "--score", "0.01"]
        assert main(["predict", *words]) == 0
        counts.append(len(json.loads((tmp_path / cap / "predictions.json").read_text())))
        said = "reached the maximum of 1 detections" in capsys.readouterr().out
        assert said == (cap == "1")
    assert counts[0] == 4
    assert counts[1] > 4 * 20, "more than the model's own cap"
    target = tmp_path / "figures.json"
    words = [str(run), "--data", str(shapes), "--output", str(target), "--max_detections", "1"]
    assert main(["evaluate", *words]) == 0
    assert "4 of 4 images reached the cap of 1" in capsys.readouterr().out
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


@pytest.mark.parametrize(("first", "second"), [("1.png", "01.png"), ("a.png", "a.jpg")])
def test_images_that_results_could_not_tell_apart_are_refused(run, shapes, tmp_path, capsys, first, second):
    for name in (first, second):
        Image.open(sorted((shapes / "val").iterdir())[0]).save(tmp_path / name)
    err = fails(capsys, "predict", run, tmp_path, "--output", tmp_path / "out")
    assert first in err
    assert second in err


def test_digits_that_are_no_number_are_a_name(run, shapes, tmp_path):
    shutil.copy(sorted((shapes / "val").iterdir())[0], tmp_path / "².png")
    assert main(["predict", str(run), str(tmp_path / "².png"), "--output", str(tmp_path / "out"), "--score", "0"]) == 0
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())[0]["image_id"] == "².png"


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
    assert len(capsys.readouterr().out) > 100


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
            parser, verbs = _parser(words)
            assert parser.parse_args(words).subcommand.split()[0] in {verb.split()[0] for verb in verbs}


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
    assert "00002.png is 112 wide" in fails(capsys, "evaluate", run, "--data", data)


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


def test_bad_annotations_are_skipped_and_counted(shapes, tiny_config, tmp_path, capsys):
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
    assert "skipped 2 annotations" in capsys.readouterr().out


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
