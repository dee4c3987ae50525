"""Weights, recipes and run folders that version 0.1 wrote."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from contracts import fails
from safetensors.torch import load_file, save_file

from masklab.config.migrate import _RENAMED_FIELDS, migrate_config
from masklab.config.recipe import load_recipe
from masklab.config.schema import validate
from masklab.datasets.synthetic.nuclei import draw_nuclei
from masklab.inference.predictor import Predictor, load
from masklab.model.build import build_model
from masklab.structures import ClassTable
from masklab.weights.checkpoint import load_model, save_model
from masklab.weights.facts import describe, read_notes
from masklab.weights.migrate import migrate_tensors

OLD = json.loads((Path(__file__).parent / "data/nuclei-0.1.json").read_text())
"""The header of the shipped weights as version 0.1 wrote them, and the names of their tensors."""


@pytest.fixture(scope="module")
def now_file(tmp_path_factory):
    """A model of the configuration of then, as it is written now, with random weights."""
    torch.manual_seed(0)
    config = validate(migrate_config(json.loads(OLD["header"]["config"])), "then")
    model = build_model(config, ClassTable(**json.loads(OLD["header"]["classes"])))
    model.score_threshold = json.loads(OLD["header"]["score_threshold"])
    path = tmp_path_factory.mktemp("now") / "best.safetensors"
    save_model(model, path, json.loads(OLD["header"]["notes"]), half=True)
    return path


@pytest.fixture(scope="module")
def old_file(now_file, tmp_path_factory):
    """The same as version 0.1 wrote it: today's tensors under the names of then."""
    now = load_file(now_file)
    present = {old: new for old in OLD["tensors"] for new in migrate_tensors({old: None})}
    assert sorted(present.values()) == sorted(now), "the renaming is one to one"
    assert sum(old != new for old, new in present.items()) > 10
    path = tmp_path_factory.mktemp("old") / "best.safetensors"
    header = {name: value for name, value in OLD["header"].items() if name != "sha256"}
    save_file({old: now[new] for old, new in present.items()}, path, metadata=header)
    return path


def test_weights_of_version_01_are_the_same_model_bit_for_bit(old_file, now_file):
    assert OLD["header"]["format"] == "masklab 1"
    old, now = load_model(old_file, "cpu"), load_model(now_file, "cpu")
    for name, value in now.state_dict().items():
        assert torch.equal(old.state_dict()[name], value), name
    assert old.state_dict().keys() == now.state_dict().keys()
    assert old.config == now.config
    assert old.classes == now.classes
    assert old.score_threshold == now.score_threshold == 0.65
    assert read_notes(old_file)["step"] == read_notes(now_file)["step"] == 5600


def test_weights_of_version_01_predict_the_same(old_file, now_file):
    image, _ = draw_nuclei(size=(128, 128))
    found, expected = (Predictor(load_model(file, "cpu")).predict(image) for file in (old_file, now_file))
    assert len(found) > 3
    for field in ("boxes", "scores", "labels", "masks"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


def test_a_run_folder_of_version_01_is_loaded_and_its_recipe_read(old_file, tmp_path):
    shutil.copy(old_file, tmp_path / "best.safetensors")
    config = json.loads(OLD["header"]["config"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    loaded = load(tmp_path, "cpu")
    assert loaded.config == load_recipe(tmp_path / "config.yaml")
    assert "score_threshold: 0." in describe(tmp_path)


def test_a_recipe_of_version_01_is_read_by_its_old_fields(tmp_path):
    old = {
        "base": "masklab",
        "pictures": {"scale": 1.5, "augment": {"crop": 128}},
        "model": {
            "rpn": {"rate": 3},
            "box": {"crop": 8, "rates": [1, 2], "deformable_rate": 0.02, "quality": False},
            "mask": {"crop": 21, "rates": [2, 4]},
        },
        "train": {"validate_pictures": 7},
    }
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    config = load_recipe(tmp_path / "old.yaml")
    assert config.image.scale == 1.5
    assert config.image.augment.crop_size == 128
    assert config.model.rpn.dilation == 3
    box, mask = config.model.box, config.model.mask
    assert (box.roi_size, box.dilations, box.deformable_lr_factor, box.iou_aware_score) == (8, [1, 2], 0.02, False)
    assert (mask.mask_size, mask.dilations) == (21, [2, 4])
    assert config.train.validate_images == 7
    assert config.image.mean == load_recipe("masklab").image.mean, "the rest is the base's"


def test_every_old_field_is_tried():
    """The file of then holds every field that has been renamed."""
    config = json.loads(OLD["header"]["config"])
    migrated = migrate_config(config)
    for old, new in _RENAMED_FIELDS.items():
        # sections are renamed before what is in them
        name = old.rpartition(".")[2]
        section = migrated
        for part in new.split(".")[:-1]:
            section = section[part]
        assert new.rpartition(".")[2] in section, new
        assert name not in section, old
    assert migrate_config(migrated) == migrated, "what is migrated stays"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pictures": {"croppp": 1}}, ["image.croppp", "no such field"]),
        ({"model": {"box": {"rate": 1}}}, ["model.box.rate", "no such field"]),
        ({"model": {"mask": {"quality": True}}}, ["model.mask.quality", "no such field"]),
        ({"pictures": {"scale": 1.0}, "image": {"scale": 1.0}}, ["pictures", "no such field"]),
        ({"model": {"mask": {"crop": 21, "mask_size": 21}}}, ["model.mask.crop", "no such field"]),
    ],
)
def test_a_field_that_never_was_or_stands_twice_is_refused(tmp_path, values, words):
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(values))
    fails([*words, "old.yaml"], load_recipe, tmp_path / "old.yaml")


def test_tensors_that_never_were_are_refused(old_file, tmp_path):
    header = {name: value for name, value in OLD["header"].items() if name != "sha256"}
    tensors = load_file(old_file)
    tensors["mask_branch.nonsense.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "odd.safetensors", metadata=header)
    fails(["odd.safetensors", "mask_head.nonsense.weight"], load_model, tmp_path / "odd.safetensors")


def test_names_are_migrated_behind_a_prefix_too():
    old = {"step.model.box_classifier.codes.weight": 1, "step.model.backbone.conv1.0.weight": 2, "codes.": 3}
    assert migrate_tensors(old, "step.model.") == {
        "step.model.box_head.deltas.weight": 1,
        "step.model.backbone.conv1.0.weight": 2,
        "codes.": 3,
    }
