import csv
import itertools
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import yaml
from contracts import assert_finite_and_connected, broken_at, changed
from lightning.fabric import Fabric

from masklab.config.migrate import migrate_config
from masklab.config.model import RPNConfig
from masklab.config.schema import validate
from masklab.datasets.split import Split
from masklab.masks import rle
from masklab.model.build import build_model
from masklab.model.rpn import RPN, Proposals, RPNOutput
from masklab.ops.boxes import box_iou
from masklab.ops.crop import crop_and_resize
from masklab.ops.crop_channels import crop_channels
from masklab.structures import Batch, Targets
from masklab.training.assign import sample_anchors, sample_proposals
from masklab.training.data.loader import train_loader
from masklab.training.gradients import BatchGradients, add_gradients
from masklab.training.loop import _step, check_finite
from masklab.training.losses import classification_loss, mask_loss
from masklab.training.optimizer import build_optimizer, clip_gradients, learning_rate_factor
from masklab.training.resume import TrainingState
from masklab.training.step import TrainingStep
from masklab.training.task import InstanceTask
from masklab.training.train import train, tune_threshold
from masklab.utils.errors import BrokenLossError, InputError
from masklab.weights.checkpoint import load_model
from masklab.weights.facts import read_notes


def targets(boxes=(), labels=None, crop=15, ignored=()):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.long) if labels is None else torch.tensor(labels)
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(len(boxes), crop, crop, generator=generator)
    return Targets(
        boxes, labels, masks, boxes, torch.arange(len(boxes)), torch.tensor(ignored, dtype=torch.float32).view(-1, 4)
    )


def batch(*all_targets):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(len(all_targets), 3, 97, 113, generator=generator)
    return Batch(images, torch.tensor([[97, 113]] * len(all_targets)), list(all_targets), list(range(len(all_targets))))


def seeded():
    return torch.Generator().manual_seed(0)


OBJECTS = ([10.0, 20, 40, 50], [50.0, 30, 90, 80], [60.0, 5, 75, 18])


@pytest.fixture
def step(tiny_config, classes):
    torch.manual_seed(0)
    return TrainingStep(build_model(tiny_config, classes)).train()


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_gradient_reaches_its_weights_however_it_lies_in_memory(tiny_config, kind):
    settings = tiny_config.train.model_copy(update={"optimizer": kind})
    gradient, stepped = torch.randn(8, 4, 3, 3, generator=seeded()), []
    for order in [(0, 1, 2, 3), (0, 2, 3, 1), (2, 3, 0, 1)]:
        torch.manual_seed(0)
        network = torch.nn.Conv2d(4, 8, 3, bias=False).to(memory_format=torch.channels_last)
        for _ in range(2):
            lying = gradient.permute(order).clone(memory_format=torch.contiguous_format)
            add_gradients(network, [lying.permute([order.index(i) for i in range(4)])])
        build_optimizer(network, settings).step()
        stepped.append(network.weight.detach())
    torch.testing.assert_close(stepped[1:], stepped[:1] * 2, rtol=0, atol=0)


@pytest.mark.parametrize("images", [[()], [(), ()], [OBJECTS, ()], [OBJECTS]])
def test_losses_are_finite_and_reach_every_parameter(step, images):
    """Also on images without objects, and on a batch of nothing else."""
    losses = step(batch(*(targets(boxes) for boxes in images)), seeded())
    assert set(losses) == {"rpn_objectness", "rpn_box", "box_class", "box", "mask_coarse", "mask_refined"}
    assert_finite_and_connected(losses, step)


def test_parts_of_a_batch_give_the_whole_batchs_gradients(shapes, tiny_config, classes):
    """Two threads on half a batch each, or one on all of it: the same but for rounding and what is drawn."""
    gradients = {}
    for threads in (1, 2):
        values = tiny_config.model_dump()
        values["train"]["threads"] = threads
        values["model"]["rpn"] |= {"samples": 100000, "positive_fraction": 1.0}  # nothing is left to chance
        values["model"]["box"] |= {"samples": 8, "positive_fraction": 0.0}
        torch.manual_seed(0)
        network = build_model(validate(values, "test"), classes).train()
        objects = targets(OBJECTS[:2], [0, 2])
        task = InstanceTask(network, Split.find(shapes, "val"))
        losses = BatchGradients(task, torch.device("cpu")).add(batch(objects, objects))
        assert set(losses) == {"rpn_objectness", "rpn_box", "box_class", "box", "mask_coarse", "mask_refined"}
        gradients[threads] = {
            name: p.grad.clone() for name, p in network.named_parameters() if not name.startswith("box")
        }
        gradients[threads]["losses"] = torch.stack([losses[k] for k in sorted(losses) if not k.startswith("box")])
    rpn = [name for name in gradients[1] if "rpn" in name or name == "losses"]
    for name in rpn:
        torch.testing.assert_close(gradients[1][name], gradients[2][name], atol=1e-4, rtol=1e-3)


def test_threads_that_begin_after_a_training_are_as_they_were(shapes, tiny_config, classes):
    """What is predicted in another thread is what is predicted in this one, to the bit."""

    def in_a_new_thread():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    own = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert in_a_new_thread() == 3
        config = changed(tiny_config, train={"threads": 2})
        task = InstanceTask(build_model(config, classes).train(), Split.find(shapes, "val"))
        gradients = BatchGradients(task, torch.device("cpu"))
        gradients.add(batch(targets(OBJECTS[:1]), targets(OBJECTS[1:2])))
        gradients.close()
        assert torch.get_num_threads() == in_a_new_thread() == 3
    finally:
        torch.set_num_threads(own)


def test_the_only_coordinates_left_are_read_from_earlier_configurations(tiny_config):
    values = tiny_config.model_dump(mode="json")
    earlier = values | {"model": {"coord_mode": "exact"} | values["model"]}
    assert validate(migrate_config(earlier), "test") == tiny_config
    earlier["model"]["coord_mode"] = "tf"
    with pytest.raises(InputError, match=r"^test: model\.coord_mode: no such field; .*\.$"):
        validate(migrate_config(earlier), "test")


def test_a_run_whose_loss_breaks_stops_and_keeps_what_it_has(shapes, tiny_config, tmp_path, monkeypatch):
    num_valid = mask_loss
    calls = itertools.count()
    monkeypatch.setattr(
        "masklab.training.step.mask_loss",
        lambda *arguments: num_valid(*arguments) * (float("nan") if next(calls) >= 4 else 1.0),
    )
    with pytest.raises(BrokenLossError, match=r"step 2: mask_\w+ = nan.* on images \d+, \d+;"):
        train(
            tiny_config.model_copy(update={"train": tiny_config.train.model_copy(update={"threads": 1})}),
            shapes,
            tmp_path,
        )
    assert load_model(tmp_path / "last.safetensors").classes.names


def test_golden_losses(step):
    """What the step computes under a fixed seed; a change here is a change of the training."""
    losses = step(batch(targets(OBJECTS, [0, 2, 1]), targets()), seeded())
    again = step(batch(targets(OBJECTS, [0, 2, 1]), targets()), seeded())
    assert all(torch.equal(losses[name], again[name]) for name in losses)
    found = {name: round(loss.item(), 3) for name, loss in losses.items()}
    assert found == pytest.approx(GOLDEN, abs=0.01)


GOLDEN = {
    "rpn_objectness": 0.693,
    "rpn_box": 0.043,
    "box_class": 2.786,
    "box": 0.419,
    "mask_coarse": 0.347,
    "mask_refined": 0.354,
}


@pytest.mark.parametrize("log_ratio", [1.0, 2.0, 5.0])
def test_quality_is_the_overlap_of_the_predicted_box(log_ratio, tiny_config, classes, monkeypatch):
    """The annotated boxes are the only positives here, and predictions are ``log_ratio`` times as wide, as far as the image goes."""
    wanted = []
    monkeypatch.setattr(
        "masklab.training.step.classification_loss",
        lambda logits, labels, normaliser: wanted.append(labels) or classification_loss(logits, labels, normaliser),
    )
    values = tiny_config.model_dump()
    values["model"]["box"] |= {"iou_aware_score": True, "append_ground_truth": True, "positive_iou": 0.999}
    step = TrainingStep(build_model(validate(values, "test"), classes)).train()
    deltas = step.model.box_head.deltas
    with torch.no_grad():
        deltas.weight.zero_()
        deltas.bias.copy_(torch.tensor([0, 0, 5 * math.log(log_ratio), 0]).repeat(3))
    losses = step(batch(targets(OBJECTS[:2], [0, 2]), targets()), seeded())
    background = wanted[-1][:, -1]
    torch.testing.assert_close(wanted[-1].sum(dim=1), torch.ones(len(background)))
    positive = wanted[-1][:, :-1].sum(dim=1) > 0
    shares = []
    for x1, _, x2, _ in OBJECTS[:2]:
        left, right = ((x1 + x2) / 2 + sign * log_ratio * (x2 - x1) / 2 for sign in (-1, 1))
        shares.append((x2 - x1) / (min(right, 113) - max(left, 0)))
    expected = torch.tensor([[shares[0], 0, 0, 1 - shares[0]], [0, 0, shares[1], 1 - shares[1]]])
    found = wanted[-1][positive]
    torch.testing.assert_close(found[found[:, 0].argsort(descending=True)], expected)
    assert (background[~positive] == 1).all()
    assert len(background) > 2
    losses["box_class"].backward()
    assert deltas.weight.grad is None, "the overlap is a target, nothing to be made better by it"


def test_no_gradient_reaches_the_box_codes_of_the_rpn_through_proposals(step):
    losses = step(batch(targets(OBJECTS)), seeded())
    step.zero_grad(set_to_none=True)
    (losses["box"] + losses["box_class"]).backward()
    assert step.model.rpn.deltas.weight.grad is None


def test_masks_train_the_class_channel_and_the_selected_directions_only(step):
    branch = step.model.mask_head
    features = step.model.backbone(torch.randn(1, 3, 97, 113))
    logits = branch(features.conv4)
    for part in logits:
        part.retain_grad()
    rois = step.model.rois(torch.tensor([OBJECTS[0]]), torch.zeros(1, dtype=torch.long), torch.empty(1, 3, 97, 113))
    branch.coarse_masks(logits, rois, torch.tensor([2])).square().sum().backward()
    assert (logits.semantic.grad.abs().sum(dim=(0, 2, 3)) > 0).tolist() == [False, False, True]
    used = logits.direction.grad.abs().sum(dim=(0, 2, 3)) > 0
    assert used.nonzero().flatten().tolist() == branch.table.unique().tolist()


def test_sampled_anchors_follow_the_rules(tiny_config, classes):
    rpn = build_model(tiny_config, classes).rpn
    anchors = rpn.anchors(13, 15, torch.device("cpu"))
    objects = targets(OBJECTS)
    sample = sample_anchors(anchors, objects, (97, 113), tiny_config.model.rpn, seeded())
    overlap = box_iou(anchors[sample.rows], objects.boxes)
    positive = sample.objects >= 0
    assert len(sample.rows) == len(sample.rows.unique()) == 256
    assert positive.sum() <= 128
    assert set(sample.objects[positive].tolist()) == {0, 1, 2}, "each object has at least its best anchor"
    assert (overlap[~positive].amax(dim=1) < 0.3).all()
    best = box_iou(anchors, objects.boxes).amax(dim=0)
    own = overlap[positive, sample.objects[positive]]
    assert ((own >= 0.7) | torch.isclose(own, best[sample.objects[positive]])).all()


def test_anchors_across_the_border_are_left_out_when_asked(tiny_config, classes):
    rpn = build_model(tiny_config, classes).rpn
    anchors = rpn.anchors(13, 15, torch.device("cpu"))
    config = tiny_config.model.rpn.model_copy(update={"drop_crossing_anchors": True})
    kept = anchors[sample_anchors(anchors, targets(), (97, 113), config, seeded()).rows]
    assert (kept[:, :2] >= 0).all()
    assert (kept[:, 2] <= 113).all()
    assert (kept[:, 3] <= 97).all()


def test_anchors_across_the_border_propose_nothing_in_training_and_are_clipped_at_test(tiny_config, classes):
    drawn = build_model(tiny_config, classes).rpn
    rpn = RPN(tiny_config.model.rpn.model_copy(update={"drop_crossing_anchors": True}), 64, 8)
    anchors = drawn.anchors(13, 15, torch.device("cpu"))
    crossing = (anchors[:, :2] < 0).any(dim=1) | (anchors[:, 2] > 113) | (anchors[:, 3] > 97)
    # the crossing anchors have by far the best scores, and no anchor is moved
    objectness = torch.stack([torch.zeros(len(anchors)), crossing * 9.0], dim=-1)[None]
    output = RPNOutput(objectness, torch.zeros(1, len(anchors), 4), anchors)
    sizes = torch.tensor([[97, 113]])
    trained = rpn.train().propose(output, sizes)
    assert trained.num_valid[0] > 0
    away = trained.boxes[0, : trained.num_valid[0], None] - anchors[~crossing]
    assert (away.abs().amax(dim=-1).amin(dim=1) < 1e-3).all()
    tested = rpn.eval().propose(output, sizes)
    best = tested.boxes[0, 0]
    clipped = torch.stack([a.clamp(min=0).minimum(torch.tensor([113.0, 97, 113, 97])) for a in anchors[crossing]])
    assert torch.isclose(best, clipped, atol=1e-4).all(dim=1).any()
    tiny = RPNOutput(objectness[:, crossing], output.deltas[:, crossing], anchors[crossing])
    assert rpn.train().propose(tiny, sizes).num_valid.tolist() == [0], "nothing left is no error"


def test_sampled_proposals_follow_the_rules(tiny_config):
    objects = targets(OBJECTS, ignored=[[0, 60, 40, 97]])
    jitter = torch.tensor(OBJECTS).repeat(30, 1) + torch.randn(90, 4, generator=seeded()) * 4
    proposals = torch.cat(
        [jitter, torch.tensor([[5.0, 65, 30, 90]]).repeat(10, 1), torch.tensor([[92.0, 82, 110, 95]])]
    )
    config = tiny_config.model.box.model_copy(update={"samples": 64, "positive_fraction": 0.25})
    sample = sample_proposals(proposals, objects, config, seeded())
    overlap = box_iou(proposals[sample.rows], objects.boxes)
    positive = sample.objects >= 0
    assert positive.sum() == 16
    assert (overlap[positive].amax(dim=1) >= 0.5).all()
    assert (overlap[positive].argmax(dim=1) == sample.objects[positive]).all()
    assert (overlap[~positive].amax(dim=1) < 0.5).all()
    assert not set(sample.rows[~positive].tolist()) & set(range(90, 100)), "a crowd is not background"


def test_mask_loss_is_a_mean_over_masks_then_images():
    logits, masks = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    logits[0] = 100.0  # right: no loss; the other two cost ln 2 each
    owners = torch.tensor([0, 0, 1])
    expected = (0.5 * 0.6931 + 0.6931) / 3  # the third image has no masks
    assert float(mask_loss(logits, masks, owners, 3)) == pytest.approx(expected, abs=1e-4)


def test_schedules(tiny_config):
    settings = tiny_config.train.model_copy(update={"steps": 100, "warmup_steps": 10})
    factor = lambda at, schedule: learning_rate_factor(at, settings.model_copy(update={"schedule": schedule}))  # noqa: E731
    assert factor(0, "linear") == pytest.approx(0.1)
    assert factor(50, "linear") == pytest.approx(0.5)
    assert factor(50, "cosine") == pytest.approx(0.5)
    assert [round(factor(at, "step"), 4) for at in (10, 59, 60, 80)] == [1, 1, 0.1, 0.01]
    for schedule in ("linear", "cosine"):
        assert factor(100, schedule) == pytest.approx(0)


def test_clipping_by_parameter_and_all_together(step, tiny_config):
    def norms(how):
        for parameter in step.parameters():
            parameter.grad = torch.ones_like(parameter)
        clip_gradients(step, tiny_config.train.model_copy(update={"clip_by": how, "clip_norm": 0.5}))
        return torch.stack([p.grad.norm() for p in step.parameters()])

    assert norms("parameter").max() == pytest.approx(0.5, abs=1e-3)
    assert norms("parameter").min() == pytest.approx(0.5, abs=1e-3)
    assert norms("global").square().sum().sqrt() == pytest.approx(0.5, abs=1e-3)


def test_norms_and_biases_do_not_decay(step, tiny_config):
    decayed, kept = build_optimizer(step, tiny_config.train.model_copy(update={"weight_decay": 0.1})).param_groups
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0
    assert all(p.dim() > 1 for p in decayed["params"])
    assert all(p.dim() <= 1 for p in kept["params"])


def test_a_broken_loss_names_step_image_and_loss():
    with pytest.raises(BrokenLossError, match=r"step 12: box = nan on images 5, cat"):
        check_finite({"box": torch.tensor(float("nan")), "mask": torch.tensor(1.0)}, 12, [5, "cat"])
    check_finite({"box": torch.tensor(1.0)}, 12, [5])


def test_training_runs_and_leaves_what_it_promises(shapes, tiny_config, tmp_path, caplog):
    caplog.set_level("INFO", "masklab")
    model = train(tiny_config, shapes, tmp_path / "run")
    assert "tuning the score threshold of the best weights on 8 training images" in caplog.text
    assert f"best.safetensors: score threshold {model.threshold:.2f}, mask_AP 0." in caplog.messages[-1]
    for name in ("best.safetensors", "last.safetensors", "config.yaml", "metrics.csv"):
        assert (tmp_path / "run" / name).is_file(), name
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert all(0.1 < float(row["GiB"]) < 100 for row in rows if row["GiB"])
    assert [float(row["learning_rate"]) for row in rows if row["learning_rate"]] == [
        pytest.approx(1e-3 * learning_rate_factor(step, tiny_config.train)) for step in range(1, 5)
    ]
    assert not list((tmp_path / "run").glob("events.out.tfevents*")), "TensorBoard only where it is named"
    assert model.model.score_threshold is not None
    loaded = load_model(tmp_path / "run")
    assert loaded.score_threshold == model.model.score_threshold
    assert loaded.classes.names == ("disc", "box", "triangle", "ring")
    assert read_notes(tmp_path / "run")["step"] in (2, 4)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert {"loss", "val/mask_AP", "train/box"} <= set(rows[0])
    for row in (row for row in rows if row["loss"]):
        each = {name.removeprefix("train/"): float(value) for name, value in row.items() if name.startswith("train/")}
        for kind, is_kind in (("mask", True), ("box", False)):
            assert float(row[kind]) == pytest.approx(
                sum(value for name, value in each.items() if name.startswith("mask") == is_kind), rel=1e-4
            )
    assert "has all of" not in caplog.text
    minutes = read_notes(tmp_path / "run")["minutes"]
    assert minutes == round(minutes, 1)


def test_a_figure_that_is_not_defined_is_not_a_number(shapes, tiny_config, classes, monkeypatch):
    network = build_model(tiny_config, classes)
    undefined = dict.fromkeys(("AP", "AP50", "AP75"))
    monkeypatch.setattr("masklab.training.task.coco_metrics", lambda *_: {"mask": undefined, "box": undefined})
    figures = InstanceTask(network, Split.find(shapes, "val")).validate(network.eval(), [0])
    assert len(figures) == 6
    assert all(math.isnan(value) for value in figures.values())


def test_a_resumed_run_is_the_uninterrupted_one(shapes, tiny_config, tmp_path, monkeypatch):
    whole = train(tiny_config, shapes, tmp_path / "whole")

    with monkeypatch.context() as patch:
        broken_at(patch, 3)
        with pytest.raises(BrokenLossError):
            train(tiny_config, shapes, tmp_path / "parts")
    resumed = train(tiny_config, shapes, tmp_path / "parts", resume=True)
    assert read_notes(tmp_path / "parts" / "last.safetensors")["step"] == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_run_is_resumed_without_the_weights_it_began_with(shapes, tiny_config, tmp_path, monkeypatch):
    """They could not be had again: there is no such file."""
    with monkeypatch.context() as patch:
        broken_at(patch, 3)
        with pytest.raises(BrokenLossError):
            train(tiny_config, shapes, tmp_path / "run")
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    settings["model"]["backbone"]["segmentation_weights"] = str(tmp_path / "none.safetensors")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    config = validate(settings, "test")
    with pytest.raises(InputError, match=r"none\.safetensors"):
        train(config, shapes, tmp_path / "new")
    train(config, shapes, tmp_path / "run", resume=True)
    assert read_notes(tmp_path / "run" / "last.safetensors")["step"] == 4


def test_a_split_without_images_to_validate_on_is_refused(shapes, tiny_config, tmp_path):
    shutil.copytree(shapes, tmp_path / "set")
    empty = json.loads((shapes / "val.json").read_text()) | {"images": [], "annotations": []}
    (tmp_path / "set" / "val.json").write_text(json.dumps(empty))
    with pytest.raises(InputError, match=r"val\.json has no images to choose the best weights by"):
        train(tiny_config, tmp_path / "set", tmp_path / "run")


def test_validation_takes_detections_of_classes_that_val_has_not(shapes, tiny_config, tmp_path):
    shutil.copytree(shapes, tmp_path / "set")
    val = json.loads((shapes / "val.json").read_text())
    val["categories"] = val["categories"][:1]
    val["annotations"] = [a for a in val["annotations"] if a["category_id"] == val["categories"][0]["id"]]
    (tmp_path / "set" / "val.json").write_text(json.dumps(val))
    model = train(tiny_config, tmp_path / "set", tmp_path / "run")
    assert {label for p in sorted((shapes / "val").iterdir()) for label in model.predict(p).labels.tolist()} - {0}


def test_a_finished_run_is_not_overwritten(shapes, tiny_config, tmp_path):
    (tmp_path / "metrics.csv").write_text("step\n")
    with pytest.raises(InputError, match="already holds a run"):
        train(tiny_config, shapes, tmp_path)
    with pytest.raises(InputError, match=r"no resume\.ckpt"):
        train(tiny_config, shapes, tmp_path, resume=True)


def test_the_loss_falls(shapes, tiny_config, classes):
    values = tiny_config.model_dump()
    values["train"] |= {"steps": 30, "learning_rate": 3e-3}
    values["image"]["augment"] = {"horizontal_flip": False}
    config = validate(values, "test")
    split = Split.find(shapes, "train")
    torch.manual_seed(0)
    step = TrainingStep(build_model(config, split.categories)).train()
    optimizer, totals = build_optimizer(step, config.train), []
    for one in itertools.islice(train_loader(split, config), 30):
        total = sum(step(one, seeded()).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-8:]) < 0.85 * sum(totals[:8])


def test_training_without_a_folder_says_which(tiny_config):
    with pytest.raises(InputError, match="needs the folder data: give it, or set data in the configuration"):
        train(tiny_config)
    with pytest.raises(InputError, match="needs the folder output"):
        train(tiny_config, "data")


def sampled(anchors, objects, size=(40, 40), **changes):
    """The object of each anchor that enters the loss, -1 for background, by the anchor's row."""
    sample = sample_anchors(torch.tensor(anchors), objects, size, RPNConfig(**changes), seeded())
    return dict(zip(sample.rows.tolist(), sample.objects.tolist(), strict=True))


def test_an_object_has_its_best_anchor_among_those_that_may_learn():
    """By hand: overlaps of 0.88, across the border, of 0.699, of 0.26 and of nothing."""
    anchors = [[-2.0, 0, 14, 20], [1, 1, 17, 21], [0, 10, 20, 30], [25, 25, 39, 39]]
    objects = targets([[0, 0, 14, 20]])
    assert sampled(anchors, objects) == {1: 0, 2: -1, 3: -1}
    assert sampled(anchors, objects, drop_crossing_anchors=False) == {0: 0, 2: -1, 3: -1}


def test_anchors_that_are_equally_the_best_of_an_object_are_all_positive():
    """And one that is nearly as good is neither object nor background."""
    anchors = [[8.0, 10, 18, 20], [12, 10, 22, 20], [10, 7, 20, 17], [0, 30, 10, 40]]
    assert sampled(anchors, targets([[10, 10, 20, 20]])) == {0: 0, 1: 0, 3: -1}


def test_an_object_that_no_anchor_touches_makes_none_positive():
    anchors = [[0.0, 0, 10, 10], [12, 0, 22, 10], [30, 30, 45, 45]]
    assert sampled(anchors, targets([[30, 30, 38, 38]])) == {0: -1, 1: -1}


def test_a_crowd_is_not_background_to_an_anchor():
    """By hand: all, 5/7 and 4/9 of the background anchors lie in the crowd, and all of the object's."""
    anchors = [[25.0, 25, 35, 35], [16, 25, 30, 35], [10, 25, 28, 35], [22, 22, 32, 24]]
    crowd = targets([[22, 22, 32, 24]], ignored=[[20, 20, 40, 40]])
    assert sampled(anchors, crowd) == {2: -1, 3: 0}
    assert sampled(anchors, targets(ignored=[[20, 20, 40, 40]])) == {2: -1}


# of the object, the first is a positive whose code is (-1, 0, 0, 0), which costs 0.5 where 0 is predicted
OBJECT, NEAR = (
    [10.0, 10, 30, 30],
    [[12.0, 10, 32, 30], [50, 50, 70, 70], [60, 10, 80, 30], [10, 60, 30, 80], [80, 60, 99, 80]],
)


def test_anchor_losses_are_means_over_the_anchors_drawn(step):
    """By hand: five in the first image; in the second all lie in a crowd but two."""
    output = RPNOutput(torch.zeros(2, 5, 2), torch.zeros(2, 5, 4), torch.tensor(NEAR))
    images = batch(targets([OBJECT]), targets(ignored=[[0, 50, 113, 97]]))
    losses = step._rpn_losses(output, images, [seeded(), seeded()])
    assert losses["rpn_box"].item() == pytest.approx(2 * 0.5 / 5 / 2)
    assert losses["rpn_objectness"].item() == pytest.approx(math.log(2))


def losses_of_boxes(step, label, append, right=None):
    """Two images with five and two proposals, one of them an object's; only class ``right`` knows its box."""
    model = step.model
    model.config = changed(model.config, model={"box": {"append_ground_truth": append, "samples": 64}})
    with torch.no_grad():
        for layer in (model.box_head.classes, model.box_head.deltas):
            layer.weight.zero_()
        if right is not None:
            model.box_head.deltas.bias[4 * right] = -1
    images = batch(targets([OBJECT], [label]), targets())
    proposals = Proposals(torch.tensor([NEAR, NEAR]), torch.tensor([5, 2]))
    return step._box_losses(model.backbone(images.images), proposals, images, [seeded(), seeded()])


@pytest.mark.parametrize(("append", "drawn"), [(False, 5), (True, 6)])
def test_box_losses_are_means_over_the_proposals_drawn(step, append, drawn):
    """An annotated box is one of them only if asked, and costs nothing here."""
    losses = losses_of_boxes(step, 1, append)
    assert losses["box"].item() == pytest.approx(2 * 0.5 / drawn / 2)
    assert losses["box_class"].item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("label", range(3))
def test_the_box_loss_is_of_the_objects_own_class(step, label):
    losses = losses_of_boxes(step, label, False, right=2)
    assert losses["box"].item() == pytest.approx(0 if label == 2 else 0.1, abs=1e-6)
    losses["box"].backward()
    moved = step.model.box_head.deltas.bias.grad.view(3, 4).abs().sum(dim=1)
    assert moved.nonzero().flatten().tolist() == ([] if label == 2 else [label])


def test_a_mask_is_trained_in_the_class_of_its_object(step):
    """Classes 0 and 2 say no everywhere and class 1 yes; masks come in another order than objects."""
    branch = step.model.mask_head
    with torch.no_grad():
        for layer in (branch.semantic, branch.direction):
            layer.weight.zero_()
        branch.semantic.bias.copy_(torch.tensor([-200.0, 200, -200]))
    objects = targets(OBJECTS, [2, 0, 1])
    objects.mask_rows = torch.tensor([1, 2, 0])
    objects.mask_boxes = objects.boxes[objects.mask_rows]
    objects.masks = torch.tensor([0.0, 1, 0]).view(3, 1, 1).expand(3, 15, 15)
    assert step(batch(objects, targets()), seeded())["mask_coarse"].item() == pytest.approx(0, abs=1e-6)


def difference(found, masks, *_):
    return (found - masks).abs().mean()


class Truth(torch.nn.Module):
    """In place of the mask head: for each class a map of the pixels themselves, (N, K, H, W), and masks read from it."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, conv4, conv5=None):
        return self.maps

    def coarse_masks(self, maps, rois, labels):
        return crop_channels(maps, rois, (15, 15), labels)


@pytest.fixture(scope="module")
def one_of_each(shapes, tmp_path_factory):
    """Drawn images with at most one object of each class."""
    folder = shutil.copytree(shapes, tmp_path_factory.mktemp("one") / "set")
    train = json.loads((folder / "train.json").read_text())
    train["annotations"] = list({(a["image_id"], a["category_id"]): a for a in train["annotations"]}.values())
    (folder / "train.json").write_text(json.dumps(train))
    return Split.find(folder, "train")


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_masks_are_read_where_their_targets_were_taken(one_of_each, tiny_config, monkeypatch, jitter):
    """From the file to the loss, with the true mask of each class in place of what is predicted."""
    monkeypatch.setattr("masklab.training.step.mask_loss", difference)
    settings = {"mask": {"box_jitter": jitter, "refine_levels": [], "train_masks": 100}}
    config = changed(
        tiny_config, model=settings, image={"augment": {"horizontal_flip": False}}, train={"batch_size": 8}
    )
    model = build_model(config, one_of_each.categories)
    images = next(iter(train_loader(one_of_each, config)))
    maps = torch.zeros(8, 4, 96, 112)
    for n, image_id in enumerate(images.image_ids):
        index = next(i for i, image in enumerate(one_of_each.images) if image.image_id == image_id)
        objects = one_of_each.objects(index)
        for row, label in enumerate(objects.labels):
            maps[n, label] = torch.from_numpy(rle.window(objects.rle(row), objects.size, (0, 0, 112, 96)))
    model.mask_head = Truth(torch.nn.functional.pad(maps, (0, 1, 0, 1), mode="replicate"))
    moved = torch.cat([(t.mask_boxes - t.boxes[t.mask_rows]).abs().amax(dim=1) for t in images.targets])
    assert len(moved) > 10
    assert (moved > 0.5).float().mean() > 0.9 if jitter else (moved == 0).all()
    losses = TrainingStep(model)._mask_losses(model.backbone(images.images), images, [seeded()] * 8)
    assert losses["mask_coarse"].item() == pytest.approx(0, abs=1e-4)


class TrueRefinement(torch.nn.Module):
    """Half of the coarse mask and half of what the maps show in the boxes given."""

    def __init__(self, maps):
        super().__init__()
        self.truth = maps

    def maps(self, features):
        return [self.truth]

    def forward(self, coarse, maps, rois):
        assert len(coarse) == 4
        return (coarse + crop_and_resize(maps[0], rois, (15, 15))[:, 0]) / 2


def test_masks_that_are_refined_keep_their_boxes_and_targets(step, monkeypatch):
    """Two of the three masks of each image are refined, in another order than the objects."""
    monkeypatch.setattr("masklab.training.step.mask_loss", difference)
    model, maps = step.model, torch.rand(2, 1, 97, 113, generator=seeded())
    model.config = changed(model.config, model={"mask": {"train_refined": 2}})
    model.mask_head, model.refinement = Truth(maps.expand(-1, 3, -1, -1)), TrueRefinement(maps)
    images = batch(targets(OBJECTS, [2, 0, 1]), targets(OBJECTS[::-1], [0, 1, 1]))
    for n, objects in enumerate(images.targets):
        objects.mask_rows = torch.tensor([1, 2, 0])
        objects.mask_boxes = objects.boxes[objects.mask_rows]
        rois = model.rois(objects.mask_boxes, torch.full((3,), n), images.images)
        objects.masks = crop_and_resize(maps, rois, (15, 15))[:, 0]
    for seed in range(3):
        losses = step(images, torch.Generator().manual_seed(seed))
        assert losses["mask_coarse"].item() == pytest.approx(0, abs=1e-6)
        assert losses["mask_refined"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("part", "weight", "loss"),
    [
        ("rpn", "objectness_weight", "rpn_objectness"),
        ("rpn", "box_weight", "rpn_box"),
        ("box", "class_weight", "box_class"),
        ("box", "box_weight", "box"),
        ("mask", "coarse_weight", "mask_coarse"),
        ("mask", "refined_weight", "mask_refined"),
    ],
)
def test_a_weight_is_a_factor_on_its_loss_alone(step, part, weight, loss):
    model, images, losses = step.model, batch(targets(OBJECTS, [0, 2, 1]), targets()), {}
    plain = model.config
    for factor in (1, 3):
        model.config = changed(plain, model={part: {weight: factor}})
        losses[factor] = step(images, seeded())
    for name, value in losses[1].items():
        assert value > 0, name
        torch.testing.assert_close(losses[3][name], value * (3 if name == loss else 1))


@pytest.mark.parametrize(("momentum", "way"), [(0.0, 3.0), (0.5, 1 + 1.5 + 1.75)])
def test_sgd_has_momentum(tiny_config, momentum, way):
    """A slope of 1 at a learning rate of 1 for three steps."""
    network = torch.nn.Linear(2, 2)
    before = [p.detach().clone() for p in network.parameters()]
    update = {"optimizer": "sgd", "momentum": momentum, "learning_rate": 1.0, "weight_decay": 0.0}
    optimizer = build_optimizer(network, tiny_config.train.model_copy(update=update))
    for _ in range(3):
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    for p, start in zip(network.parameters(), before, strict=True):
        torch.testing.assert_close(start - p, torch.full_like(p, way))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_without_a_slope_weights_decay_and_nothing_else_does(tiny_config, kind):
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 2, 3), torch.nn.GroupNorm(1, 2), torch.nn.Flatten(), torch.nn.Linear(2, 2)
    )
    for p in network.parameters():
        torch.nn.init.constant_(p, 2.0)
        p.grad = torch.zeros_like(p)
    update = {"optimizer": kind, "learning_rate": 0.5, "weight_decay": 0.1}
    build_optimizer(network, tiny_config.train.model_copy(update=update)).step()
    for name, p in network.named_parameters():
        decays = name in ("0.weight", "3.weight")
        torch.testing.assert_close(p.detach(), torch.full_like(p, 2 * (1 - 0.5 * 0.1) if decays else 2.0))


class Slope(InstanceTask):
    """Six weights and two biases on a slope of 1000."""

    def __init__(self, config):
        self.network, self.config = torch.nn.Linear(3, 2), config

    def losses(self, batch, first):
        return {"height": 1000 * sum(p.sum() for p in self.network.parameters())}


@pytest.mark.parametrize(
    ("clip_by", "clip_norm", "moved"),
    [
        ("parameter", 0.5, [0.5, 0.5]),
        ("global", 0.5, [0.5 * math.sqrt(6 / 8), 0.5 * math.sqrt(2 / 8)]),
        ("parameter", None, [1000 * math.sqrt(6), 1000 * math.sqrt(2)]),
    ],
)
def test_a_step_of_training_is_clipped(tiny_config, clip_by, clip_norm, moved):
    """How far weights and biases go at a learning rate of 1."""
    update = {"clip_by": clip_by, "clip_norm": clip_norm, "optimizer": "sgd", "learning_rate": 1.0, "warmup_steps": 0}
    task = Slope(changed(tiny_config, train=update))
    before = [p.detach().clone() for p in task.network.parameters()]
    images = Batch(torch.zeros(1, 3, 9, 9), torch.tensor([[9, 9]]), [targets()], [1])
    state = TrainingState(task.network, task.config.train)
    gradients = BatchGradients(task, torch.device("cpu"), 1, state.scaler)
    _step(Fabric(accelerator="cpu", devices=1), task, images, state, gradients)
    gone = [(p - start).norm().item() for p, start in zip(task.network.parameters(), before, strict=True)]
    assert gone == pytest.approx(moved, rel=1e-3)


def test_the_threshold_is_tuned_on_what_is_predicted(shapes):
    """Every object is found with a score of 0.8, and once more, elsewhere, with 0.6."""
    split, wrong = Split.find(shapes, "train"), {"size": [96, 112], "counts": rle.rle_to_strings([np.array([0, 4])])[0]}

    def predict(image, check=None):
        found = [a for a in split.coco["annotations"] if a["image_id"] == image.image_id]
        right = [{key: a[key] for key in ("image_id", "category_id", "segmentation", "bbox")} for a in found]
        return [entry | {"score": 0.8} for entry in right] + [
            entry | {"score": 0.6, "segmentation": wrong, "bbox": [0, 0, 1, 4]} for entry in right
        ]

    assert 0.6 < tune_threshold(predict, split) <= 0.8


def test_the_minutes_of_a_resumed_run_are_all_of_its_minutes(tiny_config):
    state = TrainingState(torch.nn.Linear(2, 2), tiny_config.train)
    state.load_state_dict(state.state_dict() | {"seconds": 600.0})
    assert 600 <= state.seconds < 660
