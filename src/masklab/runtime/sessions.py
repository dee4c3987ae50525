"""Exported networks in the libraries that run them.

N images, C channels, H x W pixels, D detections, P samples per side of a mask, T groups of all norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from masklab.utils.errors import InputError
from masklab.utils.types import Floats, Integers

FORMAT = "masklab export 1"
"""Value of ``format`` in the metadata of a file."""
INPUTS = ("images", "sizes", "norm_mode", "norm_statistics")
OUTPUTS = ("boxes", "scores", "labels", "masks", "image", "statistics")
OWN, TOGETHER, GIVEN = 0, 1, 2
"""Modes of norms: statistics of each image alone, of all images of the batch together, or given ones."""


class RawDetections(NamedTuple):
    """What a network finds: boxes (D, 4) in pixels of its input, scores (D,), labels (D,), masks (D, P, P) and the
    image (D,) of a batch that each is of, best first; and the statistics (2, T) of its norms."""

    boxes: Floats
    scores: Floats
    labels: Integers
    masks: Floats
    image: Integers
    statistics: Floats


class Norms(NamedTuple):
    """How the norms of a network take their statistics: a mode, and what it is given (2, T)."""

    mode: int
    statistics: Floats


class Session(Protocol):
    """A network that is ready to run.  ``identity`` names the library and its version."""

    metadata: Mapping[str, str]
    identity: str

    def run(self, images: Floats, sizes: Integers, norms: Norms | None = None) -> RawDetections:
        """Run on padded images (N, C, H, W) of the ``sizes`` (N, 2) before padding."""


def open_session(path: str | Path, threads: int | None = None) -> Session:
    """Open an exported file by its suffix; ``threads`` are all cores by default.

    Raises `InputError` for a file that is missing, damaged, or not one that `masklab export` wrote, and for a library
    that is missing.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: there is no such file: give one that `masklab export` wrote.")
    session = SESSIONS[file.suffix.lower()](file, threads)
    if session.metadata.get("format") != FORMAT:
        raise InputError(
            f"{file} is not a file of this version's `masklab export` (its metadata has no format {FORMAT!r}): export the model again."
        )
    return session


def is_exported(path: str | Path) -> bool:
    """Whether a model is an exported file, by its suffix."""
    return Path(path).suffix.lower() in SESSIONS


class _OnnxSession:
    def __init__(self, path: Path, threads: int | None) -> None:
        onnxruntime = _library("onnxruntime", "export", path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3  # errors: its warnings are about nodes that the user did not write
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise _unreadable(path, error) from None
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.identity = f"onnxruntime {onnxruntime.__version__}"

    def run(self, images: Floats, sizes: Integers, norms: Norms | None = None) -> RawDetections:
        feeds: dict[str, Any] = {"images": images, "sizes": sizes}
        if norms is not None:
            feeds |= {"norm_mode": np.array(norms.mode), "norm_statistics": norms.statistics}
        return RawDetections(*self._session.run(list(OUTPUTS), feeds))


class _OpenVinoSession:
    def __init__(self, path: Path, threads: int | None) -> None:
        openvino = _library("openvino", "export", path)
        try:
            core = openvino.Core()
            model = core.read_model(str(path))
            limits = {"INFERENCE_NUM_THREADS": threads} if threads else {}
            self._model = core.compile_model(
                model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", **limits}
            )
        except Exception as error:
            raise _unreadable(path, error) from None
        self.metadata = (
            {key: str(value.value) for key, value in model.rt_info["masklab"].items()}
            if "masklab" in model.rt_info
            else {}
        )
        self.identity = f"openvino {openvino.__version__}"

    def run(self, images: Floats, sizes: Integers, norms: Norms | None = None) -> RawDetections:
        inputs: list[Any] = [images, sizes]
        if len(self._model.inputs) > len(inputs):
            norms = norms or Norms(OWN, np.zeros((2, self._model.inputs[3].shape[1]), np.float32))
            inputs += [np.array(norms.mode), norms.statistics]
        found = self._model(inputs)
        return RawDetections(*(np.array(found[output]) for output in self._model.outputs))


class _ProgramSession:
    def __init__(self, path: Path, threads: int | None) -> None:
        torch = _library("torch", "export", path)
        import masklab.ops.operators  # noqa: F401  its operators are those of the program

        if threads:
            torch.set_num_threads(threads)
        texts = {"metadata.json": ""}
        try:
            self._module = torch.export.load(path, extra_files=texts).module()
        except Exception as error:
            raise _unreadable(path, error) from None
        import json

        self.metadata = json.loads(texts["metadata.json"] or "{}")
        self.identity = f"torch {torch.__version__}"
        self._torch = torch

    def run(self, images: Floats, sizes: Integers, norms: Norms | None = None) -> RawDetections:
        torch = self._torch
        inputs: list[Any] = [torch.from_numpy(images), torch.from_numpy(sizes)]
        if groups := int(self.metadata.get("norm_groups", 0)):
            norms = norms or Norms(OWN, np.zeros((2, groups), np.float32))
            inputs += [torch.tensor(norms.mode), torch.from_numpy(norms.statistics)]
        with torch.inference_mode():
            return RawDetections(*(part.numpy() for part in self._module(*inputs)))


SESSIONS: dict[str, Any] = {".onnx": _OnnxSession, ".xml": _OpenVinoSession, ".pt2": _ProgramSession}
"""What opens a file, by its suffix."""


def _library(name: str, extra: str, path: Path) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f'{path} needs {name}, which is not installed: pip install "masklab[{extra}]".') from None


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:300]
    return InputError(f"{path} is no exported model or is damaged ({reason}): export the model again.")
