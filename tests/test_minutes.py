"""Runs by the clock: the steps that fit into train.minutes."""

from types import SimpleNamespace

import pytest
import yaml
from contracts import changed
from pydantic import ValidationError
from test_long_runs import assert_same_run

import masklab.training.log
import masklab.training.loop
from masklab.config.train import TrainConfig
from masklab.training.clock import Pace, plan
from masklab.training.log import RunLog
from masklab.training.train import train
from masklab.utils.errors import BrokenLossError, InputError
from masklab.weights.checkpoint import load_model

PACE = Pace(step=0.5, validation=20, spent=30, after=10)


def test_the_steps_fit_beside_what_is_not_a_step():
    settings = TrainConfig(minutes=10, steps=4000, validate_every=1000, warmup_steps=400, ema=0.999)
    planned = plan(settings, PACE)
    assert planned.steps == (600 - 30 - 10 - 4 * 20) / 0.5
    assert (planned.warmup_steps, planned.validate_every) == (96, 240)
    assert planned.ema ** (planned.steps / 4000) == pytest.approx(0.999)
    assert planned.minutes == 10


def test_a_time_for_not_one_step_gives_one():
    planned = plan(TrainConfig(minutes=0.5, steps=4000, validate_every=4000, warmup_steps=100), PACE)
    assert (planned.steps, planned.validate_every, planned.warmup_steps) == (1, 1, 0)


def test_settings_without_minutes_stay():
    settings = TrainConfig()
    assert plan(settings, PACE) is settings


@pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan"), "soon"])
def test_no_time_at_all_is_refused(minutes):
    with pytest.raises(ValidationError):
        TrainConfig(minutes=minutes)


def test_a_run_says_after_ten_steps_how_long_it_takes(tiny_config, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "masklab")
    clock = iter(range(0, 1000, 6))  # a step takes six seconds
    monkeypatch.setattr(masklab.training.log.time, "monotonic", lambda: next(clock))
    config = changed(tiny_config, train={"steps": 105, "loggers": []})
    lock = SimpleNamespace(folder=tmp_path, check=lambda: None)
    log = RunLog(tmp_path, config, 5, {}, lock)
    for step in range(6, 20):
        log.advance(step)
        if step == 14:
            assert not caplog.messages
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("100 steps of ")


def four_steps(settings, pace):
    assert pace.step > 0
    assert pace.validation > 0
    return settings.model_copy(update={"steps": 4, "validate_every": 2, "warmup_steps": 1})


def test_a_run_by_the_clock_is_the_run_of_its_steps_and_keeps_them(shapes, tiny_config, tmp_path, monkeypatch):
    """Measuring leaves no trace; a resumed run measures nothing, though its recipe names another number of steps."""
    config = changed(tiny_config, train={"steps": 50, "validate_every": 50, "ema": 0.9, "warmup_steps": 7})
    train(four_steps_of(config), shapes, tmp_path / "whole")
    by_clock = changed(config, train={"minutes": 1})
    monkeypatch.setattr(masklab.training.loop, "plan", four_steps)
    train(by_clock, shapes, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]
    assert (written["minutes"], written["steps"], written["validate_every"]) == (1, 4, 2)
    assert load_model(tmp_path / "run").config.train.steps == 4

    with monkeypatch.context() as patch:
        patch.setattr(masklab.training.loop, "check_finite", power_cut_after(12 + 3))  # twelve are measured
        with pytest.raises(BrokenLossError):
            train(by_clock, shapes, tmp_path / "parts")
    monkeypatch.setattr(masklab.training.loop, "plan", None)
    train(by_clock, shapes, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    with pytest.raises(InputError, match=r"train\.minutes 1\.0, not 2"):
        train(changed(config, train={"minutes": 2}), shapes, tmp_path / "parts", resume=True)
    (tmp_path / "parts" / "config.yaml").write_text("train: {steps: -3}")
    with pytest.raises(InputError, match=r"config\.yaml is damaged"):
        train(by_clock, shapes, tmp_path / "parts", resume=True)


def power_cut_after(steps):
    done = []

    def check_step(losses, step, image_ids):
        done.append(step)
        if len(done) > steps:
            raise BrokenLossError("power cut")

    return check_step


def four_steps_of(config):
    return changed(config, train={"steps": 4, "validate_every": 2, "warmup_steps": 1})
