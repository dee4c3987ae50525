"""The work behind the routes: an image is received, predicted, answered and, if wanted, kept."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request

from masklab.inference.finder import ImageThreads, ObjectFinder, is_large
from masklab.results.instances import Instances
from masklab.serve import pictures
from masklab.serve.answers import Asked, document, written
from masklab.serve.bodies import receive
from masklab.serve.images import check_pixels, open_sent
from masklab.serve.kept import Kept, KeptResults, new_key
from masklab.serve.metrics import Metrics
from masklab.serve.refusals import Refusal, refusal_of
from masklab.serve.settings import Settings
from masklab.serve.worker import Order, Worker
from masklab.utils.types import Box

T = TypeVar("T")
_PICTURES_WAITING = 48  # tiles and files of kept results
_KEPT_BYTES = 2**31  # of the images of kept results


class Service:
    """A model and what its server keeps; files lie in ``folder``, images are predicted in ``threads``."""

    def __init__(self, finder: ObjectFinder, settings: Settings, folder: Path, threads: ImageThreads) -> None:
        self.finder, self.settings, self.folder = finder, settings, folder
        self.model = Worker("model", settings.waiting, threads)
        self.drawing = Worker("pictures", _PICTURES_WAITING)
        self.kept = KeptResults(settings.keep, _KEPT_BYTES)
        self.metrics = Metrics(lambda: self.model.unfinished, lambda: len(self.kept))
        self._open = pictures.OpenImage(finder)

    @property
    def stopping(self) -> bool:
        """Whether no more work is taken."""
        return self.model.stopping

    def stop(self) -> None:
        """Finish what is being worked on and refuse the rest."""
        self.model.stop()
        self.drawing.stop()

    async def predict(
        self, request: Request, asked: Asked, name: str, score: float | None, outlines: bool, keep: bool
    ) -> bytes:
        """Receive an image, find its objects, and write the answer; raises `Refusal`."""
        order = Order(self.settings.seconds)
        self.model.check()
        path = await receive(request, self.folder, self.settings, order, self.model)
        key = new_key() if keep else None

        def work() -> tuple[Instances, bytes]:
            return self._predict(path, asked, name, self.threshold if score is None else score, outlines, key, order)

        try:
            found, answer = await self._while_wanted(request, self.model, work, order, path)
            if key is not None:
                self.kept.add(Kept(key, path, name, found))
            return answer
        finally:
            if key is None or key not in self.kept:
                path.unlink(missing_ok=True)

    @property
    def threshold(self) -> float:
        """The score from which an object counts as found."""
        return self.finder.threshold

    def _predict(
        self, path: Path, asked: Asked, name: str, score: float, outlines: bool, key: str | None, order: Order
    ) -> tuple[Instances, bytes]:
        """All detections of an image, and the answer, which has those of at least a score."""
        check_pixels(path, self.settings.max_pixels)
        check = self.finder.input_check()
        with open_sent(path, self.finder.config.model.backbone.channels, order) as image:
            large = self.finder.tile_plan(image.size) is not None or is_large(image.size, self.finder.config.image)
            with self.model.alone(order) if large else nullcontext():
                found = self.finder.predict_reader(image, check.of(name))
            found = replace(found, masks=np.zeros((len(found), 0, 0), np.float32), _rle=found.rle)
            self.metrics.pixels.inc(math.prod(found.size))
            self.metrics.objects.inc(len(found.above(self.threshold)))
            rows = np.flatnonzero(found.scores >= score).tolist()
            chosen = found.take(rows)
            if asked.format is not None:
                return found, written(asked.format, chosen, path, name, self.finder, order, image)
        about = self._about(name, key) | {"warnings": check.messages()}
        return found, document(chosen, rows, outlines, about)

    def _about(self, name: str, key: str | None) -> dict[str, Any]:
        return {"name": name, "threshold": self.threshold, "result": key, "warnings": []}

    async def write(
        self, request: Request, kept: Kept, asked: Asked, rows: Sequence[int] | None, outlines: bool
    ) -> bytes:
        """Some objects of a kept result, all by default, as a kind of answer; raises `Refusal`."""
        count = len(kept.found)
        chosen = sorted(set(range(count) if rows is None else rows))
        if chosen and not (chosen[0] >= 0 and chosen[-1] < count):
            raise Refusal(422, f"objects are counted from 0 to {count - 1}: name some of those.")
        order = Order(self.settings.seconds)

        def work() -> bytes:
            found = kept.found.take(chosen)
            if asked.format is None:
                return document(found, chosen, outlines, self._about(kept.name, kept.key))
            return written(asked.format, found, kept.path, kept.name, self.finder, order)

        return await self._while_wanted(request, self.drawing, work, order, kept.path)

    async def tile(self, request: Request, kept: Kept, step: int, column: int, row: int) -> bytes:
        """A tile of a kept image as PNG; raises `Refusal`."""

        def work() -> bytes:
            return pictures.tile(self._open.shown(kept.path), step, column, row)

        return await self._while_wanted(request, self.drawing, work, Order(self.settings.seconds), kept.path)

    async def layer(self, request: Request, kept: Kept, name: str, label: int, box: Box | None) -> bytes:
        """A layer over a kept image as PNG; raises `Refusal`."""
        order = Order(self.settings.seconds)

        def work() -> bytes:
            with open_sent(kept.path, self.finder.config.model.backbone.channels, order) as image:
                return pictures.layer(self.finder, image, name, label, box)

        return await self._while_wanted(request, self.model, work, order, kept.path)

    async def _while_wanted(
        self, request: Request, worker: Worker, work: Callable[[], T], order: Order, path: Path
    ) -> T:
        """What work on an image returns; the work is given up when its client leaves."""
        job = asyncio.ensure_future(worker.run(work, order))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                raise Refusal(400, "the connection was closed before the answer.")
            return job.result()
        except Exception as error:
            raise refusal_of(error, path) from None
        finally:
            job.cancel()
            gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
