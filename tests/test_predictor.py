"""The predictor: lists of images equal one by one, what shares a forward pass, and the options."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from contracts import assert_instances, fails, predictor
from PIL import Image

import masklab
from masklab.inference import batches as batches_module
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import Predictor
from masklab.model.build import build_model
from masklab.utils.errors import InputError
from masklab.weights.checkpoint import save_model


@pytest.fixture(scope="module")
def model(tiny_config, classes):
    torch.manual_seed(0)
    return build_model(tiny_config, classes).eval()


def noise(height, width, dtype=np.uint8, seed=0, channels=3):
    values = np.random.default_rng([seed, height, width]).random((channels, height, width))
    if dtype is np.float32:
        return values.astype(np.float32)
    return (values * np.iinfo(dtype).max).astype(dtype)


@pytest.fixture
def forwards(model):
    """The shape of the input of each forward pass of the network."""
    shapes = []
    handle = model.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    yield shapes
    handle.remove()


def mixed(folder):
    """Images of several sizes and dtypes, in no order: arrays, tensors, Pillow images and files."""
    Image.fromarray(noise(40, 56, seed=1).transpose(1, 2, 0)).save(folder / "colour.png")
    Image.fromarray(noise(40, 56, np.uint16, seed=2)[0]).save(folder / "deep.png")
    return [
        noise(40, 56),
        noise(70, 33, np.uint16),
        folder / "colour.png",
        noise(38, 50, np.float32),  # padded to the size of the first
        torch.from_numpy(noise(40, 56, seed=3)),
        str(folder / "deep.png"),
        Image.fromarray(noise(70, 33, seed=4)[0]),
        noise(3, 5),
        noise(40, 56, channels=1, seed=5),
    ]


def assert_same(found, expected):
    assert found.size == expected.size
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.masks, expected.masks, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_list_gives_what_its_images_give_one_by_one(model, tmp_path, batch_size):
    images, single = mixed(tmp_path), predictor(model)
    together = single.predict(images, batch_size=batch_size)
    assert len(together) == len(images)
    for found, image in zip(together, images, strict=True):
        assert_instances(found, model)
        assert_same(found, single.predict(image))
    assert any(len(found) > 3 for found in together)


def test_a_list_with_test_time_augmentation_is_in_order_too(model, tmp_path):
    images, augmented = mixed(tmp_path)[:4], predictor(model, flips="horizontal", scales=(0.8, 1.25))
    for found, image in zip(augmented.predict(images), images, strict=True):
        assert_same(found, augmented.predict(image))


def test_one_unreadable_file_of_a_list_is_refused_by_the_same_sentence(model, tmp_path):
    images = mixed(tmp_path)
    whole = (tmp_path / "colour.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.png") as alone:
        predictor(model).predict(tmp_path / "cut.png")
    fails([str(alone.value)], predictor(model).predict, [*images, tmp_path / "cut.png", *images])


def test_images_of_equal_padded_size_go_through_one_forward(model, forwards):
    predictor(model).predict([noise(40, 56, seed=seed) for seed in range(5)])
    assert forwards == [(5, 3, 41, 57)]


def test_images_of_other_padded_sizes_never_share_a_batch(model, forwards, tmp_path):
    predictor(model).predict(mixed(tmp_path), batch_size=3)
    assert sorted(forwards) == [(1, 3, 9, 9), (2, 3, 73, 33), (3, 3, 41, 57), (3, 3, 41, 57)]
    forwards.clear()
    predictor(model).predict([noise(40, 56), noise(41, 58)])  # a row and a column beyond the first's cells
    assert sorted(forwards) == [(1, 3, 41, 57), (1, 3, 41, 65)]


def test_large_images_go_in_smaller_batches(model, forwards, monkeypatch):
    images = [noise(40, 56, seed=seed) for seed in range(5)]
    monkeypatch.setattr(batches_module, "BATCH_PIXELS", 2 * 41 * 57 + 1)
    predictor(model).predict(images)
    assert [shape[0] for shape in forwards] == [2, 2, 1]
    forwards.clear()
    monkeypatch.setattr(batches_module, "BATCH_PIXELS", 100)
    predictor(model).predict(images[:2])
    assert [shape[0] for shape in forwards] == [1, 1], "never less than one image"


def test_a_batch_is_about_a_megapixel(model):
    assert 2**19 < batches_module.BATCH_PIXELS < 2**21


def test_few_images_wait_for_others_of_their_size(model, forwards, monkeypatch):
    """Sizes that each occur once do not pile up: the images held are bounded, and none is lost."""
    monkeypatch.setattr(batches_module, "BATCHES_WAITING", 1)
    images = [noise(8 * n + 1, 33) for n in range(1, 7)]
    single = predictor(model)
    expected = [single.predict(image) for image in images]
    forwards.clear()
    for found, alone in zip(single.predict(images, batch_size=2), expected, strict=True):
        assert_same(found, alone)
    heights = [shape[2] for shape in forwards]
    assert sorted(heights) == [image.shape[1] for image in images]
    assert heights[0] == 9, "the first goes before the last is read"


def test_an_empty_list_and_a_batch_of_none(model):
    assert predictor(model).predict([]) == []
    fails(["batch_size is 0"], lambda: predictor(model).predict([noise(9, 9)], batch_size=0))


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_of_the_model_is_put_back(tiny_config, classes, training):
    model = build_model(tiny_config, classes).train(training)
    used = predictor(model)
    found = used.predict([noise(40, 40), noise(40, 40)])
    used.segment(noise(40, 40), np.array([[1.0, 2, 30, 20]]), np.array([1]))
    used.propose(noise(40, 40))
    assert model.training is training
    assert all(part.training is training for part in model.modules() if part is not model)
    assert_same(found[0], predictor(model.eval()).predict(noise(40, 40)))
    fails(["must be uint8"], lambda: used.predict(np.zeros((40, 40))))


def test_no_gradients_are_kept(model):
    assert not predictor(model).propose(noise(40, 40)).requires_grad


# Options


def test_at_most_max_detections_are_found_and_the_model_stays_as_it_is(model, tiny_config):
    image = noise(90, 90)
    every = predictor(model).predict(image)
    assert len(every) > 3
    for flips in ("none", "horizontal"):
        found = predictor(model, max_detections=3, flips=flips).predict([image, image])
        assert [len(each) for each in found] == [3, 3]
    np.testing.assert_allclose(predictor(model, max_detections=3).predict(image).boxes, every.boxes[:3], atol=1e-3)
    assert predictor(model, max_detections=3).max_detections == 3
    assert predictor(model).max_detections == model.box_head.max_detections == tiny_config.model.box.max_detections
    assert len(predictor(model, max_detections=1000).predict(image)) >= len(every), (
        "more than the model's own is allowed"
    )


@pytest.mark.parametrize("options", [{}, {"flips": "both"}])
def test_objects_below_min_score_are_left_out_before_their_masks(model, options, monkeypatch):
    images = [noise(40, 56, seed=seed) for seed in range(3)]
    every = predictor(model, **options).predict(images)
    score = float(np.median(np.concatenate([found.scores for found in every])))
    computed = []
    coarse = model.mask_head.coarse_masks
    monkeypatch.setattr(
        model.mask_head,
        "coarse_masks",
        lambda maps, rois, labels: computed.append(len(labels)) or coarse(maps, rois, labels),
    )
    some = predictor(model, min_score=score, **options)
    for found, whole in zip(some.predict(images), every, strict=True):
        wanted = whole.above(score)
        assert 0 < len(wanted) < len(whole)
        assert_same(found, wanted)
    views = 4 if options else 1
    assert sum(computed) == views * sum(len(whole.above(score)) for whole in every)
    assert len(predictor(model, min_score=1.0, **options).predict(images[0])) == 0


def test_the_threshold_is_the_options_the_models_or_one_half(tiny_config, classes):
    model = build_model(tiny_config, classes)
    assert Predictor(model).threshold == 0.5
    model.score_threshold = 0.0
    assert Predictor(model).threshold == 0.0
    model.score_threshold = 0.3
    assert Predictor(model).threshold == 0.3
    assert Predictor(model, PredictionOptions(score_threshold=0.0)).threshold == 0.0


def test_precision_is_the_options_and_not_the_trainings(model):
    """The configuration trains in float32.  A CPU without bf16 instructions computes in bf16 too, only slower."""
    seen = []
    handle = model.backbone.register_forward_hook(lambda *given: seen.append(given[2].conv4.dtype))
    for precision in ("float32", "bf16"):
        Predictor(model, PredictionOptions(precision=precision)).predict(noise(40, 40))
    handle.remove()
    assert seen == [torch.float32, torch.bfloat16]
    assert model.config.train.precision == "float32"
    fails(["precision is fp16", "no CUDA GPU"], lambda: Predictor(model, PredictionOptions(precision="fp16")))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_detections": 0}, "max_detections is 0"),
        ({"max_detections": -2}, "max_detections is -2"),
        ({"score_threshold": float("nan")}, "score_threshold is nan"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"flips": "diagonal"}, "flips is 'diagonal'"),
        ({"scales": [0.1]}, "scales holds 0.1"),
    ],
)
def test_options_without_sense_are_refused(options, words):
    fails([words], lambda: PredictionOptions(**options))


def test_options_cannot_be_changed():
    options = PredictionOptions(scales=[0.5, 1])
    assert options.scales == (0.5, 1)
    assert hash(options) == hash(PredictionOptions(scales=(0.5, 1)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.flips = "both"


def test_load_gives_a_predictor_of_the_file(model, tmp_path):
    save_model(model, tmp_path / "model.safetensors")
    options = PredictionOptions(precision="float32", max_detections=5)
    loaded = masklab.load(tmp_path / "model.safetensors", "cpu", options)
    assert isinstance(loaded, masklab.Predictor)
    assert loaded.options is options
    assert loaded.classes == model.classes
    assert not loaded.model.training
    assert_same(loaded.predict(noise(60, 60)), Predictor(model, options).predict(noise(60, 60)))


def test_the_door_of_the_package_builds_the_module(tiny_config, classes):
    assert isinstance(masklab.build_model(tiny_config, classes), masklab.MaskLab)
    assert not hasattr(masklab.MaskLab, "predict")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, ["NoneType", "give an array or a file name"]),
        (np.zeros((40, 50, 3), np.uint8), ["(40, 50, 3)", "move its channels to the front"]),
        (np.zeros((4, 40, 50), np.uint8), ["(3, height, width)", "convert it or give its file name"]),
        (np.zeros((3, 40, 50), np.float64), ["float64", "convert it"]),
    ],
)
def test_what_is_no_image_is_refused_with_the_next_step(model, image, words):
    fails(words, predictor(model).predict, image)


def test_an_array_that_cannot_be_written_to_is_an_image(model, recwarn):
    values = noise(40, 56)
    values.flags.writeable = False
    predictor(model).predict(values)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("boxes", "labels", "words"),
    [
        ([[1, 1, 9, 9]] * 3, [0, 0], ["3 boxes", "one per box"]),
        ([[1, 1, 9, 9]], [3], ["labels are from 3 to 3", "0 to 2"]),
        ([[1, 1, 9, 9], [5, 5, 1, 9]], [0, 0], ["box 1", "x1 < x2"]),
    ],
)
def test_boxes_without_sense_are_refused(model, boxes, labels, words):
    fails(words, predictor(model).segment, noise(40, 56), np.array(boxes), np.array(labels))


def test_a_predictor_says_what_it_is(model):
    assert "3 classes, threshold 0.50" in repr(predictor(model))
    assert {"load", "train", "evaluate"} <= set(dir(masklab))


def test_threads_that_predict_leave_the_mode_of_every_part_as_it_was(tiny_config, classes):
    """The first to begin ends first, and a part that was in evaluation mode stays so."""
    network = build_model(tiny_config, classes).train()
    network.backbone.eval()
    before = {name: module.training for name, module in network.named_modules()}
    inside, first_has_ended, seen = threading.Event(), threading.Event(), []

    def second():
        with predictor(network).inference():
            inside.set()
            assert first_has_ended.wait(10)
            seen.append(any(module.training for module in network.modules()))

    thread = threading.Thread(target=second)
    with predictor(network).inference():
        thread.start()
        assert inside.wait(10)
    first_has_ended.set()
    thread.join()
    assert seen == [False]
    assert {name: module.training for name, module in network.named_modules()} == before
    with pytest.raises(InputError), predictor(network).inference():
        raise InputError("of the image")
    assert {name: module.training for name, module in network.named_modules()} == before
