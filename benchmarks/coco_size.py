"""Opening of a drawn split of COCO's size: seconds beside `json.load`, memory of the process and of its workers.

    uv run python benchmarks/coco_size.py [--quick] [--images 118287] [--annotations 860000] [--workers 4]

The images are empty files, as opening looks for them but does not read them.  Polygons have as many points as COCO's do
on the average.  Each worker, forked after the split was opened, then decodes the objects of 2,000 random images; its
own memory is what it shares with no other process.
Bars: at most 1.5 times json.load; under 2 GiB a process; no growth with workers.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import arguments, ratio, show

from masklab.datasets.split import Split

CLASSES, POINTS, READ = 80, 26, 2000


def main() -> None:
    options = arguments(__doc__, images=118_287, annotations=860_000, workers=4)
    images, annotations = (6_000, 44_000) if options.quick else (options.images, options.annotations)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        draw(folder, images, annotations)
        size = (folder / "train.json").stat().st_size / 2**20
        ours, memory = alone(lambda: len(Split.find(folder, "train")))
        theirs, whole = alone(lambda: len(json.loads((folder / "train.json").read_text())))
        own, before = workers(folder, options.workers)
    title = f"{images} images, {annotations} annotations, {size:.0f} MiB"
    show(title, ["", "seconds", "MiB"], [("Split", ours, memory), ("json.load", theirs, whole)])
    rows = [(f"worker {k + 1}", mebibytes) for k, mebibytes in enumerate(own)]
    show(f"own memory after {READ} images", ["", "MiB"], [("before the first", before), *rows])
    ratio(ours / theirs)


def draw(folder: Path, images: int, annotations: int) -> None:
    """A COCO folder with random polygons."""
    rng = np.random.default_rng(0)
    (folder / "train").mkdir()
    entries = [
        {"id": 7 * k, "file_name": f"{7 * k:012d}.jpg", "height": 480, "width": 640, "license": 3}
        | {
            "coco_url": f"http://images.cocodataset.org/train2017/{7 * k:012d}.jpg",
            "date_captured": "2013-11-14 11:18:45",
        }
        for k in range(images)
    ]
    for entry in entries:
        (folder / "train" / str(entry["file_name"])).touch()
    with open(folder / "train.json", "w") as file:
        file.write('{"images": ')
        json.dump(entries, file)
        file.write(', "annotations": [')
        owners = np.sort(rng.integers(images, size=annotations))
        for k, owner in enumerate(rng.permutation(owners).tolist()):
            file.write(", " * (k > 0) + json.dumps(annotation(rng, k, 7 * owner)))
        file.write('], "categories": ')
        json.dump([{"id": k + 1, "name": f"class {k + 1}"} for k in range(CLASSES)], file)
        file.write("}")


def annotation(rng: np.random.Generator, number: int, image_id: int) -> dict[str, Any]:
    count = max(3, int(rng.lognormal(np.log(POINTS) - 0.25, 0.7)))
    centre, radius = rng.random(2) * (560, 400) + 40, 3 + 37 * rng.random()
    angles = np.sort(rng.random(count)) * 2 * np.pi
    points = centre + radius * np.stack((np.cos(angles), np.sin(angles)), axis=1)
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
    return {
        "segmentation": [np.round(points, 2).ravel().tolist()],
        "area": round(float(np.pi * radius**2), 4),
        "iscrowd": 0,
        "image_id": image_id,
        "bbox": box,
        "category_id": int(rng.integers(CLASSES)) + 1,
        "id": number,
    }


def alone(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of ``work`` in a process of its own, and the MiB that this process held at most."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)

    def run() -> None:
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        sender.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    values: tuple[float, float] = receiver.recv()
    process.join()
    return values


def workers(folder: Path, count: int) -> tuple[list[float], float]:
    """MiB of each worker's own memory after it has read objects, and that of one that has read none."""
    split = Split.find(folder, "train")

    def read(seed: int, most: int, results: Any) -> None:
        for index in np.random.default_rng(seed).integers(len(split), size=most).tolist():
            split.objects(index)
        results.put(private_memory())

    context = multiprocessing.get_context("fork")

    def measure(seeds: range, most: int) -> list[float]:
        results = context.Queue()
        processes = [context.Process(target=read, args=(seed, most, results)) for seed in seeds]
        for process in processes:
            process.start()
        values = [results.get() for _ in processes]
        for process in processes:
            process.join()
        return values

    return measure(range(count), READ), measure(range(1), 0)[0]


def private_memory() -> float:
    text = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in text if line.startswith("Private_")) / 1024


if __name__ == "__main__":
    main()
