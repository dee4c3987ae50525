"""What the benchmarks share: sides timed in turn in one run, their peak memory, a peer, drawn objects, and a table."""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d

from masklab.masks import encode, rle

Side = Callable[[], object]

REPEATS, TURN = 20, 0.5  # runs of a side in one turn: at most so many, and no new one after so many seconds


def arguments(description: str | None, **numbers: int) -> argparse.Namespace:
    """The options of a benchmark: ``--quick``, and whole numbers with their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller sizes: under 50 seconds")
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


def alternate(sides: Mapping[str, Side], rounds: int, warm: int = 1) -> dict[str, float]:
    """Median seconds of each side: ``warm`` rounds to warm up, then all sides in turn, ``rounds`` times.

    A quick side runs several times in its turn, so that a pause of the machine weighs as little as on a slow one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm + rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            for _ in range(REPEATS if turn >= warm else 1):
                start = time.perf_counter()
                side()
                end = time.perf_counter()
                if turn >= warm:
                    seconds[name].append(end - start)
                if end - began > TURN:
                    break
    return {name: statistics.median(values) for name, values in seconds.items()}


def breakdown(side: Side, parts: Mapping[str, tuple[object, str]]) -> dict[str, float]:
    """Seconds of one run of ``side``, by part; ``parts`` names (object, method), none of which calls another."""
    seconds = dict.fromkeys(parts, 0.0)

    def timed(name: str, method: Callable[..., object]) -> Callable[..., object]:
        def call(*values: object, **named: object) -> object:
            began = time.perf_counter()
            result = method(*values, **named)
            seconds[name] += time.perf_counter() - began
            return result

        return call

    for name, (thing, method) in parts.items():
        setattr(thing, method, timed(name, getattr(thing, method)))
    began = time.perf_counter()
    side()
    total = time.perf_counter() - began
    for thing, method in parts.values():
        delattr(thing, method)
    return {**seconds, "the rest": total - sum(seconds.values()), "total": total}


def peak_memory(side: Side) -> float | None:
    """MiB that the process held at most while ``side`` ran, beyond what it held before; None except on Linux."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free but kept would hide what the side takes
    clear.write_text("5")  # forget the highest mark
    before = _kibibytes(status, "VmRSS")
    side()
    return max(0, _kibibytes(status, "VmHWM") - before) / 1024


def _kibibytes(status: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))


def mask_rcnn(
    classes: int, norm: Callable[[int], nn.Module] | None = None, channels: int = 256, **fields: Any
) -> MaskRCNN:
    """torchvision's Mask R-CNN with a ResNet-18-FPN, all of it from random weights; ``fields`` are its own arguments.

    ``norm`` makes the norms of body and pyramid; without it they are torchvision's: frozen batch norm, and none.
    ``channels`` are those of pyramid, RPN and mask head.
    """
    body = resnet18(norm_layer=norm or FrozenBatchNorm2d, zero_init_residual=norm is not None)
    levels = {f"layer{k + 1}": str(k) for k in range(4)}
    pyramid = BackboneWithFPN(body, levels, [64, 128, 256, 512], channels, norm_layer=norm)
    model = MaskRCNN(pyramid, classes + 1, **fields)
    model.roi_heads.mask_head = MaskRCNNHeads(channels, (channels,) * 4, 1)
    model.roi_heads.mask_predictor = MaskRCNNPredictor(channels, channels, classes + 1)
    return model


def draw_discs(centres: np.ndarray, radii: np.ndarray, size: tuple[int, int]) -> list[dict[str, Any]]:
    """COCO's ``area``, ``bbox`` and ``segmentation`` of discs at ``centres`` (N, 2), (x, y), cut at the border."""
    low = np.floor(centres - radii[:, None]).clip(0, (size[1] - 1, size[0] - 1)).astype(int)
    high = np.ceil(centres + radii[:, None]).clip(low + 1, (size[1], size[0])).astype(int)
    bitmaps = []
    for (x, y), radius, (x1, y1), (x2, y2) in zip(centres, radii, low, high, strict=True):
        across, down = np.arange(x1, x2) + 0.5 - x, np.arange(y1, y2) + 0.5 - y
        bitmaps.append(across[None] ** 2 + down[:, None] ** 2 < radius**2)
    runs = encode.encode_windows(bitmaps, np.concatenate([low, high], axis=1), size)
    boxes = [rle.bounds(mask, size) or (0, 0, 0, 0) for mask in runs]
    return [
        {"area": rle.area(mask), "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": segmentation}
        for mask, (x1, y1, x2, y2), segmentation in zip(runs, boxes, rle.rle_to_coco(runs, size), strict=True)
    ]


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; the first column is text, the others are figures."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*[_shown(value) for value in row])
    Console(width=100).print(table)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and value < 100
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def ratio(value: float) -> None:
    """The last line of every benchmark."""
    print(f"ratio: {value:.3g}")
