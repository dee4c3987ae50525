"""The network compiles into one graph, and the graph computes what the network does."""

import pytest
import torch

from masklab.config.recipe import load_recipe
from masklab.model.build import build_model
from masklab.structures import ClassTable

SIZES = torch.tensor([[60, 64], [50, 40]])


def network(soft_nms):
    torch.manual_seed(0)
    box = {"score_threshold": 0.3, "max_detections": 60, "soft_nms": soft_nms}
    rpn = {"proposals_test": 30, "pre_nms_test": 200}
    model = build_model(
        load_recipe("nuclei", {"model": {"box": box, "rpn": rpn}}), ClassTable((1, 2), ("a", "b"))
    ).eval()
    for part in (model.rpn.deltas, model.rpn.objectness, model.box_head.classes):  # so that scores and boxes differ
        torch.nn.init.normal_(part.weight, std=0.05)
    return model


@pytest.mark.parametrize("soft_nms", [0.5, None])
def test_the_whole_network_is_one_graph_with_the_same_results(soft_nms):
    model, images = network(soft_nms), torch.randn(2, 3, 65, 65)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(images, SIZES)
        found = torch._dynamo.explain(model)(images, SIZES)
        assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(images, SIZES)
    assert 0 < expected.num_valid.min() < 60
    for name in ("boxes", "scores", "labels", "num_valid"):
        torch.testing.assert_close(getattr(compiled, name), getattr(expected, name), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(compiled.masks, expected.masks, rtol=1e-4, atol=1e-4)


def test_operations_of_fixed_shapes_keep_the_rules_of_operations():
    from masklab.ops.fixed_shapes import _class_boxes_op, _first_boxes_op

    boxes = torch.rand(2, 9, 1, 2).repeat(1, 1, 3, 1)
    boxes, scores = torch.cat([boxes, boxes + 1], dim=3), torch.rand(2, 9, 3).sort(dim=1, descending=True).values
    rules = ("test_schema", "test_faketensor")
    torch.library.opcheck(_first_boxes_op, (boxes[:, :, 0], scores[..., 0], 0.1, 0.5, 4), test_utils=rules)
    for sigma in (None, 0.5):
        torch.library.opcheck(_class_boxes_op, (boxes, scores, scores > 0.2, 0.5, sigma, 0.1, 5), test_utils=rules)
