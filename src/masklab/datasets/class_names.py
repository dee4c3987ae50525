"""Classes of a model and of a data set, matched by their names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from pathlib import Path

from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.utils.words import listed

_SHORTEST_PLURAL = 4  # letters; shorter names, such as A and As, are not taken for one another

_IRREGULAR = {
    "alveoli": "alveolus",
    "bacteria": "bacterium",
    "cacti": "cactus",
    "calves": "calf",
    "children": "child",
    "feet": "foot",
    "fungi": "fungus",
    "geese": "goose",
    "glomeruli": "glomerulus",
    "halves": "half",
    "knives": "knife",
    "larvae": "larva",
    "leaves": "leaf",
    "lens": "lens",
    "lenses": "lens",
    "loaves": "loaf",
    "men": "man",
    "mice": "mouse",
    "mitochondria": "mitochondrion",
    "mitoses": "mitosis",
    "nuclei": "nucleus",
    "nucleoli": "nucleolus",
    "people": "person",
    "shelves": "shelf",
    "teeth": "tooth",
    "vertebrae": "vertebra",
    "villi": "villus",
    "wolves": "wolf",
    "women": "woman",
}


@dataclass(frozen=True)
class ClassMatch:
    """The classes of a data set as those of a model.

    ``labels`` of the model by category id of the data, best matches first; ``renamed`` names of both where they
    differ; ``unknown`` to the model, and ``absent`` from the data.
    """

    labels: dict[int, int]
    renamed: list[tuple[str, str]]
    unknown: list[str]
    absent: list[str]

    @property
    def note(self) -> str:
        """What differs, "" for nothing."""
        parts = [f"classes are matched, {listed(f'{name} as {other}' for name, other in self.renamed)}"] * bool(
            self.renamed
        )
        if self.unknown:
            parts.append(f"left out are classes of the data that the model does not know, {listed(self.unknown)}")
        if self.absent:
            parts.append(f"left out are classes of the model that the data do not have, {listed(self.absent)}")
        return "; ".join(parts)


def match_classes(
    model: ClassTable, data: ClassTable, source: str | Path, used: Collection[int | str] | None = None
) -> ClassMatch:
    """Find the model's class of each class of the data, by name.

    Names may differ in case, in spaces, underscores and hyphens, and in number, such as nucleus and nuclei; ids count
    only among classes of one name.  A model of one class is matched with data of one class whatever the names are.
    ``used`` are the category ids that occur in the data, by default all: classes that do not occur are not missed.
    Raises `InputError`, which names ``source`` and lists
    both sides, where no class of the data is matched.
    """
    occurring = [number for number in data.ids if used is None or number in used] or list(data.ids)
    names = dict(zip(data.ids, data.names, strict=True))
    labels = _by_name(model, data)
    if not labels.keys() & set(occurring):
        if len(model) > 1 or len(occurring) > 1:
            raise InputError(
                f"{source}: none of its classes ({listed(names[number] for number in occurring)}) is one that the model "
                f"finds ({listed(model.names)}): take data of these, or rename the classes of the data."
            )
        labels = {occurring[0]: 0}
    pairs = [(names[number], model.names[label]) for number, label in labels.items() if number in occurring]
    return ClassMatch(
        labels=labels,
        renamed=[(name, other) for name, other in pairs if name != other],
        unknown=[names[number] for number in occurring if number not in labels],
        absent=[name for label, name in enumerate(model.names) if label not in labels.values()],
    )


def _by_name(model: ClassTable, data: ClassTable) -> dict[int, int]:
    """Labels of the model by category id of the data; the closest kind of likeness that names one class decides."""
    likenesses: list[Callable[[int, str], Hashable]] = [
        lambda number, name: (number, name),
        lambda _, name: name,
        lambda _, name: "".join(_words(name)),
        lambda _, name: "".join(map(_singular, _words(name))),
    ]
    labels: dict[int, int] = {}
    for likeness in likenesses:
        known: dict[Hashable, list[int]] = {}
        for label, (number, name) in enumerate(zip(model.ids, model.names, strict=True)):
            known.setdefault(likeness(number, name), []).append(label)
        for number, name in zip(data.ids, data.names, strict=True):
            found = known.get(likeness(number, name), [])
            if number not in labels and len(found) == 1:
                labels[number] = found[0]
    return labels


def _words(name: str) -> list[str]:
    """The words of a name in small letters; the name itself where it has none."""
    return (
        re.split(r"[\s_-]+", unicodedata.normalize("NFKC", name).casefold().strip(" _-"))
        if name.strip(" _-")
        else [name]
    )


def _singular(word: str) -> str:
    """A form that the singular and the plural of an English word share; not always a word itself."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) >= _SHORTEST_PLURAL and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    if len(word) >= _SHORTEST_PLURAL and word.endswith("ie"):  # berries and berry, cookies and cookie
        return word[:-2] + "y"
    # boxes and box, tomatoes and tomato, buses and bus; axes and axe lose the same letter
    return word[:-1] if len(word) >= _SHORTEST_PLURAL and re.search(r"(s|x|z|ch|sh|o)e$", word) else word
