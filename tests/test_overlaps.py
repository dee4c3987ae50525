"""Suppression and overlaps of many boxes: the results of comparing all pairs, in memory that grows with the boxes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torchvision.ops import nms

from masklab.ops import box_index
from masklab.ops import nms as suppression
from masklab.ops.box_index import BoxIndex
from masklab.ops.boxes import box_iou
from masklab.ops.nms import nms_by_label, nms_top_k, soft_nms
from masklab.ops.overlaps import best_overlaps

LAYOUTS = (
    "spread",
    "on one another",
    "the same",
    "large and small",
    "one giant",
    "far away",
    "on a grid",
    "none",
    "one",
)


def draw(layout, seed=0, count=300):
    """Boxes (R, 4), some of them twice, of a layout."""
    rng = np.random.default_rng(seed)

    def boxes(number, side, least, most):
        sides = rng.uniform(least, most, (number, 2))
        corner = rng.uniform(0, 1, (number, 2)) * (side - sides)
        return np.concatenate([corner, corner + sides], axis=1)

    found = {
        "spread": lambda: boxes(count, 900, 20, 60),
        "on one another": lambda: boxes(count, 100, 60, 99),
        "the same": lambda: np.tile([[3.0, 4, 10, 20]], (count, 1)),
        "large and small": lambda: np.concatenate([boxes(count // 2, 900, 200, 500), boxes(count // 2, 900, 2, 6)]),
        "one giant": lambda: np.concatenate([boxes(count, 900, 20, 60), [[0, 0, 900, 900]]]),
        "far away": lambda: np.concatenate([boxes(count, 200, 20, 60), [[1e6, 1e6, 1e6 + 9, 1e6 + 9]]]) - 50,
        "on a grid": lambda: (
            np.stack([*np.mgrid[:15, :20].reshape(2, -1), *(np.mgrid[:15, :20] + 1).reshape(2, -1)], 1) * 8.0
        ),
        "none": lambda: np.zeros((0, 4)),
        "one": lambda: boxes(1, 900, 20, 60),
    }[layout]()
    found[5:8] = found[3:4]
    return torch.from_numpy(found.astype(np.float32))


def scores_of(boxes, seed=1):
    """Scores, many of them equal."""
    return torch.from_numpy(np.random.default_rng(seed).integers(1, 100, len(boxes)).astype(np.float32) / 100)


def labels_of(boxes, classes):
    return torch.from_numpy(np.random.default_rng(2).integers(classes, size=len(boxes)))


@pytest.fixture(params=["in one part", "in many parts"])
def parts(request, monkeypatch):
    """The same with limits so small that everything is done in many parts."""
    if request.param == "in many parts":
        monkeypatch.setattr(box_index, "_ROWS", 17)
        monkeypatch.setattr(box_index, "_PAIRS", 50)
        monkeypatch.setattr(suppression, "_BLOCK", {"cpu": 23})
        monkeypatch.setattr(suppression, "_STORED", 100)
        monkeypatch.setattr(suppression, "_STORED_EACH", 0)
        monkeypatch.setattr(suppression, "_LEAST_ROWS", 2)
        monkeypatch.setattr(suppression, "_GROUP", 7)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_are_those_that_share_an_area(layout, classes, parts):
    index, asked = draw(layout), torch.cat([draw("spread", 5)[:40], draw(layout, 6)])
    index[10:12, 2] = index[10:12, 0]  # no width
    asked[20:22, 3] = asked[20:22, 1] - 5
    labels = [None, None] if classes is None else [labels_of(boxes, classes).numpy() for boxes in (index, asked)]
    found, rows = [], 0
    for part in BoxIndex(index.numpy(), labels[0]).pairs(asked.numpy(), labels[1]):
        assert part.first == rows
        rows = part.end
        assert (np.diff(part.rows) >= 0).all()
        assert ((part.rows >= part.first) & (part.rows < part.end)).all()
        found += zip(part.rows.tolist(), part.others.tolist(), strict=True)
    assert rows == len(asked)
    low, high = torch.maximum(asked[:, None, :2], index[:, :2]), torch.minimum(asked[:, None, 2:], index[:, 2:])
    shares = (high > low).all(dim=2).numpy()
    if classes is not None:
        shares &= labels[1][:, None] == labels[0]
    assert sorted(found) == list(zip(*(each.tolist() for each in shares.nonzero()), strict=True))


def softened_by_the_matrix(boxes, scores, labels, sigma):
    """Soft-NMS with the factors of all pairs."""
    factors = (-box_iou(boxes, boxes).square() / sigma).exp()
    factors = torch.where(labels[:, None] == labels, factors, 1.0).clamp(min=torch.finfo(factors.dtype).tiny)
    left, result = scores.clone(), scores.clone()
    for _ in range(len(scores)):
        best = left.argmax()
        result[best] = left[best]
        left *= factors[best]
        left[best] = -torch.inf
    return result


@pytest.mark.parametrize("classes", [1, 4, 1200])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_soft_nms_gives_the_bits_of_the_matrix(layout, classes, parts):
    boxes = draw(layout)
    scores, labels = scores_of(boxes), labels_of(boxes, classes)
    expected = softened_by_the_matrix(boxes, scores, labels, 0.5)
    assert torch.equal(soft_nms(boxes, scores, labels, 0.5), expected)
    assert layout not in ("spread", "the same") or classes > 4 or (expected < scores).sum() > 50


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_suppression_gives_what_torchvision_keeps(layout, iou, parts):
    boxes = draw(layout)
    scores, labels = scores_of(boxes), labels_of(boxes, 3)
    one = torch.zeros_like(labels)
    assert nms_by_label(boxes, scores, one, iou).tolist() == nms(boxes, scores, iou).tolist()
    kept = {
        row
        for k in range(3)
        for row in (labels == k).nonzero()[:, 0][nms(boxes[labels == k], scores[labels == k], iou)].tolist()
    }
    found = nms_by_label(boxes, scores, labels, iou).tolist()
    assert found == sorted(kept, key=lambda row: (-float(scores[row]), row))
    order = scores.argsort(descending=True, stable=True)
    for count in (1, 9, 40, 1000):
        assert (
            nms_top_k(boxes[order], scores[order], iou, count).tolist()
            == nms(boxes[order], scores[order], iou)[:count].tolist()
        )


def test_suppression_of_a_class_does_not_depend_on_its_number():
    """Boxes moved apart by class, as torchvision moves them, lose the last digits of their coordinates."""
    boxes = torch.tensor([[4000.0, 4000, 4000.5, 4000.5], [4000.25, 4000, 4000.75, 4000.5]])  # an IoU of one third
    scores = torch.tensor([0.9, 0.8])
    for label in (0, 1, 79, 1199):
        labels = torch.tensor([label, label])
        assert nms_by_label(boxes, scores, labels, 0.35).tolist() == [0, 1]
        assert nms_by_label(
            torch.cat([boxes, boxes[:1]]), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([label, label, 3]), 0.3
        ).tolist() == [0, 2]


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_best_overlaps_are_those_of_the_matrix(layout, classes, parts):
    boxes, others = draw(layout), draw(layout, 4)
    shares = box_iou(boxes, others)
    labels = (None, None)
    if classes is not None:
        labels = labels_of(boxes, classes), labels_of(others, classes).flip(0)
        shares = shares * (labels[0][:, None] == labels[1])
    best, row = best_overlaps(boxes, labels[0], others, labels[1])
    if len(others):
        expected = shares.max(dim=1)
        assert torch.equal(best, expected.values)
        assert torch.equal(row, expected.indices)
    assert best_overlaps(boxes, None, others[:0], None)[0].tolist() == [0] * len(boxes)


MANY = """
import resource, torch
from masklab.ops.nms import nms_by_label, soft_nms
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def run(count, side, classes):
    sides = 20 + 40 * torch.rand(count, 2)
    corner = torch.rand(count, 2) * (side - sides)
    boxes, scores, labels = torch.cat([corner, corner + sides], dim=1), torch.rand(count), torch.arange(count) % classes
    nms_by_label(boxes, scores, labels, 0.85)
    soft_nms(boxes, scores, labels, 0.5)
run(1_000, 7000, 1)
before = peak()
for side, classes in ((7000, 1), (7000, 1200), (200, 20)):
    run(20_000, side, classes)
    print(peak() - before)
"""


def test_memory_of_20_000_boxes():
    """MiB of boxes that are spread, of many classes, and crowded; each matrix of all pairs takes 1,500."""
    ran = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, check=True)
    assert max(map(float, ran.stdout.split())) < 200
