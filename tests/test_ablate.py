"""Tables over any data set: what runs, what is kept, what is refused, and how the order is counted."""

import csv
import json

import pytest
import yaml
from PIL import Image

from masklab.cli.app import main
from masklab.datasets.source import DataSource
from masklab.paper import ablate as ablate_module
from masklab.paper.ablate import ablate, row_config
from masklab.paper.comparison import Result, draw_results, mean_and_std, order_of, order_sentence, orders, write_results
from masklab.paper.tables import Row, table_rows
from masklab.training import train as train_module
from masklab.utils.errors import BrokenLossError, FailedRunsError, InputError
from masklab.weights.checkpoint import load_model
from masklab.weights.facts import read_notes

ROWS = ("table3-2", "table3-4")


@pytest.fixture(scope="module")
def recipe(tiny_config, tmp_path_factory):
    """A file with a small model that learns in two steps what one can in two steps."""
    values = tiny_config.model_dump(mode="json")
    values["train"] |= {"steps": 2, "validate_every": 1, "threads": 1}
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture(scope="module")
def finished(shapes, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablate") / "out"
    return folder, ablate("table3", shapes, folder, 2, recipe, rows=ROWS)


def figures(folder):
    return {str(p.relative_to(folder).parent): json.loads(p.read_text())["mask"] for p in folder.rglob("metrics.json")}


def test_every_row_is_trained_and_evaluated_with_every_seed(finished, shapes):
    folder, results = finished
    assert set(figures(folder)) == {f"{row}/seed{k}" for row in ROWS for k in (0, 1)}
    for row, directions in zip(ROWS, (2, 4), strict=True):
        for seed in (0, 1):
            config = load_model(folder / row / f"seed{seed}").config
            assert (config.model.mask.directions, config.train.seed) == (directions, seed)
            assert config.model.backbone.width == 0.25, "the rest is the recipe's"
    assert [len(result.figures) for result in results] == [2, 2]


def test_the_written_tables_hold_what_the_runs_measured(finished):
    folder, _ = finished
    found = figures(folder)
    rows = list(csv.DictReader((folder / "table3.csv").read_text().splitlines()))
    assert [(row["row"], row["runs"], row["paper_AP50"], row["paper_AP75"]) for row in rows] == [
        ("table3-2", "2", "53.51", "33.8"),
        ("table3-4", "2", "53.85", "34.39"),
    ]
    for row in rows:
        first, second = (100 * found[f"{row['row']}/seed{k}"]["AP50"] for k in (0, 1))
        assert float(row["mask_AP50"]) == pytest.approx((first + second) / 2)
        assert float(row["mask_AP50_sd"]) == pytest.approx(abs(first - second) / 2**0.5)
        masks_alone = [
            json.loads((folder / row["row"] / f"seed{k}" / "metrics.json").read_text())["mask_in_true_boxes"]["AP"]
            for k in (0, 1)
        ]
        assert float(row["mask_AP_in_true_boxes"]) == pytest.approx(50 * sum(masks_alone))
    text = (folder / "table3.md").read_text()
    assert "| table3-4 | 2 |" in text
    assert "34.39" in text
    assert "Pairs of rows that the paper's mask AP75 tells apart: 1;" in text
    with Image.open(folder / "table3.png") as image:
        assert image.width <= 1600
        assert len(image.getcolors(1 << 20)) > 10
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_finished_runs_are_kept(finished, shapes, recipe, monkeypatch, caplog):
    folder, results = finished

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(ablate_module, "train", refuse)
    caplog.set_level("INFO", "masklab")
    assert ablate("table3", shapes, folder, 2, recipe, rows=ROWS) == results
    assert [record.getMessage() for record in caplog.records].count("finished before") == 4


def test_a_failing_run_is_reported_and_resumed_and_the_rest_goes_on(finished, shapes, recipe, tmp_path, monkeypatch):
    """Broken at its second step, after a checkpoint; the next call brings it to where the unbroken run ended."""
    reference, _ = finished
    real, steps = train_module.train, []

    def breaks(losses, step, image_ids):
        if step == 1:
            raise BrokenLossError("power cut.")

    def train(config, data, resume=False):
        steps.append((config.output.parent.name, resume))
        with monkeypatch.context() as patch:
            if config.output.parent.name == "table3-2" and not resume:
                patch.setattr("masklab.training.loop.check_finite", breaks)
            return real(config, data, resume=resume)

    monkeypatch.setattr(ablate_module, "train", train)
    with pytest.raises(FailedRunsError, match=r"1 of 2 runs failed \(.*table3-2/seed0: power cut\)"):
        ablate("table3", shapes, tmp_path, 1, recipe, rows=ROWS)
    assert [*figures(tmp_path)] == ["table3-4/seed0"]
    assert "| table3-2 | 0 | - |" in (tmp_path / "table3.md").read_text()
    assert "power cut" in (tmp_path / "table3-2" / "seed0" / "error.txt").read_text()

    results = ablate("table3", shapes, tmp_path, 1, recipe, rows=ROWS)
    assert steps == [("table3-2", False), ("table3-4", False), ("table3-2", True)]
    assert read_notes(tmp_path / "table3-2" / "seed0" / "last.safetensors")["step"] == 2
    assert figures(tmp_path)["table3-2/seed0"] == figures(reference)["table3-2/seed0"]
    assert [len(result.figures) for result in results] == [1, 1]
    assert not (tmp_path / "table3-2" / "seed0" / "error.txt").exists()


def test_a_run_stopped_before_or_after_its_checkpoints_goes_on(finished, shapes, recipe, tmp_path):
    reference, _ = finished
    run = tmp_path / "table3-2" / "seed0"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("step\n")  # no checkpoint yet
    (run / "run.json").write_text('{"checkpoint": "resume.ckpt", "data": {}, "starts": []}')
    ablate("table3", shapes, tmp_path, 1, recipe, rows=ROWS[:1])
    (run / "metrics.json").unlink()  # trained to the end, not evaluated
    ablate("table3", shapes, tmp_path, 1, recipe, rows=ROWS[:1])
    assert figures(tmp_path)["table3-2/seed0"] == figures(reference)["table3-2/seed0"]


def test_runs_of_other_settings_are_refused(finished, shapes, recipe):
    folder, _ = finished
    with pytest.raises(
        InputError, match=r"seed0 holds a run with train\.steps 2, not 3: give .* or another output folder"
    ):
        ablate("table3", shapes, folder, 1, recipe, {"train": {"steps": 3}}, ROWS)


@pytest.mark.parametrize(
    ("table", "overrides", "rows", "words"),
    [
        ("table5", {}, None, ["row table5-444-111", "dilations has 3 values", "model.backbone.name resnet18 has 2"]),
        ("table6", {}, None, ["row table6-base", "model.box.from_imagenet", "model.backbone.pretrained", "--rows"]),
        ("table6", {}, ["table6-seg"], ["row table6-seg", "segmentation_weights", "`masklab pretrain`"]),
        ("table3", {"model": {"mask": {"directions": 4}}}, None, ["model.mask.directions", "row table3-2"]),
        ("table3", {}, ["table3-5"], ["table3-5", "choose from table3-2, table3-4"]),
        ("heads", {"model": {"mask": {"dilations": [1, 2, 4]}}}, None, ["row heads-masklab", "model.mask.dilations"]),
        ("table3", {"model": {"nonsense": 1}}, None, ["model.nonsense"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(shapes, recipe, tmp_path, table, overrides, rows, words):
    with pytest.raises(InputError) as refused:
        ablate(table, shapes, tmp_path / "out", 1, recipe, overrides, rows)
    for word in words:
        assert word in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_rows_change_any_recipe_and_share_the_overrides():
    rows = table_rows("table6")
    weights = {"model": {"backbone": {"segmentation_weights": "mine.safetensors", "name": "resnet50.tv_in1k"}}}
    made = {row.name: row_config(row, "resnet101", weights, rows[:-1]) for row in rows[:-1]}
    files = {name: config.model.backbone.segmentation_weights for name, config in made.items()}
    assert {name: path and path.name for name, path in files.items()} == {
        row.name: None if row.name in ("table6-base", "table6-bc") else "mine.safetensors" for row in rows[:-1]
    }
    assert {config.model.backbone.name for config in made.values()} == {"resnet50.tv_in1k"}
    assert made["table6-dc"].model.box.deformable == "grid"
    assert made["table6-mg"].model.box.deformable is None
    assert made["table6-rs"].image.augment.min_sides == [480, 576, 688, 800, 930]


def results_of(*rows):
    names = ("mask AP", "mask AP50", "mask AP75", "box AP")
    return [
        Result(Row(f"r{k}", "", {}, paper), [dict.fromkeys(names, v) for v in runs])
        for k, (paper, runs) in enumerate(rows)
    ]


def test_order_by_hand():
    """Deviation of a run sqrt((0.5 + 0.5 + 0 + 0) / 4) = 0.5, so means of two runs are clear from 2 * 0.5 * 1 = 1 on."""
    order = order_of(
        results_of(
            ({"AP75": 30.0}, [10.0, 11.0]),
            ({"AP75": 31.0}, [14.0, 15.0]),
            ({"AP75": 32.0}, [12.0, 12.0]),
            ({"AP75": 32.0}, [12.5, 12.5]),
            ({"AP75": 33.0}, []),
        )
    )
    # 0-1, 0-2, 0-3 the same; 1-2, 1-3 the other; 2-3 equal in the paper, 4 without runs
    assert (order.same, order.other, order.unclear) == (3, 2, 0)
    assert order.error == pytest.approx(0.5)
    near = order_of(results_of(({"AP75": 30.0}, [10.0, 11.0]), ({"AP75": 31.0}, [11.0, 11.5])))
    assert (near.same, near.other, near.unclear) == (0, 0, 1)


def test_order_without_figures_without_spread_and_by_ap50():
    assert order_of([]) is order_of(results_of(({}, [1.0]))) is None
    assert "no such table" in orders([])
    order = order_of(results_of(({"AP50": 2.0}, [1.0]), ({"AP50": 3.0}, [1.1]), ({"AP50": 4.0}, [None])))
    assert (order.figure, order.same, order.other, order.unclear, order.error) == ("AP50", 1, 0, 0, None)
    assert "one run per row gives no standard deviation" in order_sentence(order)


def test_order_with_own_and_with_true_boxes():
    rows = [Row("low", "", {}, {"AP75": 30.0}), Row("high", "", {}, {"AP75": 31.0})]
    figures = (
        {"mask AP75": 20.0, "mask AP75 in true boxes": 50.0},
        {"mask AP75": 19.0, "mask AP75 in true boxes": 60.0},
    )
    own, true = orders([Result(row, [run]) for row, run in zip(rows, figures, strict=True)]).split("\n\n")
    assert "here in the same order: 0, in the other: 1" in own
    assert "here in true boxes in the same order: 1, in the other: 0" in true


def test_mean_and_spread_by_hand():
    assert mean_and_std([]) == (None, None)
    assert mean_and_std([3.0]) == (3.0, None)
    assert mean_and_std([1.0, 2.0, 3.0]) == (2.0, 1.0)


@pytest.mark.parametrize("runs", [[], [None], [40.0], [0.0, 0.0], [99.0, 100.0]])
def test_tables_are_written_whatever_was_measured(tmp_path, runs):
    for table, paper in (("table1", {"AP50": 50.0}), ("heads", {})):
        write_results(tmp_path, table, "about", results_of((paper, runs), (paper, [])))
        assert "nan" not in (tmp_path / f"{table}.md").read_text().lower()
        assert (tmp_path / f"{table}.png").stat().st_size > 1000


def test_the_chart_marks_every_run_mean_deviation_and_figure_of_the_paper():
    rows = [Row("one", "", {}, {"AP75": 30.0}), Row("two", "", {}, {}), Row("three", "", {}, {"AP75": 31.5})]
    runs = [[10.0, 11.0], [12.0], []]
    results = [
        Result(row, [{"mask AP75": v, "mask AP75 in true boxes": v + 20} for v in values])
        for row, values in zip(rows, runs, strict=True)
    ]
    figure = draw_results("table3", results)
    assert figure.get_suptitle() == "Table 3, number of directions"
    titles = ["mask AP75: runs, mean, std", "mask AP75 in true boxes: runs, mean, std", "the paper's mask AP75"]
    assert [axes.get_title() for axes in figure.axes] == titles
    own, true, paper = figure.axes
    for axes, shift in ((own, 0), (true, 20)):
        hollow, means, bars = marks(axes)
        assert hollow == [(10 + shift, 0), (11 + shift, 0), (12 + shift, 1)]
        assert means == [(10.5 + shift, 0), (12 + shift, 1)]
        assert bars == [pytest.approx((10.5 + shift - 0.5**0.5, 10.5 + shift + 0.5**0.5))]
        assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first row on top"
    assert [label.get_text() for label in own.get_yticklabels()] == ["one", "two", "three"]
    hollow, means, bars = marks(paper)
    assert hollow == means == [(30.0, 0), (31.5, 2)]
    assert bars == []


def marks(axes):
    """Hollow marks, filled marks, and ends of the bars of a panel."""
    points = {True: [], False: []}
    for line in axes.lines:
        points[line.get_markerfacecolor() == "none"] += zip(line.get_xdata(), line.get_ydata(), strict=True)
    bars = [tuple(segment[:, 0]) for collection in axes.collections for segment in collection.get_segments()]
    return points[True], points[False], bars


def test_the_command_line(shapes, recipe, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(ablate_module, "ablate", lambda *arguments: seen.append(arguments))
    words = ["ablate", "table3", "--recipe", recipe, "--data", str(shapes), "--output", str(tmp_path), "--seeds", "3"]
    words += ["--rows", *ROWS, "--train.steps", "7", "--image.augment.scale_jitter", "[0.9,1.1]"]
    assert main(words) == 0
    changes = {"train": {"steps": 7}, "image": {"augment": {"scale_jitter": (0.9, 1.1)}}}
    assert seen == [("table3", DataSource(shapes), tmp_path, 3, recipe, changes, list(ROWS))]

    def fail(*_):
        raise FailedRunsError("1 of 2 runs failed")

    monkeypatch.setattr(ablate_module, "ablate", fail)
    assert main(words) == 1
    assert capsys.readouterr().err == "masklab: 1 of 2 runs failed\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table9"], "table9"),
        (["table3", "--recipe", "nucleus"], "no recipe nucleus"),
        (["table3", "--output", "x"], "--data DIR"),
        (["table3", "--seeds", "0"], "seeds"),
    ],
)
def test_bad_words(words, message, capsys):
    assert main(["ablate", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
