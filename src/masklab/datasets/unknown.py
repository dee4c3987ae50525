"""Explanation for a path that holds no data set: what is there instead, what it looks like, and what to do."""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from masklab.images.read import IMAGE_SUFFIXES

_DEEPEST, _MOST_ENTRIES = 4, 5000  # folders below the one that is named, and files and folders, that are looked at
_MOST_READ, _PART = 40, 2**16  # files that are looked into, and how many bytes at their beginning and end
_MOST_NAMED = 3  # kinds of files that a message names

_OUTLINES = "export outlines from the tool that drew them, as COCO or YOLO segmentation"
_CONVERT = "convert it to COCO, or to images and masks with one whole number per object"


class _Kind(NamedTuple):
    """What a file looks like whose beginning has all of some words, and what to do with it."""

    words: tuple[str, ...]
    looks: str
    advice: str


_JSON = (
    _Kind(('"segments_info"',), "a COCO panoptic file", "use the file of instances, such as instances_train2017.json"),
    _Kind(
        ('"num_keypoints"',), "COCO's person keypoints", "use the file of instances, such as instances_train2017.json"
    ),
    _Kind(('"caption"', '"image_id"'), "COCO captions", "use the file of instances, such as instances_train2017.json"),
    _Kind(('"score"', '"image_id"'), "results of a model in COCO's form", "add the annotations that they belong to"),
    _Kind(('"images"', '"categories"', '"annotations"'), "COCO", "name it: --annotations FILE --images DIR"),
    _Kind(('"images"', '"categories"'), "a list of COCO images without annotations", "add the file of instances"),
    _Kind(('"coordinates"', '"annotations"', '"label"'), "CreateML, which has boxes only", _OUTLINES),
    _Kind(('"shapes"', '"imagePath"'), "labelme", "put the images beside the JSON files, and draw polygons"),
    _Kind(('"_via_img_metadata"',), "a VIA project", "put the images beside it, and draw polygons"),
    _Kind(('"shape_attributes"',), "VIA annotations", "put the images beside it, and draw polygons"),
    _Kind(('"from_name"', '"to_name"'), "Label Studio's own JSON", "export as COCO with images from Label Studio"),
    _Kind(('"data_row"',), "a Labelbox export", "convert it to COCO"),
    _Kind(('"Labeled Data"',), "a Labelbox export", "convert it to COCO"),
    _Kind(('"box2d"',), "BDD100K or Scalabel", "convert it to COCO, outlines included"),
    _Kind(('"poly2d"',), "BDD100K or Scalabel", "convert it to COCO"),
    _Kind(('"classTitle"',), "Supervisely", "keep its folders ann and img beside meta.json"),
    _Kind(('"imgHeight"', '"objects"'), "Cityscapes polygons", "add the images and the files *_instanceIds.png"),
    _Kind(('"items"', '"categories"', '"label_cat'), "Datumaro", "export as COCO from CVAT or Datumaro"),
    _Kind(('"FeatureCollection"',), "GeoJSON", "put the images beside the GeoJSON files, with the same names"),
    _Kind(('"slots"', '"item"'), "V7 Darwin JSON", "export as COCO from V7"),
    _Kind(('"bounding_box"', '"polygon"'), "V7 Darwin JSON", "export as COCO from V7"),
    _Kind(('"instances"', '"metadata"'), "SuperAnnotate", "export as COCO from SuperAnnotate"),
)
_XML = (
    _Kind(("<annotation", "<polygon>"), "LabelMe's old XML", _CONVERT),
    _Kind(
        ("<annotation", "<bndbox>"), "Pascal VOC boxes", "add SegmentationObject with a PNG per image; or " + _OUTLINES
    ),
    _Kind(("<annotations", "<track"), "CVAT for video", "export as COCO from CVAT"),
    _Kind(("<annotations", "<image"), "CVAT for images", "draw polygons or masks, and add the images"),
    _Kind(("<dataset", "<box"), "dlib boxes", _OUTLINES),
    _Kind(("<Annotations", "<Regions"), "Aperio ImageScope", _CONVERT),
    _Kind(("<ASAP_Annotations",), "ASAP annotations", _CONVERT),
)
_CSV = (
    _Kind(("EncodedPixels",), "run lengths of a Kaggle competition", _CONVERT),
    _Kind(("rle",), "run lengths", _CONVERT),
    _Kind(("region_shape_attributes",), "VIA annotations as CSV", "export them as JSON from VIA"),
    _Kind(("xmin",), "a table of boxes", _OUTLINES),
    _Kind(("XMin",), "Open Images boxes", _OUTLINES),
)
_YAML = (_Kind(("names",), "a YOLO data file", "add the folders images and labels that it names"),)
_TXT: tuple[_Kind, ...] = ()
_READ = {
    **{".json": _JSON, ".geojson": _JSON, ".ndjson": _JSON, ".jsonl": _JSON, ".xml": _XML},
    **{".csv": _CSV, ".tsv": _CSV, ".yaml": _YAML, ".yml": _YAML, ".txt": _TXT},
}
_PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_BY_NAME = (
    *((ending, _Kind((), "an archive", "unpack it")) for ending in _PACKED),
    ("_seg.npy", _Kind((), "Cellpose", "put the images beside the _seg.npy files, with the same names")),
    *((ending, _Kind((), "NumPy arrays", _CONVERT)) for ending in (".npy", ".npz")),
    *((ending, _Kind((), "NIfTI volumes", "save each slice as PNG or TIFF")) for ending in (".nii", ".nii.gz")),
    *((ending, _Kind((), "HDF5", _CONVERT)) for ending in (".h5", ".hdf5", ".hdf")),
    *((ending, _Kind((), "TensorFlow records", _CONVERT)) for ending in (".tfrecord", ".tfrecords", ".record")),
    *((ending, _Kind((), "a Parquet table", _CONVERT)) for ending in (".parquet", ".arrow", ".feather")),
    *((ending, _Kind((), "MATLAB arrays", _CONVERT)) for ending in (".mat",)),
    *((ending, _Kind((), "a Python pickle, which is never opened", _CONVERT)) for ending in (".pkl", ".pickle")),
    *((ending, _Kind((), "microscope images", "save them as TIFF")) for ending in (".czi", ".lif", ".nd2", ".oib")),
    *((ending, _Kind((), "slide images", "cut tiles, as TIFF or PNG")) for ending in (".svs", ".ndpi", ".mrxs")),
    *((ending, _Kind((), "DICOM images", "save them as PNG or TIFF")) for ending in (".dcm", ".dicom")),
    *((ending, _Kind((), "phone images", "save them as JPEG or PNG")) for ending in (".heic", ".heif")),
    *((ending, _Kind((), "videos", "save the annotated frames as images")) for ending in (".mp4", ".avi", ".mov")),
    *((ending, _Kind((), "ImageJ regions", "put the images beside them, with the same names")) for ending in (".roi",)),
)


def is_of_other_tool(path: Path) -> bool:
    """Whether a file looks like that of a tool or format that is known, other than COCO."""
    kind = _kind_of(str(path), is_read=True)
    return kind is not None and kind.looks != "COCO" and kind not in _UNSURE.values()


def explain_file(path: Path) -> str:
    """Why a file that exists is no data set, and what to do instead; one sentence."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return (
            f"{path} is an image, not a data set: name the folder of images and annotations; to find the objects of the "
            f"image: masklab predict MODEL {path}."
        )
    kind = _kind_of(str(path), is_read=True)
    if kind is None:
        return f"{path} is a file, not a data set: name the folder that holds it, or a COCO file."
    return f"{path} is no data set, but looks like {kind.looks}: {kind.advice}, and name the folder."


def explain_folder(folder: Path, layouts: Iterable[str]) -> str:
    """Why a folder holds no data set, what is in it and what to do; one sentence.  ``layouts`` are those that are read."""
    files = list(_files(folder))
    images = [name for name in files if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
    seen = _seen(folder, files)
    known = f"the layouts are {', '.join(layouts)}"
    if not files:
        return f"{folder} holds no data set: it holds no file; correct the path ({known})."
    if not seen and images:
        return (
            f"{folder} holds no data set: there are {_counted(len(images), 'image')} but no annotations; add them, or "
            f"let a model find the objects: masklab predict MODEL {folder} ({known})."
        )
    if not seen:
        return f"{folder} holds no data set: none of its files, such as {files[0]!r}, are annotations; correct the path ({known})."
    shown = "; ".join(_sentence(kind, names) for kind, names in seen[:_MOST_NAMED])
    more = f"; and {len(seen) - _MOST_NAMED} other kinds of files" if len(seen) > _MOST_NAMED else ""
    return f"{folder} holds no data set: {shown}{more}; beside {_counted(len(images), 'image')} ({known})."


def _sentence(kind: _Kind, names: list[str]) -> str:
    first = "".join(letter if letter.isprintable() else "?" for letter in names[0])
    what = first if len(names) == 1 else f"{first} and {len(names) - 1} more"
    return f"{what} {'looks' if len(names) == 1 else 'look'} like {kind.looks}: {kind.advice}"


def _counted(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _seen(folder: Path, files: list[str]) -> list[tuple[_Kind, list[str]]]:
    """The kinds of files that are no images, with their names; those whose content is known first.

    Of each ending and folder only some files are read; the others count as what most of those look like.
    """
    found: defaultdict[_Kind, list[str]] = defaultdict(list)
    by_folder: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name in files:
        by_folder[os.path.dirname(name), os.path.splitext(name)[1].lower()].append(name)
    left = _MOST_READ
    for names in sorted(by_folder.values(), key=len):
        looks: Counter[_Kind | None] = Counter()
        for name in names:
            kind = _kind_of(os.path.join(folder, name), is_read=left > 0 and looks.total() < 5)
            if left > 0 and looks.total() < 5:
                left -= _needs_reading(name)
                looks[kind] += 1
            elif kind is None or _needs_reading(name):
                kind = looks.most_common(1)[0][0] if looks else None
            if kind is not None:
                found[kind].append(name)
    return sorted(found.items(), key=lambda item: (item[0] in _UNSURE.values(), -len(item[1])))


def _needs_reading(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in _READ


_UNSURE = {
    ".json": _Kind((), "JSON of an unknown tool", "see the layouts, or export as COCO"),
    ".xml": _Kind((), "XML of an unknown tool", "see the layouts, or export as COCO"),
}


def _kind_of(path: str, is_read: bool) -> _Kind | None:
    """What a file looks like, by its name and, if it ``is_read``, by its content; None where nothing is known."""
    low = os.path.basename(path).lower()
    for ending, kind in _BY_NAME:
        if low.endswith(ending):
            return kind
    suffix = os.path.splitext(low)[1]
    if suffix not in _READ or not is_read:
        return None
    text = _ends(path)
    unsure = _UNSURE.get(suffix)
    return next((kind for kind in _READ[suffix] if all(word in text for word in kind.words)), unsure)


def _ends(path: str) -> str:
    """The beginning and end of a file; nothing of one that is no plain file or cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        with open(path, "rb") as file:
            head = file.read(_PART)
            file.seek(max(os.fstat(file.fileno()).st_size - _PART, _PART))
            head += file.read(_PART)
    except OSError:
        return ""
    return head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8", "replace")


def _files(folder: Path) -> Iterator[str]:
    """The files in a folder and below, as paths in it; not those that are hidden or behind links to folders."""
    left = _MOST_ENTRIES
    places = [""]
    for place in places:
        try:
            with os.scandir(folder / place) as entries:
                here = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in here[:left]:
            if entry.name[0] == "." or entry.name == "__MACOSX":
                continue
            name = os.path.join(place, entry.name)
            if entry.is_dir(follow_symlinks=False) and name.count(os.sep) < _DEEPEST:
                places.append(name)
            elif not os.path.isdir(entry.path):  # which a link to itself is not
                yield name
        left -= len(here)
        if left <= 0:
            return
