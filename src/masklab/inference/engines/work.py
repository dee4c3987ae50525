"""What a worker does with an item of work: an image, or some tiles of a large one.

An item is complete in itself and gives the same whenever and wherever it is done, so that it can be done again after a
worker was lost.
"""

from __future__ import annotations

import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from masklab.images.exposure import InputCheck
from masklab.images.reader import ImageReader, open_reader
from masklab.images.rescaled import ImageIntensities
from masklab.inference.engines.places import Place, local_file
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import load
from masklab.inference.tiles.merge import TileObjects
from masklab.inference.tiles.plan import TilePlan, plan_tiles
from masklab.inference.tiles.predict import ImageFacts, TileFinder, find_in_tiles, image_facts, joined
from masklab.inference.tiles.store import KnownTiles
from masklab.results.formats.base import entries
from masklab.results.formats.parquet import to_table
from masklab.results.instances import Instances
from masklab.utils.errors import InputError
from masklab.utils.failures import machine_error
from masklab.utils.leftout import reason_of
from masklab.utils.types import Box, Size

if TYPE_CHECKING:
    import pyarrow as pa

    from masklab.config.image import ImageConfig

MOST_BEGUN = 3
"""How often an item is begun whose process was lost."""
_LOST = "each process that worked on it was ended by the system, as a rule for want of memory: shrink it."

State = list[Any]
"""What tells whether an image is still the same, see `masklab.inference.engines.places.Place.current_state`."""


@dataclass(frozen=True)
class LargeImage:
    """An image that is predicted in tiles, with all that its tiles depend on."""

    place: Place
    state: State
    plan: TilePlan
    facts: ImageFacts


@dataclass(frozen=True)
class Item:
    """An image, or ``tiles`` of a large one, or what was ``found`` in all of them, to be merged.

    ``number`` tells it from the others.
    """

    number: int
    image: Place | LargeImage
    tiles: tuple[Box, ...] = ()
    found: dict[Box, list[TileObjects]] | None = None

    @property
    def place(self) -> Place:
        """Where the image is."""
        return self.image if isinstance(self.image, Place) else self.image.place


@dataclass(frozen=True)
class Found:
    """The results of an image: ``objects`` in the columns of the format parquet, and what a table of images says.

    ``found`` counts objects of at least the threshold; ``full`` says that there may be more.  ``value_range`` is the
    intensities that became black and white.
    """

    place: Place
    state: State
    size: Size
    objects: pa.Table
    found: int
    full: bool = False
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of an item: results, or a large image to be cut into tiles, or what its tiles hold, or a failure.

    ``cut`` counts objects that are larger than a tile.  ``reason`` is why the image cannot be used, and ``trace`` where an
    error of code was raised.
    """

    number: int
    found: Found | None = None
    large: LargeImage | None = None
    tiles: tuple[tuple[Box, list[TileObjects]], ...] = ()
    cut: int = 0
    check: InputCheck | None = None
    reason: str | None = None
    trace: str | None = None


class _OpenImage(NamedTuple):
    """An image that stays open until another is needed, so that its next tiles need not fetch it again."""

    place: Place
    state: State
    path: Path
    reader: ImageReader
    closing: ExitStack


class Worker:
    """A model that does items; ``weights`` gives the bytes of its file, and ``begin`` how often an item was begun.

    An item that was begun so often that it is likely to end the process is not done.  Called with an Arrow table of pickled items, it gives tables of pickled outcomes.  Nothing that is wrong with an image
    is raised.
    """

    def __init__(self, weights: Callable[[], bytes], options: PredictionOptions, begin: Callable[[int], int]) -> None:
        with tempfile.TemporaryDirectory(prefix="masklab-") as folder:
            file = Path(folder) / "model.safetensors"
            file.write_bytes(weights())
            self._predictor = load(file, options=options)
        self._begin = begin
        self._open: _OpenImage | None = None
        self._finder: TileFinder | None = None

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """One outcome after the other, in the column ``outcome``, for the items of the column ``item``."""
        import pyarrow as pa

        try:
            for packed in batch["item"].to_pylist():
                outcome = pickle.dumps(self.do(pickle.loads(packed)))
                yield pa.table({"outcome": pa.array([outcome], pa.large_binary())})
        finally:
            self._close()  # nobody says when the process is ended, and the image may have been fetched to its disk

    def do(self, item: Item) -> Outcome:
        """Do an item; the image of tiles stays open."""
        try:
            if self._begin(item.number) > MOST_BEGUN:
                return Outcome(item.number, reason=_LOST)
            if isinstance(item.image, LargeImage):
                return self._tiles(item, item.image)
            return self._image(item.number, item.image)
        except Exception as error:
            return self._failed(item, error)
        finally:
            if isinstance(item.image, Place):
                self._close()

    def _image(self, number: int, place: Place) -> Outcome:
        predictor = self._predictor
        image = self._opened(place)
        check = predictor.input_check()
        if predictor.options.intensity == "model":
            check.add_overview(image.reader, place.address)
        plan = plan_tiles(predictor.model, image.reader.size)
        if plan is not None:
            large = LargeImage(place, image.state, plan, image_facts(predictor, image.reader, plan))
            return Outcome(number, large=large, check=check)
        rule = ImageIntensities(image.reader, predictor.image_config).rule
        instances = predictor.predict_reader(image.reader, predictor.input_check())
        check.add_boxes(instances.above(predictor.threshold).boxes, image.reader.size, place.address)
        found = results(place, image.state, instances, predictor.threshold, rule)
        return Outcome(number, replace(found, full=found.found == predictor.max_detections), check=check)

    def _tiles(self, item: Item, large: LargeImage) -> Outcome:
        image = self._opened(large.place)
        if image.state != large.state:
            raise InputError(f"{large.place.address} has changed meanwhile: run the same command again.")
        predictor, plan = self._predictor, large.plan
        if item.found is not None:
            finder = TileFinder(predictor, image.reader, plan, KnownTiles(item.found), large.facts)
            tiles = find_in_tiles(finder, plan, predictor.threshold)
            instances = joined(predictor.classes, tiles.parts, plan.size)
            check = predictor.input_check()  # the overview was looked at before the image was cut into tiles
            check.add_boxes(instances.above(predictor.threshold).boxes, plan.size, large.place.address)
            found = results(large.place, large.state, instances, predictor.threshold, large.facts.rule)
            return Outcome(item.number, found=found, cut=tiles.cut, check=check)
        if self._finder is None:
            self._finder = TileFinder(predictor, image.reader, plan, None, large.facts)
        finder = self._finder
        return Outcome(item.number, tiles=tuple((tile, finder.tile(tile)) for tile in item.tiles))

    def _opened(self, place: Place) -> _OpenImage:
        if self._open is None or self._open.place != place:
            self._close()
            channels = self._predictor.config.model.backbone.channels
            with ExitStack() as stack:
                state = place.current_state()
                path = stack.enter_context(local_file(place))
                reader = stack.enter_context(open_reader(path, channels))
                self._open = _OpenImage(place, state, path, reader, stack.pop_all())
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            before, self._open, self._finder = self._open, None, None
            with suppress(Exception):
                before.closing.close()

    def _failed(self, item: Item, error: Exception) -> Outcome:
        refused = machine_error(error)
        reason = reason_of(error) or (None if refused is None else str(refused))
        if reason is None:
            reason = f"an error of the program ({type(error).__name__}: {error})."
            return Outcome(item.number, reason=reason, trace=traceback.format_exc())
        if self._open is not None:
            reason = item.place.naming(reason, self._open.path)
        return Outcome(item.number, reason=reason)


def results(place: Place, state: State, instances: Instances, threshold: float, rule: ImageConfig) -> Found:
    """The results of an image whose intensities are rescaled by a rule."""
    return Found(
        place,
        state,
        instances.size,
        to_table([entries(instances, place.name)]),
        len(instances.above(threshold)),
        value_range=rule.value_range,
    )
