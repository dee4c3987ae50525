from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F

from masklab.ops.crop import crop_and_resize, max_pool_2x2
from masklab.ops.crop_channels import CHUNK, crop_channels
from masklab.ops.direction import direction_table
from masklab.ops.rois import Rois

TENSORFLOW = Path(__file__).resolve().parents[2] / "shared" / "tf_ref.npz"
RAMP = (10 * torch.arange(4.0)[:, None] + torch.arange(5.0))[None, None]  # f(y, x) = 10 y + x


def rois(*boxes_yxyx, margin=(1e-6, 1e-6)):
    boxes = torch.tensor(np.array(boxes_yxyx), dtype=torch.float32).view(-1, 4)[:, [1, 0, 3, 2]]
    return Rois(boxes, torch.zeros(len(boxes), dtype=torch.long), margin)


def tf_rois(boxes, size):
    """Pixel boxes (R, 4) divided by height and width, as TensorFlow's library does."""
    height, width = size
    return Rois(boxes / torch.tensor([width, height, width, height]), torch.zeros(len(boxes), dtype=torch.long))


def random_rois(count, images=2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * 1.3 - 0.2
    side = torch.rand(count, 2, generator=generator, dtype=dtype) - 0.2
    owner = torch.randint(0, images, (count,), generator=generator)
    return Rois(torch.cat([corner, corner + side], dim=1), owner)


@pytest.fixture(scope="module")
def tensorflow():
    if not TENSORFLOW.is_file():
        pytest.skip("TensorFlow's outputs are not beside this checkout")
    return np.load(TENSORFLOW)


@pytest.mark.parametrize(
    ("box", "three", "two", "one"),
    [
        ((0, 0, 1, 1), [[0, 2, 4], [15, 17, 19], [30, 32, 34]], [[0, 4], [30, 34]], 17),
        ((0.25, 0.125, 0.75, 0.625), [[8, 9, 10], [15.5, 16.5, 17.5], [23, 24, 25]], [[8, 10], [23, 25]], 16.5),
        ((-0.1, 0.5, 0.5, 1.1), [[0, 0, 0], [8, 9.2, 0], [17, 18.2, 0]], [[0, 0], [17, 0]], 9.2),
        ((0.3, 0.2, 0.3, 0.2), [[9.8] * 3] * 3, [[9.8] * 2] * 2, 9.8),
        ((0.8, 0.9, 0.2, 0.1), [[27.6, 26, 24.4], [18.6, 17, 15.4], [9.6, 8, 6.4]], [[27.6, 24.4], [9.6, 6.4]], 17),
    ],
)
def test_hand_worked_boxes(box, three, two, one):
    for size, expected in ((3, three), (2, two), (1, [[one]])):
        found = crop_and_resize(RAMP, rois(box), (size, size))[0, 0]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(14, 14), (2, 2), (41, 41), (1, 1), (3, 5)])
def test_equals_tensorflow(tensorflow, size):
    image = torch.from_numpy(tensorflow["img"]).permute(0, 3, 1, 2)
    found = crop_and_resize(image, rois(*tensorflow["boxes"]), size).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found.numpy(), tensorflow[f"c_{size[0]}_{size[1]}"], atol=2e-5)


def test_gradients_equal_tensorflow(tensorflow):
    image = torch.from_numpy(tensorflow["img"]).permute(0, 3, 1, 2).requires_grad_()
    boxes = torch.from_numpy(tensorflow["boxes"])[:, [1, 0, 3, 2]].requires_grad_()
    crops = crop_and_resize(image, Rois(boxes, torch.zeros(len(boxes), dtype=torch.long)), (14, 14))
    (crops.permute(0, 2, 3, 1) * torch.from_numpy(tensorflow["w"])).sum().backward()
    np.testing.assert_allclose(image.grad.permute(0, 2, 3, 1).numpy(), tensorflow["gi"], atol=5e-5)
    # TensorFlow's gradient is 0 for a sample exactly on a cell, where no derivative exists: one such box is drawn
    difference = np.abs(boxes.grad[:, [1, 0, 3, 2]].numpy() - tensorflow["gb"]).max(axis=1)
    assert np.sort(difference)[-2] < 5e-3
    on_a_cell = int(difference.argmax())
    moved = boxes.detach()[on_a_cell] * torch.tensor([18.0, 12.0, 18.0, 12.0])
    assert difference[on_a_cell] < 5e-3 or (moved - moved.round()).abs().min() < 1e-4


def test_hand_vectors_of_tensorflow(tensorflow):
    image = torch.from_numpy(tensorflow["f"]).permute(0, 3, 1, 2)
    for size in (3, 2, 1):
        found = crop_and_resize(image, rois(*tensorflow["hb"]), (size, size)).permute(0, 2, 3, 1)
        np.testing.assert_allclose(found.numpy(), tensorflow[f"h_{size}_{size}"], atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)])
def test_equals_the_slow_version(size):
    features = torch.randn(2, 3, 6, 7)
    boxes = replace(random_rois(20), margin=(0.03, 0.05))
    expected = reference.crop_and_resize(features, boxes.boxes, boxes.batch_index, size, boxes.margin)
    torch.testing.assert_close(crop_and_resize(features, boxes, size), expected, atol=1e-5, rtol=0)


def test_gradients_by_differences():
    features = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    boxes = random_rois(6, seed=3, dtype=torch.float64)
    corners = boxes.boxes.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, b: crop_and_resize(f, replace(boxes, boxes=b), (4, 3)), (features, corners), eps=1e-7, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_maximum_without_gradients_is_that_with_them(dtype):
    crops = torch.randn(3, 5, 6, 8).round(decimals=1).to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        found = max_pool_2x2(crops)
    assert torch.equal(found, F.max_pool2d(crops, 2))
    assert torch.equal(found, max_pool_2x2(crops))


def test_no_boxes():
    features = torch.randn(1, 3, 4, 4, requires_grad=True)
    empty = Rois(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    crops = crop_and_resize(features, empty, (5, 5))
    assert crops.shape == (0, 3, 5, 5)
    single = crop_channels(features, empty, (5, 5), torch.zeros(5, 5, dtype=torch.long))
    assert single.shape == (0, 5, 5)
    (crops.sum() + single.sum()).backward()
    assert (features.grad == 0).all()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("per_box", [False, True])
@pytest.mark.parametrize("chunk", [CHUNK, 250])  # 250: two boxes of samples, positions of 22 boxes
def test_one_channel_a_sample_equals_crop_then_select(memory, per_box, chunk, monkeypatch):
    monkeypatch.setattr("masklab.ops.crop_channels.CHUNK", chunk)
    features = torch.randn(2, 8, 9, 7).to(memory_format=memory)
    boxes = random_rois(30)
    channels = torch.randint(0, 8, (30,)) if per_box else direction_table(11, 8)
    fast, slow = features.clone().requires_grad_(), features.clone().requires_grad_()
    found = crop_channels(fast, boxes, (11, 11), channels)
    expected = reference.select_channels(crop_and_resize(slow, boxes, (11, 11)), channels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad, atol=1e-5, rtol=0)


BORDERS = {
    "flush": [(0, 0, 41, 25), (20, 10, 41, 25), (40, 24, 41, 25), (7, 3, 41, 20), (3, 9, 33, 25)],
    "beyond": [(30, 12, 49, 31), (40.5, 24.5, 60, 40), (-6, -4, 47, 29), (45, 2, 50, 9), (2, 28, 9, 33)],
    "flipped": [(41, 25, 30, 15), (49, 31, 35, 20)],
}


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", ["exact", "tf"])
@pytest.mark.parametrize("cells", [(4, 6), (2, 2), (1, 6), (4, 1), (1, 1)], ids=str)
def test_one_channel_a_sample_equals_the_slow_version_on_the_right_and_bottom_border(cells, mode, memory):
    """Boxes that end on the last row and column, cross them or lie beyond; maps down to a single cell; the last image."""
    torch.manual_seed(0)
    features = torch.randn(2, 3, *cells).to(memory_format=memory)
    pixels = torch.tensor([box for kind in BORDERS.values() for box in kind], dtype=torch.float32)
    boxes = Rois.from_pixels(pixels, torch.ones(len(pixels), dtype=torch.long), (25, 41))
    if mode == "tf":
        boxes = replace(tf_rois(pixels, (25, 41)), batch_index=boxes.batch_index)
    for size in ((1, 1), (2, 5), (7, 3)):
        channels = torch.randint(0, 3, (len(boxes), *size))
        fast, slow = features.clone().requires_grad_(), features.clone().requires_grad_()
        found = crop_channels(fast, boxes, size, channels)
        crops = reference.crop_and_resize(slow, boxes.boxes, boxes.batch_index, size, boxes.margin)
        expected = reference.select_channels(crops, channels)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        weight = torch.randn_like(found)
        (found * weight).sum().backward()
        (expected * weight).sum().backward()
        torch.testing.assert_close(fast.grad, slow.grad, atol=1e-5, rtol=0)


def test_the_last_cell_has_its_own_value_and_the_whole_gradient():
    """f(y, x) = 10 y + x on 3 x 4 cells: a box on the last column reads 3, 13, 23 in it, one on the last row 20 ... 23."""
    features = torch.stack([torch.zeros(3, 4), RAMP[0, 0, :3, :4]])[None].requires_grad_()
    last = rois((0, 1, 1, 1), (1, 0, 1, 1))
    column, row = crop_channels(features, last, (3, 4), torch.tensor([1, 1])).unbind()
    torch.testing.assert_close(column, torch.tensor([[3.0] * 4, [13] * 4, [23] * 4]), atol=1e-5, rtol=0)
    torch.testing.assert_close(row, torch.tensor([[20.0, 21, 22, 23]] * 3), atol=1e-5, rtol=0)
    (column.sum() + row.sum()).backward()
    expected = torch.tensor([[0.0, 0, 0, 4], [0, 0, 0, 4], [3, 3, 3, 7]])
    torch.testing.assert_close(features.grad[0, 1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("read", ["crop", "channel"])
def test_exact_mode_reads_half_a_pixel_beyond_the_border_and_no_more(read):
    """An image of 17 x 65 pixels, so that half a pixel is not the same share of both sides."""

    def sample(x, y):
        point = torch.tensor([[x, y, x, y]])
        there = Rois.from_pixels(point, torch.zeros(1, dtype=torch.long), (17, 65))
        if read == "crop":
            return crop_and_resize(torch.ones(1, 1, 3, 9), there, (1, 1)).item()
        return crop_channels(torch.ones(1, 1, 3, 9), there, (1, 1), torch.tensor([0])).item()

    for x, y in ((0, 8), (65, 8), (32, 0), (32, 17), (0, 0), (65, 17)):
        assert sample(x, y) == 1, "the border"
    for x, y in ((-0.1, 8), (65.1, 8), (32, -0.1), (32, 17.1), (65.1, 17), (65, 17.1)):
        assert sample(x, y) == 0, "a tenth of a pixel outside"


def test_more_boxes_than_one_chunk():
    count = CHUNK // (41 * 41) * 2 + 3
    features, boxes = torch.randn(2, 32, 9, 7), random_rois(count)
    table = direction_table(41, 8, 4)
    found = crop_channels(features, boxes, (41, 41), table)
    some = torch.tensor([0, count // 2, count - 1])
    part = crop_and_resize(features, Rois(boxes.boxes[some], boxes.batch_index[some]), (41, 41))
    torch.testing.assert_close(found[some], part.gather(1, table.expand(3, 1, 41, 41))[:, 0], atol=1e-5, rtol=0)


def test_only_the_selected_channels_get_a_gradient():
    features = torch.randn(1, 6, 8, 8, requires_grad=True)
    crop_channels(features, rois((0, 0, 1, 1)), (5, 5), torch.tensor([2])).sum().backward()
    touched = features.grad.abs().sum(dim=(0, 2, 3)) > 0
    assert touched.tolist() == [False, False, True, False, False, False]


def test_boxes_that_want_a_gradient_are_refused():
    boxes = rois((0, 0, 1, 1))
    boxes.boxes.requires_grad_()
    with pytest.raises(ValueError, match="no gradient for boxes"):
        crop_channels(torch.randn(1, 2, 4, 4), boxes, (3, 3), torch.zeros(3, 3, dtype=torch.long))


@pytest.mark.parametrize(("stride", "cells"), [(1, 33), (2, 17), (4, 9), (8, 5)])
def test_cell_i_lies_on_pixel_stride_times_i(stride, cells):
    """A ramp sampled by any level gives back the pixel it was asked for, so all levels line up."""
    pixels = torch.arange(cells, dtype=torch.float32) * stride
    features = pixels.expand(1, 1, cells, cells)
    box = torch.tensor([[8.5, 4.5, 24.5, 12.5]])  # from the middle of column 8 to that of column 24
    exact = Rois.from_pixels(box, torch.zeros(1, dtype=torch.long), (33, 33))
    found = crop_and_resize(features, exact, (3, 5))[0, 0]
    torch.testing.assert_close(found, torch.tensor([8.0, 12, 16, 20, 24]).expand(3, 5), atol=1e-4, rtol=0)


def test_a_box_on_the_border_is_inside():
    box = torch.tensor([[0.0, 0.0, 33.0, 17.0]])
    whole = Rois.from_pixels(box, torch.zeros(1, dtype=torch.long), (17, 33))
    assert (crop_and_resize(torch.ones(1, 1, 3, 5), whole, (7, 7)) == 1).all()


def test_tensorflows_coordinates_divide_by_height_and_width():
    box = torch.tensor([[0.0, 0.0, 40.0, 32.0]])
    whole = tf_rois(box, (32, 40))
    assert whole.boxes.tolist() == [[0, 0, 1, 1]]
    here = Rois.from_pixels(
        torch.from_numpy(reference.tf_positions(box.numpy(), (32, 40))), torch.zeros(1, dtype=torch.long), (32, 40)
    )
    torch.testing.assert_close(here.boxes.float(), whole.boxes)


def test_soft_target_of_a_tight_box():
    """Corners a quarter, edges a half, inside one: the samples of a tight box lie on the mask's outline."""
    mask = torch.zeros(1, 1, 6, 6)
    mask[0, 0, 2:5, 1:4] = 1
    tight = Rois.from_pixels(torch.tensor([[1.0, 2, 4, 5]]), torch.zeros(1, dtype=torch.long), (6, 6))
    found = crop_and_resize(mask, tight, (5, 5))[0, 0]
    expected = torch.ones(5, 5)
    expected[[0, -1]] = expected[:, [0, -1]] = 0.5
    expected[[0, 0, -1, -1], [0, -1, 0, -1]] = 0.25
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_soft_target_of_a_tight_box_in_tensorflows_coordinates():
    mask = torch.zeros(1, 1, 6, 6)
    mask[0, 0, 2:5, 1:4] = 1
    tight = tf_rois(torch.tensor([[1.0, 2, 4, 5]]), (6, 6))
    found = crop_and_resize(mask, tight, (5, 5))[0, 0]
    expected = torch.tensor([[0.556, 0.667, 0.667, 0.667, 0.444], [0.694, 0.833, 0.833, 0.833, 0.556]])
    torch.testing.assert_close(found[[0, -1]], expected, atol=1e-3, rtol=0)
    assert (found[1:-1, 1:-1] == 1).all()


def test_bf16_features_keep_float32_positions():
    features = torch.arange(150.0).expand(1, 1, 2, 150)
    box = Rois.from_pixels(torch.tensor([[1000.5, 0.5, 1100.5, 8.5]]), torch.zeros(1, dtype=torch.long), (9, 1193))
    full = crop_and_resize(features, box, (2, 11))
    half = crop_and_resize(features.bfloat16(), box, (2, 11))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.5, rtol=0)
