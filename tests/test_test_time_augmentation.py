"""Several views of an image: their geometry by hand, what they agree on by hand, and what a flipped image gives."""

import itertools

import numpy as np
import pytest
import torch
from contracts import assert_instances, changed, fails, predictor

from masklab.inference.options import PredictionOptions
from masklab.inference.test_time_augmentation import fuse_boxes
from masklab.inference.views import PLAIN, View, all_views
from masklab.model.build import build_model

EVERY_WAY = [View(1.0, *ways) for ways in itertools.product((False, True), repeat=3)]
SEVERAL = {"flips": "horizontal", "scales": [0.8, 1.25]}


@pytest.fixture(scope="module")
def model(tiny_config, classes):
    torch.manual_seed(0)
    return build_model(tiny_config, classes).eval()


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 255, (3, 41, 58), dtype=np.uint8)


def test_views_are_counted_and_the_first_is_plain():
    assert all_views() == [PLAIN]
    for flips, count in (("none", 1), ("horizontal", 2), ("both", 4), ("turns", 8)):
        views = all_views(flips, [1, 0.5])
        assert len(set(views)) == len(views) == 2 * count
        assert views[0] == PLAIN
    assert set(all_views("turns")) == set(EVERY_WAY)


@pytest.mark.parametrize("view", EVERY_WAY, ids=str)
def test_a_box_goes_where_its_pixels_go(view):
    """Pixels marked inside a box; the view shows image and box, and its undoing brings both back."""
    size, box = (6, 9), torch.tensor([[2.0, 1, 7, 3]])
    drawn = torch.zeros(size)
    drawn[1:3, 2:7] = torch.arange(10.0).view(2, 5) + 1
    shown = view.show(drawn)
    x1, y1, x2, y2 = view.from_image(box, size, tuple(shown.shape))[0].long().tolist()
    assert shown[y1:y2, x1:x2].sum() == drawn.sum()
    assert (shown[y1:y2, x1:x2] > 0).all()
    assert torch.equal(view.undo(shown), drawn)
    seen = (shown.shape[0] * 2, shown.shape[1] * 3)  # the network's size is another
    torch.testing.assert_close(view.to_image(view.from_image(box, size, seen), size, seen), box)


def test_views_by_hand():
    """An image 10 high and 20 wide, seen twice as large."""
    box = torch.tensor([[1.0, 2, 4, 8]])
    assert View(2.0).from_image(box, (10, 20), (20, 40)).tolist() == [[2, 4, 8, 16]]
    assert View(2.0, hflip=True).from_image(box, (10, 20), (20, 40)).tolist() == [[32, 4, 38, 16]]
    assert View(2.0, vflip=True).from_image(box, (10, 20), (20, 40)).tolist() == [[2, 4, 8, 16]]
    assert View(2.0, transposed=True).from_image(box, (10, 20), (40, 20)).tolist() == [[4, 2, 16, 8]]
    assert View(2.0, transposed=True, hflip=True).from_image(box, (10, 20), (40, 20)).tolist() == [[4, 2, 16, 8]]
    assert View(2.0, transposed=True, vflip=True).from_image(box, (10, 20), (40, 20)).tolist() == [[4, 32, 16, 38]]


@pytest.mark.parametrize(
    ("flips", "scales", "word"),
    [
        ("sideways", [1.0], "sideways"),
        ("none", [], "at least one"),
        ("none", [1, 1.0], "only once"),
        ("both", [1, 0], "scales holds 0"),
        ("none", [-1.0], "scales holds -1"),
        ("none", [100], "scales holds 100"),
        ("none", [float("nan")], "scales holds nan"),
    ],
)
def test_views_without_sense_are_refused(flips, scales, word):
    fails([word], lambda: PredictionOptions(flips=flips, scales=scales))


def found(*rows):
    """Boxes, scores and labels from (x1, y1, x2, y2, score, label)."""
    table = torch.tensor(rows, dtype=torch.float32).view(-1, 6)
    return table[:, :4], table[:, 4], table[:, 5].long()


def test_of_nothing_nothing_is_agreed():
    boxes, scores, labels = fuse_boxes([found(), found()], 0.5, 0.0, 10)
    assert boxes.shape == (0, 4)
    assert scores.shape == labels.shape == (0,)


def test_agreement_by_hand():
    first = found((0, 0, 10, 10, 0.8, 0), (50, 0, 60, 10, 0.6, 0), (0, 0, 10, 10, 0.1, 1))
    second = found((0, 0, 10, 12, 0.4, 0), (0, 0, 10, 7, 0.2, 0), (80, 0, 90, 10, 0.03, 0))
    boxes, scores, labels = fuse_boxes([first, second], 0.5, 0.02, 10)
    # in the second view 10 / 12 overlaps more than 7 / 10 and votes alone; what one view saw has half its score
    torch.testing.assert_close(boxes[:2], torch.tensor([[0, 0, 10, 10 + 2 / 3], [50, 0, 60, 10]]))
    torch.testing.assert_close(scores, torch.tensor([0.6, 0.3, 0.05]))
    assert labels.tolist() == [0, 0, 1]
    assert len(fuse_boxes([first, second], 0.5, 0.02, 2)[0]) == 2
    assert len(fuse_boxes([first, second], 0.5, 0.01, 9)[0]) == 4


def test_one_view_agrees_with_itself():
    alone = found((0, 0, 10, 10, 0.8, 0), (4, 0, 14, 10, 0.6, 0), (0, 0, 10, 10, 0.1, 1))
    for given, expected in zip(fuse_boxes([alone], 0.5, 0.0, 10), alone, strict=True):
        torch.testing.assert_close(given, expected)


def test_the_plain_view_is_plain_prediction(model, image):
    plain, again = predictor(model).predict(image), predictor(model, flips="none", scales=[1.0]).predict(image)
    for name in ("boxes", "scores", "labels", "masks"):
        np.testing.assert_array_equal(getattr(again, name), getattr(plain, name))
    fused = predictor(model)._predict_views(torch.from_numpy(image))
    np.testing.assert_allclose(fused.boxes, plain.boxes, atol=1e-3)
    np.testing.assert_allclose(fused.scores, plain.scores, atol=1e-6)
    np.testing.assert_array_equal(fused.labels, plain.labels)
    np.testing.assert_allclose(fused.masks, plain.masks, atol=1e-3)


def test_many_views_keep_the_promises(model, image):
    result = predictor(model, **SEVERAL).predict(image)
    assert len(result) > 3
    assert_instances(result, model)
    assert not np.array_equal(result.scores, predictor(model).predict(image).scores)
    assert predictor(model, **SEVERAL).predict([]) == []
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            result.masks, predictor(model).segment(image, result.boxes, result.labels).masks, atol=1e-3
        )
    again = predictor(model, **SEVERAL).segment(image, result.boxes, result.labels)
    np.testing.assert_allclose(again.masks, result.masks, atol=1e-4)


@pytest.mark.parametrize(
    ("view", "flips"),
    [(View(hflip=True), "horizontal"), (View(vflip=True), "both"), (View(transposed=True, hflip=True), "turns")],
    ids=str,
)
def test_a_flipped_image_gives_the_flipped_result(model, image, view, flips):
    """The same views in another order; without them the network, whose cells begin at one corner, answers otherwise."""
    shown = view.show(torch.from_numpy(image)).contiguous()
    size, seen = image.shape[1:], tuple(shown.shape[1:])

    def compare(**views):
        plain, flipped = predictor(model, **views).predict(image), predictor(model, **views).predict(shown)
        np.testing.assert_allclose(flipped.scores, plain.scores, atol=1e-5)
        np.testing.assert_array_equal(flipped.labels, plain.labels)
        back = view.to_image(torch.from_numpy(flipped.boxes), size, seen)
        np.testing.assert_allclose(back, plain.boxes, atol=1e-2)
        np.testing.assert_allclose(view.undo(torch.from_numpy(flipped.masks)), plain.masks, atol=1e-3)

    compare(flips=flips)
    with pytest.raises(AssertionError):
        compare()


def test_every_scale_and_turn_reaches_the_network(model, image, monkeypatch):
    """An image of 41 x 58 pixels, which the model takes as it is, at half and at twice its size."""
    several = predictor(model, flips="turns", scales=[0.5, 2.0])
    sizes, real = [], several.network_input
    monkeypatch.setattr(
        several, "network_input", lambda *given: sizes.append(real(*given)[1][0].tolist()) or real(*given)
    )
    several.predict(image)
    for scale, seen in ((0.5, sizes[:8]), (2, sizes[8:])):
        across, transposed = seen[:4], seen[4:]
        assert across == [pytest.approx([41 * scale, 58 * scale], abs=0.6)] * 4
        assert transposed == [pytest.approx([58 * scale, 41 * scale], abs=0.6)] * 4
    (from_list,), alone = predictor(model, **SEVERAL).predict([image]), predictor(model, **SEVERAL).predict(image)
    np.testing.assert_array_equal(from_list.boxes, alone.boxes)
    np.testing.assert_array_equal(from_list.masks, alone.masks)


@pytest.mark.parametrize(("nms_iou", "iou"), [(0.3, 0.3), (0.9, 0.6)])
def test_views_agree_by_the_models_own_rules(tiny_config, classes, image, nms_iou, iou, monkeypatch):
    """But boxes of two views that overlap by more than 0.6 are one object, however much suppression leaves."""
    rules, real = [], fuse_boxes
    monkeypatch.setattr(
        "masklab.inference.test_time_augmentation.fuse_boxes",
        lambda found, *given: rules.append(given) or real(found, *given),
    )
    box = {"nms_iou": nms_iou, "score_threshold": 0.02, "max_detections": 5}
    result = predictor(build_model(changed(tiny_config, model={"box": box}), classes), **SEVERAL).predict(image)
    assert rules == [(iou, 0.02, 5)]
    assert len(result) <= 5


def test_an_overlap_of_just_the_limit_is_no_vote():
    """Of 1/2: both boxes stay, each seen by one view of two."""
    boxes, scores, _ = fuse_boxes([found((0, 0, 10, 10, 0.8, 0)), found((0, 0, 10, 5, 0.4, 0))], 0.5, 0.0, 10)
    assert boxes.tolist() == [[0, 0, 10, 10], [0, 0, 10, 5]]
    torch.testing.assert_close(scores, torch.tensor([0.4, 0.2]))


def test_no_detections_in_any_view(tiny_config, classes, image):
    model = build_model(tiny_config, classes).eval()
    with torch.no_grad():
        model.box_head.classes.bias.copy_(torch.tensor([-50.0, -50, -50, 50]))
    assert len(predictor(model, **SEVERAL).predict(image)) == 0
