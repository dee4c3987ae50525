"""Runs that are killed, resumed, averaged, taken in parts and shared among processes."""

import contextlib
import csv
import json
import logging
import os
import pickle
import re
import shutil
import signal
import sys
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import yaml
from contracts import broken_at, changed, fails
from lightning.fabric.utilities.rank_zero import rank_zero_only
from PIL import Image
from processes import in_another_process, needs_fork, recipe_file, torchrun
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import masklab.training.loop
import masklab.training.task
import masklab.utils.files
from masklab.cli.app import main
from masklab.datasets.split import Split
from masklab.model.build import build_model
from masklab.training import auto
from masklab.training.data.loader import StreamSampler, train_loader
from masklab.training.distributed import build_fabric
from masklab.training.ema import ExponentialMovingAverage
from masklab.training.gradients import BatchGradients, split_batch
from masklab.training.log import read_log
from masklab.training.loop import check_finite
from masklab.training.record import read_record, refuse_other_settings
from masklab.training.resume import open_run
from masklab.training.task import InstanceTask
from masklab.training.train import train
from masklab.utils.errors import BrokenLossError, InputError
from masklab.weights.checkpoint import load_model, save_model
from masklab.weights.facts import read_notes


def printing(path, words):
    """The command line, with what it logs in a file, and of which images the figures are computed."""
    measure, logger = masklab.training.task.coco_metrics, logging.getLogger("masklab")
    handler = logging.FileHandler(path, "w")

    def seen(truth, results, max_detections, scored):
        logger.info(f"scored {scored} {sorted({entry['image_id'] for entry in results})}")
        return measure(truth, results, max_detections, scored)

    with contextlib.closing(handler), pytest.MonkeyPatch.context() as patch:
        patch.setattr(masklab.training.task, "coco_metrics", seen)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            return main(words)
        finally:
            logger.removeHandler(handler)


def killed_on_the_way(where, number, words):
    """The command line, but for a power cut: at the Nth writing of a file, which is cut in half, or at a step."""
    rename, check, seen = os.replace, check_finite, []

    def replace(source, target):
        seen.append(os.path.basename(target))
        if seen[-1] == where and seen.count(where) == number:
            os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    def check_step(losses, step, image_ids):
        if (where, number) == ("step", step):
            os.kill(os.getpid(), signal.SIGKILL)
        check(losses, step, image_ids)

    masklab.utils.files.os.replace, masklab.training.loop.check_finite = replace, check_step
    return main(words)


def rows_of(run):
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    return [{name: value for name, value in row.items() if name != "GiB"} for row in rows]


def assert_same_run(run, other):
    for name in ("last", "best"):
        first, second = (load_file(folder / f"{name}.safetensors") for folder in (run, other))
        assert set(first) == set(second)
        for key, value in first.items():
            assert torch.equal(value, second[key]), (name, key)
    assert load_model(run).score_threshold == load_model(other).score_threshold
    assert read_notes(run)["val"] == read_notes(other)["val"]
    assert rows_of(run) == rows_of(other)


@needs_fork
def test_a_run_killed_at_any_moment_goes_on_as_if_it_had_not_been(shapes, tiny_config, tmp_path, one_thread):
    """Killed four times on its way: nothing there yet, weights without their checkpoint, in a step, at the very end."""
    config = changed(tiny_config, train={"steps": 7, "validate_every": 3, "checkpoint_every": 2})
    recipe, run = recipe_file(config, tmp_path / "tiny.yaml"), tmp_path / "run"
    words = ["train", recipe, "--data", str(shapes), "--output", str(run)]
    resume: list[str] = []
    for where, number in [("resume.ckpt", 1), ("best.safetensors", 1), ("step", 5), ("best.safetensors", 3)]:
        process = in_another_process(killed_on_the_way, where, number, [*words, *resume])
        process.join()
        assert process.exitcode == -signal.SIGKILL
        resume = ["--resume"]
    assert list(run.glob(".*.part")), "what was being written lies there"
    assert main([*words, *resume]) == 0
    assert not list(run.glob(".*.part"))
    record = json.loads((run / "run.json").read_text())
    assert [start["step"] for start in record["starts"]] == [0, 2, 4, 7]
    train(config, shapes, tmp_path / "whole")
    assert_same_run(run, tmp_path / "whole")
    assert [row["step"] for row in rows_of(run)] == ["1", "2", "3", "3", "4", "5", "6", "6", "7", "7"]


def test_a_resumed_run_keeps_the_average_and_the_parts(shapes, tiny_config, tmp_path, monkeypatch):
    config = changed(tiny_config, train={"steps": 4, "checkpoint_every": 3, "ema": 0.9, "accumulate": 2})
    train(config, shapes, tmp_path / "whole")
    with monkeypatch.context() as patch:
        broken_at(patch, 3)
        with pytest.raises(BrokenLossError):
            train(config, shapes, tmp_path / "parts")
    train(config, shapes, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_is_not_resumed_on_other_data(shapes, tiny_config, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    train(tiny_config, data, tmp_path / "run")
    values = json.loads((data / "val.json").read_text())
    values["annotations"].pop()
    (data / "val.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"val\.json or its images have changed"):
        train(tiny_config, data, tmp_path / "run", resume=True)


def rewritten(data):
    (data / "val.json").write_text("{}")


def resized(data):
    for path in (data / "train").iterdir():
        Image.new("RGB", (50, 40)).save(path)


def removed(data):
    shutil.rmtree(data / "train")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("change", "step", "said"),
    [
        (rewritten, 0, r"val\.json has changed while it was in use; start again"),
        (resized, 0, r"train.0000\d\.png is 50 wide and 40 high .* but .*train\.json says 112 wide and 96 high"),
        (resized, 3, r"train.0000\d\.png is 50 wide and 40 high .* but .*train\.json says 112 wide and 96 high"),
        (removed, 3, r"train.0000\d\.png: there is no such image file"),
    ],
)
def test_data_that_change_while_they_are_trained_on(
    change, step, said, workers, shapes, tiny_config, tmp_path, monkeypatch
):
    """At the last step they are found when the threshold is tuned, as training images are read for it again."""
    data, check = shutil.copytree(shapes, tmp_path / "data"), check_finite

    def check_step(losses, at, image_ids):
        if at == step:
            change(data)
        check(losses, at, image_ids)

    monkeypatch.setattr(masklab.training.loop, "check_finite", check_step)
    with pytest.raises(InputError, match=said):
        train(changed(tiny_config, train={"steps": 4, "workers": workers}), data, tmp_path / "run")


def test_a_run_is_resumed_with_its_own_settings_only(shapes, tiny_config, tmp_path):
    run = tmp_path / "run"
    config = changed(tiny_config, train={"steps": 2, "validate_every": 1})
    train(config, shapes, run)
    with pytest.raises(InputError, match=r"train\.steps 2, not 3: give --train\.steps 2"):
        train(changed(config, train={"steps": 3}), shapes, run, resume=True)
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 2
    before = (run / "last.safetensors").read_bytes()
    words = ["train", str(run / "config.yaml"), "--data", str(shapes), "--output", str(run), "--resume"]
    assert main([*words, "--train.threads", "1"]) == 0
    assert (run / "last.safetensors").read_bytes() == before


def test_a_run_says_how_it_came_about(shapes, tiny_config, tmp_path):
    run = tmp_path / "run"
    train(changed(tiny_config, train={"steps": 1}), shapes, run)
    record = json.loads((run / "run.json").read_text())
    (start,) = record["starts"]
    assert {"torch", "masklab", "python"} <= set(start["versions"])
    assert start["command"]
    assert record["data"]["train"]["images"] == 8
    assert len(record["data"]["val"]["annotations_sha256"]) == 64
    assert set(json.loads((run / "split.json").read_text())) == {"train", "val"}
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 1


def test_the_last_step_is_validated_and_saved(shapes, tiny_config, tmp_path):
    train(changed(tiny_config, train={"steps": 3}), shapes, tmp_path)
    assert read_notes(tmp_path / "last.safetensors")["step"] == 3


def test_early_stopping(shapes, tiny_config, tmp_path, monkeypatch):
    scores = iter([0.1, 0.3, 0.2, 0.1, 0.5])
    score = lambda *_: {kind: dict.fromkeys(("AP", "AP50", "AP75"), value) for kind in ("mask", "box")}  # noqa: E731
    value = None

    def metrics(*arguments):
        nonlocal value
        value = next(scores)
        return score()

    monkeypatch.setattr("masklab.training.task.coco_metrics", metrics)
    config = changed(tiny_config, train={"steps": 9, "validate_every": 1, "patience": 2})
    train(config, shapes, tmp_path)
    assert read_notes(tmp_path / "best.safetensors")["step"] == 2
    assert read_notes(tmp_path / "last.safetensors")["step"] == 4
    train(config, shapes, tmp_path, resume=True)
    assert read_notes(tmp_path / "last.safetensors")["step"] == 4, "it stays stopped"


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_stop_does_so_at_once_and_says_how_to_go_on(
    shapes, tiny_config, tmp_path, monkeypatch, capsys, told
):
    """By Ctrl-C, or by a scheduler; it has not succeeded."""
    run, recipe = tmp_path / "run", recipe_file(tiny_config, tmp_path / "tiny.yaml")
    steps, before = [], signal.getsignal(told)
    if told == signal.SIGINT:  # which a shell has its background jobs ignore
        signal.signal(told, signal.default_int_handler)
    handler = signal.getsignal(told)

    def check_step(losses, step, image_ids):
        steps.append(step)
        if step == 2:
            os.kill(os.getpid(), told)

    monkeypatch.setattr(masklab.training.loop, "check_finite", check_step)
    assert main(["train", recipe, "--data", str(shapes), "--output", str(run)]) == 128 + told
    assert steps == [0, 1, 2]
    assert f"masklab: stopped after step 2: resume {run} to go on" in capsys.readouterr().err
    assert signal.getsignal(told) == handler
    signal.signal(told, before)


def old_checkpoint(state):
    """A checkpoint in the form of version 0.1, which Lightning's Trainer wrote."""
    names = {"box_head.": "box_classifier.", "mask_head.": "mask_branch."}

    def old_name(name):
        for new, old in names.items():
            name = old + name[len(new) :] if name.startswith(new) else name
        return name.replace("rpn.deltas.", "rpn.codes.").replace("box_classifier.deltas.", "box_classifier.codes.")

    def old_tensors(prefix, tensors):
        return {prefix + old_name(name): value for name, value in tensors.items()}

    rates = [group["lr"] for group in state["optimizer"]["param_groups"]]
    return {
        "epoch": 0,
        "global_step": state["global_step"],
        "pytorch-lightning_version": "2.6.6",
        "state_dict": old_tensors("average.network.", state["average"]) | old_tensors("step.model.", state["network"]),
        "loops": {"fit_loop": {"state_dict": {}}, "validate_loop": {}, "test_loop": {}, "predict_loop": {}},
        "callbacks": {"WeightsSaver": {name: state[name] for name in ("best", "below", "seconds")}},
        "optimizer_states": [state["optimizer"]],
        "lr_schedulers": [{"last_epoch": state["global_step"], "_last_lr": rates, "lr_lambdas": [None] * len(rates)}],
    }


def test_a_run_of_version_0_1_is_resumed(shapes, tiny_config, tmp_path, monkeypatch):
    """Its checkpoint is that of Lightning's Trainer, and its files have the old names of fields and layers."""
    config = changed(tiny_config, train={"ema": 0.9, "schedule": "cosine"})
    train(config, shapes, tmp_path / "whole")
    with monkeypatch.context() as patch:
        broken_at(patch, 3)
        with pytest.raises(BrokenLossError):
            train(config, shapes, tmp_path / "old")
    checkpoint = tmp_path / "old" / "resume.ckpt"
    old = old_checkpoint(torch.load(checkpoint, weights_only=True))
    order = list(dict.fromkeys(name.split(".")[2] for name in old["state_dict"] if name.startswith("step.")))
    # the optimiser's state is numbered in this order
    assert order == ["backbone", "rpn", "box_classifier", "mask_branch", "refinement"]
    assert {"average.network.rpn.codes.weight", "step.model.box_classifier.codes.bias"} < set(old["state_dict"])
    torch.save(old, checkpoint)
    settings = yaml.safe_load((tmp_path / "old" / "config.yaml").read_text())
    settings["pictures"] = settings.pop("image")
    settings["pictures"]["augment"]["crop"] = settings["pictures"]["augment"].pop("crop_size")
    settings["model"]["box"]["crop"] = settings["model"]["box"].pop("roi_size")
    settings["model"]["mask"]["crop"] = settings["model"]["mask"].pop("mask_size")
    del settings["train"]["loggers"]
    (tmp_path / "old" / "config.yaml").write_text(yaml.safe_dump(settings))
    record = json.loads((tmp_path / "old" / "run.json").read_text())
    for facts in record["data"].values():
        facts |= {"pictures": facts.pop("images"), "pictures_sha256": facts.pop("images_sha256")}
    (tmp_path / "old" / "run.json").write_text(json.dumps(record))
    recipe = str(tmp_path / "old" / "config.yaml")
    words = ["train", recipe, "--data", str(shapes), "--output", str(tmp_path / "old"), "--resume"]
    assert main(words) == 0
    assert [start["step"] for start in read_record(tmp_path / "old")["starts"]] == [0, 2]
    assert_same_run(tmp_path / "whole", tmp_path / "old")


# Loggers


class FakeLogger:
    """Stands for Lightning's loggers of W&B and MLflow."""

    made: ClassVar[list] = []

    def __init__(self, *arguments, **settings):
        self.arguments, self.settings, self.rows, self.params = arguments, settings, {}, None
        self.version = self.run_id = settings.get("version") or settings.get("run_id") or f"id {len(self.made)}"
        self.experiment, self.ended = self, []
        self.made.append(self)

    def log_hyperparams(self, params):
        self.params = params

    def log_metrics(self, row, step):
        self.rows.setdefault(step, {}).update(row)

    def save(self):
        pass

    def finalize(self, status):
        self.ended.append(status)

    def finish(self, exit_code):
        self.ended.append(exit_code)


def test_loggers_come_by_naming_them(shapes, tiny_config, tmp_path, monkeypatch):
    """W&B and MLflow get what metrics.csv gets, and a resumed run goes on under the same id."""
    monkeypatch.setattr(FakeLogger, "made", [])
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", FakeLogger)
    monkeypatch.setattr("lightning.pytorch.loggers.MLFlowLogger", FakeLogger)
    monkeypatch.setattr("masklab.training.log.installed", lambda name: True)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(get_tracking_uri=lambda: "uri"))
    run, names = tmp_path / "run", ["csv", "wandb", "mlflow"]
    config = changed(tiny_config, train={"loggers": names})
    with monkeypatch.context() as patch:
        broken_at(patch, 3)
        with pytest.raises(BrokenLossError):
            train(config, shapes, run)
    train(config, shapes, run, resume=True)
    first, resumed = FakeLogger.made[:2], FakeLogger.made[2:]
    assert [logger.version for logger in first] == [logger.version for logger in resumed] == ["id 0", "id 1"]
    assert all(logger.params["train.steps"] == 4 for logger in first)
    assert not any(logger.params for logger in resumed)
    assert [logger.ended for logger in first] == [["failed", 1], ["failed"]]
    assert [logger.ended for logger in resumed] == [["success", 0], ["success"]]
    rows = rows_of(run)
    for logger in resumed:
        assert list(logger.rows) == [3, 4]
        assert str(logger.rows[4]["val/mask_AP"]) == rows[-1]["val/mask_AP"]
        assert str(logger.rows[3]["loss"]) == rows[-3]["loss"]
    assert not list(run.glob("events*")), "TensorBoard was not named"


def test_a_training_goes_on_without_a_logger_that_fails(shapes, tiny_config, tmp_path, monkeypatch, caplog):
    """One that cannot be opened is refused before the first step; one that fails later, or at the end, is left."""

    class Failing(FakeLogger):
        failing = "log_metrics"

        def __getattribute__(self, name):
            if name == type(self).failing:
                raise ConnectionError("no\nserver.")
            return super().__getattribute__(name)

    monkeypatch.setattr(FakeLogger, "made", [])
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", Failing)
    monkeypatch.setattr("masklab.training.log.installed", lambda name: True)
    config = changed(tiny_config, train={"loggers": ["csv", "wandb"]})
    for failing in ("log_metrics", "finalize"):
        caplog.clear()
        Failing.failing = failing
        train(config, shapes, tmp_path / failing)
        said = [record.message for record in caplog.records if "wandb" in record.message]
        assert said == ["train.loggers: wandb failed (no server): the training goes on without it."]
        assert [row["step"] for row in rows_of(tmp_path / failing)][-1] == "4"
    Failing.failing = "log_hyperparams"
    fails(["wandb, which cannot be opened (no server)"], train, config, shapes, tmp_path / "run")
    Failing.failing = "experiment"
    fails(["wandb, which cannot be opened"], train, config, shapes, tmp_path / "log_metrics", True)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_without_its_package_is_refused(shapes, tiny_config, tmp_path, monkeypatch, name):
    monkeypatch.setattr("masklab.training.log.installed", lambda name: False)
    config = changed(tiny_config, train={"loggers": ["csv", name]})
    fails([f"train.loggers names {name}", "not installed: pip install"], train, config, shapes, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir()), "before the training starts"


def test_other_loggers_are_refused(tiny_config):
    fails(["train.loggers", "comet"], lambda: changed(tiny_config, train={"loggers": ["comet"]}))


def test_without_csv_there_is_no_metrics_file(shapes, tiny_config, tmp_path):
    train(changed(tiny_config, train={"steps": 1, "loggers": ["tensorboard"]}), shapes, tmp_path)
    assert not (tmp_path / "metrics.csv").exists()
    assert list(tmp_path.glob("events.out.tfevents*"))


# Files that were tampered with


def step_of(run):
    with open_run(run, resume=True) as start:
        return start.step


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("content", ["hostile", "plain hostile", "truncated", "text", "other"])
def test_a_checkpoint_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "resume.ckpt"
    if content == "plain hostile":
        path.write_bytes(pickle.dumps({"global_step": Hostile(tmp_path / "owned")}, 2))
    elif content == "text":
        path.write_text("nothing")
    else:
        value = Hostile(tmp_path / "owned") if content == "hostile" else torch.zeros(100)
        torch.save({"step" if content == "other" else "global_step": 3, "value": value}, path)
        if content == "truncated":
            path.write_bytes(path.read_bytes()[:-300])
    fails(["resume.ckpt is damaged or not a checkpoint"], step_of, tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.fixture(scope="module")
def weights(tiny_config, classes, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(build_model(tiny_config, classes), path)
    return path


def test_a_weights_file_carries_a_checksum_that_others_can_read(weights):
    with safe_open(weights, framework="pt") as opened:
        assert len(opened.metadata()["sha256"]) == 64
    load_model(weights)


@pytest.mark.parametrize("edit", ["tensor", "header", "truncated", "longer"])
def test_a_weights_file_that_was_changed_is_refused(weights, tmp_path, edit):
    data, path = bytearray(weights.read_bytes()), tmp_path / "edited.safetensors"
    if edit == "tensor":
        data[-100] ^= 1
    elif edit == "header":
        data = data.replace(b'"score_threshold": "null"', b'"score_threshold": "0.25"')
    elif edit == "truncated":
        del data[-1:]
    else:
        data += b"\0"
    assert data != weights.read_bytes()
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"edited\.safetensors (was changed|is not a weights file or is damaged)"):
        load_model(path)


def test_a_weights_file_without_a_checksum_is_taken(weights, tmp_path):
    with safe_open(weights, framework="pt") as opened:
        header = {name: value for name, value in opened.metadata().items() if name != "sha256"}
    save_file(load_file(weights), tmp_path / "old.safetensors", header)
    load_model(tmp_path / "old.safetensors")


def with_header(weights, path, **facts):
    """Other facts in a weights file, without a checksum."""
    with safe_open(weights, framework="pt") as opened:
        header = {name: value for name, value in opened.metadata().items() if name != "sha256"} | facts
    save_file(load_file(weights), path, {name: value for name, value in header.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("config", value) for value in (None, "{", "[]", '{"model": 3}')),
        *(("classes", value) for value in (None, "[]", "{}", '{"ids": [2, 5], "names": ["a", "b", "c"]}')),
        ("classes", '{"ids": [5, 2, 9], "names": ["a", "b", "c"]}'),
        ("classes", '{"ids": [2, 2, 9], "names": ["a", "b", "c"]}'),
        *(("score_threshold", value) for value in (None, "NaN", "2", '"0.5"')),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(weights, tmp_path, name, value):
    fails(["edited.safetensors"], load_model, with_header(weights, tmp_path / "edited.safetensors", **{name: value}))


@pytest.mark.parametrize("channels", [2**30, 2**62, 10**30])
def test_a_header_that_asks_for_a_huge_model_takes_no_memory(weights, tmp_path, channels):
    with safe_open(weights, framework="pt") as opened:
        config = json.loads(opened.metadata()["config"])
    config["model"]["rpn"]["channels"] = channels
    path = with_header(weights, tmp_path / "edited.safetensors", config=json.dumps(config))
    fails(["edited.safetensors", "model.rpn.channels", "must be a whole number from 1 to"], load_model, path)


def test_notes_that_make_no_sense_are_refused(weights, tmp_path):
    for value in (None, "[]", "{"):
        fails(["a.safetensors", "notes"], read_notes, with_header(weights, tmp_path / "a.safetensors", notes=value))


def test_a_checkpoint_of_which_a_bit_was_turned_over_is_refused(tmp_path):
    path = tmp_path / "resume.ckpt"
    torch.save({"global_step": 3, "weight": torch.zeros(100_000)}, path)
    assert step_of(tmp_path) == 3
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["weight"].count_nonzero() == 1, "torch reads it"
    fails(["resume.ckpt", "damaged"], step_of, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"data": 3, "starts": []}', '{"data": {}}', "\udcff"])
def test_a_damaged_record_is_named(tmp_path, tiny_config, text):
    content = text.encode("utf-8", "surrogateescape")
    (tmp_path / "run.json").write_bytes(content)
    fails(["run.json", "damaged"], read_record, tmp_path)
    (tmp_path / "config.yaml").write_bytes(content or b"- 1")
    if text[:5] != '{"dat':
        fails(["config.yaml"], refuse_other_settings, tmp_path, tiny_config)
    (tmp_path / "metrics.csv").write_bytes(b"step,loss\nx,1\n" + content)
    fails(["metrics.csv", "damaged"], read_log, tmp_path / "metrics.csv", 3)


# The average of the weights


def test_the_average_is_that_of_the_weights_at_each_step():
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    nn.init.constant_(network[0].weight, 8.0)
    average = ExponentialMovingAverage(network, 0.5)
    values = [2.0, 4.0, 0.0, 1.0]
    expected = 8.0
    for step, value in enumerate(values, 1):
        nn.init.constant_(network[0].weight, value)
        network[1].num_batches_tracked += 1
        average.update(network, step)
        kept = min(0.5, step / (step + 9))
        expected = kept * expected + (1 - kept) * value
    assert average.network[0].weight.item() == pytest.approx(expected)
    assert average.network[1].num_batches_tracked == 4
    far = ExponentialMovingAverage(network, 0.9)
    nn.init.constant_(network[0].weight, 3.0)
    far.update(network, 10**6)
    assert far.network[0].weight.item() == pytest.approx(0.9 * 1 + 0.1 * 3)
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_the_average_is_what_is_saved(shapes, tiny_config, tmp_path):
    train(changed(tiny_config, train={"steps": 3, "ema": 0.9}), shapes, tmp_path / "ema")
    train(changed(tiny_config, train={"steps": 3}), shapes, tmp_path / "plain")
    saved, plain = (load_file(tmp_path / run / "last.safetensors") for run in ("ema", "plain"))
    state = torch.load(tmp_path / "ema" / "resume.ckpt", weights_only=True)
    moved = 0
    for name, value in saved.items():
        assert torch.equal(value, state["average"][name])
        assert torch.equal(plain[name], state["network"][name]), "it changes nothing of the training"
        moved += not torch.equal(value, plain[name])
    assert moved > 10


# Parts and processes


def gradients(config, split, batch, **settings):
    torch.manual_seed(0)
    network = build_model(changed(config, train=settings), split.categories).train()
    losses = BatchGradients(InstanceTask(network, split), torch.device("cpu")).add(batch)
    found = {name: p.grad for name, p in network.named_parameters()}
    return found | {"losses": torch.stack([losses[name] for name in sorted(losses)])}


def test_parts_give_the_gradients_of_the_whole_batch(shapes, tiny_config):
    """With group norm, all of them, samples included: also where images have no objects or few proposals."""
    config = changed(tiny_config, train={"batch_size": 4})
    split = Split.find(shapes, "train")
    batch = next(iter(train_loader(split, config)))
    empty = batch.targets[3]
    for name in ("boxes", "labels", "masks", "mask_boxes", "mask_rows"):
        setattr(empty, name, getattr(empty, name)[:0])
    whole = gradients(config, split, batch, accumulate=1, threads=1)
    assert whole["losses"].min() > 0
    for accumulate, threads in [(2, 1), (4, 1), (2, 2), (1, 4)]:
        parts = gradients(config, split, batch, accumulate=accumulate, threads=threads)
        again = gradients(config, split, batch, accumulate=accumulate, threads=threads)
        for name, value in whole.items():
            assert torch.equal(parts[name], again[name]), f"{name} depends on which thread was first"
            torch.testing.assert_close(parts[name], value, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_a_batch_is_cut_into_no_more_parts_than_images(shapes, tiny_config):
    batch = next(iter(train_loader(Split.find(shapes, "train"), tiny_config)))
    assert [part.image_ids for part in split_batch(batch, 5)] == [[i] for i in batch.image_ids]


def test_processes_share_the_stream_without_overlap():
    whole = list(StreamSampler(range(7), 6, 5, seed=1, first_step=2))
    shares = [list(StreamSampler(range(7), 6, 5, seed=1, first_step=2, share=(rank, 3))) for rank in range(3)]
    assert [[*a, *b, *c] for a, b, c in zip(*shares, strict=True)] == whole
    with pytest.raises(InputError, match="make it a multiple of 4"):
        StreamSampler(range(7), 6, 5, seed=1, share=(0, 4))


@needs_fork
def test_two_processes_are_one(shapes, tiny_config, tmp_path, one_thread):
    """As torchrun starts them, over gloo: one process never sees an object, and there are three images to validate on."""
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    settings = {"steps": 2, "validate_every": 1, "validate_images": 3, "learning_rate": 0.01, "optimizer": "sgd"}
    config = changed(tiny_config, train=settings)
    values = json.loads((data / "train.json").read_text())
    ids = [image["id"] for image in values["images"]]
    empty = {ids[index] for batch in StreamSampler(range(8), 2, 2, seed=0, share=(1, 2)) for _, index in batch}
    values["annotations"] = [a for a in values["annotations"] if a["image_id"] not in empty]
    (data / "train.json").write_text(json.dumps(values))
    words = ["train", recipe_file(config, tmp_path / "tiny.yaml"), "--data", str(data), "--output"]
    both = [
        in_another_process(printing, tmp_path / each["RANK"], [*words, str(tmp_path / "two")], **each)
        for each in torchrun(2)
    ]
    for process in both:
        process.join(100)
        assert process.exitcode == 0
    assert printing(tmp_path / "alone", [*words, str(tmp_path / "one")]) == 0
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for row, other in zip(one, two, strict=True):
        for name, value in row.items():
            assert float(other[name] or 0) == pytest.approx(float(value or 0), rel=1e-3, abs=1e-5, nan_ok=True), name
    assert read_notes(tmp_path / "two")["val"].keys() == read_notes(tmp_path / "one")["val"].keys()
    first, second = (load_file(tmp_path / run / "last.safetensors") for run in ("one", "two"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert not list((tmp_path / "two").glob("*.part"))
    shown = re.findall(r"^step \d+/.* loss (\S+)", (tmp_path / "0").read_text(), re.MULTILINE)
    assert shown == [f"{float(row['loss']):.3f}" for row in two if row["loss"]], "all processes' losses, not its own"
    assert "step" not in (tmp_path / "1").read_text()
    scored = [re.findall(r"^scored (.*)", (tmp_path / name).read_text(), re.MULTILINE) for name in ("alone", "0", "1")]
    assert scored[0] == scored[1] == scored[2] == ["[1, 2, 3] [1, 2, 3]"] * 2, "each image once, by both"


def test_processes_of_another_launcher_are_refused(tiny_config, monkeypatch):
    """Each would be a run of its own, in the same folder."""
    settings = tiny_config.train.model_copy(update={"nodes": 2})
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "2")
            fails(["2 processes were started", "torchrun"], build_fabric, settings)
            patch.setenv("NODE_RANK", "1")
            patch.setattr(rank_zero_only, "rank", 0)  # which Lightning changes, and which is put back here
            fabric = build_fabric(settings)
            assert (fabric.global_rank, fabric.world_size, fabric.strategy.num_nodes) == (1, 2, 2)
            fails(["2 processes were started", "torchrun"], build_fabric, tiny_config.train)


def test_in_a_slurm_job_a_run_starts_its_processes_itself(shapes, tiny_config, tmp_path, monkeypatch):
    for name, value in {"NTASKS": "4", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "train"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    train(changed(tiny_config, train={"steps": 1}), shapes, tmp_path)


def test_fp16_without_a_gpu_is_refused(shapes, tiny_config, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=r"train\.precision is fp16 but there is no CUDA GPU"):
        train(changed(tiny_config, train={"precision": "fp16"}), shapes, tmp_path)


def test_scaled_gradients_train_as_plain_ones(shapes, tiny_config, tmp_path, monkeypatch):
    """As fp16 needs them on a GPU; clipping sees the true size, and a resumed run keeps the scale."""
    settings = {"optimizer": "sgd", "clip_norm": 0.1, "clip_by": "global"}
    config = changed(tiny_config, train=settings)
    train(config, shapes, tmp_path / "plain")
    scaler = partial(torch.amp.GradScaler, "cpu", init_scale=1024.0, growth_interval=3)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda enabled: scaler())
    with monkeypatch.context() as patch:
        broken_at(patch, 3)
        with pytest.raises(BrokenLossError):
            train(config, shapes, tmp_path / "scaled")
    train(config, shapes, tmp_path / "scaled", resume=True)
    state = torch.load(tmp_path / "scaled" / "resume.ckpt", weights_only=True)["scaler"]
    assert (state["scale"], state["_growth_tracker"]) == (2048.0, 1)
    plain, scaled = (load_file(tmp_path / run / "last.safetensors") for run in ("plain", "scaled"))
    for name, value in plain.items():
        torch.testing.assert_close(scaled[name], value, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_batch_size_that_fits_is_found_by_doubling(shapes, tiny_config, tmp_path, monkeypatch):
    config, split = changed(tiny_config, train={"batch_size": "auto"}), Split.find(shapes, "train")
    tried = []

    def fits(candidate, split):
        tried.append(candidate.train.batch_size)
        return candidate.train.batch_size < 6

    auto.try_steps(changed(config, train={"batch_size": 2}), split, torch.device("cpu"))
    monkeypatch.setattr(auto, "fits", fits)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"train\.batch_size is auto but there is no CUDA GPU to measure: give"):
            auto.resolve_batch_size(config, split, None, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fails(["train.batch_size is auto but several processes share it"], auto.resolve_batch_size, config, split, None, 2)
    found = auto.resolve_batch_size(config, split, None, 1)
    assert found.train.batch_size == 4
    assert tried == [2, 4, 8]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(found.model_dump(mode="json")))
    resumed = auto.resolve_batch_size(config, split, tmp_path, 1)
    assert resumed.train.batch_size == 4
    assert len(tried) == 3, "what was found stays"
    (tmp_path / "config.yaml").write_text("")
    fails(["config.yaml"], auto.resolve_batch_size, config, split, tmp_path, 1)
