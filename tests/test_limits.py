"""Upper limits of the configuration: no field, and no product of fields, asks for memory that no machine has."""

import json

import pytest
from pydantic import BaseModel

from masklab.config import Config
from masklab.config.image import ImageConfig
from masklab.config.recipe import load_recipe, recipe_names
from masklab.config.schema import validate
from masklab.images.resize import network_size
from masklab.inference import inputs
from masklab.utils.errors import InputError
from masklab.weights import checkpoint
from masklab.weights.checkpoint import load_model
from masklab.weights.facts import find_weights, model_names
from masklab.weights.tensors import read_tensors, write_tensors

HUGE = (
    10**12,
    1e300,
    float("inf"),
    float("nan"),
    [1.0] * 10_000,
    [10**12],
    [float("nan")] * 3,
    [1e300] * 2,
    ["csv"] * 99,
)


def fields(section=Config, prefix=""):
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def nested(name, value):
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize("name", sorted(set(fields()) - {"annotations", "images"}))  # lists of paths
def test_no_field_takes_any_number(name):
    for value in HUGE:
        with pytest.raises(InputError, match=name.rpartition(".")[2]):
            validate(nested(name, value), "mine.yaml")


GENEROUS = {
    "model.box.max_detections": 20_000,
    "model.mask.mask_size": 321,
    "model.rpn.anchor_sizes": [2.0**k for k in range(16)],
    "model.rpn.proposals_test": 40_000,
    "model.backbone.in_channels": 3,
    "image.max_side": 16_384,
    "image.scale": 8.0,
    "train.steps": 100_000_000,
    "train.batch_size": 4096,
    "train.milestones": [2.0],
}


@pytest.mark.parametrize("name", GENEROUS)
def test_what_anyone_could_want_passes(name):
    validate(nested(name, GENEROUS[name]), "mine.yaml")


def test_every_recipe_and_every_released_model_still_loads():
    assert all(load_recipe(name) for name in recipe_names())
    assert all(load_model(name, "cpu") for name in model_names())


TOGETHER = {
    ("box.max_detections", "mask.mask_size"): {"box": {"max_detections": 100_000}, "mask": {"mask_size": 2048}},
    ("mask.train_masks", "mask.mask_size"): {"mask": {"train_masks": 100_000, "mask_size": 2048}},
    ("rpn.proposals_test", "box.roi_size"): {"rpn": {"proposals_test": 100_000}, "box": {"roi_size": 256}},
    ("box.samples", "box.roi_size"): {"box": {"samples": 100_000, "roi_size": 256}},
}


@pytest.mark.parametrize("names", TOGETHER)
def test_fields_that_together_ask_for_too_much_are_named(names):
    with pytest.raises(InputError) as caught:
        validate({"model": TOGETHER[names]}, "mine.yaml")
    assert all(name in str(caught.value) for name in names)
    for section, values in TOGETHER[names].items():
        for name, value in values.items():
            validate({"model": {section: {name: value}}}, "each alone passes")


def test_anchors_of_an_image_are_bounded():
    many = {"model": {"rpn": {"anchor_sizes": [8.0] * 64, "anchor_ratios": [1.0] * 64}}}
    validate(many, "mine.yaml")
    with pytest.raises(InputError, match=r"anchor_sizes has 64 .*anchor_ratios 64 .*image\.max_side is 32768"):
        validate(many | {"image": {"max_side": 32_768}}, "mine.yaml")


HEADERS = {
    "model.mask.mask_size": 1_000_000,
    "model.box.max_detections": 10**12,
    "image.scale": 1e30,
    "model.rpn.anchor_sizes": [1.0] * 10_000,
    "model.rpn.channels": 10**9,
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_asks_for_terabytes_is_refused_before_a_model_is_built(name, tmp_path, monkeypatch):
    header, tensors = read_tensors(find_weights("nuclei"), ("masklab 1", "masklab 2"), "train")
    config = json.loads(header["config"])
    *sections, last = name.split(".")
    place = config
    for section in sections:
        place = place[section]
    place[last] = HEADERS[name]
    kept = {key: value for key, value in header.items() if key != "sha256"}
    write_tensors(tmp_path / "a.safetensors", tensors, kept | {"config": json.dumps(config)})
    monkeypatch.setattr(checkpoint, "build_model", lambda *_, **__: pytest.fail("a model is built"))
    with pytest.raises(InputError, match=rf"a\.safetensors: {name} is"):
        load_model(tmp_path / "a.safetensors", "cpu")


def test_an_input_of_the_network_that_no_machine_holds_is_refused(tiny_config, monkeypatch):
    assert network_size((9000, 12_000), ImageConfig(scale=1.0)) == (9000, 12_000)
    with pytest.raises(InputError, match=r"12000 x 9000 pixels becomes 768000 x 576000 .* lower image\.scale"):
        network_size((9000, 12_000), ImageConfig(scale=64.0))
    monkeypatch.setattr(inputs, "available_memory", lambda: 10**9)
    inputs.check_room((1000, 1000))
    with pytest.raises(InputError, match=r"an input of 12000 x 9000 pixels takes at least 10\.1 GiB and 0\.9 GiB"):
        inputs.check_room((9000, 12_000))
    inputs.check_room((9000, 12_000), "cuda")
