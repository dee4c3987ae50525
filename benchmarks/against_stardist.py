"""Images a second of a nuclei model against StarDist's, by turns on the same cores.

    uv run python benchmarks/against_stardist.py DIR [--model nuclei] [--images 40] [--rounds 3] [--keep FOLDER]
    uv run python benchmarks/against_stardist.py --quick

DIR is a data set folder with the splits train and val.  StarDist runs in an environment of its own, which ``uv`` makes
(``--python`` names a Python that has stardist and tensorflow instead): a StarDist2D of 32 rays on a grid of 2, trained here for
``--steps`` steps and with the thresholds that it chooses itself, so that it finds objects as a trained network does; ``--keep``
names a folder that it is kept in for the next time.  Each side reads the same val images from memory and returns
its masks: StarDist's ``predict_instances``, its suppression included, and ours to run lengths, one image after another, and
as many images at the same time as there are threads, each in one thread.  Bar: at least as many as StarDist.

Both sides are asked in turn and wait without work meanwhile; the last line is the ratio of images a second, one image
after another.  ``--quick`` draws images and trains StarDist for two steps.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PACKAGES = ("stardist>=0.9", "tensorflow-cpu<2.19", "numpy<2.2")
TRAINING_IMAGES, SIDE = 100, 256  # of StarDist, whose patches are as large


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, metavar="DIR")
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="of StarDist's training")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where StarDist is kept once it is trained")
    parser.add_argument("--python", help="a Python with stardist and tensorflow")
    parser.add_argument("--quick", action="store_true", help="drawn images, two steps")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options.side, options.keep or options.side, options.steps)
    elif (options.data is None) != options.quick:
        parser.error("give either DIR, or --quick, which draws its own images")
    else:
        compare(options)


class Turn(NamedTuple):
    """One run over all images: ``seconds``, those of a processor in all threads together, and the objects ``found``."""

    seconds: float
    processor: float
    found: int


def timed(side: Callable[[], int]) -> Turn:
    began, before = time.perf_counter(), time.process_time()
    found = side()
    return Turn(time.perf_counter() - began, time.process_time() - before, found)


def compare(options: argparse.Namespace) -> None:
    """Both sides in turn, and the table."""
    import torch
    from side_by_side import show

    import masklab
    from masklab.datasets.synthetic.shapes import draw_shapes
    from masklab.inference.options import PredictionOptions
    from masklab.utils.device import number_format

    if options.quick:
        options.images, options.rounds, options.steps = 2, 1, 2
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = options.data or draw_shapes(folder / "data", {"train": 4, "val": 2}, size=(SIDE, SIDE))
        images = write_arrays(data, options.images, folder)
        threshold = masklab.load(options.model).threshold
        # objects that do not count are left out, as StarDist leaves them out
        predictor = masklab.load(options.model, options=PredictionOptions(min_score=threshold))
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

        def find(image: NDArray[np.uint8]) -> int:
            return len(predictor.predict(image).rles())

        with started(options, folder) as child:
            sides: dict[str, Callable[[], Turn]] = {
                "StarDist": lambda: ask(child),
                "masklab": lambda: timed(lambda: sum(map(find, images))),
                "masklab, images at the same time": lambda: timed(lambda: sum(pool.map(find, images))),
            }
            turns: dict[str, list[Turn]] = {name: [] for name in sides}
            for _ in range(options.rounds + 1):
                for name, side in sides.items():
                    turns[name].append(side())
    rate, rows = {}, []
    for name, (_, *measured) in turns.items():  # the first warms up
        seconds, processor, found = np.median(measured, axis=0)
        rate[name] = len(images) / seconds
        rows.append((name, int(found), rate[name], rate[name] / rate["StarDist"], processor / len(images)))
    columns = ["", "objects", "images / s", "over StarDist", "processor s / image"]
    show(f"{len(images)} images, {number_format('cpu', 'auto')}, {threads} threads", columns, rows)
    print(f"ratio: {rate['masklab'] / rate['StarDist']:.3g}")


def write_arrays(data: Path, count: int, folder: Path) -> list[NDArray[np.uint8]]:
    """The training images with label maps, cut to one size, and the val images, as arrays for StarDist; returns the latter."""
    from masklab.datasets.open import open_split
    from masklab.masks.label_map import label_map

    train, val = open_split(data, "train"), open_split(data, "val")
    pixels: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int32]] = []
    for index, record in enumerate(train.images):
        if min(record.size) >= SIDE and len(pixels) < TRAINING_IMAGES:
            objects = train.objects(index)
            masks = [objects.rle(row) for row in range(len(objects))]
            drawn = label_map(masks, np.ones(len(masks)), record.size)
            pixels.append(train.read(index, 3)[:, :SIDE, :SIDE].transpose(1, 2, 0))
            labels.append(drawn[:SIDE, :SIDE])
    images = [val.read(index, 3) for index in range(min(count, len(val.images)))]
    np.savez(folder / "train.npz", pixels=np.stack(pixels), labels=np.stack(labels))
    np.savez(folder / "val.npz", *(image.transpose(1, 2, 0) for image in images))
    return images


def started(options: argparse.Namespace, folder: Path) -> subprocess.Popen[str]:
    """StarDist's process, trained and waiting."""
    python = [options.python]
    if options.python is None:
        uv = shutil.which("uv")
        if uv is None:
            raise SystemExit(
                "uv, which makes StarDist's environment, is not installed: pip install uv, or give --python."
            )
        python = [uv, "run", "--no-project", "--python", "3.11"]
        python += [word for package in PACKAGES for word in ("--with", package)] + ["python"]
    command = [*python, __file__, "--side", str(folder), "--steps", str(options.steps)]
    command += [] if options.keep is None else ["--keep", str(options.keep)]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    if line(child.stdout) != "ready":
        raise SystemExit(f"StarDist's process did not start: run {' '.join(command)} to see why.")
    return child


def ask(child: subprocess.Popen[str]) -> Turn:
    """One run of StarDist over all images."""
    assert child.stdin is not None
    print("go", file=child.stdin, flush=True)
    seconds, processor, found = line(child.stdout).split()
    return Turn(float(seconds), float(processor), int(found))


def line(stream: IO[str] | None) -> str:
    """The next line of StarDist's process that is meant for us."""
    assert stream is not None
    for text in stream:
        if text.startswith("> "):
            return text[2:].strip()
    raise SystemExit("StarDist's process has ended.")


def serve(folder: Path, kept: Path, steps: int) -> None:
    """StarDist's side: trains, unless it did into ``kept``, then predicts all images each time it reads a line."""
    from csbdeep.utils import normalize
    from stardist.models import StarDist2D

    with np.load(folder / "train.npz") as arrays:
        pixels, labels = [normalize(each, 1, 99.8, axis=(0, 1)) for each in arrays["pixels"]], list(arrays["labels"])
    with np.load(folder / "val.npz") as arrays:
        images = [arrays[name] for name in arrays.files]
    done = (kept / "peer" / "thresholds.json").is_file()
    model = StarDist2D(None, name="peer", basedir=str(kept)) if done else trained(kept, pixels, labels, steps)

    def find(image: NDArray[np.uint8]) -> int:
        labels, _ = model.predict_instances(normalize(image, 1, 99.8, axis=(0, 1)))
        return int(labels.max())

    print("> ready", flush=True)
    for _ in sys.stdin:
        turn = timed(lambda: sum(map(find, images)))
        print(f"> {turn.seconds} {turn.processor} {turn.found}", flush=True)


def trained(folder: Path, pixels: list[Any], labels: list[Any], steps: int) -> Any:
    """A StarDist that is trained for ``steps`` steps."""
    from stardist.models import Config2D, StarDist2D

    settings: dict[str, Any] = {"train_patch_size": (SIDE, SIDE), "train_batch_size": 4, "train_tensorboard": False}
    config = Config2D(n_rays=32, grid=(2, 2), n_channel_in=3, **settings)
    model = StarDist2D(config, name="peer", basedir=str(folder))
    held = max(1, len(pixels) // 10)
    model.train(
        pixels[held:],
        labels[held:],
        validation_data=(pixels[:held], labels[:held]),
        epochs=max(1, steps // 100),
        steps_per_epoch=min(steps, 100),
    )
    if steps >= 100:  # before, there is nothing to find
        model.optimize_thresholds(pixels[:held], labels[:held])
    return model


if __name__ == "__main__":
    main()
