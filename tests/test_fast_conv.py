"""The convolution over crops is the plain convolution, forward and backward."""

import copy

import pytest
import torch
from torch import nn

from masklab.ops.fast_conv import CropConv2d, replace_convolutions


@pytest.mark.parametrize("shape", [(5, 4, 3, 6), (1, 4, 1, 1), (3, 4, 2, 7), (0, 4, 3, 3)])
@pytest.mark.parametrize("settings", [{}, {"stride": 2}, {"dilation": 2, "padding": 2}, {"groups": 2}, {"bias": True}])
def test_equals_the_plain_convolution(shape, settings):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, **{"padding": 1, "bias": False} | settings).double()
    ours = nn.Sequential(copy.deepcopy(plain))
    replace_convolutions(ours)
    assert type(ours[0]) is CropConv2d
    results = []
    for module in (plain, ours):
        maps = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = module(maps)
        (out * torch.arange(out.numel()).view(out.shape)).sum().backward()
        results.append([out, maps.grad, *(parameter.grad for parameter in module.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_gradients_by_finite_differences():
    conv = CropConv2d(2, 3, 3, padding=1, bias=False).double()
    maps = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def run(maps, weight):
        return torch.func.functional_call(conv, {"weight": weight}, (maps,))

    assert torch.autograd.gradcheck(run, (maps, conv.weight))


def test_autocast_computes_in_bf16_and_keeps_float32_gradients():
    conv = CropConv2d(4, 6, 3, padding=1, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(torch.randn(3, 4, 5, 5))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32
