"""Prediction on a cluster with Ray Data.

Actors hold the model and do items of work (`masklab.inference.engines.work`); this process gives them out, gathers what
comes back and alone writes the results.  Ray does an item again whose worker was lost; an image that ends each
worker it is given to is reported as failed.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from masklab.inference.engines.begun import Begun
from masklab.inference.engines.places import Place, find_places
from masklab.inference.engines.tables import Tables
from masklab.inference.engines.work import Item, LargeImage, Outcome, Worker
from masklab.inference.folder import settings_of
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import Predictor, load
from masklab.inference.tiles.merge import TileObjects
from masklab.inference.tiles.predict import warn_of_cut
from masklab.utils.device import check_precision
from masklab.utils.errors import InputError, MachineError
from masklab.utils.files import make_folder
from masklab.utils.lock import locked
from masklab.utils.progress import track
from masklab.utils.types import Box
from masklab.utils.words import counted
from masklab.weights.facts import find_weights

_log = logging.getLogger(__name__)

_MOST_ITEMS = 32  # in one task
_MOST_TILES = 256  # in one item: the image is fetched for each
_SHARES = 8  # tasks for each worker at least, so that all have work to the end
_IMAGES_TOGETHER = 4  # large images for each worker, of which what is found in tiles is held at the same time


def predict_on_ray(
    model: str | Path,
    sources: Sequence[str | Path],
    output: str | Path,
    options: PredictionOptions | None = None,
    workers: int | None = None,
) -> Path:
    """Predict images with the workers of a Ray cluster into a folder of Parquet tables (see `Tables`); returns the folder.

    ``sources`` are images and folders that each worker sees under the same path, and addresses such as
    ``s3://bucket/folder``.  ``model`` is read here alone.  ``workers`` is the number of processes that hold it, by default
    one for each GPU of the cluster, or each core if it has none.  The cluster is the one that this process is connected to
    or ``RAY_ADDRESS`` names, else one of this machine's cores is started.

    What the folder holds already of the same model, options and images stays.  Raises `InputError` where Ray is missing, as
    `find_places` and `Tables` do, and, after all others are written, where an image cannot be used; `MachineError` where
    the cluster fails.
    """
    ray = _import_ray()
    options = PredictionOptions() if options is None else options
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}: give 1 or more.")
    predictor = load(model, "cpu", replace(options, precision="auto"))
    places = find_places(list(map(str, sources)))
    with locked(make_folder(output)):
        tables = Tables(output, settings_of(predictor) | {"options": asdict(options)})
        traces = _fill(tables, places, predictor, _Setup(ray, find_weights(model), options, workers))
        failures = _finish(tables, predictor, len(places))
    if traces:
        raise RuntimeError(f"{counted(len(traces), 'item')} of work met an error of the program, first:\n{traces[0]}")
    if failures:
        raise InputError(
            f"{failures} of {counted(len(places), 'image')} could not be used, for the reasons above and in "
            f"{tables.path / 'failed.parquet'}: correct or replace them, and run the same command again."
        )
    return tables.path


def _fill(tables: Tables, places: Sequence[Place], predictor: Predictor, setup: _Setup) -> list[str]:
    """Do the images that are not in the tables; where errors of the program were raised meanwhile."""
    missing = tables.start(places)
    if not missing:
        return []
    cluster = _Cluster(*setup)
    run = _Run(cluster, predictor, tables)
    try:
        run.images(missing)
    except setup.ray.exceptions.RayError as error:
        raise MachineError(f"Ray cannot go on ({_first_line(error)}): run the same command again.") from error
    finally:
        tables.commit()
        cluster.close()
    run.check.warn()
    return run.traces


def _finish(tables: Tables, predictor: Predictor, given: int) -> int:
    """Complete the tables and say what is in them; the number of failures."""
    totals, failures = tables.finish()
    if totals.kept:
        _log.info(f"{counted(totals.kept, 'image')} of an earlier run kept")
    _log.info(
        f"{counted(totals.images, 'image')}, {counted(totals.found, 'object')} of score {predictor.threshold:.2f} or more "
        f"({counted(totals.detections, 'detection')} in all): {tables.path}"
    )
    if totals.full:
        _log.info(
            f"{totals.full} of {counted(given, 'image')} reached the maximum of "
            f"{counted(predictor.max_detections, 'detection')}, so others may be missing: predict into another folder with "
            "a larger --max_detections."
        )
    return failures


def _import_ray() -> Any:
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # else workers run `uv run` in a copy of this folder
    try:
        import pyarrow  # noqa: F401
        import ray
        import ray.data
    except ImportError:
        raise InputError('--engine ray needs Ray, which is not installed: pip install "masklab[ray]".') from None
    return ray


class _Setup(NamedTuple):
    """What the workers are made of, and how many; None for as many as the cluster has room for."""

    ray: Any
    weights: Path
    options: PredictionOptions
    workers: int | None


class _Cluster:
    """Workers of Ray that hold a model."""

    def __init__(self, ray: Any, weights: Path, options: PredictionOptions, workers: int | None) -> None:
        self.ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, RuntimeError, ValueError) as error:
                raise MachineError(
                    f"the Ray cluster cannot be reached ({_first_line(error)}): correct RAY_ADDRESS, or start it."
                ) from error
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        found = ray.cluster_resources()
        gpus = int(found.get("GPU", 0))
        check_precision(options.precision, torch.device("cuda" if gpus else "cpu"), "precision")
        self.workers = workers or gpus or max(1, int(found.get("CPU", 1)))
        self._on_gpu = gpus > 0
        self._stored = ray.put(weights.read_bytes())
        self._options = options

    def close(self) -> None:
        """Part from the cluster, and end it if it was started here."""
        if self._started:
            self.ray.shutdown()

    def outcomes(self, items: Sequence[Item], per_task: int) -> Iterator[Outcome]:
        """The outcomes of items in any order; tasks whose worker is lost are done again."""
        data, ray, stored = self.ray.data, self.ray, self._stored
        begun = ray.remote(num_cpus=0)(Begun).remote()
        rows = [{"item": pickle.dumps(item)} for item in items]
        tasks = -(-len(items) // per_task)
        results = data.from_items(rows, override_num_blocks=tasks).map_batches(
            Worker,
            fn_constructor_args=(
                lambda: ray.get(stored),
                self._options,
                lambda number: ray.get(begun.begin.remote(number)),
            ),
            compute=data.ActorPoolStrategy(size=min(self.workers, tasks)),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            num_gpus=1 if self._on_gpu else None,
        )
        results.context.enable_progress_bars = False
        for row in results.iter_rows():
            yield pickle.loads(row["outcome"])


class _Run:
    """Images on their way to the tables."""

    def __init__(self, cluster: _Cluster, predictor: Predictor, tables: Tables) -> None:
        self._cluster, self._tables = cluster, tables
        self.check = predictor.input_check()
        self.traces: list[str] = []

    def images(self, places: Sequence[Place]) -> None:
        """Do all images: first each as a whole or, if it is large, what its tiles depend on; then large ones, some at a time."""
        large: list[LargeImage] = []
        for outcome in self._done([Item(number, place) for number, place in enumerate(places)]):
            if outcome.large is not None:
                large.append(outcome.large)
        large.sort(key=lambda image: image.place.address)
        together = _IMAGES_TOGETHER * self._cluster.workers
        for first in range(0, len(large), together):
            self._in_tiles(large[first : first + together])

    def _in_tiles(self, large: Sequence[LargeImage]) -> None:
        """Do images in tiles: what is not yet known of these, then the objects of each image."""
        missing = {image.place.name: self._unknown(image) for image in large}
        total = sum(map(len, missing.values()))
        size = min(_MOST_TILES, max(1, total // (_SHARES * self._cluster.workers)))
        parts = [
            (image, tiles[k : k + size])
            for image in large
            for tiles in [missing[image.place.name]]
            for k in range(0, len(tiles), size)
        ]
        items = [Item(number, image, tuple(tiles)) for number, (image, tiles) in enumerate(parts)]
        for outcome in self._done(items):
            store = self._tables.tiles(parts[outcome.number][0])
            for tile, found in outcome.tiles:
                store.put(tile, found)
        complete = [(image, self._known(image)) for image in large]
        merging = [(image, found) for image, found in complete if found is not None]
        items = [Item(number, image, found=found) for number, (image, found) in enumerate(merging)]
        for outcome in self._done(items):
            warn_of_cut(outcome.cut, merging[outcome.number][0].plan, merging[outcome.number][0].place.name)

    def _unknown(self, image: LargeImage) -> list[Box]:
        store = self._tables.tiles(image)
        return [tile for tile in image.plan.tiles() if store.get(tile) is None]

    def _known(self, image: LargeImage) -> dict[Box, list[TileObjects]] | None:
        """What was found in all tiles of an image; None where some failed."""
        store = self._tables.tiles(image)
        found = {tile: parts for tile in image.plan.tiles() if (parts := store.get(tile)) is not None}
        return found if len(found) == len(image.plan.tiles()) else None

    def _done(self, items: Sequence[Item]) -> Iterator[Outcome]:
        """The outcomes of items that succeeded, each once; results go to the tables, and so do failures."""
        if not items:
            return
        missing = {item.number: item for item in items}
        share = len(items) // (_SHARES * self._cluster.workers)
        outcomes = self._cluster.outcomes(items, min(_MOST_ITEMS, max(1, share)))
        for outcome in track(outcomes, "predicting", len(items)):
            item = missing.pop(outcome.number, None)
            if item is None:
                continue
            if outcome.trace is not None:
                self.traces.append(outcome.trace)
            if outcome.check is not None:
                self.check.join(outcome.check)
            if outcome.reason is not None:
                self._tables.fail(item.place, outcome.reason)
                continue
            if outcome.found is not None:
                self._tables.add(outcome.found)
            yield outcome
        for item in missing.values():
            self._tables.fail(item.place, "nothing came back from the cluster: run the same command again.")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
