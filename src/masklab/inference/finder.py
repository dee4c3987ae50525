"""What the prediction of folders and of tiles needs of a model, whatever runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from numpy.typing import NDArray

from masklab.config.image import ImageConfig
from masklab.config.schema import Config
from masklab.images.exposure import InputCheck
from masklab.images.reader import ImageReader
from masklab.images.resize import network_size
from masklab.inference.options import PredictionOptions
from masklab.structures import ClassTable
from masklab.utils.types import Size

_LARGE = 2**20  # pixels of the network's input

if TYPE_CHECKING:
    from masklab.inference.tiles.plan import TilePlan
    from masklab.inference.tiles.store import TileStore
    from masklab.results.instances import Instances


class ImageThreads(NamedTuple):
    """How many images are best predicted at the same time.  Each thread that does so calls ``begin`` first, to have its
    share of the processors; in between it may call ``alone`` to have all of them while the others rest."""

    number: int = 1
    begin: Callable[[], object] = bool
    alone: Callable[[], object] = bool


def is_large(size: Size, config: ImageConfig) -> bool:
    """Whether an image (height, width) is best predicted alone, with all processors and the memory for itself."""
    return math.prod(network_size(size, config)) > _LARGE


class ObjectFinder(Protocol):
    """A model with all that leads from images to `Instances`: `masklab.inference.predictor.Predictor`, which runs the
    network itself and describes these methods, or `masklab.runtime.predictor.ExportedPredictor`, which runs a file.
    """

    options: PredictionOptions

    @property
    def config(self) -> Config: ...

    @property
    def classes(self) -> ClassTable: ...

    @property
    def threshold(self) -> float: ...

    @property
    def max_detections(self) -> int: ...

    @property
    def has_norms(self) -> bool:
        """Whether some norm takes its statistics from whole maps, so that tiles need those of their image."""

    def weights_id(self) -> str:
        """A checksum of the model: its weights, its configuration and its classes."""

    def tile_plan(self, size: Size) -> TilePlan | None: ...

    def image_config(self, image: NDArray[Any]) -> ImageConfig: ...

    def input_check(self) -> InputCheck:
        """A new check of images, and of what is found in them, against what the model was trained on."""

    def predict(self, images: Any, batch_size: int = ..., check: InputCheck | None = ...) -> Any: ...

    def image_threads(self) -> AbstractContextManager[ImageThreads]:
        """Entered while images are predicted at the same time."""

    def predict_reader(
        self, image: ImageReader, check: InputCheck | None = ..., store: TileStore | None = ...
    ) -> Instances: ...

    def measure_norms(self, images: Sequence[NDArray[Any]], config: ImageConfig) -> Any:
        """Statistics of the norms over parts ``(C, H, W)`` of one image, all of one size, together; `on_tiles` takes them.

        ``config`` says how the parts become the network's input.
        """

    def on_tiles(self, config: Config, options: PredictionOptions, statistics: Any) -> ObjectFinder:
        """The same model for the tiles of an image, with another configuration and fixed statistics of norms."""
