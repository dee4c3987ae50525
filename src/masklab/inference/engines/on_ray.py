"""Prediction on a cluster with Ray Data.

Actors hold the model and do items of work (`masklab.inference.engines.work`); this process gives them out, gathers what
comes back and alone writes the results.  Ray does an item again whose worker was lost; an image that ends each
worker it is given to is reported as failed.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from masklab.images.exposure import IntensityCheck
from masklab.inference.engines.places import Place, find_places
from masklab.inference.engines.tables import Tables
from masklab.inference.engines.work import Item, LargeImage, Outcome, Worker, merged
from masklab.inference.folder import settings_of
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import Predictor, load
from masklab.inference.tiles.merge import TileObjects
from masklab.inference.tiles.predict import ROUNDS, warn_of_cut
from masklab.utils.device import check_precision
from masklab.utils.errors import InputError, MachineError
from masklab.utils.progress import track
from masklab.utils.types import Box
from masklab.utils.words import counted
from masklab.weights.checkpoint import find_weights

_log = logging.getLogger(__name__)

_MOST_ITEMS = 32  # in one task
_MOST_TILES = 64  # in one item
_SHARES = 8  # tasks for each worker at least, so that all have work to the end
_LOST = "each process that worked on it was ended by the system, as a rule for want of memory: shrink it."


def predict_on_ray(
    model: str | Path,
    sources: Sequence[str],
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
    places = find_places(sources)
    tables = Tables(output, settings_of(predictor) | {"options": asdict(options)})
    missing = tables.start(places)
    check, traces = IntensityCheck(predictor.config.image), list[str]()
    if missing:
        try:
            with_ray = _Cluster(ray, find_weights(model), options, workers)
            run = _Run(with_ray, predictor, tables, check, traces)
            run.images(missing)
        except ray.exceptions.RayError as error:
            raise MachineError(f"Ray cannot go on ({_first_line(error)}): run the same command again.") from error
        finally:
            tables.commit()
    totals, failures = tables.finish()
    check.warn()
    if totals.kept:
        _log.info(f"{counted(totals.kept, 'image')} of an earlier run kept")
    _log.info(
        f"{counted(totals.images, 'image')}, {counted(totals.found, 'object')} of score {predictor.threshold:.2f} or more "
        f"({counted(totals.detections, 'detection')} in all): {tables.path}"
    )
    if totals.full:
        _log.info(
            f"{totals.full} of {counted(len(places), 'image')} reached the maximum of "
            f"{counted(predictor.max_detections, 'detection')}, so others may be missing: predict into another folder with "
            "a larger --max_detections."
        )
    if traces:
        raise RuntimeError(f"{counted(len(traces), 'item')} of work met an error of the program, first:\n{traces[0]}")
    if failures:
        raise InputError(
            f"{failures} of {counted(len(places), 'image')} could not be used, for the reasons above and in "
            f"{tables.path / 'failed.parquet'}: correct or replace them, and run the same command again."
        )
    return tables.path


def _import_ray() -> Any:
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # else workers run `uv run` in a copy of this folder
    try:
        import pyarrow  # noqa: F401
        import ray
        import ray.data
    except ImportError:
        raise InputError('--engine ray needs Ray, which is not installed: pip install "masklab[ray]".') from None
    return ray


class _Cluster:
    """Workers of Ray that hold a model."""

    def __init__(self, ray: Any, weights: Path, options: PredictionOptions, workers: int | None) -> None:
        self.ray = ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        found = ray.cluster_resources()
        gpus = int(found.get("GPU", 0))
        check_precision(options.precision, torch.device("cuda" if gpus else "cpu"), "precision")
        self.workers = workers or gpus or max(1, int(found.get("CPU", 1)))
        self._on_gpu = gpus > 0
        self._stored = ray.put(weights.read_bytes())
        self._options = options

    def outcomes(self, items: Sequence[Item], per_task: int) -> Iterator[Outcome]:
        """The outcomes of items in any order; none of an item whose workers were lost several times."""
        data, ray, stored = self.ray.data, self.ray, self._stored
        rows = [{"item": pickle.dumps(item)} for item in items]
        tasks = -(-len(items) // per_task)
        results = data.from_items(rows, override_num_blocks=tasks).map_batches(
            Worker,
            fn_constructor_args=(lambda: ray.get(stored), self._options),
            compute=data.ActorPoolStrategy(size=min(self.workers, tasks), max_tasks_in_flight_per_actor=1),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            num_gpus=1 if self._on_gpu else None,
            ray_remote_args_fn=_remote_args,
        )
        results.context.max_errored_blocks = -1
        results.context.enable_progress_bars = False
        for row in results.iter_rows():
            yield pickle.loads(row["outcome"])


def _remote_args() -> dict[str, Any]:
    return {"max_task_retries": 1}


@dataclass
class _Tiled:
    """A large image: the tiles that were asked for, in order, and how often it was looked for cut objects."""

    image: LargeImage
    tiles: list[Box]
    rounds: int = 0


class _Run:
    """Images on their way to the tables."""

    def __init__(
        self, cluster: _Cluster, predictor: Predictor, tables: Tables, check: IntensityCheck, traces: list[str]
    ) -> None:
        self._cluster, self._predictor, self._tables = cluster, predictor, tables
        self._check, self._traces = check, traces

    def images(self, places: Sequence[Place]) -> None:
        """Do all images: first each as a whole or, if it is large, what its tiles depend on; then the tiles."""
        large: list[_Tiled] = []
        for outcome in self._done([Item(number, place) for number, place in enumerate(places)]):
            if outcome.check is not None:
                self._check.join(outcome.check)
            if outcome.found is not None:
                self._tables.add(outcome.found)
            if outcome.large is not None:
                large.append(_Tiled(outcome.large, outcome.large.plan.tiles()))
        large.sort(key=lambda each: each.image.place.address)
        while large:
            large = self._merge(self._with_tiles(large))

    def _with_tiles(self, large: Sequence[_Tiled]) -> list[_Tiled]:
        """Find what is not yet known of the tiles of images; those of them of which all is known."""
        missing = [
            (
                each.image,
                [tile for tile in dict.fromkeys(each.tiles) if self._tables.tiles(each.image).get(tile) is None],
            )
            for each in large
        ]
        total = sum(len(tiles) for _, tiles in missing)
        size = min(_MOST_TILES, max(1, total // (_SHARES * self._cluster.workers)))
        shares = [(image, tiles[k : k + size]) for image, tiles in missing for k in range(0, len(tiles), size)]
        items = [Item(number, image, tuple(tiles)) for number, (image, tiles) in enumerate(shares)]
        left = Counter(item.place.name for item in items)
        for outcome in self._done(items):
            image = items[outcome.number].image
            if outcome.reason is None and isinstance(image, LargeImage):
                store = self._tables.tiles(image)
                for tile, found in outcome.tiles:
                    store.put(tile, found)
                left[image.place.name] -= 1
        return [each for each in large if not left[each.image.place.name]]

    def _merge(self, large: Sequence[_Tiled]) -> list[_Tiled]:
        """Merge the tiles of images; those that are cut objects are to be looked for in remain."""
        ray = self._cluster.ray
        task = ray.remote(num_cpus=0)(merged)
        waiting: dict[Any, _Tiled] = {}
        again: list[_Tiled] = []

        def take(most: int) -> None:
            while len(waiting) > most:
                (first,), _ = ray.wait(list(waiting))
                each = waiting.pop(first)
                try:
                    tiles, found, cut = ray.get(first)
                except ray.exceptions.RayError as error:
                    self._tables.fail(each.image.place, _LOST if _is_lost(ray, error) else _first_line(error))
                    if not _is_lost(ray, error):
                        self._traces.append(str(error))
                    continue
                if found is not None:
                    warn_of_cut(cut, each.image.plan, each.image.place.name)
                    self._tables.add(found)
                else:
                    again.append(_Tiled(each.image, [*each.tiles, *tiles], each.rounds + 1))

        for each in large:
            found = [part for tile in each.tiles for part in self._known(each.image, tile)]
            last = each.rounds == ROUNDS
            classes, threshold = self._predictor.classes, self._predictor.threshold
            waiting[task.remote(each.image, found, classes, threshold, last)] = each
            take(self._cluster.workers - 1)
        take(0)
        return again

    def _known(self, image: LargeImage, tile: Box) -> list[TileObjects]:
        found = self._tables.tiles(image).get(tile)
        if found is None:
            raise MachineError(
                f"what was found in {image.place.address} cannot be read again from {self._tables.path}: check the disk, "
                "then run the same command again."
            )
        return found

    def _done(self, items: Sequence[Item]) -> Iterator[Outcome]:
        """The outcome of each item, once; failures are noted.

        Items of which there is none after the first time may have shared a task with one that ends its worker, and are done
        once more, each in a task of its own.
        """
        missing = {item.number: item for item in items}
        share = len(items) // (_SHARES * self._cluster.workers)
        for per_task in (min(_MOST_ITEMS, max(1, share)), 1):
            if missing:
                outcomes = self._cluster.outcomes(list(missing.values()), per_task)
                for outcome in track(outcomes, "predicting", len(missing)):
                    item = missing.pop(outcome.number, None)
                    if item is None:
                        continue
                    if outcome.trace is not None:
                        self._traces.append(outcome.trace)
                    if outcome.reason is not None:
                        self._tables.fail(item.place, outcome.reason)
                    yield outcome
        for item in missing.values():
            self._tables.fail(item.place, _LOST)


def _is_lost(ray: Any, error: Exception) -> bool:
    """Whether a task ended with its process, and not by an error of code."""
    return not isinstance(error, ray.exceptions.RayTaskError)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
