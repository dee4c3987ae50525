"""Images that are far from those that a model expects."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import tifffile
import torch
from contracts import fails, predictor
from PIL import Image

import masklab
from masklab.cli.app import main, parse
from masklab.cli.options import prediction_options
from masklab.config.image import ImageConfig
from masklab.datasets.open import open_split
from masklab.datasets.statistics import training_data
from masklab.datasets.synthetic.nuclei import draw_nuclei
from masklab.evaluation.evaluate import evaluate
from masklab.images.exposure import InputCheck, appearance_of, stretched
from masklab.images.intensity import rescale_intensity
from masklab.images.reader import ArrayReader
from masklab.inference.folder import predict_folder
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import Predictor
from masklab.model.build import build_model
from masklab.structures import Looks, TrainingData
from masklab.weights.checkpoint import load_model, save_model

RNG = np.random.default_rng(0)


def cells(most, dtype=np.uint16, offset=0):
    """A dark image with bright squares of values up to ``offset + most``, (3, 60, 80)."""
    values = RNG.integers(0, max(2, most // 20), (60, 80)) + offset
    values[10:25, 10:30] = values[40:50, 40:60] = offset + most
    return torch.from_numpy(np.repeat(values[None].astype(dtype), 3, axis=0))


def kinds(image, **config):
    check = InputCheck(ImageConfig(**config))
    check.add(image, "a.tif")
    return check.messages()


@pytest.fixture(scope="module")
def model(tiny_config, classes):
    return build_model(tiny_config, classes).eval()


# ---- images unlike those of the training

FLUORESCENCE = TrainingData((60, 80), 8.0, 40.0, Looks(1.0, 0.0, 60.0))
TISSUE = TrainingData((60, 80), 8.0, 40.0, Looks(0.0, 1.0, 20.0))
MIXED = TrainingData((60, 80), 8.0, 40.0, Looks(0.8, 0.2, 20.0))


def strange(image, known, **augment):
    check = InputCheck(ImageConfig(scale=1.0, percentiles=(1, 99.8), augment=augment), known)
    check.add(image, "a.tif")
    return check.messages()


def light(image):
    return 255 - image


def coloured(image):
    return image * torch.tensor([1, 0.5, 0.8])[:, None, None]


DARK = cells(220, np.uint8).float()


@pytest.mark.parametrize(
    ("image", "known", "augment", "words"),
    [
        (DARK, FLUORESCENCE, {}, []),
        (coloured(DARK), FLUORESCENCE, {}, ["are of colour"]),
        (coloured(DARK), FLUORESCENCE, {"tint": 0.1}, []),
        (light(DARK), FLUORESCENCE, {}, ["have a light ground"]),
        (light(DARK), FLUORESCENCE, {"invert": 0.1}, []),
        (coloured(light(DARK)), TISSUE, {}, []),
        (light(DARK), TISSUE, {}, ["are grey"]),
        (light(DARK), TISSUE, {"grey": 0.1}, []),
        (coloured(DARK), TISSUE, {}, ["have a dark ground"]),
        (DARK, MIXED, {}, []),
        (coloured(light(DARK)), MIXED, {}, []),
        (light(coloured(DARK)), dataclasses.replace(MIXED, looks=None), {}, []),
        (coloured(light(DARK)), None, {}, []),
        (torch.zeros(3, 60, 80), FLUORESCENCE, {}, []),
        (torch.full((3, 1, 1), np.nan), FLUORESCENCE, {}, []),
    ],
)
def test_images_unlike_those_of_the_training_are_told(image, known, augment, words):
    values = image.to(torch.uint8) if image.isfinite().all() else image
    messages = strange(values, known, **augment)
    assert len(messages) == len(words)
    assert all(word in message and "1 of 1 images" in message for word, message in zip(words, messages, strict=True))
    assert all("a.tif" in message for message in messages)


def test_faint_images_are_told_by_their_noise():
    rng = np.random.default_rng(3)
    squares = np.kron(rng.random((8, 8)) > 0.6, np.ones((16, 16)))

    def image(strength):
        return torch.from_numpy((1000 + strength * 10 * squares + rng.normal(0, 10, (3, 128, 128))).astype(np.uint16))

    known = dataclasses.replace(MIXED, looks=Looks(0.5, 0.5, appearance_of(image(100), ImageConfig()).contrast))
    assert known.looks.contrast == pytest.approx(105, rel=0.1)
    assert strange(image(60), known) == []
    assert "less than half of the contrast" in strange(image(20), known)[0]


def test_pixels_that_lie_apart_say_nothing_of_noise():
    y, x = np.mgrid[:1200, :1200]
    image = (120 + 100 * np.sin(x / 6) * np.sin(y / 6))[None].repeat(3, 0).astype(np.float32)
    image += np.random.default_rng(0).normal(0, 1, image.shape).astype(np.float32)
    values = image.clip(0, 255).round().astype(np.uint8)
    known = dataclasses.replace(MIXED, looks=Looks(0.5, 0.5, appearance_of(values, ImageConfig()).contrast))
    reader = ArrayReader(values)
    assert appearance_of(reader.overview(), ImageConfig()).contrast < known.looks.contrast / 2, "it would be told of"
    check = InputCheck(ImageConfig(percentiles=(1, 99.8)), known)
    check.add_overview(reader, "large.tif")
    check.of("other.tif").add_overview(reader, "large.tif")
    assert check.messages() == []
    check.add_overview(ArrayReader(values[:, ::12, ::12]), "small.tif")
    assert "less than half of the contrast" in check.messages()[0]


def test_sizes_of_what_is_found_are_compared_with_the_training():
    def told(side, size=(60, 80), count=3, **config):
        check = InputCheck(ImageConfig(**config), MIXED)
        check.add(DARK.to(torch.uint8), "a.tif")
        check.add_boxes(np.array([[1.0, 2, 1 + side, 2 + side]] * count), size, "a.tif")
        return check.messages()

    assert told(20, scale=1.0) == told(39, scale=1.0) == told(9, scale=1.0) == told(99, scale=1.0, count=0) == []
    for side in (5, 50):
        assert f"a.tif: {side} pixels" in told(side, scale=1.0)[0]
        assert "8 to 40 pixels" in told(side, scale=1.0)[0]
    assert told(70, size=(120, 160)) == [], "a model of one input size knows large objects of large images"
    assert "16 to 80 pixels" in told(90, size=(120, 160))[0]


def test_what_a_training_set_looks_like_is_stored_with_the_weights(tiny_config, classes, shapes, tmp_path):
    known = training_data(open_split(shapes, "train"), tiny_config)
    assert known.looks.grey == 0
    assert known.looks.contrast > 3
    model = build_model(tiny_config, classes)
    model.training_data = known
    save_model(model, tmp_path / "a.safetensors")
    assert load_model(tmp_path / "a.safetensors").training_data == known


def test_folders_and_arrays_are_told_of_once_each(tiny_config, classes, tmp_path, caplog):
    model = build_model(tiny_config, classes).eval()
    model.training_data = dataclasses.replace(FLUORESCENCE, smallest_object=500.0, largest_object=600.0)
    model.score_threshold = 0.0
    image = coloured(light(DARK)).to(torch.uint8)
    for name in "ab":
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")
    caplog.set_level(logging.WARNING, "masklab")
    predict_folder(Predictor(model), [tmp_path / "a.png"], tmp_path / "out")
    assert any("a.png" in line and "are of colour" in line for line in caplog.messages)
    assert any("a.png: " in line and "500 to 600" in line for line in caplog.messages)
    caplog.clear()
    found = Predictor(model)
    found.predict([image, image])
    found.predict(image)
    assert sum("are of colour" in line and "2 of 2" in line for line in caplog.messages) == 1
    assert sum("500 to 600" in line for line in caplog.messages) == 1


# ---- which images are far from what is expected


@pytest.mark.parametrize(
    ("image", "config", "dim"),
    [
        (cells(4095), {}, True),
        (cells(235), {}, True),
        (cells(4095, offset=32768), {}, True),  # camera numbers that were stored with a sign
        (cells(0.01 * 1000, np.uint8), {}, True),
        (cells(4000), {"value_range": (0, 65535)}, True),
        (cells(20, np.uint8), {"value_range": (0, 4095)}, True),
        (cells(30, np.uint8), {}, False),  # nuclei of a faint stain
        (cells(255, np.uint8), {}, False),
        (cells(16383), {}, False),
        (cells(65535), {}, False),
        (cells(4095), {"value_range": (0, 4095)}, False),
        (cells(4095), {"percentiles": (1, 99)}, False),
        (torch.zeros(3, 60, 80, dtype=torch.uint16), {}, False),  # nothing to be seen at any range
        (torch.full((3, 60, 80), 7, dtype=torch.uint8), {}, False),
    ],
)
def test_dim_images_are_told_from_dark_ones(image, config, dim):
    messages = kinds(image, **config)
    assert len(messages) == dim
    assert not dim or ("less than a twelfth" in messages[0] and "--intensity percentiles" in messages[0])


def test_images_far_beyond_the_expected_range_are_bright():
    assert "far beyond" in kinds(cells(65535), value_range=(0, 4095))[0]
    assert not kinds(cells(9000), value_range=(0, 4095))
    assert "far beyond" in kinds(cells(65535).float(), value_range=(0.0, 1.0))[0]


def test_a_hot_pixel_does_not_make_an_image_bright():
    large = np.tile(cells(300).numpy(), (1, 8, 8))
    large[:, 0, 0] = 65535
    assert "from 0 to 300" in kinds(torch.from_numpy(large))[0]


def test_values_that_are_not_finite_are_left_out():
    image = cells(1).float() / 1000
    image[:, ::3] = torch.nan
    image[0, 1, 1] = torch.inf
    assert "from 0 to 0.001" in kinds(image)[0]
    assert not kinds(torch.full((3, 5, 5), torch.nan))


def test_one_sentence_counts_all_images_of_a_kind():
    check = InputCheck(ImageConfig(value_range=(0, 4095)))
    for number, most in enumerate((100, 4095, 120, 65535, 90)):
        check.add(cells(most), f"{number}.tif")
    dim, bright = check.messages()
    assert dim.startswith("3 of 5 images")
    assert "0.tif has values from 0 to 100" in dim
    assert bright.startswith("1 of 5 images")


# ---- stretching


def test_stretched_is_between_the_percentiles_of_all_channels():
    values = RNG.integers(0, 4096, (3, 50, 60), dtype=np.uint16)
    values[2] //= 8
    image = torch.from_numpy(values)
    config = stretched(image, ImageConfig())
    np.testing.assert_allclose(config.value_range, np.percentile(image.numpy(), (0.1, 99.9)))
    shown = rescale_intensity(image, config)
    assert shown[2].max() < 40, "colours stay"
    with_its_own = ImageConfig(percentiles=(1, 99))
    assert stretched(image, with_its_own) is with_its_own


@pytest.mark.parametrize("scale", [1 / 257, 1 / 16, 1e-4])
def test_a_stretched_image_does_not_depend_on_its_scale(scale):
    image = torch.from_numpy(RNG.random((1, 50, 60)).astype(np.float32)) * 65535
    once, again = (rescale_intensity(each, stretched(each, ImageConfig())) for each in (image, image * scale))
    torch.testing.assert_close(once, again, atol=0.01, rtol=0)


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_an_image_of_one_value_is_stretched_to_something_finite(value):
    image = torch.full((3, 20, 20), value, dtype=torch.uint16)
    assert rescale_intensity(image, stretched(image, ImageConfig())).isfinite().all()


# ---- prediction


@pytest.fixture(scope="module")
def nuclei():
    return masklab.load("nuclei", "cpu"), draw_nuclei()[0]


def deep(image, most):
    return np.rint(image.astype(np.float64) / 255 * most).astype(np.uint16)


@pytest.mark.parametrize("most", [4095, 235])
def test_the_shipped_model_finds_the_nuclei_of_a_dim_image(nuclei, caplog, most):
    plain, image = nuclei
    told = Predictor(plain.model, PredictionOptions(intensity="percentiles"))
    expected = len(plain.predict(image).above(plain.threshold))
    assert expected > 5
    for each in (plain, told):
        assert len(each.predict(deep(image, most)).above(each.threshold)) >= 0.9 * expected
    assert not caplog.records


def test_a_predictor_warns_once(model, caplog):
    one = predictor(model)
    one.predict([cells(4095), cells(65535), cells(235)])
    one.predict(cells(4095))
    assert [record.getMessage()[:16] for record in caplog.records] == ["2 of 3 images us"]
    views = predictor(model, flips="horizontal")
    views.predict(cells(4095))
    assert len(caplog.records) == 2


def test_floats_of_another_scale_are_predicted_when_told_to(model):
    image = cells(200).float()
    fails(["0 to 200", "--intensity percentiles"], predictor(model).predict, image)
    found = predictor(model, intensity="percentiles", score_threshold=0.0).predict(image)
    again = predictor(model, intensity="percentiles", score_threshold=0.0).predict(image / 200)
    np.testing.assert_allclose(found.boxes, again.boxes, atol=0.01)


def test_a_folder_has_one_warning_and_its_results_say_how_they_were_made(model, tmp_path, caplog):
    (tmp_path / "set").mkdir()
    for number in range(3):
        tifffile.imwrite(tmp_path / "set" / f"{number}.tif", cells(4095)[0].numpy())
    Image.fromarray(cells(255, np.uint8)[0].numpy()).save(tmp_path / "set" / "full.png")
    predict_folder(predictor(model, score_threshold=1.0), [tmp_path / "set"], tmp_path / "plain")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("3 of 4 images use less than a twelfth")
    caplog.clear()
    told_to = predictor(model, intensity="percentiles", score_threshold=1.0)
    predict_folder(told_to, [tmp_path / "set"], tmp_path / "told")
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    plain, told = (json.loads((tmp_path / name / "settings.json").read_text()) for name in ("plain", "told"))
    assert plain["options"]["intensity"] == "model"
    assert plain["stretched"] is None
    assert told["options"]["intensity"] == "percentiles"
    assert told["stretched"]["0.tif"] == [0, 4095]
    assert set(told["stretched"]) == {"0.tif", "1.tif", "2.tif", "full.png"}
    dark, light = (np.asarray(Image.open(tmp_path / name / "0.png")).max() for name in ("plain", "told"))
    assert dark < 30 < 200 < light, "the overlay shows what the network saw"


def test_evaluate_takes_the_same_options(tiny_config, shapes, caplog):
    model = build_model(tiny_config, open_split(shapes, "val").categories)
    metrics = evaluate(predictor(model), shapes, options=PredictionOptions(intensity="percentiles"))
    assert metrics["measured"]["intensity"] == "percentiles"
    assert not caplog.records


def test_verbs_hand_the_intensity_on():
    for words in (["predict", "nuclei", "a"], ["evaluate", "nuclei", "--data", "a"]):
        assert prediction_options(parse(words)[1]).intensity == "model"
        assert prediction_options(parse([*words, "--intensity", "percentiles"])[1]).intensity == "percentiles"
    assert parse(["show", "nuclei", "a", "--intensity", "percentiles"])[1].intensity == "percentiles"
    fails(["intensity is 'auto'", "model, percentiles"], lambda: PredictionOptions(intensity="auto"))
    assert dataclasses.asdict(PredictionOptions())["intensity"] == "model"


# ---- scores


@pytest.mark.parametrize(
    ("score", "words"), [("50", "50: give a probability from 0 to 1 (did you mean 0.5?)"), ("2", "0.02"), ("-1", "-1")]
)
@pytest.mark.parametrize("verb", ["predict", "show"])
def test_a_score_that_is_no_probability_is_refused(verb, score, words, capsys):
    assert main([verb, "nuclei", "a.png", f"--score={score}"]) == 2
    said = capsys.readouterr().err
    assert "--score is" in said
    assert words in said
    fails([f"score_threshold is {score}"], lambda: PredictionOptions(score_threshold=float(score)))
