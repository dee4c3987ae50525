"""Convolutions of an ONNX file in 8-bit integers, calibrated on images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def quantise(path: Path, inputs: Sequence[Any]) -> None:
    """Rewrite a file so that its convolutions compute in 8 bits, with the ranges of values that ``inputs`` show.

    ``inputs`` are pairs of network inputs (1, C, H, W) and their sizes (1, 2).  Weights have a scale for each filter.  Layers
    that make numbers for the user, such as deltas of boxes and logits, stay in float32.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            given = next(self._left, None)
            if given is None:
                return None
            return {"images": np.ascontiguousarray(given[0].numpy()), "sizes": given[1].numpy()}

    original = onnx.load(path)
    prepared = path.with_name("prepared.onnx")
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    wide = _narrow_layers(onnx.load(prepared))
    quantize_static(
        prepared,
        path,
        Reader(),
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        nodes_to_exclude=wide,
        extra_options={"CalibMovingAverage": True, "ActivationSymmetric": False},
    )
    made = onnx.load(path)
    del made.metadata_props[:]
    made.metadata_props.extend(original.metadata_props)
    onnx.save(made, path)
    prepared.unlink()


def _narrow_layers(model: Any) -> list[str]:
    """Names of the 1 x 1 convolutions whose outputs are the network's logits and deltas."""
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    exact = ("objectness", "deltas", "semantic", "direction", "predict", "coarse")
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and (any(word in node.input[1] for word in exact) or not weights.get(node.input[1]))
    ]
