"""What a start imports, and that what stands in for large libraries computes the same."""

import os
import subprocess
import sys

import pytest
import timm
import torch
from torchvision.transforms.v2 import functional as v2

from masklab.config.model import BackboneConfig
from masklab.images.resize import resize
from masklab.model.backbone import build_backbone
from masklab.model.norms import NORMS
from masklab.model.resnet import PLAIN, PlainResNet
from masklab.weights.checkpoint import load_model
from masklab.weights.uninitialised import Uninitialised

# each takes a tenth of a second or more to import
LARGE = (
    "torch torchvision timm torch._dynamo sympy lightning rich matplotlib skimage scipy hotcoco pandas huggingface_hub"
)
PREDICTION = "import masklab, numpy; masklab.load('nuclei').predict(numpy.zeros((3, 64, 64), numpy.uint8))"


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import masklab", set()),
        ("from masklab.cli.app import main; main(['--help'])", set()),
        ("from masklab.cli.app import main; main(['info', 'nuclei'])", set()),
        (PREDICTION, {"torch"}),
    ],
)
def test_a_start_imports_no_large_library_in_vain(code, allowed):
    """timm, torchvision and torch._dynamo take longer than torch, which a prediction needs."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nprint(*(n for n in {LARGE.split()} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.splitlines()[-1].split()) <= allowed


@pytest.mark.parametrize(
    ("name", "norm", "width", "output_stride"),
    [
        ("resnet18", "group", 0.5, 8),
        ("resnet34", "batch", 1.0, 32),
        ("resnet50", "frozen_batch", 1.0, 8),
        ("resnet101", "frozen_batch", 0.25, 16),
        ("resnet152", "batch", 0.25, 8),
    ],
)
def test_a_plain_resnet_is_timms(name, norm, width, output_stride):
    """The same layers in the same order, the same maps and the same gradients, bit for bit."""
    channels = tuple(round(c * width) for c in (64, 128, 256, 512))
    own = PlainResNet(name, 3, channels, output_stride, NORMS[norm])
    other = timm.create_model(name, output_stride=output_stride, channels=channels, norm_layer=NORMS[norm])
    assert set(PLAIN) >= {name}
    weights = {key: value for key, value in other.state_dict().items() if not key.startswith("fc.")}
    assert list(own.state_dict()) == list(weights)
    own.load_state_dict(weights)
    gradients = []
    for network in (own, other):
        maps, total = network.act1(network.bn1(network.conv1(torch.linspace(-1, 1, 3 * 65 * 65).view(1, 3, 65, 65)))), 0
        maps = network.maxpool(maps)
        for number in range(1, 5):
            maps = getattr(network, f"layer{number}")(maps)
            total = total + maps.square().mean()
        total.backward()
        gradients.append(
            [maps.detach(), *(p.grad for n, p in network.named_parameters() if n[:3] != "fc." and p.grad is not None)]
        )
    assert len(gradients[0]) == len(gradients[1]) > 1
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_other_networks_are_still_timms():
    assert build_backbone(BackboneConfig(name="resnext50_32x4d", pretrained=False), False)[0].channels["conv4"] == 1024


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [(30, 50), (61, 47), (20, 31)])
@pytest.mark.parametrize("last", [False, True])
def test_resizing_is_torchvisions(dtype, size, last):
    values = torch.rand(3, 30, 50, generator=torch.Generator().manual_seed(0)) * 255
    image = values.to(dtype)
    image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1) if last else image
    assert torch.equal(resize(image, size), v2.resize(image, list(size), antialias=True))


def test_a_network_is_built_without_drawing_values():
    before = torch.get_rng_state()
    load_model("nuclei", "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    with Uninitialised():
        weight = torch.full((3,), 7.0)
        torch.nn.init.trunc_normal_(torch.zeros(3))
        assert torch.nn.init.xavier_uniform_(weight[None]) is not None
    assert weight.tolist() == [7, 7, 7]


@pytest.mark.parametrize("allowed", ["AVX2", "AVX512_CORE"])
def test_bfloat16_is_not_chosen_where_onednn_may_not_use_it(allowed):
    """It would be emulated, which is slower than float32."""
    code = "from masklab.utils.device import number_format; print(number_format('cpu', 'auto'))"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": allowed}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "float32"
