"""Opening a data set of any known format, found by looking at its folder, and writing it in COCO's."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from masklab.config import VAL_FRACTION
from masklab.data.coco import VAL_NAMES, CocoSplit, check_names, find_split, split_files
from masklab.data.layouts import Annotated, Found, Pair, Size, find_cellpose, find_kaggle, find_label_images
from masklab.data.yolo import find_yolo
from masklab.errors import InputError
from masklab.files import whole, whole_folder
from masklab.ops import rle
from masklab.pictures import picture_size
from masklab.progress import track
from masklab.structures import ClassTable

FORMATS: dict[str, Callable[[Path], dict[str, Found]]] = {
    "YOLO segmentation (data.yaml, images, labels/*.txt)": find_yolo,
    "label images (images, and masks or labels)": find_label_images,
    "Cellpose (x_masks.png or .tif beside x.png)": find_cellpose,
    "Kaggle 2018 (ID/images, ID/masks)": find_kaggle,
}
COCO = "COCO (SPLIT.json with SPLIT, or annotations/instances_SPLIT2017.json with SPLIT2017)"


class Fault(NamedTuple):
    """A picture of a format other than COCO that cannot be read, or whose annotation cannot."""

    image_id: int
    file_name: str
    of_picture: bool
    reason: str


def open_split(
    folder: str | Path,
    split: str,
    categories: ClassTable | None = None,
    val_fraction: float = VAL_FRACTION,
    seed: int = 0,
    faults: list[Fault] | None = None,
) -> CocoSplit:
    """Find a split in a data set folder of any format of ``FORMATS``, or COCO's, and read it.

    Every format becomes what COCO's JSON would hold, masks as run lengths.  A split is a folder, ``valid`` and
    ``validation`` being ``val`` where there is no other, or what YOLO's
    ``data.yaml``, or ``train.txt`` and ``val.txt`` with a picture a line, list.  Where there is no ``val``, it is
    ``val_fraction`` of the pictures of ``train``, or of an undivided folder, the first by a hash of ``seed`` and
    file name; ``train`` is the rest; ``all`` is an undivided folder whole.  A format that knows no classes has the
    one class of ``categories``, if it is one, else "object".

    Of other formats than COCO, ``faults``, where it is given, takes what is wrong with single pictures, which otherwise
    ends the reading at the first: one that cannot be read is left out, one whose annotation cannot be has no objects.

    Raises `InputError` when no format or several fit, for a split that is not there, and for files that cannot be
    used.
    """
    folder = Path(folder)
    check_names(folder, split)
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction is {val_fraction}: give a share between 0 and 1, such as {VAL_FRACTION}.")
    found = _look(folder)
    if found is None:
        return _open_coco(folder, split, categories, val_fraction, seed)
    pool, chosen, note = _choose(folder, found, split, val_fraction, seed)
    values = _as_coco(folder, chosen, found[pool], categories, faults)
    opened = CocoSplit(folder / split, folder, categories, values)
    opened.note = note
    return opened


def split_names(folder: str | Path) -> list[str]:
    """The splits that `open_split` finds in a folder, those that it would draw included."""
    folder = Path(folder)
    check_names(folder, "all")
    found = _look(folder)
    if found is None:
        complete = {split: [pair for pair in pairs if pair[1].is_dir()] for split, pairs in split_files(folder).items()}
        files = {pairs[0][0]: split for split, pairs in sorted(complete.items(), reverse=True) if len(pairs) == 1}
        names = set(files.values())
    else:
        names = set(found) - {""} or ({"train"} | set(_lists(folder)))
    return sorted(names | {"val"} if "train" in names else names)


def convert(
    source: str | Path, folder: str | Path, val_fraction: float = VAL_FRACTION, seed: int = 0
) -> dict[str, CocoSplit]:
    """Write every split of a data set as ``SPLIT.json`` and ``SPLIT/`` into a new ``folder``; returns them as read.

    Masks are kept exactly, as run lengths; what is COCO already keeps its annotations as they are.  Pictures are
    copied.  ``split.json`` lists the pictures of each split.  See `open_split` for what is found and raised.
    """
    splits: dict[str, CocoSplit] = {}
    with whole_folder(folder) as beside:
        for name in split_names(source):
            splits[name] = open_split(source, name, None, val_fraction, seed)
            _write_split(splits[name], beside, name)
        write_lists(splits, beside / "split.json")
    return splits


def write_lists(splits: Mapping[str, CocoSplit], path: Path) -> None:
    """Write down which pictures each split has, and how it was drawn if it was."""
    lists = {
        name: {
            "drawn": split.note or None,
            "pictures": [picture.path.relative_to(split.folder).as_posix() for picture in split.pictures],
        }
        for name, split in splits.items()
    }
    with whole(path) as beside:
        beside.write_text(json.dumps(lists, indent=1), encoding="utf-8")


def _look(folder: Path) -> dict[str, Found] | None:
    """The splits of the one format that fits a folder; None where that is COCO's."""
    fitting: dict[str, dict[str, Found] | None] = {}
    if any(pictures.is_dir() for _, pictures in chain(*split_files(folder).values())):
        fitting[COCO] = None
    fitting |= {name: found for name, find in FORMATS.items() if (found := find(folder))}
    if len(fitting) > 1:
        raise InputError(
            f"{folder} fits more than one format: {' and '.join(fitting)}: move what you do not mean away."
        )
    if fitting:
        return _called_val(next(iter(fitting.values())))
    if split_files(folder):
        return None
    raise InputError(f"{folder} holds no data set: none of {'; '.join([COCO, *FORMATS])} was found; correct the path.")


def _called_val(found: dict[str, Found] | None) -> dict[str, Found] | None:
    """The splits, with a folder ``valid`` or ``validation`` as ``val`` where there is no other."""
    other = next((name for name in VAL_NAMES if found and name in found), None)
    if found is None or other is None or "val" in found:
        return found
    return {"val" if name == other else name: own for name, own in found.items()}


def _open_coco(folder: Path, split: str, categories: ClassTable | None, val_fraction: float, seed: int) -> CocoSplit:
    present = split_files(folder)
    drawn = split in ("train", "val") and "train" in present and "val" not in present
    whole_split = CocoSplit(*find_split(folder, "train" if drawn else split), categories)
    if not drawn:
        return whole_split
    images, annotations = (whole_split.ground_truth[key] for key in ("images", "annotations"))
    kept, note = _draw([image["file_name"] for image in images], split, folder, val_fraction, seed)
    images = [image for image in images if image["file_name"] in kept]
    ids = {image["id"] for image in images}
    values = whole_split.ground_truth | {
        "images": images,
        "annotations": [annotation for annotation in annotations if annotation["image_id"] in ids],
    }
    part = CocoSplit(whole_split.json_path, whole_split.folder, categories, values)
    part.note = note
    return part


def _choose(
    folder: Path, found: dict[str, Found], split: str, val_fraction: float, seed: int
) -> tuple[str, list[Pair], str]:
    """Which folder of pictures a split is taken from, its pictures, and how they were drawn, if they were."""
    drawn = "val" not in found and split in ("train", "val")
    if split in found and not drawn:
        return split, found[split].pairs(), ""
    pool = "train" if "train" in found and drawn else ""
    if pool not in found:
        own = next((folder / name for name in sorted(found) if (folder / name).is_dir()), None)
        advice = "correct the name" if own is None else f"correct the name or give {own} as the data set"
        raise InputError(f"{folder} holds no split {split}: there is {', '.join(sorted(found))}; {advice}.")
    pairs = found[pool].pairs()
    names = [_name(pair, folder) for pair in pairs]
    lists = {} if pool else _lists(folder)
    if split in lists:
        kept, note = _listed(lists[split], names), ""
    elif drawn and not lists:
        kept, note = _draw(names, split, folder, val_fraction, seed)
    elif split == "all":
        kept, note = set(names), ""
    else:
        raise InputError(f"{folder} holds no split {split}: write {split}.txt with the name of a picture a line.")
    return pool, [pair for pair, name in zip(pairs, names, strict=True) if name in kept], note


def _name(pair: Pair, folder: Path) -> str:
    return pair.picture.relative_to(folder).as_posix()


def _lists(folder: Path) -> dict[str, Path]:
    """``train.txt``, ``val.txt`` and others beside an undivided folder of pictures; both of these, or none."""
    lists = {path.stem: path for path in folder.glob("*.txt") if path.stem in ("train", "val", "test")}
    if lists and not {"train", "val"} <= set(lists):
        raise InputError(f"{folder} has {min(lists)}.txt, but needs both train.txt and val.txt: write both or none.")
    return lists


def _listed(path: Path, names: list[str]) -> set[str]:
    """The pictures that a file lists, a line each: path in the data set folder, file name, or that without suffix."""
    known: dict[str, str] = {}
    for name in names:
        known |= dict.fromkeys((name, Path(name).name, Path(name).stem), name)
    try:
        lines = [line.strip().removeprefix("./") for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): replace the file.") from None
    strange = [line for line in lines if line and line not in known]
    if strange:
        raise InputError(f"{path} lists {strange[0]}, which is not among the pictures: correct the line.")
    return {known[line] for line in lines if line}


def _draw(names: list[str], split: str, folder: Path, val_fraction: float, seed: int) -> tuple[set[str], str]:
    """The share of pictures that is ``val``, or the rest, by a hash of their file names; and a sentence on it."""
    if len(names) < 2:
        raise InputError(f"{folder} has no val, and {len(names)} pictures are too few to draw it from: add pictures.")

    def rank(name: str) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed}/{Path(name).name}".encode()).digest(), name

    held_out = set(sorted(names, key=rank)[: min(max(1, round(val_fraction * len(names))), len(names) - 1)])
    note = f"val is {len(held_out)} of {len(names)} pictures, drawn by file name and seed {seed}"
    return (held_out if split == "val" else set(names) - held_out), note


def _as_coco(
    folder: Path, pairs: list[Pair], found: Found, categories: ClassTable | None, faults: list[Fault] | None
) -> dict[str, Any]:
    """What COCO's JSON would hold of the pictures, their ``file_name`` relative to ``folder``."""
    only = (categories.ids[0], categories.names[0]) if categories and len(categories) == 1 else (1, "object")
    names = found.names or dict([only])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, pair in enumerate(track(pairs, "reading masks"), 1):
        size: Size | None = None
        objects: Annotated = []
        try:
            size = picture_size(pair.picture)
            objects = found.objects(pair, size)
        except InputError as error:
            if faults is None:
                raise
            faults.append(Fault(image_id, _name(pair, folder), size is None, str(error)))
        if size is None:
            continue
        images.append({"id": image_id, "file_name": _name(pair, folder), "height": size[0], "width": size[1]})
        strings = rle.strings_from_runs([runs for _, runs in objects])
        for (category, runs), counts in zip(objects, strings, strict=True):
            x1, y1, x2, y2 = rle.bounds(runs, size) or (0, 0, 0, 0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": only[0] if category is None else category,
                    "segmentation": {"size": list(size), "counts": counts},
                    "area": rle.area(runs),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "iscrowd": 0,
                }
            )
    table = [{"id": number, "name": name} for number, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": table}


def _write_split(split: CocoSplit, folder: Path, name: str) -> None:
    """Write ``NAME.json`` and ``NAME/``, flat where no two pictures have the same file name."""
    names = [picture.path.relative_to(split.folder).as_posix() for picture in split.pictures]
    flat = max(Counter(Path(name).name.lower() for name in names).values(), default=1) == 1
    images = []
    (folder / name).mkdir()
    for picture, image, own in zip(split.pictures, split.ground_truth["images"], names, strict=True):
        target = Path(own).name if flat else own
        (folder / name / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture.path, folder / name / target)
        images.append({**image, "file_name": target})
    text = json.dumps(split.ground_truth | {"images": images})
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
