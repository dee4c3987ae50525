"""The light box head: one hidden layer on crops of thin maps of the mask head's conv5."""

import copy

import pytest
import reference
import torch
from contracts import assert_finite_and_connected, assert_instances, predictor

from masklab.config.model import BoxConfig
from masklab.config.recipe import load_recipe
from masklab.config.schema import validate
from masklab.datasets.split import Split
from masklab.model.box_head import BoxHead, LightBoxHead
from masklab.model.build import build_model
from masklab.model.cost import model_cost
from masklab.ops.rois import Rois
from masklab.structures import ClassTable
from masklab.training.data.loader import InstanceDataset, collate
from masklab.training.step import TrainingStep
from masklab.utils.errors import InputError
from masklab.weights.checkpoint import load_model, save_model
from masklab.weights.transfer import load_matching

LIGHT = {"head": "light", "light_maps": 6, "light_hidden": 12, "roi_size": 6}


def changed(tiny_config, mask=None, **box):
    values = tiny_config.model_dump()
    values["model"]["box"] |= {**LIGHT, **box}
    values["model"]["mask"] |= mask or {}
    return validate(values, "test")


@pytest.fixture
def light(tiny_config, classes):
    torch.manual_seed(0)
    return build_model(changed(tiny_config), classes).eval()


def boxes_on_maps(count, images):
    generator = torch.Generator().manual_seed(2)
    first = torch.rand(count, 2, generator=generator) * 0.5
    size = 0.1 + torch.rand(count, 2, generator=generator) * 0.6
    return Rois(torch.cat([first, first + size], dim=1), torch.randint(0, images, (count,), generator=generator))


def test_equals_each_box_cropped_alone(light):
    """Written out: thin maps, bilinear samples by loops, the maximum of 2 x 2, one layer, relu, two layers."""
    head, rois = light.box_head, boxes_on_maps(7, 2)
    conv5 = torch.randn(2, head.thin.in_channels, 9, 11)
    with torch.no_grad():
        found = head(conv5, rois)
        thin = torch.einsum("oc,nchw->nohw", head.thin.weight[:, :, 0, 0], conv5) + head.thin.bias[:, None, None]
        crops = reference.crop_and_resize(thin, rois.boxes, rois.batch_index, (6, 6))
        most = crops.unflatten(2, (3, 2)).unflatten(4, (3, 2)).amax(dim=(3, 5))
        hidden = (most.permute(0, 2, 3, 1).reshape(7, -1) @ head.hidden.weight.T + head.hidden.bias).relu()
        deltas = (hidden @ head.deltas.weight.T + head.deltas.bias).view(7, head.num_classes, 4)
    torch.testing.assert_close(found.classes, hidden @ head.classes.weight.T + head.classes.bias, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.deltas, deltas, atol=1e-5, rtol=0)


@pytest.mark.parametrize("training", [False, True])
def test_conv5_runs_once_an_image(light, shapes, training):
    calls = []
    light.mask_head.conv5.register_forward_hook(lambda *_: calls.append(1))
    if training:
        dataset = InstanceDataset(Split.find(shapes, "train"), light.config, augmented=False)
        TrainingStep(light.train())(collate([dataset[0]], 8), torch.Generator().manual_seed(0))
    else:
        with torch.no_grad():
            light(torch.randn(1, 3, 65, 73), torch.tensor([[65, 73]]))
    assert calls == [1]


def test_two_images_at_once_equal_each_alone(light):
    images, sizes = torch.randn(2, 3, 65, 73), torch.tensor([[65, 73], [60, 70]])
    with torch.no_grad():
        both = light(images, sizes)
        for n in range(2):
            one = light(images[n : n + 1], sizes[n : n + 1])
            count = int(one.num_valid[0])
            assert count == int(both.num_valid[n]) > 0
            torch.testing.assert_close(one.boxes[0, :count], both.boxes[n, :count], atol=1e-3, rtol=0)
            torch.testing.assert_close(one.masks[0, :count], both.masks[n, :count], atol=1e-4, rtol=0)


@pytest.mark.parametrize("mask", [{}, {"head": "fcis", "mask_size": 15, "refine_levels": []}], ids=["masklab", "fcis"])
def test_losses_are_finite_and_reach_every_parameter(shapes, tiny_config, classes, mask):
    config = changed(tiny_config, mask)
    split = Split.find(shapes, "train")
    dataset = InstanceDataset(split, config, augmented=False)
    row = next(row for row in range(len(split)) if len(split.objects(row)) >= 3)
    torch.manual_seed(0)
    step = TrainingStep(build_model(config, classes)).train()
    losses = step(collate([dataset[row]], 8), torch.Generator().manual_seed(0))
    assert_finite_and_connected(losses, step.model)


def test_saved_and_loaded_it_predicts_the_same(light, tmp_path):
    save_model(light, tmp_path / "light.safetensors")
    loaded = load_model(tmp_path / "light.safetensors", "cpu")
    image = torch.randint(256, (3, 50, 60), dtype=torch.uint8)
    one, other = predictor(light).predict(image), predictor(loaded).predict(image)
    assert_instances(one, light)
    assert len(one)
    assert (one.boxes == other.boxes).all()
    assert (one.scores == other.scores).all()


def test_layers_of_the_other_head_are_not_taken_over(light, tiny_config, classes):
    """Also not where the shapes agree by chance: as many hidden outputs as conv5 has channels."""
    papers = build_model(changed(tiny_config, head="conv5"), classes)
    channels = papers.box_head.classes.in_features
    model = build_model(changed(tiny_config, light_hidden=channels), classes)
    before = copy.deepcopy(model.box_head.state_dict())
    new = load_matching(model, papers)
    assert set(new) == {"box_head.classes", "box_head.deltas", "box_head.thin", "box_head.hidden"}
    for name, value in model.box_head.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert load_matching(build_model(light.config, classes), light) == []


@pytest.mark.parametrize(
    ("box", "mask", "words"),
    [
        ({"deformable": "grid"}, {}, ("head light", "deformable")),
        ({"dilations": [1, 1, 1]}, {}, ("head light", "dilations")),
        ({"light_maps": 0}, {}, ("light_maps",)),
        ({"light_hidden": 0}, {}, ("light_hidden",)),
    ],
)
def test_contradictions_are_refused_with_both_names(tiny_config, box, mask, words):
    with pytest.raises(InputError) as error:
        changed(tiny_config, mask, **box)
    assert all(word in str(error.value) for word in words)


def test_cost_is_counted():
    """The nuclei model: 1,500 crops of 5 x 5 x 64 through 256 outputs, and 65 x 65 cells of 160 channels through a 1 x 1 convolution."""
    config = load_recipe("nuclei", {"model": {"box": {"head": "light", "light_maps": 64, "light_hidden": 256}}})
    cost = model_cost(config, 1, (513, 513))
    assert cost["box head maps"].macs == 65 * 65 * 160 * 64
    assert cost["box head linear"].macs == 1500 * (5 * 5 * 64 * 256 + 256 * 2 + 256 * 4)
    assert "box head conv5" not in cost
    classes = build_model(config, ClassTable((1,), ("nucleus",))).box_head
    assert cost["box head maps"].parameters + cost["box head linear"].parameters == sum(
        value.numel() for value in classes.parameters()
    )


def test_the_paper_s_head_is_the_default(tiny_config, classes):
    assert BoxConfig().head == load_recipe("masklab", {}).model.box.head == "conv5"
    assert type(build_model(tiny_config, classes).box_head) is BoxHead
    assert type(build_model(changed(tiny_config), classes).box_head) is LightBoxHead
