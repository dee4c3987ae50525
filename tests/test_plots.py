"""Figures: what is drawn is where it should be, in the colours of its legend; what a model lacks is left out and said."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import predictor
from PIL import Image

from masklab.cli.app import main
from masklab.config.schema import validate
from masklab.datasets.ground_truth import GroundTruth
from masklab.datasets.image_table import ImageRecord
from masklab.datasets.split import Split
from masklab.datasets.statistics import Statistics
from masklab.evaluation.matching import match, matching_metrics, overlaps
from masklab.model.build import build_model
from masklab.model.mask_head import MaskLogits
from masklab.ops.deformable import offset_sub_boxes
from masklab.plots import colour_maps, sheets
from masklab.plots.charts import statistics_chart
from masklab.plots.failures import ORANGE, SKY, YELLOW, failure_figure, find_failures, marked, show_failures
from masklab.plots.image import show_image
from masklab.plots.inspection import Inspection
from masklab.plots.logit_maps import _assembled, direction_figure, semantic_figure
from masklab.plots.mask_stages import mask_figure
from masklab.plots.sub_boxes import sub_box_figure
from masklab.results.instances import Instances
from masklab.results.overlay import PALETTE
from masklab.weights.checkpoint import save_model

SHAPES = ("detections", "semantic", "directions", "masks", "sub_boxes")


def tiny(tiny_config, classes, **changes):
    values = tiny_config.model_dump()
    for path, value in changes.items():
        section, field = path.split("__")
        values["model"][section][field] = value
    torch.manual_seed(0)
    return build_model(validate(values, "tests"), classes).eval()


@pytest.fixture(scope="module")
def model(tiny_config, classes):
    return tiny(tiny_config, classes)


@pytest.fixture
def image(tmp_path):
    """A grey disc on a dark ground, 40 high and 64 wide."""
    y, x = np.mgrid[:40, :64]
    values = np.where((x - 30) ** 2 + (y - 18) ** 2 < 120, 200, 30).astype(np.uint8)
    path = tmp_path / "disc.png"
    Image.fromarray(values).save(path)
    return path


def inspect(model, score=0.0):
    values = np.random.default_rng(0).integers(0, 255, (3, 40, 64), dtype=np.uint8)
    return Inspection.of(predictor(model, score_threshold=score), "noise", values)


def holds(tensor, colour):
    return bool((np.asarray(tensor) == np.asarray(colour)).all(axis=-1).any())


def test_every_figure_is_written(model, image, tmp_path, caplog):
    caplog.set_level("INFO", "masklab")
    written = show_image(predictor(model, score_threshold=0.0), image, tmp_path / "figures")
    assert [path.name for path in written] == [f"disc_{name}.png" for name in SHAPES[:-1]]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(path.name for path in written)
    for path in written:
        with Image.open(path) as written_image:
            assert written_image.mode == "RGB"
            assert 300 < written_image.width <= sheets.PAGE, "no figure is wider than a screen"
    assert "no sub_boxes figure: this model's box head has a plain crop" in caplog.text


def test_without_detections_the_maps_are_still_shown(model, image, tmp_path, caplog):
    caplog.set_level("INFO", "masklab")
    written = show_image(predictor(model, score_threshold=1.0), image, tmp_path)
    assert [path.stem for path in written] == ["disc_detections", "disc_semantic", "disc_directions"]
    assert "no masks figure: No detection has a score of 1.00 or more; the best of" in caplog.text


def test_what_a_model_lacks_is_left_out(tiny_config, classes, image, tmp_path, caplog):
    caplog.set_level("INFO", "masklab")
    only_semantic = tiny(tiny_config, classes, mask__direction=False, mask__refine_levels=[])
    names = [path.stem for path in show_image(predictor(only_semantic, score_threshold=0.0), image, tmp_path / "a")]
    assert names == ["disc_detections", "disc_semantic", "disc_masks"]
    assert "no directions figure: this model has no direction logits (model.mask.direction is false)" in caplog.text
    caplog.clear()
    only_direction = tiny(tiny_config, classes, mask__semantic=False)
    names = [path.stem for path in show_image(predictor(only_direction, score_threshold=0.0), image, tmp_path / "b")]
    assert names == ["disc_detections", "disc_directions", "disc_masks"]
    assert "model.mask.semantic is false" in caplog.text
    whole = tiny(tiny_config, classes)
    assert (
        mask_figure(inspect(whole)).width
        > mask_figure(inspect(only_direction)).width
        > mask_figure(inspect(only_semantic)).width
    )


def test_other_mask_heads_have_no_maps_to_show(tiny_config, classes, image, tmp_path, caplog):
    caplog.set_level("INFO", "masklab")
    model = tiny(tiny_config, classes, mask__head="mask_rcnn", mask__refine_levels=[], mask__mask_size=28)
    names = [path.stem for path in show_image(predictor(model, score_threshold=0.0), image, tmp_path)]
    assert names == ["disc_detections", "disc_masks"]
    assert "model.mask.head is mask_rcnn" in caplog.text


def test_sub_boxes_of_a_deformable_crop(tiny_config, classes):
    model = tiny(tiny_config, classes, box__deformable="grid")
    torch.nn.init.constant_(model.box_head.offsets.bias, 2.0)
    figure = sub_box_figure(inspect(model))
    for colour in colour_maps.sub_box_colours(3).reshape(-1, 3)[[0, 2, 6, 8]]:
        pixels = (np.asarray(figure) == colour).all(axis=-1).sum()
        assert pixels > (190 // 3) ** 2, "the legend's square, and more: the sub-boxes"
    assert sub_box_figure(inspect(model, 1.0)).startswith("No detection")


def test_moved_sub_boxes_by_hand():
    box, still = torch.tensor([[10.0, 20, 40, 80]]), torch.zeros(1, 2, 2, 2)
    grid = offset_sub_boxes(box, still, "grid")[0]
    assert grid[0, 0].tolist() == pytest.approx([10, 20, 20, 40])
    assert grid[1, 1].tolist() == pytest.approx([30, 60, 40, 80])
    assert offset_sub_boxes(box, still, "cell")[0, 0, 1].tolist() == pytest.approx([25, 20, 40, 50])
    still[0, 0, 1] = torch.tensor([0.5, -0.1])  # down by half the height, left by a tenth of the width
    assert offset_sub_boxes(box, still, "grid")[0, 0, 1].tolist() == pytest.approx([27, 50, 37, 70])


def one_object(inspection, box):
    """The same inspection with one object of which only the box matters."""
    side = inspection.model.config.model.mask.mask_size
    found = Instances(
        inspection.found.size,
        np.array([box], np.float32),
        np.ones(1, np.float32),
        np.zeros(1, np.int64),
        np.ones((1, side, side), np.float32),
        inspection.found.class_names,
        inspection.found.category_ids,
    )
    return replace(inspection, found=found, detections=found)


def test_channels_are_read_at_the_middle_of_each_pixel(model):
    inspection = inspect(model)
    height, width = inspection.maps.direction.shape[-2:]
    ramp = 8.0 * torch.arange(width) + 0.5  # a cell's place in pixels, the first pixel's middle being 0.5
    values = inspection.channel(ramp.expand(1, 1, height, width).contiguous(), 0, (40, 64))
    np.testing.assert_allclose(values, np.broadcast_to(np.arange(64) + 0.5, (40, 64)), atol=1e-4)
    twice = inspection.channel(ramp.expand(1, 1, height, width).contiguous(), 0, (80, 128))
    np.testing.assert_allclose(twice[0, 2:-2], np.arange(128)[2:-2] / 2 + 0.25, atol=1e-4)


def test_a_box_is_assembled_in_the_colours_of_the_wheel(model):
    inspection = one_object(inspect(model), (16, 8, 48, 32))
    bright = torch.full_like(inspection.maps.direction, 5.0)
    figure = np.asarray(direction_figure(replace(inspection, maps=MaskLogits(None, bright))))
    colours = colour_maps.direction_colours(8)
    for colour in colours:
        assert (figure == colour).all(axis=-1).sum() > 1000, "in the wheel, the frames and the box"
    box = np.asarray(_assembled(inspection, bright, (40, 64), 5.0))[8:32, 16:48]
    # counter-clockwise from the direction that points right: seen from the middle, at the left below it
    for direction, (row, column) in enumerate(
        [(14, 2), (22, 12), (22, 20), (14, 29), (9, 29), (2, 20), (2, 12), (9, 2)]
    ):
        assert box[row, column].tolist() == colours[direction].tolist(), direction
    dark = torch.full_like(bright, -1.0)
    assert not np.asarray(_assembled(inspection, dark, (40, 64), 5.0))[9:31, 17:47].any(), "logits below 0 are black"


@pytest.mark.parametrize("box", [(40, 8, 64.00001, 40.00001), (63.9999, 0, 64.00001, 1e-4), (-1e-5, -1e-5, 2, 2)])
def test_boxes_on_the_border_and_slivers_do_no_harm(model, box):
    inspection = one_object(inspect(model), box)
    assert mask_figure(inspection).height > 100
    assert direction_figure(inspection).height > 100


def test_the_semantic_figure_shows_the_class_that_was_found(model):
    inspection = inspect(model)
    maps = torch.zeros_like(inspection.maps.semantic)
    maps[:, 0] = torch.linspace(-3, 3, maps.shape[-1])
    found = one_object(inspection, (16, 8, 48, 32))
    figure = semantic_figure(replace(found, maps=MaskLogits(maps, None)))
    for end in (colour_maps.HEAT[0][1], colour_maps.HEAT[-1][1]):
        assert (np.asarray(figure) == end).all(axis=-1).sum() > 100, "both ends of the scale, in the map and in its bar"
    other = replace(found, found=replace(found.found, labels=np.ones(1, np.int64)), maps=MaskLogits(maps, None))
    assert semantic_figure(other).height == figure.height
    assert not np.array_equal(np.asarray(semantic_figure(other)), np.asarray(figure))


def square(x, y, side=10):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotation(number, x, y, side=10, crowd=0):
    return {
        "id": number,
        "image_id": 7,
        "category_id": 2,
        "iscrowd": crowd,
        "bbox": [x, y, side, side],
        "area": side * side,
        "segmentation": square(x, y, side),
    }


def boxes_as_instances(boxes, labels=None):
    """Objects that fill their boxes, in an image of 50 x 100."""
    count = len(boxes)
    return Instances(
        (50, 100),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.6, count).astype(np.float32),
        np.array(labels or [0] * count, np.int64),
        np.ones((count, 5, 5), np.float32),
        ("disc", "box"),
        (2, 5),
    )


CATEGORIES = [{"id": 2, "name": "disc"}, {"id": 5, "name": "box"}]
PLACE = ImageRecord(7, Path("drawn.png"), (50, 100))
TRUTH = [
    annotation(1, 5, 5),
    annotation(2, 30, 5),
    annotation(3, 60, 20),
    annotation(4, 80, 0, 20, crowd=1),
    annotation(5, 5, 30),
]
FOUND = boxes_as_instances(
    [(5, 5, 15, 15), (32, 5, 42, 15), (40, 35, 50, 45), (82, 2, 90, 10), (5, 30, 15, 40)], [0, 0, 0, 0, 1]
)


def ground_truth(annotations):
    canvas = {"id": 7, "height": 50, "width": 100}
    return GroundTruth.from_coco({"images": [canvas], "annotations": annotations, "categories": CATEGORIES})


def test_failures_by_hand():
    """Found; found with an IoU of 2/3; nothing there; in a crowd; there, but of another class.  One is not found."""
    failures = find_failures(PLACE, ground_truth(TRUTH), FOUND)
    assert failures.matched == 2
    assert failures.missed == [2, 4]
    assert failures.wrong == [2, 4]
    assert [pair[:2] for pair in failures.localisation] == [(1, 1)]
    assert failures.localisation[0][2] == pytest.approx(80 / 120)
    assert failures.errors.detections.tolist() == ["right", "localisation", "background", "", "background"]
    assert failures.score == pytest.approx(2 / 6)
    shared = overlaps(ground_truth(TRUTH), FOUND.to_coco(7))
    assert matching_metrics(shared, 0.0)["stardist"]["0.50"] == pytest.approx(failures.score), (
        "the evaluation's own count"
    )
    assert len(match(shared, 0.85)[0]) == 1, "the threshold counts"


def test_failures_of_nothing():
    nothing = boxes_as_instances([])
    assert find_failures(PLACE, ground_truth([]), nothing).score == 1
    assert find_failures(PLACE, ground_truth(TRUTH), nothing).missed == [0, 1, 2, 4]
    assert find_failures(PLACE, ground_truth([]), FOUND).wrong == [0, 1, 2, 3, 4]
    assert find_failures(PLACE, ground_truth([]), FOUND).score == 0


def test_marks_lie_on_their_objects():
    failures = find_failures(PLACE, ground_truth(TRUTH), FOUND)
    drawn = np.asarray(marked(failures, np.full((50, 100, 3), 120, np.uint8), (200, 400), named=False))

    def along(colour, x):
        """Share of the rows 4 * 21 .. 4 * 29 at the left edge of an object that bear the colour."""
        return (drawn[84:116, 4 * x - 1 : 4 * x + 2] == colour).all(axis=-1).any(axis=1).mean()

    assert along(ORANGE, 60) == 1, "missed: a line without gaps"
    column = (drawn[4 * 36 : 4 * 44, 4 * 40 - 1 : 4 * 40 + 2] == SKY).all(axis=-1).any(axis=1)
    assert 0.3 < column.mean() < 1, "wrong: a broken line"
    dots = (drawn[4 * 6 : 4 * 14, 4 * 42 - 1 : 4 * 42 + 2] == YELLOW).all(axis=-1).any(axis=1)
    assert 0.2 < dots.mean() < 0.7
    assert np.diff(dots.astype(int)).clip(0).sum() > np.diff(column.astype(int)).clip(0).sum(), "badly localised: dots"
    assert (drawn[4 * 3 : 4 * 17, 4 * 3 : 4 * 17] == 120).all(), "what is right bears no mark"
    assert (drawn[: 4 * 18, 4 * 78 :] == 120).all(), "nor does the crowd"


def test_long_names_are_broken_within_the_width():
    name = "W" * 64 + ".png"
    broken = sheets.text_block(f"of {name}", 300)
    assert broken.width <= 300
    letters = np.asarray(sheets.text_block(name, 3000)) < 128
    assert (np.asarray(broken) < 128).sum() == pytest.approx(letters.sum(), rel=0.1), "and none is lost"
    assert sheets.text_block(name, 1).height == 68 * sheets.text_block("W", 300).height


def test_the_legend_says_what_the_marks_mean():
    failures = find_failures(PLACE, ground_truth(TRUTH), FOUND)
    image = np.full((50, 100, 3), 120, np.uint8)
    figure = failure_figure(failures, image)
    legend = np.asarray(figure)[-140:]
    for colour in (ORANGE, SKY, YELLOW):
        assert holds(legend, colour)
    assert figure.width <= sheets.PAGE


@pytest.fixture(scope="module")
def weights(model, shapes, tmp_path_factory):
    fitting = build_model(model.config, Split.find(shapes, "val").categories)
    path = tmp_path_factory.mktemp("figures") / "tiny.safetensors"
    save_model(fitting, path)
    return path


def test_show_from_the_command_line(weights, shapes, tmp_path, capsys):
    image = next((shapes / "val").iterdir())
    assert main(["show", str(weights), str(image), "--output", str(tmp_path / "a"), "--score", "0.01"]) == 0
    assert len(list((tmp_path / "a").iterdir())) == 4
    words = ["show", str(weights), "--data", str(shapes), "--output", str(tmp_path / "b"), "--worst", "2"]
    assert main(words) == 0
    files = sorted(path.name for path in (tmp_path / "b").iterdir())
    assert len(files) == 3
    assert files[-1] == "failures.png"
    assert files[0].startswith("failure_01_")
    count = len(json.loads((shapes / "val.json").read_text())["annotations"])
    assert f"0 objects found (0 badly localised), {count} missed" in capsys.readouterr().out


def test_the_worst_come_first_and_the_right_ones_never(model, shapes, tmp_path, monkeypatch):
    """A model that finds everything in all images but one, where it finds nothing."""
    source = Split.find(shapes, "val")
    perfect = predictor(build_model(model.config, source.categories))
    blind = source.images[2].path
    values = [source.read(index, 3) for index in range(len(source))]

    def predict(given):
        index = next(index for index, value in enumerate(values) if np.array_equal(value, given))
        size, objects = source.images[index].size, source.objects(index)
        shown = 0 if index == 2 else len(objects)
        found = Instances(
            size,
            objects.boxes[:shown],
            np.ones(shown, np.float32),
            objects.labels[:shown],
            np.ones((shown, 3, 3), np.float32),
            source.categories.names,
            source.categories.ids,
        )
        return replace(found, _rle=[objects.rle(row) for row in range(shown)])

    monkeypatch.setattr(perfect, "predict", predict)
    written = show_failures(perfect, shapes, tmp_path)
    assert [path.name for path in written] == ["failures.png", f"failure_01_{blind.stem}.png"]


def test_bad_words(weights, shapes, tmp_path, capsys):
    def fails(*words):
        assert main(["show", *map(str, words)]) == 2
        err = capsys.readouterr().err.strip()
        assert err.startswith("masklab: ")
        assert len(err.splitlines()) == 1
        return err

    image = next((shapes / "val").iterdir())
    assert "no such image" in fails(weights, tmp_path / "none.png", "--output", tmp_path)
    assert "no such run folder" in fails(tmp_path / "none", image)
    assert "name one of the two" in fails(weights, "--output", tmp_path)
    assert "name one of the two" in fails(weights, image, "--data", shapes)
    assert "no such data set folder" in fails(weights, "--data", tmp_path / "none")
    assert "--worst is 0" in fails(weights, "--data", shapes, "--worst", "0")
    assert "name another output folder" in fails(weights, image, "--output", image)


def simulate(colours, kind):
    """Colours in CIELAB as seen with full red, green or blue blindness (Machado, Oliveira and Fernandes, 2009)."""
    seen = {
        "none": np.eye(3),
        "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
        "blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
    }[kind]
    share = np.asarray(colours, np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    linear = (linear @ np.array(seen).T).clip(0, 1)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    xyz = linear @ to_xyz.T / (0.95047, 1, 1.08883)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("kind", ["none", "red", "green", "blue"])
def test_colours_that_any_eyes_tell_apart(kind):
    circle = simulate(colour_maps.direction_colours(8), kind)
    apart = np.linalg.norm(circle[:, None] - circle[None], axis=-1) + 1000 * np.eye(8)
    assert apart.min() > 25, "directions"
    heat = simulate(colour_maps.heat(np.linspace(0, 1, 33)[None], 0, 1)[0], kind)
    assert (np.diff(heat[:, 0]) > 0).all(), "higher is lighter"
    if kind == "none":
        steps = np.linalg.norm(np.diff(heat, axis=0), axis=1)
        assert steps.max() < 2.5 * steps.min(), "equal steps look about equal"
    marks = simulate([ORANGE, SKY, YELLOW], kind)
    assert min(np.linalg.norm(marks[a] - marks[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 20


def test_images_are_enlarged_by_whole_factors():
    assert sheets.shown_size((20, 30), (100, 100)) == (60, 90)
    assert sheets.shown_size((200, 100), (100, 100)) == (100, 50)
    assert sheets.shown_size((1, 4000), (100, 100)) == (1, 100)
    values = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(sheets.scaled(values, (12, 15))[1::3, 1::3], values)


def test_a_scale_has_round_limits_and_its_own_colours():
    low, high = colour_maps.round_limits(np.linspace(-1.234, 2.345, 1000))
    assert (low, high) == pytest.approx((-1.2, 2.4))
    for value in (0, 0.3, -7.77777, 1e4):
        low_of_one, high_of_one = colour_maps.round_limits(np.full(5, value))
        assert low_of_one <= value + 1e-9, "a map of one value still has a scale"
        assert high_of_one > low_of_one
        assert colour_maps.heat_bar(low_of_one, high_of_one, 150, "logit").height > 150
    for ends in ((-0.088, -0.068), (0, 0.3), (-1, 99), (-1e4, 1e4)):
        assert colour_maps.heat_bar(*ends, 150, "logit").height > 150
    assert colour_maps.heat(np.array([[low, high]]), low, high)[0].tolist() == [
        list(colour_maps.HEAT[0][1]),
        list(colour_maps.HEAT[-1][1]),
    ]
    bar = colour_maps.heat_bar(-1, 1, 200, "logit")
    assert holds(bar, colour_maps.HEAT[0][1])
    assert holds(bar, colour_maps.HEAT[-1][1])


def statistics(sides, per_image, per_class):
    return Statistics(np.array(sides, np.float64), np.array(per_image, np.int64), np.array(per_class, np.int64))


def test_statistics_are_charted_for_any_names_and_for_no_object():
    """A bar for each class, longest first, up to 30; what would be a formula or a font's missing letter is plain."""
    names = ["$x_1^{", "日本", "w" * 500, *(f"class {k}" for k in range(37))]
    few, many = ([np.asarray(chart) for chart in charts_of(names[:count])] for count in (3, 40))
    for chart in (*few, *many):
        assert chart.shape[1] == sheets.PAGE
        edge = sheets.GAP + 1
        assert (chart[:edge] == 255).all(), "a margin, at which no text is clipped"
        assert (chart[:, -edge:] == 255).all()
        assert (chart[:, :edge] == 255).all()
    assert many[0].shape[0] - few[0].shape[0] == 27 * 27
    bars = ((few[0] == PALETTE[4]).all(axis=-1).sum(axis=1)[-100:] > 300).nonzero()[0]
    assert len(bars) > 2 * 12, "two classes of objects have bars that are seen"


def charts_of(names):
    counts = np.arange(len(names))
    yield statistics_chart(
        "title " * 60, statistics(np.geomspace(3, 900, 500), [0, 3, 26], counts), names, "as they are"
    )
    yield statistics_chart("empty", statistics([], [0], np.zeros(len(names))), names, "as they are")


def test_directions_of_any_number_have_their_colours():
    for count in (2, 4, 6, 12):
        colours = colour_maps.direction_colours(count)
        assert len({tuple(colour) for colour in colours.tolist()}) == count
    assert colour_maps.direction_colours(8).tolist() == [list(colour) for colour in colour_maps.CIRCLE]
