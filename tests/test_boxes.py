import math

import numpy as np
import pytest
import torch
import torchvision.ops
from torch import nn
from torchvision.ops import nms

from masklab.config.model import BoxConfig
from masklab.model.box_head import BoxHead, BoxOutput
from masklab.model.rpn import Proposals
from masklab.ops.boxes import box_iou, clip, decode, encode, overlap_share
from masklab.ops.nms import nms_top_k, soft_nms


def test_deltas_by_hand():
    anchor, box = torch.tensor([[0.0, 0, 20, 10]]), torch.tensor([[2.0, 1, 22, 9]])
    torch.testing.assert_close(encode(box, anchor), torch.tensor([[1.0, 0, 0, -1.1157]]), atol=1e-4, rtol=0)


def test_decode_inverts_encode():
    corner = torch.rand(50, 2, 2) * 100
    boxes = torch.cat([corner[:, 0], corner[:, 0] + 2 + corner[:, 1]], dim=1)
    anchors = boxes[torch.randperm(50)]
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, atol=1e-3, rtol=1e-4)


def test_extreme_deltas_stay_finite():
    deltas = torch.tensor([[0.0, 0, 1e6, 1e6]])
    assert decode(deltas, torch.tensor([[0.0, 0, 10, 10]])).isfinite().all()


def test_clip_to_each_images_size():
    boxes = torch.tensor([[[-5.0, -5, 50, 50]], [[1, 2, 3, 4]]])
    sizes = torch.tensor([[20, 30], [40, 40]])
    assert clip(boxes, sizes[:, None]).tolist() == [[[0, 0, 30, 20]], [[1, 2, 3, 4]]]


def test_share_inside_regions():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    regions = torch.tensor([[5.0, 0, 50, 50], [0, 0, 1, 1]])
    torch.testing.assert_close(overlap_share(boxes, regions), torch.tensor([0.5, 1.0]))
    assert overlap_share(boxes, regions[:0]).tolist() == [0, 0]


def boxes_at_random(count):
    corner = torch.rand(count, 2) * 40
    return torch.cat([corner, corner + 5 + torch.rand(count, 2) * 30], dim=1)


def test_overlaps_equal_torchvisions_to_the_last_bit():
    boxes, others = boxes_at_random(40), boxes_at_random(300)
    boxes[7] = others[9]
    expected = torchvision.ops.box_iou(boxes, others)
    assert expected[7, 9] == 1
    assert (expected == 0).any()
    assert torch.equal(box_iou(boxes, others), expected)
    assert torch.equal(box_iou(others, boxes), expected.t())
    assert box_iou(boxes[:0], others).shape == (0, 300)
    assert box_iou(boxes, others[:0]).shape == (40, 0)


@pytest.mark.parametrize("count", [1, 7, 40, 1000])
@pytest.mark.parametrize("iou", [0.0, 0.3, 0.7])
def test_the_first_after_suppression(iou, count):
    boxes, scores = boxes_at_random(400), torch.linspace(1, 0, 400)
    scores[100:150] = scores[100]  # equal scores keep their order
    left = nms(boxes, scores, iou)
    assert len(left) < 400
    assert nms_top_k(boxes, scores, iou, count).tolist() == left[:count].tolist()
    assert nms_top_k(boxes[:0], scores[:0], iou, count).shape == (0,)


def soft_nms_slowly(boxes, scores, labels, sigma):
    """From the definition, box by box in numpy."""
    boxes, labels = boxes.double().numpy(), labels.numpy()
    left, result = dict(enumerate(scores.double().tolist())), np.zeros(len(scores))
    while left:
        best = max(left, key=left.__getitem__)
        result[best] = left.pop(best)
        for other in left:
            width, height = (
                min(boxes[best, axis + 2], boxes[other, axis + 2]) - max(boxes[best, axis], boxes[other, axis])
                for axis in (0, 1)
            )
            shared = max(width, 0) * max(height, 0)
            areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (boxes[best], boxes[other])]
            if labels[best] == labels[other]:
                left[other] *= math.exp(-((shared / (sum(areas) - shared)) ** 2) / sigma)
    return result


def test_soft_nms_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 5], [50, 50, 60, 60]])
    scores, labels = torch.tensor([0.9, 0.6, 0.5, 0.1]), torch.tensor([0, 0, 1, 0])
    expected = torch.tensor([0.9, 0.6 * math.exp(-0.25 / 0.5), 0.5, 0.1])  # half as large, so IoU 0.5; another class
    torch.testing.assert_close(soft_nms(boxes, scores, labels, 0.5), expected)
    assert soft_nms(boxes[:0], scores[:0], labels[:0], 0.5).shape == (0,)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_soft_nms_equals_the_slow_one(sigma):
    boxes, scores, labels = boxes_at_random(60), torch.rand(60), torch.randint(2, (60,))
    found = soft_nms(boxes, scores, labels, sigma)
    np.testing.assert_allclose(found, soft_nms_slowly(boxes, scores, labels, sigma), atol=1e-5)
    assert (found < scores - 0.01).sum() > 10


def test_soft_nms_that_leaves_nothing_of_the_others():
    """Factors of 0 would let a box be taken twice and another never."""
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(20, 1)
    found = soft_nms(boxes, torch.linspace(0.9, 0.1, 20), torch.zeros(20), 1e-3)
    assert found[0] == 0.9
    assert (found[1:] < 1e-30).all()


@pytest.mark.parametrize("max_detections", [100, 5])
def test_detections_after_soft_nms(max_detections):
    """What hard suppression leaves, softened, cut at the threshold and at max_detections, best first."""
    config = BoxConfig(nms_iou=0.85, soft_nms=0.5, score_threshold=0.2, max_detections=max_detections)
    boxes, logits = boxes_at_random(80), torch.randn(80, 2) * 2
    proposals = Proposals(boxes[None], torch.tensor([80]))
    head = BoxHead(config, nn.Identity(), 1, 1, num_classes=1)
    found = head.detect(BoxOutput(logits, torch.zeros(80, 1, 4)), proposals, torch.tensor([[200, 200]]))

    scores = logits.softmax(dim=1)[:, 0]
    kept = (scores > 0.2).nonzero().flatten()
    kept = kept[nms(boxes[kept], scores[kept], 0.85)]
    softened = soft_nms_slowly(boxes[kept], scores[kept], torch.zeros(len(kept)), 0.5)
    order = [row for row in np.argsort(-softened) if softened[row] > 0.2][:max_detections]
    count = int(found.num_valid[0])
    assert count == len(order)
    assert max_detections == 5 or count < (scores > 0.2).sum()
    np.testing.assert_allclose(found.scores[0, :count], softened[order], atol=1e-5)
    np.testing.assert_allclose(found.boxes[0, :count], boxes[kept][order], atol=1e-3)
    assert (found.scores[0, count:] == 0).all()


def detections(config, boxes, probabilities, deltas=None):
    """``(label, score, box)`` of what is found among proposals (R, 4) with probabilities (R, K + 1), background last."""
    proposals, probabilities = torch.tensor([boxes]), torch.tensor(probabilities)
    classes = probabilities.shape[1] - 1
    deltas = torch.zeros(len(boxes), classes, 4) if deltas is None else torch.tensor(deltas)
    head = BoxHead(config, nn.Identity(), 1, 1, num_classes=classes)
    found = head.detect(
        BoxOutput(probabilities.log(), deltas),
        Proposals(proposals, torch.tensor([len(boxes)])),
        torch.tensor([[99, 99]]),
    )
    rows = zip(found.labels[0].tolist(), found.scores[0].tolist(), found.boxes[0].tolist(), strict=True)
    return [(label, pytest.approx(score, abs=1e-5), pytest.approx(box, abs=1e-3)) for label, score, box in rows][
        : int(found.num_valid[0])
    ]


def test_each_class_has_a_box_of_its_own():
    """Of one proposal, class 0 moves the box right by its width, class 1 down by its height and class 2 doubles it."""
    double = 5 * math.log(2)
    deltas = [[[10.0, 0, 0, 0], [0, 10, 0, 0], [0, 0, double, double]]]
    found = detections(BoxConfig(), [[20.0, 30, 40, 40]], [[0.2, 0.3, 0.4, 0.1]], deltas)
    assert found == [(2, 0.4, [10, 25, 50, 45]), (1, 0.3, [20, 40, 40, 50]), (0, 0.2, [40, 30, 60, 40])]


LARGE, HALF = [0.0, 0, 10, 10], [0.0, 0, 10, 5]  # they overlap by one half
LIKELY = [[0.6, 0.3, 0.1], [0.25, 0.5, 0.25]]


def test_a_detection_suppresses_none_of_another_class():
    found = detections(BoxConfig(nms_iou=0.4), [LARGE, HALF], LIKELY)
    assert found == [(0, 0.6, LARGE), (1, 0.5, HALF)]


def test_a_detection_softens_none_of_another_class():
    found = detections(BoxConfig(nms_iou=0.9, soft_nms=0.5), [LARGE, HALF], LIKELY)
    less = math.exp(-0.25 / 0.5)
    assert found == [(0, 0.6, LARGE), (1, 0.5, HALF), (1, 0.3 * less, LARGE), (0, 0.25 * less, HALF)]


@pytest.mark.parametrize(("height", "count"), [(58.0, 2), (62.0, 1)])
def test_detections_are_one_object_above_an_overlap_of_six_tenths(height, count):
    boxes = [[0.0, 0, 50, 100], [0.0, 0, 50, height]]
    head = BoxHead(BoxConfig(), nn.Identity(), 1, 1, num_classes=1)
    output = BoxOutput(torch.tensor([[1.0, 0], [0.5, 0]]), torch.zeros(2, 1, 4))
    found = head.detect(output, Proposals(torch.tensor([boxes]), torch.tensor([2])), torch.tensor([[200, 200]]))
    assert found.num_valid.tolist() == [count]
