import pytest
import torch

from masklab.config.model import BackboneConfig
from masklab.model.backbone import build_backbone
from masklab.model.norms import FrozenBatchNorm
from masklab.utils.errors import InputError


def build(**changes):
    settings = {"name": "resnet18", "pretrained": False, "norm": "batch"} | changes
    torch.manual_seed(0)
    backbone, make_conv5 = build_backbone(BackboneConfig(**settings))
    for part in (*backbone.modules(), *make_conv5().modules()):
        if isinstance(part, torch.nn.BatchNorm2d):  # statistics unlike those of a fresh network
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.8, 1.2)
    return backbone.eval(), make_conv5


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_dense_features_read_at_every_second_cell_are_the_strided_networks(name):
    """The law that a wrong dilation breaks."""
    image = torch.randn(1, 3, 65, 97)
    maps = {}
    for stride in (8, 16, 32):
        backbone, make_conv5 = build(name=name, output_stride=stride)
        with torch.no_grad():
            conv4 = backbone(image).conv4
            maps[stride] = conv4, make_conv5().eval()(conv4)
    for dense, strided, step in ((8, 16, (2, 2)), (16, 32, (1, 2)), (8, 32, (2, 4))):
        for level in (0, 1):
            found = maps[dense][level][..., :: step[level], :: step[level]]
            assert (found - maps[strided][level]).norm() / maps[strided][level].norm() < 1e-5


@pytest.mark.parametrize(("stride", "cells"), [(8, (9, 13)), (16, (5, 7)), (32, (5, 7))])
def test_strides_and_channels(stride, cells):
    backbone, make_conv5 = build(output_stride=stride)
    image = torch.randn(1, 3, 65, 97)
    features = backbone(image)
    assert features.conv5 is None
    for name, values in zip(features._fields[:4], features[:4], strict=True):
        expected = [(side - 1) // backbone.strides[name] + 1 for side in image.shape[-2:]]
        assert list(values.shape[1:]) == [backbone.channels[name], *expected], name
    assert features.conv4.shape[-2:] == cells
    assert make_conv5.channels == backbone.channels.get("conv5", 512)


def test_conv5_rates_stand_as_given_and_copies_share_nothing():
    _, make_conv5 = build(name="resnet50")
    first, second = make_conv5([4, 8, 4]), make_conv5(dense=True)
    dilations = [
        [m.dilation[0] for m in c.modules() if getattr(m, "kernel_size", 0) == (3, 3)] for c in (first, second)
    ]
    assert dilations == [[4, 8, 4], [1, 1, 1]]
    assert not {p.data_ptr() for p in first.parameters()} & {p.data_ptr() for p in second.parameters()}
    assert second(torch.randn(2, 1024, 7, 7)).shape == (2, 2048, 7, 7)


def test_wrong_number_of_rates_is_refused():
    _, make_conv5 = build(name="resnet50")
    with pytest.raises(InputError, match=r"mask\.dilations has 2 values .*backbone\.name resnet50 has 3 units"):
        make_conv5([1, 2])


def test_conv5_drawn_anew_differs():
    _, make_conv5 = build()
    copied, drawn = make_conv5(), make_conv5(pretrained=False)
    assert not torch.equal(copied[0].conv1.weight, drawn[0].conv1.weight)


def test_frozen_batch_norm_stays_as_it_is():
    backbone, _ = build(norm="frozen_batch")
    norms = [part for part in backbone.modules() if isinstance(part, FrozenBatchNorm)]
    before = [value.clone() for part in norms for value in part.state_dict().values()]
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    for _ in range(10):
        backbone.train()
        backbone(torch.randn(2, 3, 33, 33)).conv4.square().mean().backward()
        optimizer.step()
    assert norms
    assert not any(part.training for part in norms)
    after = [value for part in norms for value in part.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_other_channels_and_widths():
    backbone, make_conv5 = build(in_channels=5, width=0.5, norm="group")
    assert backbone(torch.randn(1, 5, 33, 33)).conv4.shape[1] == 128
    assert make_conv5.channels == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnot"}, "timm knows no network resnot"),
        ({"name": "vgg11"}, "vgg11"),
        ({"name": "resnet50d"}, "averages where it strides"),
    ],
)
def test_networks_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        build(**changes)


def test_missing_weights_are_an_error_and_never_random(tmp_path):
    with pytest.raises(InputError, match=r"weights of resnet18 could not be loaded.*pretrained to false"):
        build_backbone(BackboneConfig(name="resnet18", weights=tmp_path / "none.safetensors"))


def test_a_local_weights_file_is_loaded(tmp_path):
    import timm
    from safetensors.torch import save_file

    network = timm.create_model("resnet18")
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    backbone, _ = build_backbone(BackboneConfig(name="resnet18", weights=tmp_path / "weights.safetensors"))
    assert torch.equal(backbone.conv2[0].conv1.weight, network.layer1[0].conv1.weight)


@pytest.mark.parametrize("norm", ["batch", "group", "frozen_batch"])
def test_every_level_is_taken_after_its_rectifier(norm):
    backbone, make_conv5 = build(norm=norm)
    features = backbone(torch.randn(2, 3, 33, 33))
    for name, values in {**features._asdict(), "conv5": make_conv5().eval()(features.conv4)}.items():
        assert values.min() == 0, name
        assert values.max() > 0, name
