"""Prediction on images with an exported model: what `masklab.inference.predictor.Predictor` does with weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklab.config.image import ImageConfig
from masklab.config.schema import Config
from masklab.images.exposure import InputCheck, stretched
from masklab.images.reader import ImageReader
from masklab.images.resize import network_image, network_size
from masklab.inference.finder import ImageThreads
from masklab.inference.inputs import ImageLike, as_pixels, check_room, is_tensor, opened, read_whole
from masklab.inference.options import PredictionOptions
from masklab.inference.tiles.plan import TilePlan, plan_tiles
from masklab.inference.tiles.predict import predict_tiles
from masklab.inference.tiles.store import TileStore
from masklab.ops.coordinates import padded_size
from masklab.results.instances import Instances
from masklab.runtime.sessions import GIVEN, TOGETHER, Norms, RawDetections, Session, open_session
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.utils.types import Floats, Size
from masklab.weights.model_facts import ModelFacts, read_facts


class ExportedPredictor:
    """An exported model with all that leads from images to `Instances`, without torch.

    ``session`` runs the network, ``facts`` are what its file says of it.  Without ``in_tiles`` images of any size are
    taken as a whole; ``norms`` are the statistics of norms (2, T) of the image that a tile is of.  Raises `InputError` for options
    that need the weights.
    """

    def __init__(
        self,
        session: Session,
        facts: ModelFacts,
        options: PredictionOptions | None = None,
        in_tiles: bool = True,
        norms: Floats | None = None,
    ) -> None:
        self.session, self.facts = session, facts
        self.options = PredictionOptions() if options is None else options
        self.in_tiles = in_tiles
        self._norms = None if norms is None else Norms(GIVEN, norms)
        self._warned = False
        self._check_options()

    def _check_options(self) -> None:
        options, most = self.options, self._most()
        if not options.plain:
            raise InputError(
                "an exported model has no test-time augmentation: leave it out, or predict with the weights."
            )
        if options.precision not in ("auto", "float32"):
            raise InputError(
                f"precision is {options.precision} but an exported model has that of its file: leave it out, or predict with the weights."
            )
        if (options.max_detections or 0) > most:
            raise InputError(
                f"max_detections is {options.max_detections} but the model was exported with {most}: give at most {most}."
            )

    def _most(self) -> int:
        most = self.config.model.box.max_detections
        assert isinstance(most, int)
        return most

    @property
    def config(self) -> Config:
        """The configuration that the model was trained with."""
        return self.facts.config

    @property
    def classes(self) -> ClassTable:
        """The classes that the model finds."""
        return self.facts.classes

    @property
    def threshold(self) -> float:
        """The score from which an object counts as found: that of the options, else the model's tuned one, else 0.5."""
        return self.options.threshold(self.facts.score_threshold)

    @property
    def max_detections(self) -> int:
        """The most objects that are found in an image."""
        return self.options.max_detections or self._most()

    @property
    def has_norms(self) -> bool:
        """Whether some norm takes its statistics from whole maps, so that tiles need those of their image."""
        return int(self.session.metadata.get("norm_groups", 0)) > 0

    def weights_id(self) -> str:
        """A checksum of the weights, the file's own note on them, and the library that runs it."""
        return f"{self.session.metadata['weights_sha256']} {self.session.metadata['kind']} {self.session.identity}"

    def tile_plan(self, size: Size) -> TilePlan | None:
        """The tiles for an image of ``size``, None for one that is taken as a whole (see `plan_tiles`)."""
        return plan_tiles(self.facts, size) if self.in_tiles else None

    def image_config(self, image: NDArray[Any]) -> ImageConfig:
        """How the intensities of an image (C, H, W) are rescaled: as in training, or stretched if the options say so."""
        return self.config.image if self.options.intensity == "model" else stretched(image, self.config.image)

    def input_check(self) -> InputCheck:
        """A new check of images against what the model was trained on."""
        return InputCheck(self.config.image, self.facts.training_data)

    def predict(self, images: Any, batch_size: int = 1, check: InputCheck | None = None) -> Any:
        """Find the objects of an image, or of each image of a list; see `Predictor.predict`.

        Each image has a run of its own, whatever ``batch_size`` is.
        """
        if check is None:
            check = self.input_check()
            found = self.predict(images, batch_size, check)
            self._warned = self._warned or check.warn()
            return found
        if isinstance(images, (list, tuple)):
            return [self._predict(image, check, f"image {row + 1}") for row, image in enumerate(images)]
        return self._predict(images, check, "image 1")

    def image_threads(self) -> AbstractContextManager[ImageThreads]:
        """One: the library that runs the file shares an image out among all processors."""
        return nullcontext(ImageThreads())

    def predict_reader(
        self, image: ImageReader, check: InputCheck | None = None, store: TileStore | None = None
    ) -> Instances:
        """Find the objects of an image that is open, whole or in tiles; see `Predictor.predict_reader`."""
        plan = self.tile_plan(image.size)
        if plan is None:
            whole: Instances = self.predict(image, check=check)
            return whole
        return predict_tiles(self, image, plan, store, check)

    def measure_norms(self, images: Sequence[NDArray[Any]], config: ImageConfig) -> Floats:
        """Statistics (2, T) of norms over parts ``(C, H, W)`` of one image; see `masklab.inference.finder.ObjectFinder`."""
        inputs = np.stack([network_image(np.ascontiguousarray(image), config) for image in images])
        padded = self._padded(inputs, "edge")
        sizes = np.array([padded.shape[2:]] * len(padded), np.int64)
        empty = np.zeros((2, int(self.session.metadata["norm_groups"])), np.float32)
        return self.session.run(padded, sizes, Norms(TOGETHER, empty)).statistics

    def on_tiles(self, config: Config, options: PredictionOptions, statistics: Any) -> ExportedPredictor:
        """The same model for tiles of one image, with its statistics of norms."""
        norms = statistics if self.has_norms else None
        return ExportedPredictor(self.session, self.facts._replace(config=config), options, in_tiles=False, norms=norms)

    def _predict(self, image: ImageLike, check: InputCheck, name: str) -> Instances:
        channels = self.config.model.backbone.channels
        with opened(image, channels) as reader:
            if self.tile_plan(reader.size) is not None:
                return self.predict_reader(reader, check)
            values = as_pixels(image if is_tensor(image) else read_whole(reader), channels)
        if self.options.intensity == "model":
            check.add(values, reader.path or name)
        size = (values.shape[1], values.shape[2])
        check_room(network_size(size, self.config.image))
        inputs = network_image(values, self.image_config(values))[None]
        seen = (inputs.shape[2], inputs.shape[3])
        raw = self.session.run(self._padded(inputs), np.array([seen], np.int64), self._norms)
        found = self._instances(raw, size, seen)
        check.add_boxes(found.above(self.threshold).boxes, size, reader.path or name)
        return found

    def _padded(self, inputs: Floats, mode: Any = "constant") -> Floats:
        """Network inputs (N, C, h, w), padded at the bottom and right to the sides that the network takes."""
        height, width = inputs.shape[2:]
        tall, wide = padded_size((height, width), self.config.model.backbone.output_stride)
        return np.pad(inputs, ((0, 0), (0, 0), (0, tall - height), (0, wide - width)), mode=mode)

    def _instances(self, found: RawDetections, size: Size, seen: Size) -> Instances:
        """What was found in an image, in its own pixels."""
        some = slice(0, min(self.max_detections, int((found.scores >= self.options.min_score).sum())))
        factors = np.array([size[1] / seen[1], size[0] / seen[0]] * 2, np.float32)
        return Instances(
            size=size,
            boxes=found.boxes[some] * factors,
            scores=found.scores[some],
            labels=found.labels[some],
            masks=found.masks[some],
            class_names=self.classes.names,
            category_ids=self.classes.ids,
        )


def load(model: str | Path, options: PredictionOptions | None = None, threads: int | None = None) -> ExportedPredictor:
    """Load an exported model; ``threads`` are all cores by default.

    Raises `InputError` as `masklab.runtime.sessions.open_session` does, and for options that an exported model cannot have.
    """
    session = open_session(model, threads)
    facts = read_facts(session.metadata, Path(model))
    return ExportedPredictor(session, _with_number(facts, session, Path(model)), options)


def _with_number(facts: ModelFacts, session: Session, path: Path) -> ModelFacts:
    """The facts with the number of detections that the graph was written with."""
    try:
        most = int(session.metadata["max_detections"])
    except (KeyError, ValueError):
        raise InputError(f"{path}: its metadata is damaged: export the model again.") from None
    config = facts.config
    box = config.model.box.model_copy(update={"max_detections": most})
    return facts._replace(config=config.model_copy(update={"model": config.model.model_copy(update={"box": box})}))
