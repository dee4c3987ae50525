"""torchvision's compiled non-maximum suppression, without the rest of torchvision.

Importing torchvision imports its models and `torch._dynamo`, which takes longer than importing torch; a prediction
needs one of its compiled functions.  Who compiles or exports a network imports torchvision first, which also tells
torch what shape the function's result has.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor


def _load_compiled() -> None:
    """Make ``torch.ops.torchvision.nms`` known; where its library is not found, by importing torchvision."""
    spec = find_spec("torchvision") if "torchvision" not in sys.modules else None
    folders = [] if spec is None or os.name == "nt" else spec.submodule_search_locations or []
    for library in (file for folder in folders for file in sorted(Path(folder).glob("_C*.so"))):
        try:
            torch.ops.load_library(library)
        except OSError:
            continue  # torchvision says what is wrong
        if hasattr(torch.ops.torchvision, "nms"):
            return
    importlib.import_module("torchvision.ops")


_load_compiled()


def nms(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Rows of the boxes (R, 4) that remain after non-maximum suppression at ``iou``, best ``scores`` (R,) first."""
    kept: Tensor = torch.ops.torchvision.nms(boxes.float(), scores.float(), iou)
    return kept
