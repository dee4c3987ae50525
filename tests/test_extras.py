"""Without the packages of an extra: what needs them says so before it starts, and the rest works."""

import sys

import numpy as np
import pytest
from contracts import changed, fails

import masklab
from masklab.cli.app import main
from masklab.datasets.synthetic.nuclei import draw_nuclei
from masklab.results.text import _letters, drawable
from masklab.training.train import train


@pytest.fixture
def missing(monkeypatch):
    """Make packages look as if they were not installed."""

    def remove(*packages):
        for package in packages:
            monkeypatch.setitem(sys.modules, package, None)

    _letters.cache_clear()
    yield remove
    _letters.cache_clear()


def test_what_draws_charts_names_the_extra_first(shapes, tmp_path, missing, capsys):
    missing("matplotlib")
    out = str(tmp_path / "out")
    for words in (
        ["data", "show", str(shapes), "--output", out],
        ["report", "nuclei", "--data", str(shapes), "--output", out],
        ["evaluate", "nuclei", "--data", str(shapes), "--report", out],
        ["ablate", "table3", "--recipe", "shapes", "--data", str(shapes), "--output", out],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert 'needs matplotlib, which is not installed: pip install "masklab[report]".' in said, words
        assert not (tmp_path / "out").exists()


def test_training_needs_no_extra(shapes, tmp_path, missing, capsys):
    missing("matplotlib", "tensorboard")
    quick = ["--train.steps", "1", "--train.batch_size", "1", "--train.workers", "0", "--model.backbone.width", "0.25"]
    assert main(["train", "shapes", "--data", str(shapes), "--output", str(tmp_path / "run"), *quick]) == 0
    assert 'pip install "masklab[report]"' in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.csv").is_file()
    assert (tmp_path / "run" / "best.safetensors").is_file()
    assert not (tmp_path / "run" / "report.html").exists()


def test_an_overlay_has_its_labels_without_matplotlib(missing):
    missing("matplotlib")
    assert drawable("Zelle 0.5", 13)[0] == "Zelle 0.5"
    assert drawable("Zellk\u00f6rper", 13)[0] == "ZellkU+00F6rper"
    instances = masklab.Instances(
        (256, 256),
        np.float32([[50, 50, 200, 200]]),
        np.float32([0.9]),
        np.int64([0]),
        np.ones((1, 5, 5), np.float32),
        ("a", "\u7ec6"),
        (1, 2),
    )
    assert masklab.overlay(draw_nuclei()[0], instances, 0.5).size[0] >= 256


def test_tensorboard_is_an_extra(shapes, tiny_config, tmp_path, missing):
    """Configurations of runs that name it are still read."""
    missing("tensorboard")
    config = changed(tiny_config, train={"loggers": ["csv", "tensorboard"]})
    words = ["train.loggers names tensorboard", 'pip install "masklab[tensorboard]"', "--train.loggers [csv]"]
    fails(words, train, config, shapes, tmp_path / "run")
