"""Convolutions of an ONNX file in 8-bit integers, calibrated on images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_EXACT = ("objectness", "deltas", "semantic", "direction", "predict", "coarse")
"""Words in the names of layers that stay exact: those of logits and deltas."""
_ERRORS_ALONE = 3


def quantise(path: Path, inputs: Sequence[Any]) -> None:
    """Rewrite a file so that its convolutions compute in 8 bits, with the ranges of values that ``inputs`` show.

    ``inputs`` are pairs of network inputs (1, C, H, W) and their sizes (1, 2).  Weights have a scale for each filter, and 7
    bits: sums of products of 8 bits overflow in the instructions of processors that have AVX2 alone.  The layers
    that make deltas of boxes and logits stay in float32.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            given = next(self._left, None)
            if given is None:
                return None
            return {"images": np.ascontiguousarray(given[0].numpy()), "sizes": given[1].numpy()}

    original = onnx.load(path)
    facts = {entry.key: entry.value for entry in original.metadata_props}
    original.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")  # norms are folded already
    onnxruntime.set_default_logger_severity(_ERRORS_ALONE)
    quantize_static(
        original,
        path,
        Reader(),
        op_types_to_quantize=["Conv"],
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        nodes_to_exclude=exact_layers(original),
    )
    made = onnx.load(path)
    del made.metadata_props[:]
    for key, text in facts.items():
        made.metadata_props.add(key=key, value=text)
    onnx.save(made, path)


def exact_layers(model: Any) -> list[str]:
    """Names of the convolutions of an ONNX model that stay in float32."""
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and any(word in node.input[1] for word in _EXACT)
    ]
