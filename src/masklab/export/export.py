"""The verb export: a trained model as one file, compared with the model before it is kept."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from masklab.export.compare import EXACT, QUANTISED, Agreement, Tolerance
from masklab.export.network import ExportedNetwork
from masklab.images.listing import list_images
from masklab.images.read import read_image
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import Predictor
from masklab.runtime.predictor import load as load_exported
from masklab.runtime.sessions import FORMAT
from masklab.utils.errors import InputError
from masklab.utils.extras import require
from masklab.utils.files import file_to_write
from masklab.utils.words import counted
from masklab.weights.checkpoint import load_model
from masklab.weights.identity import weights_sha256
from masklab.weights.model_facts import header_of

_log = logging.getLogger(__name__)

ExportFormat = Literal["onnx", "torch_export", "openvino"]
_COMPARED = 8  # images
_CALIBRATED = 16  # images


class _Writer(NamedTuple):
    suffix: str
    packages: tuple[str, ...]
    write: Callable[[ExportedNetwork, Path, Mapping[str, str], Sequence[Any] | None], None]


def export(
    model: str | Path,
    format: ExportFormat,
    output: str | Path,
    images: str | Path | None = None,
    int8: bool = False,
) -> Agreement:
    """Write a model as a file of ``format`` to ``output``; returns how it agrees with the model.

    The file is opened again and run on up to 8 of ``images``, a folder, or on drawn ones, and is kept where it finds what
    the model finds (see `masklab.export.compare.Tolerance`).  ``int8`` writes convolutions in 8-bit integers, calibrated on up to
    16 of the images.  Raises `InputError` for a name with another suffix, a package that is missing, a model that cannot
    be exported, and an export that differs from its model.
    """
    if format not in get_args(ExportFormat):
        raise InputError(f"format is {format!r}: give one of {', '.join(get_args(ExportFormat))}.")
    writer = WRITERS[format]
    path = file_to_write(Path(output))
    if path.suffix.lower() != writer.suffix:
        raise InputError(f"{path} is to hold {format}: give it a name that ends in {writer.suffix}.")
    if int8 and (images is None or format == "torch_export"):
        raise InputError(
            "int8 has no torch_export: choose onnx or openvino."
            if format == "torch_export"
            else "int8 is calibrated on images: name a folder like those of the training with --images."
        )
    require(writer.packages + (("onnxruntime",) if int8 else ()), "export", "export")
    predictor = Predictor(load_model(model, "cpu"), PredictionOptions(precision="float32"))
    network = ExportedNetwork(predictor.model)
    samples = _samples(predictor, images)
    metadata = metadata_of(network, "int8" if int8 else "float32")
    calibration = [predictor.network_input(_tensor(values)) for _, values in samples[:_CALIBRATED]] if int8 else None
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}") as folder:
        written = Path(folder) / path.name
        writer.write(network, written, metadata, calibration)
        agreement = compare(predictor, written, samples[:_COMPARED], QUANTISED if int8 else EXACT)
        for part in sorted(Path(folder).iterdir(), key=lambda part: part == written):  # the named file last
            os.replace(part, path.parent / part.name)
    _log.info(f"{path}: {path.stat().st_size / 1e6:.1f} MB; {agreement}")
    return agreement


def metadata_of(network: ExportedNetwork, kind: str) -> dict[str, str]:
    """What travels in a file: all that a weights file says of its model, the digest of its weights, and what a runtime needs."""
    model = network.model
    return {
        "format": FORMAT,
        "kind": kind,
        **header_of(model),
        "weights_sha256": weights_sha256(model),
        "max_detections": str(model.box_head.max_detections),
        "norm_groups": str(network.groups),
    }


def compare(
    predictor: Predictor, path: Path, samples: Sequence[tuple[str, np.ndarray]], tolerance: Tolerance
) -> Agreement:
    """Agreement of an exported file with a model on images, objects of the model's threshold, or all where there are none.

    Raises `InputError` where it is beyond the tolerance, and where the model finds nothing to compare.
    """
    exported = load_exported(path)
    agreement, unsaid = Agreement(), predictor.input_check()  # two networks are compared, whatever the images are
    for name, values in samples:
        wanted, found = predictor.predict(values, check=unsaid), exported.predict(values, check=unsaid)
        threshold = predictor.threshold if len(wanted.above(predictor.threshold)) else 0.0
        agreement.add(name, wanted.above(threshold), found.above(threshold), tolerance)
    if not agreement.objects:
        raise InputError(
            f"the model finds nothing in {counted(len(samples), 'image')}, so its export cannot be compared: name a folder "
            "of images that show its objects with --images."
        )
    agreement.check(tolerance, path.name)
    return agreement


def _samples(predictor: Predictor, images: str | Path | None) -> list[tuple[str, np.ndarray]]:
    """Names and values (C, H, W) of images to compare and to calibrate on."""
    from masklab.datasets.synthetic.nuclei import draw_nuclei

    channels = predictor.config.model.backbone.channels
    if images is not None:
        files = list_images(images)
        step = max(1, len(files) // _CALIBRATED)
        return [(file.name, read_image(file, channels)) for file in files[::step][:_CALIBRATED]]
    drawn = [draw_nuclei(24, seed, size)[0] for seed, size in enumerate([(256, 256), (200, 320), (333, 128)])]
    return [(f"drawn image {n + 1}", np.repeat(values[:1], channels, axis=0)) for n, values in enumerate(drawn)]


def _tensor(values: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values))


def _write_onnx(
    network: ExportedNetwork, path: Path, metadata: Mapping[str, str], calibration: Sequence[Any] | None
) -> None:
    from masklab.export.onnx_graph import write_onnx
    from masklab.export.quantise import quantise

    write_onnx(network, path, metadata)
    if calibration is not None:
        quantise(path, calibration)


def _write_program(
    network: ExportedNetwork, path: Path, metadata: Mapping[str, str], calibration: Sequence[Any] | None
) -> None:
    import torch

    from masklab.export.program import PlainOutputs, example_inputs, moving_sides

    inputs = example_inputs(network, images=1)
    with torch.no_grad():
        program = torch.export.export(
            PlainOutputs(network), inputs, dynamic_shapes=moving_sides(len(inputs), batch=False)
        )
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})


def _write_openvino(
    network: ExportedNetwork, path: Path, metadata: Mapping[str, str], calibration: Sequence[Any] | None
) -> None:
    import openvino

    graph = path.with_suffix(".onnx")
    _write_onnx(network, graph, {}, calibration)
    model = openvino.convert_model(graph)
    for key, text in metadata.items():
        model.set_rt_info(text, ["masklab", key])
    openvino.save_model(model, path, compress_to_fp16=False)
    graph.unlink()


WRITERS: dict[str, _Writer] = {
    "onnx": _Writer(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx),
    "torch_export": _Writer(".pt2", (), _write_program),
    "openvino": _Writer(".xml", ("onnx", "onnxscript", "openvino"), _write_openvino),
}
"""How each format is written: its suffix, the packages that it needs, and the function."""
