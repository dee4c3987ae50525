"""A network as an ONNX graph.  Needs ``onnx`` and ``onnxscript``, which the extra ``export`` brings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from masklab.export.network import ExportedNetwork, Found
from masklab.export.program import NORM_INPUTS, example_inputs, moving_sides

OPSET = 20


def write_onnx(network: ExportedNetwork, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a network and its metadata as an ONNX file.

    The inputs of the norms have defaults, so that a program that knows nothing of them leaves them out.
    """
    import onnx

    from masklab.export import onnx_operators

    inputs = example_inputs(network)
    with torch.no_grad():
        program = torch.onnx.export(
            network,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images", "sizes", *NORM_INPUTS][: len(inputs)],
            output_names=list(Found._fields),
            dynamic_shapes=moving_sides(len(inputs)),
            custom_translation_table={
                torch.ops.masklab.hard_nms.default: onnx_operators.hard_nms,
                torch.ops.masklab.soft_nms.default: onnx_operators.soft_nms,
            },
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for name, value in zip(NORM_INPUTS, inputs[2:], strict=False):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), name))
    for key, text in metadata.items():
        model.metadata_props.add(key=key, value=text)
    onnx.save(model, path)
    onnx.checker.check_model(path)
