"""What every result must satisfy, whatever made it."""

import json

import numpy as np
import pytest

from masklab.config.nested import merge
from masklab.config.schema import validate
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import Predictor
from masklab.utils.errors import BrokenLossError, InputError


def predictor(model, **options):
    """A `Predictor` in float32, for results that are compared to the last digits."""
    return Predictor(model, PredictionOptions(**{"precision": "float32", **options}))


def assert_instances(instances, model=None):
    """`Instances` that keep every promise of their docstring."""
    count, (height, width) = len(instances), instances.size
    assert instances.boxes.shape == (count, 4)
    assert instances.scores.shape == instances.labels.shape == (count,)
    assert instances.masks.shape[0] == count
    assert instances.masks.ndim == 3
    assert instances.masks.dtype == instances.boxes.dtype == instances.scores.dtype == np.float32
    assert (np.diff(instances.scores) <= 0).all(), "best first"
    if count:
        assert (instances.boxes >= 0).all()
        assert (instances.boxes[:, [0, 2]] <= width + 1e-3).all()
        assert (instances.boxes[:, [1, 3]] <= height + 1e-3).all()
        assert (instances.boxes[:, 2:] > instances.boxes[:, :2]).all()
        assert instances.labels.min() >= 0
        assert instances.labels.max() < len(instances.class_names)
        if instances.masks.size:  # they are empty where an image was predicted in tiles
            assert instances.masks.min() >= 0
            assert instances.masks.max() <= 1
    entries = instances.to_coco(7)
    assert len(entries) == count
    json.dumps(entries, allow_nan=False)
    for entry in entries:
        assert entry["category_id"] in instances.category_ids
        assert entry["segmentation"]["size"] == [height, width]
    if model is not None:
        assert instances.class_names == model.classes.names
        assert instances.category_ids == model.classes.ids
        assert count <= model.config.model.box.max_detections


def assert_finite_and_connected(losses, module):
    """Losses are finite, and every trainable parameter gets a gradient from their sum."""
    for name, loss in losses.items():
        assert loss.isfinite(), name
    module.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} got no gradient"
            assert parameter.grad.isfinite().all(), name


def fails(words, action, *args):
    """Bad input is refused in one sentence that holds ``words``."""
    with pytest.raises(InputError) as caught:
        action(*args)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert "\n" not in message
    assert message.endswith(".")


def changed(config, **sections):
    """A configuration with some fields changed, sections and fields nested as in a recipe."""
    return validate(merge(config.model_dump(), sections), "test")


def broken_at(monkeypatch, step):
    """Let training stop at a step as if the power had gone."""

    def power_cut(losses, at, image_ids):
        if at == step:
            raise BrokenLossError("power cut")

    monkeypatch.setattr("masklab.training.loop.check_finite", power_cut)
