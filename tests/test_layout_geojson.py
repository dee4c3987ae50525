"""GeoJSON is read as QuPath's GsonTools writes it, and as other tools do: objects, classes, holes; the rest is reported."""

import json
import unicodedata

import numpy as np
import pytest
import tifffile
from contracts import fails
from matplotlib.path import Path as Outline
from PIL import Image

from masklab.datasets.layouts.geojson import GEOJSON
from masklab.datasets.open import open_split, split_names
from masklab.datasets.problems import CollectingSink
from masklab.masks import rle

SIZE = (120, 160)
BLOB = [[20.25, 30.5], [70.75, 22.1], [95.3, 60.9], [60.0, 101.7], [25.9, 80.4], [20.25, 30.5]]
SQUARE = [[10, 10], [90, 10], [90, 90], [10, 90], [10, 10]]
HOLE = [[30, 30], [30, 70], [70, 70], [70, 30], [30, 30]]
FAR = [[100, 10], [150, 10], [150, 100], [100, 100], [100, 10]]
ROI = [[0, 0], [160, 0], [160, 120], [0, 120], [0, 0]]


def feature(kind="annotation", rings=(BLOB,), name=None, geometry=None, **more):
    """A feature of QuPath 0.4 and later; a class has its colour with it."""
    properties = {"objectType": kind}
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {
        "type": "Feature",
        "id": f"6e2f1e3c-0000-4000-8000-{abs(hash((kind, str(rings), name))) % 10**12:012d}",
        "geometry": geometry or {"type": "Polygon", "coordinates": list(rings)},
        "properties": properties,
        **more,
    }


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def image(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.full(size, 120, np.uint8))


def inside(points):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    at = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
    return Outline(np.array(points, float)).contains_points(at).reshape(SIZE)


def masks(split, index=0):
    objects = split.objects(index)
    return [rle.window(objects.rle(k), SIZE, (0, 0, SIZE[1], SIZE[0])) > 0 for k in range(len(objects))]


def classes(split, index=0):
    return [split.categories.names[label] for label in split.objects(index).labels]


def write(path, value, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding=encoding)


def read(tmp_path, value, sink=None, name="x.geojson"):
    image(tmp_path / "x.tif")
    write(tmp_path / name, value)
    return open_split(tmp_path, "all", sink=sink)


def iou(one, two):
    return (one & two).sum() / (one | two).sum()


SHAPES = {
    "polygon": ({"type": "Polygon", "coordinates": [BLOB]}, inside(BLOB)),
    "hole": ({"type": "Polygon", "coordinates": [SQUARE, HOLE]}, inside(SQUARE) & ~inside(HOLE)),
    "parts": (
        {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [FAR]]},
        (inside(SQUARE) & ~inside(HOLE)) | inside(FAR),
    ),
    "collection": (
        {
            "type": "GeometryCollection",
            "geometries": [{"type": "Polygon", "coordinates": [SQUARE]}, {"type": "Polygon", "coordinates": [FAR]}],
        },
        inside(SQUARE) | inside(FAR),
    ),
    "third coordinate": ({"type": "Polygon", "coordinates": [[[*point, 0] for point in BLOB]]}, inside(BLOB)),
    "plane": ({"type": "Polygon", "coordinates": [BLOB], "plane": {"c": -1, "z": 0, "t": 0}}, inside(BLOB)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(tmp_path, name):
    geometry, expected = SHAPES[name]
    found = masks(read(tmp_path, collection(feature(geometry=geometry))))
    assert len(found) == 1
    assert iou(found[0], expected) >= 0.98


BODIES = [
    collection(feature(name="Tumor")),
    [feature(name="Tumor")],
    feature(name="Tumor"),
    collection(feature("annotation", [ROI], childObjects=[]), *[feature("detection", name="Tumor")]),
    [collection(feature(name="Tumor"))],
]


@pytest.mark.parametrize("body", BODIES)
def test_forms_of_a_file(tmp_path, body):
    for name in ("x.geojson", "x.json", "x.GEOJSON", "x.tif.geojson", "x.tif - Series0.geojson"):
        split = read(tmp_path, body, name=name)
        assert iou(masks(split)[0], inside(BLOB)) >= 0.98
        assert classes(split) == ["Tumor"]
        (tmp_path / name).unlink()
    for encoding in ("utf-8-sig", "utf-16"):
        write(tmp_path / "x.json", body, encoding)
        assert classes(open_split(tmp_path, "all")) == ["Tumor"]


def test_bare_geometry_without_class(tmp_path):
    split = read(tmp_path, {"type": "Polygon", "coordinates": [BLOB]})
    assert classes(split) == ["object"]


def test_cells_and_detections(tmp_path):
    """They are the objects, inside others too, once each; regions, tiles, TMA cores and ignored classes are not."""
    cell = feature("cell", [SQUARE], "Immune cells: CD3")
    cell["nucleusGeometry"] = {"type": "Polygon", "coordinates": [HOLE]}
    bare = feature("cell", [FAR], "Other") | {
        "nucleusGeometry": {"type": "Polygon", "coordinates": [BLOB]},
        "geometry": {},
    }
    region = feature("annotation", [ROI], "Tumor")
    region["properties"]["childObjects"] = [cell, feature("detection", name="Other")]
    body = [feature("root", [ROI]), region, cell, bare, feature("tile", [ROI]), feature("tmaCore", [ROI])]
    body.append(feature("detection", [FAR], "Ignore*"))
    sink = CollectingSink()
    split = read(tmp_path, collection(*body), sink)
    assert sink.problems == []
    assert sorted(classes(split)) == ["Immune cells: CD3", "Other", "Other"]
    assert split.categories.names == ("Immune cells: CD3", "Other")
    wanted = [inside(SQUARE), inside(BLOB), inside(BLOB)]
    assert sorted(round(float(mask.sum()), -2) for mask in masks(split)) == sorted(
        round(float(mask.sum()), -2) for mask in wanted
    )


def test_annotations_are_regions_where_there_are_detections(tmp_path):
    image(tmp_path / "y.tif")
    write(tmp_path / "y.geojson", collection(feature("annotation", [ROI])))
    sink = CollectingSink()
    split = read(tmp_path, collection(feature("annotation", [ROI]), feature("detection")), sink)
    assert [len(masks(split, k)) for k in range(2)] == [1, 0]
    assert classes(split) == ["object"]
    assert ["regions" in problem.detail for problem in sink.problems] == [True]
    assert sink.problems[0].file_name == "y.tif"


def test_classes_of_all_forms(tmp_path):
    """Names with colours as lists or numbers, several names, parents, text, other tools' fields, and none."""
    forms = {
        "a": {"name": "a", "colorRGB": -16711936},
        "b: c": {"names": ["b", "c"], "color": [1, 2, 3]},
        "d: e": {"name": "e", "parentClass": {"name": "d", "colorRGB": 1}, "colorRGB": 1},
        "f": "f",
        "unclassified": {},
        "Ü": {"name": "Ü"},
    }
    body = [feature() for _ in forms]
    for one, value in zip(body, forms.values(), strict=True):
        one["properties"]["classification"] = value
        one.pop("id")
    body[0] = body[0] | {"id": "PathAnnotationObject"}
    body[0]["properties"].pop("objectType")
    plain = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [BLOB]}, "properties": {"label": "g"}}
    split = read(tmp_path, collection(*body, plain))
    assert classes(split) == [*forms, "g"]
    assert split.categories.names == ("a", "b: c", "d: e", "f", "g", "Ü", "unclassified")


def test_older_types(tmp_path):
    for kind in ("PathDetectionObject", "PathCellObject"):
        body = [feature("annotation", [ROI]), feature("detection")]
        for one, old in zip(body, ("PathAnnotationObject", kind), strict=True):
            one["properties"].pop("objectType")
            one["id"] = old
        assert len(masks(read(tmp_path, body))) == 1
    for name in ("object_type", "type"):
        body = [feature("annotation", [ROI]), feature("detection")]
        for one in body:
            one["properties"][name] = one["properties"].pop("objectType")
        assert len(masks(read(tmp_path, body))) == 1


BROKEN = {
    "no geometry": None,
    "a Point has no area": {"type": "Point", "coordinates": [1, 2]},
    "a LineString has no area": {"type": "LineString", "coordinates": SQUARE},
    "a polygon has no points": {"type": "Polygon", "coordinates": []},
    "list of points": {"type": "Polygon", "coordinates": [[1, 2, 3]]},
    "2 points but needs 3": {"type": "Polygon", "coordinates": [SQUARE[:2]]},
    "not two numbers": {"type": "Polygon", "coordinates": [[["1", 2], [3, 4], [5, 6]]]},
    "not finite": {"type": "Polygon", "coordinates": [[[float("nan"), 2], [3, 4], [5, 6]]]},
    "too large": {"type": "Polygon", "coordinates": [[[10**400, 2], [3, 4], [5, 6]]]},
    "pixels outside": {"type": "Polygon", "coordinates": [[[1e9, 2], [3, 4], [5, 6]]]},
    "z=3": {"type": "Polygon", "coordinates": [SQUARE], "plane": {"c": -1, "z": 3, "t": 0}},
    "a hole is not used": {"type": "Polygon", "coordinates": [SQUARE, [[1, 1]]]},
}


@pytest.mark.parametrize("words", BROKEN)
def test_what_cannot_be_used_is_reported(tmp_path, words):
    """One bad part costs that part; the other objects stay."""
    bad = feature() | {"geometry": BROKEN[words]}
    sink = CollectingSink()
    split = read(tmp_path, collection(bad, feature(rings=[FAR])), sink)
    assert len(masks(split)) == (2 if "hole" in words else 1)
    assert [words in problem.sentence for problem in sink.problems] == [True]
    assert sink.problems[0].sentence.startswith(f"{tmp_path / 'x.geojson'}: feature 1")
    sink = CollectingSink()
    parts = {"type": "MultiPolygon", "coordinates": [[SQUARE[:2]], [FAR]]}
    assert iou(masks(read(tmp_path, collection(feature(geometry=parts)), sink))[0], inside(FAR)) >= 0.98
    assert len(sink.problems) == 1


@pytest.mark.parametrize("entry", [3, None, "a", [[]], {"properties": 3}, {"type": "Feature", "properties": None}])
def test_features_that_are_none(tmp_path, entry):
    split = read(tmp_path, collection(entry, feature()), CollectingSink())
    assert len(masks(split)) == 1


@pytest.mark.parametrize("places", [("", ""), ("images", "annotations"), ("", "labels"), ("scans", "export")])
@pytest.mark.parametrize("name", ["x.tif", "x.ome.tif", "x.TIF", "n\u0303.tif"])
def test_folders(tmp_path, places, name):
    image(tmp_path / places[0] / name)
    stem = unicodedata.normalize("NFC", name.split(".")[0])  # as another system may write it
    write(tmp_path / places[1] / f"{stem}.geojson", collection(feature()))
    assert len(masks(open_split(tmp_path, "all"))) == 1


def test_splits_and_empty_files(tmp_path):
    for split, name in (("train", "a"), ("val", "a"), ("train", "b")):
        image(tmp_path / split / f"{name}.tif")
        write(tmp_path / split / f"{name}.geojson", collection(*[feature(name=split)] * (name == "a")))
    assert split_names(tmp_path) == ["train", "val"]
    assert open_split(tmp_path, "train").categories.names == ("train", "val")
    assert [len(masks(open_split(tmp_path, "train"), k)) for k in range(2)] == [1, 0]
    (tmp_path / "train").rename(tmp_path / "slide 1")
    (tmp_path / "val").rename(tmp_path / "slide 2")
    assert len(open_split(tmp_path, "all").images) == 3


def test_files_that_cannot_be_used(tmp_path):
    for text in ("{", "3", '{"a": 1}', "null"):
        image(tmp_path / "x.tif")
        (tmp_path / "x.geojson").write_text(text)
        fails(("x.geojson",), lambda: open_split(tmp_path, "all"))
    write(tmp_path / "y.geojson", collection(feature()))
    fails(("y.geojson", "belongs to an image y"), lambda: open_split(tmp_path, "all"))
    (tmp_path / "x.tif").unlink()
    fails(("x.geojson", "no image"), lambda: open_split(tmp_path, "all"))


def test_other_folders(tmp_path):
    """JSON of other tools is not GeoJSON, and does not stop GeoJSON beside it."""
    image(tmp_path / "x.tif")
    write(tmp_path / "x.json", {"shapes": [], "imagePath": "x.tif"})
    Image.new("L", SIZE[::-1]).save(tmp_path / "z.png")
    assert GEOJSON.find(tmp_path) == {}
    write(tmp_path / "x.json", collection(feature()))
    write(tmp_path / "project.json", {"version": 1})
    assert len(masks(open_split(tmp_path, "all"))) == 1
