"""The operators of `masklab.ops.operators` in ONNX's own.  Needs ``onnxscript``: import it inside functions.

The functions are read as ONNX, whose types are none of Python's.
"""

# mypy: ignore-errors

import onnxscript
from onnxscript import FLOAT, INT64
from onnxscript import opset18 as op  # what PyTorch writes before it converts the graph

_FUNCTIONS = onnxscript.values.Opset("masklab", 1)


def hard_nms(boxes: FLOAT, scores: FLOAT, iou: float, threshold: float, count: int) -> INT64:
    """One NonMaxSuppression whose batch are the groups, with one class each."""
    most = op.Constant(value_ints=[count])
    share, least = op.Constant(value_floats=[iou]), op.Constant(value_floats=[threshold])
    found = op.NonMaxSuppression(boxes, op.Unsqueeze(scores, op.Constant(value_ints=[1])), most, share, least)
    return op.Gather(found, op.Constant(value_ints=[0, 2]), axis=1)  # its columns are batch, class and box


@onnxscript.script(_FUNCTIONS, default_opset=op)
def soft_nms(boxes: FLOAT, scores: FLOAT, groups: INT64, sigma: float, threshold: float) -> FLOAT:
    """A loop that takes the best box and lowers the others, until no score above the threshold is left."""
    first, second, third = op.Constant(value_ints=[0]), op.Constant(value_ints=[1]), op.Constant(value_ints=[2])
    corner, opposite = op.Split(boxes, axis=1, num_outputs=2)
    area = op.ReduceProd(opposite - corner, second, keepdims=1)
    low = op.Max(op.Unsqueeze(corner, second), op.Unsqueeze(corner, first))
    high = op.Min(op.Unsqueeze(opposite, second), op.Unsqueeze(opposite, first))
    common = op.ReduceProd(op.Relu(high - low), third, keepdims=0)
    overlap = common / (area + op.Transpose(area, perm=[1, 0]) - common)
    column = op.Unsqueeze(groups, second)
    same = op.Equal(column, op.Transpose(column, perm=[1, 0]))
    factors = op.Where(same, op.Exp(op.Neg(overlap * overlap) / sigma), 1.0)
    count = op.Squeeze(op.Shape(scores))
    place = op.Range(0, count, 1)
    left = op.Identity(scores)
    result = scores * 0.0
    for _ in range(count):
        best = op.ArgMax(left, axis=0, keepdims=1)
        taken = op.Equal(place, best)
        result = op.Where(taken, left, result)
        left = op.Where(taken, -1.0, left * op.Squeeze(op.Gather(factors, best, axis=0), first))
        done = op.ReduceMax(left, keepdims=0) <= threshold
        if done:
            break
    return result
