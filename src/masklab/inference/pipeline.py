"""The images of a folder of results, in three stages at the same time: read ahead, find objects, write.

Images are opened and decoded in a thread of their own, and results are written in another, while the network runs in the caller's
thread, or on a CPU on several images in as many threads; large ones have all processors and the memory for themselves.  Images are opened and written in their order, so all files, records
and warnings are those of a plain loop.

Each image has a forward pass of its own.  Neighbours in a batch change the last digits of its results: of 16 images of
256 x 256, `nuclei` gave 7 or 8 the same bits in batches as alone in float32 on a CPU, and 10 to 13 in bfloat16.  A run that is
taken up again predicts other images together than an undisturbed one, and its files would differ.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

from masklab.images.reader import DecodedReader, ImageReader, open_reader
from masklab.images.rescaled import ImageIntensities
from masklab.inference.finder import ImageThreads, ObjectFinder, is_large
from masklab.inference.output import ResultFolder, Totals
from masklab.results.instances import Instances
from masklab.utils.errors import InputError
from masklab.utils.leftout import LeftOut
from masklab.utils.progress import track
from masklab.utils.stage import Stage

_IMAGES_AHEAD = 4
_BYTES_AHEAD = 2**27
"""Bytes of images that are open, from which no other one is opened."""
_RESULTS_WAITING = 2

_FOR_EACH_THREAD = 2
"""Images that are given to a thread of the network, so that none waits for a slow one."""

Find = Callable[[Path, ImageReader], Instances]


@dataclass
class _Image:
    """An image on its way.  ``error`` is what stopped it; it is raised where images are written, in its turn."""

    path: Path
    kept: bool = False
    tiled: bool = False
    large: bool = False
    error: Exception | None = None
    reader: ImageReader | None = None
    intensities: ImageIntensities | None = None
    instances: Instances | None = None
    full: bool = False
    num_bytes: int = 0
    files: ExitStack = field(default_factory=ExitStack)


def write_results(
    predictor: ObjectFinder,
    folder: ResultFolder,
    find: Find,
    annotations: str | Path | None,
    pixel_size: float | None = None,
    magnification: float | None = None,
    *,
    in_threads: bool = False,
) -> tuple[Totals, LeftOut]:
    """Write what ``find`` finds in each image of a folder of results, given its path and the image opened.

    ``pixel_size`` and ``magnification`` choose a level of a pyramid, as for `open_reader`.  ``find`` runs in the
    calling thread or, with ``in_threads`` and for all but large images, in as many as the predictor asks for.  An image that is predicted in tiles is
    predicted and written in the calling thread, before the next one.

    Images that cannot be used, or have another size than the JSON ``annotations`` says, are left out with a warning.
    Any other error, such as a full disk, ends the work when all images before are written.  A signal ends it when
    the image that is being written is on disk; the next ones that were predicted are not.  Returns the counts, and the images left
    out, which the caller refuses at its end.
    """
    with (
        predictor.image_threads() if in_threads else nullcontext(ImageThreads()) as threads,
        _Pipeline(predictor, folder, find, threads, annotations, pixel_size, magnification) as pipeline,
    ):
        pipeline.run()
    return folder.finish(), pipeline.left


class _Pipeline:
    """What the three stages share."""

    def __init__(
        self,
        predictor: ObjectFinder,
        folder: ResultFolder,
        find: Find,
        threads: ImageThreads,
        annotations: str | Path | None,
        pixel_size: float | None,
        magnification: float | None,
    ) -> None:
        self.left = LeftOut()
        self._find_objects, self._threads = find, threads
        self._predictor, self._folder, self._annotations = predictor, folder, annotations
        self._pixel_size, self._magnification = pixel_size, magnification
        self._open: dict[Path, _Image] = {}
        self._closed: SimpleQueue[bool] = SimpleQueue()
        """True for each image that was closed, False at the end."""

    def __enter__(self) -> _Pipeline:
        self._reading: Stage[Path, _Image] = Stage(self._read)
        number = self._threads.number if self._threads.number > 1 else 0
        self._finding: list[Stage[_Image, _Image]] = [Stage(self._found, self._threads.begin) for _ in range(number)]
        self._writing: Stage[_Image, None] = Stage(self._write)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.put(False)
        with ExitStack() as stack:
            for image in list(self._open.values()):
                stack.callback(image.files.close)
            for close in (self._reading.close, *(stage.close for stage in self._finding), self._writing.close):
                stack.callback(close)

    def run(self) -> None:
        """Take all images through the stages."""
        images = self._with_objects()
        for _ in track(self._folder.images, "predicting"):
            image = next(images)
            if image.kept:
                continue
            self._wait(0 if image.tiled else _RESULTS_WAITING)
            if image.tiled:
                self._write(image)
            else:
                self._writing.give(image)
        self._wait(0)

    def _with_objects(self) -> Iterator[_Image]:
        """The images with what is found in them, in their order."""
        under_way: deque[tuple[_Image, Stage[_Image, _Image]]] = deque()
        stages = cycle(self._finding)
        for image in self._opened_images():
            if not self._finding or image.kept or image.tiled or image.large or image.error is not None:
                while under_way:
                    yield under_way.popleft()[1].take()
                yield self._found(image)
                continue
            under_way.append((image, next(stages)))
            under_way[-1][1].give(image)
            # no image is opened while those under way are as many bytes as may be open
            while (
                len(under_way) >= _FOR_EACH_THREAD * len(self._finding)
                or sum(other.num_bytes for other, _ in under_way) >= _BYTES_AHEAD
            ):
                yield under_way.popleft()[1].take()
        while under_way:
            yield under_way.popleft()[1].take()

    def _opened_images(self) -> Iterator[_Image]:
        paths = iter(self._folder.images)
        for _ in self._folder.images:
            while self._reading.waiting <= _IMAGES_AHEAD and (path := next(paths, None)) is not None:
                self._reading.give(path)
            yield self._reading.take()

    def _wait(self, most: int) -> None:
        """Wait until at most so many results are still to be written."""
        while self._writing.waiting > most:
            self._writing.take()

    def _read(self, path: Path) -> _Image:
        image = _Image(path)
        try:
            image.kept = self._folder.done(path)
            while not image.kept and sum(other.num_bytes for other in list(self._open.values())) >= _BYTES_AHEAD:
                if not self._closed.get():
                    return image
            if not image.kept:
                self._open[path] = image
                self._decode(image)
        except Exception as error:
            image.error = error
        return image

    def _decode(self, image: _Image) -> None:
        """Open an image, and read the pixels of one that is predicted as a whole."""
        channels = self._predictor.config.model.backbone.channels
        reader = self._opened(image, channels)
        image.num_bytes = math.prod(reader.size) * reader.channels * reader.dtype.itemsize
        if self._folder.listing is not None:
            _check_size(image.path, reader, self._folder.listing.images[image.path].size, self._annotations)
        image.tiled = self._predictor.tile_plan(reader.size) is not None
        image.large = is_large(reader.size, self._predictor.config.image)
        if not image.tiled and image.num_bytes <= _BYTES_AHEAD:
            reader = DecodedReader(reader)
        image.intensities = ImageIntensities(reader, self._predictor.image_config)
        image.reader = reader

    def _found(self, image: _Image) -> _Image:
        """The image with what is found in it, or with the error."""
        if not image.kept and image.error is None:
            try:
                self._find(image)
            except Exception as error:
                image.error = error
        return image

    def _find(self, image: _Image) -> None:
        assert image.reader is not None
        image.instances = self._find_objects(image.path, image.reader)
        counted = len(image.instances.above(self._predictor.threshold))
        image.full = not image.tiled and counted == self._predictor.max_detections

    def _write(self, image: _Image) -> None:
        """Write the results of an image, or say why there are none, and close it."""
        with self.left.skipping(image.path):
            try:
                if image.error is not None:
                    raise image.error
                assert image.instances is not None
                assert image.intensities is not None
                own = self._opened(image, None) if self._folder.measures else None
                shown, value_range = image.intensities.shown(), image.intensities.rule.value_range
                self._folder.add(
                    image.path, image.instances, own, shown=shown, value_range=value_range, full=image.full
                )
            finally:
                image.files.close()
                self._open.pop(image.path, None)
                self._closed.put(True)

    def _opened(self, image: _Image, channels: int | None) -> ImageReader:
        return image.files.enter_context(open_reader(image.path, channels, self._pixel_size, self._magnification))


def _check_size(path: Path, image: ImageReader, size: tuple[int, int] | None, source: str | Path | None) -> None:
    """Raise `InputError` for an image of another size than a JSON says: its masks would not fit the JSON's."""
    found = image.size
    if size is not None and tuple(found) != size:
        raise InputError(
            f"{path} is {found[1]} wide and {found[0]} high (EXIF orientation applied) but {source} says "
            f"{size[1]} wide and {size[0]} high; correct the JSON or replace the image."
        )
