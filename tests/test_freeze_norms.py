"""Group norms that become frozen batch norms."""

import pytest
import torch
from contracts import fails
from torch import nn

from masklab.model.build import build_model
from masklab.model.fixed_norm import freeze_norms
from masklab.model.norms import FrozenBatchNorm
from masklab.weights.checkpoint import save_model
from masklab.weights.transfer import load_matching, load_start, norms_to_freeze


def with_norm(config, norm, start=None):
    backbone = config.model.backbone.model_copy(update={"norm": norm})
    train = config.train.model_copy(update={"start_from": start})
    model = config.model.model_copy(update={"backbone": backbone})
    return config.model_copy(update={"model": model, "train": train})


@pytest.fixture
def group_model(tiny_config, classes):
    torch.manual_seed(0)
    model = build_model(with_norm(tiny_config, "group"), classes).eval()
    for part in model.modules():
        if isinstance(part, nn.GroupNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
    return model


def test_frozen_norms_are_group_norms_on_the_image_they_were_measured_on(group_model):
    image, sizes = torch.randn(1, 3, 65, 65), torch.tensor([[65, 65]])
    with torch.no_grad():
        wanted = group_model.backbone(image)
        other = group_model.backbone(image * 3 + 1)
        freeze_norms(group_model, [(image, sizes)])
        for one, two in zip(group_model.backbone(image)[:4], wanted[:4], strict=True):
            assert torch.allclose(one, two, atol=1e-3)
        assert not torch.allclose(group_model.backbone(image * 3 + 1).conv4, other.conv4, atol=1e-1)
    assert not any(isinstance(part, nn.GroupNorm) for part in group_model.modules())


def test_statistics_are_the_mean_over_images(group_model):
    images = [torch.randn(1, 3, 65, 65) * scale for scale in (1, 2)]
    first = group_model.backbone.conv1[0]
    groups = group_model.backbone.conv1[1].num_groups
    with torch.no_grad():
        values = torch.cat([first(image) for image in images]).unflatten(1, (groups, -1)).transpose(0, 1).flatten(1)
        freeze_norms(group_model, [(image, torch.tensor([[65, 65]])) for image in images])
    norm = group_model.backbone.conv1[1]
    assert isinstance(norm, FrozenBatchNorm)
    repeated = norm.num_features // groups
    assert torch.allclose(norm.running_mean, values.mean(1).repeat_interleave(repeated), atol=1e-4)
    assert torch.allclose(norm.running_var, values.var(1, correction=0).repeat_interleave(repeated), rtol=1e-3)


@pytest.mark.parametrize("norm", ["batch", "frozen_batch"])
def test_a_start_with_group_norm_fits_batch_norm_after_freezing(group_model, tiny_config, classes, tmp_path, norm):
    save_model(group_model, tmp_path / "start.safetensors")
    config = with_norm(tiny_config, norm, tmp_path / "start.safetensors")
    start = load_start(config)
    assert norms_to_freeze(start, config)
    with torch.no_grad():
        freeze_norms(start, [(torch.randn(1, 3, 65, 65), torch.tensor([[65, 65]]))])
    model = build_model(config, classes)
    assert load_matching(model, start) == []
    assert torch.equal(model.backbone.conv1[1].running_mean, start.backbone.conv1[1].running_mean)


def test_batch_norm_does_not_become_group_norm(tiny_config, classes, tmp_path):
    save_model(build_model(with_norm(tiny_config, "batch"), classes), tmp_path / "start.safetensors")
    fails(
        ["model.backbone.norm is group", "batch"],
        load_start,
        with_norm(tiny_config, "group", tmp_path / "start.safetensors"),
    )
