"""One split whose lists are taken as they are: the sink of its problems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from masklab.datasets.annotations import ImageRecord, id_of, is_id, read_images
from masklab.datasets.check.report import Report
from masklab.datasets.layouts.coco import read_json
from masklab.datasets.problems import Problem
from masklab.utils.errors import InputError


class LenientSplit:
    """A split under check, whose problems go into a `Report` as findings.

    ``images`` and ``annotations`` are COCO's lists, empty where the file has none; ``categories`` is None then.
    ``names`` has the class names by category id, of the entries that have both.  ``values`` is the JSON of another
    layout; without it, ``json_path`` is read.
    """

    def __init__(
        self, name: str, json_path: Path, folder: Path, report: Report, values: dict[str, Any] | None = None
    ) -> None:
        self.name, self.json_path, self.folder = name, json_path, folder
        self._report = report
        self._files: dict[int | str, str] = {}  # file names by image id
        lists = self._lists(values)
        self.images, self.annotations = lists.get("images", []), lists.get("annotations", [])
        self.categories = lists.get("categories")
        self.names: dict[int, str] = {}
        for entry in self.categories or []:
            number = id_of(entry)
            if isinstance(number, int):
                self.names.setdefault(number, str(entry.get("name")))
        report.splits[name] = {key: len(lists.get(key, [])) for key in ("images", "annotations", "categories")}

    def report(self, problem: Problem) -> None:
        """Take a problem as a finding; this makes the split a `masklab.datasets.problems.Sink`."""
        if problem.file_name is None and problem.image_id is not None:
            problem = problem._replace(file_name=self._files.get(problem.image_id))
        self._report.add(self.name, problem)

    def add(self, name: str, detail: str = "", image_id: Any = None, annotation_id: int | str | None = None) -> None:
        """Report a problem; an ``image_id`` that cannot be one is left out."""
        self.report(Problem(name, detail, image_id if is_id(image_id) else None, annotation_id))

    def entries(self) -> list[ImageRecord]:
        """The images whose entries can be used."""
        images = read_images(self.images, self.json_path, self.folder, self)
        self._files = {image.image_id: image.path.relative_to(self.folder).as_posix() for image in images}
        return images

    def _lists(self, values: Any) -> dict[str, list[Any]]:
        """The three lists of the JSON, those that exist."""
        try:
            values = read_json(self.json_path, ()) if values is None else values
        except InputError as error:
            self.add("unusable split", str(error))
            return {}
        lists = {}
        for key in ("images", "annotations", "categories"):
            if isinstance(values, dict) and isinstance(values.get(key), list):
                lists[key] = values[key]
            else:
                self.add("unusable split", f"{self.json_path} has no list {key!r}.")
        return lists
