"""Every recipe is what the paper's row says: its figures, what it is made of, and that it trains."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from contracts import assert_finite_and_connected, fails
from torch import nn

from masklab.cli.app import main
from masklab.config.migrate import _RENAMED_FIELDS
from masklab.config.nested import merge
from masklab.config.recipe import load_recipe, read_recipe, recipe_names
from masklab.config.schema import validate
from masklab.model.alternatives import FCISHead, MaskRCNNHead
from masklab.model.build import build_model
from masklab.model.refinement import Refinement, SharedRefinement
from masklab.paper.tables import MODELS, TABLES, table_rows
from masklab.structures import Batch, ClassTable, Targets
from masklab.training.step import TrainingStep
from masklab.utils.errors import InputError
from masklab.weights.segmentation import initial_model

# AP50 and AP75 of masks on minival, from the paper's Tables 1 to 6 and, for os16, section 4.2
FIGURES = {
    "table1-21": (50.92, None),
    "table1-41": (51.29, None),
    "table1-81": (51.17, None),
    "table1-161": (51.36, None),
    "table1-321": (51.24, None),
    "table2-semantic": (48.41, 24.44),
    "table2-direction": (50.21, 27.40),
    "table2-both": (51.83, 29.72),
    "table2-both-4bins": (52.26, 30.57),
    "table3-2": (53.51, 33.80),
    "table3-4": (53.85, 34.39),
    "table3-6": (54.10, 34.86),
    "table3-8": (54.13, 34.82),
    "table4-none": (52.26, 30.57),
    "table4-conv1": (52.68, 32.92),
    "table4-conv12": (53.26, 33.89),
    "table4-conv123": (52.55, 32.88),
    "table5-444-111": (None, 34.82),
    "table5-444-121": (None, 35.59),
    "table5-444-124": (None, 35.35),
    "table5-484-111": (None, 35.07),
    "table5-484-121": (None, 35.60),
    "table5-484-124": (None, 35.78),
    "table5-4816-111": (None, 34.89),
    "table5-4816-121": (None, 35.43),
    "table5-4816-124": (None, 35.51),
    "table6-base": (53.26, 33.89),
    "table6-bc": (54.13, 34.82),
    "table6-seg": (55.03, 35.91),
    "table6-mg": (55.64, 36.65),
    "table6-anc": (57.44, 37.57),
    "table6-dc": (58.69, 38.61),
    "table6-rs": (60.55, 40.41),
    "table6-os16": (None, 38.61),
    "table6-jft": (61.80, 41.59),
}
# mask and box AP, AP50, AP75, APs, APm, APl on test-dev, from Tables 7 and 8
TEST_DEV = {
    "masklab": ([35.4, 57.4, 37.4, 16.9, 38.3, 49.2], [39.6, 60.2, 43.3, 21.2, 42.7, 52.4]),
    "masklab-plus": ([37.3, 59.8, 39.6, 19.1, 40.5, 50.6], [41.9, 62.6, 46.0, 23.8, 45.5, 54.2]),
    "masklab-plus-jft": ([38.1, 61.1, 40.4, 19.6, 41.6, 51.4], [43.0, 63.9, 47.1, 24.8, 46.7, 55.2]),
}
FULL = (*FIGURES, *TEST_DEV, *TABLES["heads"].rows, *TABLES["refinement"].rows)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_the_papers(name):
    paper = read_recipe(name).paper
    ap50, ap75 = FIGURES[name]
    assert paper["mask"] == {k: v for k, v in (("AP50", ap50), ("AP75", ap75)) if v is not None}
    assert (f"table{paper['table']}", paper["split"]) == (name.split("-")[0], "minival")


@pytest.mark.parametrize("name", TEST_DEV)
def test_test_dev_figures_are_the_papers(name):
    paper = read_recipe(name).paper
    assert [*paper["mask"]] == [*paper["box"]] == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert ([*paper["mask"].values()], [*paper["box"].values()]) == TEST_DEV[name]


def test_every_row_is_in_its_table_and_nothing_else_is():
    rows = [row for table in TABLES.values() for row in table.rows]
    assert len(rows) == len(set(rows))
    assert set(rows) == {n for n in recipe_names() if n.startswith(("table", "heads-", "refinement-"))}
    assert {row for row in rows if row.startswith("table")} == set(FIGURES)
    assert set(MODELS.rows) == set(TEST_DEV)


@pytest.mark.parametrize("table", TABLES)
def test_changes_over_the_tables_start_are_the_row(table):
    rows = table_rows(table)
    assert len({row.start for row in rows}) == 1
    for row in rows:
        start = load_recipe(row.start).model_dump()
        assert validate(merge(start, row.changes), "test") == load_recipe(row.name), row.name


@pytest.mark.parametrize("name", FULL)
def test_the_schedule_is_the_papers(name):
    train = load_recipe(name).train
    assert (train.steps * train.batch_size, train.learning_rate / train.batch_size) == (1_500_000, 3e-4)
    assert [round(share * train.steps) for share in train.milestones] == [900_000, 1_200_000]
    assert (train.optimizer, train.momentum, train.weight_decay) == ("sgd", 0.9, 0.0)
    assert (train.schedule, train.clip_norm, train.clip_by, train.warmup_steps) == ("step", 10.0, "parameter", 0)


def made_of(name):
    """What the paper says a row is made of: the common starting point, with what its table's row changes."""
    bc = {
        "semantic": True,
        "directions": 8,
        "bins": 4,
        "crop": 41,
        "refine": ["conv1", "conv2"],
        "mask_rates": [4, 4, 4],
    }
    bc |= {"box_rates": [1, 1, 1], "anchors": [64, 128, 256, 512], "sides": (600, 1024), "stride": 8, "rpn_rate": 2}
    bc |= {"bc": True, "seg": False, "deformable": False, "scales": None, "head": "masklab", "shared": False}
    table, _, row = name.partition("-")
    if table == "table1":
        return bc | {"bc": False, "refine": [], "bins": 1, "crop": int(row)}
    if table == "table2":
        change = {"semantic": {"directions": 0}, "direction": {"semantic": False, "bins": 1}, "both": {"bins": 1}}
        return bc | {"bc": False, "refine": []} | change.get(row, {})
    if table == "table3":
        return bc | {"directions": int(row)}
    if table == "table4":
        return bc | {"bc": False, "refine": [f"conv{n}" for n in row.removeprefix("conv")] if row != "none" else []}
    if table == "table5":
        mask, box = row.split("-")
        return bc | {
            "mask_rates": [4, 8, 16] if mask == "4816" else list(map(int, mask)),
            "box_rates": list(map(int, box)),
        }
    if table == "heads":
        other = {"refine": [], "crop": 28 if row == "mask_rcnn" else 41}
        return bc | ({} if row == "masklab" else other | {"head": "masklab" if row == "unrefined" else row})
    if table == "refinement":
        return bc | {"shared": row == "shared"}
    row = {"masklab": "dc", "masklab-plus": "rs", "masklab-plus-jft": "jft"}.get(name, row)
    parts = ["base", "bc", "seg", "mg", "anc", "dc", "rs"]
    have = parts[: parts.index(row) + 1] if row in parts else parts
    made = bc | {"bc": "bc" in have, "seg": "seg" in have, "deformable": "dc" in have}
    made |= {"mask_rates": [4, 8, 4], "box_rates": [1, 2, 4]} if "mg" in have else {}
    made |= {"anchors": [32, 64, 128, 256, 512], "sides": (800, 1200)} if "anc" in have else {}
    made |= {"scales": [480, 576, 688, 800, 930]} if "rs" in have else {}
    return made | ({"stride": 16, "rpn_rate": 1, "mask_rates": [2, 4, 2]} if row == "os16" else {})


def dilations(conv5):
    convs = [part for part in conv5.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)]
    assert all(conv.padding == conv.dilation and conv.stride == (1, 1) for conv in convs)
    return [conv.dilation[0] for conv in convs]


@pytest.mark.parametrize("name", FULL)
def test_a_row_is_made_of_what_the_paper_says(name):
    expected, config = made_of(name), load_recipe(name)
    assert config.model.backbone.name.split("_")[0] == ("resnext101" if "jft" in name else "resnet101.tv")
    config = load_recipe(name, {"model": {"backbone": {"name": "resnet50"}}})  # as ResNet-101, and sooner built
    with torch.device("meta"):
        model = build_model(config, ClassTable(tuple(range(80)), tuple(map(str, range(80)))), load_pretrained=False)
    head = model.mask_head
    assert dilations(head.conv5) == expected["mask_rates"]
    assert dilations(model.box_head.conv5) == expected["box_rates"]
    assert model.rpn.conv.dilation == (expected["rpn_rate"],) * 2
    assert model.rpn.objectness.out_channels == 2 * 3 * len(expected["anchors"])
    assert config.model.rpn.anchor_sizes == expected["anchors"]
    assert model.stride == model.backbone.strides["conv4"] == model.backbone.strides["conv5"] == expected["stride"]
    assert (model.box_head.offsets is not None) is expected["deformable"]
    assert config.model.box.roi_size == 14
    assert config.model.box.from_imagenet is expected["bc"]
    assert (config.model.backbone.segmentation_weights is not None) is expected["seg"]
    assert (config.image.min_side, config.image.max_side) == expected["sides"]
    assert config.image.augment.min_sides == expected["scales"]
    assert config.model.mask.mask_size == expected["crop"]
    assert type(model.refinement) is (
        type(None) if not expected["refine"] else SharedRefinement if expected["shared"] else Refinement
    )
    if expected["refine"]:
        assert model.refinement.levels == expected["refine"]
        filters = [16] * 5 if expected["shared"] else [64] * 3
        assert [conv.out_channels for conv in model.refinement.convs] == filters
    if expected["head"] != "masklab":
        assert type(head) is {"mask_rcnn": MaskRCNNHead, "fcis": FCISHead}[expected["head"]]
        return
    assert (head.semantic.out_channels if head.semantic else 0) == 80 * expected["semantic"]
    assert (head.direction.out_channels if head.direction else 0) == expected["directions"] * expected["bins"]
    assert tuple(head.table.shape) == (expected["crop"],) * 2


@cache
def losses_after_a_step(model_json):
    """One step of a tenth of the width on two drawn images, one of them empty; shared by recipes of one model."""
    config = validate({"model": json.loads(model_json)}, "test")
    torch.manual_seed(0)
    step = TrainingStep(build_model(config, ClassTable((1, 2), ("a", "b")), load_pretrained=False)).train()
    crop, boxes = config.model.mask.mask_size, torch.tensor([[10.0, 20, 60, 90], [50.0, 30, 110, 80]])
    masks, none = torch.rand(2, crop, crop), torch.zeros(0, 4)
    objects = Targets(boxes, torch.tensor([0, 1]), masks, boxes, torch.arange(2), none)
    empty = Targets(none, torch.zeros(0, dtype=torch.long), masks[:0], none, torch.arange(0), none)
    batch = Batch(torch.randn(2, 3, 97, 113), torch.tensor([[97, 113]] * 2), [objects, empty], [0, 1])
    optimizer = torch.optim.SGD([p for p in step.parameters() if p.requires_grad], lr=1e-4)
    losses = step(batch)
    assert_finite_and_connected(losses, step)
    optimizer.step()
    assert all(loss.isfinite() for loss in step(batch).values())
    return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_takes_a_training_step(name):
    config = load_recipe(name)
    network = config.model.backbone.name.split(".")[0].replace("resnet101", "resnet50")
    small = {"name": network, "pretrained": False, "width": 0.125, "segmentation_weights": None}
    fewer = {"channels": 16, "pre_nms_train": 200, "proposals_train": 20, "drop_crossing_anchors": False}
    model = load_recipe(name, {"model": {"backbone": small, "rpn": fewer, "mask": {"refine_channels": 8}}}).model
    losses = losses_after_a_step(model.model_dump_json())
    assert losses["mask_coarse"] > 0
    assert ("mask_refined" in losses) is bool(config.model.mask.refine_levels)


def test_recipes_are_listed_with_their_figures(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    shown = {line.split()[0]: line.split() for line in lines if line.startswith("  ") and line[2] != " "}
    assert set(shown) == set(recipe_names())
    assert shown["table6-jft"][-2:] == ["61.80", "41.59"]
    assert shown["table5-484-124"][-1] == "35.78"
    assert shown["masklab-plus"][-4:] == ["37.3", "59.8", "39.6", "41.9"]
    assert shown["table6-os16"][-2:] == ["-", "38.61"]


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"model": {"backbone": {"output_stride": 4}}}, ["model.backbone.output_stride", "one of 8, 16, 32"]),
        ({"model": {"backbone": {"width": 0.5}}}, ["model.backbone", "width is 0.5", "pretrained"]),
        ({"model": {"mask": {"directions": 1}}}, ["model.mask.directions is 1", "from 2 to"]),
        ({"model": {"box": {"deformable": "grid", "roi_size": 7}}}, ["model.box.roi_size is 7", "divisible by 2"]),
        ({"image": {"scale": 2.0, "augment": {"min_sides": [300]}}}, ["scale is 2.0", "augment.min_sides"]),
        ({"image": {"augment": {"min_sides": []}}}, ["min_sides"]),
        ({"image": {"augment": {"scale_jitter": [1.2, 0.8]}}}, ["scale_jitter", "smaller one first"]),
        ({"image": {"augment": {"scale_jitter": [0.0, 1.0]}}}, ["scale_jitter", "above 0"]),
    ],
)
def test_contradictions_are_refused_when_read(changes, fields):
    with pytest.raises(InputError) as refused:
        load_recipe("resnet101", changes)
    for field in ("recipe resnet101", *fields):
        assert field in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [b"\xff\xfe", b"[" * 5000, b"train: {steps: 2024-13-45}", b"base: [shapes]", b"description: {a: b}", b"paper: 3"],
)
def test_recipe_files_that_cannot_be_read_are_named(tmp_path, text):
    (tmp_path / "mine.yaml").write_bytes(text)
    fails(["mine.yaml", "correct the file"], load_recipe, tmp_path / "mine.yaml")


OLD = """
base: resnet101
model:
  rpn: {rate: 3}
  box: {crop: 12, rates: [1, 2, 1], deformable_rate: 0.5, quality: true}
  mask: {crop: 21, rates: [2, 2, 2]}
pictures: {min_side: 500, augment: {crop: 256}}
train: {validate_pictures: 7}
"""
NEW = """
base: resnet101
model:
  rpn: {dilation: 3}
  box: {roi_size: 12, dilations: [1, 2, 1], deformable_lr_factor: 0.5, iou_aware_score: true}
  mask: {mask_size: 21, dilations: [2, 2, 2]}
image: {min_side: 500, augment: {crop_size: 256}}
train: {validate_images: 7}
"""


def test_recipes_of_earlier_versions_are_read(tmp_path):
    (tmp_path / "old.yaml").write_text(OLD)
    (tmp_path / "new.yaml").write_text(NEW)
    assert load_recipe(tmp_path / "old.yaml") == load_recipe(tmp_path / "new.yaml")
    assert load_recipe(tmp_path / "new.yaml") != load_recipe("resnet101")
    (tmp_path / "both.yaml").write_text("train: {validate_images: 7, validate_pictures: 7}")
    fails(["train.validate_pictures", "no such field"], load_recipe, tmp_path / "both.yaml")


def test_the_changelog_lists_every_renamed_field():
    text = (Path(__file__).resolve().parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    listed = {new: old for old, new in re.findall(r"^\| `(\S+)` \| `(\S+)` \|$", text, re.MULTILINE)}
    renamed = {new: old for old, new in _RENAMED_FIELDS.items()}
    assert {new: old.replace("pictures.", "image.") for new, old in listed.items()} == renamed


@pytest.mark.parametrize("part", ["mask", "box"])
def test_rates_that_the_backbone_has_no_units_for_are_refused(part):
    config = load_recipe("shapes", {"model": {part: {"dilations": [1, 2, 4]}}})
    with pytest.raises(
        InputError, match=rf"model\.{part}\.dilations has 3 values .* model\.backbone\.name resnet18 has 2"
    ):
        build_model(config, ClassTable((1,), ("a",)))


def test_segmentation_weights_that_are_missing_name_the_command(tmp_path):
    with pytest.raises(InputError, match=r"segmentation_weights: there is no file .*`masklab pretrain`"):
        initial_model(
            load_recipe("masklab", {"model": {"backbone": {"segmentation_weights": tmp_path / "none"}}}),
            ClassTable((1,), ("a",)),
        )


LIBRARY = {
    "rpn": {
        "anchor_ratios": [0.5, 1.0, 2.0], "channels": 512, "positive_iou": 0.7, "negative_iou": 0.3, "samples": 256,
        "positive_fraction": 0.5, "drop_crossing_anchors": True, "nms_iou": 0.7, "pre_nms_train": 12000,
        "pre_nms_test": 6000, "proposals_train": 300, "proposals_test": 300, "objectness_weight": 1, "box_weight": 2,
    },
    "box": {
        "roi_size": 14, "samples": 64, "positive_fraction": 0.25, "positive_iou": 0.5, "append_ground_truth": False,
        "iou_aware_score": False, "class_weight": 1, "box_weight": 2, "nms_iou": 0.6, "soft_nms": None, "max_detections": 100,
    },
    "mask": {"distance_metric": "linf", "start_degrees": 0, "coarse_weight": 1, "refined_weight": 1, "box_jitter": 0},
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_what_the_paper_leaves_to_its_library_is_the_librarys(name):
    config = load_recipe(name)
    for part, values in LIBRARY.items():
        have = getattr(config.model, part).model_dump()
        assert {field: have[field] for field in values} == values
    change = config.image.augment
    assert (change.horizontal_flip, change.vertical_flip, change.quarter_turns) == (True, False, False)
