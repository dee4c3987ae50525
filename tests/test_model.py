import numpy as np
import pytest
import torch
from contracts import assert_instances, changed, predictor
from PIL import Image
from reference import paste, tf_positions
from torchvision.ops import nms

from masklab.config.model import RPNConfig
from masklab.config.recipe import load_recipe, recipe_names
from masklab.config.schema import validate
from masklab.model.build import build_model
from masklab.model.cost import model_cost
from masklab.model.rpn import RPN, RPNOutput
from masklab.ops.boxes import clip, decode
from masklab.ops.crop import crop_and_resize
from masklab.ops.rois import Rois
from masklab.results.instances import Instances
from masklab.utils.errors import InputError


@pytest.fixture
def model(tiny_config, classes):
    torch.manual_seed(0)
    return build_model(tiny_config, classes).eval()


def images(count=2, height=97, width=113):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def sizes(*pairs):
    return torch.tensor(pairs)


def test_anchors_are_centred_on_cells():
    rpn = RPN(RPNConfig(anchor_sizes=[16, 32], anchor_ratios=[0.25, 1, 4]), 8, 8)
    anchors = rpn.anchors(2, 3, torch.device("cpu")).view(2, 3, 6, 4)
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    assert (centres[1, 2] == torch.tensor([16.5, 8.5])).all()
    sides = (anchors[..., 2:] - anchors[..., :2])[0, 0]
    assert sides.tolist() == [[8, 32], [16, 16], [32, 8], [16, 64], [32, 32], [64, 16]]


def test_anchors_of_one_row_are_centred_on_its_pixels():
    rpn = RPN(RPNConfig(), 8, 8)
    anchors = rpn.anchors(1, 2, torch.device("cpu"))
    assert (anchors[-1, :2] + anchors[-1, 2:]).tolist() == [17, 1]


def test_proposals_are_the_best_boxes_that_survive_suppression():
    rpn = RPN(RPNConfig(proposals_test=5, pre_nms_test=50), 8, 8).eval()
    anchors = rpn.anchors(3, 4, torch.device("cpu"))
    output = RPNOutput(torch.randn(2, len(anchors), 2), torch.randn(2, len(anchors), 4), anchors)
    found = rpn.propose(output, sizes((40, 50), (20, 30)))
    assert found.boxes.shape == (2, 5, 4)
    for image, (height, width) in enumerate([(40, 50), (20, 30)]):
        boxes = found.boxes[image, : found.num_valid[image]]
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        assert len(nms(boxes, torch.arange(len(boxes), 0, -1).float(), 0.7)) == len(boxes)


def test_only_what_may_be_an_object_is_proposed():
    """With a threshold, the proposals are those without it as far as their objectness is above; training has none."""
    torch.manual_seed(3)
    settings = {"anchor_sizes": [6, 10], "drop_crossing_anchors": False, "pre_nms_test": 200}
    rpn = RPN(RPNConfig(proposals_test=60, proposals_train=60, **settings), 8, 8)
    anchors = rpn.anchors(5, 6, torch.device("cpu"))
    output = RPNOutput(torch.randn(2, len(anchors), 2), torch.randn(2, len(anchors), 4) / 10, anchors)
    limits, image = sizes((40, 48), (40, 48)), [0, 1]
    everything, in_training = rpn.eval().propose(output, limits), rpn.train().propose(output, limits)
    probability = output.objectness.softmax(dim=-1)[..., 1]
    rpn.config = rpn.config.model_copy(update={"score_threshold": 0.8})
    found = rpn.eval().propose(output, limits)
    wanted = []
    for n in image:
        boxes = clip(decode(output.deltas[n], anchors), limits[n])
        likely = boxes[probability[n] > 0.8]
        kept = everything.boxes[n, : everything.num_valid[n]]
        wanted.append(kept[(kept[:, None] == likely).all(dim=-1).any(dim=-1)])
        assert 0 < len(wanted[n]) < len(kept)
        assert torch.equal(found.boxes[n, : found.num_valid[n]], wanted[n])
    assert found.num_valid.tolist() == [len(boxes) for boxes in wanted]
    assert found.boxes.shape[1] == max(len(boxes) for boxes in wanted)
    assert torch.equal(rpn.train().propose(output, limits).boxes, in_training.boxes)


def test_an_image_in_which_nothing_is_proposed(tiny_config, classes):
    model = build_model(tiny_config, classes).eval()
    model.rpn.config = model.rpn.config.model_copy(update={"score_threshold": 0.999999})
    with torch.no_grad():
        found = model(torch.randn(2, 3, 65, 65), sizes((65, 65), (65, 65)))
    assert found.num_valid.tolist() == [0, 0]


def test_the_best_anchors_are_taken_before_suppression_and_each_mode_has_its_cap():
    """Three anchors in one place have the best scores; only where a fourth is taken do others get their turn."""
    same, apart = [0.0, 0, 16, 16], [[20.0, 0, 36, 16], [0, 20, 16, 36], [20, 20, 36, 36]]
    anchors = torch.tensor([same, same, same, *apart])
    output = RPNOutput(
        torch.tensor([[0.0, 9], [0, 8], [0, 7], [0, 6], [0, 5], [0, 4]])[None], torch.zeros(1, 6, 4), anchors
    )
    for train, test in ((3, 5), (5, 3)):
        rpn = RPN(RPNConfig(pre_nms_train=train, pre_nms_test=test), 8, 8)
        assert rpn.train().propose(output, sizes((40, 40))).num_valid.tolist() == [train - 2]
        assert rpn.eval().propose(output, sizes((40, 40))).num_valid.tolist() == [test - 2]


def test_the_rpn_cuts_its_filters_at_nought_and_six():
    rpn = RPN(RPNConfig(channels=4, anchor_sizes=[16]), 8, 8)
    with torch.no_grad():
        for layer, bias in ((rpn.conv, torch.tensor([-3.0, 2, 6, 50])), (rpn.objectness, 0), (rpn.deltas, 0)):
            layer.weight.fill_(0.0 if layer is rpn.conv else 1.0)
            layer.bias.copy_(torch.as_tensor(bias))
        output = rpn(torch.randn(1, 8, 3, 3))
    assert (output.objectness == 0 + 2 + 6 + 6).all()
    assert (output.deltas == 0 + 2 + 6 + 6).all()


def test_detections_keep_their_promises(model):
    found = model(images(), sizes((97, 113), (80, 100)))
    cap = model.config.model.box.max_detections
    assert found.boxes.shape == (2, cap, 4)
    assert found.masks.shape == (2, cap, 15, 15)
    for n, (height, width) in enumerate([(97, 113), (80, 100)]):
        num_valid = torch.arange(cap) < found.num_valid[n]
        assert (found.scores[n][~num_valid] == 0).all()
        assert (found.masks[n][~num_valid] == 0).all()
        assert (found.boxes[n][num_valid][:, 2] <= width).all()
        assert (found.boxes[n][num_valid][:, 3] <= height).all()
        assert (found.scores[n][num_valid].diff() <= 0).all()


def test_a_batch_of_two_equals_two_singles(model):
    batch, both = images(), sizes((97, 113), (97, 113))
    with torch.no_grad():
        together = model(batch, both)
        for n in range(2):
            alone = model(batch[n : n + 1], both[n : n + 1])
            count = int(alone.num_valid[0])
            assert together.num_valid[n] == count
            torch.testing.assert_close(together.boxes[n, :count], alone.boxes[0, :count], atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(together.masks[n, :count], alone.masks[0, :count], atol=1e-3, rtol=1e-3)


def test_no_detections(model):
    with torch.no_grad():
        model.box_head.classes.bias.copy_(torch.tensor([-50.0, -50, -50, 50]))
        found = model(images(1), sizes((97, 113)))
    assert found.num_valid.tolist() == [0]
    assert found.masks.shape == (1, 20, 15, 15)


def test_coarse_mask_starts_as_half_semantic_plus_direction(model):
    branch, features = model.mask_head, model.backbone(images(1))
    logits = branch(features.conv4)
    boxes = model.rois(torch.tensor([[10.0, 20, 60, 70]]), torch.zeros(1, dtype=torch.long), images(1))
    label = torch.tensor([1])
    semantic = crop_and_resize(logits.semantic, boxes, (15, 15))[:, 1]
    crops = crop_and_resize(logits.direction, boxes, (15, 15))
    direction = crops.gather(1, branch.table[None, None])[:, 0]
    torch.testing.assert_close(branch.coarse_masks(logits, boxes, label), 0.5 * semantic + direction)
    branch.coarse.bias.data.fill_(0.25)
    torch.testing.assert_close(branch.coarse_masks(logits, boxes, label), 0.5 * semantic + direction + 0.25)


def test_hand_worked_coarse_value(model):
    from masklab.model.mask_head import MaskLogits

    logits = MaskLogits(torch.full((1, 3, 4, 4), 2.0), torch.full((1, 32, 4, 4), -1.0))
    box = Rois(torch.tensor([[0.0, 0, 1, 1]]), torch.zeros(1, dtype=torch.long))
    assert (model.mask_head.coarse_masks(logits, box, torch.tensor([0])) == 0).all()


@pytest.mark.parametrize(
    "mask",
    [
        {"semantic": False},
        {"direction": False},
        {"refine_levels": []},
        {"refine_levels": ["conv1", "conv2", "conv3"]},
        {"directions": 6, "distance_bins": 1, "distance_metric": "l2_corner"},
        {"dilations": [4, 8]},
    ],
)
def test_every_variant_of_the_mask_branch_runs(tiny_config, classes, mask):
    values = tiny_config.model_dump()
    values["model"]["mask"] |= mask
    found = build_model(validate(values, "test"), classes).eval()(images(1), sizes((97, 113)))
    assert found.masks.isfinite().all()


@pytest.mark.parametrize("coord_mode", ["exact", "tf"])
def test_crop_then_paste_gives_the_mask_back(coord_mode):
    """A smooth mask survives the round trip through its box."""
    height, width = 65, 97
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    smooth = torch.exp(-(((x - 40.3) / 14) ** 2 + ((y - 30.8) / 9) ** 2))
    box = torch.tensor([[12.3, 10.7, 70.1, 50.2]])
    if coord_mode == "tf":
        box = torch.from_numpy(tf_positions(box.numpy(), (height, width))).float()
    where = Rois.from_pixels(box, torch.zeros(1, dtype=torch.long), (height, width))
    crop = crop_and_resize(smooth[None, None], where, (41, 41))[:, 0]
    pasted = paste(crop.numpy(), box.numpy(), (height, width))
    x1, y1, x2, y2 = pasted.boxes[0]
    np.testing.assert_allclose(pasted.region(0), smooth[y1:y2, x1:x2].numpy(), atol=0.01)


def test_predict_takes_any_kind_of_image(model, tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (3, 70, 90), dtype=np.uint8)
    image = Image.fromarray(values.transpose(1, 2, 0))
    image.save(tmp_path / "image.png")
    results = predictor(model).predict(
        [tmp_path / "image.png", str(tmp_path / "image.png"), image, values, torch.tensor(values)], batch_size=1
    )
    for found in results:
        assert isinstance(found, Instances)
        assert found.size == (70, 90)
        assert_instances(found, model)
        np.testing.assert_array_equal(found.boxes, results[0].boxes)
    assert len(predictor(model).predict(image)) == len(results[0])


def test_predict_takes_any_view_of_an_array(model):
    values = np.random.default_rng(0).integers(0, 65535, (3, 40, 50), dtype=np.uint16)
    expected = predictor(model).predict(values)
    blue_first_channels_last = np.ascontiguousarray(values[::-1].transpose(1, 2, 0))
    for view in (blue_first_channels_last[..., ::-1].transpose(2, 0, 1), values.astype(">u2")):
        np.testing.assert_array_equal(predictor(model).predict(view).boxes, expected.boxes)


def test_segment_answers_for_the_boxes_it_is_given(model):
    image = np.random.default_rng(0).integers(0, 255, (3, 70, 90), dtype=np.uint8)
    found = predictor(model).predict(image)
    again = predictor(model).segment(image, found.boxes, found.labels)
    np.testing.assert_allclose(again.boxes, found.boxes, atol=1e-3)
    np.testing.assert_allclose(again.masks, found.masks, atol=1e-3)
    assert len(predictor(model).segment(image, np.zeros((0, 4)), np.zeros(0))) == 0


def test_predict_leaves_the_training_mode_alone(model):
    model.train()
    predictor(model).predict(np.zeros((3, 40, 40), np.uint8))
    assert model.training


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((3, 40, 40), np.int64),
        np.zeros((2, 40, 40), np.uint8),
        np.zeros((40, 40), np.uint8),
        np.zeros((3, 0, 40), np.uint8),
    ],
)
def test_predict_refuses_other_values(model, values):
    with pytest.raises(InputError, match="must be uint8, uint16 or float32 of shape"):
        predictor(model).predict(values)


def test_predict_at_another_scale_answers_in_the_images_own_pixels(tiny_config, classes):
    values = tiny_config.model_dump()
    values["image"]["scale"] = 2.0
    model = build_model(validate(values, "test"), classes).eval()
    found = predictor(model).predict(np.random.default_rng(0).integers(0, 255, (3, 30, 50), dtype=np.uint8))
    assert_instances(found, model)


def test_predict_images_smaller_than_a_cell(model):
    assert_instances(predictor(model).predict(np.full((3, 1, 3), 128, np.uint8)), model)


def test_flipping_the_image_mirrors_the_direction_table(model):
    """Feature maps of a mirrored image, read through the mirrored table, give the mirrored mask."""
    table = model.mask_head.table
    features = torch.randn(1, 32, 9, 9)
    middle = Rois(torch.tensor([[0.1, 0.2, 0.9, 0.8]]), torch.zeros(1, dtype=torch.long))
    from masklab.ops.crop_channels import crop_channels

    plain = crop_channels(features, middle, (15, 15), table)
    hflip = crop_channels(features.flip(3), middle, (15, 15), table.flip(1).contiguous())
    torch.testing.assert_close(hflip, plain.flip(2), atol=1e-5, rtol=0)


DEFORMABLE = {"model": {"box": {"deformable": "grid"}}}


def test_cost_of_the_papers_model():
    """Parameters and multiply-adds of ResNet-101 at output stride 8 on 800 x 1200, with deformable crops."""
    costs = model_cost(load_recipe("resnet101", DEFORMABLE), 80, (800, 1200))
    expected = {
        "conv1-conv3": (1.445, 34.7),
        "conv4": (26.090, 390.3),
        "mask conv5": (14.965, 224.1),
        "mask maps": (0.230, 3.4),
        "region proposal network": (4.765, 71.5),
        "box head conv5": (14.965, 219.7),
        "deformable crop offsets": (4.917, 1.5),
        "refinement": (0.719, 120.8),
    }
    for part, (parameters, macs) in expected.items():
        assert costs[part].parameters / 1e6 == pytest.approx(parameters, rel=0.01), part
        assert costs[part].macs / 1e9 == pytest.approx(macs, rel=0.01, abs=0.05), part
    assert costs["box head linear"].parameters / 1e6 == pytest.approx(0.822, rel=0.01)
    assert costs["total"].parameters / 1e6 == pytest.approx(68.92, rel=0.01)
    assert costs["total"].macs / 1e9 == pytest.approx(1066, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "size", "parameters", "macs"),
    [
        ({"backbone": {"output_stride": 16}}, (800, 1200), 68.92, 551),
        ({"box": {"deformable": None}, "rpn": {"anchor_sizes": [64, 128, 256, 512]}}, (600, 1024), 63.99, 804),
        ({"box": {"deformable": "cell", "max_detections": 300}}, (800, 1200), 68.92, 1308),
    ],
)
def test_cost_of_variants(changes, size, parameters, macs):
    total = model_cost(load_recipe("resnet101", {"model": {**DEFORMABLE["model"], **changes}}), 80, size)["total"]
    assert total.parameters / 1e6 == pytest.approx(parameters, rel=0.01)
    assert total.macs / 1e9 == pytest.approx(macs, rel=0.01)


def test_every_recipe_is_valid_and_described():
    for name in recipe_names():
        load_recipe(name)


def test_a_wrong_class_count_is_refused(tiny_config, classes):
    values = tiny_config.model_dump()
    values["model"]["num_classes"] = 7
    with pytest.raises(InputError, match="num_classes is 7 but the data has 3"):
        build_model(validate(values, "test"), classes)


def test_each_mask_is_read_from_the_channel_of_its_class(tiny_config, classes):
    """Semantic logits that are the same everywhere, but of each class others, and no other evidence."""
    torch.manual_seed(0)
    model = build_model(changed(tiny_config, model={"mask": {"refine_levels": []}}), classes).eval()
    values = torch.tensor([-6.0, 1.0, 4.0])
    for layer in (model.mask_head.semantic, model.mask_head.direction):
        torch.nn.init.zeros_(layer.weight)
    model.mask_head.semantic.bias.data.copy_(values)
    labels = torch.tensor([2, 0, 1, 1, 2])
    boxes = np.array([[5.0 * k, 3.0 * k, 30 + 5 * k, 40 + 3 * k] for k in range(5)])
    given = predictor(model).segment(np.zeros((3, 70, 90), np.uint8), boxes, labels.numpy())
    wanted = (values[labels] / 2).sigmoid()
    np.testing.assert_allclose(given.masks, wanted[:, None, None].expand(-1, 15, 15), atol=1e-5)
    found = model(images(), sizes((97, 113), (97, 113)))
    for n, count in enumerate(found.num_valid.tolist()):
        labels = found.labels[n, :count]
        assert len(labels.unique()) > 1
        wanted = (values[labels] / 2).sigmoid()[:, None, None].expand(-1, 15, 15)
        torch.testing.assert_close(found.masks[n, :count], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("from_imagenet", [True, False])
def test_the_box_classifier_starts_from_the_backbones_conv5_if_asked(tiny_config, classes, from_imagenet):
    torch.manual_seed(0)
    model = build_model(changed(tiny_config, model={"box": {"from_imagenet": from_imagenet}}), classes)
    ours, theirs = (head.conv5.state_dict() for head in (model.box_head, model.mask_head))
    same = [torch.equal(ours[name], theirs[name]) for name in ours if "conv" in name and name.endswith("weight")]
    assert len(same) == 4
    assert all(same) if from_imagenet else not any(same)


@pytest.mark.parametrize(
    ("mask", "right", "upper_left"),
    [
        ({}, 3 * 8 + 4, 2 * 8 + 7),
        ({"directions": 4}, 3 * 4 + 2, 2 * 4 + 3),
        ({"distance_bins": 2}, 1 * 8 + 4, 1 * 8 + 7),
        ({"distance_metric": "l2_side"}, 3 * 8 + 4, 3 * 8 + 7),
        ({"distance_metric": "l2_corner"}, 2 * 8 + 4, 2 * 8 + 7),
        ({"start_degrees": 22.5}, 3 * 8 + 3, 2 * 8 + 6),
        ({"start_degrees": -45.0}, 3 * 8 + 5, 2 * 8 + 0),
    ],
)
def test_the_mask_branch_reads_the_directions_that_it_is_built_for(tiny_config, classes, mask, right, upper_left):
    """Each channel says its own number; of a 15 x 15 mask, the middle of the right side sees the centre to its left,
    and a place five samples above and left of the centre sees it down to the right."""
    branch = build_model(changed(tiny_config, model={"mask": mask}), classes).mask_head
    with torch.no_grad():
        branch.semantic.weight.zero_()
        branch.direction.weight.zero_()
        branch.direction.bias.copy_(torch.arange(len(branch.direction.bias)))
        box = Rois(torch.tensor([[0.2, 0.1, 0.7, 0.8]]), torch.zeros(1, dtype=torch.long))
        logits = branch(torch.randn(1, 64, 13, 15))
        found = branch.coarse_masks(logits, box, torch.tensor([1]))[0]
    assert (float(found[7, 14]), float(found[2, 2])) == pytest.approx((right, upper_left), abs=1e-3)


GRID = {"box": {"deformable": "grid"}}
SWITCHES = [
    ({}, {"rpn": {"dilation": 1}}, {"rpn"}),
    ({}, {"rpn": {"anchor_sizes": [16, 24, 48]}}, {"rpn"}),
    ({}, {"rpn": {"anchor_ratios": [0.5, 1, 3]}}, {"rpn"}),
    ({}, {"box": {"dilations": [1, 2]}}, {"box"}),
    ({}, {"box": {"roi_size": 8}}, {"box"}),
    ({}, {"box": {"from_imagenet": False}}, {"box"}),
    ({}, GRID, {"box"}),
    (GRID, {"box": {"deformable": "cell"}}, {"box"}),
    (GRID, {"box": {"deformable_scale": 0.2}}, {"box"}),
    ({}, {"mask": {"dilations": [2, 4]}}, {"coarse", "refined"}),
    ({}, {"mask": {"semantic": False}}, {"coarse", "refined"}),
    ({}, {"mask": {"direction": False}}, {"coarse", "refined"}),
    ({}, {"mask": {"directions": 4}}, {"coarse", "refined"}),
    ({}, {"mask": {"distance_bins": 2}}, {"coarse", "refined"}),
    ({}, {"mask": {"distance_metric": "l2_corner"}}, {"coarse", "refined"}),
    ({}, {"mask": {"start_degrees": 22.5}}, {"coarse", "refined"}),
    ({}, {"mask": {"refine_levels": ["conv1"]}}, {"refined"}),
    ({}, {"mask": {"refine_levels": ["conv2", "conv1"]}}, {"refined"}),
    ({}, {"mask": {"refinement": "shared"}}, {"refined"}),
    ({}, {"backbone": {"output_stride": 16}}, {"rpn", "box", "coarse", "refined"}),
]


def parts(config, classes, weights=None):
    """What each part of a model makes of one image and three boxes, and the weights it does so with."""
    torch.manual_seed(0)
    model = build_model(config, classes).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.GroupNorm):  # a fresh network's units add nothing
            torch.nn.init.ones_(part.weight)
    if model.box_head.offsets is not None:
        torch.nn.init.normal_(model.box_head.offsets.weight, std=0.1)
    if weights is not None:
        own = model.state_dict()
        fitting = {n: v for n, v in weights.items() if n in own and own[n].shape == v.shape}
        if not config.model.box.from_imagenet:
            fitting = {n: v for n, v in fitting.items() if not n.startswith("box_head.conv5")}
        model.load_state_dict(fitting, strict=False)
    boxes, image = torch.tensor([[8.0, 9, 60, 70], [30, 20, 100, 60], [1, 2, 111, 95]]), images(1)
    with torch.no_grad():
        features = model.backbone(image)
        rois = model.rois(boxes, torch.zeros(3, dtype=torch.long), image)
        rpn, box = model.rpn(features.conv4), model.box_head(features.conv4, rois)
        coarse = model.mask_head.coarse_masks(model.mask_head(features.conv4), rois, torch.tensor([0, 1, 2]))
        refined = model.refinement(coarse, model.refinement.maps(features), rois)
    found = {"rpn": torch.cat([rpn.deltas[0], rpn.anchors], dim=1), "box": box.classes}
    return found | {"coarse": coarse, "refined": refined}, model.state_dict()


@pytest.mark.parametrize(("base", "switch", "changes"), SWITCHES)
def test_a_switch_changes_the_part_it_is_for_and_no_other(tiny_config, classes, base, switch, changes):
    """With the same weights in every layer that is of the same shape."""
    config = changed(tiny_config, model=base)
    without, weights = parts(config, classes)
    again, _ = parts(config, classes, weights)
    found, _ = parts(changed(config, model=switch), classes, weights)
    same = lambda a, b: a.shape == b.shape and torch.allclose(a, b, atol=1e-5)  # noqa: E731
    assert {name for name in found if not same(again[name], without[name])} == set()
    assert {name for name in found if not same(found[name], without[name])} == changes
