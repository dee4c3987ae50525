"""`masklab predict` on a folder of images: stages and images at the same time, against one image after another.

    uv run python benchmarks/throughput.py [--quick] [--images 200] [--network_ms MS]

Images of 256 x 256 in PNG, copies of 20 from ../shared/data/nuclei where that is there, else drawn; `nuclei`, with overlays and
predictions.json. Both sides read, predict and write the same files in the same order, and take turns in parts of 10 images. One image after
another has all threads to itself, images at the same time share them. As the number of threads changes last digits, the files are
compared with those of one image after another in one thread, which must be equal byte by byte. Bar: 1.5 times as
many images a second; the processor time in one thread says how much the threads could give at most.

``--network_ms`` puts a wait of so many milliseconds, without use of the processor, in the place of the network, whose results are
taken from a first run: what remains is what stages gain around a network on another device.  The last line is the ratio.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from side_by_side import arguments, ratio, show

import masklab.inference.pipeline as pipeline
from masklab.datasets.synthetic.nuclei import draw_nuclei
from masklab.images.reader import ImageReader
from masklab.inference.finder import ImageThreads
from masklab.inference.folder import predict_folder
from masklab.inference.predictor import Predictor, load
from masklab.results.instances import Instances

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "nuclei" / "train"
SIDE, PART, DIFFERENT = 256, 10, 20


class _AtOnce:
    """A stage that works in the caller's thread: one image after another."""

    def __init__(self, work: Callable[[Any], Any], begin: Callable[[], object] = bool) -> None:
        self._work, self._results = work, []  # type: ignore[var-annotated]

    @property
    def waiting(self) -> int:
        return len(self._results)

    def give(self, item: Any) -> None:
        self._results.append(self._work(item))

    def take(self) -> Any:
        return self._results.pop(0)

    def close(self) -> None:
        pass


def main() -> None:
    options = arguments(__doc__, images=200, network_ms=0)
    predictor = load("nuclei")
    with tempfile.TemporaryDirectory() as folder:
        images = squares(20 if options.quick else options.images, Path(folder))
        if options.network_ms:
            waits_instead(options.network_ms / 1000, predictor, images)
        print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {len(images)} images")
        threads = torch.get_num_threads()
        seconds, processor = {"one after another": 0.0, "at the same time": 0.0}, 0.0
        for turn, first in enumerate(range(0, len(images), PART)):
            part, output = images[first : first + PART], Path(folder) / str(turn)
            for name in (list(seconds), list(seconds)[::-1])[turn % 2]:
                began = time.perf_counter()
                with one_after_another() if name == "one after another" else nullcontext():
                    predict_folder(predictor, part, output / name)
                seconds[name] += time.perf_counter() - began
            with one_after_another():
                torch.set_num_threads(1)
                began = time.process_time()
                predict_folder(predictor, part, output / "in one thread")
                processor += time.process_time() - began
                torch.set_num_threads(threads)
            same = files_of(output / "at the same time") == files_of(output / "in one thread")
            assert same or options.network_ms, "the files differ"
    show("folder of images", ["", "images / s"], [(name, len(images) / value) for name, value in seconds.items()])
    most = seconds["one after another"] * threads / processor
    print(
        f"{processor / len(images):.3f} s of a processor an image in one thread: {threads} could give {most:.2f} times at most"
    )
    ratio(seconds["one after another"] / seconds["at the same time"])


@contextmanager
def one_after_another() -> Iterator[None]:
    """All stages and images in the caller's thread."""
    before = pipeline.Stage, pipeline._IMAGES_AHEAD, Predictor.image_threads
    pipeline.Stage, pipeline._IMAGES_AHEAD = _AtOnce, 0  # type: ignore[assignment, misc]
    Predictor.image_threads = lambda _: nullcontext(ImageThreads())  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        pipeline.Stage, pipeline._IMAGES_AHEAD, Predictor.image_threads = before  # type: ignore[misc, method-assign]


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of the files of a folder by their names."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def squares(count: int, folder: Path) -> list[Path]:
    """Copies of 20 images of 256 x 256, real or drawn."""
    found = [path for path in sorted(REAL.glob("*.png")) if Image.open(path).size == (SIDE, SIDE)]
    if not found:
        found = [folder / f"drawn{number}.png" for number in range(DIFFERENT)]
        for number, path in enumerate(found):
            Image.fromarray(draw_nuclei(seed=number, size=(SIDE, SIDE))[0].transpose(1, 2, 0)).save(path)
    found = found[:DIFFERENT]
    copies = []
    for number in range(count):
        copies.append(folder / f"{number:04}.png")
        copies[-1].write_bytes(found[number % len(found)].read_bytes())
    return copies


def waits_instead(seconds: float, predictor: Predictor, images: Sequence[Path]) -> None:
    """Put a wait in the place of the network."""
    known: dict[bytes, Instances] = {}
    for path in images:
        content = path.read_bytes()
        if content not in known:
            known[content] = predictor.predict(path)

    def predict_reader(image: ImageReader, *_: object) -> Instances:
        assert image.path is not None
        time.sleep(seconds)
        return known[image.path.read_bytes()]

    predictor.predict_reader = predict_reader  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    main()
