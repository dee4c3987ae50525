"""Exported models beside the network itself: agreement, pictures per second, and mask AP.

    uv run python benchmarks/export.py DIR [--model nuclei] [--images 16] [--threads 2] [--formats onnx onnx-int8 ...]
    uv run python benchmarks/export.py --quick

Each format is exported, compared with the model and for 8 bits calibrated on images of the train split of the data set
``DIR``, and then predicts ``--images`` of the val split, evenly spaced, by turns with eager float32 and with as many
``--threads``; the columns are

- agreement with eager float32, for objects of the model's threshold: how many objects have no partner, the largest
  distance of a box in pixels, and the least IoU of the masks;
- pictures per second, the whole way from pixels to `Instances`, and how many times that of eager; seconds of processor time
  a picture, which say more on a machine that does other work too;
- mask AP on the images, and its difference from eager's; bar for 8 bits: .3 points, at 2 times the speed.

``--quick`` takes a small network with random weights and drawn images, without AP: whether all formats run.  Processors with
instructions that most have not (AVX-512, bf16) can be held to AVX2 by ``--avx2``, which limits torch and OpenVINO
(``ONEDNN_MAX_CPU_ISA``, ``ATEN_CPU_CAPABILITY``); onnxruntime has no such option, so its figures are of the processor as it is.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EAGER = "eager float32"
FORMATS = {
    "onnx": ("onnx", ".onnx", False),
    "onnx-int8": ("onnx", ".onnx", True),
    "openvino": ("openvino", ".xml", False),
    "openvino-int8": ("openvino", ".xml", True),
    "torch_export": ("torch_export", ".pt2", False),
}


def main() -> None:
    arguments = _arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if arguments.avx2:
        os.environ |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    import torch

    from masklab.export.compare import EXACT, QUANTISED, Agreement
    from masklab.export.export import export
    from masklab.inference.options import PredictionOptions
    from masklab.inference.predictor import Predictor
    from masklab.runtime import load
    from masklab.utils.errors import InputError
    from masklab.weights.checkpoint import load_model

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = _random_model(Path(folder)) if arguments.quick else arguments.model
        eager = Predictor(load_model(model, "cpu"), PredictionOptions(precision="float32"))
        images, score, files = _images(arguments, eager, Path(folder))
        predictors: dict[str, Any] = {EAGER: eager}
        for name in arguments.formats:
            format, suffix, int8 = FORMATS[name]
            path = Path(folder) / f"{name}{suffix}"
            try:
                export(model, format, path, files, int8)  # type: ignore[arg-type]
                predictors[name] = load(path, threads=arguments.threads)
            except InputError as error:
                print(f"{name:14s} {error}")
        timed = _by_turns(predictors, images)
        wanted, seconds, busy = timed[EAGER]
        average = score(wanted)
        for name, (found, own, own_busy) in timed.items():
            reached = average if name == EAGER else score(found)
            row = (
                f"{name:14s} {len(images) / own:6.2f} pictures/s {seconds / own:5.2f}x "
                f"{own_busy / len(images):6.3f} s {busy / own_busy:5.2f}x"
            )
            if average is not None and reached is not None:
                row += f"  mask AP {100 * reached:.2f} ({100 * (reached - average):+.2f})"
            if name != EAGER:
                agreement = Agreement()
                for n, (first, second) in enumerate(zip(wanted, found, strict=True)):
                    threshold = 0.0 if arguments.quick else eager.threshold
                    tolerance = QUANTISED if FORMATS[name][2] else EXACT
                    agreement.add(str(n), first.above(threshold), second.above(threshold), tolerance)
                row += f"  {agreement}"
            print(row, flush=True)


def _by_turns(predictors: dict[str, Any], images: Sequence[Any]) -> dict[str, tuple[list[Any], float, float]]:
    """Results of images by each predictor, and the seconds and processor seconds that they took.

    All take an image before any takes the next one, so that what else the machine does slows them alike; a first run of
    each is not counted.
    """
    for predictor in predictors.values():
        predictor.predict(images[0])
    found: dict[str, list[Any]] = {name: [] for name in predictors}
    seconds, busy = dict.fromkeys(predictors, 0.0), dict.fromkeys(predictors, 0.0)
    for values in images:
        for name, predictor in predictors.items():
            began, busy_before = time.perf_counter(), time.process_time()
            found[name].append(predictor.predict(values))
            seconds[name] += time.perf_counter() - began
            busy[name] += time.process_time() - busy_before
    return {name: (found[name], seconds[name], busy[name]) for name in predictors}


def _random_model(folder: Path) -> Path:
    import torch

    from masklab.config.recipe import load_recipe
    from masklab.model.build import build_model
    from masklab.structures import ClassTable
    from masklab.weights.checkpoint import save_model

    torch.manual_seed(0)
    changes = {
        "model": {"backbone": {"width": 0.25}, "rpn": {"anchor_sizes": [12, 24, 48]}, "box": {"max_detections": 50}}
    }
    save_model(
        build_model(load_recipe("nuclei", changes), ClassTable((1, 2), ("a", "b"))), folder / "random.safetensors"
    )
    return folder / "random.safetensors"


def _images(arguments: argparse.Namespace, eager: Any, folder: Path) -> tuple[list[Any], Any, Path | None]:
    """Images, a function that gives the mask AP of results for them, and the folder that exports are compared on."""
    if arguments.quick:
        from PIL import Image

        from masklab.datasets.synthetic.nuclei import draw_nuclei

        drawn = [draw_nuclei(12, seed, (128, 160))[0] for seed in range(2)]
        (folder / "drawn").mkdir()
        for n, values in enumerate(drawn):
            Image.fromarray(values.transpose(1, 2, 0)).save(folder / f"drawn/{n}.png")
        return drawn, lambda found: None, folder / "drawn"
    from masklab.evaluation.classes import open_for_model
    from masklab.evaluation.coco import coco_metrics

    source = open_for_model(eager.classes, arguments.data, "val")[0]
    count = min(arguments.images, len(source.images))
    some = [n * len(source.images) // count for n in range(count)]
    ids = [source.images[n].image_id for n in some]

    def score(found: Sequence[Any]) -> float:
        results = [entry for image_id, each in zip(ids, found, strict=True) for entry in each.to_coco(image_id)]
        return float(coco_metrics(source.truth, results, eager.max_detections, ids)["mask"]["AP"])

    trained_on = open_for_model(eager.classes, arguments.data, "train")[0].images[0].path.parent
    return [source.read(n, eager.config.model.backbone.channels) for n in some], score, trained_on


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--avx2", action="store_true")
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.quick:
        sys.exit("name the folder of a data set, or --quick")
    return arguments


if __name__ == "__main__":
    main()
