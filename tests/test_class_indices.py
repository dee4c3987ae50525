"""Which outputs the class of an object is read from and written to: what rounded losses do not tell."""

import numpy as np
import pytest
import torch
from contracts import changed, predictor

from masklab.model.box_head import BoxOutput
from masklab.model.build import build_model
from masklab.structures import Batch, Targets
from masklab.training.step import TrainingStep

BOXES = torch.tensor([[10.0, 20, 40, 50], [50, 30, 90, 80], [60, 5, 75, 18]])


@pytest.fixture
def step(tiny_config, classes):
    """Of a model of three classes in which no proposal but an annotated box itself is an object."""
    torch.manual_seed(0)
    model = build_model(changed(tiny_config, model={"box": {"positive_iou": 0.999}}), classes)
    return TrainingStep(model).train()


def losses(step, labels, mask_rows):
    generator, labels = torch.Generator().manual_seed(0), torch.tensor(labels)
    boxes, rows = BOXES[: len(labels)], torch.tensor(mask_rows, dtype=torch.long)
    masks = torch.rand(len(rows), 15, 15, generator=generator)
    targets = Targets(boxes, labels, masks, boxes[rows], rows, torch.zeros(0, 4))
    images = torch.randn(1, 3, 97, 113, generator=generator)
    return step(Batch(images, torch.tensor([[97, 113]]), [targets], [1]), generator)


@pytest.mark.parametrize(("labels", "counts"), [([2, 2, 0], [1, 0, 2]), ([1], [0, 1, 0]), ([0, 1, 2], [1, 1, 1])])
def test_each_object_counts_for_its_own_class_and_the_rest_for_the_last(step, labels, counts):
    """With equal logits the gradient of a class's bias is its even share less its share of the samples."""
    layer = step.model.box_head.classes
    for parameter in (layer.weight, layer.bias):
        torch.nn.init.zeros_(parameter)
    losses(step, labels, [0])["box_class"].backward()
    samples = step.model.config.model.box.samples
    seen = (1 / 4 - layer.bias.grad / step.model.config.model.box.class_weight) * samples
    torch.testing.assert_close(seen, torch.tensor([*map(float, counts), samples - len(labels)]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("labels", [[2, 2, 0], [0, 1, 2], [1, 0, 0]])
def test_nothing_is_left_to_learn_for_answers_that_are_right_box_by_box(step, labels, monkeypatch):
    def right(conv4, rois):
        logits = torch.full((len(rois), 4), -50.0)
        wanted = step.model.rois(BOXES, torch.zeros(3, dtype=torch.long), torch.zeros(1, 3, 97, 113)).boxes
        for row, box in enumerate(rois.boxes):
            near = (wanted - box).abs().amax(dim=1) < 1e-4
            logits[row, labels[int(near.nonzero()[0])] if near.any() else 3] = 50.0
        return BoxOutput(logits, torch.zeros(len(rois), 3, 4))

    monkeypatch.setattr(step.model.box_head, "forward", right)
    found = losses(step, labels, [0])
    assert found["box_class"] < 1e-6
    assert found["box"] < 1e-6


@pytest.mark.parametrize("label", [0, 1, 2])
def test_boxes_are_learnt_by_the_codes_of_their_class(step, label):
    layer = step.model.box_head.deltas
    torch.nn.init.constant_(layer.bias, 0.3)
    losses(step, [label] * 3, [0])["box"].backward()
    touched = layer.bias.grad.view(3, 4).abs() > 0
    assert touched.all(dim=1).nonzero().flatten().tolist() == [label]
    assert touched.any(dim=1).nonzero().flatten().tolist() == [label]


@pytest.mark.parametrize("loss", ["mask_coarse", "mask_refined"])
@pytest.mark.parametrize(("rows", "touched"), [([1], [2]), ([2, 0], [0, 1]), ([1, 2], [0, 2])])
def test_masks_are_learnt_by_the_semantic_channel_of_their_object(step, loss, rows, touched):
    """Objects of classes 1, 2 and 0, of which only some carry a mask, in any order."""
    losses(step, [1, 2, 0], rows)[loss].backward()
    gradient = step.model.mask_head.semantic.bias.grad
    assert (gradient != 0).nonzero().flatten().tolist() == touched


@pytest.mark.parametrize("label", [0, 1, 2])
def test_the_class_that_the_model_is_sure_of_is_the_one_that_it_names(tiny_config, classes, label):
    """And its boxes and masks are those of that class: the other classes' boxes have no width, their masks no pixel."""
    torch.manual_seed(0)
    model = build_model(tiny_config, classes).eval()
    bias, codes = torch.full((4,), -50.0), torch.zeros(3, 4)
    bias[label], codes[:, 2] = 50.0, -500.0
    codes[label, 2] = 0.0
    with torch.no_grad():
        model.box_head.classes.bias.copy_(bias)
        model.box_head.deltas.weight.zero_()
        model.box_head.deltas.bias.copy_(codes.flatten())
        model.mask_head.semantic.bias.copy_(torch.where(torch.arange(3) == label, 200.0, -200.0))
    found = predictor(model).predict(np.random.default_rng(0).integers(0, 255, (3, 60, 70), dtype=np.uint8))
    assert len(found) > 3
    assert set(found.labels.tolist()) == {label}
    assert {entry["category_id"] for entry in found.to_coco(1)} == {classes.ids[label]}
    assert (found.boxes[:, 2] - found.boxes[:, 0]).min() > 1
    coarse = model.mask_head.coarse_masks(
        model.mask_head(torch.zeros(1, 64, 9, 9)),
        model.rois(torch.tensor([[8.0, 8, 40, 40]]), torch.zeros(1, dtype=torch.long), torch.zeros(1, 3, 65, 65)),
        torch.tensor([label]),
    )
    assert (coarse > 0).all()
