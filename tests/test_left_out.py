"""One image that cannot be used: it is named, and all others are predicted, measured and drawn."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from masklab.cli.app import main
from masklab.config.recipe import load_recipe
from masklab.datasets.check import check
from masklab.datasets.convert import convert
from masklab.datasets.open import open_split
from masklab.evaluation.evaluate import evaluate
from masklab.inference import pipeline as predicting
from masklab.inference.folder import predict_folder
from masklab.inference.predictor import Predictor, load
from masklab.model.build import build_model
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.weights.checkpoint import load_model, save_model
from masklab.weights.facts import find_weights
from masklab.weights.tensors import read_tensors, write_tensors

LONG = "ä" * 125 + ".png"  # 254 bytes


@pytest.fixture
def data(shapes, tmp_path):
    """A data set whose first image of val is called by a name of 254 bytes, and whose second is cut off."""
    folder = shutil.copytree(shapes, tmp_path / "data")
    values = json.loads((folder / "val.json").read_text())
    first, second = (folder / "val" / entry["file_name"] for entry in values["images"][:2])
    first.rename(first.with_name(LONG))
    values["images"][0]["file_name"] = LONG
    (folder / "val.json").write_text(json.dumps(values))
    second.write_bytes(second.read_bytes()[:500])
    return folder


@pytest.fixture
def model(data, tiny_config, tmp_path):
    torch.manual_seed(0)
    classes = ClassTable.from_categories(json.loads((data / "val.json").read_text())["categories"], "val")
    path = tmp_path / "model.safetensors"
    save_model(build_model(tiny_config, classes), path)
    return path


def broken(data):
    return json.loads((data / "val.json").read_text())["images"][1]["file_name"]


def test_evaluation_measures_the_others(data, model, tmp_path, capsys):
    found = evaluate(str(model), data, error_analysis=True)
    assert found["measured"]["images"] == 3
    assert found["measured"]["images_left_out"] == [broken(data)]
    values = json.loads((data / "val.json").read_text())
    gone = values["images"].pop(1)["id"]
    values["annotations"] = [entry for entry in values["annotations"] if entry["image_id"] != gone]
    without = shutil.copytree(data, tmp_path / "without")
    (without / "val.json").write_text(json.dumps(values))
    other = evaluate(str(model), without, error_analysis=True)
    for name in ("mask", "box", "per_class", "matching", "error_analysis"):
        assert found[name] == other[name], name

    output = tmp_path / "metrics.json"
    assert main(["evaluate", str(model), "--data", str(data), "--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert f"{broken(data)} is damaged" in said
    assert "1 image could not be used" in said
    assert json.loads(output.read_text())["measured"]["images_left_out"] == [broken(data)]


def test_evaluation_of_nothing_is_refused(data, model):
    for path in (data / "val").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="4 of 4 images could not be used"):
        evaluate(str(model), data)


def test_the_worst_images_are_drawn_of_the_others(data, model, tmp_path):
    arguments = ["show", str(model), "--data", str(data), "--output", str(tmp_path / "out"), "--worst", "4"]
    assert main([*arguments, "--score", "0"]) == 2
    drawn = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(drawn) == 1 + 3
    assert any(name.startswith("failure_") and "äää" in name for name in drawn)


def test_a_data_set_is_drawn_and_checked_and_converted(data, tmp_path, caplog):
    assert main(["data", "show", str(data), "--split", "val", "--output", str(tmp_path / "out")]) == 0
    assert f"{broken(data)} is damaged" in caplog.text
    assert (tmp_path / "out" / "val_images.png").exists()
    assert [f.problem for f in check(data).findings if f.split == "val"] == ["damaged image"]
    assert main(["data", "convert", str(data), str(tmp_path / "converted")]) == 0
    assert (tmp_path / "converted" / "val" / LONG).exists()


def test_a_submission_has_the_others(data, model, tmp_path, caplog):
    listing = tmp_path / "image_info_test.json"
    shutil.copy(data / "val.json", listing)
    arguments = ["submit", str(model), "--list", str(listing), "--images", str(data / "val")]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert "1 of 4 images could not be used" in caplog.text
    assert (tmp_path / "out" / "mask" / "detections_test_masklab_results.zip").exists()


ERRORS = [
    MemoryError(),
    OSError(12, "Cannot allocate memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_memory_that_one_image_cannot_have_leaves_the_others(error, model, tmp_path, monkeypatch, caplog):
    for name in ("1.png", "2.png", "3.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    predict = Predictor.predict

    def fails(self, image, *arguments, **options):
        if not isinstance(image, list) and image.shape[1:] == (40, 50):
            raise error
        return predict(self, image, *arguments, **options)

    Image.new("RGB", (50, 40)).save(tmp_path / "2.png")
    monkeypatch.setattr(Predictor, "predict", fails)
    images = [tmp_path / name for name in ("1.png", "2.png", "3.png")]
    with pytest.raises(InputError, match="1 of 3 images could not be used"):
        predict_folder(load(model), images, tmp_path / "out")
    assert f"{tmp_path / '2.png'}: it needs more memory than there is" in caplog.text
    assert (tmp_path / "out" / "predictions.json").exists()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["1.png", "3.png"]


def test_errors_of_code_are_not_hidden(model, tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "1.png")

    def fails(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(predicting, "open_reader", fails)
    with pytest.raises(RuntimeError, match="shapes"):
        predict_folder(load(model), [tmp_path / "1.png"], tmp_path / "out")


def rename(folder, entry, name):
    (folder / "train" / entry["file_name"]).rename(folder / "train" / name)
    entry["file_name"] = name


def test_names_that_differ_in_case_alone_are_two_images(shapes, tmp_path):
    data = shutil.copytree(shapes, tmp_path / "data")
    values = json.loads((data / "train.json").read_text())
    rename(data, values["images"][0], "A.png")
    rename(data, values["images"][1], "a.png")
    (data / "train.json").write_text(json.dumps(values))
    convert(data, tmp_path / "converted")
    written = [path.name.lower() for path in (tmp_path / "converted" / "train").iterdir()]
    assert len(set(written)) == len(written) == len(values["images"])
    one, two = (open_split(folder, "train") for folder in (data, tmp_path / "converted"))
    assert all(np.array_equal(one.read(k, 3), two.read(k, 3)) for k in range(len(one)))
    (data / "train" / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png is missing \(1 of the 8 images"):
        open_split(data, "train")


def test_recipes_based_on_each_other_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text(f"base: {tmp_path}/b.yaml")
    (tmp_path / "b.yaml").write_text(f"base: {tmp_path}/a.yaml")
    with pytest.raises(InputError, match="is its own base"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize("name", ["../../outside", "/etc/outside", "a\0b", "..\\x"])
def test_tensor_names_are_no_paths(name, tmp_path):
    """They are only ever compared with those of the model."""
    header, tensors = read_tensors(find_weights("nuclei"), ("masklab 1", "masklab 2"), "train")
    write_tensors(tmp_path / "a.safetensors", tensors | {name: torch.zeros(1)}, header)
    with pytest.raises(InputError, match=r"a\.safetensors: its tensors do not fit its configuration"):
        load_model(tmp_path / "a.safetensors", "cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
