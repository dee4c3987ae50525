"""The verb doctor: versions, devices, and a test of each operation.  Works without torch."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from masklab.utils.errors import InputError
from masklab.utils.versions import LIBRARIES

_KNOWN_BAD = {"lightning": ("2.6.2", "2.6.3")}


def doctor() -> None:
    """Print versions and the results of the checks; raises `InputError` with the remedy of the first fault."""
    table = Table(title="masklab doctor", show_header=False)
    faults: list[str] = []
    table.add_row("Python", platform.python_version())
    for name in LIBRARIES:
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "missing"
            faults.append(f"{name} is not installed: run {_install('masklab', 'uv sync')}")
        if found in _KNOWN_BAD.get(name, ()):
            remedy = _install(f"--upgrade {name}", f"uv sync --upgrade-package {name}")
            faults.append(f"{name} {found} is a known bad version: run {remedy}")
        table.add_row(name, found)
    for name, packages in extras().items():
        missing = [package for package in packages if not _installed(package)]
        remedy = _install(f'"masklab[{name}]"', "uv sync")
        table.add_row(f"extra {name}", escape(f"no {', '.join(missing)}: {remedy}") if missing else "installed")
    for name, check in CHECKS.items():
        try:
            table.add_row(name, check())
        except Exception as error:
            cause = _diagnose(error)
            table.add_row(name, f"[red]fails[/red]: {cause}")
            faults.append(cause)
    Console().print(table)
    if faults:
        raise InputError(f"{faults[0]}.")


def _install(words: str, in_clone: str) -> str:
    """The command that installs ``words`` into this environment, ``in_clone`` where uv keeps it for a clone."""
    try:
        by_uv = re.search(r"^uv\s*=", Path(sys.prefix, "pyvenv.cfg").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:  # no virtual environment
        by_uv = None
    if by_uv and json.loads(distribution("masklab").read_text("direct_url.json") or "{}").get("dir_info"):
        return f"`{in_clone}`"
    return f"`{'uv pip' if by_uv else 'pip'} install {words}`"


def extras() -> dict[str, list[str]]:
    """The packages of each of masklab's extras, as its own installation names them."""
    found: dict[str, list[str]] = {}
    for line in requires("masklab") or []:
        package, _, condition = line.partition(";")
        least = re.search(r"python_version >= ['\"](\d+)\.(\d+)", condition)
        if least and sys.version_info < tuple(map(int, least.groups())):
            continue
        if named := re.search(r"extra == ['\"]([\w-]+)", condition):
            name = re.match(r"[\w.-]+", package.strip())
            assert name is not None
            found.setdefault(named[1], []).append(name[0])
    return found


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _diagnose(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "torchvision::" in text or ("torchvision" in text and "undefined symbol" in text):
        return (
            "torch and torchvision come from different indexes (for example a CPU-only build and a CUDA build) and do not fit "
            f"together: install both from one index, as {_install('--force-reinstall torch torchvision', 'uv sync')} does"
        )
    return text or type(error).__name__


def _devices() -> str:
    import torch

    from masklab.utils.device import has_bf16

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, bf16 {'yes' if has_bf16('cuda') else 'no'}"
    return f"CPU, {torch.get_num_threads()} threads, bf16 instructions {'yes' if has_bf16() else 'no'}"


def _nms() -> str:
    import torch
    from torchvision.ops import nms

    from masklab.utils.device import default_device

    device = default_device()
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]], device=device)
    return _expect(nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5).tolist(), [0, 2])


def _crop() -> str:
    import torch

    from masklab.ops.crop import crop_and_resize
    from masklab.ops.crop_channels import crop_channels
    from masklab.ops.rois import Rois
    from masklab.utils.device import default_device

    device = default_device()
    features = (10 * torch.arange(4.0, device=device)[:, None] + torch.arange(5.0, device=device))[None, None]
    images = torch.zeros(1, dtype=torch.long, device=device)
    rois = Rois(torch.tensor([[0.125, 0.25, 0.625, 0.75]], device=device), images)
    crop_channels(features, rois, (2, 2), torch.zeros(2, 2, dtype=torch.long, device=device))
    return _expect(crop_and_resize(features, rois, (2, 2)).flatten().tolist(), [8.0, 10.0, 23.0, 25.0])


def _run_lengths() -> str:
    import numpy as np

    from masklab.masks.encode import encode_windows
    from masklab.masks.rle import rle_from_string, rle_to_strings

    rles = encode_windows([np.ones((2, 3), bool)], [(1, 1, 4, 3)], (5, 6))
    return _expect(rle_from_string(rle_to_strings(rles)[0]).tolist(), rles[0].tolist())


def _training_step() -> str:
    import torch

    from masklab.utils.device import autocast, default_device

    device = default_device()
    layer, values = torch.nn.Conv2d(8, 8, 3, device=device), torch.randn(1, 8, 9, 9, device=device)
    with autocast(device):
        loss = layer(values).float().square().mean()
    loss.backward()
    return _expect(bool(layer.weight.grad.isfinite().all()), True)  # type: ignore[union-attr]


def _evaluator() -> str:
    from masklab.evaluation.coco import coco_metrics

    square = {"size": [4, 4], "counts": [5, 2, 2, 2, 5]}
    truth = {
        "images": [{"id": 1, "width": 4, "height": 4}],
        "categories": [{"id": 1, "name": "square"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "iscrowd": 0,
                "area": 4,
                "bbox": [1, 1, 2, 2],
                "segmentation": square,
            }
        ],
    }
    result = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5, "segmentation": square}
    return _expect(round(coco_metrics(truth, [result], 100)["mask"]["AP"], 6), 1.0)


def _expect(found: object, wanted: object) -> str:
    if found != wanted:
        raise RuntimeError(f"gave {found} instead of {wanted}")
    return "works"


CHECKS: dict[str, Callable[[], str]] = {
    "devices": _devices,
    "box suppression (torchvision)": _nms,
    "crop and resize": _crop,
    "run lengths": _run_lengths,
    "convolution, forward and backward": _training_step,
    "COCO evaluation (hotcoco)": _evaluator,
}
