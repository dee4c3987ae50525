import numpy as np
import pytest
import reference
import torch
from contracts import assert_finite_and_connected, assert_instances, predictor

from masklab.config.recipe import load_recipe
from masklab.config.schema import validate
from masklab.datasets.split import Split
from masklab.model import masklab as masklab_module
from masklab.model.alternatives import FCISHead, MaskRCNNHead, part_table
from masklab.model.build import build_model
from masklab.model.cost import model_cost
from masklab.model.mask_head import logit_layer
from masklab.model.refinement import Refinement, SharedRefinement
from masklab.ops.crop import crop_and_resize
from masklab.ops.crop_channels import crop_channels
from masklab.ops.rois import Rois
from masklab.training.data.loader import InstanceDataset, collate
from masklab.training.step import TrainingStep
from masklab.utils.errors import InputError
from masklab.weights.checkpoint import load_model, save_model

MASK_RCNN = {"head": "mask_rcnn", "mask_size": 28, "refine_levels": []}
FCIS = {"head": "fcis", "mask_size": 15, "refine_levels": []}
SHARED = {"refinement": "shared", "refine_channels": 16}
VARIANTS = pytest.mark.parametrize("mask", [MASK_RCNN, FCIS, SHARED], ids=["mask_rcnn", "fcis", "shared"])


def variant(tiny_config, mask):
    values = tiny_config.model_dump()
    values["model"]["mask"] |= mask
    return validate(values, "test")


def build(tiny_config, classes, mask):
    torch.manual_seed(0)
    return build_model(variant(tiny_config, mask), classes)


def random_rois(count, images=2):
    generator = torch.Generator().manual_seed(2)
    first = torch.rand(count, 2, generator=generator) * 0.5
    return Rois(
        torch.cat([first, first + 0.1 + torch.rand(count, 2, generator=generator) * 0.4], dim=1),
        torch.randint(0, images, (count,), generator=generator),
    )


def drawn_batch(shapes, config, rows):
    """Images as they were drawn, with targets of the size that ``config`` asks for."""
    dataset = InstanceDataset(Split.find(shapes, "train"), config, augmented=False)
    return collate([dataset[row] for row in rows], 8)


def row_with_objects(shapes):
    split = Split.find(shapes, "train")
    return next(row for row in range(len(split)) if len(split.objects(row)) >= 3)


@VARIANTS
def test_an_image_without_boxes(tiny_config, classes, mask):
    model = build(tiny_config, classes, mask).eval()
    found = predictor(model).segment(np.zeros((3, 50, 60), np.uint8), np.zeros((0, 4)), np.zeros(0))
    assert len(found) == 0
    assert_instances(found, model)


@VARIANTS
@pytest.mark.parametrize("empty", [False, True])
def test_losses_are_finite_and_reach_every_parameter(shapes, tiny_config, classes, mask, empty):
    config = variant(tiny_config, mask)
    batch = drawn_batch(shapes, config, [row_with_objects(shapes)])
    if empty:
        none, target = torch.zeros(0, dtype=torch.long), batch.targets[0]
        target.boxes, target.masks, target.mask_boxes = target.boxes[:0], target.masks[:0], target.mask_boxes[:0]
        target.labels = target.mask_rows = none
    step = TrainingStep(build(tiny_config, classes, mask)).train()
    losses = step(batch, torch.Generator().manual_seed(0))
    assert {name for name in losses if name.startswith("mask")} == (
        {"mask_coarse", "mask_refined"} if mask is SHARED else {"mask_coarse"}
    )
    assert_finite_and_connected(losses, step)


@VARIANTS
def test_masks_of_one_image_are_learnt(shapes, tiny_config, classes, mask):
    """With annotated boxes, which is what the masks are trained on."""
    model = build(tiny_config, classes, mask).train()
    step, batch = TrainingStep(model), drawn_batch(shapes, model.config, [row_with_objects(shapes)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for seed in range(40):
        losses = step._mask_losses(model.backbone(batch.images), batch, [torch.Generator().manual_seed(seed)])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    for name in history[0]:
        assert history[-1][name] < 0.4 * history[0][name], name


@VARIANTS
def test_save_load_predict(tiny_config, classes, mask, tmp_path):
    model = build(tiny_config, classes, mask).eval()
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    image = np.random.default_rng(0).integers(0, 255, (3, 70, 90), dtype=np.uint8)
    found, expected = predictor(again).predict(image), predictor(model).predict(image)
    assert_instances(found, again)
    assert found.masks.shape[1:] == (again.config.model.mask.mask_size,) * 2
    np.testing.assert_allclose(found.masks, expected.masks, atol=1e-5)


@VARIANTS
def test_boxes_in_chunks_equal_boxes_at_once(tiny_config, classes, mask, monkeypatch):
    """And what is made once an image is made once, however many chunks there are."""
    model = build(tiny_config, classes, mask).eval()
    corners = torch.rand(9, 2) * 40
    boxes = torch.cat([corners, corners + 5 + torch.rand(9, 2) * 40], dim=1).numpy()
    labels, image = np.arange(9) % 3, np.random.default_rng(0).integers(0, 255, (3, 90, 90), dtype=np.uint8)
    whole = predictor(model).segment(image, boxes, labels)
    calls = []
    (model.refinement.mix if mask is SHARED else model.mask_head).register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(masklab_module, "BOXES_AT_ONCE", 2)
    np.testing.assert_allclose(predictor(model).segment(image, boxes, labels).masks, whole.masks, atol=1e-5)
    assert len(calls) == 1


@VARIANTS
def test_bf16_keeps_the_logit_in_float32(tiny_config, classes, mask):
    model = build(tiny_config, classes, mask).eval()
    rois, labels = random_rois(4, images=1), torch.tensor([0, 1, 2, 0])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        features = model.backbone(torch.randn(1, 3, 97, 113))
        logits = model.mask_head.coarse_masks(model.mask_head(features.conv4), rois, labels)
        if model.refinement is not None:
            logits = model.refinement(logits, model.refinement.maps(features), rois)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_fcis_equals_crop_everything_then_select(memory):
    head = FCISHead(9, torch.nn.Identity(), 4, 3)
    maps = torch.randn(2, 3 * 2 * 49, 8, 7).to(memory_format=memory)
    rois, labels = random_rois(5), torch.tensor([2, 0, 1, 1, 2])
    fast, slow = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    everything = crop_and_resize(slow, rois, (9, 9))
    inside, outside = torch.zeros(5, 9, 9, dtype=torch.long), torch.zeros(5, 9, 9, dtype=torch.long)
    for r, label in enumerate(labels.tolist()):
        for i in range(9):
            for j in range(9):
                part = int((i + 0.5) / 9 * 7) * 7 + int((j + 0.5) / 9 * 7)
                inside[r, i, j] = label * 98 + part
                outside[r, i, j] = label * 98 + 49 + part
    expected = reference.select_channels(everything, inside) - reference.select_channels(everything, outside)
    found = head.coarse_masks(fast, rois, labels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad, atol=1e-5, rtol=0)
    # the original's softmax over the two sides
    probability = torch.stack([expected, torch.zeros_like(expected)]).softmax(dim=0)[0]
    torch.testing.assert_close(found.sigmoid(), probability)


def test_a_channel_for_each_sample_of_each_box():
    features, rois = torch.randn(2, 6, 9, 7), random_rois(60)
    channels = torch.randint(0, 6, (60, 41, 41))
    found = crop_channels(features, rois, (41, 41), channels)  # more than one chunk
    some = torch.tensor([0, 38, 39, 59])
    crops = crop_and_resize(features, Rois(rois.boxes[some], rois.batch_index[some]), (41, 41))
    expected = crops.gather(1, channels[some][:, None])[:, 0]
    torch.testing.assert_close(found[some], expected, atol=1e-5, rtol=0)


def test_parts_are_alike_and_symmetric():
    for crop in (15, 21, 41):
        table = part_table(crop)
        assert table.unique().tolist() == list(range(49))
        assert torch.equal(table.flip(0, 1), 48 - table)
        assert torch.equal(table // 7, (table % 7).t())
        assert (table[0].bincount() - crop / 7).abs().max() < 1
    assert part_table(14)[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]


def test_mask_rcnn_picks_the_labels_filter():
    """Equal to all classes' logits and then a choice."""
    torch.manual_seed(0)
    head = MaskRCNNHead(8, torch.nn.Identity(), 5, 6, 3)
    torch.nn.init.normal_(head.classes.bias)
    maps, rois, labels = head(torch.randn(2, 5, 9, 7)), random_rois(4), torch.tensor([1, 0, 2, 2])
    seen = []
    head.enlarge.register_forward_hook(lambda module, inputs, output: seen.append(output))
    found = head.coarse_masks(maps, rois, labels)
    everything = head.classes(seen[0].relu())
    assert everything.shape == (4, 3, 8, 8)
    torch.testing.assert_close(found, everything[torch.arange(4), labels], atol=1e-5, rtol=0)


def test_mask_rcnn_samples_lie_midway_between_the_two_they_become():
    """Through filters that copy, a ramp comes out as the mean of each pair of the mask's samples."""
    head = MaskRCNNHead(28, torch.nn.Identity(), 1, 1, 1)
    with torch.no_grad():
        for conv in head.convs:
            conv.weight.zero_()[..., 1, 1] = 1
        head.enlarge.weight.fill_(1)
        head.classes.weight.fill_(1)
    ramp = (torch.arange(9.0)[:, None] * 3 + torch.arange(11.0)).view(1, 1, 9, 11)
    rois = random_rois(6, images=1)
    found = head.coarse_masks(ramp, rois, torch.zeros(6, dtype=torch.long))
    expected = crop_and_resize(ramp, rois, (28, 28))
    pairs = torch.nn.functional.avg_pool2d(expected, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(found, pairs[:, 0], atol=1e-4, rtol=0)


def test_shared_refinement_starts_near_the_coarse_mask_and_passes_gradients_to_both(tiny_config, classes):
    model = build(tiny_config, classes, SHARED)
    features = model.backbone(torch.randn(2, 3, 97, 113))
    for level in features[:4]:
        level.retain_grad()
    coarse, rois = torch.randn(3, 15, 15, requires_grad=True), random_rois(3)
    refined = model.refinement(coarse, model.refinement.maps(features), rois)
    assert (refined - coarse).abs().max() < 0.5
    refined.square().sum().backward()
    assert (coarse.grad != 0).any()
    assert (features.conv1.grad != 0).any()
    assert (features.conv2.grad != 0).any()


def test_shared_maps_of_all_levels_lie_on_the_same_pixels():
    """The same ramp over the pixels on each level sums to a ramp on the finest level's grid."""
    shared = SharedRefinement(["conv2", "conv1"], {"conv1": 1, "conv2": 1}, 1)
    with torch.no_grad():
        for layer in (*shared.reduce, shared.mix):
            layer.weight.zero_()
            layer.weight[..., layer.kernel_size[0] // 2, layer.kernel_size[0] // 2] = 1
    conv1, conv2 = (torch.arange(0.0, 33, s).expand(1, 1, 32 // s + 1, -1) for s in (2, 4))
    (found,) = shared.maps(type("Levels", (), {"conv1": conv1, "conv2": conv2}))
    torch.testing.assert_close(found, 2 * conv1, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"head": "fcis"}, "head fcis has no refinement but refine_levels"),
        (
            {"head": "mask_rcnn", "mask_size": 41, "refine_levels": []},
            "head mask_rcnn doubles its crop but mask_size is 41",
        ),
    ],
)
def test_contradictions_are_refused_with_both_names(tiny_config, mask, message):
    with pytest.raises(InputError, match=message):
        variant(tiny_config, mask)


def test_cost_of_the_heads():
    """Mask R-CNN's on 14 x 14 x 256 and FCIS's 2 x 80 x 49 maps, worked out by hand for 800 x 1200."""
    cells, boxes = 100 * 150, 100

    def cost(mask):
        return model_cost(load_recipe("resnet101", {"model": {"mask": mask}}), 80, (800, 1200))

    found = cost(MASK_RCNN)
    assert found["mask maps"].macs == 2048 * 256 * cells
    per_box = 4 * 9 * 256 * 256 * 196 + 4 * 256 * 256 * 196 + 256 * 784
    assert found["coarse masks"].macs == pytest.approx(boxes * per_box)
    assert found["coarse masks"].parameters == 4 * (9 * 256 * 256 + 256) + (4 * 256 * 256 + 256) + 80 * 257
    found = cost(FCIS)
    assert found["mask maps"].macs == 2048 * 7840 * cells
    assert found["coarse masks"].parameters == 0
    found = cost({"refinement": "shared"})
    once = 400 * 600 * (64 * 64 + 9 * 64 * 16) + 200 * 300 * 256 * 64
    per_box = 41 * 41 * (9 * 17 * 16 + 4 * 9 * 16 * 16 + 16)
    assert found["refinement"].macs == pytest.approx(once + boxes * per_box)
    assert found["total"].parameters == sum(part.parameters for name, part in found.items() if name != "total")


REFINEMENTS = pytest.mark.parametrize("mask", [{}, SHARED], ids=["paper", "shared"])


@REFINEMENTS
def test_the_refined_loss_reaches_what_the_coarse_mask_is_made_of(shapes, tiny_config, classes, mask):
    step = TrainingStep(build(tiny_config, classes, mask)).train()
    batch = drawn_batch(shapes, step.model.config, [row_with_objects(shapes)])
    step(batch, torch.Generator().manual_seed(0))["mask_refined"].backward()
    branch = step.model.mask_head
    for layer in (branch.semantic, branch.direction, branch.coarse):
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().sum() > 0


def test_a_shared_refinement_that_adds_nothing_hands_its_gradient_on():
    refinement = SharedRefinement(["conv1"], {"conv1": 3}, 16)
    torch.nn.init.zeros_(refinement.predict.weight)
    coarse, slope = torch.randn(4, 7, 7, requires_grad=True), torch.randn(4, 7, 7)
    refinement(coarse, [torch.randn(2, 16, 9, 9)], random_rois(4)).backward(slope)
    assert torch.equal(coarse.grad, slope)


@REFINEMENTS
def test_the_refinement_sees_the_logit_of_the_coarse_mask(shapes, tiny_config, classes, mask):
    """A coarse logit of 4 everywhere, and a refinement that only hands it on."""
    model = build(tiny_config, classes, mask)
    branch, refinement = model.mask_head, model.refinement
    with torch.no_grad():
        for layer in (branch.semantic, branch.direction):
            layer.weight.zero_()
        branch.semantic.bias.fill_(8)  # a half of it counts
        refinement.predict.weight.zero_()
        if mask is not SHARED:
            for conv in refinement.convs:
                conv.weight.zero_()[0, 0, 2, 2] = 1
            refinement.predict.weight[0, 0] = 1
    image = np.random.default_rng(0).integers(0, 255, (3, 90, 90), dtype=np.uint8)
    found = predictor(model).segment(image, np.array([[10.0, 20, 50, 60]]), np.array([1]))
    np.testing.assert_allclose(found.masks, torch.tensor(4.0).sigmoid().expand(1, 15, 15), atol=1e-4)
    batch = drawn_batch(shapes, model.config, [row_with_objects(shapes)])
    batch.targets[0].masks.fill_(1)
    batch.targets[0].labels.clamp_(max=2)
    losses = TrainingStep(model).train()(batch, torch.Generator().manual_seed(0))
    for name in ("mask_coarse", "mask_refined"):
        assert losses[name].item() == pytest.approx(np.log1p(np.exp(-4)), abs=1e-4), name


def test_the_papers_refinement_sees_every_channel_of_its_levels_and_the_coarse_logit():
    """A gradient comes back to each of them."""
    refinement = Refinement(["conv1", "conv2"], {"conv1": 3, "conv2": 5}, 8)
    levels = [torch.randn(2, channels, 9, 9, requires_grad=True) for channels in (3, 5)]
    coarse = torch.randn(4, 7, 7, requires_grad=True)
    refinement(coarse, levels, random_rois(4)).square().sum().backward()
    assert (coarse.grad != 0).flatten(1).any(dim=1).all()
    for level in levels:
        assert (level.grad.abs().sum(dim=(0, 2, 3)) > 0).all()


def test_layers_begin_as_the_paper_s_library_and_kaiming_s_rule_have_it():
    torch.manual_seed(0)
    layer = logit_layer(400, 100)
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert layer.bias is not None
    assert layer.bias.abs().max() == 0
    head = MaskRCNNHead(28, torch.nn.Identity(), 64, 64, 2)
    for conv in head.convs:
        assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)  # He et al., for ReLU


def test_shared_refinement_s_filters_see_ever_wider():
    layers = SharedRefinement(["conv2"], {"conv2": 8}, 8).convs
    assert [(conv.kernel_size, conv.dilation) for conv in layers] == [((3, 3), (d, d)) for d in (1, 2, 4, 8, 1)]
