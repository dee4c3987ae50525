"""Recipes for 8 GPUs: the paper's training by the linear scaling rule, what it costs, and a dry run over gloo."""

import csv
import time

import pytest
from processes import in_another_process, needs_fork, torchrun

from masklab.cli.app import main
from masklab.config.recipe import load_recipe
from masklab.config.schema import validate
from masklab.model.cost import model_cost
from masklab.paper.training_cost import PAPER_IMAGES, TrainingCost, training_cost, training_lines
from masklab.training.optimizer import learning_rate_factor
from masklab.training.task import InstanceTask
from masklab.utils.errors import InputError
from masklab.weights.facts import read_notes

NAMES = ("masklab-gpu", "masklab-plus-gpu")
SMALL = {
    "--model.backbone.name": "resnet50",
    "--model.backbone.pretrained": "false",
    "--model.backbone.width": "0.125",
    "--model.backbone.segmentation_weights": "null",
    "--model.rpn.channels": "16",
    "--model.rpn.anchor_sizes": "[16,32]",
    "--model.rpn.pre_nms_train": "100",
    "--model.rpn.proposals_train": "20",
    "--model.rpn.proposals_test": "10",
    "--model.box.samples": "16",
    "--model.box.max_detections": "4",
    "--model.mask.train_masks": "4",
    "--model.mask.refine_channels": "8",
    "--image.min_side": "64",
    "--image.max_side": "80",
    "--train.devices": "2",
    "--train.steps": "1",
    "--train.warmup_steps": "1",
    "--train.validate_every": "1",
    "--train.validate_images": "2",
    "--train.log_every": "1",
    "--train.workers": "0",
    "--train.precision": "float32",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_for_gpus_is_its_base_by_the_linear_scaling_rule(name):
    config, base = load_recipe(name), load_recipe(name.removesuffix("-gpu"))
    assert (config.model, config.image) == (base.model, base.image)
    train, once = config.train, base.train
    assert train.steps * train.batch_size == once.steps * once.batch_size == PAPER_IMAGES
    assert train.learning_rate / train.batch_size == pytest.approx(once.learning_rate / once.batch_size)
    assert (train.devices, train.batch_size % train.devices) == (8, 0)
    assert (train.milestones, train.schedule, train.clip_norm) == (once.milestones, once.schedule, once.clip_norm)
    assert train.steps % train.validate_every == 0
    factors = [learning_rate_factor(step, train) for step in (0, 499, 999, 112_499, 112_501, 150_001)]
    assert factors == pytest.approx([1e-3, 0.5, 1, 1, 0.1, 0.01])


def test_pretraining_for_gpus_fits_the_model_that_starts_from_it():
    first, then = load_recipe("segmentation-gpu"), load_recipe("masklab-gpu")
    assert first.model.backbone == then.model.backbone.model_copy(update={"segmentation_weights": None})
    assert first.model.mask.dilations == then.model.mask.dilations
    assert (first.train.devices, first.train.batch_size) == (8, 16)


def slow_to_write(words):
    """The command line, whose first process takes its time to write weights."""
    save = InstanceTask.save

    def late(*arguments):
        time.sleep(1)
        save(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InstanceTask, "save", late)
        return main(words)


@needs_fork
def test_two_processes_dry_run_the_recipe_for_gpus(shapes, tmp_path):
    words = ["train", "masklab-gpu", "--data", str(shapes), "--output", str(tmp_path / "run")]
    words += [part for pair in SMALL.items() for part in pair]
    both = [in_another_process(slow_to_write, words, **each) for each in torchrun(2)]
    for process in both:
        process.join(100)
        assert process.exitcode == 0, "the second process waits for the weights that the first writes"
    config = validate(load_recipe(tmp_path / "run" / "config.yaml").model_dump(), "run")
    assert (config.train.batch_size, config.train.devices, config.train.learning_rate) == (8, 2, 2.4e-3)
    rows = [row for row in csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()) if row["loss"]]
    assert [row["step"] for row in rows] == ["1"]
    assert read_notes(tmp_path / "run" / "last.safetensors")["step"] == 1


def test_the_cost_of_training_by_hand():
    """Three times a prediction on the proposals and objects that are trained, times the images."""
    config = load_recipe("shapes", {"train": {"steps": 100, "batch_size": 6, "devices": 2}})
    cost = training_cost(config, 4, (97, 129))
    sampled = {"rpn": {"proposals_test": 32}, "box": {"max_detections": 7}}
    macs = model_cost(load_recipe("shapes", {"model": sampled}), 4, (97, 129))["total"].macs
    assert cost == TrainingCost(100, 6, 2, pytest.approx(3 * macs))
    assert cost.images == 600
    whole = TrainingCost(187_500, 8, 8, 2e12)
    assert (whole.step_seconds(1e12), whole.hours(0.48)) == (2.0, 25.0)
    lines = list(training_lines(whole, 0.48))
    assert "1,500,000 images, 12.7 epochs" in lines[0]
    assert "2.00 T an image" in lines[1]
    assert "3 E in all" in lines[1]
    assert "25 hours (1.0 days), 200 process-hours; a process sustains 4.17 T" in lines[2]
    assert "(unverified): 2 times as much" in lines[3]
    assert not any("[67]" in line for line in training_lines(cost)), "its data set is COCO"


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"batch_size": "auto"}, "train.batch_size"), ({"minutes": 3}, "train.minutes")],
)
def test_what_is_found_when_training_begins_is_not_counted(changes, words):
    with pytest.raises(InputError, match=words):
        training_cost(load_recipe("shapes", {"train": changes}), 4, (97, 129))


def test_the_command_line_counts_training(capsys):
    words = ["info", "shapes", "--classes", "4", "--height", "97", "--width", "129"]
    assert main(words) == 0
    assert "training:" not in capsys.readouterr().out
    assert main([*words, "--training"]) == 0
    assert "if a process sustains 5 T" in capsys.readouterr().out
    assert main([*words, "--step_seconds", "0.5"]) == 0
    assert "at 0.5 s a step" in capsys.readouterr().out
    assert main(["info", "nuclei", "--training"]) == 0
    said = capsys.readouterr().out
    assert "training: 4,000 steps" in said
    assert "is a recipe too" not in said
    assert main([*words, "--step_seconds", "0"]) == 2
