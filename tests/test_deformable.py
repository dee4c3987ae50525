"""Deformable crop and resize: the offsets of sub-boxes, the layer that predicts them, and their learning rate."""

import pytest
import torch
import torch.nn.functional as F
from contracts import assert_finite_and_connected, assert_instances, predictor
from torch import nn

from masklab.config.model import BoxConfig
from masklab.config.schema import validate
from masklab.model.box_head import BoxHead
from masklab.model.build import build_model
from masklab.ops.crop import crop_and_resize
from masklab.ops.deformable import deformable_crop_and_resize
from masklab.ops.rois import Rois
from masklab.structures import Batch, Targets
from masklab.training.optimizer import build_optimizer, set_learning_rate
from masklab.training.step import TrainingStep

RAMP = (10 * torch.arange(16.0)[:, None] + torch.arange(16.0)).double()[None, None]  # f(y, x) = 10 y + x


def rois(boxes, dtype=torch.float32):
    boxes = torch.tensor(boxes, dtype=dtype).view(-1, 4)
    return Rois(boxes, torch.zeros(len(boxes), dtype=torch.long))


def random_rois(count, images=1, dtype=torch.float32):
    """Boxes that partly leave the map."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * 0.9 - 0.1
    side = torch.rand(count, 2, generator=generator, dtype=dtype) * 0.5
    owner = torch.randint(0, images, (count,), generator=generator)
    return Rois(torch.cat([corner, corner + side], dim=1), owner, (0.01, 0.02))


GRID = [[33, 36, 39, 42], [63, 66, 69, 72], [93, 96, 99, 102], [123, 126, 129, 132]]
GRID_MOVED = [[33, 36, 42.6, 45.6], [63, 66, 72.6, 75.6], [0, 92.4, 99, 102], [0, 122.4, 129, 132]]
CELL = [[33, 37.5, 37.5, 42], [78, 82.5, 82.5, 87], [78, 82.5, 82.5, 87], [123, 127.5, 127.5, 132]]
CELL_MOVED = [[33, 37.5, 41.1, 45.6], [78, 82.5, 86.1, 90.6], [0, 78.9, 82.5, 87], [0, 123.9, 127.5, 132]]


@pytest.mark.parametrize(
    ("sub_boxes", "moved", "expected"),
    [("grid", False, GRID), ("grid", True, GRID_MOVED), ("cell", False, CELL), ("cell", True, CELL_MOVED)],
)
def test_hand_worked_sub_boxes(sub_boxes, moved, expected):
    """Sub-box (0, 1) moves by (0.5, -1) and (1, 0) by (0, -4) tenths of the box: the latter leaves the map."""
    offsets = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    if moved:
        offsets[0, 0, 1, 0], offsets[0, 0, 1, 1], offsets[0, 1, 0, 1] = 0.05, -0.1, -0.4
    box = rois([0.2, 0.2, 0.8, 0.8], torch.float64)
    found = deformable_crop_and_resize(RAMP, box, offsets, sub_boxes)[0, 0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)
    if moved and sub_boxes == "grid":
        assert F.max_pool2d(found[None], 2)[0].tolist() == [pytest.approx([66, 75.6]), pytest.approx([122.4, 132])]


@pytest.mark.parametrize("sub_boxes", ["grid", "cell"])
def test_each_sub_box_is_a_crop_of_its_own(sub_boxes):
    """The slow version: `crop_and_resize` of every moved sub-box, on boxes that are not square."""
    features, where = torch.randn(2, 3, 9, 12, dtype=torch.float64), random_rois(8, 2, torch.float64)
    offsets = torch.randn(8, 3, 3, 2, dtype=torch.float64) * 0.2
    found = deformable_crop_and_resize(features, where, offsets, sub_boxes)
    for r, (x1, y1, x2, y2) in enumerate(where.boxes.tolist()):
        width, height = x2 - x1, y2 - y1
        for a in range(3):
            for b in range(3):
                step, side = (2 / 5, 1 / 5) if sub_boxes == "grid" else (1 / 3, 1 / 3)
                left = x1 + width * (step * b + float(offsets[r, a, b, 1]))
                top = y1 + height * (step * a + float(offsets[r, a, b, 0]))
                box = torch.tensor([[left, top, left + width * side, top + height * side]], dtype=torch.float64)
                expected = crop_and_resize(features, Rois(box, where.batch_index[r : r + 1], where.margin), (2, 2))[0]
                part = found[r, :, 2 * a : 2 * a + 2, 2 * b : 2 * b + 2]
                torch.testing.assert_close(part, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grid_without_moves_is_the_plain_crop_bit_for_bit(dtype):
    features, where = torch.randn(2, 16, 31, 45).to(dtype), random_rois(200, 2)
    plain = crop_and_resize(features, where, (14, 14))
    assert torch.equal(deformable_crop_and_resize(features, where, torch.zeros(200, 7, 7, 2), "grid"), plain)


@pytest.mark.parametrize("sub_boxes", ["grid", "cell"])
def test_gradients_by_differences(sub_boxes):
    torch.manual_seed(0)
    features = torch.randn(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    offsets = (torch.randn(4, 2, 2, 2, dtype=torch.float64) * 0.3).requires_grad_()
    where = random_rois(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda f, m: deformable_crop_and_resize(f, where, m, sub_boxes), (features, offsets), eps=1e-7, atol=1e-4
    )


def test_gradient_reaches_moves_inside_the_map_and_never_the_boxes():
    features = torch.randn(1, 4, 9, 9)
    where = rois([[0.31, 0.32, 0.63, 0.64]])
    where.boxes.requires_grad_()
    offsets = torch.zeros(1, 2, 2, 2)
    offsets[0, 1, 1] = 5.0  # far outside
    offsets.requires_grad_()
    crop = deformable_crop_and_resize(features, where, offsets, "grid")
    crop.square().sum().backward()
    assert (crop[:, :, 2:, 2:] == 0).all()
    assert (offsets.grad[0, 1, 1] == 0).all()
    assert (offsets.grad.flatten(0, 2)[:3] != 0).all()
    assert where.boxes.grad is None


def test_no_boxes():
    features = torch.randn(1, 3, 5, 5, requires_grad=True)
    offsets = torch.zeros(0, 7, 7, 2, requires_grad=True)
    crop = deformable_crop_and_resize(features, rois([]), offsets, "grid")
    assert crop.shape == (0, 3, 14, 14)
    crop.sum().backward()
    assert (features.grad == 0).all()


def test_places_are_float32_under_autocast():
    """Autocast would round the layer's output to three digits."""
    torch.manual_seed(0)
    conv4 = torch.arange(150.0).expand(1, 1, 150, 150)
    head = BoxHead(BoxConfig(roi_size=4, deformable="grid"), nn.Identity(), 1, 1, 1)
    nn.init.constant_(head.offsets.bias, -0.77)  # bfloat16 would take 0.7695
    where = rois([0.5, 0.5, 0.9, 0.9])
    plain = head._crop(conv4, where)
    with torch.autocast("cpu", torch.bfloat16):
        cast = head._crop(conv4, where)
    assert torch.equal(cast, plain)
    assert plain[0, 0, 0, 0].item() == pytest.approx(149 * (0.5 + 0.4 * (1 / 3 - 0.077)), abs=1e-3)


def configured(tiny_config, **box):
    values = tiny_config.model_dump()
    values["model"]["box"] |= {"deformable": "grid", **box}
    return validate(values, "test")


@pytest.fixture
def pair(tiny_config, classes):
    """A plain model, and the same weights in a deformable one."""
    torch.manual_seed(0)
    plain = build_model(tiny_config, classes).eval()
    deformable = build_model(configured(tiny_config), classes).eval()
    missing, unexpected = deformable.load_state_dict(plain.state_dict(), strict=False)
    assert missing == ["box_head.offsets.weight", "box_head.offsets.bias"]
    assert unexpected == []
    return plain, deformable


@torch.no_grad()
def test_switched_on_the_model_answers_as_before_bit_for_bit(pair):
    plain, deformable = pair
    images = torch.randn(2, 3, 97, 113, generator=torch.Generator().manual_seed(1))
    conv4, where = plain.backbone(images).conv4, random_rois(60, 2)
    for found, expected in zip(deformable.box_head(conv4, where), plain.box_head(conv4, where), strict=True):
        assert torch.equal(found, expected)
    sizes = torch.tensor([[97, 113], [80, 100]])
    found, expected = deformable(images, sizes), plain(images, sizes)
    assert int(expected.num_valid.sum()) > 0
    for name in ("boxes", "scores", "labels", "masks", "num_valid"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@torch.no_grad()
def test_the_layers_outputs_are_row_column_and_y_x(pair):
    """Output 2 (3 a + b) is the y of sub-box (a, b), the next its x: only that sub-box changes."""
    _, deformable = pair
    head, conv4 = deformable.box_head, torch.randn(1, 64, 13, 15)
    where = rois([0.21, 0.22, 0.67, 0.68])
    before = head._crop(conv4, where)
    head.offsets.bias[2 * (3 * 1 + 2) + 1] = 2.0
    changed = (head._crop(conv4, where) != before).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[1, 2]]
    offsets = torch.zeros(1, 3, 3, 2)
    offsets[0, 1, 2, 1] = 2 * head.config.deformable_scale
    expected = F.max_pool2d(deformable_crop_and_resize(conv4, where, offsets, "grid"), 2)
    assert torch.equal(head._crop(conv4, where), expected)


@torch.no_grad()
def test_the_layer_reads_the_first_crop_channel_by_channel(pair):
    _, deformable = pair
    head, conv4, where = deformable.box_head, torch.randn(1, 64, 13, 15), random_rois(5)
    first = F.max_pool2d(crop_and_resize(conv4, where, (6, 6)), 2)
    head.offsets.weight[8, 9 * 40 + 3 * 2 + 1] = 0.1  # channel 40, row 2, column 1, to the y of sub-box (1, 1)
    offsets = torch.zeros(5, 3, 3, 2)
    offsets[:, 1, 1, 0] = first[:, 40, 2, 1] * 0.1 * head.config.deformable_scale
    expected = F.max_pool2d(deformable_crop_and_resize(conv4, where, offsets, "grid"), 2)
    torch.testing.assert_close(head._crop(conv4, where), expected, atol=1e-5, rtol=0)


def test_conv4_learns_through_both_crops(pair):
    """With a map for each crop, the two gradients add up to that of one map for both."""
    _, deformable = pair
    head, where = deformable.box_head, rois([0.21, 0.22, 0.67, 0.68])
    nn.init.normal_(head.offsets.weight, std=0.01)
    conv4, first, second = torch.randn(1, 64, 13, 15).expand(3, 1, 64, 13, 15).clone().requires_grad_().unbind()
    pooled = F.max_pool2d(crop_and_resize(first, where, (6, 6)), 2)
    offsets = head.offsets(pooled.flatten(1)).view(1, 3, 3, 2) * head.config.deformable_scale
    apart = F.max_pool2d(deformable_crop_and_resize(second, where, offsets, "grid"), 2)
    through_moves, through_samples = torch.autograd.grad(apart.square().sum(), (first, second))
    (whole,) = torch.autograd.grad(head._crop(conv4, where).square().sum(), conv4)
    assert (through_moves != 0).any()
    torch.testing.assert_close(whole, through_moves + through_samples)


def batch(*objects):
    targets = [
        Targets(
            torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            torch.zeros(len(boxes), dtype=torch.long),
            torch.rand(len(boxes), 15, 15),
            torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            torch.arange(len(boxes)),
            torch.zeros(0, 4),
        )
        for boxes in objects
    ]
    images = torch.randn(len(objects), 3, 97, 113, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.tensor([[97, 113]] * len(objects)), targets, list(range(len(objects))))


OBJECTS = ([10.0, 20, 40, 50], [50.0, 30, 90, 80])


@pytest.mark.parametrize("sub_boxes", ["grid", "cell"])
def test_a_training_step_teaches_the_offsets(tiny_config, classes, sub_boxes):
    torch.manual_seed(0)
    step = TrainingStep(build_model(configured(tiny_config, deformable=sub_boxes), classes)).train()
    losses = step(batch(OBJECTS, ()))
    (losses["box"] + losses["box_class"]).backward()
    offsets = step.model.box_head.offsets
    assert (offsets.weight.grad != 0).any()
    assert (offsets.bias.grad != 0).any()
    assert step.model.rpn.deltas.weight.grad is None, "boxes are where the proposals put them"
    assert_instances(predictor(step.model).predict(torch.zeros(3, 50, 70, dtype=torch.uint8)), step.model)


@pytest.mark.parametrize("ground_truth", [True, False])
@pytest.mark.parametrize("objects", [(), OBJECTS])
def test_losses_are_finite_and_reach_every_parameter(tiny_config, classes, objects, ground_truth):
    step = TrainingStep(build_model(configured(tiny_config, append_ground_truth=ground_truth), classes)).train()
    assert_finite_and_connected(step(batch(objects)), step)


def test_an_image_without_proposals_still_trains(tiny_config, classes, monkeypatch):
    step = TrainingStep(build_model(configured(tiny_config), classes)).train()
    propose = step.model.rpn.propose
    monkeypatch.setattr(
        step.model.rpn, "propose", lambda *inputs: (found := propose(*inputs))._replace(num_valid=found.num_valid * 0)
    )
    assert_finite_and_connected(step(batch(())), step)


def test_only_the_offset_layer_learns_at_its_own_rate(tiny_config, classes):
    model = build_model(configured(tiny_config, deformable_lr_factor=0.02), classes)
    groups = build_optimizer(model, tiny_config.train.model_copy(update={"weight_decay": 0.1})).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (1e-3, 0.1),
        (1e-3, 0.0),
        (pytest.approx(2e-5), 0.1),
        (pytest.approx(2e-5), 0.0),
    ]
    offsets = model.box_head.offsets
    assert [[p is offsets.weight for p in groups[2]["params"]], [p is offsets.bias for p in groups[3]["params"]]] == [
        [True],
        [True],
    ]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_the_schedule_keeps_the_ratio_of_the_rates(tiny_config, classes):
    values = configured(tiny_config).model_dump()
    values["train"] |= {"schedule": "linear", "steps": 10}
    config = validate(values, "test")
    optimizer = build_optimizer(build_model(config, classes), config.train)
    set_learning_rate(optimizer, config.train, 5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-4, 5e-4, 5e-6, 5e-6])
