"""One split whose lists are taken as they are: the sink of its problems."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from masklab.datasets.check.report import Report
from masklab.datasets.coco_document import CocoDocument
from masklab.datasets.image_table import ImageRecord, id_of, is_id, look_for_files, read_images, relative_name
from masklab.datasets.layouts.coco import CocoSource
from masklab.datasets.problems import Problem
from masklab.utils.errors import InputError


class LenientSplit:
    """A split under check, whose problems go into a `Report` as findings.

    ``images`` and ``annotations`` are COCO's lists, empty where the file has none; ``categories`` is None then.
    ``document`` is the JSON of another layout; without it, that of ``source`` is read.
    """

    def __init__(self, name: str, source: CocoSource, report: Report, document: CocoDocument | None = None) -> None:
        self.name, self.json_path = name, source.json_path
        self._source, self._report = source, report
        self._files: dict[int | str, str] = {}  # file names by image id
        document = document or self._read(source.json_path)
        self.images, self.annotations = document.images, document.annotations
        self._document = document
        self.used: Collection[int | str] = ()
        self.categories = None if "categories" in document.missing else document.categories
        lists = {"images": self.images, "annotations": self.annotations, "categories": self.categories or []}
        report.splits[name] = {key: len(values) for key, values in lists.items()}

    def report(self, problem: Problem) -> None:
        """Take a problem as a finding; this makes the split a `masklab.datasets.problems.Sink`."""
        if problem.file_name is None and problem.image_id is not None:
            problem = problem._replace(file_name=self._files.get(problem.image_id))
        self._report.add(self.name, problem)

    def add(self, name: str, detail: str = "", image_id: Any = None, annotation_id: int | str | None = None) -> None:
        """Report a problem; an ``image_id`` that cannot be one is left out."""
        self.report(Problem(name, detail, image_id if is_id(image_id) else None, annotation_id))

    def entries(self) -> list[ImageRecord]:
        """The images whose entries can be used, with their files where these exist."""
        folder, *places = [place for place in self._source.places if place.is_dir()] or [self._source.root]
        images = read_images(self.images, self.json_path, folder, self)
        try:
            images, folder, _ = look_for_files(images, folder, places, self._source.root)
        except InputError as error:
            self.add("unusable split", str(error))
        self._files = {image.image_id: relative_name(image.path, folder) for image in images}
        return images

    @property
    def names(self) -> dict[int, str]:
        """The class names by category id, of the entries that have both."""
        names: dict[int, str] = {}
        for entry in self.categories or []:
            number = id_of(entry)
            if isinstance(number, int):
                names.setdefault(number, str(entry.get("name")))
        return names

    def use_categories(self, used: Collection[int | str]) -> None:
        """Take note of the category ids that occur, and leave a category out that only stands above all others."""
        self.used = used
        if self.categories is not None:
            self.categories = self._document.classes(used)

    def _read(self, path: Path) -> CocoDocument:
        try:
            document = CocoDocument.read(path, ())
        except InputError as error:
            self.add("unusable split", str(error))
            return CocoDocument.from_values({}, path, ())
        for key in document.missing:
            self.add("unusable split", f"{path} has no list {key!r}.")
        return document
